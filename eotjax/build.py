"""Turns a config into the parts that know nothing of configs."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from eotjax import cost_space, parallel, plan, schedule, step
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
    }
    if len(shape) == 1:
        return MLP(**shared)
    return UNet(
        multipliers=tuple(c.multipliers),
        attention=tuple(c.attention),
        head_channels=c.head_channels,
        remat=c.remat,
        **shared,
    )


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

    def apply(params, inputs: Array, t: Array, key: Array) -> Any:
        return net.apply(
            {"params": params}, inputs, t, train=True, rngs={"dropout": key}
        )

    train_step = step.make_train_step(
        pair=plan.pair(config, embed, plan.solver(config), lengths, mesh),
        estimator=estimate,
        apply=apply,
        optimizer=update,
        ema_decay=config.optimizer.ema_decay,
        seed=config.seed,
    )
    layout = parallel.replicated(mesh) if lengths else parallel.split(mesh)
    return Training(
        jax.jit(init, out_shardings=parallel.replicated(mesh)),
        parallel.jit_step(train_step, mesh, layout),
    )


def inputs(estimate: step.Estimator, shape: Shape) -> tuple[Array, Array]:
    """Network inputs of the right shapes."""
    channels = estimate.images * shape[-1]
    return jnp.zeros((1, *shape[:-1], channels)), jnp.zeros(1)


def sampling(config: ConfigDict, shape: Shape, mesh: Mesh) -> Callable[..., Array]:
    """Wires sample(params, seed, digests, index, source) -> translations, jitted.

    Image i is a function of (seed, digests[i], index[i], source[i]) alone.
    """
    net = network(config, shape)
    estimate = estimator(config, shape)
    solver = choose(estimate.solvers, config.sampling.solver, "sampling.solver")
    times = estimate.times(config.sampling.steps)

    def sample(params, seed: Array, digests: Array, index: Array, source: Array):
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(digests)
        keys = jax.vmap(jax.random.fold_in)(keys, index)

        def apply(inputs: Array, t: Array) -> Any:
            return net.apply({"params": params}, inputs, t)

        return estimate.sample(apply, keys, source, times, solver)

    whole, cut = parallel.replicated(mesh), parallel.split(mesh)
    jitted = jax.jit(
        sample, in_shardings=(whole, whole, cut, cut, cut), out_shardings=whole
    )
    return lambda params, seed, *batch: jitted(params, seed, *parallel.put(batch, cut))
