"""Bridges against simulated Brownian motion and closed-form Schroedinger bridges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from bridges import CASES, EPSILON, SPECTRUM, N, exact, forward, in_1d, units
from scipy.fft import dctn

from eotjax.diffusion.bridge import Bridge, PairMoments, ancestral

TIMES = (0.1, 0.5, 0.9)
X, Y = 0.7, -0.4  # the two ends of one Brownian bridge


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
    network = exact(bridge, lambda x_t, t: Y)
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
                ancestral(EPSILON, 1.0, None),
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
    step = ancestral(epsilon, 1.0, None)
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
