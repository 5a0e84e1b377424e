"""The plan between two whole training sets: its potentials, solved once, sharded.

The cost's rows are cut into blocks, so many a device. Where the matrix fits the memory
it is kept, else each block is computed anew whenever it is needed, and no n x m array
ever exists.
"""

import math
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ott.geometry import geometry

from eotjax import parallel
from eotjax.transport import sinkhorn
from eotjax.transport.sinkhorn import PlanStats, Potentials, Settings

CHUNK = 50  # iterations between two looks at the error
DECAY = 4.0  # of epsilon, from stage to stage
BLOCK_BYTES = 2**26  # of a block of the cost matrix


@jax.tree_util.register_pytree_node_class
class RowBlocks(geometry.Geometry):
    """A cost for ott-jax's Sinkhorn, in blocks of rows.

    Attributes:
      blocks: [devices, blocks, rows, d] points, or [devices, blocks, rows, m] costs.
      target: [m, d] points; None where `blocks` are costs.
      count: of the rows; the last blocks are filled up.
    """

    def __init__(self, blocks, target, count: int, epsilon):
        super().__init__(epsilon=epsilon)
        self.blocks, self.target, self.count = blocks, target, count

    @property
    def shape(self) -> tuple[int, int]:
        wide = self.blocks if self.target is None else self.target.T
        return self.count, wide.shape[-1]

    @property
    def dtype(self):
        return self.blocks.dtype

    def cost(self, block: Float[Array, "rows _"]) -> Float[Array, "rows m"]:
        """The costs of one block of rows."""
        if self.target is None:
            return block
        return sinkhorn.half_squared_distance(block, self.target)

    def map_blocks(self, function):
        """function(cost [rows, m]) of every block: leaves [devices, blocks, ...]."""
        return jax.vmap(
            lambda share: jax.lax.map(lambda block: function(self.cost(block)), share)
        )(self.blocks)

    def map_rows(self, function):
        """function(cost [rows, m]) -> leaves [rows], for all rows: leaves [n]."""
        every = self.map_blocks(function)
        return jax.tree.map(lambda x: x.reshape(-1)[: self.count], every)

    def apply_lse_kernel(self, f, g, eps, vec=None, axis=0):
        """eps log sum_j exp((g - C') / eps), or of i, f; C' = C + eps log(n m)."""
        assert vec is None
        n, m = self.shape
        against_product = eps * math.log(n * m)  # as in sinkhorn.solve
        if axis == 1:
            total = self.map_rows(
                lambda cost: jax.nn.logsumexp((g[None, :] - cost) / eps, axis=1)
            )
            return eps * total - against_product, jnp.ones_like(total)

        def add(total, arrays):
            block, f_block = arrays
            logits = (f_block[:, None] - self.cost(block)) / eps
            return jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=0)), None

        def share(arrays):
            return jax.lax.scan(add, jnp.full(m, -jnp.inf), arrays)[0]

        shape = self.blocks.shape[:3]
        filled = jnp.pad(f, (0, math.prod(shape) - n), constant_values=-jnp.inf)
        shares = jax.vmap(share)((self.blocks, filled.reshape(shape)))
        total = jax.nn.logsumexp(shares, axis=0)
        return eps * total - against_product, jnp.ones_like(total)

    def tree_flatten(self):
        return (self.blocks, self.target, self._epsilon_init), self.count

    @classmethod
    def tree_unflatten(cls, count, children):
        blocks, target, epsilon = children
        return cls(blocks, target, count, epsilon)


def make_geometry(
    source: Float[Array, "n d"],
    target: Float[Array, "m d"],
    *,
    mesh: Mesh,
    dense_gib: float,
) -> RowBlocks:
    """The cost between two sets, rows cut over the mesh; dense where it fits.

    Args:
      source: points.
      target: points.
      mesh: of all devices.
      dense_gib: GiB of cost matrix that a device may keep.
    """
    n, m = len(source), len(target)
    share = -(-n // mesh.size)  # rows a device
    count = max(-(-share * m * 4 // BLOCK_BYTES), 1)  # of blocks, of float32 costs
    rows = -(-share // count)
    padded = np.pad(np.asarray(source), ((0, mesh.size * count * rows - n), (0, 0)))
    blocks = padded.reshape(mesh.size, count, rows, -1)
    target = parallel.put(target, parallel.replicated(mesh))
    points = RowBlocks(parallel.put(blocks, parallel.split(mesh)), target, n, 1.0)
    if count * rows * m * 4 > dense_gib * 2**30:
        return points
    dense = jax.jit(
        lambda points: points.map_blocks(lambda cost: cost),
        out_shardings=parallel.split(mesh),
    )
    return RowBlocks(dense(points), None, n, 1.0)


class Plan(NamedTuple):
    """The plan between two whole sets, in what it takes to draw from it."""

    f: Float[Array, "n"]  # dual potentials, in units of the cost
    g: Float[Array, "m"]
    log_mass: Float[Array, "n"]  # of the rows
    stats: PlanStats


def no_plan(n: int, m: int) -> Plan:
    """The shapes of a plan, without one."""
    return Plan(jnp.zeros(n), jnp.zeros(m), jnp.zeros(n), sinkhorn.no_stats())


def solve(
    costs: RowBlocks, settings: Settings, *, mesh: Mesh, start: Plan | None = None
) -> Plan:
    """Solves the plan, from a large epsilon down, and prints how far it is.

    Args:
      costs: from `make_geometry`.
      settings: how; epsilon must be a number.
      mesh: of all devices.
      start: a plan of another epsilon to begin from.
    """
    common = settings._replace(epsilon=1.0)  # compiled once for all epsilons
    n, m = costs.shape
    stages = [settings.epsilon]
    if start is None:
        mean = float(independent_stats(costs, mesh).independent_cost)
        while stages[-1] * DECAY < mean / 10:
            stages.append(stages[-1] * DECAY)
        potentials = (jnp.zeros(n), jnp.zeros(m))
    else:
        potentials = (start.f, start.g)
    iterations, first = 0, time.monotonic()
    printed = first
    for epsilon in reversed(stages):
        threshold = settings.threshold * (1 if epsilon == stages[0] else 10)
        while True:
            found = _advance(costs, epsilon, potentials, common, mesh)
            potentials, error = (found.f, found.g), float(found.error)
            iterations += int(found.iterations)
            now = time.monotonic()
            if now - printed > 10:
                printed = now
                print(
                    f"the whole plan, {n}x{m}: epsilon {epsilon:.3g}, {iterations} "
                    f"iterations, {iterations / (now - first):.1f}/s, marginal error "
                    f"{error:.2g} (until {settings.threshold:.2g} at {stages[0]:.3g})",
                    flush=True,
                )
            if error <= threshold or not np.isfinite(error):
                break
            if iterations >= settings.max_iterations:
                break
    found = found._replace(iterations=jnp.float32(iterations))
    return _describe(costs, stages[0], found, common, mesh)


@partial(jax.jit, static_argnums=(3, 4))
def _advance(costs, epsilon, start, settings: Settings, mesh: Mesh) -> Potentials:
    """CHUNK iterations, or fewer where the threshold is reached."""
    limited = settings._replace(epsilon=epsilon, max_iterations=CHUNK)
    costs = RowBlocks(costs.blocks, costs.target, costs.count, epsilon)
    found = sinkhorn.solve(costs, limited, start)
    return jax.lax.with_sharding_constraint(found, parallel.replicated(mesh))


@partial(jax.jit, static_argnums=(3, 4))
def _describe(costs, epsilon, found, settings: Settings, mesh: Mesh) -> Plan:
    rows = costs.map_rows(lambda cost: sinkhorn.describe_rows(cost, found.g, epsilon))
    log_mass, stats = sinkhorn.describe(found, rows, settings._replace(epsilon=epsilon))
    plan = Plan(found.f, found.g, log_mass, stats)
    return jax.lax.with_sharding_constraint(plan, parallel.replicated(mesh))


@partial(jax.jit, static_argnums=1)
def independent_stats(costs: RowBlocks, mesh: Mesh) -> PlanStats:
    """What no plan at all would be like: mean and standard deviation of the cost."""
    mean, variance = costs.map_rows(
        lambda cost: (jnp.mean(cost, axis=1), jnp.var(cost, axis=1))
    )
    stats = sinkhorn.independent_stats(mean, variance)
    return jax.lax.with_sharding_constraint(stats, parallel.replicated(mesh))
