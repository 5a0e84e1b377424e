"""Bridges against simulated Brownian motion and closed-form Schroedinger bridges."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from scipy.fft import dctn, idctn

from eotjax.diffusion import sampler
from eotjax.diffusion.bridge import (
    Bridge,
    PairMoments,
    ancestral,
    denser_to_both_ends,
    denser_to_the_end,
)
from eotjax.diffusion.noise import Spectrum, coloured

N = 20_000
TIMES = (0.1, 0.5, 0.9)
EPSILON, X, Y = 0.6, 0.7, -0.4  # of one Brownian bridge and its two ends


def forward(like):
    """The direction of as many pairs."""
    return jnp.zeros(len(like), int)


def units(bridge, t, like):
    """By how much x_t in the inputs and y - x_t in the output are multiplied.

    Read off the examples, of one noise, of pairs that differ by 1.
    """
    zero, one = jnp.zeros_like(like), jnp.ones_like(like)
    apart, of_y, of_both = (
        bridge.example(jax.random.key(0), source, target, forward(t), t)
        for source, target in ((zero, zero), (zero, one), (one, one))
    )
    left = (1 - t).reshape(-1, *[1] * (like.ndim - 1))
    return of_both.inputs - apart.inputs, (of_y.output - apart.output) / left


def examples(bridge, source, target, t, seed=1):
    """x_t and y of `Bridge.example`, in the data's units."""
    example = bridge.example(jax.random.key(seed), source, target, forward(t), t)
    np.testing.assert_array_equal(example.t, t)
    of_x_t, of_way = units(bridge, t, target)
    x_t = example.inputs / of_x_t
    return np.asarray(x_t), np.asarray(x_t + example.output / of_way)


@functools.cache
def simulated():
    """Brownian motion from X, made to end in Y: [path, time]."""
    steps = 100
    walk = np.random.default_rng(0).standard_normal((N, steps)).cumsum(1)
    walk *= np.sqrt(EPSILON / steps)
    at = np.arange(1, steps + 1) / steps
    pinned = X + at * (Y - X) + walk - at * walk[:, -1:]
    return pinned[:, [round(t * steps) - 1 for t in TIMES]]


@pytest.mark.parametrize("number", range(len(TIMES)))
def test_an_example_is_a_point_of_a_pinned_brownian_motion(number):
    t = TIMES[number]
    x_t, y = examples(
        Bridge(EPSILON), jnp.full((N, 1), X), jnp.full((N, 1), Y), jnp.full(N, t)
    )
    variance = EPSILON * t * (1 - t)
    assert abs(x_t.mean() - (1 - t) * X - t * Y) < 5 * np.sqrt(variance / N)
    assert abs(x_t.var() / variance - 1) < 5 * np.sqrt(2 / N)
    assert scipy.stats.ks_2samp(x_t[:, 0], simulated()[:, number]).pvalue > 1e-3
    np.testing.assert_allclose(y, Y, atol=1e-4)


def test_the_noise_of_an_examples_pixels_is_independent():
    shape = (N, 2, 1, 2)
    x_t, _ = examples(
        Bridge(EPSILON), jnp.zeros(shape), jnp.zeros(shape), jnp.full(N, 0.3)
    )
    correlation = np.corrcoef(x_t.reshape(N, 4).T)
    np.testing.assert_allclose(correlation, np.eye(4), atol=5 / np.sqrt(N))


def test_ancestral_steps_to_a_known_target_are_the_brownian_bridge():
    bridge = Bridge(EPSILON)

    def network(inputs, t, label):
        of_x_t, of_way = units(bridge, t, inputs)
        return (Y - inputs / of_x_t) * of_way

    keys, source = jax.random.split(jax.random.key(2), N), jnp.full((N, 1), X)
    times = jnp.array([0.0, *TIMES, 1.0])
    path = np.hstack(  # equal keys: one path, seen ever longer
        [
            bridge.sample(
                network,
                keys,
                source,
                forward(source),
                times[:length],
                ancestral(EPSILON),
            )
            for length in range(2, len(times) + 1)
        ]
    )
    np.testing.assert_allclose(path[:, -1], Y, atol=1e-5)
    spread = simulated().std(0)
    np.testing.assert_allclose(
        path[:, :-1].mean(0),
        simulated().mean(0),
        atol=5 * spread.max() * (2 / N) ** 0.5,
    )
    expected = np.cov(simulated().T)
    np.testing.assert_allclose(
        np.cov(path[:, :-1].T), expected, atol=5 * expected.max() * (4 / N) ** 0.5
    )


@pytest.mark.parametrize("t", [0.0, 0.4, 0.999, 1.0])
def test_an_examples_output_leads_sampling_to_the_very_target(t):
    bridge, shape, n = Bridge(EPSILON), (500, 3, 2, 1), 500
    source, target = jax.random.normal(jax.random.key(0), (2, *shape))
    times = jnp.full(n, t)
    example = bridge.example(jax.random.key(1), source, target, forward(times), times)
    assert np.isfinite(example.inputs).all() and np.isfinite(example.output).all()
    x_t = example.inputs / units(bridge, times, target)[0]

    def network(inputs, t, label):
        np.testing.assert_allclose(inputs, example.inputs, atol=1e-5)
        np.testing.assert_array_equal(t, times)
        return example.output

    with jax.disable_jit():
        found = bridge.sample(
            network,
            jax.random.split(jax.random.key(0), n),
            x_t,
            forward(x_t),
            jnp.array([t, 1.0]),
            lambda denoise, keys, x_t, past, t, s: (denoise(x_t, t),) * 2,
        )
    np.testing.assert_allclose(found, target, atol=1e-5)
    if t == 0:
        np.testing.assert_allclose(x_t, source, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 20.0])
def test_what_a_network_sees_and_learns_has_about_unit_variance(epsilon):
    source, target = jax.random.normal(jax.random.key(0), (2, N, 1))
    for t in (0.0, 0.3, 0.7, 1.0):
        example = Bridge(epsilon).example(
            jax.random.key(1), source, target, forward(source), jnp.full(N, t)
        )
        assert 0.5 < np.std(example.inputs) < 1.5
        assert 0.5 < np.std(example.output) < 1.5


MOMENTS = PairMoments(source=0.7, target=1.6, cross=0.5)


def pairs_of(moments, n=N):
    """Gaussian pairs with these second moments."""
    source, own = jax.random.normal(jax.random.key(0), (2, n, 1))
    slope = moments.cross / moments.source
    rest = moments.target - slope * moments.cross
    x = jnp.sqrt(moments.source) * source
    return x, slope * x + jnp.sqrt(rest) * own


@pytest.mark.parametrize("epsilon", [0.05, 1.0])
@pytest.mark.parametrize("t", [0.0, 0.2, 0.6, 0.97])
def test_clean_data_leaves_the_network_what_no_linear_guess_knows(t, epsilon):
    """Held to a regression of y on x_t."""
    x, y = pairs_of(MOMENTS)
    bridge = Bridge(epsilon, moments=MOMENTS)
    example = bridge.example(jax.random.key(1), x, y, forward(x), jnp.full(N, t))
    inputs, output = np.asarray(example.inputs)[:, 0], np.asarray(example.output)[:, 0]
    assert abs(inputs.var() - 1) < 0.05 and abs(output.var() - 1) < 0.05
    assert abs(np.corrcoef(inputs, output)[0, 1]) < 0.03

    def says_nothing(inputs, t, label):
        return jnp.zeros_like(inputs)

    # One sampler's step to t = 1 is the network's guess at y.
    scale = float(jnp.sqrt(jnp.var((1 - t) * x + t * y) + epsilon * t * (1 - t)))
    x_t = jnp.float32(inputs[:, None] * scale)
    keys = jax.random.split(jax.random.key(0), N)
    times = jnp.array([t, 1.0])
    step = ancestral(epsilon)
    guess = bridge.sample(says_nothing, keys, x_t, forward(x), times, step)
    slope = np.polyfit(np.asarray(x_t)[:, 0], np.asarray(y)[:, 0], 1)[0]
    np.testing.assert_allclose(guess, slope * x_t, atol=0.1)


def test_clean_data_is_exact_at_the_end_whatever_the_network_says():
    seen = []

    def watched(denoise, keys, x_t, past, t, s):
        seen.append((x_t, denoise(x_t, jnp.float32(1))))
        return seen[-1]

    with jax.disable_jit():
        Bridge(EPSILON, moments=MOMENTS).sample(
            lambda inputs, t, label: 100 * jnp.ones_like(inputs),
            jax.random.split(jax.random.key(0), 3),
            jax.random.normal(jax.random.key(0), (3, 2)),
            jnp.zeros(3, int),
            jnp.array([0.0, 1.0]),
            watched,
        )
    ((x_t, y),) = seen
    np.testing.assert_allclose(y, x_t, atol=1e-6)


def test_an_example_of_clean_data_gives_its_target_back():
    x, y = pairs_of(MOMENTS, 100)
    for t in (0.0, 0.4, 0.9, 1.0):
        bridge = Bridge(EPSILON, moments=MOMENTS)
        example = bridge.example(jax.random.key(1), x, y, forward(x), jnp.full(100, t))
        assert np.isfinite(example.output).all()
        assert 0.3 < np.std(example.output) < 3

        def network(inputs, t, label, output=example.output):
            return output

        drift = Bridge(EPSILON).example(
            jax.random.key(1), x, y, forward(x), jnp.full(100, t)
        )
        x_t = drift.inputs * np.sqrt(1 + EPSILON * t * (1 - t))
        found = bridge.sample(
            network,
            jax.random.split(jax.random.key(0), 100),
            x_t,
            forward(x_t),
            jnp.array([t, 1.0]),
            lambda denoise, keys, x_t, past, t, s: (denoise(x_t, t),) * 2,
        )
        np.testing.assert_allclose(found, y, atol=1e-4)


class Gaussians(NamedTuple):
    """Source N(a, A) and target N(b, B), and their entropic plan of epsilon."""

    a: np.ndarray
    A: np.ndarray
    b: np.ndarray
    B: np.ndarray
    epsilon: float

    def across(self):
        """The plan's covariance of source and target: Janati et al. 2020, theorem 1."""
        root = np.real(scipy.linalg.sqrtm(self.A))
        d, inverse = self.epsilon * np.eye(len(self.a)), np.linalg.inv(root)
        inner = np.real(scipy.linalg.sqrtm(4 * root @ self.B @ root + d @ d))
        return (root @ inner @ inverse - d) / 2

    def joint(self):
        """The covariance of the pair (x, y)."""
        return np.block([[self.A, self.across()], [self.across().T, self.B]])

    def precision(self):
        """Of y given x."""
        across = self.across()
        return np.linalg.inv(self.B - across.T @ np.linalg.inv(self.A) @ across)

    def to_y(self, x_t, t):
        """E[y | x_t] of the Schroedinger bridge: Doob's transform of Brownian motion.

        From x_t it ends in y with a density ~ exp(-|y - x_t|^2 / (2 epsilon (1 - t)) -
        y' (P - I / epsilon) y / 2 + h' y), the plan's own for t = 0; P = `precision`.
        """
        precision, identity = self.precision(), np.eye(len(self.a))
        linear = precision @ self.b - self.a / self.epsilon
        pull = (1 - t) * precision + t / self.epsilon * identity
        pushed = x_t / self.epsilon + (1 - t) * linear[None]
        return jnp.linalg.solve(pull, pushed.T).T


def in_1d(epsilon=0.5):
    return Gaussians(*map(np.array, ([0.5], [[1.4]], [-1.0], [[0.5]])), epsilon)


def in_2d(epsilon=0.8):
    A, B = [[1.0, 0.6], [0.6, 0.8]], [[0.5, -0.3], [-0.3, 1.5]]
    return Gaussians(*map(np.array, ([0.5, -0.2], A, [-1.0, 0.4], B)), epsilon)


CASES = {"1d": in_1d(), "2d": in_2d(), "2d, little noise": in_2d(0.1)}


def test_the_closed_form_is_the_plan_of_a_fine_grid(monkeypatch):
    monkeypatch.setenv("POT_BACKEND_DISABLE_TENSORFLOW", "1")
    import ot

    pair = in_1d()
    x = np.linspace(-6, 7, 250)
    a, b = (
        scipy.stats.norm(mean[0], covariance[0, 0] ** 0.5).pdf(x)
        for mean, covariance in ((pair.a, pair.A), (pair.b, pair.B))
    )
    a, b = a / a.sum(), b / b.sum()
    cost = (x[:, None] - x[None]) ** 2 / 2
    plan = ot.sinkhorn(a, b, cost, pair.epsilon, method="sinkhorn_log", stopThr=1e-10)
    found = (x - a @ x) @ plan @ (x - b @ x)
    assert pair.across()[0, 0] == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_has_the_plans_density(name):
    """exp((f(x) + g(y) + x y) / epsilon), as no other coupling of the two has."""
    pair = CASES[name]
    d = len(pair.a)
    interaction = np.linalg.inv(pair.joint())[:d, d:]
    np.testing.assert_allclose(interaction, -np.eye(d) / pair.epsilon, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_regression_on_examples_of_the_plan_is_the_schroedinger_bridge(name):
    pair, n = CASES[name], 200_000
    d = len(pair.a)
    drawn = np.random.default_rng(0).multivariate_normal(
        np.concatenate([pair.a, pair.b]), pair.joint(), n
    )
    source, target = jnp.float32(drawn[:, :d]), jnp.float32(drawn[:, d:])
    for t in (0.02, *TIMES, 0.98):
        x_t, y = examples(Bridge(pair.epsilon), source, target, jnp.full(n, t))
        features = np.hstack([x_t, np.ones((n, 1))]).astype(float)
        found, left, *_ = np.linalg.lstsq(features, y.astype(float))
        away = pair.to_y(np.vstack([np.eye(d), np.zeros(d)]), t)
        expected = np.vstack([away[:d] - away[d:], away[d:]])
        error = np.linalg.inv(features.T @ features).diagonal()[:, None] * left / n
        assert np.all(np.abs(found - expected) < 5 * np.sqrt(error) + 1e-4)


def exact(bridge, pair):
    """The network that regression would end in."""

    def network(inputs, t, label):
        of_x_t, of_way = units(bridge, t, inputs)
        x_t = inputs / of_x_t
        return (pair.to_y(x_t, t[0]) - x_t) * of_way

    return network


def law_at_the_end(pair, name, steps):
    """Exact mean and joint covariance of source and sample, given the exact network.

    The sample is affine in the source and in the noise of every step: least squares
    over more paths than these finds all the coefficients.
    """
    d, bridge = len(pair.a), Bridge(pair.epsilon)
    solver = bridge.solvers[name]
    keys = jax.random.split(jax.random.key(0), d * (steps + 1) + 10)
    source = jax.random.normal(jax.random.key(1), (len(keys), d))
    end = jax.jit(bridge.sample, static_argnums=(0, 5))(
        exact(bridge, pair),
        keys,
        source,
        forward(source),
        solver.times(steps),
        solver.step,
    )
    noise = [sampler.normal(sampler.fold_in(keys, i), (d,)) for i in range(steps)]
    columns = np.hstack([np.ones((len(keys), 1)), source, *noise])
    found, *_ = np.linalg.lstsq(columns, np.asarray(end))
    base, response, spread = np.split(found, [1, d + 1])
    across = pair.A @ response
    of_end = response.T @ across + spread.T @ spread
    mean = base[0] + pair.a @ response
    return mean, np.block([[pair.A, across], [across.T, of_end]])


ORDERS = {"ancestral": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_2m_sde": 2}


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("name", CASES)
def test_samples_come_to_the_plan_at_the_solvers_order(name, solver):
    pair, order, counts, errors = CASES[name], ORDERS[solver], (40, 160), []
    with jax.enable_x64(True):
        for steps in counts:
            mean, joint = law_at_the_end(pair, solver, steps)
            np.testing.assert_allclose(mean, pair.b, atol=1e-5)  # a straight way
            errors.append(np.linalg.norm(joint - pair.joint()))
    slope = np.diff(np.log(errors)) / np.diff(np.log(counts))
    if solver.startswith("dpmpp"):  # their first and last steps are of first order
        assert -2 < slope < -1.3
        assert errors[-1] < 2e-3
    else:
        assert slope == pytest.approx(-order, abs=0.1)
        assert errors[-1] < {1: 0.03, 2: 3e-5}[order]


WEIGHTS, CENTRES, VARIANCES = np.array([[0.4, 0.6], [-2.0, 1.0], [0.05, 0.3]])


def two_ways(epsilon):
    """A bridge from a point at 0 to two clusters: E[y | x_t] and the end's CDF.

    The end has a density ~ N(y | x, epsilon) sum_k w_k N(y | mu_k, v_k), another
    mixture; from x_t of later times as if epsilon were what is left of it.
    """

    def mixture(x, left):
        log_weights = (
            jnp.log(jnp.asarray(WEIGHTS))[None]
            - (x - CENTRES[None]) ** 2 / (2 * (VARIANCES + left)[None])
            - jnp.log(VARIANCES + left)[None] / 2
        )
        share = left / (VARIANCES + left)
        means = share[None] * CENTRES[None] + (1 - share)[None] * x
        return jax.nn.softmax(log_weights, axis=1), means, share * VARIANCES

    def to_y(x_t, t):
        weights, means, _ = mixture(x_t, epsilon * (1 - t))
        return jnp.sum(weights * means, axis=1, keepdims=True)

    weights, means, variances = map(np.asarray, mixture(jnp.zeros((1, 1)), epsilon))

    def cdf(y):
        parts = scipy.stats.norm(means, np.sqrt(variances)).cdf(y[:, None])
        return parts @ weights[0]

    return to_y, cdf


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        ("ancestral", 300),
        ("heun", 60),
        ("dpmpp_2m_sde", 100),
        ("ddim", 300),
        ("dpmpp_2m", 100),
    ],
)
def test_samples_of_one_source_part_to_two_clusters_as_the_plan_says(solver, steps):
    epsilon = 1.5
    to_y, cdf = two_ways(epsilon)
    bridge = Bridge(epsilon)

    def network(inputs, t, label):
        of_x_t, of_way = units(bridge, t, inputs)
        x_t = inputs / of_x_t
        return (to_y(x_t, t[0]) - x_t) * of_way

    end = jax.jit(bridge.sample, static_argnums=(0, 5))(
        network,
        jax.random.split(jax.random.key(0), N),
        jnp.zeros((N, 1)),
        jnp.zeros(N, int),
        bridge.solvers[solver].times(steps),
        bridge.solvers[solver].step,
    )
    # Sampling alone gives 0.87 / sqrt(N) on average; the rest is for the steps' error.
    assert scipy.stats.kstest(np.asarray(end)[:, 0], cdf).statistic < 2.5 / np.sqrt(N)


# Two channels, the second of more fine detail than the first, and mixed in the middle.
SPECTRUM = Spectrum(
    np.float32([0, 1, 4]),
    np.float32([[[2, 0], [0, 1]], [[1.2, 0.5], [0.5, 0.8]], [[0.2, 0], [0, 0.6]]]),
)


def test_an_example_of_coloured_noise_has_its_waves_and_leads_to_its_target():
    t, shape = 0.3, (20_000, 3, 4, 2)
    source, target = jax.random.normal(jax.random.key(0), (2, *shape))
    bridge = Bridge(EPSILON, spectrum=SPECTRUM)
    x_t, y = examples(bridge, source, target, jnp.full(len(source), t))
    np.testing.assert_allclose(y, target, atol=1e-4)
    waves = dctn(x_t - (1 - t) * source - t * target, axes=(1, 2), norm="ortho")
    # The wave (2, 2) of 3x4 pixels, of 2 / 3 and 1 / 2 of pi a pixel.
    share = (np.pi * np.hypot(2 / 3, 1 / 2) - 1) / 3
    for wave, root in [
        (waves[:, 0, 0], SPECTRUM.root[0]),
        (waves[:, 2, 2], (1 - share) * SPECTRUM.root[1] + share * SPECTRUM.root[2]),
    ]:
        expected = EPSILON * t * (1 - t) * root @ root
        np.testing.assert_allclose(np.cov(wave.T), expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ORDERS)
def test_coloured_noise_makes_the_bridge_of_coloured_images(name, monkeypatch):
    """Of K x and K y it is K times the bridge of x and y, whatever is learnt."""
    keys = jax.random.split(jax.random.key(0), 3)
    unit = jnp.eye(24).reshape(24, 3, 4, 2)
    waves = idctn(unit, axes=(1, 2), norm="ortho").reshape(24, 24)
    kernel = waves.T @ np.asarray(coloured(unit, SPECTRUM)).reshape(24, 24)
    draw = sampler.normal

    def through(matrix, x):
        return (x.reshape(len(x), 24) @ matrix).reshape(x.shape)

    def end(bridge, to_y, source):
        def network(inputs, t, label):
            of_x_t, of_way = units(bridge, t, inputs)
            x_t = inputs / of_x_t
            return (to_y(x_t, t[0]) - x_t) * of_way

        solver = bridge.solvers[name]
        times = solver.times(6)
        return bridge.sample(network, keys, source, forward(keys), times, solver.step)

    def to_y(x_t, t):
        return jnp.cos(x_t) + t * jnp.roll(x_t, 1, axis=2)

    def to_coloured_y(x_t, t):
        return through(kernel, to_y(through(np.linalg.inv(kernel), x_t), t))

    source = jax.random.normal(jax.random.key(1), (3, 3, 4, 2))
    bridge = Bridge(EPSILON, spectrum=SPECTRUM)
    found = end(bridge, to_coloured_y, through(kernel, source))
    # What coloured noise is drawn by are its waves: white noise that has the same.
    monkeypatch.setattr(sampler, "normal", lambda *x: through(waves, draw(*x)))
    expected = through(kernel, end(Bridge(EPSILON), to_y, source))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ORDERS)
def test_an_image_depends_on_its_own_key_and_not_on_its_neighbours(name):
    bridge = Bridge(EPSILON)
    solver = bridge.solvers[name]
    sample = jax.jit(
        lambda keys, source: bridge.sample(
            lambda inputs, t, label: jnp.cos(inputs) + t[0],
            keys,
            source,
            forward(source),
            solver.times(5),
            solver.step,
        )
    )
    keys = jax.random.split(jax.random.key(0), 5)
    source = jax.random.normal(jax.random.key(1), (5, 4, 4, 2))
    together, chosen = sample(keys, source), jnp.array([3, 1])
    np.testing.assert_allclose(
        sample(keys[chosen], source[chosen]), together[chosen], atol=1e-5
    )
    rekeyed = sample(keys[::-1], source)
    np.testing.assert_allclose(rekeyed[2], together[2], atol=1e-5)  # the middle one
    assert not np.allclose(rekeyed[0], together[0], atol=0.1)


@pytest.mark.parametrize("name", ["ancestral", "heun", "ddim"])
@pytest.mark.parametrize("clip", [False, True])
def test_clipping_keeps_predicted_targets_in_their_range(clip, name):
    bridge, seen = Bridge(EPSILON, bound=1.0 if clip else math.inf), []

    def watched(denoise, *state):
        def watching(x_t, t):
            seen.append(np.asarray(denoise(x_t, t)))
            return seen[-1]

        return bridge.solvers[name].step(watching, *state)

    with jax.disable_jit():
        end = bridge.sample(
            lambda inputs, t, label: jnp.full_like(inputs, 30) * jnp.sign(inputs),
            jax.random.split(jax.random.key(0), 2),
            jnp.ones((2, 4, 4, 1)),
            jnp.zeros(2, int),
            denser_to_the_end(3),
            watched,
        )
    assert (np.max(np.abs(seen)) <= 1) == clip
    if name != "heun":  # ends in the last prediction, without noise
        np.testing.assert_allclose(end, seen[-1], atol=1e-5)


def test_guidance_of_images_changes_what_they_show_and_not_their_contrast():
    ends = jax.random.normal(jax.random.key(0), (2, 1, 4, 5, 2))

    def guided(weight):
        def network(inputs, t, label):
            of_x_t, of_way = units(Bridge(EPSILON), t, inputs)
            return (ends[label[0]] - inputs / of_x_t) * of_way

        return Bridge(EPSILON, guidance=weight).sample(
            network,
            jax.random.split(jax.random.key(0), 1),
            jnp.ones((1, 4, 5, 2)),
            jnp.zeros(1, int),
            jnp.array([0.5, 1.0]),
            lambda denoise, keys, x_t, past, t, s: (denoise(x_t, t),) * 2,
        )

    own, other = ends
    away = own + 2 * (own - other)
    assert away.std() > 2 * own.std()
    np.testing.assert_allclose(guided(1.0), own, atol=1e-5)
    np.testing.assert_allclose(guided(3.0), away * own.std() / away.std(), atol=1e-5)


@pytest.mark.parametrize("direction", [0, 1])
def test_guidance_leads_away_from_the_other_direction(direction):
    ends = jnp.array([3.0, -1.0])  # of the two directions, wherever one is

    def guided(weight):
        bridge, seen = Bridge(EPSILON, guidance=weight), []

        def network(inputs, t, label):
            of_x_t, of_way = units(Bridge(EPSILON), t, inputs)
            return (ends[label][:, None] - inputs / of_x_t) * of_way

        def watched(denoise, keys, x_t, past, t, s):
            seen.append(denoise(x_t, t))
            return x_t, x_t

        with jax.disable_jit():
            bridge.sample(
                network,
                jax.random.split(jax.random.key(0), 2),
                jnp.ones((2, 1)),
                jnp.full(2, direction),
                jnp.array([0.5, 1.0]),
                watched,
            )
        return seen[0]

    own, other = ends[direction], ends[1 - direction]
    np.testing.assert_allclose(guided(1.0), own, rtol=1e-4)
    np.testing.assert_allclose(guided(1.5), own + 0.5 * (own - other), rtol=1e-4)


@pytest.mark.parametrize("name", ["ancestral", "heun", "ddim"])
def test_temperature_multiplies_the_noises_deviation(name):
    def deviation(temperature):
        bridge = Bridge(EPSILON, temperature=temperature)
        end = bridge.sample(
            lambda inputs, t, label: jnp.zeros_like(inputs),
            jax.random.split(jax.random.key(2), N),
            jnp.full((N, 1), X),
            jnp.zeros(N, int),
            jnp.linspace(0, 0.5, 4),
            bridge.solvers[name].step,
        )
        return float(jnp.std(end))

    usual = deviation(1.0)
    assert usual > 0.1
    assert deviation(0.4) == pytest.approx(0.4 * usual, rel=0.02)
    assert deviation(0.0) == pytest.approx(0, abs=1e-4)


def test_times_to_both_ends_mirror_each_other():
    times = np.asarray(denser_to_both_ends(6))
    assert times[0] == 0 and times[-1] == 1 and np.all(np.diff(times) > 0)
    np.testing.assert_allclose(times[::-1], 1 - times, atol=1e-6)


def test_times_go_all_the_way_and_grow_denser():
    way = np.diff(denser_to_the_end(7))
    assert len(way) == 7 and way.sum() == 1
    assert np.all(np.diff(way) < 0) and np.all(way > 0)
