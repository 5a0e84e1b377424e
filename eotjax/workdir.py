"""A run's folder belongs to one config."""

import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from eotjax import parallel
from eotjax.errors import UserError

# A run may go on with other values of these: they do not touch its course.
FREE_KEYS = ("log_every", "sample_every", "tensorboard", "sampling", "checkpoint")


def claim(workdir: Path, config: ConfigDict) -> None:
    """Writes the config into the workdir; refuses one of another config.

    Raises:
      UserError: names the keys that differ.
    """
    new = json.loads(json.dumps(config.to_dict()))
    path = workdir / "config.json"
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} is damaged ({error}); choose a new --workdir."
            ) from error
        was, now = (
            {k: v for k, v in flatten(d) if k.split(".")[0] not in FREE_KEYS}
            for d in (old, new)
        )
        differing = [
            f"{key} was {was.get(key)!r} and is {now.get(key)!r}"
            for key in sorted(was.keys() | now.keys())
            if was.get(key) != now.get(key)
        ]
        if differing:
            raise UserError(
                f"{workdir} belongs to a run of another config ({'; '.join(differing)})"
                "; choose a new --workdir, or set these keys back."
            )
    if parallel.is_leader():
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(new, indent=2) + "\n")


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested dicts as ("a.b", value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
