"""Saving and restoring a run (orbax-checkpoint; its v1 interface is used only here)."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from eotjax import parallel
from eotjax.errors import UserError

SUMS = "SHA256SUMS"  # as sha256sum -c reads it


@contextlib.contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """Whatever orbax raises (it has many kinds), as one sentence."""
    try:
        yield
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"cannot {what} ({lines[0]}); {remedy}") from error


class Checkpoints:
    """The checkpoints of one run: written atomically, in the background.

    A save that failed raises UserError at the next call.
    """

    def __init__(self, folder: str | Path, *, keep: int):
        """Args: folder: made on first use. keep: how many of the latest stay."""
        self._folder = Path(folder).absolute()
        self._saving = (
            f"save a checkpoint in {self._folder}",
            "mend that (is the disk full?) and give the same command again: it goes on "
            "from the last whole checkpoint.",
        )
        policies = ocp.training
        with _told(*self._saving):
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=policies.preservation_policies.LatestN(keep),
                save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(
                    1
                ),
            )

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    def save(self, step: int, state: PyTree) -> None:
        """Starts saving; returns once `state` may be overwritten."""
        with _told(*self._saving):
            self._checkpointer.save_async(step, state)

    def restore(self, abstract_state: PyTree) -> PyTree:
        """The newest state, laid out as the shardings of `abstract_state` say."""
        newest = self._folder / str(self.latest_step())
        remedy = f"remove {newest} to go on from the checkpoint before it."
        with _told(f"restore {newest}", remedy):
            return self._checkpointer.load(None, abstract_state)

    def close(self) -> None:
        """Waits until everything is on disk."""
        with _told(*self._saving):
            self._checkpointer.close()


def save_tree(path: str | Path, tree: PyTree) -> None:
    """Writes nested dicts of arrays and SHA256SUMS, replacing what is there."""
    path = Path(path).absolute()
    with _told(f"write {path}", "mend that (is the disk full?) and try again."):
        ocp.save(path, tree, overwrite=True)
        if parallel.is_leader():
            lines = (f"{digest}  {name}\n" for name, digest in _digests(path).items())
            (path / SUMS).write_text("".join(lines))


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file below a folder, but of SHA256SUMS."""
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _check_files(folder: Path) -> None:
    """Raises ValueError where a file of `save_tree` is not as it was written."""
    lines = (folder / SUMS).read_text().splitlines()
    now = _digests(folder)
    for digest, name in (line.split("  ", 1) for line in lines):
        if name not in now:
            raise ValueError(f"{name} is missing")
        if now[name] != digest:
            raise ValueError(f"{name} is damaged")


def load_tree(path: str | Path, abstract: PyTree) -> PyTree:
    """Reads nested dicts of arrays that `save_tree` wrote, onto the default device.

    Raises:
      UserError: there is none, or its arrays are not those of `abstract`.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract
    )
    remedy = (
        "the folder must be one that eotjax wrote, whole, with its own config.json."
    )
    path = Path(path).absolute()
    with _told(f"restore the parameters in {path}", remedy):
        # Checked first: where one read fails, orbax abandons the others noisily.
        _check_files(path)
        stored = jax.tree.map(lambda x: tuple(x.shape), ocp.metadata(path).metadata)
        if stored != jax.tree.map(lambda x: x.shape, abstract):
            raise ValueError("they are those of another network")
        return ocp.load(path, abstract)
