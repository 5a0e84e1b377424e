"""What the tests of bridges share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from eotjax.diffusion.noise import Spectrum

N = 20_000
EPSILON = 0.6
# Two channels, the second of more fine detail than the first, and mixed in the middle.
SPECTRUM = Spectrum(
    np.float32([0, 1, 4]),
    np.float32([[[2, 0], [0, 1]], [[1.2, 0.5], [0.5, 0.8]], [[0.2, 0], [0, 0.6]]]),
)


def forward(like):
    """The direction of as many pairs."""
    return jnp.zeros(len(like), int)


def units(bridge, t, like):
    """By how much x_t in the inputs and y - x_t in the output are multiplied.

    Read off the examples, of one noise, of pairs that differ by 1.
    """
    zero, one = jnp.zeros_like(like), jnp.ones_like(like)
    apart, of_y, of_both = (
        bridge.example(jax.random.key(0), source, target, forward(t), t)
        for source, target in ((zero, zero), (zero, one), (one, one))
    )
    left = (1 - t).reshape(-1, *[1] * (like.ndim - 1))
    return of_both.inputs - apart.inputs, (of_y.output - apart.output) / left


def exact(bridge, to_y):
    """The network that regression would end in, of to_y(x_t, t) = E[y | x_t]."""

    def network(inputs, t, label):
        of_x_t, of_way = units(bridge, t, inputs)
        x_t = inputs / of_x_t
        return (to_y(x_t, t[0]) - x_t) * of_way

    return network


class Gaussians(NamedTuple):
    """Source N(a, A) and target N(b, B), and their entropic plan of epsilon."""

    a: np.ndarray
    A: np.ndarray
    b: np.ndarray
    B: np.ndarray
    epsilon: float

    def across(self):
        """The plan's covariance of source and target: Janati et al. 2020, theorem 1."""
        root = np.real(scipy.linalg.sqrtm(self.A))
        d, inverse = self.epsilon * np.eye(len(self.a)), np.linalg.inv(root)
        inner = np.real(scipy.linalg.sqrtm(4 * root @ self.B @ root + d @ d))
        return (root @ inner @ inverse - d) / 2

    def joint(self):
        """The covariance of the pair (x, y)."""
        return np.block([[self.A, self.across()], [self.across().T, self.B]])

    def precision(self):
        """Of y given x."""
        across = self.across()
        return np.linalg.inv(self.B - across.T @ np.linalg.inv(self.A) @ across)

    def to_y(self, x_t, t):
        """E[y | x_t] of the Schroedinger bridge: Doob's transform of Brownian motion.

        From x_t it ends in y with a density ~ exp(-|y - x_t|^2 / (2 epsilon (1 - t)) -
        y' (P - I / epsilon) y / 2 + h' y), the plan's own for t = 0; P = `precision`.
        """
        precision, identity = self.precision(), np.eye(len(self.a))
        linear = precision @ self.b - self.a / self.epsilon
        pull = (1 - t) * precision + t / self.epsilon * identity
        pushed = x_t / self.epsilon + (1 - t) * linear[None]
        return jnp.linalg.solve(pull, pushed.T).T


def in_1d(epsilon=0.5):
    return Gaussians(*map(np.array, ([0.5], [[1.4]], [-1.0], [[0.5]])), epsilon)


def in_2d(epsilon=0.8):
    A, B = [[1.0, 0.6], [0.6, 0.8]], [[0.5, -0.3], [-0.3, 1.5]]
    return Gaussians(*map(np.array, ([0.5, -0.2], A, [-1.0, 0.4], B)), epsilon)


CASES = {"1d": in_1d(), "2d": in_2d(), "2d, little noise": in_2d(0.1)}
