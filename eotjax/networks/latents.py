"""The space of a frozen autoencoder: images to standardised latents and back."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from eotjax import arrays, remote
from eotjax.errors import UserError, reason
from eotjax.networks import autoencoder, weights
from eotjax.networks.autoencoder import Images
from eotjax.networks.weights import Weights

BOUND = 4.0  # deviations, that hardly any latent lies beyond

Latents = Float[Array, "b h_8 w_8 c"]  # of mean 0 and variance 1 over the training sets


class Autoencoder(NamedTuple):
    """Its parameters, and what its latents are divided by: a pytree."""

    encoder: PyTree
    decoder: PyTree
    mean: Float[Array, "c"]
    deviation: Float[Array, "c"]


class Model(NamedTuple):
    """A translator's parameters: a network's, in the space of an autoencoder."""

    network: PyTree
    space: Autoencoder


def encode(space: Autoencoder, images: Images, dtype: DTypeLike) -> Latents:
    """Images in [-1, 1] to standardised latents."""
    module = autoencoder.encoder(space.encoder, dtype)
    raw = jnp.asarray(module.apply({"params": space.encoder}, images))
    mean, deviation = _of_channels(space)
    return (raw - mean) / deviation


def decode(space: Autoencoder, latents: Latents, dtype: DTypeLike) -> Images:
    """Standardised latents to images in [-1, 1]."""
    module = autoencoder.decoder(space.decoder, dtype)
    mean, deviation = _of_channels(space)
    raw = latents * deviation + mean
    images = jnp.asarray(module.apply({"params": space.decoder}, raw))
    return jnp.clip(images, -1, 1)


def _of_channels(space: Autoencoder) -> tuple[Array, Array]:
    """Mean and deviation, as images are."""
    mean, deviation = map(jnp.asarray, (space.mean, space.deviation))
    return mean[None, None, None], deviation[None, None, None]


def save(path: Path, space: Autoencoder) -> None:
    """Writes the space into one .npz file of plain arrays."""
    named = flatten_dict(space._asdict(), sep="/")
    arrays.write(path, {name: np.asarray(x) for name, x in named.items()})


def restore(path: Path) -> Autoencoder:
    """Reads what `save` wrote.

    Raises:
      UserError: there is no such file, or it is another one.
    """
    try:
        flat = jax.tree.map(jnp.asarray, arrays.read(path).arrays)
        return Autoencoder(**unflatten_dict(flat, sep="/"))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(
            f"cannot read the autoencoder {path} ({error}); copy the export again."
        ) from error


def load(name: str) -> Autoencoder:
    """A tiny autoencoder, whose latents are as they are (mean 0, deviation 1).

    Args:
      name: a folder with a file of weights of the encoder and one of the decoder, told
        by their names; a file with both (diffusers' AutoencoderTiny) or a folder that
        holds one; or the name of such a folder on the Hugging Face hub.

    Raises:
      UserError: there is none, or it is another network.
    """
    path = remote.fetched(name)
    if not path.exists():
        path = _from_hub(name)
    encoder, decoder = (
        autoencoder.from_torch(_read(path, side), side)
        for side in ("encoder", "decoder")
    )
    channels = encoder["14"]["kernel"].shape[-1]
    if decoder["1"]["kernel"].shape[2] != channels:
        raise UserError(
            f"the encoder in {name} has latents of {channels} channels, the decoder of "
            f"{decoder['1']['kernel'].shape[2]}; give two of one autoencoder."
        )
    return Autoencoder(encoder, decoder, jnp.zeros(channels), jnp.ones(channels))


def _read(path: Path, side: str) -> Weights:
    """The weights of one side, from its own file or from that of both."""
    if path.is_file():
        return weights.read(path)
    files = [p for p in sorted(path.iterdir()) if p.suffix in weights.SUFFIXES]
    own = [p for p in files if side in p.stem.lower()]
    if len(own) == 1 or len(files) == 1:
        return weights.read((own or files)[0])
    raise UserError(
        f"{path} holds {len(own)} files of weights named {side} "
        f"({', '.join(weights.SUFFIXES)}); give one, or one file of both."
    )


def _from_hub(name: str) -> Path:
    told = (
        f"there is no folder or file {name}, the autoencoder's weights "
        "(latent.weights); give one that holds TAESD's encoder and decoder "
        "(github.com/madebyollin/taesd), or, with a network and huggingface_hub, the "
        "name of one on the hub, such as madebyollin/taesd"
    )
    try:
        from huggingface_hub import snapshot_download

        patterns = [f"*{suffix}" for suffix in weights.SUFFIXES]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client has many
        raise UserError(f"{told} ({reason(error)}).") from error


def with_moments(space: Autoencoder, sets: list[np.ndarray]) -> Autoencoder:
    """The space in which the sets, each counting as much, have mean 0 and variance 1.

    Args:
      space: the raw one.
      sets: raw latents [n, ..., c].
    """
    first, second = (
        np.mean([_moment(x, power) for x in sets], axis=0) for power in (1, 2)
    )
    deviation = np.sqrt(np.maximum(second - first**2, 1e-12))
    return space._replace(mean=jnp.float32(first), deviation=jnp.float32(deviation))


def _moment(x: np.ndarray, power: int) -> np.ndarray:
    """The mean power of each channel, in float64, without a copy of all of x."""
    axes = tuple(range(1, x.ndim - 1))
    parts = [
        np.mean(part.astype(float) ** power, axis=axes)
        for part in np.split(x, range(256, len(x), 256))
    ]
    return np.concatenate(parts).mean(axis=0)
