"""Times a plan's cost matrix and Sinkhorn beside POT's, to the same marginal error.

PYTHONPATH=. python benchmarks/pot.py [--n=1024] [--rounds=5]

Between tinted twos and threes of 32x32 pixels in three colours, with epsilon 0.02 of
the mean cost. Ours stops at an L1 error of 0.001; each of POT's methods is given the
loosest threshold that leaves it no larger an error. Nothing else should run.
"""

import argparse
from collections.abc import Callable
from timeit import timeit
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ot
import torch

from eotjax import command
from eotjax.data import batch, sources
from eotjax.transport import sinkhorn

SIZE = (32, 32)
ERROR = 1e-3
SHARE = 0.02  # epsilon, of the mean cost
THRESHOLDS = 10.0 ** -np.arange(2, 9, 0.5)  # of POT, on an L2 error


def points(n: int) -> tuple[np.ndarray, np.ndarray]:
    """n twos and n threes in random hues: float32 [n, d]."""
    splits = sources.digits(SIZE)

    def side(number: int) -> np.ndarray:
        key, images = jax.random.key(number), splits[number]
        index = jax.random.randint(key, (n,), 0, len(images))
        view = batch.make_view(size=SIZE, flip=False, tinted=True)
        return np.asarray(view(key, jnp.asarray(images[index]), index)).reshape(n, -1)

    return side(0), side(1)


def ours(source: np.ndarray, target: np.ndarray, epsilon: float) -> Callable[[], Any]:
    """Makes the cost matrix and solves, compiled."""
    x, y = jnp.asarray(source), jnp.asarray(target)
    settings = sinkhorn.Settings(epsilon=epsilon, threshold=ERROR)

    @jax.jit
    def solve(x, y):
        return sinkhorn.solve(sinkhorn.half_squared_distance(x, y), settings)

    return lambda: jax.block_until_ready(solve(x, y))


def pot(
    source: Any, target: Any, epsilon: float, method: str, threshold: float
) -> Callable[[], np.ndarray]:
    """The same by POT, on arrays of NumPy or PyTorch."""

    def solve() -> np.ndarray:
        plan = ot.sinkhorn(
            [],
            [],
            ot.dist(source, target) / 2,
            epsilon,
            method=method,
            stopThr=threshold,
            numItermax=100_000,
            warn=False,
        )
        return np.asarray(plan)

    return solve


def error(plan: np.ndarray) -> float:
    """The larger L1 error of a plan's two marginals, which are uniform."""
    sums = (plan.sum(axis, dtype=np.float64) for axis in (0, 1))
    return max(float(np.abs(x - 1 / len(x)).sum()) for x in sums)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=1024, help="points a side")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    arguments = parser.parse_args()
    source, target = points(arguments.n)
    mean = float(jnp.mean(sinkhorn.half_squared_distance(source, target)))
    epsilon = SHARE * mean
    solvers: dict[str, Callable[[], Any]] = {"eotjax": ours(source, target, epsilon)}
    found = solvers["eotjax"]()
    print(f"eotjax: {found.iterations:.0f} iterations, L1 error {found.error:.2g}")
    kinds = {
        "NumPy, float64": np.float64,
        "NumPy, float32": np.float32,
        "PyTorch, float32": torch.tensor,
    }
    for kind, convert in kinds.items():
        for method in ("sinkhorn", "sinkhorn_log"):
            for threshold in THRESHOLDS:
                points_of = (convert(source), convert(target))
                solve = pot(*points_of, epsilon, method, float(threshold))
                left = error(solve())
                if left <= ERROR:
                    break
            name = f"POT, {method}, {kind}"
            if not left <= ERROR:  # or nan
                print(f"{name}: never better than {left:.2g}")
                continue
            solvers[name] = solve
            print(f"{name}: threshold {threshold:.1g}, L1 error {left:.2g}")
    taken: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(arguments.rounds + 1):
        for name, solve in solvers.items():
            taken[name].append(timeit(solve, number=1))
    first = np.median(taken["eotjax"][1:])
    print(f"\n| n = {arguments.n}, d = {source.shape[1]} | ms | as long as eotjax's |")
    print("|---|---:|---:|")
    for name, values in taken.items():
        median = np.median(values[1:])
        print(f"| {name} | {1e3 * median:.0f} | {median / first:.1f} |")
    return 0


if __name__ == "__main__":
    command.exit_after(main)
