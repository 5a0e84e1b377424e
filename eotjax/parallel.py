"""All devices as one: a mesh with the axis `data`, and what is laid out along it."""

import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from eotjax.step import Data, Metrics, TrainState


def start_processes() -> None:
    """Joins this process to the others of a run on several hosts.

    Cloud TPU pods, SLURM and Open MPI are recognised by JAX; elsewhere set
    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID.
    """

    def number(name: str) -> int | None:
        return int(os.environ[name]) if name in os.environ else None

    jax.distributed.initialize(
        num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID")
    )


def is_leader() -> bool:
    """Whether this process, of several perhaps, is the one that prints and writes."""
    return jax.process_index() == 0


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices`, all of the run's by default."""
    devices = jax.devices() if devices is None else devices
    # Explicit, JAX's default since 0.9, makes shardings part of the types, which
    # Flax Linen does not follow.
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis cut into one piece a device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Lays host arrays out; in a run of several processes, all hold the same."""

    def put_one(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put_one, tree)


def constrain_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Inside jit: cuts a batch over the devices."""
    return jax.lax.with_sharding_constraint(batch, split(mesh))


def jit_step(
    train_step: Callable[[TrainState, Data], tuple[TrainState, Metrics]],
    mesh: Mesh,
    data: NamedSharding,
) -> Callable[[TrainState, Data], tuple[TrainState, Metrics]]:
    """The step over all devices; the old state's memory is used for the new one."""
    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), data),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
