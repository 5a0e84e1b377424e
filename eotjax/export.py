"""The inference artefact: averaged parameters and the config they belong to."""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from eotjax import build, checkpoint, images, parallel, stablehlo
from eotjax.checks import Shape, check_guidance, choose, require
from eotjax.errors import UserError
from eotjax.metrics import Progress

FORMAT = 2
CONTENTS = ("shape", "step", "license", "plan", "sha256", "config")
DIRECTIONS = ("forward", "backward")


class Translator:
    """Translates source images (or vectors) to the target domain, or back.

    Attributes:
      config: of the run that trained it.
      shape: (h, w, c) of an image or (d,) of a vector.
    """

    def __init__(
        self,
        config: ConfigDict,
        shape: Shape,
        params: PyTree,
        sample: Callable[..., Array],
    ):
        self.config, self.shape = config, shape
        self._params, self._sample = params, sample

    @property
    def directions(self) -> tuple[str, ...]:
        """Those that it was trained for: forward, and perhaps backward."""
        both = self.config.estimator.direction == "both"
        return DIRECTIONS if both else DIRECTIONS[:1]

    @property
    def solvers(self) -> tuple[str, ...]:
        """The solvers that its estimator has."""
        return tuple(build.estimator(self.config, self.shape).solvers)

    @property
    def multiple(self) -> int:
        """Images of any size have heights and widths that are multiples of this."""
        return 2 ** (len(self.config.model.multipliers) - 1)

    def using(self, **sampling) -> "Translator":
        """The same parameters with other values of the config's sampling keys.

        Raises:
          UserError: there is no such key, or its value does not fit.
        """
        config = with_sampling(self.config, self.shape, sampling)
        sample = build.sampling(config, self.shape, parallel.make_mesh())
        return Translator(config, self.shape, self._params, sample)

    def stablehlo(self) -> bytes:
        """Itself as a program that JAX alone can run: see `stablehlo.serialize`."""
        return stablehlo.serialize(
            self.config, self.shape, jax.device_get(self._params)
        )

    def __call__(
        self,
        source: np.ndarray,
        *,
        seed: int = 0,
        num_samples: int = 1,
        direction: str = "forward",
        any_size: bool = False,
        progress: bool = False,
    ) -> np.ndarray:
        """Draws translations; each depends on its image, the seed and its number only.

        Args:
          source: [n, *shape], uint8 or float32 (images in [-1, 1]).
          seed: another one gives other translations.
          num_samples: translations of each image.
          direction: forward, from source to target, or backward.
          any_size: take images of other sizes than the trained one; height and width
            must be multiples of `multiple`.
          progress: print how far it is.

        Returns:
          The dtype of `source`: [n, *shape], or [num_samples, n, *shape] where
          num_samples > 1.

        Raises:
          UserError: `source` has another shape, dtype or range, or the direction was
            not trained.
        """
        if direction not in self.directions:
            raise UserError(
                f"direction is {direction!r}, but this translator was trained for "
                f"{' and '.join(self.directions)} only; train with "
                "estimator.direction = 'both' for forward and backward."
            )
        x = self._checked(np.asarray(source), any_size)
        x = np.concatenate([x] * num_samples)
        index = np.repeat(np.arange(num_samples, dtype=np.uint32), len(source))
        way = np.full(len(x), DIRECTIONS.index(direction))

        size = self._chunk(len(x), x.shape[1:])
        report = Progress("translating", len(x), "images") if progress else None
        results = [np.zeros((0, *x.shape[1:]), np.float32)]
        for start in range(0, len(x), size):
            rows = np.arange(start, start + size) % len(x)  # the last chunk is filled
            y = self._sample(
                self._params, jnp.uint32(seed), index[rows], way[rows], x[rows]
            )
            results.append(np.asarray(y)[: len(x) - start])
            if report is not None:
                report.update(len(results[-1]))
        target = np.concatenate(results)
        target = images.to_uint8(target) if source.dtype == np.uint8 else target
        return target if num_samples == 1 else target.reshape(-1, *source.shape)

    def _checked(self, source: np.ndarray, any_size: bool) -> np.ndarray:
        """`source` as float32."""
        free = any_size and len(self.shape) == 3
        fits = source.shape[1:] == self.shape or (
            free
            and source.ndim == 4
            and source.shape[3] == self.shape[2]
            and min(source.shape[1:3]) > 0
            and not any(side % self.multiple for side in source.shape[1:3])
        )
        if not fits:
            wanted = ", ".join(map(str, self.shape))
            if free:
                wanted = f"h, w, {self.shape[2]}], h and w multiples of {self.multiple}"
            raise UserError(
                f"source has shape {source.shape}; this translator takes [n, {wanted}"
                + ("." if free else "].")
            )
        if source.dtype not in (np.uint8, np.float32):
            raise UserError(
                f"source is {source.dtype}; give uint8, or float32 (images in [-1, 1])."
            )
        if source.dtype == np.uint8:
            return images.to_float(source)
        if len(self.shape) == 3 and not (np.abs(source) <= 1.001).all():
            raise UserError(
                f"source reaches from {source.min():.4g} to {source.max():.4g}; give "
                "float32 images in [-1, 1], or uint8."
            )
        return source

    def _chunk(self, count: int, shape: Shape) -> int:
        """Images at once: about as many as needed, of few values, for each compiles."""
        devices = jax.device_count()
        share = np.prod(self.shape) / np.prod(shape)
        most = int(self.config.sampling.batch_size * share) // devices * devices
        size = devices
        while size < min(count, most):
            size *= 2
        return min(size, max(most, devices))


def with_sampling(config: ConfigDict, shape: Shape, sampling: Mapping) -> ConfigDict:
    """The config with other values of its sampling keys.

    Raises:
      UserError: there is no such key, or its value does not fit.
    """
    config = config.copy_and_resolve_references()
    for name, value in sampling.items():
        if name not in config.sampling:
            raise UserError(
                f"sampling has no {name!r}; it has {', '.join(config.sampling)}."
            )
        config.sampling[name] = value
    for name in ("steps", "batch_size"):
        count = config.sampling[name]
        require(count > 0, f"sampling.{name} is {count}; it must be at least 1.")
    devices = jax.device_count()
    config.sampling.batch_size = -(-config.sampling.batch_size // devices) * devices
    check_guidance(config)
    solvers = build.estimator(config, shape).solvers
    choose(solvers, config.sampling.solver, "sampling.solver")
    return config


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
    params = jax.device_put(params, parallel.replicated(mesh))
    return Translator(config, shape, params, build.sampling(config, shape, mesh))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command-line arguments that `load_named` reads."""
    parser.add_argument("--export", required=True, help="the folder of an artefact")
    parser.add_argument(
        "--solver",
        help="instead of the config's: ancestral, ddim; cde: dpmpp_2m, dpmpp_2m_sde, "
        "heun; bridge: heun",
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
