"""Solvers on Gaussian data, where the exact denoiser and the exact answer are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eotjax.diffusion import sampler, schedule
from eotjax.diffusion.conditional import ConditionalScore

SCHEDULES = {
    "vp_linear": schedule.vp_linear(),
    "vp_cosine": schedule.vp_cosine(),
    "ve": schedule.ve(),
}
MEAN, STD = np.array([0.8, -0.5]), np.array([0.4, 0.9])
STEPS = (100, 200, 400)
ORDERS = {"ancestral": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_2m_sde": 2}
RANDOM = {"ancestral", "dpmpp_2m_sde"}


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


def solvers(process):
    return ConditionalScore(process, "v", rho=0.0).solvers()


def solve(process, name, steps, keys, start, denoise=None, times=None):
    solver = solvers(process)[name]
    times = solver.times(steps) if times is None else times
    step = functools.partial(sampler.follow, solver.step, denoise or denoiser(process))
    run = jax.jit(functools.partial(sampler.integrate, step))
    return run(keys, sampler.begin(start, times), times)[0]


def moments_at_the_end(process, name, steps, times=None):
    """Exact mean and variance of what a solver makes of y_1.

    That is affine in y_1 and in the noise of every step: least squares over more paths
    than these finds all the coefficients.
    """
    keys = jax.random.split(jax.random.key(0), steps + 4)
    start = jax.random.normal(jax.random.key(1), (len(keys), 2))
    end = np.asarray(solve(process, name, steps, keys, start, times=times))
    noise = jax.vmap(lambda i: sampler.normal(sampler.fold_in(keys, i), (2,)))(
        jnp.arange(steps)
    )
    mean, variance = noised_moments(process, 1.0)
    found = []
    for i in range(2):
        columns = [
            np.ones(len(keys)),
            start[:, i],
            *(np.asarray(z)[:, i] for z in noise),
        ]
        (base, slope, *spread), *_ = np.linalg.lstsq(np.stack(columns, 1), end[:, i])
        spread = np.square(spread).sum()
        found.append((base + slope * mean[i], slope**2 * variance[i] + spread))
    return np.transpose(found)


# The last step of vp_linear, to infinite log-SNR, is of first order.
SMOOTH = [
    (solver, name)
    for solver, order in ORDERS.items()
    for name in SCHEDULES
    if order == 1 or name != "vp_linear"
]


@pytest.mark.parametrize(("solver", "name"), SMOOTH)
def test_solvers_keep_the_mean_and_reach_the_variance_at_their_order(solver, name):
    process, order, errors = SCHEDULES[name], ORDERS[solver], []
    with jax.enable_x64(True):
        mean_0, variance_0 = noised_moments(process, 0.0)
        for steps in STEPS:
            times = jnp.linspace(1, 0, steps + 1)
            mean, variance = moments_at_the_end(process, solver, steps, times)
            np.testing.assert_allclose(mean, mean_0, atol=1e-9 if order == 1 else 1e-3)
            errors.append(np.abs(variance / variance_0 - 1))
    assert errors[-1].max() < {1: 0.05, 2: 5e-3}[order]
    for coordinate in np.transpose(errors):
        slope, _ = np.polyfit(np.log(STEPS), np.log(coordinate), 1)
        assert slope == pytest.approx(-order, abs=0.3)


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine"])
def test_fifteen_steps_of_dpm_solver_come_within_five_percent(name):
    process = SCHEDULES[name]
    with jax.enable_x64(True):
        _, variance = moments_at_the_end(process, "dpmpp_2m", 15)
        _, first_order = moments_at_the_end(process, "ddim", 60)
    _, variance_0 = noised_moments(process, 0.0)
    error = np.abs(variance / variance_0 - 1)
    assert error.max() < 0.05
    assert np.all(error < np.abs(first_order / variance_0 - 1))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", ORDERS)
def test_solvers_are_exact_in_any_steps_where_the_data_is_known(solver, name, steps):
    process, n = SCHEDULES[name], 20_000
    (alpha_1, sigma_1), (alpha_0, sigma_0) = (levels(process, t) for t in (1.0, 0.0))
    noise = np.random.default_rng(0).standard_normal((n, 1))
    with jax.enable_x64(True):  # Heun's one step cancels eight digits
        start = jnp.asarray(alpha_1 * 0.7 + sigma_1 * noise)
        keys = jax.random.split(jax.random.key(0), n)
        end = solve(process, solver, steps, keys, start, lambda y_t, _: 0 * y_t + 0.7)
    end = np.asarray(end)
    if sigma_0 == 0:
        np.testing.assert_allclose(end, 0.7, atol=1e-4)
        return
    rest = (end - alpha_0 * 0.7) / sigma_0
    assert abs(rest.mean()) < 5 / np.sqrt(n)
    assert abs(rest.var() - 1) < 5 * np.sqrt(2 / n)
    if solver not in RANDOM:  # follows each particle, not their law only
        np.testing.assert_allclose(rest, noise, atol=5e-3)


@pytest.mark.parametrize("solver", ORDERS)
def test_an_image_depends_on_its_own_key_and_not_on_its_neighbours(solver):
    process = SCHEDULES["vp_linear"]
    keys = jax.random.split(jax.random.key(0), 5)
    start = sampler.normal(keys, (2,))
    together = solve(process, solver, 10, keys, start)
    chosen = jnp.array([3, 1])
    apart = solve(process, solver, 10, keys[chosen], start[chosen])
    np.testing.assert_allclose(apart, together[chosen], rtol=1e-5)
    rekeyed = solve(process, solver, 10, keys[::-1], start)
    np.testing.assert_allclose(rekeyed[2], together[2], rtol=1e-5)  # the middle one
    assert np.allclose(rekeyed[0], together[0]) is (solver not in RANDOM)


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("name", SCHEDULES)
def test_times_of_equal_log_snr_go_all_the_way_in_equal_steps(name, steps):
    process = SCHEDULES[name]
    times = np.asarray(sampler.evenly_in_log_snr(process)(steps))
    assert times.shape == (steps + 1,) and times[0] == 1 and times[-1] == 0
    assert np.all(np.diff(times) < 0)
    way = np.diff(np.asarray(process.log_snr(jnp.asarray(times))))
    above = process.log_snr(jnp.asarray(times[:-1])) > sampler.DROWNED
    even = way[np.asarray(above) & np.isfinite(way)]
    np.testing.assert_allclose(even, even[:1].repeat(len(even)), rtol=0.02)
    if steps == 40 and name != "ve":
        assert way[0] == pytest.approx(10 * even[0], rel=0.02)


def test_keys_differ_by_image_seed_and_number_and_by_nothing_else():
    rng = np.random.default_rng(0)
    source = jnp.float32(rng.uniform(-1, 1, (50, 4, 4, 1)))
    number = jnp.zeros(50, jnp.uint32)

    def data(seed, number, source):
        keys = jax.jit(sampler.keys_of)(jnp.uint32(seed), number, source)
        return np.asarray(jax.random.key_data(keys))

    first = data(0, number, source)
    assert len(np.unique(first, axis=0)) == 50
    order = rng.permutation(50)
    np.testing.assert_array_equal(data(0, number, source[order]), first[order])
    single = jnp.repeat(source[:1], 16, 0).reshape(16, 16)
    single = single + jnp.eye(16) * np.float32(2**-20)  # one value each, by little
    others = [
        data(0, number[:16], single.reshape(16, 4, 4, 1)),
        data(1, number, source),
        data(0, number + 1, source),
    ]
    assert len(np.unique(np.concatenate([first, *others]), axis=0)) == 166


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
