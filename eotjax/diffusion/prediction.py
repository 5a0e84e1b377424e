"""What the network predicts, and how one prediction becomes another, exactly.

With s = sqrt(alpha^2 + sigma^2), a = alpha / s and b = sigma / s, the scaled image
y_t / s = a y + b z is a rotation, for every schedule. Its partner is
v = a z - b y (Salimans & Ho 2022, appendix D), so that
y = a y_t / s - b v and z = b y_t / s + a v.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Prediction = Literal["v", "noise", "data"]
Coefficient = Float[Array, "..."]


def to_data_and_noise(
    prediction: Prediction,
    output: Float[Array, "b ..."],
    y_t: Float[Array, "b ..."],
    alpha: Coefficient,
    sigma: Coefficient,
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    """(data, noise) implied by a network output; alpha, sigma broadcast against y_t.

    `noise` divides by alpha and `data` by sigma: they need those to be positive.
    """
    if prediction == "data":
        return output, (y_t - alpha * output) / sigma
    if prediction == "noise":
        return (y_t - sigma * output) / alpha, output
    scale = jnp.hypot(alpha, sigma)
    a, b = alpha / scale, sigma / scale
    return a * y_t / scale - b * output, b * y_t / scale + a * output


def from_data_and_noise(
    prediction: Prediction,
    data: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    alpha: Coefficient,
    sigma: Coefficient,
) -> Float[Array, "b ..."]:
    """The network output that stands for this data and this noise."""
    if prediction == "data":
        return data
    if prediction == "noise":
        return noise
    return (alpha * noise - sigma * data) / jnp.hypot(alpha, sigma)
