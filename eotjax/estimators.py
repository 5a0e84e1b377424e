"""How a plan is distilled into a network, and how the network is sampled.

An estimator turns a pair (source x, target y) of the plan into one regression example,
and runs the sampler that belongs to it.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from eotjax import prediction, sampler
from eotjax.prediction import Prediction
from eotjax.sampler import Image, Keys, Solver, Time
from eotjax.schedule import Schedule

Network = Callable[[Float[Array, "b ..."], Float[Array, "b"]], Float[Array, "b ..."]]


class Example(NamedTuple):
    """One batch of a regression: the network at (inputs, t) should return output."""

    inputs: Float[Array, "b ..."]
    t: Float[Array, "b"]
    output: Float[Array, "b ..."]


def expand(t: Float[Array, "b"], like: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """t with as many trailing axes of size 1 as broadcasting against `like` takes."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


@dataclasses.dataclass(frozen=True)
class ConditionalScore:
    """The score of the noised target given the source, noised at another speed.

    y_t = alpha(t) y + sigma(t) z and x_t = alpha(rho t) x + sigma(rho t) z'; the
    network sees (y_t, x_t, t). Batzolis et al. 2021, arXiv 2111.13606: rho = 0 is
    conditional denoising (`cde`), rho = 1 conditional diffusive (`cdiffe`), in between
    multi-speed (`cmde`).

    Attributes:
      schedule: the forward process of both images.
      prediction: what the network predicts.
      rho: the speed of the condition, in [0, 1].
      path: in sampling, let x_t follow one backward path p(x_s | x_t, x) (the paper's
        `use_path`) instead of drawing it afresh from p(x_t | x) at every step.
      clip: keep denoised targets in [-1, 1], the range of images.
    """

    schedule: Schedule
    prediction: Prediction
    rho: float
    path: bool = False
    clip: bool = False
    images = 2  # that the network sees, side by side in the channels

    @property
    def solvers(self) -> dict[str, Solver]:
        """The steps that sampling can take, by name."""
        return {
            "ancestral": sampler.ancestral(self.schedule),
            "ddim": sampler.ddim(self.schedule),
        }

    def times(self, steps: int) -> Float[Array, "times"]:
        """From 1 to 0, evenly."""
        return jnp.linspace(1, 0, steps + 1)

    def example(
        self,
        key: Key[Array, ""],
        source: Float[Array, "b ..."],
        target: Float[Array, "b ..."],
        t: Float[Array, "b"],
    ) -> Example:
        """A noised pair at times t, and what the network should make of it."""
        key_source, key_target = jax.random.split(key)
        at = expand(t, target)
        alpha, sigma = self.schedule.alpha(at), self.schedule.sigma(at)
        noise = jax.random.normal(key_target, target.shape)
        noise_source = jax.random.normal(key_source, source.shape)
        return Example(
            inputs=self._inputs(
                alpha * target + sigma * noise,
                self._noised(source, noise_source, at),
                at,
            ),
            t=t,
            output=prediction.from_data_and_noise(
                self.prediction, target, noise, alpha, sigma
            ),
        )

    def sample(
        self,
        network: Network,
        keys: Keys,
        source: Image,
        times: Float[Array, "times"],
        solver: Solver,
    ) -> Image:
        """Translates `source`, one key an image, along times from 1 down to 0."""

        def step(keys, state, t, s):
            y_t, x_t = state
            y_s = solver(
                lambda y_t, t: self._denoise(network, y_t, x_t, t),
                sampler.fold_in(keys, 0),
                y_t,
                t,
                s,
            )
            return y_s, self._next_condition(
                sampler.fold_in(keys, 1), source, x_t, t, s
            )

        keys_prior, keys_condition, keys_loop = (
            sampler.fold_in(keys, index) for index in range(3)
        )
        noise = sampler.normal(keys_prior, source.shape[1:])
        noise_source = sampler.normal(keys_condition, source.shape[1:])
        start = (
            self.schedule.scale(times[0]) * noise,
            self._noised(source, noise_source, times[0]),
        )
        return sampler.integrate(step, keys_loop, start, times)[0]

    def _noised(self, source: Image, noise: Image, t: Array) -> Image:
        if self.rho == 0:
            return source
        at = self.rho * t
        return self.schedule.alpha(at) * source + self.schedule.sigma(at) * noise

    def _next_condition(
        self, keys: Keys, source: Image, x_t: Image, t: Time, s: Time
    ) -> Image:
        if self.rho == 0:
            return source
        if self.path:
            exact = sampler.ancestral(self.schedule)
            return exact(lambda *_: source, keys, x_t, self.rho * t, self.rho * s)
        return self._noised(source, sampler.normal(keys, source.shape[1:]), s)

    def _inputs(self, y_t: Image, x_t: Image, t: Array) -> Image:
        """Both images at unit scale, side by side in the channels."""
        x_scale = 1.0 if self.rho == 0 else self.schedule.scale(self.rho * t)
        return jnp.concatenate([y_t / self.schedule.scale(t), x_t / x_scale], axis=-1)

    def _denoise(self, network: Network, y_t: Image, x_t: Image, t: Time) -> Image:
        output = network(self._inputs(y_t, x_t, t), jnp.full(len(y_t), t))
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        data, _ = prediction.to_data_and_noise(
            self.prediction, output, y_t, alpha, sigma
        )
        return jnp.clip(data, -1, 1) if self.clip else data
