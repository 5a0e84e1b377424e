"""Turns a config into what training needs: optimiser, step, a bridge's own pairs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from eotjax import parallel
from eotjax.build import planning, wiring
from eotjax.build.checks import Shape
from eotjax.data.batch import Data
from eotjax.training import refit, step
from eotjax.transport import cost
from eotjax.transport.pairing import Pairing


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
        muon=c.muon,
        cooldown_steps=c.cooldown_steps,
    )


def cooldown_begins(config: ConfigDict) -> int | None:
    """After how many steps the rate, constant till then, falls; None for a cosine."""
    tail = config.optimizer.cooldown_steps
    return config.steps - tail if tail else None


def needs_moments(config: ConfigDict) -> bool:
    """Whether the network's scales come from the pairs' second moments."""
    c = config.estimator
    return c.name == "bridge" and c.prediction == "data" and not c.moments


def pieces(config: ConfigDict) -> int:
    """How many pieces the network takes a batch in."""
    return config.batch_size // (config.microbatch or config.batch_size)


class Training(NamedTuple):
    """What the loop needs, jitted over the mesh; and the pairs that it draws."""

    init: Callable[[], step.TrainState]
    step: jax.stages.Wrapped  # (state, data) -> (state, metrics)
    in_one: jax.stages.Wrapped | None  # the batch in one piece, where `step` cuts it up
    pairs: Pairing
    layout: step.TrainState  # of the state, an array each


def train_step(
    config: ConfigDict,
    shape: Shape,
    pair: Pairing,
    gather: Callable[[step.Params], step.Params] = lambda params: params,
) -> Callable[[step.TrainState, Data], tuple[step.TrainState, step.Metrics]]:
    """Wires the pure training step on the pairs that `pair` gives.

    `gather` brings parameters together where the devices have shared them out.
    """
    net = wiring.network(config, shape)

    def apply(params, inputs: Array, t: Array, label: Array, key: Array) -> Any:
        params = gather(params)
        return net.apply(
            {"params": params}, inputs, t, label, train=True, rngs={"dropout": key}
        )

    return step.make_train_step(
        pair=pair,
        make_example=wiring.estimator(config, shape).example,
        apply=apply,
        optimizer=optimizer(config).update,
        ema_decay=config.optimizer.ema_decay,
        seed=config.seed,
        both=config.estimator.direction == "both",
        pieces=pieces(config),
    )


def training(
    config: ConfigDict,
    shape: Shape,
    lengths: tuple[int, int] | None,
    mesh: Mesh,
    embed: cost.Embed = cost.pixels,
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
    net = wiring.network(config, shape)
    update = optimizer(config).update

    def init() -> step.TrainState:
        params = net.init(jax.random.key(config.seed), *wiring.inputs(config, shape))
        return step.init(
            params["params"],
            update,
            planning.nothing_held(config, lengths),
            makes_pairs=config.refit.after > 0,
        )

    settings = planning.sinkhorn_settings(config)
    pair = planning.pair(config, embed, settings, lengths, mesh)
    replicated = parallel.replicated(mesh)
    abstract = jax.eval_shape(init)
    layout = jax.tree.map(lambda _: replicated, abstract)
    if config.model.sharded:
        layout = layout._replace(
            **{
                name: parallel.shared_out(getattr(abstract, name), mesh)
                for name in ("params", "ema_params", "opt_state", "maker")
            }
        )

    def gather(params: step.Params) -> step.Params:
        return jax.lax.with_sharding_constraint(params, replicated)

    def jitted(config: ConfigDict) -> Any:
        return jax.jit(
            train_step(config, shape, pair, gather),
            in_shardings=(layout, replicated if lengths else parallel.split(mesh)),
            out_shardings=(layout, replicated),
            donate_argnums=0,  # the old state's memory serves the new one
        )

    # Run once, and of many random numbers: the same to the last bit, in a third of the
    # time, where a CPU's compiler does not do its best.
    cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 1} if cpu else None
    first = jax.jit(init, out_shardings=layout, compiler_options=options)
    in_one = None
    if pieces(config) > 1:
        uncut = config.copy_and_resolve_references()
        uncut.microbatch = 0
        in_one = jitted(uncut)
    return Training(first, jitted(config), in_one, pair, layout)


def flops(
    training: Training,
    lowered: jax.stages.Lowered,
    state: step.TrainState,
    data: Mapping[str, Array | jax.ShapeDtypeStruct],
) -> float:
    """FLOPs of one step over all devices; of the data only the shapes count.

    XLA counts a loop's body once: a batch that is cut up is counted in one piece.
    """
    if training.in_one:
        lowered = training.in_one.lower(state, data)
    return parallel.flops(lowered)


def rounds(config: ConfigDict, step: int) -> int:
    """How often a bridge has made its own pairs before step `step` + 1."""
    return refit.number(step, after=config.refit.after, every=config.refit.every)


def pair_maker(
    config: ConfigDict, shape: Shape, mesh: Mesh
) -> Callable[..., Data | None]:
    """Wires the making of a bridge's own pairs, by its process, which may be guided."""
    own = config.copy_and_resolve_references()
    own.sampling.solver, own.sampling.steps = "ancestral", config.refit.steps
    own.sampling.guidance, own.sampling.temperature = config.refit.guidance, 1.0
    own.sampling.restart = 0.0
    make = refit.maker(
        wiring.sample_points(own, shape),
        views=planning.fixed_views(config),
        copies=config.refit.copies,
        at_once=config.sampling.batch_size,
        seed=config.seed,
        settings=config.refit.to_json(sort_keys=True),
        mesh=mesh,
    )
    return lambda params, *rest, **how: make(
        parallel.gathered(params, mesh), *rest, **how
    )
