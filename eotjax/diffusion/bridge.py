"""The Schroedinger bridge: from the source itself, by a Markov process, to the target.

Between the pairs (x, y) of a plan run Brownian bridges of variance epsilon,
x_t = (1 - t) x + t y + sqrt(epsilon t (1 - t)) z for t in [0, 1] (here t = 0 is the
source). The network sees (x_t, t) only and learns E[y | x_t], so that the process it
defines is Markov. Where the plan is the entropic one of the same epsilon, that process
is the Schroedinger bridge, and its two ends have the plan's law (Shi et al. 2023,
arXiv 2303.16852, proposition 2 and theorem 8).

The noise of images may be coloured, z = K white noise. All of this holds of that
process too, whose plan is the entropic one of the cost |K^-1 (x - y)|^2 / 2: what
varies little is dear to change, and passes through.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from eotjax.diffusion import sampler
from eotjax.diffusion.estimator import Example, Label, Network, expand
from eotjax.diffusion.noise import Spectrum, coloured
from eotjax.diffusion.sampler import Image, Keys, Solver, Step, Time, Times


def _noise(keys: Keys, like: Image, spectrum: Spectrum | None) -> Image:
    return coloured(sampler.normal(keys, like.shape[1:]), spectrum)


def _between(
    source: Image, target: Image, t: Array, spread: Array, noise: Image
) -> Image:
    """A bridge's point at time t, where the free motion's noise is of such spread."""
    return (1 - t) * source + t * target + spread * jnp.sqrt(1 - t) * noise


def ancestral(epsilon: float, temperature: float, spectrum: Spectrum | None) -> Step:
    """A draw from the Brownian bridge from x_t to y = denoise(x_t), at time s.

    Its noise is multiplied by `temperature`, and coloured as the process's.
    """

    def step(denoise, keys, x_t, past, t, s):
        y, share = denoise(x_t, t), (s - t) / (1 - t)
        deviation = temperature * jnp.sqrt(epsilon * share * (1 - s))
        noise = deviation * _noise(keys, x_t, spectrum)
        return x_t + share * (y - x_t) + noise, y

    return step


def ddim(epsilon: float, temperature: float, spectrum: Spectrum | None) -> Step:
    """The point of the bridge from the source to y = denoise(x_t), of the same noise.

    x_t = (1 - t) x + t y + sqrt(epsilon t (1 - t)) z keeps its z, drawn in the first
    step: deterministic from there on (Zheng et al. 2024, arXiv 2405.15885, equation 11
    without its noise). The marginals are those of the bridges from x where E[y | x_t]
    is E[y | x_t, x]: of the Schroedinger bridge, which is Markov. Between other pairs
    it loses variance, at any number of steps.
    """

    def step(denoise, keys, x_t, past, t, s):
        y = denoise(x_t, t)

        def kept() -> Image:
            rest = x_t - (1 - t) * past.start - t * y
            return rest / jnp.sqrt(t * (1 - t))

        def drawn() -> Image:
            deviation = temperature * jnp.sqrt(epsilon)
            return deviation * _noise(keys, x_t, spectrum)

        noise = jax.lax.cond(t > 0, kept, drawn)
        return (1 - s) * past.start + s * y + jnp.sqrt(s * (1 - s)) * noise, y

    return step


def heun(epsilon: float, temperature: float, spectrum: Spectrum | None) -> Step:
    """Stochastic Heun for dx = u dt + sqrt(epsilon) dw, u = (E[y | x] - x) / (1 - t).

    The drift is averaged over both ends of the step, at two evaluations: of weak order
    2, the noise being additive (Kloeden & Platen 1992, section 15.1). The last step, of
    1 / steps^2, goes to the mean: at t = 1 the drift is 0 / 0, and just before it
    divides by nearly nothing what the step's own noise has added.
    """

    def step(denoise, keys, x_t, past, t, s):
        h, y = s - t, denoise(x_t, t)
        deviation = temperature * jnp.sqrt(epsilon * h)
        noise = deviation * _noise(keys, x_t, spectrum)
        first = (y - x_t) / (1 - t)
        ahead = x_t + h * first + noise

        def averaged() -> Image:
            second = (denoise(ahead, s) - ahead) / (1 - s)
            return x_t + h * (first + second) / 2 + noise

        return jax.lax.cond(s < 1, averaged, lambda: y), y

    return step


def _of_contrast(guided: Image, like: Image) -> Image:
    """Images scaled to others' standard deviation over all their values; vectors as is.

    Guidance raises contrast with every step (Lin et al. 2023, arXiv 2305.08891,
    equations 15 and 16).
    """
    if guided.ndim < 4:
        return guided
    deviation, wanted = (
        jnp.std(x, axis=(1, 2, 3), keepdims=True) for x in (guided, like)
    )
    return guided * wanted / jnp.maximum(deviation, 1e-6)


def denser_to_the_end(steps: int) -> Times:
    """From 0 to 1, denser towards 1, where the target's detail is decided."""
    return 1 - jnp.linspace(1, 0, steps + 1) ** 2


def denser_to_both_ends(steps: int) -> Times:
    """From 0 to 1, denser towards 0 too, where a fixed path is given its only noise."""
    return jnp.sin(jnp.linspace(0, jnp.pi / 2, steps + 1)) ** 2


class Preconditioning(NamedTuple):
    """E[y | x_t] = skip x_t + sqrt(1 - t) out F, of a network F that sees x_t / scale.

    With keep = (1 - t skip) / (1 - t), which has a limit at t = 1.
    """

    skip: Array
    keep: Array
    out: Array
    scale: Array


class PairMoments(NamedTuple):
    """Second moments of a plan's pairs about zero, mean over the coordinates."""

    source: float = 1.0
    target: float = 1.0
    cross: float = 0.0


def drift(epsilon: float, t: Array) -> Preconditioning:
    """The network predicts the drift, (y - x_t) / (1 - t), at about unit scale."""
    return Preconditioning(
        skip=jnp.ones_like(t),
        keep=jnp.ones_like(t),
        out=jnp.sqrt(1 - t + epsilon * t),
        scale=jnp.sqrt(1 + epsilon * t * (1 - t)),
    )


def clean_data(epsilon: float, moments: PairMoments, t: Array) -> Preconditioning:
    """The network predicts what the best linear guess at y leaves, at unit scale.

    Karras et al. 2022, table 1 and appendix B.6, for bridges (Zhou et al. 2023, arXiv
    2309.16948): inputs and outputs have unit variance at all times, and at t = 1 the
    prediction is x_t itself, whatever the network says.
    """
    source, target, cross = moments
    left, blurred = 1 - t, cross + epsilon
    variance = left**2 * source + t * left * (cross + blurred) + t**2 * target
    # Var(y) - Cov(y, x_t)^2 / Var(x_t) = left rest / variance.
    rest = left * (source * target - cross**2) + t * epsilon * target
    return Preconditioning(
        skip=(left * cross + t * target) / variance,
        keep=(left * source + t * blurred) / variance,
        out=jnp.sqrt(rest / variance),
        scale=jnp.sqrt(variance),
    )


@dataclasses.dataclass(frozen=True)
class Bridge:
    """The drift of the bridge between sources and targets.

    Attributes:
      epsilon: variance of the Brownian motion over unit time, in every coordinate: a
        pixel's noise is largest half-way, of variance epsilon / 4.
      spectrum: of the noise of images, of variance epsilon far from their borders;
        None for white noise.
      moments: of the pairs, for a network that predicts clean data; None for one that
        predicts the drift.
      bound: keep predicted targets in [-bound, bound]: 1 for images.
      guidance: weight w of the direction in sampling, for a network of both directions:
        E[y | x_t] + (w - 1) (E[y | x_t] - E[y' | x_t]), y' being where the other
        direction would lead from the same point at the same t: away from the sources'
        domain. An image keeps the contrast of E[y | x_t].
      temperature: of the sampler's noise, multiplies its deviation. Below 1 it is not
        the learnt process any more: what noise a network cannot take out is not put in.
      restart: a time; from the end the sampler goes back there once, to a point of the
        bridge between the source and the end, and on again: what went wrong before is
        drowned in new noise, all of it (Xu et al. 2023, arXiv 2306.14878). 0 for none.
        Of the Schroedinger bridge alone that leaves the ends' law as it is; where pairs
        are more independent than its own, it adds variance.
    """

    epsilon: float
    spectrum: Spectrum | None = None
    moments: PairMoments | None = None
    bound: float = math.inf
    guidance: float = 1.0
    temperature: float = 1.0
    restart: float = 0.0
    images = 1  # that the network sees

    def solvers(self) -> dict[str, Solver]:
        """The ways to sample, by name.

        ddim and dpmpp_2m are deterministic but for their first step, and right for the
        Schroedinger bridge alone; ancestral, heun and dpmpp_2m_sde follow the learnt
        process between any pairs. The dpmpp's clocks are infinite at the ends, where
        their steps are of first order: in all they converge at an order of about 1.6.
        """
        random, fixed, second = (
            method(self.epsilon, self.temperature, self.spectrum)
            for method in (ancestral, ddim, heun)
        )
        return {
            "ancestral": Solver(random, denser_to_the_end),
            "ddim": Solver(fixed, denser_to_both_ends),
            "heun": Solver(second, denser_to_the_end),
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
        """A point of each pair's bridge at times t, and what the network should say.

        The output is (y - skip x_t) / (sqrt(1 - t) out), computed so that it stays
        finite at t = 1.
        """
        at = expand(t, target)
        white = jax.random.normal(key, target.shape)
        noise = coloured(white, self.spectrum)
        spread = jnp.sqrt(self.epsilon * at)
        x_t = _between(source, target, at, spread, noise)
        skip, keep, out, scale = self._precondition(at)
        change = jnp.sqrt(1 - at) * (keep * target - skip * source)
        return Example(
            inputs=x_t / scale,
            t=t,
            label=direction,
            output=(change - skip * spread * noise) / out,
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
            skip, _, out, scale = self._precondition(t)

            def towards(direction: Label) -> Image:
                at = jnp.full(direction.shape, t)
                output = network(x_t / scale, at, direction)
                return skip * x_t + jnp.sqrt(1 - t) * out * output

            y = towards(direction)
            if self.guidance != 1:
                away = (self.guidance - 1) * (y - towards(1 - direction))
                y = _of_contrast(y + away, y)
            return jnp.clip(y, -self.bound, self.bound)

        def step(keys: Keys, state, t: Time, s: Time):
            return sampler.follow(solver, denoise, keys, state, t, s)

        end = sampler.integrate(step, keys, sampler.begin(source, times), times)[0]
        if not self.restart:
            return end
        later = [time for time in np.asarray(times) if time > self.restart]
        if later[0] - self.restart < np.diff(later[:2]).sum() / 2:
            del later[0]  # second-order solvers divide by the length of a step
        rest = jnp.asarray([self.restart, *later], times.dtype)
        t, again = rest[0], sampler.fold_in(keys, len(times))
        noise = _noise(again, end, self.spectrum)
        x_t = _between(source, end, t, jnp.sqrt(self.epsilon * t), noise)
        _, past = sampler.begin(source, rest)
        return sampler.integrate(step, again, (x_t, past), rest)[0]

    def _precondition(self, t: Array) -> Preconditioning:
        if self.moments is None:
            return drift(self.epsilon, t)
        return clean_data(self.epsilon, self.moments, t)
