"""The inference artefact: averaged parameters and the config they belong to."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from eotjax import build, checkpoint, images, parallel, stablehlo
from eotjax.checks import Shape, require
from eotjax.errors import UserError
from eotjax.translator import Translator, with_sampling

FORMAT = 2
CONTENTS = ("shape", "step", "license", "plan", "sha256", "config")


def save(
    path: str | Path,
    *,
    config: ConfigDict,
    shape: Shape,
    step: int,
    params: PyTree,
    plan: Mapping[str, float] | None = None,
    examples: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes config.json, params/ (orbax), translate.stablehlo and examples/.

    Args:
      path: of its folder.
      config: of the run.
      shape: of one image or vector.
      step: that the parameters are from.
      params: the averaged ones.
      plan: what the run's plans were like, by name.
      examples: some sources of each direction, uint8 [n, *shape].
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    # Until it is written anew the artefact is none.
    (path / "config.json").unlink(missing_ok=True)
    checkpoint.save_tree(path / "params", params)
    if not parallel.is_leader():
        return
    params = jax.device_get(params)
    program = stablehlo.serialize(config, shape, params)
    (path / stablehlo.NAME).write_bytes(program)
    for direction, sources in (examples or {}).items():
        folder = path / "examples" / direction
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(sources):
            images.write(folder / f"{number:02d}.png", image)
    description = {
        "format": FORMAT,
        "shape": list(shape),
        "step": step,
        "license": config.license,
        "plan": dict(plan or {}),
        "sha256": {
            "params": _digest(params),
            stablehlo.NAME: hashlib.sha256(program).hexdigest(),
        },
        "config": config.to_dict(),
    }
    (path / "config.json").write_text(json.dumps(description, indent=2) + "\n")


def _digest(params: PyTree) -> str:
    """The SHA-256 of all parameters, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        said = f"{jax.tree_util.keystr(name)} {array.dtype} {array.shape}"
        digest.update(said.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check(path: Path, name: str, digest: str, expected: str) -> None:
    require(
        digest == expected,
        f"{path / name} is damaged (its SHA-256 is not the one in config.json); copy "
        "the whole folder again.",
    )


def describe(path: str | Path) -> dict:
    """The artefact's config.json: its format and CONTENTS.

    Raises:
      UserError: it is none, or of another format.
    """
    path = Path(path)
    try:
        description = json.loads((path / "config.json").read_text())
        version = description["format"]
        if version == FORMAT:
            missing = set(CONTENTS) - set(description)
            if missing:
                raise KeyError(*missing)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} is no eotjax export ({error}); give the folder `export` of a "
            "workdir whose training has ended."
        ) from error
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}, this eotjax reads {FORMAT}; use the version "
            "that wrote it."
        )
    return description


def load(path: str | Path, /, **sampling) -> Translator:
    """Loads an artefact.

    Args:
      path: the folder that `save` wrote, such as workdir/export.
      **sampling: other values for the config's sampling keys (solver, steps, guidance,
        path, batch_size).

    Raises:
      UserError: nothing, or nothing readable, is there, or a value does not fit.
    """
    path = Path(path)
    description = describe(path)
    shape = tuple(description["shape"])
    config = with_sampling(ConfigDict(description["config"]), shape, sampling)
    expected, program = description["sha256"], path / stablehlo.NAME
    if program.exists():  # it may be left out: nothing here needs it
        digest = hashlib.sha256(program.read_bytes()).hexdigest()
        _check(path, stablehlo.NAME, digest, expected[stablehlo.NAME])
    mesh = parallel.make_mesh()
    net = build.network(config, shape)
    inputs = build.inputs(build.estimator(config, shape), shape)
    abstract = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    params = checkpoint.load_tree(path / "params", abstract)
    _check(path, "params", _digest(params), expected["params"])
    params = parallel.put(params, parallel.replicated(mesh))
    return Translator(config, shape, params, build.sampling(config, shape, mesh))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command-line arguments that `load_named` reads."""
    parser.add_argument("--export", required=True, help="the folder of an artefact")
    parser.add_argument(
        "--solver",
        help="instead of the config's: ancestral, ddim; not for cdiffe and cmde: heun, "
        "dpmpp_2m, dpmpp_2m_sde",
    )
    parser.add_argument("--steps", type=int, help="of the solver")
    parser.add_argument(
        "--guidance", type=float, help="weight of the source, where trained without it"
    )
    parser.add_argument(
        "--path",
        action=argparse.BooleanOptionalAction,
        help="cdiffe, cmde: let the noised source follow one path",
    )


def load_named(arguments: argparse.Namespace) -> Translator:
    """Loads the artefact that the command line names, with its sampling options."""
    names = ("solver", "steps", "guidance", "path")
    given = {name: getattr(arguments, name) for name in names}
    chosen = {name: value for name, value in given.items() if value is not None}
    return load(arguments.export, **chosen)
