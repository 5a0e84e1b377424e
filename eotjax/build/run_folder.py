"""A run's folder belongs to one config."""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from eotjax import atomic, parallel
from eotjax.diffusion.bridge import PairMoments
from eotjax.errors import UserError, require

# A run may go on with other values of these: they do not touch its course.
FREE_KEYS = (
    "log_every",
    "sample_every",
    "tensorboard",
    "profile",
    "license",
    "sampling.",
    "checkpoint.",
    "model.sharded",
    "microbatch",
    "data.path",
    "data.device_gib",
    "judge.",
    "latent.cache",
    "latent.license",
    "coupling.features",  # what is in it may not: check_data
    "coupling.dense_gib",
)
OWN_PAIRS = "own_pairs"  # within it, what a bridge made to learn from
# What the config of a run has at least.
PARTS = {"checkpoint", "coupling", "data", "estimator", "latent", "sampling", "steps"}


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a folder for this run until it ends or dies; makes it, if it can.

    The folder itself is locked, so that a dead run leaves no lock behind. A folder that
    nothing was written to is removed again.

    Raises:
      UserError: another run is at work there, or there can be no such folder.
    """
    if not parallel.is_leader():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.check_writable(folder)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be a run's folder ({error.filename}: {error.strerror}); "
            "choose another --workdir."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(
            f"another process is training in {folder}; wait for it, or choose another "
            "--workdir."
        ) from None
    except OSError:
        pass  # not every file system has locks
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # where it is empty
        os.close(lock)


def changes(earlier: Mapping, config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """{key: (was, is)} where a config differs from an earlier one, read from JSON."""
    was, now = (
        flatten_dict(x, sep=".") for x in (earlier, json.loads(config.to_json()))
    )
    return {
        key: (was.get(key), now.get(key))
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    }


def check(folder: Path, config: ConfigDict) -> None:
    """Refuses a folder that another config has claimed, unless it never trained.

    `steps` may differ where only a cooldown depends on them, and `latent.weights` may
    lie elsewhere.

    Raises:
      UserError: names the keys that differ.
    """
    free: tuple[str, ...] = FREE_KEYS
    if config.optimizer.cooldown_steps:
        free += ("steps",)
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no keys")
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); choose a new --workdir."
        ) from error
    differing = [
        f"{key} was {was!r} and is {now!r}"
        for key, (was, now) in changes(found, config).items()
        if not key.startswith(free) and not (key == "latent.weights" and was and now)
    ]
    if differing and not has_trained(folder):
        _give_up(folder)
    elif differing:
        raise UserError(
            f"{folder} belongs to a run of another config ({'; '.join(differing)}); "
            "choose a new --workdir, or set these keys back."
        )


def has_trained(folder: Path) -> bool:
    """Whether a run has saved more than its beginning, step 0, or an artefact."""
    if any((folder / name).exists() for name in ("best", "export", "newest")):
        return True
    saved = (path.name for path in (folder / "checkpoints").glob("*"))
    return any(name.isdigit() and int(name) for name in saved)


def _give_up(folder: Path) -> None:
    """Removes the claim of a run that never trained, and its beginning."""
    parallel.together(f"all have read {folder}")
    if parallel.is_leader():
        for name in ("checkpoints", OWN_PAIRS):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("config.json", "plan.json"):
            (folder / name).unlink(missing_ok=True)
    parallel.together(f"{folder} is given up")


def config(folder: Path, *, data: str = "", latents: str = "") -> ConfigDict:
    """The config of the run that a folder belongs to.

    Args:
      folder: the run's.
      data: where its data.path is now; empty for where it was.
      latents: where its latent.weights are now.

    Raises:
      UserError: it belongs to none, or to one of another version.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text())
        missing = PARTS - set(found)
        if missing:
            raise ValueError(f"its config.json has no {min(missing)}")
        found["data"]["path"] = data or found["data"]["path"]
        found["latent"]["weights"] = latents or found["latent"]["weights"]
        return ConfigDict(found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder} is no folder of a run ({error}); give its --workdir."
        ) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command-line arguments that `elsewhere` reads."""
    parser.add_argument("--data_path", help="where the run's data.path is now")
    parser.add_argument("--latent_weights", help="where its latent.weights are now")


def elsewhere(arguments: argparse.Namespace) -> dict[str, str]:
    """What a command line says of where things are, for `config`."""
    return {
        "data": arguments.data_path or "",
        "latents": arguments.latent_weights or "",
    }


def steps(folder: Path) -> int | None:
    """The `steps` of the run that a folder belongs to; None where there is none."""
    return config(folder).steps if (folder / "config.json").exists() else None


class Measured(NamedTuple):
    """What a run found out about its plans, and goes on with wherever it is restarted.

    Attributes:
      epsilon: in units of the cost; None where no run has claimed the folder.
      moments: second moments of the pairs; None where nothing needs them.
      spectrum: of the noise, as text; empty where it is white.
      data: fingerprints of the training sets, the autoencoder and the features for the
        cost, as far as there are such; none where it was not written down.
      begun: the artefact that it began from, in words; empty where it began anew.
    """

    epsilon: float | None = None
    moments: PairMoments | None = None
    spectrum: str = ""
    data: tuple[str, ...] = ()
    begun: str = ""


def of(config: ConfigDict, data: tuple[str, ...], begun: str) -> Measured:
    """What a run's config, with all that was found, says; its data and beginning."""
    c = config.estimator
    moments = PairMoments(*c.moments) if c.moments else None
    return Measured(config.coupling.epsilon, moments, c.spectrum, data, begun)


def check_data(
    folder: Path, config: ConfigDict, known: Measured, data: tuple[str, ...]
) -> None:
    """Refuses to go on with another `Measured.data` than that of a `known` run.

    Raises:
      UserError: names what differs.
    """
    sets = (config.data.train_source, config.data.train_target)
    names = (*sets, "latent.weights", "coupling.features")
    for name, before, now in zip(names, known.data, data, strict=False):
        require(
            before == now,
            f"{name} is not what the run in {folder} began with (files were added, "
            "removed, renamed or changed): put that back, or choose a new --workdir.",
        )


def claim(folder: Path, config: ConfigDict, found: Measured) -> None:
    """Writes the config and what was found into the folder, which it makes."""
    if parallel.is_leader():
        folder.mkdir(parents=True, exist_ok=True)
        plan = {name: value for name, value in found._asdict().items() if value}
        atomic.write_text(folder / "plan.json", json.dumps(plan, indent=2) + "\n")
        atomic.write_text(folder / "config.json", config.to_json(indent=2) + "\n")


def measured(folder: Path) -> Measured:
    """What the run that the folder belongs to found; nothing where there is none."""
    path = folder / "plan.json"
    if not path.exists() or not (folder / "config.json").exists():
        return Measured()
    try:
        found = json.loads(path.read_text())
        moments = found.get("moments")
        return Measured(
            float(found["epsilon"]),
            PairMoments(*map(float, moments)) if moments else None,
            str(found.get("spectrum", "")),
            tuple(map(str, found.get("data", ()))),
            str(found.get("begun", "")),
        )
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it, and it is made again."
        ) from error
