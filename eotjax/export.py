"""Exports a run's newest checkpoint: python -m eotjax.export --workdir=RUN."""

import argparse

from eotjax import command, train
from eotjax.build import run_folder


def run() -> int:
    """Writes the artefact of a run's newest checkpoint."""
    parser = argparse.ArgumentParser(
        description="Writes the artefact of a run's newest checkpoint."
    )
    parser.add_argument("--workdir", required=True, help="the folder of a run")
    parser.add_argument("--output", help="the artefact's (default: WORKDIR/newest)")
    run_folder.add_arguments(parser)
    arguments = parser.parse_args()
    train.export_newest(
        arguments.workdir, arguments.output, **run_folder.elsewhere(arguments)
    )
    return 0


if __name__ == "__main__":
    command.exit_after(run)
