"""Translates a folder of images by an artefact.

python -m eotjax.translate --export=FOLDER --input=FOLDER --output=FOLDER
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eotjax import command, export, images
from eotjax.errors import UserError
from eotjax.metrics import Progress

CHUNK = 256  # images in memory at once


def translate_folder(
    translator: export.Translator,
    source: str | Path,
    output: str | Path,
    *,
    seed: int = 0,
    num_samples: int = 1,
) -> list[str]:
    """Writes a PNG of the same name for every image of a folder.

    Broken images are skipped. With num_samples > 1 the names end in _0, _1, ...

    Returns:
      One sentence for each image that could not be read.

    Raises:
      UserError: the model is not for images, the folder is missing or empty, or it is
        the output as well.
    """
    if len(translator.shape) != 3:
        raise UserError(
            "this export translates vectors, not images; call eotjax.load from Python."
        )
    paths = images.find(source)
    output = Path(output)
    if output.resolve() == Path(source).resolve():
        raise UserError(
            f"translations would be written over the images in {source}; give another "
            "folder for the output."
        )
    output.mkdir(parents=True, exist_ok=True)
    stems = Counter(path.stem for path in paths)
    progress = Progress("translating", len(paths), "images")
    broken: list[str] = []

    def decoded(chunk: list[Path]) -> Iterator[tuple[Path, np.ndarray]]:
        height, width, channels = translator.shape
        for path in chunk:
            try:
                yield (
                    path,
                    images.decode(
                        path,
                        size=(height, width),
                        channels=channels,
                        fit=translator.config.data.fit,
                    ),
                )
            except UserError as error:
                broken.append(str(error))

    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        readable = list(decoded(chunk))
        if readable:
            pixels = np.stack([image for _, image in readable])
            results = translator(pixels, seed=seed, num_samples=num_samples)
            for number, result in enumerate(results.reshape(-1, *pixels.shape)):
                ending = f"_{number}" if num_samples > 1 else ""
                for (path, _), image in zip(readable, result, strict=True):
                    name = path.name if stems[path.stem] > 1 else path.stem
                    images.write(output / f"{name}{ending}.png", image)
        progress.update(len(chunk))
    return broken


def run() -> int:
    """Translates the folder that the command line names; 1 where images were broken."""
    parser = argparse.ArgumentParser(description="Translates a folder of images.")
    export.add_arguments(parser)
    parser.add_argument("--input", required=True, help="a folder of source images")
    parser.add_argument("--output", required=True, help="a folder for translations")
    parser.add_argument("--seed", type=int, default=0, help="another one, other draws")
    parser.add_argument("--num_samples", type=int, default=1, help="of each image")
    arguments = parser.parse_args()
    if arguments.num_samples < 1:
        parser.error("--num_samples must be at least 1")
    images.find(arguments.input)
    broken = translate_folder(
        export.load_named(arguments),
        arguments.input,
        arguments.output,
        seed=arguments.seed,
        num_samples=arguments.num_samples,
    )
    print(f"wrote {arguments.output}")
    for sentence in broken:
        print(f"skipped: {sentence}")
    return 1 if broken else 0


if __name__ == "__main__":
    command.exit_after(run)
