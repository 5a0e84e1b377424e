"""The conditional score on Gaussians: its examples, its condition and its samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from sde import sde

from eotjax.diffusion import prediction, sampler, schedule
from eotjax.diffusion.conditional import ConditionalScore
from eotjax.diffusion.estimator import both_ways

COSINE = schedule.vp_cosine(10.0, -8.0)
SCHEDULES = {"vp_linear": schedule.vp_linear(), "ve": schedule.ve(0.1, 10.0)}
N = 20_000
CORRELATION, SOURCE = 0.8, 1.5  # of two unit Gaussians x and y; an x


def levels(process, t):
    """alpha and sigma as numpy."""
    return tuple(np.asarray(f(jnp.asarray(t, jnp.float32))) for f in process)


@pytest.mark.parametrize(("rho", "kind"), [(0.0, "v"), (0.5, "noise"), (1.0, "data")])
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_example_noises_each_image_at_its_own_speed(name, rho, kind):
    process = SCHEDULES[name]
    score = ConditionalScore(schedule=process, prediction=kind, rho=rho)
    x, y, times = 0.7, -0.4, np.array([0.3, 0.8])
    t = jnp.asarray(np.repeat(times, N)[:, None], jnp.float32)
    example = score.example(
        jax.random.key(1),
        jnp.full_like(t, x),
        jnp.full_like(t, y),
        jnp.zeros(2 * N, int),
        t[:, 0],
    )
    assert example.inputs.shape == (2 * N, 2)
    np.testing.assert_array_equal(example.t, t[:, 0])
    np.testing.assert_array_equal(example.label, np.zeros(2 * N))
    for half, at in enumerate(times):
        seen = np.asarray(example.inputs[half * N : (half + 1) * N])
        for column, clean, when in [(0, y, at), (1, x, rho * at)]:
            if column == 1 and rho == 0:
                np.testing.assert_array_equal(seen[:, 1], np.float32(x))
                continue
            alpha, sigma = levels(process, when)
            scale = np.sqrt(alpha**2 + sigma**2)
            rest = (seen[:, column] * scale - alpha * clean) / sigma
            assert abs(rest.mean()) < 5 / np.sqrt(N)
            assert abs(rest.var() - 1) < 5 * np.sqrt(2 / N)
        if rho > 0:
            assert abs(np.corrcoef(seen.T)[0, 1]) < 5 / np.sqrt(N)
    alpha, sigma = process.alpha(t), process.sigma(t)
    y_t = example.inputs[:, :1] * process.scale(t)
    data, _ = prediction.to_data_and_noise(kind, example.output, y_t, alpha, sigma)
    np.testing.assert_allclose(data, y, atol=1e-4)


def recorded(rho, path, process):
    """What a network sees in 4 steps: [step, y_t or x_t, image], at unit scale."""
    score = ConditionalScore(process, "data", rho=rho, path=path)
    seen = []

    def network(inputs, t, label):
        del t, label
        seen.append(np.asarray(inputs))
        return jnp.zeros_like(inputs[:, :1])

    with jax.disable_jit():  # the loop over times in Python, so that it can be watched
        score.sample(
            network,
            jax.random.split(jax.random.key(2), N),
            jnp.full((N, 1), SOURCE),
            jnp.zeros(N, int),
            jnp.linspace(1, 0, 5),
            sampler.ancestral(process),
        )
    return np.stack(seen).transpose(0, 2, 1)


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize(("name", "rho"), [("vp_linear", 1.0), ("ve", 0.5)])
def test_the_condition_follows_one_path_or_is_drawn_afresh(name, rho, path):
    process = SCHEDULES[name]
    seen = recorded(rho, path, process)
    alpha, sigma = levels(process, rho * np.linspace(1, 0, 5)[:-1, None])
    rest = seen[:, 1] * np.sqrt(alpha**2 + sigma**2) / alpha - SOURCE
    level = sigma / alpha
    np.testing.assert_allclose(rest.std(1) / level[:, 0], 1, atol=5 / np.sqrt(2 * N))
    # x_t / alpha is Brownian in (sigma / alpha)^2: cov = the smaller level squared.
    brownian = np.minimum(level, level.T) / np.maximum(level, level.T)
    np.testing.assert_allclose(
        np.corrcoef(rest), brownian if path else np.eye(4), atol=5 / np.sqrt(N)
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_sampling_starts_from_unit_noise_and_cde_sees_the_source_itself(name):
    seen = recorded(0.0, False, SCHEDULES[name])
    np.testing.assert_array_equal(seen[:, 1], np.float32(SOURCE))
    assert abs(seen[0, 0].mean()) < 5 / np.sqrt(N)
    assert abs(seen[0, 0].var() - 1) < 5 * np.sqrt(2 / N)


def coefficients(rho, t):
    """E[y | y_t, x_(rho t)] = a y_t + b x_(rho t), from the joint covariance."""
    of_y, of_x, x_variance = COSINE.alpha(t), jnp.ones(()), jnp.ones(())
    if rho > 0:
        of_x, x_variance = COSINE.alpha(rho * t), COSINE.scale(rho * t) ** 2
    across = of_y * of_x * CORRELATION
    covariance = jnp.stack([COSINE.scale(t) ** 2, across, across, x_variance])
    return jnp.linalg.solve(
        covariance.reshape(2, 2), jnp.stack([of_y, of_x * CORRELATION])
    )


def sampled(rho, path, kind, make_solver, steps=300):
    """Mean and variance of samples given SOURCE, with the exact network."""

    def network(inputs, t, label):
        del label
        y_t = inputs[:, :1]
        data = (inputs @ coefficients(rho, t[0]))[:, None]
        alpha, sigma = COSINE.alpha(t[0]), COSINE.sigma(t[0])
        noise = (y_t - alpha * data) / sigma
        return {"data": data, "noise": noise, "v": alpha * noise - sigma * data}[kind]

    score = ConditionalScore(COSINE, kind, rho=rho, path=path)
    samples = jax.jit(score.sample, static_argnums=(0, 5))(
        network,
        jax.random.split(jax.random.key(3), N),
        jnp.full((N, 1), SOURCE),
        jnp.zeros(N, int),
        jnp.linspace(1, 0, steps + 1),
        make_solver(COSINE),
    )
    return float(samples.mean()), float(samples.var())


@pytest.mark.parametrize("make_solver", [sampler.ancestral, sampler.ddim])
@pytest.mark.parametrize("kind", ["v", "noise", "data"])
def test_cde_with_the_exact_network_samples_the_conditional(kind, make_solver):
    mean, variance = sampled(0.0, False, kind, make_solver)
    assert mean == pytest.approx(CORRELATION * SOURCE, abs=0.02)
    assert variance == pytest.approx(1 - CORRELATION**2, rel=0.05)


def reverse_sde_moments(path, random):
    """Of y_0 given x: Anderson's reverse SDE, or its ODE, as steps go to infinity.

    With the score of p(y_t | x_t) that rho = 1 learns; x_t from p(x_t | x), along one
    path or afresh at every time, where only its mean is felt.
    """

    def rate(t, state):
        t = jnp.asarray(t)
        (f, g2), (a, b) = sde(COSINE, t), coefficients(1.0, t)
        alpha, sigma = COSINE.alpha(t), COSINE.sigma(t)
        pull = g2 * (1.0 if random else 0.5) / sigma**2
        of_y, of_x = f + pull * (1 - alpha * a), -pull * alpha * b
        mean, variance, covariance = state
        return jnp.stack(
            [
                of_y * mean + of_x * alpha * SOURCE,
                2 * (of_y * variance + of_x * covariance) - random * g2,
                path * ((of_y + f + g2 / sigma**2) * covariance + of_x * sigma**2),
            ]
        )

    with jax.enable_x64(True):
        rate = jax.jit(rate)
        moments = solve_ivp(rate, (1, 0), (0, 1, 0), method="LSODA", rtol=1e-6)
    return moments.y[0, -1], moments.y[1, -1]


@pytest.mark.parametrize("make_solver", [sampler.ancestral, sampler.ddim])
@pytest.mark.parametrize("path", [False, True])
def test_cdiffe_samples_what_its_score_implies_which_is_not_the_conditional(
    path, make_solver
):
    mean, variance = sampled(1.0, path, "data", make_solver)
    theory = reverse_sde_moments(path, make_solver is sampler.ancestral)
    assert mean == pytest.approx(theory[0], abs=0.02)
    assert variance == pytest.approx(theory[1], rel=0.05)
    assert theory[0] < 0.7 * CORRELATION * SOURCE  # p(y_t | x_t) is not p(y_t | x)


@pytest.mark.parametrize("clip", [False, True])
def test_clipping_keeps_denoised_images_in_their_range(clip):
    process = SCHEDULES["vp_linear"]  # ends without noise
    score = ConditionalScore(process, "data", rho=0.0, bound=1.0 if clip else math.inf)
    end = score.sample(
        lambda inputs, t, label: jnp.full_like(inputs[..., :1], 3.0),
        jax.random.split(jax.random.key(0), 2),
        jnp.zeros((2, 4, 4, 1)),
        jnp.zeros(2, int),
        jnp.linspace(1, 0, 4),
        sampler.ddim(process),
    )
    np.testing.assert_allclose(end, 1 if clip else 3, rtol=1e-6)


def constant(inputs, t, label):
    """Says 0.5 with the condition and 0.1 without it, which it then must not see."""
    del t
    dropped = (label >= 2)[:, None]
    x_t = inputs[:, 1:]
    return jnp.where(dropped, 0.1 + x_t, 0.5)


@pytest.mark.parametrize(("guidance", "expected"), [(1.0, 0.5), (2.0, 0.9), (0.0, 0.1)])
def test_guidance_weighs_the_condition(guidance, expected):
    process = SCHEDULES["vp_linear"]
    score = ConditionalScore(
        process, "data", rho=0.0, condition_dropout=0.1, guidance=guidance
    )
    end = score.sample(
        constant,
        jax.random.split(jax.random.key(0), 2),
        jnp.full((2, 1), SOURCE),
        jnp.array([0, 1]),
        jnp.linspace(1, 0, 4),
        sampler.ddim(process),
    )
    np.testing.assert_allclose(end, expected, rtol=1e-5)


def test_a_share_of_the_examples_has_its_condition_dropped_and_says_so():
    plain, dropping = (
        ConditionalScore(COSINE, "v", rho=0.5, condition_dropout=share)
        for share in (0.0, 0.3)
    )
    source, target = jax.random.normal(jax.random.key(0), (2, N, 1))
    direction, t = jnp.arange(N) % 2, jnp.full(N, 0.4)
    full, some = (
        score.example(jax.random.key(1), source, target, direction, t)
        for score in (plain, dropping)
    )
    dropped = np.asarray(some.label) >= 2
    assert abs(dropped.mean() - 0.3) < 5 * np.sqrt(0.21 / N)
    np.testing.assert_array_equal(some.label % 2, direction)
    np.testing.assert_array_equal(full.label, direction)
    np.testing.assert_array_equal(some.inputs[dropped, 1], 0)
    np.testing.assert_array_equal(some.inputs[~dropped], full.inputs[~dropped])
    np.testing.assert_array_equal(some.output, full.output)
    np.testing.assert_array_equal(some.inputs[:, 0], full.inputs[:, 0])


def test_the_network_is_told_the_direction():
    process, seen = SCHEDULES["vp_linear"], []

    def network(inputs, t, label):
        seen.append(np.asarray(label))
        return jnp.zeros_like(inputs[:, :1])

    with jax.disable_jit():
        ConditionalScore(process, "data", rho=0.0).sample(
            network,
            jax.random.split(jax.random.key(0), 3),
            jnp.zeros((3, 1)),
            jnp.array([0, 1, 1]),
            jnp.linspace(1, 0, 3),
            sampler.heun(process),
        )
    np.testing.assert_array_equal(seen, [[0, 1, 1]] * 4)


def test_every_second_pair_is_turned_round():
    source = jnp.arange(12.0).reshape(6, 2, 1)
    new_source, new_target, direction = both_ways(source, -source)
    np.testing.assert_array_equal(direction, [0, 1] * 3)
    np.testing.assert_array_equal(new_source[::2], source[::2])
    np.testing.assert_array_equal(new_source[1::2], -source[1::2])
    np.testing.assert_array_equal(new_target, -new_source)
