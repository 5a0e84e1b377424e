"""Draws some test sources on their way through the sampler, and several draws of them.

PYTHONPATH=. python benchmarks/on_the_way.py --export=RUN/export --data_path=FOLDER \\
  --times=times.png --draws=draws.png

A row is a source: it, and where it is after some of the sampler's steps; or it, and
translations of several seeds. Also takes what chooses another sampler.
"""

import argparse
from pathlib import Path

import numpy as np

from eotjax import command, parallel
from eotjax.artefact import export
from eotjax.artefact.translator import Translator
from eotjax.build import dataset, wiring
from eotjax.data import images

SHARES = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)  # of the sampler's steps


def stopped(translator: Translator, share: float) -> Translator:
    """Leads to where the sampler is after a share of its steps, the first time."""
    translator = translator.using(restart=0.0)
    config, shape = translator.config, translator.shape
    done = round(share * config.sampling.steps)
    sample = wiring.sampling(config, shape, parallel.make_mesh(), done)
    return Translator(config, shape, translator._params, sample)


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    export.add_arguments(parser)
    parser.add_argument("--times", type=Path, help="the picture of the times")
    parser.add_argument("--draws", type=Path, help="the picture of the draws")
    parser.add_argument("--count", type=int, default=4, help="of sources")
    parser.add_argument("--data_path", help="instead of the config's data.path")
    arguments = parser.parse_args()
    translator = export.load_named(arguments)
    if arguments.data_path:
        translator.config.data.path = arguments.data_path
    source = dataset.load(translator.config).source.test[: arguments.count]
    if arguments.times:
        ways = [stopped(translator, share)(source) for share in SHARES]
        rows = [np.stack(row) for row in zip(source, *ways, strict=True)]
        images.write(arguments.times, images.grid(rows))
    if arguments.draws:
        draws = translator(source, num_samples=len(SHARES), progress=True)
        rows = [np.stack(row) for row in zip(source, *draws, strict=True)]
        images.write(arguments.draws, images.grid(rows))
    return 0


if __name__ == "__main__":
    command.exit_after(run)
