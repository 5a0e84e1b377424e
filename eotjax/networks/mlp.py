"""The network for vectors: a residual MLP."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from eotjax.networks.embedding import time_embedding


class MLP(nn.Module):
    """Maps inputs [b, d_in], times [b] in [0, 1] and labels to [b, channels], float32.

    Attributes as for `UNet`.
    """

    channels: int
    width: int = 256
    blocks: int = 3
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    labels: int = 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b d"],
        t: Float[Array, "b"],
        label: Int[Array, "b"],
        *,
        train: bool = False,
    ) -> Float[Array, "b channels"]:
        time = nn.Dense(self.width, dtype=self.dtype)(time_embedding(t, self.width))
        if self.labels > 1:
            embed = nn.Embed(self.labels, self.width, dtype=self.dtype)
            time = time + embed(label)
        x = nn.Dense(self.width, dtype=self.dtype)(x) + nn.silu(time)
        for _ in range(self.blocks):
            h = nn.LayerNorm(dtype=self.dtype)(x)
            h = nn.silu(nn.Dense(self.width, dtype=self.dtype)(h))
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
            x = x + nn.Dense(self.width, dtype=self.dtype)(h)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        out = nn.Dense(self.channels, kernel_init=nn.initializers.zeros)(x)
        return out.astype(jnp.float32)
