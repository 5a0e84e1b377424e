"""Noise of images that is coarse, as photographs are."""

import jax.numpy as jnp
import numpy as np
import scipy.fft
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
    down, across = (
        scipy.fft.dct(np.eye(n), axis=0, norm="ortho").astype(np.float32)
        for n in (height, width)
    )
    waves = white * np.sqrt(_spectrum(length, height, width))[None, :, :, None]
    rows = jnp.einsum("ki,bklc->bilc", down, waves, precision="highest")
    return jnp.einsum("lj,bilc->bijc", across, rows, precision="highest")


def _spectrum(
    length: float, height: int, width: int
) -> Float[np.ndarray, "height width"]:
    """The variance of each wave of the DCT-II in coarse noise, the slowest first."""
    middles = np.pi * (np.arange(64) + 0.5) / 64
    y, x = (np.pi * np.arange(n) / n for n in (height, width))
    mean = _lorentz(length, middles, middles).mean()
    return (_lorentz(length, y, x) / mean).astype(np.float32)


def _lorentz(length: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 1 / (1 + length**2 * (y[:, None] ** 2 + x[None] ** 2))
