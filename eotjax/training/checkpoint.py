"""Saving and restoring a run (orbax-checkpoint; its v1 interface is used only here).

It is imported where it is used: who imports eotjax need not wait for it.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from eotjax import atomic, parallel
from eotjax.errors import UserError, reason, require

SUMS = "SHA256SUMS"
# Devices that hold the same array share the writing of it, where each part is as large
# as this, in bytes: cutting up a small one takes longer than writing it.
WORTH_SHARING = 2**20


@contextlib.contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """Whatever orbax raises (it has many kinds), as one sentence."""
    try:
        yield
    except Exception as error:
        raise UserError(f"cannot {what} ({reason(error)}); {remedy}") from error


def _context() -> Any:
    """How arrays are written."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = WORTH_SHARING
    return context


class Checkpoints:
    """The checkpoints of one run: written atomically, in the background.

    A save that failed raises UserError at the next call. SHA256SUMS is added to each
    once it is whole, at the next call too.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int,
        always: int | None = None,
        own: bool = True,
    ):
        """Args: folder: made on first use.
        keep: how many of the latest stay.
        always: a step that stays too.
        own: else they are another's, perhaps, and damaged ones stay where they are.
        """
        from orbax.checkpoint import v1 as ocp

        self._folder, self._own = Path(folder).absolute(), own
        self._saving = (
            f"save a checkpoint in {self._folder}",
            "mend that (is the disk full?) and give the same command again: it goes on "
            "from the last whole checkpoint.",
        )
        self._unsummed: tuple[int, Any] | None = None  # a step, and its save
        policies = ocp.training
        kept = policies.preservation_policies
        with _told(*self._saving):
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=kept.AnyPreservationPolicy(
                    [kept.LatestN(keep), kept.CustomSteps([always] if always else [])]
                ),
                save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(
                    1
                ),
                context=_context(),
            )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, whole or being saved by this process."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    def steps(self) -> list[int]:
        """All checkpoints' steps, whole or being saved by this process, in order."""
        return sorted(int(found.step) for found in self._checkpointer.checkpoints)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of all later steps, the latest first."""
        for later in reversed([number for number in self.steps() if number > step]):
            with _told(*self._saving):
                self._checkpointer.delete(later)

    def save(self, step: int, state: PyTree) -> None:
        """Starts saving; returns once `state` may be overwritten."""
        with _told(*self._saving):
            self._add_sums()
            self._unsummed = step, self._checkpointer.save_async(step, state)

    def _add_sums(self) -> None:
        """Waits for the save that is under way, and adds its SHA256SUMS."""
        unsummed, self._unsummed = self._unsummed, None
        if unsummed is not None:
            step, response = unsummed
            response.result()  # which, unlike waiting alone, ends its thread
            _write_sums(self._folder / str(step))

    def restore(self, abstract_state: PyTree) -> PyTree:
        """The newest state that is whole, laid out as `abstract_state`'s shardings say.

        Newer ones that are damaged are set aside, beside the checkpoints' folder, where
        that is one's own.

        Raises:
          UserError: none is whole, or they are of another network.
        """
        failed: dict[Path, Exception] = {}
        for checkpoint in reversed(self._checkpointer.checkpoints):
            path, summed = self._folder / str(checkpoint.step), False
            try:
                summed = (path / SUMS).exists()  # else it was killed too early
                if summed:
                    _check_files(path)
                state = self._checkpointer.load(checkpoint.step, abstract_state)
            except Exception as error:
                failed[path] = error
                if summed and not isinstance(error, _Damaged):
                    break  # it is whole, and another network's: so are those before it
            else:
                self._set_aside(failed)
                return state
        if not failed:
            raise UserError(f"there is no checkpoint in {self._folder}.")
        newest, cause = next(iter(failed.items()))
        raise UserError(
            f"cannot restore {newest} ({reason(cause)}), nor any before it; remove "
            f"{self._folder} to begin anew."
        ) from cause

    def _set_aside(self, failed: dict[Path, Exception]) -> None:
        if not failed:
            return
        place, moved = self._folder.with_name(f"{self._folder.name}.damaged"), ""
        for path, error in failed.items():
            if self._own:
                moved = f"it is now in {place}, and "
                if parallel.is_leader():
                    place.mkdir(exist_ok=True)
                    shutil.rmtree(place / path.name, ignore_errors=True)
                    path.rename(place / path.name)
            print(
                f"checkpoint {path.name} is damaged ({reason(error)}): {moved}the one "
                "before it is used"
            )
        if self._own:
            parallel.together("damaged checkpoints are set aside")
            self._checkpointer.reload()

    def close(self) -> None:
        """Waits until everything is on disk."""
        with _told(*self._saving), contextlib.closing(self._checkpointer):
            self._add_sums()


class _Damaged(ValueError):
    """A file is not as it was written."""


def save_tree(path: str | Path, tree: PyTree) -> None:
    """Writes nested dicts of arrays and SHA256SUMS, replacing what is there."""
    from orbax.checkpoint import v1 as ocp

    path = Path(path).absolute()
    with _told(f"write {path}", "mend that (is the disk full?) and try again."):
        with _context():
            ocp.save(path, tree, overwrite=True)
        _write_sums(path)


def _write_sums(folder: Path) -> None:
    """Adds SHA256SUMS to a folder, as `sha256sum -c` reads it."""
    if parallel.is_leader():
        lines = (f"{digest}  {name}\n" for name, digest in _digests(folder).items())
        atomic.write_text(folder / SUMS, "".join(lines))


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file below a folder, but of SHA256SUMS."""
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _check_files(folder: Path) -> None:
    """Raises _Damaged where a file is not as SHA256SUMS says."""
    lines = (folder / SUMS).read_text().splitlines()
    now = _digests(folder)
    for digest, name in (line.split("  ", 1) for line in lines):
        if now.get(name) != digest:
            raise _Damaged(f"{name} is {'damaged' if name in now else 'missing'}")


def load_tree(path: str | Path, abstract: PyTree) -> PyTree:
    """Reads nested dicts of arrays that `save_tree` wrote, onto the default device.

    Raises:
      UserError: there is none, its arrays are not those of `abstract`, or they do not
        fit into memory.
    """
    from orbax.checkpoint import v1 as ocp

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract
    )
    remedy = (
        "the folder must be one that eotjax wrote, whole, with its own config.json."
    )
    path = Path(path).absolute()
    need = parallel.bytes_held(abstract, jax.tree.map(lambda x: x.sharding, abstract))
    have = parallel.memory(jax.local_devices()[0])
    require(
        need <= have,
        f"the parameters in {path} take {need / 2**30:.1f} GiB, and a device has "
        f"{have / 2**30:.1f}.",
    )
    with _told(f"restore the parameters in {path}", remedy):
        # Checked first: where one read fails, orbax abandons the others noisily.
        _check_files(path)
        stored = jax.tree.map(lambda x: tuple(x.shape), ocp.metadata(path).metadata)
        if stored != jax.tree.map(lambda x: x.shape, abstract):
            raise ValueError("they are those of another network")
        return ocp.load(path, abstract)
