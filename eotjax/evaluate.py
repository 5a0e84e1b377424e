"""Evaluates an artefact on a test split: python -m eotjax.evaluate --export=FOLDER."""

import argparse
import dataclasses

from eotjax import atomic, command, remote
from eotjax.artefact import export
from eotjax.artefact.translator import DIRECTIONS
from eotjax.build import dataset
from eotjax.errors import require
from eotjax.evaluation import card, evaluate
from eotjax.evaluation.judge import Weights


def run() -> int:
    """Evaluates the artefact that the command line names."""
    parser = argparse.ArgumentParser(description="Evaluates an artefact.")
    export.add_arguments(parser)
    parser.add_argument("--output", help="where to write (default: the artefact)")
    parser.add_argument("--data_path", help="instead of the config's data.path")
    parser.add_argument(
        "--direction", choices=DIRECTIONS, help="only this one of those trained"
    )
    parser.add_argument(
        "--inception", help="weights file for FID and KID (needs the extra fid)"
    )
    parser.add_argument("--lpips", help="weights file for LPIPS (needs the extra fid)")
    parser.add_argument(
        "--classifier",
        help="efficientnet-lite0 or a model of timm: measures by it; '': by none",
    )
    parser.add_argument("--classifier_weights", help="its file of weights")
    parser.add_argument(
        "--wanted", type=int, help="class that translations should have; -1: none"
    )
    arguments = parser.parse_args()
    for name in ("inception", "lpips", "classifier_weights"):
        if path := getattr(arguments, name):
            found = remote.fetched(path)
            require(found.is_file(), f"there is no file {path}; give that of weights.")
            setattr(arguments, name, str(found))
    translator = export.load_named(arguments)
    names = ("inception", "lpips", "classifier", "classifier_weights", "wanted")
    asked = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in asked.items() if value is not None}
    if "classifier" in given:  # another one has other weights
        given.setdefault("classifier_weights", "")
    weights = dataclasses.replace(Weights.of(translator.config), **given)
    weights.check(translator.shape)
    if arguments.data_path:
        translator.config.data.path = arguments.data_path
    description = export.describe(arguments.export)
    print(f"step {description['step']}; plan: " + card.figures(description["plan"]))
    splits = dataset.load(translator.config)
    if tuple(description.get("fingerprints", ())) != splits.fingerprints:
        print(
            "the training images are not, or not known to be, those of the run: images "
            "that are held out of them now may have been trained on"
        )
    with remote.mirrored(arguments.output or arguments.export) as output:
        output.mkdir(parents=True, exist_ok=True)
        atomic.check_writable(output)  # before minutes are spent
        own = output.samefile(remote.local(arguments.export))
        evaluate.report(
            translator,
            splits,
            output,
            directions=(arguments.direction,) if arguments.direction else None,
            weights=weights,
            earlier=card.measured(output) if own and arguments.direction else None,
        )
        if own:
            card.write(output)
    return 0


if __name__ == "__main__":
    command.exit_after(run)
