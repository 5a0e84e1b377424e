"""Training sets as latents: encoded once, kept in files, checked when they are used.

A file holds the raw latents of one set: float16 [n, views, h/8, w/8, c], of each image
as it is and, where training mirrors, of its mirror image (whose latents are not the
mirrored latents). Its name is a digest of all that it depends on, so that changed
images, weights or sizes are never mistaken for what was encoded.
"""

import hashlib
import itertools
import math
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from eotjax import arrays, atomic, caches, remote
from eotjax.build import checks
from eotjax.data import domains, images
from eotjax.data.domains import DataSet, Domain, Lazy
from eotjax.errors import UserError, gather
from eotjax.networks import latents
from eotjax.networks.latents import Autoencoder

AT_ONCE = 4  # images; more are no faster on a CPU, whose cache they leave
PART = 256  # images whose latents are kept until all are there, if they are cut off
VERSION = 1  # of what is computed


def resident(config: ConfigDict, splits: DataSet, space: Autoencoder) -> bool:
    """Whether the training sets' latents are small enough for the device's memory."""
    views = sum((2 if config.data.flip else 1) * len(x) for x in splits.train)
    sides = [n + config.data.crop_margin for n in config.data.image_size]
    pixels = math.prod(n // checks.factor_of(config) for n in sides)
    held = views * pixels * len(space.mean) * np.dtype(np.float16).itemsize
    return held <= config.data.device_gib * 2**30


def encoded(
    config: ConfigDict, splits: DataSet, space: Autoencoder
) -> tuple[DataSet, Autoencoder]:
    """The data set with standardised latents for its training sets, and their space.

    Args:
      config: the whole config.
      splits: of images.
      space: the raw one; the space returned standardises.

    Raises:
      UserError: images are broken, or the files cannot be written.
    """
    names = (config.data.train_source, config.data.train_target)
    folder = remote.local(config.latent.cache or caches.folder() / "latents")
    sets = [
        (domain, name, folder / f"{_digest(config, domain, name, space)}.npy")
        for domain, name in zip(splits.train, names, strict=True)
    ]
    gather(  # before hours of encoding
        partial(domains.check, domain, f"looking at {name}")
        for domain, name, path in sets
        if not path.exists()
    )
    raw = [_from_file(config, *each, space) for each in sets]
    space = latents.with_moments(space, raw)
    in_memory = resident(config, splits, space)
    mean, deviation = np.asarray(space.mean), np.asarray(space.deviation)

    def standardised(x: np.ndarray) -> np.ndarray:
        return ((x - mean) / deviation).astype(np.float16)

    def domain(x: np.ndarray) -> Domain:
        if in_memory:
            return np.concatenate(
                [standardised(part) for part in np.split(x, range(64, len(x), 64))]
            )
        return Lazy(
            len(x),
            lambda index: standardised(x[index]),
            lambda index: x[index].tobytes(),
        )

    source, target = map(domain, raw)
    encoded = DataSet(
        splits.source._replace(train=source),
        splits.target._replace(train=target),
        resident=in_memory,
    )
    return encoded, space


def _from_file(
    config: ConfigDict, domain: Domain, name: str, path: Path, space: Autoencoder
) -> np.ndarray:
    """A set's raw latents, mapped into memory; encoded where there is no file yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.alone(path.with_suffix(".lock")):  # one process encodes for all
            if not path.exists():
                views, partly = (
                    2 if config.data.flip else 1,
                    path.with_suffix(".partly"),
                )
                label = f"encoding {name}"
                found = encode(domain, space, partly, views=views, label=label)
                arrays.write_one(path, found)
                shutil.rmtree(partly)
                print(f"latents of {name}: kept in {path}")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it, and it is made again."
        ) from error


def _digest(config: ConfigDict, domain: Domain, name: str, space: Autoencoder) -> str:
    """Of everything that a set's latents depend on."""
    c = config.data
    digest = hashlib.sha256(
        repr(
            (VERSION, tuple(c.image_size), c.crop_margin, c.fit, c.channels, c.flip)
        ).encode()
    )
    for leaf in jax.tree.leaves(space.encoder):
        digest.update(np.asarray(leaf).tobytes())
    read = domains.fingerprint(domain, f"reading {name}")
    digest.update(bytes.fromhex(read))
    return digest.hexdigest()[:32]


def encode(
    domain: Domain, space: Autoencoder, partly: Path, *, views: int, label: str
) -> np.ndarray:
    """Raw latents of all images: float16 [n, views, h/8, w/8, c].

    Args:
      domain: of uint8 images.
      space: the raw one, whose mean is 0 and deviation 1.
      partly: a folder for what is done; what is there already is not done again.
      views: 1, or 2 with the mirror images.
      label: of the progress that is shown.
    """
    one = jax.jit(partial(latents.encode, space, dtype=jnp.float32))

    def encoded(few: list[np.ndarray]) -> np.ndarray:
        x = np.stack(few)
        x = np.stack([x, x[:, :, ::-1]][:views], axis=1)
        x = x.reshape(-1, *x.shape[2:])
        short = AT_ONCE * views - len(x)  # the last batch is filled up: one compilation
        x = np.concatenate([x, np.repeat(x[-1:], short, axis=0)])
        y = np.asarray(one(images.to_float(x)), np.float16)
        y = y[: len(few) * views]
        return y.reshape(len(few), views, *y.shape[1:])

    partly.mkdir(exist_ok=True)
    paths = [partly / f"{start}.npz" for start in range(0, len(domain), PART)]
    parts: list[np.ndarray] = []
    for path in paths:
        if (part := arrays.kept(path)) is None:
            break
        parts.append(part)
    ahead = domains.each(domain, label, len(parts) * PART)
    for path in paths[len(parts) :]:
        images_of_part, found = itertools.islice(ahead, PART), []
        while few := list(itertools.islice(images_of_part, AT_ONCE)):
            found.append(encoded(few))
        parts.append(np.concatenate(found))
        arrays.keep(path, parts[-1])
    return np.concatenate(parts)
