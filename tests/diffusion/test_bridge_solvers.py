"""A bridge's samplers: their orders, their noise, guidance, and what they keep."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from bridges import CASES, EPSILON, SPECTRUM, N, exact, forward, in_1d, units
from scipy.fft import idctn

from eotjax.diffusion import sampler
from eotjax.diffusion.bridge import Bridge, denser_to_both_ends, denser_to_the_end
from eotjax.diffusion.noise import coloured

ORDERS = {"ancestral": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_2m_sde": 2}


def law_at_the_end(pair, name, steps):
    """Exact mean and joint covariance of source and sample, given the exact network.

    The sample is affine in the source and in the noise of every step: least squares
    over more paths than these finds all the coefficients.
    """
    d, bridge = len(pair.a), Bridge(pair.epsilon)
    solver = bridge.solvers()[name]
    keys = jax.random.split(jax.random.key(0), d * (steps + 1) + 10)
    source = jax.random.normal(jax.random.key(1), (len(keys), d))
    end = jax.jit(bridge.sample, static_argnums=(0, 5))(
        exact(bridge, pair.to_y),
        keys,
        source,
        forward(source),
        solver.times(steps),
        solver.step,
    )
    noise = jax.vmap(lambda i: sampler.normal(sampler.fold_in(keys, i), (d,)))(
        jnp.arange(steps)
    )
    columns = np.hstack([np.ones((len(keys), 1)), source, *noise])
    found, *_ = np.linalg.lstsq(columns, np.asarray(end))
    base, response, spread = np.split(found, [1, d + 1])
    across = pair.A @ response
    of_end = response.T @ across + spread.T @ spread
    mean = base[0] + pair.a @ response
    return mean, np.block([[pair.A, across], [across.T, of_end]])


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("name", CASES)
def test_samples_come_to_the_plan_at_the_solvers_order(name, solver):
    pair, order, errors = CASES[name], ORDERS[solver], []
    counts = {1: (40, 160), 2: (60, 240)}[order]
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

    end = jax.jit(bridge.sample, static_argnums=(0, 5))(
        exact(bridge, to_y),
        jax.random.split(jax.random.key(0), N),
        jnp.zeros((N, 1)),
        jnp.zeros(N, int),
        bridge.solvers()[solver].times(steps),
        bridge.solvers()[solver].step,
    )
    # Sampling alone gives 0.87 / sqrt(N) on average; the rest is for the steps' error.
    assert scipy.stats.kstest(np.asarray(end)[:, 0], cdf).statistic < 2.5 / np.sqrt(N)


@pytest.mark.parametrize("restart", [0.0, 0.4])
@pytest.mark.parametrize("name", ORDERS)
def test_coloured_noise_makes_the_bridge_of_coloured_images(name, restart, monkeypatch):
    """Of K x and K y it is K times the bridge of x and y, whatever is learnt."""
    keys = jax.random.split(jax.random.key(0), 3)
    unit = jnp.eye(24).reshape(24, 3, 4, 2)
    waves = idctn(unit, axes=(1, 2), norm="ortho").reshape(24, 24)
    kernel = waves.T @ np.asarray(coloured(unit, SPECTRUM)).reshape(24, 24)
    draw = sampler.normal

    def through(matrix, x):
        return (x.reshape(len(x), 24) @ matrix).reshape(x.shape)

    def end(bridge, to_y, source):
        solver = bridge.solvers()[name]
        times = solver.times(6)
        network = exact(bridge, to_y)
        return bridge.sample(network, keys, source, forward(keys), times, solver.step)

    def to_y(x_t, t):
        return jnp.cos(x_t) + t * jnp.roll(x_t, 1, axis=2)

    def to_coloured_y(x_t, t):
        return through(kernel, to_y(through(np.linalg.inv(kernel), x_t), t))

    source = jax.random.normal(jax.random.key(1), (3, 3, 4, 2))
    bridge = Bridge(EPSILON, spectrum=SPECTRUM, restart=restart)
    found = end(bridge, to_coloured_y, through(kernel, source))
    # What coloured noise is drawn by are its waves: white noise that has the same.
    monkeypatch.setattr(sampler, "normal", lambda *x: through(waves, draw(*x)))
    expected = through(kernel, end(Bridge(EPSILON, restart=restart), to_y, source))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ORDERS)
def test_an_image_depends_on_its_own_key_and_not_on_its_neighbours(name):
    bridge = Bridge(EPSILON)
    solver = bridge.solvers()[name]
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


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ORDERS)
def test_few_steps_end_at_a_target_that_is_known(name, steps):
    """Whatever noise the way has: all pixels are -1, and clipping changes nothing."""
    bridge = Bridge(EPSILON, bound=1.0)
    solver, source = (
        bridge.solvers()[name],
        jax.random.normal(jax.random.key(0), (9, 2)),
    )
    network = exact(bridge, lambda x_t, t: jnp.full_like(x_t, -1))
    keys = jax.random.split(jax.random.key(1), 9)
    end = bridge.sample(
        network, keys, source, forward(source), solver.times(steps), solver.step
    )
    np.testing.assert_allclose(end, -1, atol=1e-3)


@pytest.mark.parametrize("name", ["ancestral", "heun", "ddim"])
@pytest.mark.parametrize("clip", [False, True])
def test_clipping_keeps_predicted_targets_in_their_range(clip, name):
    bridge, seen = Bridge(EPSILON, bound=1.0 if clip else math.inf), []

    def watched(denoise, *state):
        def watching(x_t, t):
            seen.append(denoise(x_t, t))
            return seen[-1]

        return bridge.solvers()[name].step(watching, *state)

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
    np.testing.assert_allclose(end, seen[-1], atol=1e-5)  # without noise


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
            jnp.ones((N, 1)),
            jnp.zeros(N, int),
            jnp.linspace(0, 0.5, 4),
            bridge.solvers()[name].step,
        )
        return float(jnp.std(end))

    usual = deviation(1.0)
    assert usual > 0.1
    assert deviation(0.4) == pytest.approx(0.4 * usual, rel=0.02)
    assert deviation(0.0) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["ancestral", "heun", "ddim"])
def test_going_back_leaves_the_law_of_the_pairs(name):
    """A bridge's point between a pair of its process, followed on, ends in its law."""
    case, n = in_1d(), 100_000
    source = case.a + np.sqrt(case.A[0, 0]) * np.random.default_rng(0).normal(
        size=(n, 1)
    )

    def ends(restart):
        bridge = Bridge(case.epsilon, restart=restart)
        solver = bridge.solvers()[name]
        sample = jax.jit(
            lambda keys, x: bridge.sample(
                exact(bridge, case.to_y), keys, x, forward(x), times, solver.step
            )
        )
        times = solver.times(60)
        return np.asarray(
            sample(jax.random.split(jax.random.key(1), n), jnp.float32(source))
        )

    once, twice = ends(0.0), ends(0.4)
    joint = case.joint()
    for y in (once, twice):
        found = np.cov(source[:, 0], y[:, 0])
        np.testing.assert_allclose(found, joint, rtol=0.03, atol=0.02)
        assert abs(y.mean() - case.b[0]) < 0.02
    # From there on it is another draw.
    left = np.corrcoef(once[:, 0] - source[:, 0], twice[:, 0] - source[:, 0])[0, 1]
    assert left < 0.95


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("before", [1e-7, 0.01])
def test_going_back_to_just_before_a_step_is_as_going_back_to_it(name, before):
    """Of second order a step is extrapolated by its length over the last one's."""
    case, n = in_1d(), 2_000
    bridge = Bridge(case.epsilon)
    solver = bridge.solvers()[name]
    times = solver.times(10)
    source = jnp.float32(np.random.default_rng(0).normal(case.a, 1, (n, 1)))

    def ends(restart):
        back = dataclasses.replace(bridge, restart=restart)
        keys = jax.random.split(jax.random.key(1), n)
        network = exact(back, case.to_y)
        return back.sample(network, keys, source, forward(source), times, solver.step)

    at = float(times[6])
    np.testing.assert_allclose(ends(at - before).std(), ends(at).std(), rtol=0.1)


def test_times_to_both_ends_mirror_each_other():
    times = np.asarray(denser_to_both_ends(6))
    assert times[0] == 0 and times[-1] == 1 and np.all(np.diff(times) > 0)
    np.testing.assert_allclose(times[::-1], 1 - times, atol=1e-6)


def test_times_go_all_the_way_and_grow_denser():
    way = np.diff(denser_to_the_end(7))
    assert len(way) == 7 and way.sum() == 1
    assert np.all(np.diff(way) < 0) and np.all(way > 0)


def variance_at_the_end(cross, name, *, epsilon, steps, restart=0.0):
    """Of samples from N(0, 1), pairs of variance 1 being learnt exactly."""

    def to_y(x_t, t):
        of_x_t = (1 - t) ** 2 + 2 * t * (1 - t) * cross + t**2 + epsilon * t * (1 - t)
        return ((1 - t) * cross + t) / of_x_t * x_t

    bridge = Bridge(epsilon, restart=restart)
    keys = jax.random.split(jax.random.key(0), N)
    source = jax.random.normal(jax.random.key(1), (N, 1))
    solver, network = bridge.solvers()[name], exact(bridge, to_y)
    times = solver.times(steps)
    end = jax.jit(
        lambda keys, source: bridge.sample(
            network, keys, source, forward(keys), times, solver.step
        )
    )(keys, source)
    return float(jnp.var(end))


@pytest.mark.parametrize("cross", [0.11, 0.618])  # far from the Schroedinger bridge's
@pytest.mark.parametrize("name", ["ancestral", "heun", "dpmpp_2m_sde"])
def test_random_solvers_keep_the_targets_variance_between_any_pairs(name, cross):
    found = variance_at_the_end(cross, name, epsilon=1.0, steps=100)
    assert found == pytest.approx(1, abs=0.05)


def test_deterministic_solvers_keep_it_between_the_schroedinger_bridges_pairs_only():
    own = (np.sqrt(5) - 1) / 2  # of epsilon 1: the entropic plan's covariance
    for name in ("ddim", "dpmpp_2m"):
        found = variance_at_the_end(own, name, epsilon=1.0, steps=100)
        assert found == pytest.approx(1, abs=0.05)
        assert variance_at_the_end(0.11, name, epsilon=1.0, steps=100) < 0.8


@pytest.mark.parametrize("restart", [0.5, 0.508, 0.638])
def test_a_restart_just_before_a_step_is_no_worse_than_another(restart):
    own = (np.sqrt(5) - 1) / 2
    found = variance_at_the_end(
        own, "dpmpp_2m_sde", epsilon=1.0, steps=10, restart=restart
    )
    assert found < 1.1  # 1.08 of these steps without one
