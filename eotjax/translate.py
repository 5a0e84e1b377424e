"""Translates images by an artefact: a file, a folder or a glob of them.

python -m eotjax.translate --export=FOLDER --input=IMAGES --output=FOLDER
"""

import argparse
from pathlib import Path

from eotjax import command, remote
from eotjax.artefact import export, files, folder
from eotjax.artefact.translator import DIRECTIONS
from eotjax.data import images

FORMATS = tuple(suffix.removeprefix(".") for suffix in images.ALL_SUFFIXES)
INTERRUPTED = 130  # what a shell reports for a process that ended on Ctrl-C


def run() -> int:
    """Translates what the command line names; 1 where an image was left out."""
    parser = argparse.ArgumentParser(description="Translates images.")
    export.add_arguments(parser)
    add = parser.add_argument
    add("--input", required=True, help="an image, a folder, or a quoted glob")
    add("--output", required=True, help="a folder for the translations")
    add("--seed", type=int, default=0, help="another one, other draws")
    add("--num_samples", type=int, default=1, help="of each image")
    add("--direction", choices=DIRECTIONS, default="forward")
    add(
        "--fit",
        choices=folder.FITS,
        help="instead of the config's: how images get the trained size; full keeps "
        "their own",
    )
    add("--format", choices=FORMATS, help="of all files, instead of the images' own")
    add(
        "--overwrite",
        action="store_true",
        help="translate again what is in the output already",
    )
    arguments = parser.parse_args()
    if arguments.num_samples < 1:
        parser.error("--num_samples must be at least 1")
    if not 0 <= arguments.seed < 2**32:
        parser.error("--seed must be in 0 to 4294967295")
    with remote.mirrored(arguments.output) as output:
        return translated(arguments, output)


def translated(arguments: argparse.Namespace, output: Path) -> int:
    """Translates what the arguments name into a folder; run's status."""
    jobs = files.plan(  # refuses before the model is loaded
        remote.fetched(arguments.input),
        output,
        num_samples=arguments.num_samples,
        format=arguments.format,
    )
    try:
        task = folder.make_task(
            export.load_named(arguments),
            seed=arguments.seed,
            num_samples=arguments.num_samples,
            direction=arguments.direction,
            fit=arguments.fit,
        )
        written, kept, broken = folder.translate_jobs(
            task, jobs, output, overwrite=arguments.overwrite
        )
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it was.")
        return INTERRUPTED
    print(
        f"wrote {len(written)} images to {arguments.output}, kept {len(kept)}"
        f"{' (--overwrite translates them again)' if kept else ''}, skipped "
        f"{len(broken)}"
    )
    for sentence in broken:
        # A file's name need not be text.
        print(f"skipped: {sentence.encode(errors='backslashreplace').decode()}")
    return 1 if broken else 0


if __name__ == "__main__":
    command.exit_after(run)
