"""Training sets as latents: encoded once, kept in files, checked when they are used.

A file holds the raw latents of one set: float16 [n, views, h/8, w/8, c], of each image
as it is and, where training mirrors, of its mirror image (whose latents are not the
mirrored latents). Its name is a digest of all that it depends on, so that changed
images, weights or sizes are never mistaken for what was encoded.
"""

import hashlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from eotjax import atomic, caches
from eotjax.data import domains, images
from eotjax.data.domains import DataSet, Domain, Lazy
from eotjax.errors import UserError, gather
from eotjax.networks import latents
from eotjax.networks.latents import Autoencoder

AT_ONCE = 4  # images; more are no faster on a CPU, whose cache they leave
VERSION = 1  # of what is computed


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
    raw = gather(
        partial(_from_file, config, domain, name, space)
        for domain, name in zip(splits[:2], names, strict=True)
    )
    space = latents.with_moments(space, raw)
    resident = sum(x.nbytes for x in raw) <= config.data.device_gib * 2**30
    mean, deviation = np.asarray(space.mean), np.asarray(space.deviation)

    def standardised(x: np.ndarray) -> np.ndarray:
        return ((x - mean) / deviation).astype(np.float16)

    def domain(x: np.ndarray) -> Domain:
        if resident:
            return np.concatenate(
                [standardised(part) for part in np.split(x, range(64, len(x), 64))]
            )
        return Lazy(
            len(x),
            lambda index: standardised(x[index]),
            lambda index: x[index].tobytes(),
        )

    source, target = map(domain, raw)
    sets = splits._replace(train_source=source, train_target=target, resident=resident)
    return sets, space


def _from_file(
    config: ConfigDict, domain: Domain, name: str, space: Autoencoder
) -> np.ndarray:
    """A set's raw latents, mapped into memory; encoded where there is no file yet."""
    folder = Path(config.latent.cache or caches.folder() / "latents").expanduser()
    path = folder / f"{_digest(config, domain, space)}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.alone(path.with_suffix(".lock")):  # one process encodes for all
            if not path.exists():
                views = 2 if config.data.flip else 1
                found = encode(domain, space, views=views, label=f"encoding {name}")
                with atomic.replacing(path) as temporary, temporary.open("wb") as file:
                    np.save(file, found)
                print(f"latents of {name}: kept in {path}")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it, and it is made again."
        ) from error


def _digest(config: ConfigDict, domain: Domain, space: Autoencoder) -> str:
    """Of everything that a set's latents depend on."""
    c = config.data
    digest = hashlib.sha256(
        repr(
            (VERSION, tuple(c.image_size), c.crop_margin, c.fit, c.channels, c.flip)
        ).encode()
    )
    for leaf in jax.tree.leaves(space.encoder):
        digest.update(np.asarray(leaf).tobytes())
    digest.update(bytes.fromhex(domains.fingerprint(domain)))
    return digest.hexdigest()[:32]


def encode(domain: Domain, space: Autoencoder, *, views: int, label: str) -> np.ndarray:
    """Raw latents of all images: float16 [n, views, h/8, w/8, c].

    Args:
      domain: of uint8 images.
      space: the raw one, whose mean is 0 and deviation 1.
      views: 1, or 2 with the mirror images.
      label: of the progress that is shown.
    """
    one = jax.jit(partial(latents.encode, space, dtype=jnp.float32))
    found: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        x = np.stack(waiting)
        x = np.stack([x, x[:, :, ::-1]][:views], axis=1)
        x = x.reshape(-1, *x.shape[2:])
        short = AT_ONCE * views - len(x)  # the last batch is filled up: one compilation
        x = np.concatenate([x, np.repeat(x[-1:], short, axis=0)])
        y = np.asarray(one(images.to_float(x)), np.float16)
        y = y[: len(waiting) * views]
        found.append(y.reshape(len(waiting), views, *y.shape[1:]))
        waiting.clear()

    for image in domains.each(domain, label):
        waiting.append(image)
        if len(waiting) == AT_ONCE:
            flush()
    if waiting:
        flush()
    return np.concatenate(found)
