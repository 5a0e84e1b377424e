"""How right are models of plans known in closed form? Makes docs/known_plans.md.

PYTHONPATH=. python benchmarks/known_plans.py --folder=RUNS             # all cells
PYTHONPATH=. python benchmarks/known_plans.py --folder=RUNS --cell=16/0.1/bridge/0

A cell is dim/epsilon/kind/instance: one training run in a folder of its own, not made
again where it is there. Kinds are the estimators, with the points a side of their plans
where these are not 256: bridge_2048. The tables of all cells that are there are written
into --output, between its comments that name them.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from configs import known_plan
from eotjax import command, train

FOLDER = flags.DEFINE_string("folder", None, "Where the runs are kept.", required=True)
CELL = flags.DEFINE_list("cell", None, "Only these.")
OUTPUT = flags.DEFINE_string("output", None, "A Markdown file with places for tables.")

DIMS, EPSILONS = (2, 16, 64, 128), (0.1, 1.0, 10.0)
STEPS = {2: 6_000, 16: 4_000, 64: 5_000, 128: 5_000}  # at most two minutes
TEST_SOURCES = 128
AT_16 = ("bridge", "bridge_2048", "cde", "cde_16384", "cmde", "cdiffe")
CURVE = ("64", "256", "1024", "4096", "16384")  # points a side of one plan
WHOLE = 16_384  # so many are all there are
INSTANCES = range(3)
TO_REACH = {(2, 0.1): 0.25, (2, 1.0): 0.25, (2, 10.0): 0.25, (16, 0.1): 0.5}
TO_REACH |= {(16, 1.0): 0.5, (16, 10.0): 1, (64, 0.1): 2.5, (64, 1.0): 2.5}
TO_REACH |= {(128, 1.0): 5}
# SF2M, the published recipe of mini-batch plans, by table 1 of LightSB-M (2024): on
# other instances of this kind; in the order of DIMS and EPSILONS.
PUBLISHED = (0.54, 0.2, 0.31, 3.7, 1.1, 4.9, 9.5, 9, 319, 10.9, 23, 819)


class Cell(NamedTuple):
    """One training run."""

    dim: int
    epsilon: float
    kind: str
    instance: int = 0

    def __str__(self) -> str:
        return f"{self.dim}/{self.epsilon:g}/{self.kind}/{self.instance}"

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """From what str() makes."""
        dim, epsilon, kind, instance = text.split("/")
        return cls(int(dim), float(epsilon), kind, int(instance))


Results = dict[Cell, dict]


def grid() -> Iterator[Cell]:
    """Every cell once, those that say most first."""
    cells = [
        *(Cell(d, e, "bridge") for d in DIMS for e in EPSILONS),
        *(Cell(d, e, "cde") for d in DIMS for e in EPSILONS),
        *(Cell(16, 0.1, f"cde_{n}") for n in CURVE if n != "256"),
        *(Cell(16, e, kind, i) for i in INSTANCES for kind in AT_16 for e in EPSILONS),
    ]
    return iter(dict.fromkeys(cells))


def config_of(cell: Cell) -> ConfigDict:
    """What the cell trains."""
    estimator, _, points = cell.kind.partition("_")
    n = int(points or 256)
    c = known_plan.get_config(estimator)
    c.steps = c.checkpoint.every = STEPS[cell.dim]
    c.known.dim, c.coupling.epsilon = cell.dim, cell.epsilon
    c.known.instance = c.seed = cell.instance
    c.known.test_sources = TEST_SOURCES
    c.coupling.group_size = min(n, WHOLE // 4)
    c.coupling.draws = max(n // c.batch_size, 1)
    if n == WHOLE:
        c.coupling.method, c.known.count, c.coupling.draws = "whole", WHOLE, 1
    return c


def make(cell: Cell, folder: Path) -> None:
    """Trains and judges the cell, where it is not there yet."""
    place = folder / str(cell)
    if (place / "cell.json").exists():
        return
    print(f"=== {cell}", flush=True)
    start = time.time()
    if not train.train(config_of(cell), place):
        raise SystemExit(143)
    seconds = (place / "export" / "config.json").stat().st_mtime - start
    report = json.loads((place / "export" / "evaluation.json").read_text())
    (place / "cell.json").write_text(
        json.dumps(report["forward"]["rows"] | {"seconds": seconds})
    )


def show(value: float) -> str:
    """About three significant digits."""
    places = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{places}f}"


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table, right-aligned."""
    rows = [header, ["---:"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def by_dimension(results: Results) -> str:
    """cde and bridge in every cell, with what to judge them by."""
    header = ["D", "epsilon", "bridge", "cde", "best, to reach", "exact (floor)"]
    header += ["rows, n = 256", "independent", "SF2M", "bridge BW2", "exact BW2"]
    header += ["seconds: bridge", "cde"]
    lines = []
    pairs = [(d, e) for d in DIMS for e in EPSILONS]
    for (d, e), published in zip(pairs, PUBLISHED, strict=True):
        found = [results.get(Cell(d, e, kind)) for kind in ("bridge", "cde")]
        if None in found:
            continue
        bridge = found[0]
        goal = TO_REACH.get((d, e))
        best = min(x["eotjax"]["cbw2_uvp"] for x in found)
        reached = "" if goal is None else " yes" if best <= goal else " **no**"
        lines.append(
            [
                str(d),
                f"{e:g}",
                *(
                    f"{show(x['eotjax']['cbw2_uvp'])} ± "
                    f"{show(x['eotjax']['cbw2_uvp_error'])}"
                    for x in found
                ),
                "" if goal is None else f"<= {goal:g}:{reached}",
                *(
                    show(bridge[row]["cbw2_uvp"])
                    for row in ("exact", "rows", "independent")
                ),
                f"{published:g}",
                show(bridge["eotjax"]["bw2_uvp"]),
                show(bridge["exact"]["bw2_uvp"]),
                *(f"{x['seconds']:.0f}" for x in found),
            ]
        )
    return markdown(header, lines)


def at_16(results: Results) -> str:
    """All kinds at 16 dimensions: median and range over the instances."""

    def there(kind: str, epsilon: float) -> list[dict]:
        found = (results.get(Cell(16, epsilon, kind, i)) for i in INSTANCES)
        return [x for x in found if x is not None]

    def cell(kind: str, epsilon: float, row: str) -> str:
        values = [x[row]["cbw2_uvp"] for x in there(kind, epsilon)]
        if not values:
            return ""
        spread = f"{show(min(values))} to {show(max(values))}"
        few = "" if len(values) == len(INSTANCES) else f", of {len(values)}"
        return f"{show(float(np.median(values)))} ({spread}{few})"

    def line(name: str, kind: str, row: str) -> list[str]:
        return [name, *(cell(kind, e, row) for e in EPSILONS)]

    def seconds(kind: str) -> str:
        taken = [x["seconds"] for e in EPSILONS for x in there(kind, e)]
        return f"{max(taken):.0f}" if taken else ""

    lines = [[*line(kind, kind, "eotjax"), seconds(kind)] for kind in AT_16]
    lines += [
        [*line("*exact (floor)*", "bridge", "exact"), ""],
        [*line("*rows, n = 256*", "bridge", "rows"), ""],
        [*line("*independent*", "bridge", "independent"), ""],
    ]
    header = ["", *(f"epsilon {e:g}" for e in EPSILONS), "seconds, at most"]
    return markdown(header, lines)


def curve(results: Results) -> str:
    """cde at small epsilon over the points of its plan."""
    lines = []
    for n in CURVE:
        found = results.get(Cell(16, 0.1, "cde" if n == "256" else f"cde_{n}"))
        if found is not None:
            model = found["eotjax"]
            value = f"{show(model['cbw2_uvp'])} ± {show(model['cbw2_uvp_error'])}"
            lines.append([n, value, f"{found['seconds']:.0f}"])
    return markdown(["n", "cde", "seconds"], lines)


TABLES = {"by dimension": by_dimension, "at 16": at_16, "curve": curve}


def write(results: Results, output: Path) -> None:
    """Puts each table between its pair of comments in the file."""
    text = output.read_text()
    for name, table in TABLES.items():
        before, rest = text.split(f"<!-- {name} -->\n")
        after = rest.split(f"<!-- end {name} -->\n")[1]
        parts = [before, f"<!-- {name} -->\n\n", table(results)]
        text = "".join([*parts, f"\n<!-- end {name} -->\n", after])
    output.write_text(text)


def run() -> int:
    """Makes the cells asked for, then the tables of all that are there."""
    folder = Path(FOLDER.value)
    asked = map(Cell.parse, CELL.value) if CELL.value is not None else grid()
    for cell in asked:
        make(cell, folder)
    results = {
        cell: json.loads((folder / str(cell) / "cell.json").read_text())
        for cell in grid()
        if (folder / str(cell) / "cell.json").exists()
    }
    for name, table in TABLES.items():
        print(f"{name}\n{table(results)}")
    if OUTPUT.value:
        write(results, Path(OUTPUT.value))
    return 0


if __name__ == "__main__":
    app.run(lambda _: command.exit_after(run))
