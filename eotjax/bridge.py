"""The Schroedinger bridge: from the source itself, by a Markov process, to the target.

Between the pairs (x, y) of a plan run Brownian bridges of variance epsilon,
x_t = (1 - t) x + t y + sqrt(epsilon t (1 - t)) z for t in [0, 1] (here t = 0 is the
source). The network sees (x_t, t) only and learns E[y | x_t], so that the process it
defines is Markov. Where the plan is the entropic one of the same epsilon, that process
is the Schroedinger bridge, and its two ends have the plan's law (Shi et al. 2023,
arXiv 2303.16852, proposition 2 and theorem 8).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from eotjax import sampler
from eotjax.estimators import Example, Label, Network, expand
from eotjax.sampler import Image, Keys, Solver, Step, Time, Times


def ancestral(epsilon: float) -> Step:
    """A draw from the Brownian bridge from x_t to y = denoise(x_t), at time s."""

    def step(denoise, keys, x_t, past, t, s):
        y, share = denoise(x_t, t), (s - t) / (1 - t)
        noise = jnp.sqrt(epsilon * share * (1 - s)) * sampler.normal(
            keys, x_t.shape[1:]
        )
        return x_t + share * (y - x_t) + noise, y

    return step


def ddim(epsilon: float) -> Step:
    """The point of the bridge from the source to y = denoise(x_t), of the same noise.

    x_t = (1 - t) x + t y + sqrt(epsilon t (1 - t)) z keeps its z, drawn in the first
    step: deterministic from there on (Zheng et al. 2024, arXiv 2405.15885, equation 11
    without its noise). As the bridge is Markov, E[y | x_t] is E[y | x_t, x], and the
    marginals are those of the bridge from x.
    """

    def step(denoise, keys, x_t, past, t, s):
        y = denoise(x_t, t)
        fresh = jnp.sqrt(epsilon) * sampler.normal(keys, x_t.shape[1:])
        spread = jnp.sqrt(t * (1 - t))
        rest = x_t - (1 - t) * past.start - t * y
        noise = jnp.where(t > 0, rest / jnp.where(t > 0, spread, 1), fresh)
        return (1 - s) * past.start + s * y + jnp.sqrt(s * (1 - s)) * noise, y

    return step


def heun(epsilon: float) -> Step:
    """Stochastic Heun for dx = u dt + sqrt(epsilon) dw, u = (E[y | x] - x) / (1 - t).

    The drift is averaged over both ends of the step, at two evaluations: of weak order
    2, the noise being additive (Kloeden & Platen 1992, section 15.1).
    """

    def step(denoise, keys, x_t, past, t, s):
        h, y = s - t, denoise(x_t, t)
        noise = jnp.sqrt(epsilon * h) * sampler.normal(keys, x_t.shape[1:])
        first = (y - x_t) / (1 - t)
        ahead = x_t + h * first + noise
        # At t = 1 the quotient is 0 / 0; the drift itself has a limit.
        end = jnp.minimum(s, 1 - 1e-3)
        second = (denoise(ahead, end) - ahead) / (1 - end)
        return x_t + h * (first + second) / 2 + noise, y

    return step


def denser_to_the_end(steps: int) -> Times:
    """From 0 to 1, denser towards 1, where the target's detail is decided."""
    return 1 - jnp.linspace(1, 0, steps + 1) ** 2


def denser_to_both_ends(steps: int) -> Times:
    """From 0 to 1, denser towards 0 too, where a fixed path is given its only noise."""
    return jnp.sin(jnp.linspace(0, jnp.pi / 2, steps + 1)) ** 2


@dataclasses.dataclass(frozen=True)
class Bridge:
    """The drift of the bridge between sources and targets.

    Attributes:
      epsilon: variance of the Brownian motion over unit time, in every coordinate: a
        pixel's noise is largest half-way, of variance epsilon / 4.
      clip: keep predicted targets in [-1, 1], the range of images.
    """

    epsilon: float
    clip: bool = False
    images = 1  # that the network sees

    @property
    def solvers(self) -> dict[str, Solver]:
        """The ways to sample, by name.

        ddim and dpmpp_2m are deterministic but for their first step; ancestral, heun
        and dpmpp_2m_sde are not. The dpmpp's clocks are infinite at the ends, where
        their steps are of first order: in all they converge at an order of about 1.6.
        """
        random, fixed = ancestral(self.epsilon), ddim(self.epsilon)
        return {
            "ancestral": Solver(random, denser_to_the_end),
            "ddim": Solver(fixed, denser_to_both_ends),
            "heun": Solver(heun(self.epsilon), denser_to_the_end),
            "dpmpp_2m": Solver(
                sampler.second_order(fixed, lambda t: jnp.log(t) - jnp.log(1 - t)),
                denser_to_both_ends,
            ),
            "dpmpp_2m_sde": Solver(
                sampler.second_order(random, lambda t: -jnp.log(1 - t)),
                denser_to_the_end,
            ),
        }

    def example(
        self,
        key: Key[Array, ""],
        source: Float[Array, "b ..."],
        target: Float[Array, "b ..."],
        direction: Label,
        t: Float[Array, "b"],
    ) -> Example:
        """A point of each pair's bridge at times t, and the way that is left.

        The output is (y - x_t) / scale, computed so that it stays finite at t = 1.
        """
        at = expand(t, target)
        noise = jax.random.normal(key, target.shape)
        spread = jnp.sqrt(self.epsilon * at)
        x_t = (1 - at) * source + at * target + spread * jnp.sqrt(1 - at) * noise
        left = jnp.sqrt(1 - at) * (target - source) - spread * noise
        return Example(
            inputs=x_t / self._input_scale(at),
            t=t,
            label=direction,
            output=left / self._relative_scale(at),
        )

    def sample(
        self,
        network: Network,
        keys: Keys,
        source: Image,
        direction: Label,
        times: Times,
        solver: Step,
    ) -> Image:
        """Translates `source`, one key an image, along times from 0 up to 1."""

        def denoise(x_t: Image, t: Time) -> Image:
            at = jnp.full(direction.shape, t)
            output = network(x_t / self._input_scale(t), at, direction)
            y = x_t + jnp.sqrt(1 - t) * self._relative_scale(t) * output
            return jnp.clip(y, -1, 1) if self.clip else y

        def step(keys: Keys, state, t: Time, s: Time):
            return sampler.follow(solver, denoise, keys, state, t, s)

        return sampler.integrate(step, keys, sampler.begin(source, times), times)[0]

    def _input_scale(self, t: Array) -> Array:
        """About the standard deviation of x_t, where the data's is 1."""
        return jnp.sqrt(1 + self.epsilon * t * (1 - t))

    def _relative_scale(self, t: Array) -> Array:
        """About the standard deviation of (y - x_t) / sqrt(1 - t)."""
        return jnp.sqrt(1 - t + self.epsilon * t)
