"""Which settings of ott-jax's Sinkhorn converge soonest: docs/sinkhorn.md.

PYTHONPATH=. python benchmarks/sinkhorn_settings.py --n=256,1024,4096 --output=OUT.json

Balanced problems with uniform weights and the cost |x - y|^2 / 2, in float32 and the
log domain: a Gaussian and its image under a known plan (2 and 16 dimensions), tinted
digits (768). Their epsilons are those whose plans have the normalised entropies in
ENTROPIES, or tiny. Iterations are those until the error that Sinkhorn reports is below
a threshold; ratios are to `plain, 10`. All settings take turns at being timed.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from timeit import timeit
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Array, Float
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear.acceleration import AndersonAcceleration, Momentum
from ott.solvers.linear.sinkhorn import Sinkhorn

from eotjax.data import batch, sources
from eotjax.transport import known_plan, sinkhorn, whole
from eotjax.transport.sinkhorn import Potentials

SIZES = flags.DEFINE_list("n", ["256", "1024", "4096"], "points a side")
OUTPUT = flags.DEFINE_string("output", "", "JSON file of all results")

ENTROPIES = (0.5, 0.2, 0.05)
THRESHOLDS = (1e-1, 1e-2, 1e-3, 1e-4)
TIMED = 1e-3  # the threshold that times are taken at
TINY_EPSILONS = (1e-4, 1e-5)  # in units of the mean cost

Matrix = Float[Array, "n n"]
Case = tuple[str, Float[Array, "g n n"], float]  # name, costs, epsilon
Rows = list[dict[str, Any]]


class Setting(NamedTuple):
    """One way to solve."""

    name: str  # ending in `inner`
    inner: int  # iterations from check to check of the error
    momentum: float | None = 1.0  # None: the adaptive one of eotjax.transport.sinkhorn
    anderson: int | None = None  # memory
    staged: bool = False  # from a large epsilon down, as in eotjax.transport.whole
    chunk: int = 0  # iterations after which it starts anew from where it is


PLAIN = Setting("plain, 10", 10)  # ott-jax's default
ADAPTIVE = Setting("adaptive, 5", 5, momentum=None)
STAGED = ADAPTIVE._replace(
    name="staged, adaptive, in chunks, 5", staged=True, chunk=whole.CHUNK
)
SETTINGS = (
    PLAIN,
    *(Setting(f"momentum {w}, 5", 5, momentum=w) for w in (1.2, 1.5, 1.8)),
    ADAPTIVE,
    Setting("Anderson 5, 5", 5, anderson=5),
    Setting("staged, 10", 10, staged=True),
    STAGED,
)


def known(n: int, dim: int, seed: int) -> tuple[Array, Array]:
    """Sources and independent targets of a known plan."""
    plan = known_plan.make(dim=dim, epsilon=0.1)
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = known_plan.sample_mixture(keys[0], plan.source, n)
    source = known_plan.sample_mixture(keys[1], plan.source, n)
    return source, known_plan.sample(keys[2], plan, hidden)


def digits(n: int, seed: int) -> tuple[Array, Array]:
    """Twos and threes in random hues, drawn with replacement."""
    splits = sources.digits((16, 16))
    view = batch.make_view(size=(16, 16), flip=False, tinted=True)

    def side(key, stored):
        rows = jax.random.randint(key, (n,), 0, len(stored))
        return view(key, jnp.asarray(stored)[rows], jnp.arange(n)).reshape(n, -1)

    keys = jax.random.split(jax.random.key(seed))
    return side(keys[0], splits.train_source), side(keys[1], splits.train_target)


def ordered_costs(x: Float[Array, "n d"], y: Float[Array, "n d"]) -> Matrix:
    """Both sides in the order of their principal axis: every k-th is a fair part."""
    axis = jnp.linalg.eigh(jnp.cov(jnp.concatenate((x, y)).T))[1][:, -1]
    x, y = x[jnp.argsort(x @ axis)], y[jnp.argsort(y @ axis)]
    return sinkhorn.half_squared_distance(x, y)


def problems(n: int, seed: int = 0) -> dict[str, Matrix]:
    """One a kind of data; above 1,024 points, which take long, of digits only."""
    points = {f"d={dim}": known(n, dim, seed) for dim in (2, 16) if n <= 1024}
    points["digits"] = digits(n, seed)
    return {name: ordered_costs(*both) for name, both in points.items()}


@partial(jax.jit, static_argnames=("setting", "limit"))
def once(cost, epsilon, threshold, start=None, *, setting: Setting, limit: int):
    """One solve by ott-jax."""
    fixed, memory = setting.momentum, setting.anderson
    solver = Sinkhorn(
        threshold=threshold,
        max_iterations=limit,
        inner_iterations=setting.inner,
        momentum=Momentum(value=fixed) if fixed else sinkhorn.MOMENTUM,  # type: ignore[call-arg]
        anderson=AndersonAcceleration(memory) if memory else None,  # type: ignore[call-arg]
    )
    problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=epsilon))
    with jax.numpy_rank_promotion("allow"):  # ott-jax needs it
        found = solver(problem, init=start or (jnp.zeros(len(cost)),) * 2)
    checks = jnp.sum(found.errors != -1)
    error = found.errors[checks - 1]
    return Potentials(found.f, found.g, checks * setting.inner, error)


def solve(setting: Setting, cost: Matrix, epsilon, threshold, limit) -> Potentials:
    """Solves a problem, in stages and chunks where the setting has them."""
    step = partial(once, setting=setting, limit=setting.chunk or limit)
    stages, mean = [epsilon], float(jnp.mean(cost))
    while setting.staged and stages[-1] * whole.DECAY < mean / 10:
        stages.append(stages[-1] * whole.DECAY)
    f = g = jnp.zeros(len(cost))
    made = 0
    for now in reversed(stages):
        wanted = threshold if now == epsilon else min(10 * threshold, 0.3)
        error = np.inf  # the one of an earlier stage is not the problem's
        while made < limit and not error < wanted:
            f, g, more, error = step(cost, now, wanted, (f, g))
            made, error = made + int(more), float(error)
            if not setting.chunk:
                break
    return Potentials(f, g, made, error)


@jax.jit
def drawn(cost, g, epsilon) -> Float[Array, "*g n n"]:
    """The plan that pairs are drawn from: its rows are normalised."""
    return jax.nn.softmax((g[..., None, :] - cost) / epsilon) / cost.shape[-1]


def epsilon_of(cost: Matrix, wanted: float) -> float:
    """The epsilon of a wanted entropy, by bisection on at most 1,024 of the points."""
    every = -(-len(cost) // 1024)
    part = cost[::every, ::every]
    low, high = np.log(float(jnp.mean(part))) + np.log((1e-6, 1))
    for _ in range(10):
        middle = (low + high) / 2
        epsilon = float(np.exp(middle))
        plan = drawn(part, solve(STAGED, part, epsilon, 0.03, 300).g, epsilon)
        entropy = jnp.sum(jax.scipy.special.entr(plan)) / np.log(len(part)) - 1
        low, high = (middle, high) if entropy < wanted else (low, middle)
    return float(np.exp((low + high) / 2))


def cases(n: int, count: int = 1) -> Iterator[Case]:
    """`count` draws of each problem, with the epsilon of each entropy."""
    draws = [problems(n, seed) for seed in range(count)]
    for name, wanted in product(draws[0], ENTROPIES if n <= 1024 else ENTROPIES[:2]):
        costs = jnp.stack([draw[name] for draw in draws])
        epsilon = epsilon_of(costs[0], wanted)
        relative = epsilon / float(jnp.mean(costs[0]))
        yield f"{name}, {wanted} ({relative:.2g})", costs, epsilon


def tiny(n: int = 256) -> Iterator[Case]:
    """Each problem, with tiny epsilons."""
    for relative, cost in product(TINY_EPSILONS, problems(n).values()):
        yield f"{relative:g}", cost[None], relative * float(jnp.mean(cost))


def reference(cost: Matrix, epsilon: float) -> np.ndarray:
    """The plan in float64, at a marginal error of 1e-5."""
    start = solve(STAGED, cost, epsilon, TIMED, 2000)
    with jax.enable_x64(True):
        f, g, cost = (jnp.asarray(np.float64(a)) for a in (start.f, start.g, cost))
        found = once(cost, epsilon, 1e-5, (f, g), setting=ADAPTIVE, limit=3000)
        return np.asarray(drawn(cost, found.g, epsilon))


def measure(case: Case, threshold, limit: int, calls: dict, exact=None) -> Rows:
    """What each call finds; of groups, the slowest or worst, if all arrive."""
    problem, cost, epsilon = case
    rows: Rows = []
    for name, call in calls.items():
        found = call()
        plan = np.asarray(drawn(cost, found.g, epsilon))
        reached = bool(np.all(found.error < threshold))
        row = {"setting": name, "problem": problem, "to": threshold, "reached": reached}
        row["iterations"] = int(np.max(found.iterations)) if reached else None
        row["mean"] = float(np.mean(found.iterations))
        row["overflow"] = not np.all(np.isfinite(found.error))
        row["error"] = float(np.abs(plan.sum(-2) - 1 / plan.shape[-1]).sum(-1).max())
        if exact is not None:
            row["distance"] = float(np.abs(plan - exact).sum() / 2) if reached else None
        rows.append(row)
    for row in rows:
        row["ratio"] = (row["iterations"] or limit) / (rows[0]["iterations"] or limit)
    if threshold == TIMED:
        rounds = range(3 if cost.shape[-1] < 1024 else 1)
        times = np.array([[seconds(call) for call in calls.values()] for _ in rounds])
        for row, ratio in zip(rows, np.median(times / times[:, :1], 0), strict=True):
            row["time"] = float(ratio) if row["reached"] else None
    return rows


def seconds(call: Callable[[], Potentials]) -> float:
    """How long a solve takes."""
    return timeit(lambda: jax.block_until_ready(call()), number=1)


def compare(given: Iterator[Case], thresholds, limit: int, far: bool = False) -> Rows:
    """All settings on each case; `far`: also how far their plans are from the exact."""
    rows: Rows = []
    for problem, (cost,), epsilon in given:
        exact = reference(cost, epsilon) if far else None
        for threshold in thresholds:
            how = (cost, epsilon, threshold, limit)
            calls = {s.name: partial(solve, s, *how) for s in SETTINGS}
            rows += measure((problem, cost, epsilon), threshold, limit, calls, exact)
    return rows


def groups(n: int = 128, count: int = 8, limit: int = 600) -> Rows:
    """Groups of a batch at once: under vmap, all iterate until the slowest is done."""

    @partial(jax.jit, static_argnums=(0, 1))
    def run(mapped: bool, setting: Setting, costs, epsilon):
        given = {"epsilon": epsilon, "threshold": TIMED, "limit": limit}
        one = partial(once, setting=setting, **given)
        return jax.lax.map(one, costs) if mapped else jax.vmap(one)(costs)

    runs = {f"{s.name}, vmap": partial(run, False, s) for s in SETTINGS if not s.staged}
    runs |= {f"{s.name}, map": partial(run, True, s) for s in (PLAIN, ADAPTIVE)}
    rows: Rows = []
    for case in cases(n, count):
        calls = {name: partial(run, *case[1:]) for name, run in runs.items()}
        rows += measure(case, TIMED, limit, calls)
    return rows


def show(title: str, rows: Rows, *columns: tuple[str, str], by="setting") -> None:
    """Prints medians, or how many are true; a column is a value and what parts it."""
    table: dict[str, dict[str, list[Any]]] = {}
    for (value, part), row in product(columns, rows):
        name, cells = f"{value}, {row.get(part, 'all')}", table.setdefault(row[by], {})
        cells.setdefault(name, []).extend([] if row[value] is None else [row[value]])

    def text(values: list[Any]) -> str:
        if values and isinstance(values[0], bool):
            return f"{sum(values)}/{len(values)}"
        return f"{np.median(values):.4g}" if values else "-"

    header = [by, *next(iter(table.values()))]
    lines = [[name, *map(text, cells.values())] for name, cells in table.items()]
    lines = [header, ["---"] * len(header), *lines]
    print(f"\n### {title}\n", *(f"| {' | '.join(line)} |" for line in lines), sep="\n")


def main(_) -> None:
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    results: dict[str, Rows] = {}
    for n in map(int, SIZES.value):
        limit = 2000 if n < 1024 else 1000 if n < 4096 else 250
        thresholds = THRESHOLDS if n < 4096 else (TIMED,)
        results[f"n = {n}"] = rows = compare(cases(n), thresholds, limit, n < 1024)
        last = [row for row in rows if row["to"] == TIMED]
        show(f"n = {n}, to {TIMED:g}", last, ("iterations", "problem"), ("time", ""))
        show(f"n = {n}", rows, ("ratio", "to"), ("reached", "to"))
        for setting in (PLAIN, ADAPTIVE) if n < 1024 else ():
            some = [row for row in rows if row["setting"] == setting.name]
            show(setting.name, some, ("distance", "to"), by="problem")
    results["tiny"] = rows = compare(tiny(), (TIMED,), 500)
    show("Tiny epsilons", rows, ("overflow", ""), ("reached", ""), ("error", "problem"))
    results["groups"] = rows = groups()
    show("8 groups of 128, mean", rows, ("mean", "problem"), ("time", ""))
    show("8 groups of 128, slowest", rows, ("iterations", "problem"), ("ratio", ""))
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    app.run(main)
