"""Noise of images that is coarse, as photographs are."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def coarse(white: Float[Array, "b ..."], length: float) -> Float[Array, "b ..."]:
    """White noise made coarse: of waves of w radians a pixel 1 / (1 + (length w)^2).

    That is relative to the slowest, and to a mean variance of 1. The waves are those of
    the DCT-II, so edges reflect, and an image's size changes nothing within it.

    Args:
      white: [b, h, w, c]; of any shape where length is 0.
      length: in pixels, over which the noise is alike; 0 leaves it white.
    """
    if not length:
        return white
    height, width = white.shape[1:3]
    deviation = np.sqrt(spectrum(length, height, width))
    waves = white * deviation[None, :, :, None]
    rows = jnp.einsum("ki,bklc->bilc", cosines(height), waves, precision="highest")
    return jnp.einsum("lj,bilc->bijc", cosines(width), rows, precision="highest")


def spectrum(
    length: float, height: int, width: int
) -> Float[np.ndarray, "height width"]:
    """The variance of each wave of the DCT-II in coarse noise, the slowest first."""
    middles = np.pi * (np.arange(64) + 0.5) / 64
    y, x = (np.pi * np.arange(n) / n for n in (height, width))
    mean = _lorentz(length, middles, middles).mean()
    return (_lorentz(length, y, x) / mean).astype(np.float32)


def _lorentz(length: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 1 / (1 + length**2 * (y[:, None] ** 2 + x[None] ** 2))


@functools.cache
def cosines(n: int) -> Float[np.ndarray, "n n"]:
    """The orthonormal waves of the DCT-II as rows."""
    k, i = np.arange(n)[:, None], np.arange(n)[None]
    waves = np.cos(np.pi * k * (i + 0.5) / n) * np.sqrt(2 / n)
    waves[0] /= np.sqrt(2)
    return waves.astype(np.float32)
