"""Batched entropic optimal transport: which source goes with which target.

Between n source and m target points with uniform weights a, b the plan is
P = argmin <C, P> + epsilon KL(P | a b^T), with cost C_ij = |x_i - y_j|^2 / 2 and the
marginals a and b, or, unbalanced, with rho KL(P 1 | a) + rho' KL(P^T 1 | b) in their
place. With dual potentials f, g: P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon), so
that row i of the plan is proportional to softmax_j((g_j - C_ij) / epsilon).
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="JAXopt", category=DeprecationWarning)
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration, sinkhorn

# Over-relaxed after 20 iterations by the rate seen until then (Lehmann et al. 2021,
# arXiv 2012.12562), but not far from the solution, where potentials would overflow.
# Half the iterations of the plain method and less: docs/sinkhorn.md.
MOMENTUM = acceleration.Momentum(start=20, error_threshold=0.5)  # type: ignore[call-arg]


class Settings(NamedTuple):
    """How a plan is solved.

    Attributes:
      epsilon: regularisation, in units of the cost.
      threshold: largest error that counts as converged: the L1 error of the column
        marginal or, unbalanced, of both marginals' optimality conditions.
      max_iterations: where Sinkhorn stops at the latest; for plans of the whole sets
        looked at after every 50.
      tau_source, tau_target: rho / (rho + epsilon) in (0, 1]: how firmly a marginal is
        kept. 1 keeps it exactly; less lets outliers go unmatched (arXiv 2311.15100).
    """

    epsilon: float | Float[Array, ""]
    threshold: float = 1e-3
    max_iterations: int = 2000
    tau_source: float = 1.0
    tau_target: float = 1.0

    @property
    def balanced(self) -> bool:
        """Whether both marginals are kept exactly."""
        return self.tau_source == self.tau_target == 1


class Potentials(NamedTuple):
    """The dual solution, in units of the cost, and how it was reached."""

    f: Float[Array, "n"]
    g: Float[Array, "m"]
    iterations: Float[Array, ""]
    error: Float[Array, ""]


class PlanStats(NamedTuple):
    """What a plan is like; one value a group."""

    iterations: Float[Array, "*g"]  # Sinkhorn iterations
    converged: Float[Array, "*g"]  # 1 where the threshold was reached
    marginal_error: Float[Array, "*g"]  # the error that `threshold` is about
    # 2 H(P) / (H(a) + H(b)) - 1: 0 matching, 1 independent; balanced, else also below 0
    entropy: Float[Array, "*g"]
    transport_cost: Float[Array, "*g"]  # mean cost under the plan
    independent_cost: Float[Array, "*g"]  # mean cost of all pairs
    independent_std: Float[Array, "*g"]  # its standard deviation
    dropped_mass: Float[Array, "*g"]  # 1 - sum P; 0 where balanced


def no_stats() -> PlanStats:
    """What a run holds before its first plan."""
    return PlanStats(*(jnp.zeros(()) for _ in PlanStats._fields))


class Pairs(NamedTuple):
    """Source i goes with target j."""

    i: Int[Array, "*g p"]
    j: Int[Array, "*g p"]


Couple = Callable[
    [Key[Array, ""], Float[Array, "g n d"], Float[Array, "g m d"]],
    tuple[Pairs, PlanStats],
]


def half_squared_distance(
    source: Float[Array, "n d"], target: Float[Array, "m d"]
) -> Float[Array, "n m"]:
    """|x_i - y_j|^2 / 2, in float32 whatever the accelerator's default precision.

    Both sides are centred first: the distance does not change, its rounding does.
    """
    centre = jnp.mean(target, axis=0, keepdims=True)
    x, y = source - centre, target - centre
    inner = jnp.einsum("nd,md->nm", x, y, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None, :]
    return jnp.maximum(norms / 2 - inner, 0)


def solve(
    cost: geometry.Geometry | Float[Array, "n m"],
    settings: Settings,
    start: tuple[Float[Array, "n"], Float[Array, "m"]] | None = None,
) -> Potentials:
    """Solves one entropic OT problem by Sinkhorn in the log domain.

    Args:
      cost: the matrix, or a geometry that knows log-sum-exps of C + epsilon log(n m).
      settings: how.
      start: potentials (f, g) to begin from, such as those of a larger epsilon.
    """
    if not isinstance(cost, geometry.Geometry):
        # ott-jax takes the entropy against counting points: a plan that may drop mass
        # would keep more of it the more points there are.
        against_product = cost + settings.epsilon * math.log(cost.size)
        cost = geometry.Geometry(cost_matrix=against_product, epsilon=settings.epsilon)  # type: ignore[arg-type]
    problem = linear_problem.LinearProblem(
        cost, tau_a=settings.tau_source, tau_b=settings.tau_target
    )
    run = sinkhorn.Sinkhorn(
        threshold=settings.threshold,
        max_iterations=settings.max_iterations,
        inner_iterations=5,
        momentum=MOMENTUM,
    )
    start = start or (jnp.zeros(cost.shape[0]), jnp.zeros(cost.shape[1]))
    with jax.numpy_rank_promotion("allow"):  # ott-jax needs it
        result = run(problem, init=start)
        f, g, errors = result.f, result.g, jnp.asarray(result.errors)
        checks = jnp.sum(errors != -1.0)
        error = errors[jnp.maximum(checks - 1, 0)]
        if settings.balanced:  # over-relaxed potentials do not keep the rows: mend them
            f = cost.update_potential(f, g, jnp.log(problem.a), axis=1)
            mended = jnp.max(sinkhorn.marginal_error(f, g, problem.b, cost))
            error = jnp.minimum(error, mended)  # never more, but for rounding
    return Potentials(f, g, checks * float(run.inner_iterations), error)


def row_logits(
    cost: Float[Array, "n m"], g: Float[Array, "m"], epsilon: Any
) -> Float[Array, "n m"]:
    """Row i of the plan is proportional to the exponentials of row i."""
    return (g[None, :] - cost) / epsilon


def log_rows(
    cost: Float[Array, "n m"], g: Float[Array, "m"], epsilon: Any
) -> tuple[Float[Array, "n m"], Float[Array, "n"]]:
    """The plan's rows as logarithms, each normalised, and -f / epsilon of kept ones."""
    logits = row_logits(cost, g, epsilon)
    total = jax.nn.logsumexp(logits, axis=1)
    return logits - total[:, None], total - math.log(cost.shape[1])


def draw_columns(key: Key[Array, ""], logits: Float[Array, "n m"]) -> Int[Array, "n"]:
    """One column of each row, with the probabilities softmax(logits).

    First a block of columns, then one of the block: 2 sqrt(m) random numbers, not m.
    """
    n, m = logits.shape
    width = math.isqrt(m)
    blocks = jnp.pad(logits, ((0, 0), (0, -m % width)), constant_values=-jnp.inf)
    blocks = blocks.reshape(n, -1, width)
    key_block, key_within = jax.random.split(key)
    block = jax.random.categorical(key_block, jax.nn.logsumexp(blocks, 2), axis=1)
    within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * width + jax.random.categorical(key_within, within, axis=1)


def normalised_entropy(
    mass: Float[Array, "n"], row_entropy: Float[Array, "n"], m: int
) -> Float[Array, ""]:
    """2 H(P) / (H(a) + H(b)) - 1 for uniform a, b; arXiv 2506.05526, section 4.

    Args:
      mass: of each row, summing to 1.
      row_entropy: of each row, normalised.
      m: columns.
    """
    n = len(mass)
    if n * m == 1:
        return jnp.zeros(())
    total = jnp.sum(mass * row_entropy) + jnp.sum(jax.scipy.special.entr(mass))
    return 2 * total / (jnp.log(n) + jnp.log(m)) - 1


class Rows(NamedTuple):
    """One value a row of a plan: what the whole of it is described by."""

    log_mass: Float[Array, "n"]  # less f / epsilon
    entropy: Float[Array, "n"]  # of the row, normalised
    cost: Float[Array, "n"]  # mean under the row
    mean: Float[Array, "n"]  # of the cost
    variance: Float[Array, "n"]  # of the cost


def describe_rows(
    cost: Float[Array, "n m"], g: Float[Array, "m"], epsilon: Any
) -> Rows:
    """The rows of a plan, or of a block of its rows."""
    rows, total = log_rows(cost, g, epsilon)
    p = jnp.exp(rows)
    return Rows(
        log_mass=total,
        entropy=-jnp.sum(p * rows, axis=1),
        cost=jnp.sum(p * cost, axis=1),
        mean=jnp.mean(cost, axis=1),
        variance=jnp.var(cost, axis=1),
    )


def of_all_rows(
    mean: Float[Array, "n"], variance: Float[Array, "n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and standard deviation of a cost, from those of its rows."""
    return jnp.mean(mean), jnp.sqrt(jnp.mean(variance) + jnp.var(mean))


def describe(
    found: Potentials, rows: Rows, settings: Settings
) -> tuple[Float[Array, "n"], PlanStats]:
    """The logarithms of the rows' masses, and what the plan is like."""
    n, m = len(found.f), len(found.g)
    log_mass = found.f / settings.epsilon + rows.log_mass - math.log(n)
    mass = jax.nn.softmax(log_mass)
    mean, std = of_all_rows(rows.mean, rows.variance)
    return log_mass, PlanStats(
        iterations=found.iterations,
        converged=(found.error <= settings.threshold).astype(jnp.float32),
        marginal_error=found.error,
        entropy=normalised_entropy(mass, rows.entropy, m),
        transport_cost=jnp.sum(mass * rows.cost),
        independent_cost=mean,
        independent_std=std,
        dropped_mass=1 - jnp.sum(jnp.exp(log_mass)),
    )


def in_turn(n: int, draws: int) -> tuple[Int[Array, "k"], Int[Array, "k"]]:
    """Each of n sources `draws` times, once in every n; and the number of that round.

    In turn at odd and even places, where n is even: of pairs that are learnt in both
    directions every second one is turned round.
    """
    row = jnp.arange(n * draws)
    return (row + row // n) % n, row // n


def entropic(settings: Settings, draws: int = 1) -> Couple:
    """Pairs drawn from one entropic plan a group: target j from row i of the plan.

    n * draws pairs a group. Balanced, the sources come `in_turn`, so their marginal is
    kept exactly.
    """

    def one_group(key, source, target):
        key_row, key_column = jax.random.split(key)
        cost = half_squared_distance(source, target)
        found = solve(cost, settings)
        rows = describe_rows(cost, found.g, settings.epsilon)
        log_mass, stats = describe(found, rows, settings)
        if settings.balanced:
            i, _ = in_turn(len(source), draws)
        else:
            shape = (draws * len(source),)
            i = jax.random.categorical(key_row, log_mass, shape=shape)
        logits = row_logits(cost, found.g, settings.epsilon)
        return Pairs(i, draw_columns(key_column, logits[i])), stats

    def couple(key, source, target):
        return jax.vmap(one_group)(jax.random.split(key, len(source)), source, target)

    return couple


def independent_stats(
    mean: Float[Array, "n"], variance: Float[Array, "n"]
) -> PlanStats:
    """The stats of all pairs with equal weights, from their costs' moments by row."""
    cost, std = of_all_rows(mean, variance)
    return no_stats()._replace(
        converged=jnp.ones(()),
        entropy=jnp.ones(()),
        transport_cost=cost,
        independent_cost=cost,
        independent_std=std,
    )


def independent(draws: int = 1) -> Couple:
    """The control: the batch's own order, which pairs independent draws.

    n * draws pairs a group, all different where draws <= n.
    """

    def one_group(source, target):
        cost = half_squared_distance(source, target)
        n = len(source)
        i, shift = in_turn(n, draws)
        stats = independent_stats(jnp.mean(cost, axis=1), jnp.var(cost, axis=1))
        return Pairs(i, (i + shift) % n), stats

    return lambda key, *sides: jax.vmap(one_group)(*sides)
