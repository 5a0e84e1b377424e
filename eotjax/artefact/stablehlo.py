"""The artefact as one StableHLO program, which JAX alone can run."""

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import PyTree
from ml_collections import ConfigDict

from eotjax.build import wiring
from eotjax.build.checks import Shape
from eotjax.networks import kernels

NAME = "translate.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def serialize(config: ConfigDict, shape: Shape, params: PyTree) -> bytes:
    """The sampler with its parameters, for any batch size and for PLATFORMS.

    `jax.export.deserialize(...).call` takes

      source: float32 [b, *shape], images in [-1, 1];
      seed: uint32 [];
      direction: int32 [], 0 from source to target, 1 back (where that was trained);

    and returns the first translation of each, float32 [b, *shape]: those of a
    Translator with this seed. Where the config leaves the dtype open it is float32.
    """
    config = config.copy_and_resolve_references()
    if config.model.dtype == "auto":
        config.model.dtype = "float32"
    sample = wiring.sample(config, shape)

    def translate(source: jax.Array, seed: jax.Array, direction: jax.Array):
        number = jnp.zeros(source.shape[:1], jnp.uint32)
        way = jnp.broadcast_to(direction, source.shape[:1])
        return sample(params, seed, number, way, source)

    batch = export.symbolic_shape("b")
    arguments = (
        jax.ShapeDtypeStruct((*batch, *shape), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    # Names of source files and their lines would make equal programs differ.
    limit = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        with kernels.portable():
            program = export.export(jax.jit(translate), platforms=PLATFORMS)(*arguments)
        return bytes(program.serialize())
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
