"""Refuses a config whose parts do not fit each other, before minutes are spent."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from eotjax.errors import UserError

Shape = tuple[int, ...]  # of one image (h, w, c) or vector (d,), as the network sees it


def choose(options: dict[str, Any], name: str, key: str) -> Any:
    """options[name], or a UserError that names the config's key and the options."""
    if name not in options:
        raise UserError(f"{key} is {name!r}; it must be one of {', '.join(options)}.")
    return options[name]


def check_config(config: ConfigDict, num_devices: int) -> None:
    """Raises UserError where the numbers of a config do not fit each other."""
    size, group = config.batch_size, config.coupling.group_size
    if size <= 0 or size % num_devices:
        raise UserError(
            f"batch_size {size} cannot be cut over {num_devices} devices; make it a "
            f"multiple of {num_devices}."
        )
    if group <= 0 or size % group:
        raise UserError(
            f"coupling.group_size {group} does not divide batch_size {size}; choose a "
            "group size that does."
        )
    if config.sampling.batch_size <= 0 or config.sampling.batch_size % num_devices:
        raise UserError(
            f"sampling.batch_size {config.sampling.batch_size} cannot be cut over "
            f"{num_devices} devices; make it a multiple of {num_devices}."
        )
    for key in ("steps", "log_every", "sample_every"):
        if config[key] <= 0:
            raise UserError(f"{key} is {config[key]}; it must be at least 1.")
    for key, low in (("every", 1), ("keep", 1)):
        if config.checkpoint[key] < low:
            raise UserError(f"checkpoint.{key} must be at least {low}.")
    if config.sampling.steps <= 0:
        raise UserError(f"sampling.steps is {config.sampling.steps}; take 1 or more.")
    if config.coupling.epsilon <= 0:
        raise UserError(
            f"coupling.epsilon is {config.coupling.epsilon}; it must be positive."
        )
    if not 0 <= config.estimator.rho <= 1:
        raise UserError(f"estimator.rho is {config.estimator.rho}; take 0 to 1.")
    if config.data.channels not in (1, 3):
        raise UserError(f"data.channels is {config.data.channels}; it must be 1 or 3.")
    if config.data.tint and config.data.channels != 1:
        raise UserError("data.tint colours grey images: set data.channels = 1.")


def check_shape(config: ConfigDict, shape: Shape) -> None:
    """Raises UserError where the UNet's levels do not fit the image."""
    if len(shape) == 1:
        return
    factor = 2 ** (len(config.model.multipliers) - 1)
    if shape[0] % factor or shape[1] % factor:
        raise UserError(
            f"images of {shape[0]}x{shape[1]} cannot be halved "
            f"{len(config.model.multipliers) - 1} times; make data.image_size a "
            f"multiple of {factor} or model.multipliers shorter."
        )
    heights = [shape[0] // 2**level for level in range(len(config.model.multipliers))]
    for height in config.model.attention:
        if height not in heights:
            raise UserError(
                f"model.attention names the height {height}; the UNet's levels have "
                f"{', '.join(map(str, heights))}: name some of these, or none: ()."
            )


def check_arrays(config: ConfigDict, array: np.ndarray) -> None:
    """Raises UserError where stored images are not what the config says."""
    size, channels = tuple(config.data.image_size), config.data.channels
    if array.ndim == 4 and array.shape[1:] != (*size, channels):
        h, w, c = array.shape[1:]
        raise UserError(
            f"{config.data.path or config.data.kind} holds images of {h}x{w}x{c}, the "
            f"config says {size[0]}x{size[1]}x{channels}: set data.image_size = "
            f"({h}, {w}) and data.channels = {c}."
        )
