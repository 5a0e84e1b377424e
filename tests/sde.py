"""The stochastic differential equation that a schedule's marginals belong to."""

import jax
import jax.numpy as jnp


def derivatives(process, t):
    """(d alpha / dt, d sigma / dt)."""
    return tuple(jax.jvp(f, (t,), (jnp.ones_like(t),))[1] for f in process)


def sde(process, t):
    """(f, g^2) of dy = f(t) y dt + g(t) dw with a schedule's marginals.

    f = alpha' / alpha and g^2 = d(sigma^2)/dt - 2 f sigma^2 (Kingma et al. 2021,
    "Variational diffusion models", section 3.1, in continuous time).
    """
    d_alpha, d_sigma = derivatives(process, t)
    drift, sigma = d_alpha / process.alpha(t), process.sigma(t)
    return drift, 2 * sigma * (d_sigma - drift * sigma)
