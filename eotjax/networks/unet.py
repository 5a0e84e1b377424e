"""The UNet for images (Ho et al. 2020, with the FiLM of Dhariwal & Nichol 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from eotjax.networks import kernels
from eotjax.networks.embedding import time_embedding

Feature = Float[Array, "b h w c"]


class GroupNorm(nn.Module):
    """Normalises groups of channels (Wu & He 2018), as one affine map a channel.

    Up to 32 groups of at least 4 channels, as many as divide the channels. Sums over
    positions are taken channel by channel, which is faster than group by group.

    Attributes:
      dtype: of the output; moments are float32.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Feature) -> Feature:
        channels = x.shape[-1]
        groups = max(
            g for g in range(1, 33) if channels % g == 0 and channels // g >= 4
        )
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def of_group(moment: Float[Array, "b c"]) -> Float[Array, "b c"]:
            mean = moment.reshape(-1, groups, channels // groups).mean(-1)
            return mean.repeat(channels // groups, axis=-1)

        wide = x.astype(jnp.float32)
        mean = of_group(jnp.mean(wide, axis=(1, 2)))
        square = of_group(jnp.mean(wide**2, axis=(1, 2)))
        spread = jnp.sqrt(jnp.maximum(square - mean**2, 0) + 1e-6)
        factor = scale[None] / spread
        shift = bias[None] - mean * factor
        return (wide * factor[:, None, None] + shift[:, None, None]).astype(self.dtype)


def to_patches(
    x: Float[Array, "b h w c"], size: int
) -> Float[Array, "b h_cells w_cells c_cells"]:
    """Squares of size x size pixels as the channels of one position."""
    b, h, w, c = x.shape
    cells = x.reshape(b, h // size, size, w // size, size, c)
    return cells.swapaxes(2, 3).reshape(b, h // size, w // size, size * size * c)


def from_patches(
    x: Float[Array, "b h_cells w_cells c_cells"], size: int
) -> Float[Array, "b h w c"]:
    """The inverse of `to_patches`."""
    b, h, w, c = x.shape
    cells = x.reshape(b, h, w, size, size, c // size**2)
    return cells.swapaxes(2, 3).reshape(b, h * size, w * size, c // size**2)


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, twice; time scales and shifts the second norm."""

    channels: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Feature, time: Float[Array, "b e"], train: bool
    ) -> Float[Array, "b h w channels"]:
        def conv(name: str, init: nn.initializers.Initializer) -> kernels.Conv:
            return kernels.Conv(
                self.channels, 3, dtype=self.dtype, kernel_init=init, name=name
            )

        h = nn.silu(GroupNorm(self.dtype)(x))
        h = conv("conv_in", nn.initializers.lecun_normal())(h)
        film = kernels.Dense(2 * self.channels, dtype=self.dtype)(nn.silu(time))
        scale, shift = jnp.split(film[:, None, None, :], 2, axis=-1)
        h = GroupNorm(self.dtype)(h) * (1 + scale) + shift
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = conv("conv_out", nn.initializers.zeros)(h)
        if x.shape[-1] != self.channels:
            x = kernels.Dense(self.channels, dtype=self.dtype, name="skip")(x)
        return x + h


class SelfAttention(nn.Module):
    """Attention over all positions of the image, with a residual."""

    head_channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Feature) -> Feature:
        b, h, w, c = x.shape
        heads = max(c // self.head_channels, 1)
        y = GroupNorm(self.dtype)(x).reshape(b, h * w, c)
        qkv = kernels.DenseGeneral(
            (3, heads, c // heads), dtype=self.dtype, name="qkv"
        )(y)
        query, key, value = (qkv[:, :, i] for i in range(3))
        y = jax.nn.dot_product_attention(query, key, value)
        y = kernels.DenseGeneral(
            c,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="out",
        )(y)
        return x + y.reshape(b, h, w, c)


class UNet(nn.Module):
    """Maps inputs [b, h, w, c_in], times [b] in [0, 1], labels to [b, h, w, channels].

    h and w must be divisible by patch * 2 ** (len(multipliers) - 1). Parameters are
    float32, compute is `dtype`, the output is float32 and zero at initialisation.

    Attributes:
      channels: of the output.
      width: channels at the first level; level i has width * multipliers[i].
      multipliers: one a level, each of half the resolution of the one before.
      blocks: residual blocks a level on the way down, one more on the way up.
      attention: the levels, from 0, the first one, at which self-attention follows each
        block.
      patch: pixels a side of the squares that are one position of the first level
        (space to depth; Hoogeboom et al. 2023, arXiv 2301.11093, section 3.3); above
        1, `blocks` more at the whole resolution refine what they give.
      head_channels: channels of one attention head.
      dropout: rate, inside the residual blocks.
      remat: recompute the blocks' activations in the backward pass, to save memory.
      dtype: of the computation.
      labels: how many there are; 1 adds nothing to the network.
    """

    channels: int
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    patch: int = 1
    head_channels: int = 64
    dropout: float = 0.0
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    labels: int = 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        label: Int[Array, "b"],
        *,
        train: bool = False,
    ) -> Float[Array, "b h w channels"]:
        make_residual = ResidualBlock
        if self.remat:
            make_residual = nn.remat(ResidualBlock, static_argnums=(3,))

        def residual(
            x: Feature, channels: int, name: str
        ) -> Float[Array, "b h w channels"]:
            return make_residual(channels, self.dropout, self.dtype, name=name)(
                x, time, train
            )

        def out(x: Feature, channels: int, name: str) -> Float[Array, "b h w channels"]:
            return kernels.Conv(
                channels, 3, kernel_init=nn.initializers.zeros, name=name
            )(nn.silu(GroupNorm(self.dtype)(x)).astype(jnp.float32))

        def block(
            x: Feature, channels: int, level: int, name: str
        ) -> Float[Array, "b h w channels"]:
            x = residual(x, channels, name)
            if level in self.attention:
                x = SelfAttention(
                    self.head_channels, self.dtype, name=f"{name}_attention"
                )(x)
            return x

        def conv(channels: int, stride: int, name: str) -> kernels.Conv:
            return kernels.Conv(channels, 3, stride, dtype=self.dtype, name=name)

        time = kernels.Dense(4 * self.width, dtype=self.dtype, name="time_in")(
            time_embedding(t, self.width)
        )
        time = kernels.Dense(4 * self.width, dtype=self.dtype, name="time_out")(
            nn.silu(time)
        )

        if self.labels > 1:
            embed = nn.Embed(self.labels, 4 * self.width, dtype=self.dtype)
            time = time + embed(label)

        pixels = x
        x = conv(self.width, 1, "conv_in")(to_patches(x, self.patch))
        skips = [x]
        last = len(self.multipliers) - 1
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                x = block(x, self.width * multiplier, level, f"down{level}_{i}")
                skips.append(x)
            if level < last:
                x = conv(x.shape[-1], 2, f"down{level}_conv")(x)
                skips.append(x)

        x = block(x, x.shape[-1], last, "middle_0")
        x = residual(x, x.shape[-1], "middle_1")

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(x, self.width * multiplier, level, f"up{level}_{i}")
            if level > 0:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = conv(x.shape[-1], 1, f"up{level}_conv")(x)

        patches = out(x, self.channels * self.patch**2, "conv_out")
        coarse = from_patches(patches, self.patch)
        if self.patch == 1:
            return coarse

        # So far width channels stood for all that a patch holds. What follows sees the
        # input itself, at its own resolution, and across the patches' borders.
        x = jnp.concatenate([coarse, pixels], axis=-1)
        x = conv(self.width, 1, "refine_in")(x)
        for i in range(self.blocks):
            x = residual(x, self.width, f"refine_{i}")
        return coarse + out(x, self.channels, "refine_out")
