"""The batch of a step as a pure function of the run's seed and the step's number."""

from collections.abc import Callable, Iterator
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num, UInt8

from eotjax.data import Domain, Lazy

Stored = Num[Array, "n ..."]  # uint8 [n, h, w, c] or float32 [n, d]
Data = dict[str, Array]  # source and target


def indices(
    key: Key[Array, ""], lengths: tuple[int, int], batch_size: int
) -> tuple[Int[Array, "b"], Int[Array, "b"]]:
    """Which images of both domains make up a batch: independent, with replacement."""
    key_source, key_target = jax.random.split(key)
    return (
        jax.random.randint(key_source, (batch_size,), 0, lengths[0]),
        jax.random.randint(key_target, (batch_size,), 0, lengths[1]),
    )


def hue_to_rgb(hue: Float[Array, "..."]) -> Float[Array, "... 3"]:
    """Fully saturated RGB in [0, 1] of a hue in turns (Smith 1978)."""
    phase = jnp.stack([hue * 6 + offset for offset in (0, 4, 2)], axis=-1)
    return jnp.clip(jnp.abs(jnp.mod(phase, 6) - 3) - 1, 0, 1)


def tint(
    grey: Float[Array, "b h w 1"], hue: Float[Array, "b"]
) -> Float[Array, "b h w 3"]:
    """Grey in [-1, 1] as light of one hue (in turns) on black."""
    return (grey + 1) * hue_to_rgb(hue)[:, None, None, :] - 1


def augment(
    key: Key[Array, ""],
    stored: UInt8[Array, "b h_stored w_stored c_stored"],
    *,
    size: tuple[int, int],
    flip: bool,
    tinted: bool,
) -> Float[Array, "b h w c"]:
    """uint8 as float32 in [-1, 1], cropped to `size`, mirrored, tinted at random."""
    key_top, key_left, key_flip, key_hue = jax.random.split(key, 4)
    b, height, width, channels = stored.shape
    if (height, width) != size:
        top = jax.random.randint(key_top, (b,), 0, height - size[0] + 1)
        left = jax.random.randint(key_left, (b,), 0, width - size[1] + 1)

        def crop(image, top, left):
            return jax.lax.dynamic_slice(image, (top, left, 0), (*size, channels))

        stored = jax.vmap(crop)(stored, top, left)
    if flip:
        mirrored = jax.random.bernoulli(key_flip, shape=(b, 1, 1, 1))
        stored = jnp.where(mirrored, stored[:, :, ::-1], stored)
    image = stored.astype(jnp.float32) / 127.5 - 1
    return tint(image, jax.random.uniform(key_hue, (b,))) if tinted else image


def make_draw(
    *,
    batch_size: int,
    lengths: tuple[int, int] | None,
    size: tuple[int, int],
    flip: bool,
    tinted: bool,
    constrain: Callable[[tuple[Array, Array]], tuple[Array, Array]],
) -> Callable[[Key[Array, ""], Data], tuple[Array, Array]]:
    """Builds draw(key, data) -> source, target: float32 [batch_size, ...].

    Args:
      batch_size: images of each domain.
      lengths: of the domains, whole on the device; None where `data` already is the
        batch (see `stream`).
      size: (height, width) of an image; unused for vectors.
      flip: mirror images left to right at random.
      tinted: give grey images a random hue.
      constrain: lays the batch out over the devices.
    """

    def draw(key, data):
        key_index, key_source, key_target = jax.random.split(key, 3)
        source, target = data["source"], data["target"]
        if lengths is not None:
            i, j = constrain(indices(key_index, lengths, batch_size))
            source, target = source[i], target[j]
        if source.ndim == 2:
            return constrain((source, target))
        prepare = partial(augment, size=size, flip=flip, tinted=tinted)
        return constrain((prepare(key_source, source), prepare(key_target, target)))

    return draw


def stream(
    source: Domain,
    target: Domain,
    *,
    key_of_step: Callable[[int], Key[Array, ""]],
    batch_size: int,
    steps: range,
    rows: slice,
    threads: int = 16,
) -> Iterator[dict[str, np.ndarray]]:
    """The stored images of each step's batch, for sets too large for the device.

    Reads the very images that `make_draw` with `lengths` would index, ahead of the
    training, in threads. Only `rows` of the batch are read: this process's own.
    """
    cpu = jax.local_devices(backend="cpu")[0]
    lengths = (len(source), len(target))

    @jax.jit
    def which(key):
        return indices(jax.random.split(key, 3)[0], lengths, batch_size)

    def read(domain: Domain, index: np.ndarray) -> np.ndarray:
        if isinstance(domain, Lazy):
            return np.stack([domain.read(int(i)) for i in index])
        return domain[index]

    def gather(step: int) -> dict[str, np.ndarray]:
        with jax.default_device(cpu):
            i, j = jax.tree.map(np.asarray, which(key_of_step(int(step))))
        return {"source": read(source, i[rows]), "target": read(target, j[rows])}

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    batches = grain.MapDataset.range(steps.start, steps.stop).map(gather)
    return iter(batches.to_iter_dataset(options))
