"""A tiny convolutional autoencoder, frozen: images to an eighth of their size and back.

The architecture is TAESD's (Bohan 2023, "Tiny AutoEncoder for Stable Diffusion"), which
was distilled from the autoencoders of Stable Diffusion 1 to 3 and FLUX 1 and 2; its
latents have 4, 16 or 32 channels. Layers are named by their place in the original.
"""

import itertools
import re
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from eotjax.errors import UserError
from eotjax.networks import kernels
from eotjax.networks.weights import Weights

FACTOR = 8  # of an image's side to its latents'
WIDTH = 64
CHANNELS = (4, 16, 32)  # of the latents, that there are
CLAMP = 3.0  # latents are squashed into +- this before they are decoded

Images = Float[Array, "b h w 3"]  # in [-1, 1]
Latents = Float[Array, "b h_8 w_8 c"]


class Block(nn.Module):
    """Three convolutions with a residual; `pooled` adds one of normalised channels."""

    pooled: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        if self.pooled:
            mix = kernels.Conv(
                4 * WIDTH, 1, use_bias=False, dtype=self.dtype, name="pool_0"
            )(x)
            mix = nn.GroupNorm(4, epsilon=1e-5, dtype=self.dtype, name="pool_1")(mix)
            x = x + kernels.Conv(
                WIDTH, 1, use_bias=False, dtype=self.dtype, name="pool_3"
            )(nn.relu(mix))
        h = x
        for index in (0, 2, 4):
            h = kernels.Conv(WIDTH, 3, dtype=self.dtype, name=f"conv_{index}")(
                h if index == 0 else nn.relu(h)
            )
        return nn.relu(x + h)


class Encoder(nn.Module):
    """Images to latents.

    Attributes:
      channels: of the latents.
      pooled: whether the blocks at the lowest resolution are.
      dtype: of the computation.
    """

    channels: int
    pooled: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Latents:
        def conv(x: Array, channels: int, layer: int, stride: int = 1) -> Array:
            return kernels.Conv(
                channels,
                3,
                stride,
                padding=1,  # as PyTorch pads; SAME pads otherwise where strides are 2
                use_bias=stride == 1,
                dtype=self.dtype,
                name=f"{layer}",
            )(x)

        x = Block(False, self.dtype, name="1")(conv((images + 1) / 2, WIDTH, 0))
        for layer in (2, 6, 10):
            x = conv(x, WIDTH, layer, stride=2)
            for index in range(layer + 1, layer + 4):
                x = Block(self.pooled and layer == 10, self.dtype, name=f"{index}")(x)
        return conv(x, self.channels, 14).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents to images; attributes as the encoder's."""

    pooled: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        def conv(x: Array, channels: int, layer: int, bias: bool = True) -> Array:
            return kernels.Conv(
                channels, 3, use_bias=bias, dtype=self.dtype, name=f"{layer}"
            )(x)

        x = nn.relu(conv(CLAMP * jnp.tanh(latents / CLAMP), WIDTH, 1))
        for layer in (3, 8, 13):
            for index in range(layer, layer + 3):
                x = Block(self.pooled and layer == 3, self.dtype, name=f"{index}")(x)
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = conv(x, WIDTH, layer + 4, bias=False)
        x = Block(False, self.dtype, name="18")(x)
        return 2 * conv(x, 3, 19).astype(jnp.float32) - 1


def encoder(params: PyTree, dtype: DTypeLike = jnp.float32) -> Encoder:
    """The encoder that has these parameters."""
    return Encoder(params["14"]["kernel"].shape[-1], "pool_0" in params["11"], dtype)


def decoder(params: PyTree, dtype: DTypeLike = jnp.float32) -> Decoder:
    """The decoder that has these parameters."""
    return Decoder("pool_0" in params["3"], dtype)


def from_torch(weights: Weights, side: Literal["encoder", "decoder"]) -> PyTree:
    """Parameters of one side, float32, from a state dict of the original.

    Names are those of the original (`3.conv.0.weight`) or of diffusers' AutoencoderTiny
    (`encoder.layers.3.conv.0.weight`), whose decoder counts from one layer later.

    Raises:
      UserError: names or shapes are none of this architecture.
    """
    prefix = f"{side}.layers."
    shift = int(side == "decoder")
    if any(name.startswith(prefix) for name in weights):
        weights = {
            _shifted(name.removeprefix(prefix), shift): array
            for name, array in weights.items()
            if name.startswith(prefix)
        }
    found = {_path(name, x): _to_flax(x) for name, x in weights.items()}
    shapes = {path: x.shape for path, x in found.items()}
    for pooled, channels in itertools.product((False, True), CHANNELS):
        module: nn.Module = Encoder(channels, pooled)
        like = jnp.zeros((1, FACTOR, FACTOR, 3))
        if side == "decoder":
            module, like = Decoder(pooled), jnp.zeros((1, 1, 1, channels))
        wanted = jax.eval_shape(module.init, jax.random.key(0), like)["params"]
        if shapes == {path: x.shape for path, x in flatten_dict(wanted).items()}:
            return unflatten_dict(found)
    raise UserError(
        f"these {len(weights)} arrays are no {side} of a tiny autoencoder; give "
        "TAESD's weights or those of one of its siblings (4, 16 or 32 channels, an "
        "eighth of the image's side)."
    )


def _shifted(name: str, shift: int) -> str:
    layer, rest = name.split(".", 1)
    return f"{int(layer) + shift}.{rest}"


def _path(name: str, array: np.ndarray) -> tuple[str, ...]:
    *path, kind = re.sub(r"(conv|pool)\.", r"\1_", name).split(".")
    if kind == "weight":
        kind = "scale" if array.ndim == 1 else "kernel"
    return (*path, kind)


def _to_flax(array: np.ndarray) -> Array:
    values = jnp.asarray(array, jnp.float32)
    return values.transpose(2, 3, 1, 0) if array.ndim == 4 else values
