"""A config's training step, compiled without being run, and what it exchanges."""

import collections
import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eotjax.build import checks, learning, planning, wiring
from eotjax.networks import kernels
from eotjax.training import refit

COLLECTIVES = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "collective-permute",
)
BITS = re.compile(r"\d+")


def collected(program: str) -> dict[str, tuple[int, int]]:
    """The collectives of a compiled program: how many of a kind, and their bytes.

    Bytes are those of the results on one device.
    """
    found: dict[str, list[int]] = collections.defaultdict(list)
    kinds = "|".join(COLLECTIVES)
    for line in program.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(-start)?\(", line)
        if match:
            arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match[1])
            found[match[2]].append(
                sum(
                    math.prod(map(int, filter(None, shape.split(","))))
                    * max(int(bits[0]) if (bits := BITS.findall(kind)) else 8, 8)
                    // 8
                    for kind, shape in arrays
                )
            )
    return {kind: (len(sizes), sum(sizes)) for kind, sizes in found.items()}


def traced(config: ConfigDict, mesh: Mesh, lengths: tuple[int, int]):
    """A config's step on sets of such lengths, lowered; its FLOPs and parameters."""
    checks.check_config(config, mesh.size)
    c = config.data
    shape = (*c.image_size, 3 if c.tint else c.channels)
    checks.check_shape(config, shape)
    stored, dtype = (*(n + c.crop_margin for n in c.image_size), c.channels), jnp.uint8
    if config.latent.weights:
        sides = (n // checks.factor_of(config) for n in stored[:2])
        stored = (2 if c.flip else 1, *sides, config.latent.channels)
        dtype = jnp.float16
    sets = {"source": lengths[0], "target": lengths[1]}
    data = {k: jax.ShapeDtypeStruct((n, *stored), dtype) for k, n in sets.items()}
    if config.coupling.method == "whole":
        one = jax.ShapeDtypeStruct((1, *wiring.inner_shape(config, shape)), jnp.float32)
        (_, points) = jax.eval_shape(planning.embed(config, None), one).shape
        data |= {
            f"{k}_points": jax.ShapeDtypeStruct(
                (config.coupling.copies * n, points), jnp.float32
            )
            for k, n in sets.items()
        }

    if config.refit.after:
        inner = wiring.inner_shape(config, shape)
        for side, other in (refit.SIDES, refit.SIDES[::-1]):
            count = config.refit.copies * sets[other]
            ends = jax.ShapeDtypeStruct((count, *inner), jnp.float16)
            data[refit.made(side)] = ends
        data[refit.FIRST] = jax.ShapeDtypeStruct((), jnp.int32)

    # Its size changes nothing here.
    config = planning.with_epsilon(config, config.coupling.epsilon)
    training = learning.training(config, shape, lengths, mesh)
    state = jax.eval_shape(training.init)
    with kernels.portable():  # of others' kernels XLA counts nothing
        lowered = training.step.lower(state, data)
        flops = learning.flops(training, lowered, state, data)
    return lowered, flops, state.params
