"""Time as features, the same for every network."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def time_embedding(t: Float[Array, "b"], width: int) -> Float[Array, "b width"]:
    """Sines and cosines of 1000 t at geometric frequencies from 1 to 1e-4.

    Vaswani et al. 2017, section 3.5; t in [0, 1] stands for Ho et al.'s 1000 steps.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half) / max(half - 1, 1))
    angles = 1000 * t[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
