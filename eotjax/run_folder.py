"""A run's folder belongs to one config."""

import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from eotjax import parallel
from eotjax.errors import UserError

# A run may go on with other values of these: they do not touch its course.
FREE_KEYS = (
    "log_every",
    "sample_every",
    "tensorboard",
    "license",
    "sampling.",
    "checkpoint.",
    "data.path",
    "data.device_gib",
    "coupling.dense_gib",
)


def check(folder: Path, config: ConfigDict) -> None:
    """Refuses a folder that another config has claimed.

    Raises:
      UserError: names the keys that differ.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        was = dict(leaves(json.loads(path.read_text())))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is damaged ({error}); choose a new --workdir."
        ) from error
    now = dict(leaves(json.loads(config.to_json())))
    differing = [
        f"{key} was {was.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key) and not key.startswith(FREE_KEYS)
    ]
    if differing:
        raise UserError(
            f"{folder} belongs to a run of another config ({'; '.join(differing)}); "
            "choose a new --workdir, or set these keys back."
        )


def claim(folder: Path, config: ConfigDict, *, epsilon: float) -> None:
    """Writes the config and the plans' epsilon into the folder, which it makes."""
    if parallel.is_leader():
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("plan.json", {"epsilon": epsilon}),
            ("config.json", json.loads(config.to_json())),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def epsilon(folder: Path) -> float | None:
    """The plans' epsilon of the run that the folder belongs to, None if there is none.

    Kept, so that a run goes on with it wherever it is started again.
    """
    path = folder / "plan.json"
    if not path.exists() or not (folder / "config.json").exists():
        return None
    try:
        return float(json.loads(path.read_text())["epsilon"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it, and it is made again."
        ) from error


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested dicts as ("a.b", value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
