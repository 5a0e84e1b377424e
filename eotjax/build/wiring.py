"""Turns a config into what translates: network, estimator, sampler."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree, UInt32
from ml_collections import ConfigDict

from eotjax import parallel
from eotjax.build.checks import Shape, factor_of
from eotjax.diffusion import noise, sampler, schedule
from eotjax.diffusion.bridge import Bridge, PairMoments
from eotjax.diffusion.conditional import ConditionalScore
from eotjax.diffusion.estimator import Estimator
from eotjax.errors import choose
from eotjax.networks import latents
from eotjax.networks.mlp import MLP
from eotjax.networks.unet import UNet

AMPERE = 8.0  # the compute capability from which NVIDIA's GPUs have bfloat16


def compute_dtype(config: ConfigDict) -> DTypeLike:
    """The networks' compute dtype: bfloat16 where the device has it, unless set."""
    dtype = config.model.dtype
    if dtype == "auto":
        device = jax.devices()[0]
        known = str(getattr(device, "compute_capability", ""))  # AMD's is no number
        old = re.fullmatch(r"\d+\.\d+", known) and float(known) < AMPERE
        dtype = "float32" if old or device.platform == "cpu" else "bfloat16"
    dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    return choose(dtypes, dtype, "model.dtype")


def inner_shape(config: ConfigDict, shape: Shape) -> Shape:
    """What diffuses: images or vectors of `shape` themselves, or their latents."""
    if not config.latent.weights:
        return shape
    height, width, _ = shape
    factor = factor_of(config)
    return (height // factor, width // factor, config.latent.channels)


def network(config: ConfigDict, shape: Shape) -> MLP | UNet:
    """The UNet for images of `shape` or their latents, the MLP for vectors."""
    c, shape = config.model, inner_shape(config, shape)
    shared = {
        "channels": shape[-1],
        "width": c.width,
        "blocks": c.blocks,
        "dropout": c.dropout,
        "dtype": compute_dtype(config),
        "labels": labels(config),
    }
    if len(shape) == 1:
        return MLP(**shared)
    levels = range(len(c.multipliers))
    heights = [shape[0] // c.patch // 2**i for i in levels]
    return UNet(
        multipliers=tuple(c.multipliers),
        attention=tuple(i for i in levels if heights[i] in c.attention),
        patch=c.patch,
        head_channels=c.head_channels,
        remat=c.remat,
        **shared,
    )


def labels(config: ConfigDict) -> int:
    """How many labels the network tells apart: see `estimator.Label`."""
    if config.estimator.condition_dropout:
        return 4
    return 2 if config.estimator.direction == "both" else 1


def make_schedule(config: ConfigDict) -> schedule.Schedule:
    """The noise schedule."""
    c = config.schedule
    make = choose(
        {
            "vp_linear": lambda: schedule.vp_linear(c.beta_min, c.beta_max),
            "vp_cosine": lambda: schedule.vp_cosine(c.log_snr_max, c.log_snr_min),
            "ve": lambda: schedule.ve(c.sigma_min, c.sigma_max),
        },
        c.name,
        "schedule.name",
    )
    return make()


def estimator(config: ConfigDict, shape: Shape) -> Estimator:
    """How the plan is distilled."""
    c, bound = config.estimator, math.inf
    if len(shape) == 3:
        bound = latents.BOUND if config.latent.weights else 1.0
    predictions = ("v", "data") if c.name == "bridge" else ("v", "noise", "data")
    choose(dict.fromkeys(predictions), c.prediction, "estimator.prediction")

    def conditional(rho: float) -> ConditionalScore:
        return ConditionalScore(
            schedule=make_schedule(config),
            prediction=c.prediction,
            rho=rho,
            path=config.sampling.path,
            bound=bound,
            condition_dropout=c.condition_dropout,
            guidance=config.sampling.guidance,
        )

    make = choose(
        {
            "cde": lambda: conditional(0.0),
            "cdiffe": lambda: conditional(1.0),
            "cmde": lambda: conditional(c.rho),
            "bridge": lambda: Bridge(
                epsilon=c.epsilon or config.coupling.epsilon,
                spectrum=noise.from_text(c.spectrum) if c.spectrum else None,
                moments=PairMoments(*c.moments) if c.prediction == "data" else None,
                bound=bound,
                guidance=config.sampling.guidance,
                temperature=config.sampling.temperature,
                restart=config.sampling.restart,
            ),
        },
        c.name,
        "estimator.name",
    )
    return make()


def check_names(config: ConfigDict) -> None:
    """Raises UserError where the config chooses by a name that there is not."""
    compute_dtype(config)
    make_schedule(config)
    solvers = estimator(config, (1,)).solvers()
    choose(solvers, config.sampling.solver, "sampling.solver")


def inputs(config: ConfigDict, shape: Shape) -> tuple[Array, Array, Array]:
    """Network inputs of the right shapes, for images or vectors of `shape`."""
    estimate, shape = estimator(config, shape), inner_shape(config, shape)
    channels = estimate.images * shape[-1]
    return jnp.zeros((1, *shape[:-1], channels)), jnp.zeros(1), jnp.zeros(1, int)


# (params, seed, number, direction, source) -> translations; in latents `params` is a
# latents.Model, else the network's own.
Sample = Callable[
    [
        PyTree,
        UInt32[Array, ""],
        UInt32[Array, "b"],
        Int[Array, "b"],
        Float[Array, "b ..."],
    ],
    Float[Array, "b ..."],
]


def sample(config: ConfigDict, shape: Shape, done: int | None = None) -> Sample:
    """Wires a pure function from source images (or vectors) to translations.

    Translation i is a function of seed, number[i], direction[i] and source[i] alone.
    With `done` it is where the sampler is after so many of its steps, which must not go
    back: `sampling.restart` 0.
    """
    between_points = sample_points(config, shape, done)

    def between_images(model, keys, source, direction):
        dtype = compute_dtype(config)
        start = latents.encode(model.space, source, dtype)
        end = between_points(model.network, keys, start, direction)
        return latents.decode(model.space, end, dtype)

    inner = between_images if config.latent.weights else between_points

    def translate(params, seed, number, direction, source):
        return inner(params, sampler.keys_of(seed, number, source), source, direction)

    return translate


def sample_points(
    config: ConfigDict, shape: Shape, done: int | None = None
) -> Callable[[PyTree, sampler.Keys, Array, Array], Array]:
    """Wires `sample` where it diffuses: (params, keys, source, direction) -> ends."""
    net = network(config, shape)
    estimate = estimator(config, shape)
    solver = choose(estimate.solvers(), config.sampling.solver, "sampling.solver")
    times = solver.times(config.sampling.steps)
    if done is not None:
        times = times[: done + 1]

    def translate(params, keys, source, direction):
        def apply(inputs: Array, t: Array, label: Array) -> Any:
            return net.apply({"params": params}, inputs, t, label)

        return estimate.sample(apply, keys, source, direction, times, solver.step)

    return translate


def sampling(
    config: ConfigDict, shape: Shape, mesh: Mesh, done: int | None = None
) -> Callable[..., Array]:
    """`sample`, jitted over the mesh; the batch is a multiple of its devices."""
    replicated, cut = parallel.replicated(mesh), parallel.split(mesh)
    jitted = jax.jit(
        sample(config, shape, done),
        in_shardings=(replicated, replicated, cut, cut, cut),
        out_shardings=replicated,
    )
    return lambda params, seed, *batch: jitted(params, seed, *parallel.put(batch, cut))
