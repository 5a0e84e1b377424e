"""Parameters in use: source images (or vectors) to translations."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from eotjax import parallel
from eotjax.artefact import stablehlo
from eotjax.build import checks, wiring
from eotjax.build.checks import Shape, factor_of
from eotjax.data import domains, images
from eotjax.errors import UserError, require
from eotjax.progress import Progress

DIRECTIONS = ("forward", "backward")


class Translator:
    """Translates source images (or vectors) to the target domain, or back.

    Attributes:
      config: of the run that trained it, with the sampling that is in use.
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
        return tuple(wiring.estimator(self.config, self.shape).solvers())

    @property
    def guidable(self) -> bool:
        """Whether its guidance may be other than 1."""
        return checks.guidable(self.config)

    @property
    def multiple(self) -> int:
        """Images of any size have heights and widths that are multiples of this."""
        c = self.config
        halvings = len(c.model.multipliers) - 1
        return factor_of(c) * c.model.patch * 2**halvings

    def using(self, **sampling) -> "Translator":
        """The same parameters with other values of the config's sampling keys.

        Raises:
          UserError: there is no such key, or its value does not fit.
        """
        config = with_sampling(self.config, sampling)
        sample = wiring.sampling(config, self.shape, parallel.make_mesh())
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
          UserError: `source` has another shape, dtype or range, the direction was not
            trained, or `seed` or `num_samples` is out of range.
        """
        if direction not in self.directions:
            raise UserError(
                f"direction is {direction!r}, but this translator was trained for "
                f"{' and '.join(self.directions)} only; train with "
                "estimator.direction = 'both' for forward and backward."
            )
        require(
            num_samples >= 1, f"num_samples is {num_samples}; it must be at least 1."
        )
        require(0 <= seed < 2**32, f"seed is {seed}; it must be in 0 to 4294967295.")
        source = np.asarray(source)
        x = self._checked(source, any_size)
        x = np.concatenate([x] * num_samples)
        index = np.repeat(np.arange(num_samples, dtype=np.uint32), len(source))
        way = np.full(len(x), DIRECTIONS.index(direction))

        size = self._chunk(len(x), x.shape[1:])
        report = Progress("translating", len(x), "images") if progress else None
        results = [np.zeros((0, *x.shape[1:]), np.float32)]
        for rows, new in domains.filled(len(x), size):
            y = self._sample(
                self._params, jnp.uint32(seed), index[rows], way[rows], x[rows]
            )
            results.append(np.asarray(y)[:new])
            if report is not None:
                report.update(new)
        target = np.concatenate(results)
        target = images.to_uint8(target) if source.dtype == np.uint8 else target
        return (
            target if num_samples == 1 else target.reshape(num_samples, *source.shape)
        )

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


def with_sampling(config: ConfigDict, sampling: Mapping) -> ConfigDict:
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
        try:
            config.sampling[name] = value
        except TypeError as error:  # of ml_collections
            kind = type(config.sampling[name]).__name__
            raise UserError(
                f"sampling.{name} is {value!r}; it must be of type {kind}."
            ) from error
    for name in ("steps", "batch_size"):
        count = config.sampling[name]
        require(count > 0, f"sampling.{name} is {count}; it must be at least 1.")
    devices = jax.device_count()
    config.sampling.batch_size = -(-config.sampling.batch_size // devices) * devices
    checks.check_numbers({f"sampling.{k}": v for k, v in config.sampling.items()})
    checks.check_guidance(config)
    wiring.check_names(config)
    return config
