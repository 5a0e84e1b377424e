"""One network for both directions against one network each, on digits.

PYTHONPATH=. python benchmarks/both_directions.py --folder=RUNS

Trains twos to threes, threes to twos, and both at once in as many steps as each of the
two. Runs that are there are not made again. Prints the table of docs/samplers.md.
"""

from pathlib import Path
from unittest import mock

from absl import app, flags

import eotjax
from configs import digits
from eotjax import command, train
from eotjax.build import dataset
from eotjax.evaluation import judge, measures

FOLDER = flags.DEFINE_string("folder", None, "Where the runs are kept.", required=True)
load = dataset.load


def make(folder: Path, words: str = "", turn: bool = False) -> Path:
    """Trains where there is no artefact yet; returns its folder."""
    config = digits.get_config(words)
    if not (folder / "export" / "config.json").exists():

        def turned(*given, **named):
            direction = "backward" if turn else "forward"
            return judge.turned(load(*given, **named), direction)

        with mock.patch.object(dataset, "load", turned):
            if not train.train(config, folder):
                raise SystemExit(143)
    return folder / "export"


def run() -> int:
    """Trains what is missing and prints the table."""
    folder = Path(FOLDER.value)
    models = {  # the artefact and, by what it is judged for, what it calls that
        "twos to threes alone": (make(folder / "forward"), {"forward": "forward"}),
        "threes to twos alone": (
            make(folder / "backward", turn=True),
            {"backward": "forward"},
        ),
    }
    models["both"] = (
        make(folder / "both", "both"),
        {way: way for way in ("forward", "backward")},
    )
    splits, rows = load(digits.get_config()), {}
    for name, (path, ways) in models.items():
        translator = eotjax.load(path)
        for way, own in ways.items():
            judging = judge.Judge(translator, splits, way)
            translated = translator(judging.source, direction=own, progress=True)
            rows[f"{name}: {way}"] = judging.row(translated, None)
    print(measures.table(rows))
    return 0


if __name__ == "__main__":
    app.run(lambda _: command.exit_after(run))
