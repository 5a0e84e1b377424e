"""Solvers on Gaussian data, where the exact denoiser and the exact answer are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eotjax import sampler, schedule

SCHEDULES = {
    "vp_linear": schedule.vp_linear(),
    "vp_cosine": schedule.vp_cosine(),
    "ve": schedule.ve(),
}
MEAN, STD = np.array([0.8, -0.5]), np.array([0.4, 0.9])
STEPS = (100, 200, 400)


def denoiser(process, mean=MEAN, std=STD):
    """E[y | y_t] for y ~ N(mean, std^2): the mean of a product of two Gaussians."""

    def denoise(y_t, t):
        seen, noise = y_t / process.alpha(t), process.sigma(t) / process.alpha(t)
        of_seen, of_mean = (1 / noise**2), (1 / std**2)[None]
        return (seen * of_seen + mean[None] * of_mean) / (of_seen + of_mean)

    return denoise


def levels(process, t):
    """alpha and sigma of one time."""
    return tuple(float(f(jnp.array(t))) for f in process)


def noised_moments(process, t):
    """Mean and variance of y_t."""
    alpha, sigma = levels(process, t)
    return alpha * MEAN, alpha**2 * STD**2 + sigma**2


def solve(process, make_solver, steps, keys, start, denoise=None):
    step = functools.partial(make_solver(process), denoise or denoiser(process))
    times = jnp.linspace(1, 0, steps + 1)
    return jax.jit(functools.partial(sampler.integrate, step))(keys, start, times)


def moments_at_the_end(process, make_solver, steps):
    """Exact mean and variance of what a solver makes of y_1.

    A step is affine in y_t and in its noise: three points tell all of it.
    """
    solver = functools.partial(make_solver(process), denoiser(process))

    def step(keys, moments, t, s):
        keys = jnp.stack([keys[0], keys[0], keys[1]])
        points = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        end, noise = solver(keys, points, t, s), sampler.normal(keys, (2,))
        slope = end[1] - end[0]
        spread = (end[2] - end[0]) / (noise[2] - noise[0])
        mean, variance = moments
        mean = slope * mean + end[0] - spread * noise[0]
        return mean, slope**2 * variance + spread**2

    keys, start = jax.random.split(jax.random.key(0)), noised_moments(process, 1.0)
    times = jnp.linspace(1, 0, steps + 1)
    return jax.jit(functools.partial(sampler.integrate, step))(keys, start, times)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("make_solver", [sampler.ancestral, sampler.ddim])
def test_solvers_keep_the_mean_and_reach_the_variance_at_first_order(make_solver, name):
    process, errors = SCHEDULES[name], []
    with jax.enable_x64(True):
        mean_0, variance_0 = noised_moments(process, 0.0)
        for steps in STEPS:
            mean, variance = moments_at_the_end(process, make_solver, steps)
            np.testing.assert_allclose(mean, mean_0, atol=1e-9)
            errors.append(np.abs(variance / variance_0 - 1))
    assert errors[-1].max() < 0.05
    for coordinate in np.transpose(errors):
        slope, _ = np.polyfit(np.log(STEPS), np.log(coordinate), 1)
        assert slope == pytest.approx(-1, abs=0.2)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["vp_cosine", "ve"])
@pytest.mark.parametrize("make_solver", [sampler.ancestral, sampler.ddim])
def test_solvers_are_exact_in_any_steps_where_the_data_is_known(
    make_solver, name, steps
):
    process, n = SCHEDULES[name], 20_000
    (alpha_1, sigma_1), (alpha_0, sigma_0) = (levels(process, t) for t in (1.0, 0.0))
    noise = np.random.default_rng(0).standard_normal((n, 1))
    start = jnp.asarray(alpha_1 * 0.7 + sigma_1 * noise, jnp.float32)
    keys = jax.random.split(jax.random.key(0), n)
    end = solve(
        process, make_solver, steps, keys, start, lambda y_t, _: jnp.full_like(y_t, 0.7)
    )
    rest = (np.asarray(end) - alpha_0 * 0.7) / sigma_0
    assert abs(rest.mean()) < 5 / np.sqrt(n)
    assert abs(rest.var() - 1) < 5 * np.sqrt(2 / n)
    if make_solver is sampler.ddim:  # follows each particle, not their law only
        np.testing.assert_allclose(rest, noise, atol=2e-3)


@pytest.mark.parametrize("make_solver", [sampler.ancestral, sampler.ddim])
def test_an_image_depends_on_its_own_key_and_not_on_its_neighbours(make_solver):
    process = SCHEDULES["vp_linear"]
    keys = jax.random.split(jax.random.key(0), 5)
    start = sampler.normal(keys, (2,))
    together = solve(process, make_solver, 10, keys, start)
    chosen = jnp.array([3, 1])
    apart = solve(process, make_solver, 10, keys[chosen], start[chosen])
    np.testing.assert_allclose(apart, together[chosen], rtol=1e-5)
    rekeyed = solve(process, make_solver, 10, keys[::-1], start)
    random = make_solver is sampler.ancestral
    np.testing.assert_allclose(rekeyed[2], together[2], rtol=1e-5)  # the middle one
    assert np.allclose(rekeyed[0], together[0]) is not random


def test_normal_draws_the_noise_of_each_image_from_its_own_key():
    keys = jax.random.split(jax.random.key(0), 4)
    noise = sampler.normal(keys, (3, 2))
    assert noise.shape == (4, 3, 2)
    np.testing.assert_array_equal(noise[2:], sampler.normal(keys[2:], (3, 2)))
    assert len(np.unique(noise)) == noise.size


def test_integrate_visits_consecutive_times_with_a_key_of_its_own_at_each():
    times = jnp.array([1.0, 0.6, 0.5, 0.0])
    rows = 2_000

    def record(keys, seen, t, s):
        new = jnp.stack([sampler.normal(keys, ()), *jnp.full((2, rows), 1)])
        new = new.at[1].mul(t).at[2].mul(s)
        return jnp.concatenate([seen[1:], new[None]])

    keys = jax.random.split(jax.random.key(0), rows)
    seen = sampler.integrate(record, keys, jnp.zeros((3, 3, rows)), times)
    np.testing.assert_array_equal(seen[:, 1, 0], times[:-1])
    np.testing.assert_array_equal(seen[:, 2, 0], times[1:])
    correlation = np.corrcoef(seen[:, 0])
    np.testing.assert_allclose(correlation, np.eye(3), atol=5 / np.sqrt(rows))
