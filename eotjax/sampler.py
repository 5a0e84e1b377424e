"""Sampling: a loop over an array of times, and the steps it can take.

Noise is drawn from one key an image, so that an image's sample depends on its own key
and never on its neighbours in the batch.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from eotjax.schedule import Schedule

Image = Float[Array, "b ..."]
Time = Float[Array, ""]
Keys = Key[Array, "b"]
Denoise = Callable[[Image, Time], Image]  # (state, t) -> E[y | state]
Solver = Callable[[Denoise, Keys, Image, Time, Time], Image]  # from time t to s
State = TypeVar("State")


def normal(keys: Keys, shape: tuple[int, ...]) -> Image:
    """Standard normal noise of shape [b, *shape], image i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def fold_in(keys: Keys, data: int | Array) -> Keys:
    """`jax.random.fold_in` for a batch of keys."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def integrate(
    step: Callable[[Keys, State, Time, Time], State],
    keys: Keys,
    state: State,
    times: Float[Array, "times"],
) -> State:
    """Applies `step(keys, state, t, s)` over consecutive times; keys differ by step."""

    def body(state, at):
        index, t, s = at
        return step(fold_in(keys, index), state, t, s), None

    steps = jnp.arange(len(times) - 1)
    return jax.lax.scan(body, state, (steps, times[:-1], times[1:]))[0]


def ancestral(schedule: Schedule) -> Solver:
    """A draw from p(y_s | y_t, y = denoise(y_t)) (Ho et al. 2020, Algorithm 2)."""

    def step(denoise, keys, y_t, t, s):
        of_y_t, of_y, variance = schedule.posterior(t, s)
        noise = normal(keys, y_t.shape[1:])
        return of_y_t * y_t + of_y * denoise(y_t, t) + jnp.sqrt(variance) * noise

    return step


def ddim(schedule: Schedule) -> Solver:
    """The deterministic step of Song, Meng & Ermon 2021, equation 12 with sigma 0."""

    def step(denoise, keys, y_t, t, s):
        del keys
        y = denoise(y_t, t)
        noise = (y_t - schedule.alpha(t) * y) / schedule.sigma(t)
        return schedule.alpha(s) * y + schedule.sigma(s) * noise

    return step
