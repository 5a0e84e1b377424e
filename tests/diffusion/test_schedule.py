"""Schedules against their own SDE, finite differences and Bayes' rule."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from sde import derivatives, sde

from eotjax.diffusion import schedule

SCHEDULES = {
    "vp_linear": schedule.vp_linear(),
    "vp_linear_weak": schedule.vp_linear(beta_min=0.5, beta_max=8.0),
    "vp_cosine": schedule.vp_cosine(),
    "vp_cosine_cut": schedule.vp_cosine(log_snr_max=6.0, log_snr_min=-4.0),
    "ve": schedule.ve(),
    "ve_narrow": schedule.ve(sigma_min=0.1, sigma_max=5.0),
}
VARIANCE_PRESERVING = [name for name in SCHEDULES if name.startswith("vp")]
TIMES = np.array([0.25, 0.5, 0.75])
PARTICLES, STEP, START = 40_000, 5e-4, 0.01


def numbers(function, *times):
    """What `function` makes of times that are no jax arrays, as numpy."""
    return np.asarray(function(*(jnp.asarray(t, jnp.float64) for t in times)))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=SCHEDULES)
def process(request):
    return SCHEDULES[request.param]


@pytest.fixture(scope="module", params=["vp_linear", "vp_cosine", "ve"])
def paths(request):
    """Euler-Maruyama through `sde`: (schedule, data, {t: particles})."""
    process, rng = SCHEDULES[request.param], np.random.default_rng(0)
    data = rng.choice([-1.0, 1.0], PARTICLES)
    grid = np.arange(START, TIMES[-1] - STEP / 2, STEP)
    with jax.enable_x64(True):
        drift, diffusion = numbers(partial(sde, process), grid + STEP / 2)
        alpha, sigma = numbers(process.alpha, START), numbers(process.sigma, START)
    y = alpha * data + sigma * rng.standard_normal(PARTICLES)
    seen = {}
    for t, f, g2 in zip(grid + STEP, drift, diffusion, strict=True):
        noise = rng.standard_normal(PARTICLES)
        y = y + f * y * STEP + np.sqrt(g2 * STEP) * noise
        seen |= {at: y for at in TIMES if np.isclose(t, at)}
    assert len(seen) == len(TIMES)
    return process, data, seen


def regress(y, *regressors):
    """Least squares through the origin: (coefficients, their errors, variance)."""
    x = np.stack(regressors, 1)
    coefficients = np.linalg.lstsq(x, y)[0]
    variance = np.mean((y - x @ coefficients) ** 2)
    return coefficients, np.sqrt(variance * np.diag(np.linalg.inv(x.T @ x))), variance


def test_simulating_the_sde_gives_the_marginals(paths):
    process, data, seen = paths
    for t, y_t in seen.items():
        (alpha,), (error,), variance = regress(y_t, data)
        assert abs(alpha - numbers(process.alpha, t)) < 5 * error + 1e-3
        np.testing.assert_allclose(variance, numbers(process.sigma, t) ** 2, rtol=0.04)


def test_regressing_on_simulated_paths_gives_the_posterior(paths):
    process, data, seen = paths
    for s, t in [(0.25, 0.5), (0.5, 0.75), (0.25, 0.75)]:
        coefficients, errors, variance = regress(seen[s], seen[t], data)
        *weights, expected = numbers(process.posterior, t, s)
        assert np.all(abs(coefficients - weights) < 5 * errors + 2e-3)
        np.testing.assert_allclose(variance, expected, rtol=0.04)


def test_the_moment_equations_of_the_sde_give_the_marginals(process):
    def moments(t, state):  # of a linear SDE
        drift, diffusion = numbers(rates, t)
        return drift * state[0], 2 * drift * state[1] + diffusion

    rates = jax.jit(partial(sde, process))
    start = numbers(process.alpha, START), numbers(process.sigma, START) ** 2
    times = np.append(TIMES, 0.95)
    solution = solve_ivp(
        moments, (START, 0.95), start, t_eval=times, rtol=1e-7, atol=1e-9
    )
    alpha, sigma = numbers(process.alpha, times), numbers(process.sigma, times)
    np.testing.assert_allclose(solution.y, [alpha, sigma**2], rtol=1e-5)


def test_derivatives_are_those_of_finite_differences(process):
    t, h = np.linspace(0.01, 0.99, 50), 1e-6
    found = numbers(partial(derivatives, process), t)
    for function, derivative in zip(process, found, strict=True):
        difference = (numbers(function, t + h) - numbers(function, t - h)) / (2 * h)
        np.testing.assert_allclose(derivative, difference, rtol=1e-6, atol=1e-8)


def test_log_snr_falls_and_is_the_log_of_the_ratio_of_variances(process):
    t = np.linspace(0.001, 1, 200)
    log_snr = numbers(process.log_snr, t)
    assert np.all(np.diff(log_snr) < 0)
    ratio = (numbers(process.alpha, t) / numbers(process.sigma, t)) ** 2
    np.testing.assert_allclose(np.exp(log_snr), ratio, rtol=1e-9)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_unit_data_keeps_unit_variance_under_vp(name):
    t = np.linspace(0, 1, 101)
    process = SCHEDULES[name]
    alpha, sigma = numbers(process.alpha, t), numbers(process.sigma, t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1)
    np.testing.assert_allclose(numbers(process.scale, t), 1)


def test_vp_linear_is_the_limit_of_the_ddpm_chain():
    n = 100_000
    betas = np.linspace(0.1, 20, n) / n  # Ho et al. 2020, section 4, for n = 1000
    chain = np.cumprod(np.sqrt(1 - betas))[n // 4 - 1 :: n // 4]
    alpha = numbers(schedule.vp_linear(0.1, 20.0).alpha, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(alpha, chain, rtol=1e-3)


def test_vp_cosine_runs_between_the_log_snrs_it_is_given():
    log_snr = numbers(schedule.vp_cosine(7.0, -5.0).log_snr, [0, 1])
    np.testing.assert_allclose(log_snr, [7, -5])


def test_ve_is_geometric_between_the_sigmas_it_is_given():
    sigma = numbers(schedule.ve(0.01, 50.0).sigma, [0, 0.5, 1])
    np.testing.assert_allclose(sigma, [0.01, np.sqrt(0.01 * 50), 50])


def test_the_posterior_is_exact_at_both_ends():
    process = SCHEDULES["vp_linear"]
    assert numbers(process.sigma, 0) == 0
    np.testing.assert_array_equal(numbers(process.posterior, 0.3, 0), [0, 1, 0])
    unmoved = numbers(process.posterior, 0.3, 0.3)
    np.testing.assert_allclose(unmoved, [1, 0, 0], atol=1e-15)


def test_times_of_any_shape_keep_it(process):
    t = jnp.full((2, 1, 3), 0.5)
    values = (*process.posterior(t, t / 2), process.scale(t), process.log_snr(t))
    assert {value.shape for value in values} == {t.shape}
