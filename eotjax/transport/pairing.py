"""Where the pairs of a step come from: plans of groups of the batch, or larger ones.

What is drawn from is a dict of arrays on the device: `source` and `target`, the stored
images or vectors, and perhaps `source_points` and `target_points`, aligned with them:
where the cost is taken. Without them that is `embed` of the images as training sees
them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from eotjax.data import batch
from eotjax.data.batch import Data, View
from eotjax.transport import sinkhorn
from eotjax.transport.cost import Embed
from eotjax.transport.sinkhorn import Couple, Pairs, PlanStats, Settings

Held = Any  # what a run keeps of its plans between steps, a pytree
Constrain = Callable[[Any], Any]  # lays arrays out over the devices


class Drawn(NamedTuple):
    """A batch of pairs, row by row, what their plan is like, and what is kept."""

    source: Float[Array, "b ..."]
    target: Float[Array, "b ..."]
    stats: PlanStats
    held: Held


# (step, held, data) -> the step's pairs: a function of these and the run's seed alone.
Pairing = Callable[[Int[Array, ""], Held, Data], Drawn]


def within_batches(
    *,
    view: View,
    embed: Embed,
    couple: Couple,
    batch_size: int,
    group_size: int,
    lengths: tuple[int, int] | None,
    seed: int,
    constrain: Constrain,
) -> Pairing:
    """A plan for each group of the batch's independent draws.

    Args:
      view: of stored images.
      embed: to where the cost is taken.
      couple: solves and draws.
      batch_size: pairs a step.
      group_size: points a plan; divides batch_size.
      lengths: of the training sets; None where `data` already is the batch.
      seed: the run's.
      constrain: lays a batch out over the devices.
    """
    ids = jnp.arange(batch_size)

    def draw(step, held, data):
        keys = batch.step_keys(seed, step)
        key_index, *view_keys = jax.random.split(keys.draw, 3)
        index: tuple = (slice(None), slice(None))
        if lengths is not None:
            index = constrain(batch.indices(key_index, lengths, batch_size))

        def grouped(x):
            return x.reshape(-1, group_size, *x.shape[1:])

        def side(name, key, index):
            images = constrain(view(key, data[name][index], ids))
            given = data.get(f"{name}_points")
            points = embed(images) if given is None else constrain(given[index])
            return grouped(images), grouped(points)

        (source, x), (target, y) = map(side, ("source", "target"), view_keys, index)
        pairs, stats = couple(keys.plan, x, y)
        # Group by group: no device needs another's images.
        source, target = (
            jax.vmap(lambda images, rows: images[rows])(images, rows)
            for images, rows in zip((source, target), pairs, strict=True)
        )
        # Said again: of groups fewer than devices the network would not be cut.
        source, target = (
            constrain(images.reshape(batch_size, *images.shape[2:]))
            for images in (source, target)
        )
        return Drawn(source, target, stats, held)

    return draw


class Pool(NamedTuple):
    """The pairs that one plan gave, for several steps."""

    pairs: Pairs
    stats: PlanStats


def empty_pool(pairs: int) -> Pool:
    """What a run holds before its first plan."""
    zeros = jnp.zeros(pairs, jnp.int32)
    return Pool(Pairs(zeros, zeros), sinkhorn.no_stats())


def over_steps(
    *,
    view: View,
    embed: Embed,
    couple: Couple,
    batch_size: int,
    group_size: int,
    draws: int,
    lengths: tuple[int, int],
    seed: int,
    constrain: Constrain,
) -> Pairing:
    """One plan for as many steps as its pairs last: group_size * draws of them.

    Arguments as for `within_batches`, but batch_size divides the number of pairs:

    Args:
      draws: that `couple` makes for each point.
    """
    steps = group_size * draws // batch_size

    def draw(step, held, data):
        keys = batch.step_keys(seed, step // steps)
        key_index, key_source, key_target = jax.random.split(keys.draw, 3)
        i, j = batch.indices(key_index, lengths, group_size)

        def points(name, key, index):
            given = data.get(f"{name}_points")
            if given is not None:
                return given[index]

            def embed_some(some):
                rows, ids = constrain(some)
                return embed(view(key, data[name][rows], ids))

            ids = jnp.arange(group_size)
            size = math.gcd(group_size, batch_size)  # images at once
            parts = jax.tree.map(lambda x: x.reshape(-1, size), (index, ids))
            return jax.lax.map(embed_some, parts).reshape(group_size, -1)

        def solve():
            x, y = points("source", key_source, i), points("target", key_target, j)
            one_group = couple(keys.plan, x[None], y[None])
            return jax.tree.map(lambda leaf: leaf[0], Pool(*one_group))

        pool = jax.lax.cond(step % steps == 0, solve, lambda: held)

        def of_this_step(rows):
            first = (step % steps) * batch_size
            return constrain(jax.lax.dynamic_slice(rows, (first,), (batch_size,)))

        rows, columns = map(of_this_step, pool.pairs)
        return Drawn(
            source=view(key_source, data["source"][i[rows]], rows),
            target=view(key_target, data["target"][j[columns]], columns),
            stats=pool.stats,
            held=pool,
        )

    return draw


def views_of_all(
    view: View, data: Data, name: str, index: Int[Array, "b"], *, seed: int
) -> Float[Array, "b ..."]:
    """The fixed views that a whole-set plan is between, by their numbers.

    View number a is of stored image a % n; views n apart show the same image anew.
    """
    key = getattr(batch.view_keys(seed), name)
    stored = data[name]
    return view(key, stored[index % len(stored)], index)


def over_the_sets(
    *,
    view: View,
    settings: Settings,
    batch_size: int,
    fixed_views: bool,
    seed: int,
    constrain: Constrain,
) -> Pairing:
    """Rows of the plan between the whole training sets, whose potentials are held.

    Args:
      view: of stored images.
      settings: that the plan was solved with.
      batch_size: pairs a step.
      fixed_views: the plan is between `views_of_all`, which training then sees; else
        between the stored images, of which training sees ever new views.
      seed: the run's.
      constrain: lays a batch out over the devices.

    `data` holds the points of all that the plan is between.
    """

    def draw(step, held, data):
        keys = batch.step_keys(seed, step)
        key_index, *view_keys = jax.random.split(keys.draw, 3)
        x, y = data["source_points"], data["target_points"]
        if settings.balanced:
            i = jax.random.randint(key_index, (batch_size,), 0, len(x))
        else:
            i = jax.random.categorical(key_index, held.log_mass, shape=(batch_size,))
        i = constrain(i)
        logits = sinkhorn.row_logits(
            sinkhorn.half_squared_distance(x[i], y), held.g, settings.epsilon
        )
        j = constrain(sinkhorn.draw_columns(keys.plan, logits))

        def images(name, key, index):
            if fixed_views:
                return views_of_all(view, data, name, index, seed=seed)
            return view(key, data[name][index], jnp.arange(batch_size))

        source, target = map(images, ("source", "target"), view_keys, (i, j))
        return Drawn(source, target, held.stats, held)

    return draw
