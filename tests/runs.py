"""A small run as a process of its own, and what a run has left in its folder."""

import json
import os
import subprocess
import sys

import jax

from eotjax import parallel
from eotjax.build import dataset, planning, wiring
from eotjax.training.checkpoint import Checkpoints


def begun(data_path, workdir, *more, **environment):
    """The process of a real run on vectors that logs every step; says all to stdout."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "eotjax.main", f"--workdir={workdir}"),
            "--config=configs/npz.py:vectors,smoke",
            *(f"--config.data.path={data_path}", "--config.log_every=1"),
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )


def lines(workdir, name="metrics"):
    text = (workdir / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def final_state(config, workdir):
    """The newest checkpoint: parameters, their average, the optimiser's state."""
    mesh = parallel.make_mesh()
    splits = dataset.load(config)
    shape = dataset.sample_shape(config, splits)
    config = planning.with_epsilon(config, 1.0)
    lengths = (len(splits.train_source), len(splits.train_target))
    state = jax.eval_shape(wiring.training(config, shape, lengths, mesh).init)
    layout = parallel.replicated(mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
    restored = checkpoints.restore(
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), state
        )
    )
    checkpoints.close()
    return jax.device_get(restored)
