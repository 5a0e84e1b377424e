"""Sampling: a loop over an array of times, and the steps it can take.

Noise is drawn from one key an image, so that an image's sample depends on its own key
and never on its neighbours in the batch.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from eotjax.diffusion.schedule import Schedule

Image = Float[Array, "b ..."]
Time = Float[Array, ""]
Times = Float[Array, "times"]
Keys = Key[Array, "b"]
Denoise = Callable[[Image, Time], Image]  # (state, t) -> E[y | state]
Clock = Callable[[Array], Array]  # time as a multistep method sees it
State = TypeVar("State")
DROWNED = -5.0  # log-SNR
LAST = 1e-3  # time


class Past(NamedTuple):
    """What a step may look back on: where the path began, and the last evaluation."""

    start: Image
    t: Time
    y: Image  # E[y | state] at t


# (denoise, keys, y_t, past, t, s) -> (y_s, denoise(y_t, t))
Step = Callable[[Denoise, Keys, Image, Past, Time, Time], tuple[Image, Image]]


class Solver(NamedTuple):
    """A way to sample: its step, and the times that suit it, by their number."""

    step: Step
    times: Callable[[int], Times]


def normal(keys: Keys, shape: tuple[int, ...]) -> Image:
    """Standard normal noise of shape [b, *shape], image i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def fold_in(keys: Keys, data: int | Array) -> Keys:
    """`jax.random.fold_in` for a batch of keys."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def keys_of(seed: UInt32[Array, ""], number: UInt32[Array, "b"], source: Image) -> Keys:
    """A key an image, from the seed, the image's values and a number.

    The values' bits are summed with random odd weights, modulo 2^32: images that differ
    in one value never get the same key.
    """
    values = source.reshape(source.shape[0], -1)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    weights = jax.random.bits(jax.random.key(0), values.shape[1:], jnp.uint32) | 1
    digests = jnp.sum(bits * weights[None], axis=1, dtype=jnp.uint32)
    seeded = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(jax.random.fold_in)(seeded(jax.random.key(seed), digests), number)


def integrate(
    step: Callable[[Keys, State, Time, Time], State],
    keys: Keys,
    state: State,
    times: Times,
) -> State:
    """Applies `step(keys, state, t, s)` over consecutive times; keys differ by step."""

    def body(state, at):
        index, t, s = at
        return step(fold_in(keys, index), state, t, s), None

    steps = jnp.arange(len(times) - 1)
    return jax.lax.scan(body, state, (steps, times[:-1], times[1:]))[0]


def begin(start: Image, times: Times) -> tuple[Image, Past]:
    """The state of a path that begins at `start`, with nothing evaluated yet."""
    return start, Past(start, times[0], jnp.zeros_like(start))


def follow(
    step: Step,
    denoise: Denoise,
    keys: Keys,
    state: tuple[Image, Past],
    t: Time,
    s: Time,
) -> tuple[Image, Past]:
    """One step of a path, remembered."""
    y_t, past = state
    y_s, y = step(denoise, keys, y_t, past, t, s)
    return y_s, Past(past.start, t, y)


def ancestral(schedule: Schedule) -> Step:
    """A draw from p(y_s | y_t, y = denoise(y_t)) (Ho et al. 2020, Algorithm 2)."""

    def step(denoise, keys, y_t, past, t, s):
        of_y_t, of_y, variance = schedule.posterior(t, s)
        y, noise = denoise(y_t, t), normal(keys, y_t.shape[1:])
        return of_y_t * y_t + of_y * y + jnp.sqrt(variance) * noise, y

    return step


def ddim(schedule: Schedule) -> Step:
    """The deterministic step of Song, Meng & Ermon 2021, equation 12 with sigma 0.

    Of sigma(0), where a schedule has that, as much noise stays in the end.
    """

    def step(denoise, keys, y_t, past, t, s):
        y = denoise(y_t, t)
        noise = (y_t - schedule.alpha(t) * y) / schedule.sigma(t)
        return schedule.alpha(s) * y + schedule.sigma(s) * noise, y

    return step


def heun(schedule: Schedule) -> Step:
    """Heun's step of the probability flow, at two evaluations; deterministic.

    In x = y_t / alpha and r = sigma / alpha the flow is dx / dr = (x - E[y]) / r, whose
    Euler step is DDIM (Karras et al. 2022, Algorithm 1; a last step to r = 0 is Euler).
    """

    def step(denoise, keys, y_t, past, t, s):
        r_t, r_s = (schedule.sigma(at) / schedule.alpha(at) for at in (t, s))
        y, x = denoise(y_t, t), y_t / schedule.alpha(t)
        first = (x - y) / r_t
        ahead = x + (r_s - r_t) * first
        again = ahead - denoise(schedule.alpha(s) * ahead, s)
        second = jnp.where(r_s > 0, again / jnp.where(r_s > 0, r_s, 1), first)
        return schedule.alpha(s) * (x + (r_s - r_t) * (first + second) / 2), y

    return step


def second_order(first: Step, clock: Clock) -> Step:
    """A first-order step at E[y] extrapolated to the middle of the step.

    The slope is that of the last two evaluations, along `clock`: the log-SNR, at whose
    end, where that is infinite, and beginning the step is of first order. Of DDIM this
    makes DPM-Solver++(2M), of ancestral steps its SDE form (Lu et al. 2022, arXiv
    2211.01095, Algorithm 2 and appendix B).
    """

    def step(denoise, keys, y_t, past, t, s):
        y = denoise(y_t, t)
        ahead, behind = clock(s) - clock(t), clock(t) - clock(past.t)
        known = (past.t != t) & jnp.isfinite(clock(s))
        share = jnp.where(known, ahead / jnp.where(known, 2 * behind, 1), 0)
        middle = y + share * (y - past.y)
        return first(lambda *_: middle, keys, y_t, past, t, s)[0], y

    return step


def evenly_in_time(steps: int) -> Times:
    """From 1 to 0."""
    return jnp.linspace(1, 0, steps + 1)


def evenly_in_log_snr(schedule: Schedule) -> Callable[[int], Times]:
    """From 1 to 0 in equal steps of log-SNR, but for both its ends.

    Below DROWNED, where noise leaves nothing of the data to see, steps are ten times
    as long. Where the log-SNR is infinite at 0, the last step begins at LAST.
    """
    finite = bool(jnp.isfinite(schedule.log_snr(jnp.zeros(()))))
    t = np.linspace(0 if finite else LAST, 1, 100_001)
    above = np.asarray(schedule.log_snr(jnp.asarray(t))) - DROWNED
    clock = -np.where(above > 0, above, above / 10)

    def times(steps: int) -> Times:
        even = np.linspace(clock[-1], clock[0], steps + finite)
        found = np.interp(even, clock, t)
        return jnp.asarray(found if finite else [*found, 0.0], float)

    return times
