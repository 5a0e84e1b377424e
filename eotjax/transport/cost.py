"""Where the cost of a plan is taken: maps from images or vectors to points.

Pooling and principal components are orthogonal projections: costs keep their units and
never exceed those of pixels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Embed = Callable[[Float[Array, "b ..."]], Float[Array, "b d"]]


def pixels(x: Float[Array, "b ..."]) -> Float[Array, "b d"]:
    """All values, as they are."""
    return x.reshape(len(x), -1).astype(jnp.float32)


def pooled(size: int) -> Embed:
    """Means over size x size cells, times `size`: their orthonormal coordinates."""

    def embed(x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        b, h, w, c = x.shape
        cells = x.reshape(b, h // size, size, w // size, size, c)
        return pixels(size * jnp.mean(cells, axis=(2, 4)))

    return embed


def principal(directions: Float[Array, "d k"]) -> Embed:
    """Coordinates along orthonormal directions."""

    def embed(x: Float[Array, "b ..."]) -> Float[Array, "b k"]:
        return jnp.matmul(pixels(x), directions, precision=jax.lax.Precision.HIGHEST)

    return embed


def principal_components(
    x: Float[np.ndarray, "n d"], count: int
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d k"]]:
    """The mean, and the `count` directions of largest variance, as columns."""
    mean = x.mean(0)
    directions = np.linalg.svd(x - mean, full_matrices=False)[2]
    return mean, directions[:count].T
