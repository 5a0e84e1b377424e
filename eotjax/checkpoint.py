"""Saving and restoring a run (orbax-checkpoint; its v1 interface is used only here)."""

from pathlib import Path

import jax
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from eotjax.errors import UserError


class Checkpoints:
    """The checkpoints of one run: written atomically, in the background."""

    def __init__(self, folder: str | Path, *, keep: int):
        """Args: folder: made on first use. keep: how many of the latest stay."""
        self._checkpointer = ocp.training.Checkpointer(
            Path(folder).absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(
                1
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    def save(self, step: int, state: PyTree) -> None:
        """Starts saving; returns once `state` may be overwritten."""
        self._checkpointer.save_async(step, state)

    def restore(self, abstract_state: PyTree) -> PyTree:
        """The newest state, laid out as the shardings of `abstract_state` say."""
        return self._checkpointer.load(None, abstract_state)

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._checkpointer.close()


def save_tree(path: str | Path, tree: PyTree) -> None:
    """Writes one pytree of arrays, replacing what is there."""
    ocp.save(Path(path).absolute(), tree, overwrite=True)


def load_tree(path: str | Path, abstract: PyTree) -> PyTree:
    """Reads a pytree that `save_tree` wrote, onto the default device.

    Raises:
      UserError: there is none, or its arrays are not those of `abstract`.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract
    )
    try:
        return ocp.load(Path(path).absolute(), abstract)
    except Exception as error:  # orbax raises many kinds
        raise UserError(
            f"cannot restore the parameters in {path} ({str(error).splitlines()[0]}); "
            "the folder must be one that eotjax wrote, whole, with its own config.json."
        ) from error
