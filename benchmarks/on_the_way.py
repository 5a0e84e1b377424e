"""Draws some test sources on their way through the sampler, and several draws of them.

PYTHONPATH=. python benchmarks/on_the_way.py --export=RUN/export --data_path=FOLDER \\
  --times=times.png --draws=draws.png

A row is a source: it, where it is at some of the sampler's times, and the end; or it,
and translations of several seeds. Also takes what chooses another sampler.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from eotjax import command
from eotjax.artefact import export
from eotjax.artefact.translator import Translator
from eotjax.build import dataset, wiring
from eotjax.data import images
from eotjax.diffusion import sampler
from eotjax.networks import latents

STOPS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)  # about, in the sampler's own steps


def stopped(translator: Translator, source: np.ndarray, stop: float) -> np.ndarray:
    """Sources [n, h, w, c], as float32, where the sampler is at a time."""
    config, shape = translator.config, translator.shape
    model, dtype = translator._params, wiring.compute_dtype(config)
    inside = isinstance(model, latents.Model)
    params = model.network if inside else model
    net, estimate = wiring.network(config, shape), wiring.estimator(config, shape)
    solver = estimate.solvers[config.sampling.solver]
    times = solver.times(config.sampling.steps)
    times = times[: int(np.abs(np.asarray(times) - stop).argmin()) + 1]

    def apply(inputs, t, label):
        return net.apply({"params": params}, inputs, t, label)

    @jax.jit
    def run(source):
        start = latents.encode(model.space, source, dtype) if inside else source
        numbers = jnp.zeros(len(source), jnp.uint32)
        keys = sampler.keys_of(jnp.uint32(0), numbers, source)
        way = jnp.zeros(len(source), int)
        end = estimate.sample(apply, keys, start, way, times, solver.step)
        return latents.decode(model.space, end, dtype) if inside else end

    return np.asarray(run(jnp.asarray(source)))


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
    source = dataset.load(translator.config).test_source[: arguments.count]
    if arguments.times:
        x = images.to_float(source)
        ways = [images.to_uint8(stopped(translator, x, stop)) for stop in STOPS]
        rows = [np.stack(row) for row in zip(source, *ways, strict=True)]
        images.write(arguments.times, images.grid(rows))
    if arguments.draws:
        draws = translator(source, num_samples=len(STOPS), progress=True)
        rows = [np.stack(row) for row in zip(source, *draws, strict=True)]
        images.write(arguments.draws, images.grid(rows))
    return 0


if __name__ == "__main__":
    command.exit_after(run)
