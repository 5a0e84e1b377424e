"""The inference artefact: averaged parameters and the config they belong to."""

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from eotjax import build, checkpoint, images, parallel
from eotjax.checks import Shape, require
from eotjax.errors import UserError
from eotjax.metrics import Progress

FORMAT = 1


class Translator:
    """Translates source images (or vectors) to the target domain.

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

    def __call__(
        self,
        source: np.ndarray,
        *,
        seed: int = 0,
        num_samples: int = 1,
        progress: bool = False,
    ) -> np.ndarray:
        """Draws translations; each depends on its image, the seed and its number only.

        Args:
          source: [n, *shape], uint8 or float32 (images in [-1, 1]).
          seed: another one gives other translations.
          num_samples: translations of each image.
          progress: print how far it is.

        Returns:
          The dtype of `source`: [n, *shape], or [num_samples, n, *shape] where
          num_samples > 1.

        Raises:
          UserError: `source` has another shape or dtype.
        """
        source = np.asarray(source)
        if source.shape[1:] != self.shape or source.ndim != len(self.shape) + 1:
            raise UserError(
                f"source has shape {source.shape}; this translator takes "
                f"[n, {', '.join(map(str, self.shape))}]."
            )
        if source.dtype not in (np.uint8, np.float32):
            raise UserError(
                f"source is {source.dtype}; give uint8, or float32 (images in [-1, 1])."
            )
        is_uint8 = source.dtype == np.uint8
        x = images.to_float(source) if is_uint8 else source
        digests = np.array([zlib.crc32(image.tobytes()) for image in x], np.uint32)
        x, digests = (np.concatenate([a] * num_samples) for a in (x, digests))
        index = np.repeat(np.arange(num_samples, dtype=np.uint32), len(source))

        size = self._chunk(len(x))
        report = Progress("translating", len(x), "images") if progress else None
        results = [np.zeros((0, *self.shape), np.float32)]
        for start in range(0, len(x), size):
            rows = np.arange(start, start + size) % len(x)  # the last chunk is filled
            y = self._sample(
                self._params, jnp.uint32(seed), digests[rows], index[rows], x[rows]
            )
            results.append(np.asarray(y)[: len(x) - start])
            if report is not None:
                report.update(len(results[-1]))
        target = np.concatenate(results)
        target = images.to_uint8(target) if is_uint8 else target
        return target if num_samples == 1 else target.reshape(-1, *source.shape)

    def _chunk(self, count: int) -> int:
        """Images at once: about as many as needed, of few values, for each compiles."""
        size = jax.device_count()
        while size < min(count, self.config.sampling.batch_size):
            size *= 2
        return min(size, self.config.sampling.batch_size)


def save(path: str | Path, *, config: ConfigDict, shape: Shape, step: int, params):
    """Writes the artefact: config.json and the parameters (orbax)."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    checkpoint.save_tree(path / "params", params)
    if not parallel.is_leader():
        return
    description = {
        "format": FORMAT,
        "shape": list(shape),
        "step": step,
        "config": config.to_dict(),
    }
    (path / "config.json").write_text(json.dumps(description, indent=2) + "\n")


def load(path: str | Path, /, **sampling) -> Translator:
    """Loads an artefact.

    Args:
      path: the folder that `save` wrote, such as workdir/export.
      **sampling: other values for the config's sampling keys (solver, steps, path,
        batch_size).

    Raises:
      UserError: nothing, or nothing readable, is there.
    """
    path = Path(path)
    try:
        description = json.loads((path / "config.json").read_text())
        config = ConfigDict(description["config"])
        shape, version = tuple(description["shape"]), description["format"]
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
    for name, value in sampling.items():
        if name not in config.sampling:
            raise UserError(
                f"sampling has no {name!r}; it has {', '.join(config.sampling)}."
            )
        config.sampling[name] = value
    for name in ("steps", "batch_size"):
        count = config.sampling[name]
        require(count > 0, f"sampling.{name} is {count}; it must be at least 1.")
    mesh = parallel.make_mesh()
    devices = mesh.size
    config.sampling.batch_size = -(-config.sampling.batch_size // devices) * devices

    net = build.network(config, shape)
    inputs = build.inputs(build.estimator(config, shape), shape)
    abstract = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    params = checkpoint.load_tree(path / "params", abstract)
    params = jax.device_put(params, parallel.replicated(mesh))
    return Translator(config, shape, params, build.sampling(config, shape, mesh))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command-line arguments that `load_named` reads."""
    parser.add_argument("--export", required=True, help="the folder of an artefact")
    parser.add_argument(
        "--solver", help="instead of the config's: ancestral, ddim, heun (bridge)"
    )
    parser.add_argument("--steps", type=int, help="of the solver")
    parser.add_argument(
        "--path",
        action=argparse.BooleanOptionalAction,
        help="cdiffe, cmde: let the noised source follow one path",
    )


def load_named(arguments: argparse.Namespace) -> Translator:
    """Loads the artefact that the command line names, with its sampling options."""
    given = {name: getattr(arguments, name) for name in ("solver", "steps", "path")}
    chosen = {name: value for name, value in given.items() if value is not None}
    return load(arguments.export, **chosen)
