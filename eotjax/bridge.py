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
from eotjax.estimators import Example, Network, expand
from eotjax.sampler import Denoise, Image, Keys, Solver, Time


def ancestral(epsilon: float) -> Solver:
    """A draw from the Brownian bridge from x_t to y = denoise(x_t), at time s."""

    def step(denoise: Denoise, keys: Keys, x_t: Image, t: Time, s: Time) -> Image:
        share = (s - t) / (1 - t)
        noise = jnp.sqrt(epsilon * share * (1 - s)) * sampler.normal(
            keys, x_t.shape[1:]
        )
        return x_t + share * (denoise(x_t, t) - x_t) + noise

    return step


def heun(epsilon: float) -> Solver:
    """Stochastic Heun for dx = u dt + sqrt(epsilon) dw, u = (E[y | x] - x) / (1 - t).

    The drift is averaged over both ends of the step, at two evaluations: of weak order
    2, the noise being additive (Kloeden & Platen 1992, section 15.1).
    """

    def step(denoise: Denoise, keys: Keys, x_t: Image, t: Time, s: Time) -> Image:
        def drift(x: Image, t: Time) -> Image:
            return (denoise(x, t) - x) / (1 - t)

        h = s - t
        noise = jnp.sqrt(epsilon * h) * sampler.normal(keys, x_t.shape[1:])
        first = drift(x_t, t)
        # At t = 1 the quotient is 0 / 0; the drift itself has a limit.
        second = drift(x_t + h * first + noise, jnp.minimum(s, 1 - 1e-3))
        return x_t + h * (first + second) / 2 + noise

    return step


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
        """The steps that sampling can take, by name."""
        return {"ancestral": ancestral(self.epsilon), "heun": heun(self.epsilon)}

    def times(self, steps: int) -> Float[Array, "times"]:
        """From 0 to 1, denser towards 1, where the target's detail is decided."""
        return 1 - jnp.linspace(1, 0, steps + 1) ** 2

    def example(
        self,
        key: Key[Array, ""],
        source: Float[Array, "b ..."],
        target: Float[Array, "b ..."],
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
            output=left / self._relative_scale(at),
        )

    def sample(
        self,
        network: Network,
        keys: Keys,
        source: Image,
        times: Float[Array, "times"],
        solver: Solver,
    ) -> Image:
        """Translates `source`, one key an image, along times from 0 up to 1."""

        def denoise(x_t: Image, t: Time) -> Image:
            output = network(x_t / self._input_scale(t), jnp.full(len(x_t), t))
            y = x_t + jnp.sqrt(1 - t) * self._relative_scale(t) * output
            return jnp.clip(y, -1, 1) if self.clip else y

        def step(keys: Keys, x_t: Image, t: Time, s: Time) -> Image:
            return solver(denoise, keys, x_t, t, s)

        return sampler.integrate(step, keys, source, times)

    def _input_scale(self, t: Array) -> Array:
        """About the standard deviation of x_t, where the data's is 1."""
        return jnp.sqrt(1 + self.epsilon * t * (1 - t))

    def _relative_scale(self, t: Array) -> Array:
        """About the standard deviation of (y - x_t) / sqrt(1 - t)."""
        return jnp.sqrt(1 - t + self.epsilon * t)
