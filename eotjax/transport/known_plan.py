"""Pairs of distributions whose entropic plan is known in closed form.

Choose a source p0 freely and a potential sum_k w_k N(mu_k, Sigma_k). For the cost
|x - y|^2 / 2 and the regularisation epsilon, the entropic plan between p0 and the
target p1 that it pushes p0 to is p0(x) pi(y | x) with
pi(y | x) = sum_k w_k(x) N(m_k(x), S_k), w_k(x) ~ w_k N(x | mu_k, Sigma_k + epsilon I),
S_k = (I / epsilon + Sigma_k^-1)^-1, m_k(x) = S_k (x / epsilon + Sigma_k^-1 mu_k)
(Gushchin et al. 2023, "Building the bridge of Schroedinger", section 3).
"""

import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from eotjax.transport.moments import Moments

Sources = Literal["gaussian", "mixture"]
Covariances = Literal["isotropic", "full"]
COMPONENTS = 5  # of the potential and of a mixture source
RADIUS = 5.0  # of the sphere that the potential's means lie on
SAMPLES = 1_000  # of each test source
MOMENT_SAMPLES = 2**15  # sources that the target's own moments are averaged over
# The truth is not rounded as accelerators round products by default.
_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Mixture(NamedTuple):
    """sum_k w_k N(mu_k, Sigma_k), in float64."""

    weights: Float[np.ndarray, "k"]
    means: Float[np.ndarray, "k d"]
    covariances: Float[np.ndarray, "k d d"]


class KnownPlan(NamedTuple):
    """A source and a potential; together they define the target and the plan."""

    epsilon: float
    source: Mixture
    potential: Mixture


def make(
    *,
    dim: int,
    epsilon: float,
    seed: int = 0,
    source: Sources = "gaussian",
    covariance: Covariances = "isotropic",
) -> KnownPlan:
    """One random instance.

    Args:
      dim: d of the vectors.
      epsilon: of the plan, in units of |x - y|^2 / 2.
      seed: of everything random about the instance.
      source: N(0, I), or a mixture of five Gaussians with about unit variance.
      covariance: of the potential's components: I, or full random matrices with
        eigenvalues from 1/4 to 4, another one a component.
    """
    rng = np.random.default_rng([seed, dim])

    def sphere(radius: float) -> np.ndarray:
        points = rng.standard_normal((COMPONENTS, dim))
        return radius * points / np.linalg.norm(points, axis=1, keepdims=True)

    def mixture(means: np.ndarray, covariances: np.ndarray) -> Mixture:
        return Mixture(np.full(len(means), 1 / len(means)), means, covariances)

    identity = np.tile(np.eye(dim), (COMPONENTS, 1, 1))
    means, covariances = sphere(RADIUS), identity
    if covariance == "full":
        axes = np.linalg.qr(rng.standard_normal((COMPONENTS, dim, dim)))[0]
        values = 4.0 ** rng.uniform(-1, 1, (COMPONENTS, 1, dim))
        covariances = (axes * values) @ axes.transpose(0, 2, 1)
    p0 = mixture(np.zeros((1, dim)), identity[:1])
    if source == "mixture":
        p0 = mixture(sphere(math.sqrt(dim / 2)), identity / 2)
    return KnownPlan(epsilon, p0, mixture(means, covariances))


def sample_mixture(
    key: Key[Array, ""], mixture: Mixture, n: int
) -> Float[Array, "n d"]:
    """n independent draws."""
    key_component, key_noise = jax.random.split(key)
    component = jax.random.categorical(
        key_component, jnp.log(mixture.weights), shape=(n,)
    )
    noise = jax.random.normal(key_noise, (n, mixture.means.shape[1]))
    means = jnp.asarray(mixture.means, jnp.float32)
    return means[component] + _correlated(mixture.covariances, component, noise)


def _correlated(
    covariances: Float[np.ndarray, "k d d"],
    component: Int[Array, "n"],
    noise: Float[Array, "n d"],
) -> Float[Array, "n d"]:
    """Noise of unit variance, given the covariance of each row's component."""
    factors = np.linalg.cholesky(covariances)
    # One product a component is far less memory than one matrix a sample.
    parts = jnp.stack(
        [_einsum("nd,ed->ne", noise, jnp.float32(factor)) for factor in factors]
    )
    return jnp.take_along_axis(parts, component[None, :, None], axis=0)[0]


def log_density(
    x: Float[Array, "n d"],
    means: Float[np.ndarray, "k d"],
    covariances: Float[np.ndarray, "k d d"],
) -> Float[Array, "n k"]:
    """log N(x_i | mu_k, Sigma_k)."""
    whiten = np.linalg.inv(np.linalg.cholesky(covariances))
    scaled = _einsum("kde,nke->nkd", jnp.float32(whiten), _away(x, means))
    log_volume = np.log(np.diagonal(whiten, axis1=1, axis2=2)).sum(1)
    constant = log_volume - x.shape[1] / 2 * np.log(2 * np.pi)
    return jnp.float32(constant)[None] - jnp.sum(scaled**2, 2) / 2


def _away(x: Float[Array, "n d"], means: Float[np.ndarray, "k d"]) -> Array:
    return x[:, None] - jnp.float32(means)[None]


def conditional(
    plan: KnownPlan, x: Float[Array, "n d"]
) -> tuple[Float[Array, "n k"], Float[Array, "n k d"], Float[np.ndarray, "k d d"]]:
    """Log weights, means and covariances of the Gaussians of pi(y | x)."""
    weights, means, covariances = plan.potential
    smoothed = covariances + plan.epsilon * np.eye(x.shape[1])
    log_weights = jax.nn.log_softmax(
        jnp.float32(np.log(weights))[None] + log_density(x, means, smoothed), axis=1
    )
    # S_k = epsilon Sigma_k (Sigma_k + epsilon I)^-1, without inverting Sigma_k, and
    # m_k = mu_k + S_k / epsilon (x - mu_k).
    shrink = covariances @ np.linalg.inv(smoothed)
    centres = jnp.float32(means)[None] + _einsum(
        "kde,nke->nkd", jnp.float32(shrink), _away(x, means)
    )
    return log_weights, centres, plan.epsilon * shrink


def sample(
    key: Key[Array, ""], plan: KnownPlan, source: Float[Array, "n d"]
) -> Float[Array, "n d"]:
    """One exact draw from pi(y | x) for each source."""
    key_component, key_noise = jax.random.split(key)
    log_weights, means, covariances = conditional(plan, source)
    component = jax.random.categorical(key_component, log_weights, axis=1)
    noise = jax.random.normal(key_noise, source.shape)
    centre = jnp.take_along_axis(means, component[:, None, None], axis=1)[:, 0]
    return centre + _correlated(covariances, component, noise)


def conditional_moments(plan: KnownPlan, x: Float[Array, "n d"]) -> Moments:
    """Mean and covariance of pi(y | x), exactly."""
    log_weights, means, covariances = conditional(plan, x)
    weights = jnp.exp(log_weights)
    mean = _einsum("nk,nkd->nd", weights, means)
    away = means - mean[:, None]
    covariance = _einsum("nkd,nke->nde", weights[:, :, None] * away, away)
    within = _einsum("nk,kde->nde", weights, jnp.float32(covariances))
    return Moments(mean, covariance + within)


def target_moments(plan: KnownPlan, key: Key[Array, ""]) -> Moments:
    """Mean and covariance of p1, over MOMENT_SAMPLES sources."""
    chunk = 1024

    @jax.jit
    def part(key):
        x = sample_mixture(key, plan.source, chunk)
        log_weights, means, covariances = conditional(plan, x)
        weights = jnp.exp(log_weights)
        weighted = weights[:, :, None] * means
        within = _einsum("k,kde->de", weights.mean(0), jnp.float32(covariances))
        second = _einsum("nkd,nke->de", weighted, means) / chunk
        return weighted.sum(1).mean(0), within + second

    # Read one by one: CPU devices may wait for each other in overlapping programs.
    parts = [
        jax.device_get(part(key))
        for key in jax.random.split(key, MOMENT_SAMPLES // chunk)
    ]
    mean, second = (np.mean(x, 0, dtype=float) for x in zip(*parts, strict=True))
    return Moments(mean, second - np.outer(mean, mean))
