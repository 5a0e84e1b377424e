"""Noise schedules: y_t = alpha(t) y + sigma(t) z for t in [0, 1], as pure functions.

t = 0 is data, t = 1 is (nearly) pure noise. Every function takes an array of times
of any shape and returns an array of the same shape.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Times = Float[Array, "..."]


class Schedule(NamedTuple):
    """A forward process with p(y_t | y) = N(alpha(t) y, sigma(t)^2 I)."""

    alpha: Callable[[Times], Times]
    sigma: Callable[[Times], Times]

    def log_snr(self, t: Times) -> Times:
        """log(alpha^2 / sigma^2), decreasing in t; +inf where sigma is 0."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def scale(self, t: Times) -> Times:
        """sqrt(alpha^2 + sigma^2): the standard deviation of y_t for unit data."""
        return jnp.hypot(self.alpha(t), self.sigma(t))

    def posterior(self, t: Times, s: Times) -> tuple[Times, Times, Times]:
        """p(y_s | y_t, y) for s < t: (weight of y_t, weight of y, variance).

        Ho et al. 2020, equation 7, for any alpha and sigma; exact for sigma(s) = 0.
        """
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        var_t, var_s = self.sigma(t) ** 2, self.sigma(s) ** 2
        alpha_ts = alpha_t / alpha_s
        var_ts = jnp.maximum(var_t - alpha_ts**2 * var_s, 0)
        return (
            alpha_ts * var_s / var_t,
            alpha_s * var_ts / var_t,
            var_ts * var_s / var_t,
        )


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Variance preserving, beta(t) linear (Song et al. 2021, equation 33)."""

    def log_alpha(t: Times) -> Times:
        return -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min

    return Schedule(
        alpha=lambda t: jnp.exp(log_alpha(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(2 * log_alpha(t))),
    )


def vp_cosine(log_snr_max: float = 10.0, log_snr_min: float = -10.0) -> Schedule:
    """Variance preserving, alpha a cosine (Nichol & Dhariwal 2021).

    Cut so that the log-SNR runs from log_snr_max at t = 0 to log_snr_min at t = 1
    and every prediction stays finite (Hoogeboom et al. 2023, equation 2).
    """
    first = math.atan(math.exp(-log_snr_max / 2))
    last = math.atan(math.exp(-log_snr_min / 2))
    return Schedule(
        alpha=lambda t: jnp.cos(first + (last - first) * t),
        sigma=lambda t: jnp.sin(first + (last - first) * t),
    )


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """Variance exploding, sigma geometric (Song et al. 2021, equation 31)."""
    ratio = math.log(sigma_max / sigma_min)
    return Schedule(
        alpha=jnp.ones_like,
        sigma=lambda t: sigma_min * jnp.exp(ratio * t),
    )
