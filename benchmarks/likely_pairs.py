"""Draws some sources and the targets that a plan of the whole sets likes best for each.

PYTHONPATH=. python benchmarks/likely_pairs.py --data=horse2zebra --weights=WEIGHTS \\
  --features=FEATURES.npz --output=FOLDER

Under the cost of configs/horse2zebra.py (latents, averaged over cells) and, where
--features is given, under that of features (`python -m eotjax.features`), at the same
entropy. Writes a picture for each, and prints how alike the pairs' light is.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import horse2zebra
from eotjax import prepare
from eotjax.data import domains, images
from eotjax.evaluation import measures
from eotjax.transport import sinkhorn

SOURCES, TARGETS = 12, 5


def likeliest(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Some sources, and the targets of the largest entries of their rows."""
    with tempfile.TemporaryDirectory() as folder:
        run = prepare.prepare(config, Path(folder, "run"))
        run.checkpoints.close()
        sets, plan = run.on_device, run.state.held
        assert sets is not None  # the sets lie on the device for a whole plan
        rows = domains.evenly(len(sets["source_points"]), SOURCES)
        cost = sinkhorn.half_squared_distance(
            sets["source_points"][rows], sets["target_points"]
        )
        logits = sinkhorn.row_logits(cost, plan.g, run.config.coupling.epsilon)
        best = np.asarray(jax.lax.top_k(logits, TARGETS)[1])
        stored = run.splits.train
        size = tuple(config.data.image_size)

        def read(side: int, index: np.ndarray) -> np.ndarray:
            return images.centre(domains.at(stored[side], index), size)

        targets = read(1, best.reshape(-1))
        return read(0, rows), targets.reshape(SOURCES, TARGETS, *targets.shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--features", default="")
    parser.add_argument("--cache", default="")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for cost in ("pooled", "features") if arguments.features else ("pooled",):
        config = horse2zebra.get_config()
        config.data.path, config.latent.weights = arguments.data, arguments.weights
        config.latent.cache = arguments.cache
        config.coupling.cost, config.coupling.copies = cost, 1
        config.coupling.features = arguments.features if cost == "features" else ""
        source, targets = likeliest(config)
        light = measures.light_correlation(
            images.to_float(source.repeat(TARGETS, 0)),
            images.to_float(targets.reshape(-1, *targets.shape[2:])),
        )
        print(f"{cost}: correlation of the pairs' light in 16x16 cells {light:.3f}")
        path = arguments.output / f"pairs_{cost}.png"
        images.write(path, images.grid([source, *np.moveaxis(targets, 1, 0)]))
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
