"""Pairs that a bridge makes itself: iterative Markovian fitting.

A bridge learnt between the pairs of any plan keeps both distributions and brings their
points nearer to each other than the plan had them. Run from all sources to targets, and
back from all targets to sources, it gives new pairs, real on the side that is to be
learnt next. The Schroedinger bridge is the fixed point (Shi et al. 2023, arXiv
2303.16852, algorithm 1; Peluchetti 2023, arXiv 2304.00917).
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, UInt32

from eotjax import arrays, parallel
from eotjax.data import batch
from eotjax.data.batch import Data
from eotjax.data.domains import filled
from eotjax.diffusion import sampler
from eotjax.diffusion.estimator import expand
from eotjax.diffusion.sampler import Image, Keys
from eotjax.progress import Progress
from eotjax.transport.pairing import Constrain, Pairing

SIDES = ("source", "target")
# (data, side, index) -> the fixed views of that side's training set, by number
Views = Callable[[Data, str, Int[Array, "b"]], Float[Array, "b ..."]]
# (params, keys, images, direction) -> where the bridge leads
Bridge = Callable[[PyTree, Keys, Image, Int[Array, "b"]], Image]


def number(step: int, *, after: int, every: int) -> int:
    """How often pairs were made before step `step` + 1; 0 where they never are.

    Args: after: how many steps, 0 for never; every: how many steps again, 0 for never.
    """
    if not after or step < after:
        return 0
    return 1 + (step - after) // every if every else 1


def made(side: str) -> str:
    """The name, in a step's data, of what was made for a side from views of the other.

    Row i of `made("source")` is where view FIRST + i of the targets came from, of
    `made("target")` where view FIRST + i of the sources went.
    """
    return f"{side}_made"


FIRST = "first_copy"  # in a step's data: FIRST of the above, in numbers of images
PART = 256  # ends that are kept together, at least


def mixed(
    draw: Pairing,
    *,
    views: Views,
    share: float,
    batch_size: int,
    seed: int,
    constrain: Constrain,
) -> Pairing:
    """Pairs of a plan, and pairs that the bridge has made where `data` holds any.

    Args:
      draw: the plan's pairs.
      views: real ones.
      share: of the pairs that the plan goes on drawing.
      batch_size: pairs a step.
      seed: the run's.
      constrain: lays a batch out over the devices.

    Every second pair is turned round later, to learn the way back: its source is real
    and its target made; of the others the target is real and the source made.
    """
    of_plan = round(share * batch_size)

    def pairs(step, held, data):
        drawn = draw(step, held, data)
        if made("source") not in data:
            return drawn
        key = jax.random.fold_in(batch.step_keys(seed, step).draw, 1)

        def own(key, side, other):
            ends = data[made(other)]
            index = constrain(jax.random.randint(key, (batch_size,), 0, len(ends)))
            view = data[FIRST] * len(data[side]) + index
            return views(data, side, view), ends[index].astype(jnp.float32)

        key_source, key_target = jax.random.split(key)
        real_source, made_target = own(key_source, "source", "target")
        real_target, made_source = own(key_target, "target", "source")
        rows = expand(jnp.arange(batch_size), real_source)
        source = jnp.where(rows % 2 == 1, real_source, made_source)
        target = jnp.where(rows % 2 == 1, made_target, real_target)
        if of_plan:  # else the compiler need not read the plan's images at all
            source = jnp.where(rows < of_plan, drawn.source, source)
            target = jnp.where(rows < of_plan, drawn.target, target)
        return drawn._replace(source=source, target=target)

    return pairs


def maker(
    bridge: Bridge,
    *,
    views: Views,
    copies: int,
    at_once: int,
    seed: int,
    settings: str,
    mesh: Mesh,
) -> Callable[..., Data | None]:
    """Builds make(params, data, number, folder, keep, stop): the ends of all views.

    Both ways. They are kept in `folder`, which is one run's, unless `keep` is False;
    those of the same parameters and settings that lie there are not made again. None
    where `stop()`, asked now and then, has said so.

    Args:
      bridge: the sampler.
      views: of `data`.
      copies: views of each stored image, other ones for each number.
      at_once: views translated at once; a multiple of the devices.
      seed: the run's.
      settings: what else the ends depend on, in words.
      mesh: of all devices.
    """
    replicated, cut = parallel.replicated(mesh), parallel.split(mesh)

    def jitted(side: str):
        def send(params: PyTree, data: Data, number: UInt32[Array, ""], index: Array):
            first = number * jnp.uint32(copies * len(data[side]))
            start = views(data, side, first.astype(jnp.int32) + index)
            # A view's own number: views that show the same have other noise.
            numbers = first + index.astype(jnp.uint32)
            keys = sampler.keys_of(jnp.uint32(seed), numbers, start)
            way = jnp.full(index.shape, SIDES.index(side))
            return bridge(params, keys, start, way).astype(jnp.float16)

        return jax.jit(
            send,
            in_shardings=(replicated, replicated, None, cut),
            out_shardings=replicated,
        )

    programs = {side: jitted(side) for side in SIDES}
    part = -(-PART // at_once) * at_once  # whole batches: none is filled up in vain

    def make(
        params: PyTree,
        data: Data,
        number: int,
        folder: Path,
        *,
        keep: bool = True,
        stop: Callable[[], bool] = lambda: False,
    ) -> Data | None:
        counts = {side: copies * len(data[side]) for side in SIDES}
        place = _place(folder, number, settings, params)
        found = {
            (side, rows): _kept(_path(place, side, rows))
            for side in SIDES
            for rows in _parts(counts[side], part)
        }
        before = sum(len(ends) for ends in found.values() if ends is not None)
        report = Progress("making pairs", sum(counts.values()), "images", before)
        if keep and parallel.is_leader():
            _forget(folder, number, place)

        def send(side: str, rows: range) -> np.ndarray | None:
            """Where these views lead; None where `stop` said so meanwhile."""
            batches = []
            for index, new in filled(len(rows), at_once):
                if stop():
                    return None
                at = parallel.put(rows.start + index, cut)
                end = programs[side](params, data, jnp.uint32(number), at)
                batches.append(np.asarray(end)[:new])
                report.update(new)
            return np.concatenate(batches)

        all_ends: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
        for (side, rows), ends in found.items():
            if ends is None:
                ends = send(side, rows)
                if ends is None:
                    return None
                if keep and parallel.is_leader():
                    _keep(_path(place, side, rows), ends)
            all_ends[side].append(ends)
        result = {FIRST: parallel.put(np.int32(number * copies), replicated)}
        for side, other in (SIDES, SIDES[::-1]):
            ends = np.concatenate(all_ends[side])
            result[made(other)] = parallel.put(ends, replicated)
        return result

    return make


def _parts(count: int, size: int) -> list[range]:
    """The numbers below `count` in parts of one `size`, the last one shorter."""
    return [range(x, min(x + size, count)) for x in range(0, count, size)]


def _place(folder: Path, number: int, settings: str, params: PyTree) -> Path:
    """Where the ends that these parameters lead to are kept."""
    said = f"{settings} {arrays.digest(params)}"
    return folder / f"{number}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _path(place: Path, side: str, rows: range) -> Path:
    return place / f"{side}-{rows.start}-{rows.stop}.npz"


def _kept(path: Path) -> np.ndarray | None:
    """What was kept; None for all processes where one of them does not have it."""
    ends = arrays.kept(path)
    return ends if parallel.everywhere(ends is not None) else None


def _forget(folder: Path, number: int, place: Path) -> None:
    """Removes what was kept up to this number in other places."""
    for earlier in folder.glob("*-*"):
        of = earlier.name.partition("-")[0]
        if earlier != place and of.isdigit() and int(of) <= number:
            shutil.rmtree(earlier, ignore_errors=True)


def _keep(path: Path, ends: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays.keep(path, ends)
    except OSError as error:  # on a full disk, perhaps, or a read-only one
        print(f"cannot keep {path} ({error.strerror}): a restart makes it again")
