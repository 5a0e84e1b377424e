"""All devices as one: a mesh with the axis `data`, and what is laid out along it."""

import faulthandler
import math
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from eotjax.errors import UserError, reason

# FLOP/s in bfloat16 (of a T4 in float16), dense; the first name that is in the kind's.
PEAK = {
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "T4": 65e12,
}
LATEST = 300  # seconds, that JAX waits for a process; peers.py knows before


def start_processes() -> None:
    """Joins this process to the others of a run on several hosts.

    Cloud TPU pods, SLURM and Open MPI are recognised by JAX; elsewhere set
    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID.

    Raises:
      UserError: they are not found.
    """

    def number(name: str) -> int | None:
        return int(os.environ[name]) if name in os.environ else None

    # On CPUs two programs under way at once may each wait for the other's collective
    # (jax-ml/jax issue 25861 has such hangs in one process).
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            num_processes=number("JAX_NUM_PROCESSES"),
            process_id=number("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=LATEST,
        )
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(
            f"cannot join the processes of --distributed ({reason(error)}); JAX finds "
            "them on Cloud TPU, SLURM and Open MPI, elsewhere set "
            "JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID."
        ) from error
    # JAX aborts where the first process dies; the sentence that it says would drown.
    faulthandler.disable()


def check_devices() -> None:
    """Finds the devices.

    Raises:
      UserError: JAX can use none.
    """
    try:
        jax.devices()
    except Exception as error:  # it raises almost anything
        raise UserError(
            f"JAX cannot use a device ({reason(error)}): does another process have it, "
            "or does JAX_PLATFORMS name what is not here? JAX_PLATFORMS=cpu computes "
            "on the CPU."
        ) from error


def is_leader() -> bool:
    """Whether this process, of several perhaps, is the one that prints and writes."""
    return jax.process_index() == 0


def together(what: str) -> None:
    """Waits until all processes of a run have come to this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def everywhere(value: bool) -> bool:
    """Whether `value` is true in all processes of a run."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.asarray(value)).all())


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


def shared_out(tree: PyTree, mesh: Mesh) -> PyTree:
    """For arrays of a tree's shapes: the longest axis cut that the devices divide.

    Each device then holds its share of every array, where one has such an axis.
    """

    def layout(x: Any) -> NamedSharding:
        axes = [axis for axis, n in enumerate(x.shape) if n and n % mesh.size == 0]
        names: list[str | None] = [None] * len(x.shape)
        if axes:
            names[max(axes, key=lambda axis: x.shape[axis])] = "data"
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree.map(layout, tree)


def bytes_held(tree: PyTree, layouts: PyTree) -> int:
    """Bytes on each device of arrays of a tree's shapes and types, laid out so."""
    sizes = jax.tree.map(
        lambda x, layout: math.prod(layout.shard_shape(x.shape)) * x.dtype.itemsize,
        tree,
        layouts,
    )
    return sum(jax.tree.leaves(sizes))


def gathered(tree: PyTree, mesh: Mesh) -> PyTree:
    """The same arrays, whole on every device."""
    if all(x.sharding.is_fully_replicated for x in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Lays host arrays out; in a run of several processes, all hold the same."""

    def put_one(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put_one, tree)


def constrain_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Inside jit: cuts a batch over the devices."""
    return jax.lax.with_sharding_constraint(batch, split(mesh))


def memory(device: jax.Device) -> int:
    """Bytes that a device may use; a CPU's devices share what the machine has."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total // jax.local_device_count(device.platform)


def peak_memory() -> int:
    """The most bytes that a device had in use; of a CPU's, that this process had."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device in bfloat16, dense, as its maker says; None where unknown."""
    known = (flops for name, flops in PEAK.items() if name in device.device_kind)
    return next(known, None)


def flops(lowered: jax.stages.Lowered) -> float:
    """Of a lowered step over all devices, as XLA counts them; 0 where it does not."""
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """A lowered step compiled, if the devices can hold it.

    Raises:
      UserError: they cannot, by the compiler's own count.
    """
    program = lowered.compile()
    sizes, have = program.memory_analysis(), memory(jax.local_devices()[0])
    if sizes is None:  # not every backend counts
        return program
    need = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )
    if need > have:
        raise UserError(
            f"a training step needs {need / 2**30:.1f} GiB on each device, which has "
            f"{have / 2**30:.1f}: lower batch_size (and coupling.group_size with it) "
            "or, at the same batch, microbatch; lower model.width or data.image_size, "
            "raise model.patch, or choose a smaller variant of the config."
        )
    return program
