"""Refuses a config whose parts do not fit each other, before minutes are spent."""

import math

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

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
# Keys of numbers that must be at least 1, by group.
COUNTS = {
    "": ("steps", "log_every", "sample_every"),
    "checkpoint": ("every", "keep"),
    "sampling": ("steps", "grid"),
    "coupling": ("max_iterations", "pool", "components", "copies", "draws"),
    "model": ("patch", "head_channels"),
    "refit": ("copies", "steps"),
    "known": ("dim", "count", "test_sources"),
}

Shape = tuple[int, ...]  # of one image (h, w, c) or vector (d,), as the network sees it


def check_config(config: ConfigDict, num_devices: int) -> None:
    """Raises UserError where the numbers of a config do not fit each other."""
    c = config
    check_numbers(c)
    require(c.seed >= 0, f"seed is {c.seed}; give 0 or more.")
    for name, size in (
        ("batch_size", c.batch_size),
        ("sampling.batch_size", c.sampling.batch_size),
    ):
        require(
            size > 0 and size % num_devices == 0,
            f"{name} {size} cannot be cut over {num_devices} devices; make it a "
            f"multiple of {num_devices}.",
        )
    micro = c.microbatch
    require(
        micro == 0
        or (micro > 0 and c.batch_size % micro == 0 and micro % num_devices == 0),
        f"microbatch is {micro}; it must divide batch_size {c.batch_size} and be a "
        f"multiple of the {num_devices} devices, or 0.",
    )
    group, draws = c.coupling.group_size, c.coupling.draws
    if c.coupling.method != "whole":
        require(
            group > 0 and (c.batch_size % group == 0 or group % c.batch_size == 0),
            f"coupling.group_size {group} neither divides batch_size {c.batch_size} "
            "nor is a multiple of it; take one that does or is.",
        )
        require(
            draws == 1 or group * draws % c.batch_size == 0,
            f"a plan's {group} * {draws} pairs (coupling.group_size * coupling.draws) "
            f"do not fill batches of {c.batch_size}; make them a multiple of "
            "batch_size.",
        )
    for part, names in COUNTS.items():
        for name in names:
            count = (c[part] if part else c)[name]
            told = f"{part}.{name}" if part else name
            require(count > 0, f"{told} is {count}; it must be at least 1.")
    require(
        c.profile >= 0 and (not c.profile or c.profile + trace.WARM <= c.steps),
        f"profile is {c.profile}; give as many as there are of the {c.steps} steps "
        f"after the first {trace.WARM}, or fewer; 0 for none.",
    )
    width = c.model.width
    require(
        width >= 4 and width % 2 == 0,
        f"model.width is {width}; it must be even and at least 4.",
    )
    methods = dict.fromkeys(("entropic", "whole", "independent"))
    choose(methods, c.coupling.method, "coupling.method")
    costs = dict.fromkeys(("pixels", "pooled", "pca", "features"))
    choose(costs, c.coupling.cost, "coupling.cost")
    choose(dict.fromkeys(("", "mean", "std")), c.coupling.relative, "coupling.relative")
    for name in ("tau_source", "tau_target"):
        tau = c.coupling[name]
        require(0 < tau <= 1, f"coupling.{name} is {tau}; it must be in 0 to 1, not 0.")
    entropy = c.coupling.entropy
    require(
        0 <= entropy < 1,
        f"coupling.entropy is {entropy}; it must be in 0 (off) to 1, 1 excluded.",
    )
    require(
        not entropy or c.coupling.tau_source == c.coupling.tau_target == 1,
        "coupling.entropy is that of a balanced plan, coupling.tau_source and "
        "tau_target below 1 make another: set it to 0, and coupling.epsilon.",
    )
    require(
        not entropy or c.coupling.method != "independent",
        "coupling.entropy needs a plan; independent pairs have none: set it to 0.",
    )
    require(
        c.estimator.epsilon >= 0,
        f"estimator.epsilon is {c.estimator.epsilon}; it must not be negative.",
    )
    require(
        len(c.estimator.moments) in (0, 3),
        f"estimator.moments is {tuple(c.estimator.moments)}; give three numbers, or "
        "none: ().",
    )
    if c.estimator.moments:
        source, target, cross = c.estimator.moments
        require(
            source > 0 and target > 0 and cross**2 < source * target,
            f"estimator.moments is {tuple(c.estimator.moments)}; no images have E x^2, "
            "E y^2 and E x y like these. Leave them out: () measures them.",
        )
    choose(dict.fromkeys(("white", "images")), c.estimator.noise, "estimator.noise")
    require(
        c.estimator.noise == "images" or not c.estimator.spectrum,
        "estimator.spectrum is of noise like the images; set estimator.noise = "
        "'images', or the spectrum to ''.",
    )
    require(
        c.estimator.noise == "white" or c.estimator.name == "bridge",
        "only a bridge has noise like the images; set estimator.noise = 'white' or "
        "estimator.name = 'bridge'.",
    )
    choose(
        dict.fromkeys(("forward", "both")), c.estimator.direction, "estimator.direction"
    )
    warmup, cooldown = c.optimizer.warmup_steps, c.optimizer.cooldown_steps
    require(
        warmup >= 0
        and cooldown >= 0
        and (not cooldown or warmup + cooldown <= c.steps),
        f"steps {c.steps} are too few for optimizer.warmup_steps {warmup} and "
        f"optimizer.cooldown_steps {cooldown}; neither may be negative.",
    )
    check_guidance(c)
    check_latent(c)
    check_refit(c)
    validation = c.data.validation
    require(
        0 <= validation < 1,
        f"data.validation is {validation}; it is the share of the training images that "
        "are held out: in 0 to 1, 1 excluded.",
    )
    if c.estimator.name == "bridge" and c.coupling.cost == "features":
        require(
            c.estimator.epsilon > 0,
            "a plan of features has no epsilon for a bridge of images; set "
            "estimator.epsilon.",
        )
    if c.data.kind == "known_plan":
        require(
            not c.coupling.relative and not entropy,
            "a known plan has the epsilon of the config: set coupling.relative = '' "
            "and coupling.entropy = 0.",
        )
    epsilon, rho = c.coupling.epsilon, c.estimator.rho
    require(epsilon > 0, f"coupling.epsilon is {epsilon}; it must be positive.")
    require(0 <= rho <= 1, f"estimator.rho is {rho}; it must be in 0 to 1.")
    size = c.data.image_size
    require(
        len(size) == 2 and min(size) > 0,
        f"data.image_size is {tuple(size)}; give (height, width), both positive.",
    )
    require(
        c.data.crop_margin >= 0,
        f"data.crop_margin is {c.data.crop_margin}; it must not be negative.",
    )
    multipliers = c.model.multipliers
    require(
        len(multipliers) > 0 and min(multipliers) > 0,
        f"model.multipliers is {tuple(multipliers)}; give one or more, all positive.",
    )
    require(
        0 <= c.model.dropout < 1,
        f"model.dropout is {c.model.dropout}; it must be in 0 to 1, 1 excluded.",
    )
    require(
        0 < c.schedule.sigma_min < c.schedule.sigma_max,
        "schedule.sigma_min must be positive and below schedule.sigma_max.",
    )
    require(
        c.schedule.log_snr_min < c.schedule.log_snr_max,
        "schedule.log_snr_min must be below schedule.log_snr_max.",
    )
    require(
        c.data.channels in (1, 3),
        f"data.channels is {c.data.channels}; it must be 1 or 3.",
    )
    require(
        c.data.channels == 1 or not c.data.tint,
        "data.tint colours grey images: set data.channels = 1.",
    )


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError where a number is none, or too large for what counts it."""
    for name, value in flatten_dict(config.to_dict(), sep=".").items():
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
        0 <= dropout < 1,
        f"estimator.condition_dropout is {dropout}; it must be in 0 to 1, 1 excluded.",
    )
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
    require(
        c.after >= 0 and c.every >= 0 and 0 <= c.plan <= 1,
        f"refit.after is {c.after}, refit.every {c.every} and refit.plan {c.plan}; the "
        "first two are numbers of steps, the third a share in 0 to 1.",
    )
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
