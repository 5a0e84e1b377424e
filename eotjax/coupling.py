"""Batched entropic optimal transport: which source goes with which target.

Between n source and n target points with uniform weights the plan is
P = argmin <C, P> - epsilon H(P), with cost C_ij = |x_i - y_j|^2 / 2 and marginals
1/n. With dual potentials f, g: P_ij = exp((f_i + g_j - C_ij) / epsilon), so that row i
of the plan is softmax_j((g_j - C_ij) / epsilon).
"""

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="JAXopt", category=DeprecationWarning)
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

Relative = Literal["", "mean", "std"]


class PlanStats(NamedTuple):
    """What a plan is like; one value a group."""

    iterations: Float[Array, "g"]  # Sinkhorn iterations
    converged: Float[Array, "g"]  # 1 where the threshold was reached
    marginal_error: Float[Array, "g"]  # |sum_i P_ij - 1/n|_1 of the rows drawn from
    entropy: Float[Array, "g"]  # 2 H(P) / (H(a) + H(b)) - 1: 0 matching, 1 independent
    transport_cost: Float[Array, "g"]  # mean cost of the pairs drawn
    independent_cost: Float[Array, "g"]  # mean cost of all pairs


class Pairs(NamedTuple):
    """Row i of source goes with row i of target."""

    source: Float[Array, "g n ..."]
    target: Float[Array, "g n ..."]


Couple = Callable[
    [Key[Array, ""], Float[Array, "g n ..."], Float[Array, "g n ..."]],
    tuple[Pairs, PlanStats],
]


class Plan(NamedTuple):
    """A plan in the form it is drawn from: the logits of its rows."""

    log_rows: Float[Array, "n m"]  # log P_ij + log n
    iterations: Float[Array, ""]
    converged: Float[Array, ""]


def half_squared_distance(
    source: Float[Array, "n ..."], target: Float[Array, "m ..."]
) -> Float[Array, "n m"]:
    """|x_i - y_j|^2 / 2, in float32 whatever the accelerator's default precision.

    Both sides are centred first: the distance does not change, its rounding does.
    """
    x = source.reshape(len(source), -1).astype(jnp.float32)
    y = target.reshape(len(target), -1).astype(jnp.float32)
    centre = jnp.mean(y, axis=0, keepdims=True)
    x, y = x - centre, y - centre
    inner = jnp.einsum("nd,md->nm", x, y, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None, :]
    return jnp.maximum(norms / 2 - inner, 0)


def solve(
    cost: Float[Array, "n m"],
    *,
    epsilon: float,
    relative: Relative = "",
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> Plan:
    """Solves one entropic OT problem by Sinkhorn in the log domain.

    Args:
      cost: the cost matrix, float32.
      epsilon: regularisation, in units of the cost, or of its mean or standard
        deviation where `relative` says so.
      relative: "" for an absolute epsilon, else "mean" or "std".
      threshold: largest L1 error of the column marginal that counts as converged.
      max_iterations: where Sinkhorn stops at the latest.
    """
    units = {"": jnp.ones(()), "mean": jnp.mean(cost), "std": jnp.std(cost)}
    # All points equal leave a cost without a unit, and any plan is as good.
    epsilon_absolute = epsilon * jnp.maximum(units[relative], 1e-12)
    problem = linear_problem.LinearProblem(
        geometry.Geometry(cost_matrix=cost, epsilon=epsilon_absolute)  # type: ignore[arg-type]
    )
    solver = sinkhorn.Sinkhorn(threshold=threshold, max_iterations=max_iterations)
    with jax.numpy_rank_promotion("allow"):  # ott-jax needs it
        result = solver(problem)
    return Plan(
        log_rows=jax.nn.log_softmax((result.g[None, :] - cost) / epsilon_absolute, 1),
        iterations=jnp.sum(result.errors != -1.0) * float(solver.inner_iterations),
        converged=jnp.asarray(result.converged, jnp.float32),
    )


def normalised_entropy(log_rows: Float[Array, "n m"]) -> Float[Array, ""]:
    """2 H(P) / (H(a) + H(b)) - 1 for uniform a; arXiv 2506.05526, section 4."""
    n, m = log_rows.shape
    if n * m == 1:
        return jnp.zeros(())
    row_entropy = -jnp.mean(jnp.sum(jnp.exp(log_rows) * log_rows, axis=1))
    return 2 * (row_entropy + jnp.log(n)) / (jnp.log(n) + jnp.log(m)) - 1


def entropic(
    *,
    epsilon: float,
    relative: Relative = "",
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> Couple:
    """Pairs drawn from one entropic plan a group, target j from row i of the plan.

    Every source is used once, so the source marginal is kept exactly.
    """

    def one_group(key, source, target):
        cost = half_squared_distance(source, target)
        plan = solve(
            cost,
            epsilon=epsilon,
            relative=relative,
            threshold=threshold,
            max_iterations=max_iterations,
        )
        partner = jax.random.categorical(key, plan.log_rows, axis=1)
        columns = jnp.mean(jnp.exp(plan.log_rows), axis=0)
        stats = PlanStats(
            iterations=plan.iterations,
            converged=plan.converged,
            marginal_error=jnp.sum(jnp.abs(columns - 1 / len(target))),
            entropy=normalised_entropy(plan.log_rows),
            transport_cost=jnp.mean(jnp.take_along_axis(cost, partner[:, None], 1)),
            independent_cost=jnp.mean(cost),
        )
        return Pairs(source, target[partner]), stats

    def couple(key, source, target):
        return jax.vmap(one_group)(jax.random.split(key, len(source)), source, target)

    return couple


def independent() -> Couple:
    """The control: the batch's own order, which pairs independent draws."""

    def one_group(source, target):
        cost = half_squared_distance(source, target)
        zero, one = jnp.zeros(()), jnp.ones(())
        stats = PlanStats(
            zero, one, zero, one, jnp.mean(jnp.diag(cost)), jnp.mean(cost)
        )
        return Pairs(source, target), stats

    def couple(key, source, target):
        del key
        return jax.vmap(one_group)(source, target)

    return couple
