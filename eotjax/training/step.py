"""The training step: pair, corrupt, regress, update, average."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from eotjax.data import batch
from eotjax.diffusion.estimator import Example, Label, MakeExample, both_ways
from eotjax.training.muon import is_matrix, scale_by_muon
from eotjax.transport.pairing import Held, Pairing

Params = Any  # a pytree of arrays
Metrics = dict[str, Float[Array, ""]]


class TrainState(NamedTuple):
    """All that a run needs to go on exactly where it was, besides its config."""

    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: optax.OptState
    held: Held = ()  # of the plans, where they outlast a step
    maker: Params = ()  # those that made the pairs in use, where the bridge makes any


Apply = Callable[[Params, Array, Array, Label, Key[Array, ""]], Array]


def init(
    params: Params,
    optimizer: optax.GradientTransformation,
    held: Held = (),
    *,
    makes_pairs: bool = False,
) -> TrainState:
    """The state before the first step; the averages start at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        held=held,
        maker=jax.tree.map(jnp.copy, params) if makes_pairs else (),
    )


def stratified_times(key: Key[Array, ""], n: int) -> Float[Array, "n"]:
    """n times, each uniform on [0, 1), one in every n-th of the interval.

    Kingma et al. 2021, appendix I.1: the same loss with less variance.
    """
    return jnp.mod(jax.random.uniform(key) + jnp.arange(n) / n, 1.0)


def make_train_step(
    *,
    pair: Pairing,
    make_example: MakeExample,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    seed: int,
    both: bool = False,
    pieces: int = 1,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Builds the pure step (state, data) -> (state, metrics).

    Args:
      pair: (step, held, data) -> the step's pairs.
      make_example: of an estimator: the regression of a batch of pairs.
      apply: (params, inputs, t, label, dropout_key) -> output.
      optimizer: the update, with its clipping and learning rate.
      ema_decay: of the parameters' average, reached after a warm-up in which the
        average forgets its start: min(decay, (1 + step) / (10 + step)).
      seed: the run's; every random number is a function of it and of state.step.
      both: turn every second pair round, to learn both directions.
      pieces: that the network takes a batch in, one after the other: less memory, the
        same gradient but for other dropout.

    Metrics are scalars: loss, grad_norm and the plan's statistics, mean over groups. A
    step whose loss or gradient is not finite changes nothing but the step's number and
    the plan: it is `skipped`, 1 or 0, with a loss and a norm of 0.
    """

    def loss_fn(params: Params, example: Example, key: Key[Array, ""]) -> Array:
        output = apply(params, example.inputs, example.t, example.label, key)
        return jnp.mean((output - example.output) ** 2)

    def loss_and_gradient(
        params: Params, example: Example, key: Key[Array, ""]
    ) -> tuple[Array, Params]:
        if pieces == 1:
            return jax.value_and_grad(loss_fn)(params, example, key)

        def add(total, piece):
            found = jax.value_and_grad(loss_fn)(params, *piece)
            return jax.tree.map(lambda a, b: a + b / pieces, total, found), None

        nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        cut = jax.tree.map(lambda x: dealt(x, pieces), example)
        return jax.lax.scan(add, nothing, (cut, jax.random.split(key, pieces)))[0]

    def train_step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        _, _, key_time, key_noise, key_net = batch.step_keys(seed, state.step)
        pairs = pair(state.step, state.held, data)
        times = stratified_times(key_time, len(pairs.source))
        turned = (
            both_ways(pairs.source, pairs.target)
            if both
            else (pairs.source, pairs.target, jnp.zeros(times.shape, int))
        )
        example = make_example(key_noise, *turned, times)
        loss, grads = loss_and_gradient(state.params, example, key_net)
        norm = optax.tree.norm(grads)
        sound = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, state.ema_params, 1 - decay)
        params, average, opt_state = jax.tree.map(
            partial(jnp.where, sound),
            (params, average, opt_state),
            (state.params, state.ema_params, state.opt_state),
        )
        metrics = {
            "loss": jnp.where(sound, loss, 0),
            "grad_norm": jnp.where(sound, norm, 0),
            "skipped": 1 - sound.astype(jnp.float32),
            **{
                f"plan/{name}": jnp.mean(x) for name, x in pairs.stats._asdict().items()
            },
        }
        return state._replace(
            step=state.step + 1,
            params=params,
            ema_params=average,
            opt_state=opt_state,
            held=pairs.held,
        ), metrics

    return train_step


def dealt(x: Array, pieces: int) -> Array:
    """Rows in turn to each piece: a device holds neighbours, so some of each."""
    return jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0)


class Optimizer(NamedTuple):
    """An optax transformation and the learning rate it follows."""

    update: optax.GradientTransformation
    learning_rate: optax.Schedule


def make_optimizer(
    *,
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    final_fraction: float = 0.0,
    clip_norm: float = 1.0,
    weight_decay: float = 0.0,
    muon: float = 0.0,
    cooldown_steps: int = 0,
) -> Optimizer:
    """AdamW after clipping by global norm; linear warm-up, then cosine decay.

    Or a constant rate with a linear cooldown, as good as a cosine (Haegele et al. 2024,
    arXiv 2405.18392): until it begins, no step depends on how many there will be.

    With Muon the updates of matrices are orthogonalised (Jordan et al. 2024), and
    scaled as AdamW's usually are (Liu et al. 2025, arXiv 2502.16982, equation 4).

    Args:
      learning_rate: the peak.
      warmup_steps: from 0 to the peak.
      total_steps: after which the rate is learning_rate * final_fraction; steps that
        are skipped, since they are not finite, do not count.
      final_fraction: 1 keeps the rate constant after the warm-up.
      clip_norm: largest global norm of a gradient.
      weight_decay: decoupled.
      muon: the peak for matrices, which Muon moves; 0 leaves them to AdamW.
      cooldown_steps: the last ones, in which a constant rate falls; 0 for a cosine.
    """

    def schedule(peak: float) -> optax.Schedule:
        if cooldown_steps:
            parts = [
                optax.linear_schedule(0.0, peak, warmup_steps),
                optax.constant_schedule(peak),
                optax.linear_schedule(peak, peak * final_fraction, cooldown_steps),
            ]
            return optax.join_schedules(
                parts, [warmup_steps, total_steps - cooldown_steps]
            )
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=peak,
            warmup_steps=warmup_steps,
            decay_steps=max(total_steps, warmup_steps + 1),
            end_value=peak * final_fraction,
        )

    rate = schedule(learning_rate)
    update = optax.adamw(rate, b2=0.99, weight_decay=weight_decay)
    if muon:
        update = optax.partition(
            {
                True: optax.chain(
                    scale_by_muon(),
                    optax.add_decayed_weights(weight_decay),
                    optax.scale_by_learning_rate(schedule(muon)),
                ),
                False: update,
            },
            lambda params: jax.tree.map_with_path(is_matrix, params),
        )
    return Optimizer(optax.chain(optax.clip_by_global_norm(clip_norm), update), rate)
