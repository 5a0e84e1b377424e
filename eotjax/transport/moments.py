"""Means and covariances, and how far Gaussians with two of them are apart."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """Mean and covariance."""

    mean: Float[np.ndarray | jax.Array, "*n d"]
    covariance: Float[np.ndarray | jax.Array, "*n d d"]


def of(y: Float[np.ndarray | jax.Array, "*n samples d"], ddof: int = 0) -> Moments:
    """Moments of samples, in float64; the covariance divides by samples - ddof."""
    y = np.asarray(y, float)
    mean = y.mean(-2)
    away = y - mean[..., None, :]
    return Moments(mean, np.swapaxes(away, -1, -2) @ away / (y.shape[-2] - ddof))


def bures_wasserstein(a: Moments, b: Moments) -> Float[np.ndarray, "*n"]:
    """Half the squared 2-Wasserstein distance between Gaussians.

    |m_a - m_b|^2 / 2 + tr(A + B) / 2 - tr (A^(1/2) B A^(1/2))^(1/2) (Dowson & Landau
    1982), for covariances that may be singular.
    """
    cov_a, cov_b = (np.asarray(x.covariance, float) for x in (a, b))
    values, axes = np.linalg.eigh(cov_a)
    factor = axes * np.sqrt(np.maximum(values, 0))[..., None, :]
    inner = np.swapaxes(factor, -1, -2) @ cov_b @ factor
    # Rounding alone makes an eigenvalue negative.
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(inner), 0)).sum(-1)
    traces = np.trace(cov_a + cov_b, axis1=-2, axis2=-1)
    means = np.sum((np.asarray(a.mean, float) - b.mean) ** 2, -1)
    return np.asarray(means / 2 + traces / 2 - roots)
