"""Refuses a config whose parts do not fit each other, before minutes are spent."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from eotjax import remote
from eotjax.errors import choose, require
from eotjax.networks import autoencoder
from eotjax.training import trace

MOST = 2**31 - 1  # of anything that is counted
TUPLES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "data.image_size": (int, "'(256, 256)'"),
    "model.multipliers": (int, "'(1, 2, 3)'"),
    "model.attention": (int, "'(8,)', or none: '()'"),
    "estimator.moments": ((int, float), "'(1.0, 1.0, 0.1)', or none: '()'"),
}
CHOICES = {  # of keys that nothing is built by
    "coupling.method": ("entropic", "whole", "independent"),
    "coupling.cost": ("pixels", "pooled", "pca", "features"),
    "coupling.relative": ("", "mean", "std"),
    "estimator.noise": ("white", "images"),
    "estimator.direction": ("forward", "both"),
}
Range = tuple[Callable[[float], bool], str]
COUNT: Range = (lambda x: x >= 1, "must be at least 1")
NOT_NEGATIVE: Range = (lambda x: x >= 0, "must not be negative")
POSITIVE: Range = (lambda x: x > 0, "must be positive")
SHARE: Range = (lambda x: 0 <= x <= 1, "must be in 0 to 1")
PART: Range = (lambda x: 0 <= x < 1, "must be in 0 to 1, 1 excluded")
RANGES: dict[str, Range] = {
    "seed": NOT_NEGATIVE,
    "steps": COUNT,
    "log_every": COUNT,
    "sample_every": COUNT,
    "data.crop_margin": NOT_NEGATIVE,
    "data.validation": (
        PART[0],
        "is the share of the training images that are held out: in 0 to 1, 1 excluded",
    ),
    "data.device_gib": NOT_NEGATIVE,
    "known.dim": COUNT,
    "known.count": COUNT,
    "known.test_sources": COUNT,
    "coupling.draws": COUNT,
    "coupling.epsilon": POSITIVE,
    "coupling.entropy": (PART[0], "must be in 0 (off) to 1, 1 excluded"),
    "coupling.tau_source": (lambda x: 0 < x <= 1, "must be in 0 to 1, not 0"),
    "coupling.tau_target": (lambda x: 0 < x <= 1, "must be in 0 to 1, not 0"),
    "coupling.pool": COUNT,
    "coupling.components": COUNT,
    "coupling.copies": COUNT,
    "coupling.dense_gib": NOT_NEGATIVE,
    "coupling.threshold": POSITIVE,
    "coupling.max_iterations": COUNT,
    "coupling.max_marginal_error": POSITIVE,
    "estimator.epsilon": NOT_NEGATIVE,
    "estimator.rho": SHARE,
    "estimator.condition_dropout": PART,
    "refit.after": NOT_NEGATIVE,
    "refit.every": NOT_NEGATIVE,
    "refit.plan": SHARE,
    "refit.copies": COUNT,
    "refit.steps": COUNT,
    "schedule.beta_min": NOT_NEGATIVE,
    "schedule.sigma_min": POSITIVE,
    "model.patch": COUNT,
    "model.head_channels": COUNT,
    "model.dropout": PART,
    "optimizer.learning_rate": NOT_NEGATIVE,
    "optimizer.muon": NOT_NEGATIVE,
    "optimizer.final_fraction": SHARE,
    "optimizer.clip_norm": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.ema_decay": PART,
    "sampling.steps": COUNT,
    "sampling.grid": COUNT,
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,
}
# What every config has: these, and what check_guidance reads.
KNOWN = {"sampling.guidance", "sampling.temperature", "sampling.restart"}
KNOWN |= {*TUPLES, *CHOICES, *RANGES}

Shape = tuple[int, ...]  # of one image (h, w, c) or vector (d,), as the network sees it


def check_config(config: ConfigDict, num_devices: int) -> None:
    """Raises UserError where the values of a config are none or do not fit together."""
    flat = flatten_dict(config.to_dict(), sep=".")
    missing = sorted(KNOWN - flat.keys())
    require(
        not missing,
        f"the config has no {', '.join(missing)}: it is of another version of eotjax, "
        "or was not begun from configs/default.py.",
    )
    check_numbers(flat)
    for name, options in CHOICES.items():
        choose(dict.fromkeys(options), flat[name], name)
    for name, (holds, told) in RANGES.items():
        require(holds(flat[name]), f"{name} is {flat[name]}; it {told}.")
    check_batch(config, num_devices)
    check_steps(config)
    check_plan(config)
    check_estimator(config)
    check_guidance(config)
    check_refit(config)
    check_images(config)
    check_latent(config)
    check_model(config)


def check_batch(config: ConfigDict, num_devices: int) -> None:
    """Raises UserError where batches cannot be cut up as they must be."""
    size, micro = config.batch_size, config.microbatch
    for name, batch in (
        ("batch_size", size),
        ("sampling.batch_size", config.sampling.batch_size),
    ):
        require(
            batch > 0 and batch % num_devices == 0,
            f"{name} {batch} cannot be cut over {num_devices} devices; make it a "
            f"multiple of {num_devices}.",
        )
    require(
        micro == 0 or (micro > 0 and size % micro == 0 and micro % num_devices == 0),
        f"microbatch is {micro}; it must divide batch_size {size} and be a "
        f"multiple of the {num_devices} devices, or 0.",
    )
    group, draws = config.coupling.group_size, config.coupling.draws
    if config.coupling.method != "whole":
        require(
            group > 0 and (size % group == 0 or group % size == 0),
            f"coupling.group_size {group} neither divides batch_size {size} nor is a "
            "multiple of it; take one that does or is.",
        )
        require(
            draws == 1 or group * draws % size == 0,
            f"a plan's {group} * {draws} pairs (coupling.group_size * coupling.draws) "
            f"do not fill batches of {size}; make them a multiple of batch_size.",
        )


def check_steps(config: ConfigDict) -> None:
    """Raises UserError where there are too few steps for what is to be done in them."""
    steps, profile = config.steps, config.profile
    require(
        profile >= 0 and (not profile or profile + trace.WARM <= steps),
        f"profile is {profile}; give as many as there are of the {steps} steps after "
        f"the first {trace.WARM}, or fewer; 0 for none.",
    )
    warmup, cooldown = config.optimizer.warmup_steps, config.optimizer.cooldown_steps
    require(
        warmup >= 0 and cooldown >= 0 and (not cooldown or warmup + cooldown <= steps),
        f"steps {steps} are too few for optimizer.warmup_steps {warmup} and "
        f"optimizer.cooldown_steps {cooldown}; neither may be negative.",
    )


def check_plan(config: ConfigDict) -> None:
    """Raises UserError where the plan's numbers contradict each other."""
    c = config.coupling
    require(
        not c.entropy or c.tau_source == c.tau_target == 1,
        "coupling.entropy is that of a balanced plan, coupling.tau_source and "
        "tau_target below 1 make another: set it to 0, and coupling.epsilon.",
    )
    require(
        not c.entropy or c.method != "independent",
        "coupling.entropy needs a plan; independent pairs have none: set it to 0.",
    )
    require(
        config.data.kind != "known_plan" or not (c.relative or c.entropy),
        "a known plan has the epsilon of the config: set coupling.relative = '' and "
        "coupling.entropy = 0.",
    )


def check_estimator(config: ConfigDict) -> None:
    """Raises UserError where the estimator is asked for what it has not."""
    c, cost = config.estimator, config.coupling.cost
    require(
        len(c.moments) in (0, 3),
        f"estimator.moments is {tuple(c.moments)}; give three numbers, or none: ().",
    )
    if c.moments:
        source, target, cross = c.moments
        require(
            source > 0 and target > 0 and cross**2 < source * target,
            f"estimator.moments is {tuple(c.moments)}; no images have E x^2, E y^2 and "
            "E x y like these. Leave them out: () measures them.",
        )
    require(
        c.noise == "images" or not c.spectrum,
        "estimator.spectrum is of noise like the images; set estimator.noise = "
        "'images', or the spectrum to ''.",
    )
    bridge = c.name == "bridge"
    require(
        c.noise == "white" or bridge,
        "only a bridge has noise like the images; set estimator.noise = 'white' or "
        "estimator.name = 'bridge'.",
    )
    require(
        not bridge or c.epsilon > 0 or (cost == "pixels" and c.noise == "white"),
        f"a plan's epsilon is a bridge's own where both are of pixels; with "
        f"coupling.cost = '{cost}' and estimator.noise = '{c.noise}' set "
        "estimator.epsilon.",
    )


def check_images(config: ConfigDict) -> None:
    """Raises UserError where images cannot be as the config says."""
    c = config.data
    require(
        len(c.image_size) == 2 and min(c.image_size) > 0,
        f"data.image_size is {tuple(c.image_size)}; give (height, width), both "
        "positive.",
    )
    require(c.channels in (1, 3), f"data.channels is {c.channels}; it must be 1 or 3.")
    require(
        c.channels == 1 or not c.tint,
        "data.tint colours grey images: set data.channels = 1.",
    )


def check_model(config: ConfigDict) -> None:
    """Raises UserError where there can be no such network or schedule."""
    width, multipliers = config.model.width, config.model.multipliers
    require(
        width >= 4 and width % 2 == 0,
        f"model.width is {width}; it must be even and at least 4.",
    )
    require(
        len(multipliers) > 0 and min(multipliers) > 0,
        f"model.multipliers is {tuple(multipliers)}; give one or more, all positive.",
    )
    for low, high in (
        ("sigma_min", "sigma_max"),
        ("log_snr_min", "log_snr_max"),
        ("beta_min", "beta_max"),
    ):
        require(
            config.schedule[low] < config.schedule[high],
            f"schedule.{low} must be below schedule.{high}.",
        )


def check_numbers(flat: Mapping[str, Any]) -> None:
    """Raises UserError where a number is none, or too large for what counts it.

    Args: flat: the config, by names such as data.flip.
    """
    for name, value in flat.items():
        if name in TUPLES:
            kind, example = TUPLES[name]
            require(
                all(isinstance(x, kind) and not isinstance(x, bool) for x in value),
                f"{name} is {tuple(value)}; give numbers, such as {example}.",
            )
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                require(math.isfinite(number), f"{name} is {number}; give a number.")
            if isinstance(number, int):
                require(
                    abs(number) <= MOST,
                    f"{name} is {number}; it must be at most {MOST:,}.",
                )


def factor_of(config: ConfigDict) -> int:
    """Pixels a side of what is one position of the space that a config trains in."""
    return autoencoder.FACTOR if config.latent.weights else 1


def check_latent(config: ConfigDict) -> None:
    """Raises UserError where an autoencoder is asked to encode what it cannot."""
    if not config.latent.weights:
        return
    c, factor = config.data, factor_of(config)
    require(
        not remote.is_remote(config.latent.cache),
        f"latent.cache is {config.latent.cache}; give a folder of this machine, or one "
        "that is mounted.",
    )
    require(
        c.channels == 3 and not c.tint,
        "the autoencoder takes RGB images: set data.channels = 3 and data.tint = "
        "False, or latent.weights = ''.",
    )
    require(
        c.crop_margin % factor == 0,
        f"data.crop_margin is {c.crop_margin}, but latents are cropped by whole cells; "
        f"make it a multiple of {factor}.",
    )
    require(
        all(side % factor == 0 for side in c.image_size),
        f"data.image_size is {tuple(c.image_size)}, but latents are an eighth of the "
        f"image's side; make both a multiple of {factor}.",
    )


def guidable(config: ConfigDict) -> bool:
    """Whether sampling.guidance may be other than 1."""
    c = config.estimator
    return c.direction == "both" if c.name == "bridge" else c.condition_dropout > 0


def check_guidance(config: ConfigDict) -> None:
    """Raises UserError where sampling asks for a guidance that was not trained."""
    dropout, guidance = config.estimator.condition_dropout, config.sampling.guidance
    require(
        not dropout or config.estimator.name != "bridge",
        "a bridge begins at the source and has no condition to drop; set "
        "estimator.condition_dropout = 0.",
    )
    if config.estimator.name == "bridge":
        require(
            guidance == 1 or guidable(config),
            f"sampling.guidance is {guidance}, which a bridge has from the way back; "
            "set it to 1, or train with estimator.direction = 'both'.",
        )
    else:
        require(
            guidance == 1 or guidable(config),
            f"sampling.guidance is {guidance}, but the network was not trained without "
            "its condition; set it to 1, or train with estimator.condition_dropout = "
            "0.1.",
        )
        for name, plain in (("temperature", 1), ("restart", 0)):
            value = config.sampling[name]
            require(
                value == plain,
                f"sampling.{name} is {value}, which only a bridge has; set it to "
                f"{plain}.",
            )
    temperature, restart = config.sampling.temperature, config.sampling.restart
    require(
        0 <= restart < 1,
        f"sampling.restart is {restart}; it is a time, in 0 to 1, 1 excluded.",
    )
    require(
        temperature >= 0,
        f"sampling.temperature is {temperature}; it must not be negative.",
    )


def check_refit(config: ConfigDict) -> None:
    """Raises UserError where a bridge cannot make its own pairs."""
    c = config.refit
    both = config.estimator.direction == "both"
    require(
        not c.after or (config.estimator.name == "bridge" and both),
        "only a bridge of both directions makes its own pairs; set estimator.name = "
        "'bridge' and estimator.direction = 'both', or refit.after = 0.",
    )


def outlasts_a_step(config: ConfigDict) -> bool:
    """Whether one plan of a group serves several steps."""
    c = config.coupling
    return c.draws > 1 or c.group_size > config.batch_size


def check_shape(config: ConfigDict, shape: Shape) -> None:
    """Raises UserError where the UNet's levels or the pooled cost do not fit."""
    pooled = config.coupling.cost == "pooled"
    if len(shape) == 1:
        require(not pooled, "vectors cannot be pooled; choose another coupling.cost.")
        require(not config.data.tint, "vectors have no colours; set data.tint = False.")
        require(
            not config.latent.weights,
            "only images have latents; set latent.weights = ''.",
        )
        require(
            config.estimator.noise == "white",
            "vectors have no waves that noise is like them in; set "
            "estimator.noise = 'white'.",
        )
        return
    factor = factor_of(config)
    what = f"images of {shape[0]}x{shape[1]}"
    if factor > 1:
        what += f" (latents of an {'eighth' if factor == 8 else factor} of that)"
    pool = config.coupling.pool * factor
    require(
        not pooled or (shape[0] % pool == 0 and shape[1] % pool == 0),
        f"{what} cannot be cut into cells of {config.coupling.pool} a side; set "
        "coupling.pool to a divisor of both sides.",
    )
    patch, halvings = config.model.patch, len(config.model.multipliers) - 1
    cell = factor * patch
    cut = f"cut into patches of {patch} a side and " if patch > 1 else ""
    multiple = cell * 2**halvings
    require(
        shape[0] % multiple == 0 and shape[1] % multiple == 0,
        f"{what} cannot be {cut}halved {halvings} times; make data.image_size a "
        f"multiple of {multiple}, or {'model.patch smaller or ' if cut else ''}"
        "model.multipliers shorter.",
    )
    heights = [shape[0] // (cell * 2**level) for level in range(halvings + 1)]
    for height in config.model.attention:
        require(
            height in heights,
            f"model.attention names the height {height}; the UNet's levels have "
            f"{', '.join(map(str, heights))}: name some of these, or none: ().",
        )


def check_coupling(config: ConfigDict, resident: bool) -> None:
    """Raises UserError where the plan does not fit the training sets."""
    c = config.coupling
    large = c.method == "whole" or outlasts_a_step(config)
    require(
        resident or not large,
        "a plan larger than a batch needs the training sets on the device; raise "
        "data.device_gib, or set coupling.method = 'entropic', coupling.group_size to "
        f"at most {config.batch_size} and coupling.draws = 1.",
    )
    require(
        resident or not config.refit.after,
        "a bridge makes its own pairs of training sets on the device; raise "
        "data.device_gib or set refit.after = 0.",
    )
    require(
        c.copies == 1 or c.cost != "features",
        "coupling.copies are views of images, whose features are one each: set it to "
        "1.",
    )


def check_arrays(config: ConfigDict, array: np.ndarray) -> None:
    """Raises UserError where stored images are not what the config says."""
    if array.ndim != 4:
        return
    said = (*config.data.image_size, config.data.channels)
    h, w, c = array.shape[1:]
    require(
        (h, w, c) == said,
        f"{config.data.path or config.data.kind} holds images of {h}x{w}x{c}, the "
        f"config says {'x'.join(map(str, said))}: set data.image_size = ({h}, {w}) "
        f"and data.channels = {c}.",
    )
