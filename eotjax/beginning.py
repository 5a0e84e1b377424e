"""Where a run begins: at its own checkpoint, at an artefact's parameters, or anew."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from eotjax import parallel
from eotjax.artefact import export
from eotjax.build import run_folder
from eotjax.errors import UserError, require
from eotjax.training import step
from eotjax.training.checkpoint import Checkpoints

NAMED = 5  # arrays that do not fit, before the others are only counted


def first_state(
    make: Callable[[], step.TrainState],
    abstract: step.TrainState,
    checkpoints: Checkpoints,
    artefact: str,
    layout: step.TrainState,
) -> step.TrainState:
    """The newest checkpoint's state; else a new one, of an artefact's parameters.

    Args:
      make: makes a state.
      abstract: its shapes.
      checkpoints: of the run.
      artefact: the folder that it begins from; empty to begin anew.
      layout: of its arrays.

    Raises:
      UserError: a checkpoint or the artefact cannot be read, or does not fit.
    """
    if checkpoints.latest_step() is None:
        state = make()
        return _from_artefact(state, artefact, layout) if artefact else state
    state = checkpoints.restore(
        jax.tree.map(
            lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y),
            abstract,
            layout,
        )
    )
    print(f"going on from step {int(state.step)}")
    return state


def _from_artefact(
    state: step.TrainState, artefact: str, layout: step.TrainState
) -> step.TrainState:
    found = export.parameters(artefact)
    params, left = fitted(state.params, jax.device_get(found))
    every = len(jax.tree.leaves(params))
    require(
        len(left) < every,
        f"none of the parameters of {artefact} is of this network's shape; give init "
        "an artefact of a like network, or ''.",
    )
    new = f"; new: {', '.join(left[:NAMED])}" if left else ""
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    print(f"begun from {artefact}: {every - len(left)} of {every} arrays{new}{more}")
    params = jax.tree.map(
        lambda x, y: x if isinstance(x, jax.Array) else parallel.put(x, y),
        params,
        layout.params,
    )
    return state._replace(
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        maker=jax.tree.map(jnp.copy, params) if state.maker else state.maker,
    )


def fitted(params: PyTree, others: PyTree) -> tuple[PyTree, list[str]]:
    """`params` with all arrays that `others` have too, by name and shape.

    Returns:
      The tree, and the names of the arrays that stayed what they were.
    """
    known = {
        _name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(others)
    }
    left = []

    def chosen(path: tuple, leaf):
        other = known.get(_name(path))
        if other is None or other.shape != leaf.shape:
            left.append(_name(path))
            return leaf
        return other.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(chosen, params), left


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def described(artefact: str) -> str:
    """An artefact that a run begins from, in words; empty where there is none.

    Raises:
      UserError: it is no artefact.
    """
    if not artefact:
        return ""
    found, path = export.describe(artefact), Path(artefact).absolute()
    return (
        f"{path.parent.name}/{path.name}, step {found['step']}, parameters "
        f"{found['sha256']['params'][:16]}"
    )


def carry_on(workdir: Path, config: ConfigDict, checkpoints: Checkpoints) -> None:
    """Goes back to before a run's rate began to fall, where its steps have changed.

    Until then a run of any number of steps is the same run.

    Raises:
      UserError: no checkpoint is as early as that.
    """
    before = run_folder.steps(workdir)
    latest = checkpoints.latest_step()
    if latest is None or before is None or before == config.steps:
        return
    last = min(before, config.steps) - config.optimizer.cooldown_steps
    if latest <= last:
        return
    early = [number for number in checkpoints.steps() if number <= last]
    if not early:
        raise UserError(
            f"steps was {before} and is {config.steps}, but the rate would have to "
            f"fall from step {last} on, and the checkpoints in {workdir} are all later "
            f"(the first of step {min(checkpoints.steps())}); set steps to at least "
            f"{min(checkpoints.steps()) + config.optimizer.cooldown_steps}, or back."
        )
    print(
        f"steps was {before} and is {config.steps}: back to step {max(early)}, before "
        "the rate fell"
    )
    checkpoints.forget_after(last)
