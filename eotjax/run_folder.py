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
    "sampling.",
    "checkpoint.",
    "data.path",
    "data.device_gib",
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


def claim(folder: Path, config: ConfigDict) -> None:
    """Writes the config into the folder, which it makes where it is missing."""
    if parallel.is_leader():
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(json.loads(config.to_json()), indent=2)
        (folder / "config.json").write_text(text + "\n")


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested dicts as ("a.b", value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
