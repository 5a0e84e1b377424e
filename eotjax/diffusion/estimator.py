"""How a plan is distilled into a network, and how the network is sampled.

An estimator turns a pair (source x, target y) of the plan into one regression example,
and runs the sampler that belongs to it.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from eotjax.diffusion.sampler import Image, Keys, Solver, Step, Times

Label = Int[Array, "b"]  # direction, 0 or 1, and 2 more where the condition is dropped
Network = Callable[[Float[Array, "b ..."], Float[Array, "b"], Label], Image]


class Example(NamedTuple):
    """A batch of a regression: the network at (inputs, t, label) should be output."""

    inputs: Float[Array, "b ..."]
    t: Float[Array, "b"]
    label: Label
    output: Float[Array, "b ..."]


def expand(x: Shaped[Array, "b"], like: Float[Array, "b ..."]) -> Array:
    """x with as many trailing axes of size 1 as broadcasting against `like` takes."""
    return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))


# (key, source, target, direction, t) -> the regression of a batch of pairs
MakeExample = Callable[
    [Key[Array, ""], Image, Image, Label, Float[Array, "b"]], Example
]
# (network, keys, source, direction, times, step of a solver) -> translations
Sample = Callable[[Network, Keys, Image, Label, Times, Step], Image]


@runtime_checkable
class Estimator(Protocol):
    """What is asked of an estimator; its sampling options are attributes of its own."""

    @property
    def images(self) -> int:
        """How many images the network sees, side by side in the channels."""

    def solvers(self) -> dict[str, Solver]:
        """The ways to sample, by name."""

    @property
    def example(self) -> MakeExample:
        """What the network should say of each pair at times t."""

    @property
    def sample(self) -> Sample:
        """Translates sources, one key an image, along a solver's times."""


def both_ways(source: Image, target: Image) -> tuple[Image, Image, Label]:
    """Pairs of which every second one is turned round: (source, target, direction)."""
    direction = jnp.arange(source.shape[0]) % 2
    turned = expand(direction, source) == 1
    return (
        jnp.where(turned, target, source),
        jnp.where(turned, source, target),
        direction,
    )
