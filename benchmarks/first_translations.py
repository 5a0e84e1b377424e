"""Draws the first test sources of an artefact, their translations, and memory's answer.

PYTHONPATH=. python benchmarks/first_translations.py --export=RUN/export \\
  --output=docs/horse2zebra.jpg [--count=8] [--classifier=efficientnet-lite0]

Images are in the order of their names, none left out. The last row holds the training
target nearest to each translation, in the features of the classifier or, without one,
in principal components. Also takes what chooses another sampler: --steps and the like.
"""

import argparse
import dataclasses

import numpy as np
from PIL import Image

from eotjax import command
from eotjax.artefact import export
from eotjax.build import dataset
from eotjax.data import images
from eotjax.evaluation.judge import Judge, Weights

SIDE = 192  # pixels of an image in the picture


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    export.add_arguments(parser)
    parser.add_argument("--output", required=True, help="the picture, .jpg or .png")
    parser.add_argument("--count", type=int, default=8, help="of sources")
    parser.add_argument("--data_path", help="instead of the config's data.path")
    parser.add_argument(
        "--classifier", default="", help="whose features say what is near"
    )
    arguments = parser.parse_args()
    translator = export.load_named(arguments)
    config = translator.config
    if arguments.data_path:
        config.data.path = arguments.data_path
    weights = Weights.of(config)
    if arguments.classifier:
        weights = dataclasses.replace(weights, classifier=arguments.classifier)
    splits = dataset.load(config)
    source = splits.source.test[: arguments.count]
    translated = translator(source, progress=True)
    judge = Judge(translator, splits, weights=weights)
    y = images.to_float(translated)
    nearest = images.to_uint8(judge.nearest(y, judge.look(y)))

    def scaled(pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels.squeeze()).convert("RGB")  # grey ones too
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))

    rows = [np.stack([scaled(x) for x in row]) for row in (source, translated, nearest)]
    images.write(arguments.output, images.grid(rows))
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    command.exit_after(run)
