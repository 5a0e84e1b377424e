"""Conditional diffusion: the target is drawn from noise, beside the source."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from eotjax.diffusion import prediction, sampler
from eotjax.diffusion.estimator import Example, Label, Network, expand
from eotjax.diffusion.prediction import Prediction
from eotjax.diffusion.sampler import Image, Keys, Solver, Step, Time, Times
from eotjax.diffusion.schedule import Schedule


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
      bound: keep denoised targets in [-bound, bound]: 1 for images.
      condition_dropout: share of the examples whose condition is left out.
      guidance: weight w of the condition in sampling: E[y | y_t] + w (E[y | y_t, x_t] -
        E[y | y_t]) (Ho & Salimans 2022); other than 1 it needs condition_dropout.
    """

    schedule: Schedule
    prediction: Prediction
    rho: float
    path: bool = False
    bound: float = math.inf
    condition_dropout: float = 0.0
    guidance: float = 1.0
    images = 2  # that the network sees, side by side in the channels

    def solvers(self) -> dict[str, Solver]:
        """The ways to sample, by name.

        A noised source is other noise at every step, of which no second order can be
        made: cdiffe and cmde have those of first order only.
        """
        ancestral, ddim = (f(self.schedule) for f in (sampler.ancestral, sampler.ddim))
        found = {
            "ancestral": Solver(ancestral, sampler.evenly_in_time),
            "ddim": Solver(ddim, sampler.evenly_in_time),
        }
        if self.rho > 0:
            return found
        times = sampler.evenly_in_log_snr(self.schedule)
        second = {"dpmpp_2m": ddim, "dpmpp_2m_sde": ancestral}
        return found | {
            "heun": Solver(sampler.heun(self.schedule), times),
            **{
                name: Solver(sampler.second_order(first, self.schedule.log_snr), times)
                for name, first in second.items()
            },
        }

    def example(
        self,
        key: Key[Array, ""],
        source: Float[Array, "b ..."],
        target: Float[Array, "b ..."],
        direction: Label,
        t: Float[Array, "b"],
    ) -> Example:
        """A noised pair at times t, and what the network should make of it."""
        key_source, key_target = jax.random.split(key)
        at = expand(t, target)
        alpha, sigma = self.schedule.alpha(at), self.schedule.sigma(at)
        noise = jax.random.normal(key_target, target.shape)
        noise_source = jax.random.normal(key_source, source.shape)
        x_t, label = self._noised(source, noise_source, at), direction
        if self.condition_dropout:
            key_drop = jax.random.fold_in(key, 2)
            drop = jax.random.bernoulli(key_drop, self.condition_dropout, t.shape)
            x_t = jnp.where(expand(drop, x_t), 0, x_t)
            label = direction + 2 * drop
        return Example(
            inputs=self._inputs(alpha * target + sigma * noise, x_t, at),
            t=t,
            label=label,
            output=prediction.from_data_and_noise(
                self.prediction, target, noise, alpha, sigma
            ),
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
        """Translates `source`, one key an image, along times from 1 down to 0."""

        def step(keys, state, t, s):
            y_t, x_t = state
            y_s = sampler.follow(
                solver,
                lambda y_t, t: self._denoise(network, y_t, x_t, direction, t),
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
            sampler.begin(self.schedule.scale(times[0]) * noise, times),
            self._noised(source, noise_source, times[0]),
        )
        return sampler.integrate(step, keys_loop, start, times)[0][0]

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
        noise = sampler.normal(keys, source.shape[1:])
        if self.path:
            of_x_t, of_x, variance = self.schedule.posterior(self.rho * t, self.rho * s)
            return of_x_t * x_t + of_x * source + jnp.sqrt(variance) * noise
        return self._noised(source, noise, s)

    def _inputs(self, y_t: Image, x_t: Image, t: Array) -> Image:
        """Both images at unit scale, side by side in the channels."""
        x_scale = 1.0 if self.rho == 0 else self.schedule.scale(self.rho * t)
        return jnp.concatenate([y_t / self.schedule.scale(t), x_t / x_scale], axis=-1)

    def _denoise(
        self, network: Network, y_t: Image, x_t: Image, direction: Label, t: Time
    ) -> Image:
        """E[y | y_t, x_t], guided."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)

        def data(x_t: Image, label: Label) -> Image:
            output = network(self._inputs(y_t, x_t, t), jnp.full(label.shape, t), label)
            return prediction.to_data_and_noise(
                self.prediction, output, y_t, alpha, sigma
            )[0]

        y = data(x_t, direction)
        if self.guidance != 1:
            free = data(jnp.zeros_like(x_t), direction + 2)
            y = free + self.guidance * (y - free)
        return jnp.clip(y, -self.bound, self.bound)
