"""Turns a config into the parts that know nothing of configs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32
from ml_collections import ConfigDict

from eotjax import cost_space, parallel, plan, sampler, schedule, step
from eotjax.bridge import Bridge
from eotjax.checks import Shape, choose
from eotjax.estimators import ConditionalScore
from eotjax.mlp import MLP
from eotjax.unet import UNet


def network(config: ConfigDict, shape: Shape) -> MLP | UNet:
    """The UNet for images, the MLP for vectors."""
    c = config.model
    backend = jax.default_backend()
    dtype = c.dtype
    if dtype == "auto":
        dtype = "float32" if backend == "cpu" else "bfloat16"
    dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    shared = {
        "channels": shape[-1],
        "width": c.width,
        "blocks": c.blocks,
        "dropout": c.dropout,
        "dtype": choose(dtypes, dtype, "model.dtype"),
        "labels": labels(config),
    }
    if len(shape) == 1:
        return MLP(**shared)
    levels = range(len(c.multipliers))
    return UNet(
        multipliers=tuple(c.multipliers),
        attention=tuple(i for i in levels if shape[0] // 2**i in c.attention),
        head_channels=c.head_channels,
        remat=c.remat,
        **shared,
    )


def labels(config: ConfigDict) -> int:
    """How many labels the network tells apart: see `estimators.Label`."""
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


def estimator(config: ConfigDict, shape: Shape) -> ConditionalScore | Bridge:
    """How the plan is distilled."""
    c, is_image = config.estimator, len(shape) == 3
    predictions = dict.fromkeys(("v", "noise", "data"))
    choose(predictions, c.prediction, "estimator.prediction")

    def conditional(rho: float) -> ConditionalScore:
        return ConditionalScore(
            schedule=make_schedule(config),
            prediction=c.prediction,
            rho=rho,
            path=config.sampling.path,
            clip=is_image,
            condition_dropout=c.condition_dropout,
            guidance=config.sampling.guidance,
        )

    make = choose(
        {
            "cde": lambda: conditional(0.0),
            "cdiffe": lambda: conditional(1.0),
            "cmde": lambda: conditional(c.rho),
            "bridge": lambda: Bridge(
                epsilon=c.epsilon or config.coupling.epsilon, clip=is_image
            ),
        },
        c.name,
        "estimator.name",
    )
    return make()


def optimizer(config: ConfigDict) -> step.Optimizer:
    """The update rule."""
    c = config.optimizer
    return step.make_optimizer(
        learning_rate=c.learning_rate,
        warmup_steps=c.warmup_steps,
        total_steps=config.steps,
        final_fraction=c.final_fraction,
        clip_norm=c.clip_norm,
        weight_decay=c.weight_decay,
    )


class Training(NamedTuple):
    """What the loop needs: both jitted over the mesh."""

    init: Callable[[], step.TrainState]
    step: Callable[[step.TrainState, step.Data], tuple[step.TrainState, step.Metrics]]


def training(
    config: ConfigDict,
    shape: Shape,
    lengths: tuple[int, int] | None,
    mesh: Mesh,
    embed: cost_space.Embed = cost_space.pixels,
) -> Training:
    """Wires initialisation and the training step.

    Args:
      config: the whole config, its epsilon in units of the cost.
      shape: of one image or vector.
      lengths: of the training domains, whole on the device; None to stream.
      mesh: of all devices.
      embed: to where the cost is taken.
    """
    assert not config.coupling.relative and not config.coupling.entropy
    net = network(config, shape)
    estimate = estimator(config, shape)
    update = optimizer(config).update

    def init() -> step.TrainState:
        params = net.init(jax.random.key(config.seed), *inputs(estimate, shape))
        return step.init(params["params"], update, plan.nothing_held(config, lengths))

    def apply(params, inputs: Array, t: Array, label: Array, key: Array) -> Any:
        return net.apply(
            {"params": params}, inputs, t, label, train=True, rngs={"dropout": key}
        )

    train_step = step.make_train_step(
        pair=plan.pair(config, embed, plan.solver(config), lengths, mesh),
        estimator=estimate,
        apply=apply,
        optimizer=update,
        ema_decay=config.optimizer.ema_decay,
        seed=config.seed,
        both=config.estimator.direction == "both",
    )
    layout = parallel.replicated(mesh) if lengths else parallel.split(mesh)
    return Training(
        jax.jit(init, out_shardings=parallel.replicated(mesh)),
        parallel.jit_step(train_step, mesh, layout),
    )


def inputs(estimate: step.Estimator, shape: Shape) -> tuple[Array, Array, Array]:
    """Network inputs of the right shapes."""
    channels = estimate.images * shape[-1]
    return jnp.zeros((1, *shape[:-1], channels)), jnp.zeros(1), jnp.zeros(1, int)


# (params, seed, number, direction, source) -> translations
Sample = Callable[
    [
        step.Params,
        UInt32[Array, ""],
        UInt32[Array, "b"],
        Int[Array, "b"],
        Float[Array, "b ..."],
    ],
    Float[Array, "b ..."],
]


def sample(config: ConfigDict, shape: Shape) -> Sample:
    """Wires a pure function from source images (or vectors) to translations.

    Translation i is a function of seed, number[i], direction[i] and source[i] alone.
    """
    net = network(config, shape)
    estimate = estimator(config, shape)
    solver = choose(estimate.solvers, config.sampling.solver, "sampling.solver")
    times = solver.times(config.sampling.steps)

    def translate(params, seed, number, direction, source):
        def apply(inputs: Array, t: Array, label: Array) -> Any:
            return net.apply({"params": params}, inputs, t, label)

        keys = sampler.keys_of(seed, number, source)
        return estimate.sample(apply, keys, source, direction, times, solver.step)

    return translate


def sampling(config: ConfigDict, shape: Shape, mesh: Mesh) -> Callable[..., Array]:
    """`sample`, jitted over the mesh; the batch is a multiple of its devices."""
    whole, cut = parallel.replicated(mesh), parallel.split(mesh)
    jitted = jax.jit(
        sample(config, shape),
        in_shardings=(whole, whole, cut, cut, cut),
        out_shardings=whole,
    )
    return lambda params, seed, *batch: jitted(params, seed, *parallel.put(batch, cut))
