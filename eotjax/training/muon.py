"""Muon: the momentum of matrices, orthogonalised (Jordan et al. 2024).

optax's own iterates on the matrices themselves, which in this network are many times
as long as they are wide; here the same iteration runs on their products x^T x, at a
quarter of the work.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, for the steepest start
STEPS = 5
MOMENTUM = 0.95
RMS = 0.2  # of an update's elements, as AdamW's usually have


def orthogonalised(x: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """x with all its singular values brought between 0.7 and 1.2.

    Five steps of x <- x p, p = a + b s + c s^2, s = x^T x, for which s <- s p^2: all
    of these commute, so that x itself is multiplied once, by the product of all p.
    """
    if x.shape[0] < x.shape[1]:
        return orthogonalised(x.T).T
    with jax.default_matmul_precision("highest"):
        x = x / (jnp.linalg.norm(x) + 1e-8)
        first, second, third = COEFFICIENTS
        one = jnp.eye(x.shape[1])
        square, whole = x.T @ x, one
        for _ in range(STEPS):
            step = first * one + second * square + third * (square @ square)
            whole = whole @ step
            square = square @ step @ step
        return x @ whole


class State(NamedTuple):
    """The step's number and the gradients' moving average."""

    number: Array
    momentum: PyTree


def is_matrix(path: tuple, leaf: Array) -> bool:
    """Whether a parameter of a network is one: its kernels are, and nothing else."""
    return path[-1].key == "kernel"


def as_matrix(path: tuple, kernel: Array) -> Float[Array, "m n"]:
    """A layer's kernel with the axes that the layer sums over as one, the others too.

    Those are all but the last; but the queries', keys' and values' kernel has one such
    axis, the first.
    """
    if path[-2].key == "qkv":
        return kernel.reshape(len(kernel), -1)
    return kernel.reshape(-1, kernel.shape[-1])


def scale_by_muon() -> optax.GradientTransformation:
    """Nesterov momentum of kernels, orthogonalised, its root mean square about 0.2.

    Liu et al. 2025, arXiv 2502.16982, equation 4, has the scale.
    """

    def init(params: PyTree) -> State:
        return State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        grads: PyTree, state: State, params: PyTree = None
    ) -> tuple[PyTree, State]:
        number = state.number + 1
        momentum = optax.tree.update_moment(grads, state.momentum, MOMENTUM, 1)

        def one(path: tuple, mean: Array, grad: Array) -> Array:
            ahead = MOMENTUM * mean / (1 - MOMENTUM ** (number + 1))
            ahead += (1 - MOMENTUM) * grad / (1 - MOMENTUM**number)
            x = as_matrix(path, ahead)
            scale = RMS * max(x.shape) ** 0.5
            return (scale * orthogonalised(x)).reshape(grad.shape)

        updates = jax.tree.map_with_path(one, momentum, grads)
        return updates, State(number, momentum)

    return optax.GradientTransformation(init, update)
