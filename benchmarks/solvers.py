"""Quality against steps, for every solver. Makes the table of docs/samplers.md.

PYTHONPATH=. python benchmarks/solvers.py --folder=RUNS --output=docs/samplers.md

Trains cde and bridge on digits and on a known plan (16 dimensions, epsilon 1) in
folders of their own, where they are not there yet, and judges each by every solver. A
measurement that is there is not made again.
"""

import json
from pathlib import Path

from absl import app, flags

import eotjax
from configs import digits, known_plan
from eotjax import command, train
from eotjax.build import dataset
from eotjax.evaluation import judge, known_plan_report

FOLDER = flags.DEFINE_string("folder", None, "Where the runs are kept.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "A Markdown file with a place for it.")

STEPS = (5, 10, 15, 25, 50, 100)
CONFIGS = {
    "digits, cde": lambda: digits.get_config("adam"),
    "digits, bridge": lambda: digits.get_config("bridge,adam"),
    "known plan, cde": lambda: known_plan.get_config(),
    "known plan, bridge": lambda: known_plan.get_config("bridge"),
}
MEASURES = {
    "transport_cost": "cost",
    "frechet": "Fréchet",
    "hue_error": "hue, degrees",
    "cbw2_uvp": "cBW²-UVP, %",
}
EVALUATIONS = {"heun": 2}  # of the network a step; of the others one
BEGIN, END = "<!-- solvers: begin -->", "<!-- solvers: end -->"


def artefact(name: str, folder: Path) -> Path:
    """Of a model, trained where it is not there."""
    place = folder / name.replace(", ", "_").replace(" ", "_")
    if not (place / "export" / "config.json").exists():
        config = CONFIGS[name]()
        config.known.test_sources = 128
        if not train.train(config, place):
            raise SystemExit(143)
    return place / "export"


def measured(
    translator: eotjax.Translator, splits: dataset.DataSet
) -> dict[str, float]:
    """Every measure of the translations."""
    if translator.config.data.kind == "known_plan":
        return known_plan_report.judge(translator, splits)
    judging = judge.Judge(translator, splits)
    return judging.row(translator(judging.source), None)


def measure(name: str, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """{solver: {steps: measures}} of a model."""
    path = artefact(name, folder)
    translator, kept = eotjax.load(path), path.parent / "solvers.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    splits = dataset.load(translator.config)
    for solver in translator.solvers:
        for steps in STEPS:
            row = found.setdefault(solver, {})
            if str(steps) not in row:
                print(f"{name}: {solver}, {steps} steps", flush=True)
                row[str(steps)] = measured(
                    translator.using(solver=solver, steps=steps), splits
                )
                kept.write_text(json.dumps(found))
    return found


def show(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def table(results: dict[str, dict]) -> list[str]:
    """A row a model, solver and measure; a column a number of steps."""
    lines = [
        "| model | measure | solver | " + " | ".join(map(str, STEPS)) + " |",
        "|---" * (3 + len(STEPS)) + "|",
    ]
    for model, solvers in results.items():
        for key, title in MEASURES.items():
            for solver, row in solvers.items():
                if key not in row[str(STEPS[0])]:
                    continue
                cells = [show(row[str(steps)][key]) for steps in STEPS]
                each = f" (x{EVALUATIONS[solver]})" if solver in EVALUATIONS else ""
                lines.append(
                    f"| {model} | {title} | {solver}{each} | {' | '.join(cells)} |"
                )
    lines += ["", "DPM-Solver++(2M) in 15 steps against itself in 100:", ""]
    for model, solvers in results.items():
        row = solvers["dpmpp_2m"]
        changes = [
            f"{title} {100 * (row['15'][key] / row['100'][key] - 1):+.1f}%"
            for key, title in MEASURES.items()
            if key in row["15"]
        ]
        lines.append(f"- {model}: {', '.join(changes)}")
    return lines


def run() -> int:
    """Measures what is missing; prints the table, or writes it into its place."""
    results = {name: measure(name, Path(FOLDER.value)) for name in CONFIGS}
    lines = "\n".join(table(results))
    if OUTPUT.value is None:
        print(lines)
        return 0
    page = Path(OUTPUT.value)
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}")
    return 0


if __name__ == "__main__":
    app.run(lambda _: command.exit_after(run))
