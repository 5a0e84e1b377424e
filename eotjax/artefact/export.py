"""The inference artefact: averaged parameters and the config they belong to.

A run that ends writes its own; python -m eotjax.export --workdir=RUN writes that of the
newest checkpoint of one that was stopped, or still goes on.
"""

import argparse
import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from eotjax import arrays, atomic, parallel, remote
from eotjax.artefact import stablehlo
from eotjax.artefact.translator import Translator, with_sampling
from eotjax.build import wiring
from eotjax.build.checks import Shape
from eotjax.data import images
from eotjax.errors import UserError, reason, require
from eotjax.networks import latents
from eotjax.training import checkpoint

FORMAT = 6  # of what earlier versions wrote nothing is read
SPACE = "autoencoder.npz"
MEASURED = ("evaluation.json", "translations*.png", "ranked*.png", "README.md")
CONTENTS = ("shape", "step", "license", "plan", "sha256", "config")


def measured(folder: Path) -> list[Path]:
    """The files in an artefact's folder that its evaluation wrote."""
    return [path for pattern in MEASURED for path in folder.glob(pattern)]


def save(
    path: str | Path,
    *,
    config: ConfigDict,
    shape: Shape,
    step: int,
    params: PyTree,
    plan: Mapping[str, float] | None = None,
    examples: Mapping[str, np.ndarray] | None = None,
    begun: str = "",
    fingerprints: tuple[str, str] = ("", ""),
) -> None:
    """Writes config.json, params/ (orbax), translate.stablehlo and examples/.

    In latents also autoencoder.npz: an artefact needs nothing beside it.

    Args:
      path: of its folder.
      config: of the run.
      shape: of one image or vector.
      step: that the parameters are from.
      params: the averaged ones, or in latents a latents.Model of them.
      plan: what the run's plans were like, by name.
      examples: some sources of each direction, uint8 [n, *shape].
      begun: the artefact that the run began from, in words; empty for none.
      fingerprints: of the training sets, as DataSet.fingerprints.
    """
    path = Path(path)
    _begin(path)
    network = params.network if isinstance(params, latents.Model) else params
    checkpoint.save_tree(path / "params", network)
    if not parallel.is_leader():
        return
    params, network = jax.device_get((params, network))
    program = stablehlo.serialize(config, shape, params)
    (path / stablehlo.NAME).write_bytes(program)
    sums = {
        "params": arrays.digest(network),
        stablehlo.NAME: _sha256(path / stablehlo.NAME),
    }
    if isinstance(params, latents.Model):
        latents.save(path / SPACE, params.space)
        sums[SPACE] = _sha256(path / SPACE)
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
        "fingerprints": fingerprints,
        "sha256": sums,
        "config": config.to_dict(),
    }
    if begun:
        description["begun"] = begun
    if isinstance(params, latents.Model):
        c = config.latent
        description["autoencoder"] = {"weights": c.weights, "license": c.license}
    atomic.write_text(path / "config.json", json.dumps(description, indent=2) + "\n")


def check_place(path: Path) -> None:
    """Raises UserError where a folder holds other things than an artefact."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        if "format" in json.loads((path / "config.json").read_text()):
            return
    parts = ("params", "examples", stablehlo.NAME, SPACE)  # of one that was cut off
    others = [x.name for x in path.glob("[!.]*") if not x.name.startswith(parts)]
    require(
        not others,
        f"{path} holds {', '.join(sorted(others)[:3])} and no artefact; give an empty "
        "or a new folder.",
    )


def _begin(path: Path) -> None:
    """Until it is written anew it is no artefact; what was measured was another's."""
    path.mkdir(parents=True, exist_ok=True)
    for stale in (path / "config.json", *measured(path)):
        stale.unlink(missing_ok=True)


def copy(artefact: Path, path: Path) -> None:
    """Writes the same artefact, less what was measured of it, to another folder."""
    if parallel.is_leader():
        _begin(path)
        shutil.rmtree(path / "params", ignore_errors=True)
        apart = {artefact / "config.json", *measured(artefact)}
        for file in set(artefact.rglob("*")) - apart:
            if file.is_file():
                place = path / file.relative_to(artefact)
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    shutil.copyfile(file, place)
                except OSError as error:
                    error.filename = str(place)  # it is there that room is wanted
                    raise
        described = (artefact / "config.json").read_text()
        atomic.write_text(path / "config.json", described)
    parallel.together(f"{path} is copied")  # none reads what was there before


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}); copy the whole folder again."
        ) from error


def _check(path: Path, name: str, digest: str, expected: Mapping[str, str]) -> None:
    require(
        digest == expected.get(name),
        f"{path / name} is damaged (its SHA-256 is not the one in config.json); copy "
        "the whole folder again.",
    )


def describe(path: str | Path) -> dict:
    """The artefact's config.json: its format and CONTENTS.

    Raises:
      UserError: it is none, or of another format.
    """
    path = remote.fetched(path)
    try:
        description = json.loads((path / "config.json").read_text())
        version = description["format"]
        if version == FORMAT:
            missing = set(CONTENTS) - set(description)
            if missing:
                raise KeyError(*missing)
    except Exception as error:  # what is damaged raises almost anything
        lacks = f"its config.json has no {error}"
        what = lacks if isinstance(error, KeyError) else reason(error)
        raise UserError(
            f"{path} is no eotjax export ({what}); give the folder `export` of a "
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
      **sampling: other values for the config's sampling keys (solver, steps,
        guidance, temperature, restart, path, batch_size).

    Raises:
      UserError: nothing, or nothing readable, is there, or a value does not fit.
    """
    path = remote.fetched(path)
    config, shape, abstract, expected = _described(path)
    if sampling:
        config = with_sampling(config, sampling)
    if (path / stablehlo.NAME).exists():  # it may be left out: nothing here needs it
        _check(path, stablehlo.NAME, _sha256(path / stablehlo.NAME), expected)
    params = _network(path, abstract, expected)
    if config.latent.weights:
        _check(path, SPACE, _sha256(path / SPACE), expected)
        params = latents.Model(params, latents.restore(path / SPACE))
    mesh = parallel.make_mesh()
    params = parallel.put(params, parallel.replicated(mesh))
    return Translator(config, shape, params, wiring.sampling(config, shape, mesh))


def parameters(path: str | Path) -> PyTree:
    """An artefact's averaged parameters, of its network alone.

    Raises:
      UserError: nothing, or nothing readable, is there.
    """
    path = remote.fetched(path)
    return _network(path, *_described(path)[2:])


def _network(path: Path, abstract: PyTree, expected: Mapping[str, str]) -> PyTree:
    params = checkpoint.load_tree(path / "params", abstract)
    _check(path, "params", arrays.digest(params), expected)
    return params


def _described(path: Path) -> tuple[ConfigDict, Shape, PyTree, Mapping[str, str]]:
    """What config.json comes to; the last are the abstract parameters and SHA-256 sums.

    Raises:
      UserError: it describes nothing that could be.
    """
    description = describe(path)
    parallel.check_devices()
    try:
        shape = tuple(map(int, description["shape"]))
        config = with_sampling(ConfigDict(description["config"]), {})
        net, inputs = wiring.network(config, shape), wiring.inputs(config, shape)
        wiring.sampling(config, shape, parallel.make_mesh())
        abstract = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
        return config, shape, abstract, dict(description["sha256"])
    except UserError:
        raise
    except Exception as error:  # what is damaged raises almost anything
        raise UserError(
            f"{path / 'config.json'} is damaged ({reason(error)}); copy the whole "
            "folder again."
        ) from error


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
        "--batch_size", type=int, help="images at once: fewer need less memory"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        help="weight of the source, where trained without it; of the direction, where "
        "a bridge was trained in both",
    )
    parser.add_argument(
        "--temperature", type=float, help="bridge: of the sampler's noise, 0 to 1"
    )
    parser.add_argument(
        "--restart", type=float, help="bridge: a time to go back to once, from the end"
    )
    parser.add_argument(
        "--path",
        action=argparse.BooleanOptionalAction,
        help="cdiffe, cmde: let the noised source follow one path",
    )


def load_named(arguments: argparse.Namespace) -> Translator:
    """Loads the artefact that the command line names, with its sampling options."""
    names = ("solver", "steps", "batch_size", "guidance", "temperature", "restart")
    given = {name: getattr(arguments, name) for name in (*names, "path")}
    chosen = {name: value for name, value in given.items() if value is not None}
    return load(arguments.export, **chosen)
