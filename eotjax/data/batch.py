"""The batch of a step as a pure function of the run's seed and the step's number."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num, UInt8

from eotjax.data import domains
from eotjax.data.domains import Domain
from eotjax.errors import UserError

# uint8 [n, h, w, c], float16 [n, views, h, w, c] (latents) or float32 [n, d]
Stored = Num[Array, "n ..."]
Data = dict[str, Array]  # what pairs are drawn from: see `pairing`
# (key, stored [b, ...], ids [b]) -> [b, ...]: with one key, equal ids are equal views.
View = Callable[[Key[Array, ""], Stored, Int[Array, "b"]], Float[Array, "b ..."]]
LAST = 0xFFFFFFFF  # a step that never comes: its keys are those of no other


class StepKeys(NamedTuple):
    """One key for each random choice of a step."""

    draw: Key[Array, ""]  # of the batch
    plan: Key[Array, ""]  # of pairs from it
    time: Key[Array, ""]
    noise: Key[Array, ""]
    dropout: Key[Array, ""]


def step_keys(seed: int, step: int | Int[Array, ""]) -> StepKeys:
    """The keys of one step of a run."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return StepKeys(*jax.random.split(key, 5))


class ViewKeys(NamedTuple):
    """Keys outside any step: of the fixed views, and of a sample of views."""

    source: Key[Array, ""]
    target: Key[Array, ""]
    sample_source: Key[Array, ""]
    sample_target: Key[Array, ""]


def view_keys(seed: int) -> ViewKeys:
    """The keys of a run's views that are no step's."""
    return ViewKeys(*step_keys(seed, LAST)[:4])


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
    keys: Key[Array, "b"],
    stored: UInt8[Array, "b h_stored w_stored c_stored"],
    *,
    size: tuple[int, int],
    flip: bool,
    tinted: bool,
) -> Float[Array, "b h w c"]:
    """uint8 as float32 in [-1, 1], cropped to `size`, mirrored, tinted at random.

    Image i depends on keys[i] alone: the same key gives the same view of it.
    """
    key_top, key_left, key_flip, key_hue = split(keys)
    stored = crop(key_top, key_left, stored, size)
    if flip:
        mirrored = jax.vmap(jax.random.bernoulli)(key_flip)[:, None, None, None]
        stored = jnp.where(mirrored, stored[:, :, ::-1], stored)
    image = stored.astype(jnp.float32) / 127.5 - 1
    return tint(image, jax.vmap(jax.random.uniform)(key_hue)) if tinted else image


def split(keys: Key[Array, "b"]) -> Key[Array, "4 b"]:
    """The keys of an image's top, left, mirroring and hue."""
    return jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)(keys)


def crop(
    key_top: Key[Array, "b"],
    key_left: Key[Array, "b"],
    stored: Num[Array, "b h_stored w_stored c"],
    size: tuple[int, int],
) -> Num[Array, "b h w c"]:
    """A window of `size` (height, width) out of each image, at random."""
    height, width, channels = stored.shape[1:]
    if (height, width) == size:
        return stored

    def one(key_top, key_left, image):
        top = jax.random.randint(key_top, (), 0, height - size[0] + 1)
        left = jax.random.randint(key_left, (), 0, width - size[1] + 1)
        return jax.lax.dynamic_slice(image, (top, left, 0), (*size, channels))

    return jax.vmap(one)(key_top, key_left, stored)


def choose_latents(
    keys: Key[Array, "b"],
    stored: Num[Array, "b views h_stored w_stored c"],
    *,
    size: tuple[int, int],
) -> Float[Array, "b h w c"]:
    """One of each image's views at random, cropped to `size`: as `augment`."""
    key_top, key_left, key_view, _ = split(keys)
    count = stored.shape[1]
    view = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(key_view)
    chosen = jax.vmap(lambda views, index: views[index])(stored, view)
    return crop(key_top, key_left, chosen, size).astype(jnp.float32)


def make_view(*, size: tuple[int, int], flip: bool, tinted: bool) -> View:
    """Builds view(key, stored, ids): images, latents or vectors as training sees them.

    Args:
      size: (height, width) of an image or its latents; unused for vectors.
      flip: mirror images left to right at random.
      tinted: give grey images a random hue.
    """

    def view(key, stored, ids):
        if stored.ndim == 2:
            return stored
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
        if stored.ndim == 5:
            return choose_latents(keys, stored, size=size)
        return augment(keys, stored, size=size, flip=flip, tinted=tinted)

    return view


def stream(
    sets: dict[str, Domain],
    *,
    key_of_step: Callable[[int], Key[Array, ""]],
    batch_size: int,
    steps: range,
    rows: slice,
    threads: int = 16,
) -> Iterator[dict[str, np.ndarray]]:
    """The stored images of each step's batch, for sets too large for the device.

    Reads the very images that `indices` names, ahead of the training, in threads. Only
    `rows` of the batch are read: this process's own. `sets` has `source`, `target`
    and what else is aligned with them, such as `source_points`.
    """
    import grain

    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "batches of sets larger than data.device_gib are drawn on the CPU, which "
            "JAX_PLATFORMS leaves out: add ,cpu to it, or unset it."
        ) from error
    lengths = (len(sets["source"]), len(sets["target"]))

    @jax.jit
    def which(key):
        return indices(jax.random.split(key, 3)[0], lengths, batch_size)

    def gather(step: int) -> dict[str, np.ndarray]:
        with jax.default_device(cpu):
            i, j = jax.tree.map(np.asarray, which(key_of_step(int(step))))
        return {
            name: domains.at(domain, (i if name.startswith("source") else j)[rows])
            for name, domain in sets.items()
        }

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    batches = grain.MapDataset.range(steps.start, steps.stop).map(gather)
    return iter(batches.to_iter_dataset(options))
