"""A small run as a process of its own, and what a run has left in its folder."""

import json
import os
import socket
import subprocess
import sys
import time

import jax
from conftest import QUICKLY

import eotjax
from eotjax import parallel
from eotjax.build import dataset, learning, planning
from eotjax.training.checkpoint import Checkpoints

# On one device each process would compile kernels.cc for itself; conftest's flags but
# for this one: what comes last counts.
ON_TWO = {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
}
# Never ends, and never saves unless it is told to.
ENDLESS = ("--config.steps=1000000", "--config.checkpoint.every=1000000")


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


def begun_as_two(data_path, workdir, *more, second=None):
    """The two processes of one such run; the second may have its data elsewhere."""
    return begun_as((data_path, second or data_path), workdir, *more)


def free_port():
    """A port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def begun_as(data_paths, workdir, *more):
    """The processes of one such run, each with a path to its data."""
    port = free_port()
    return [
        begun(
            *(path, workdir, *more, "--distributed"),
            XLA_FLAGS=QUICKLY,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES=str(len(data_paths)),
            JAX_PROCESS_ID=str(number),
        )
        for number, path in enumerate(data_paths)
    ]


def wait_for(path, count, process):
    """Until a file of a process that lives has as many lines."""
    latest = time.monotonic() + 600
    while process.poll() is None and (
        not path.exists() or path.read_text().count("\n") < count
    ):
        assert time.monotonic() < latest, f"{path} has not come to {count} lines"
        time.sleep(0.05)


def lines(workdir, name="metrics"):
    text = (workdir / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def timeless(line):
    """A line of metrics without what is measured by the clock."""
    return {name: x for name, x in line.items() if not name.endswith("_per_second")}


def final_state(config, workdir):
    """The newest checkpoint: parameters, their average, the optimiser's state."""
    mesh = parallel.make_mesh()
    splits = dataset.load(config)
    shape = dataset.sample_shape(config, splits.source.train)
    config = planning.with_epsilon(config, 1.0)
    lengths = splits.lengths
    state = jax.eval_shape(learning.training(config, shape, lengths, mesh).init)
    layout = parallel.replicated(mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
    restored = checkpoints.restore(
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), state
        )
    )
    checkpoints.close()
    return jax.device_get(restored)


def left(config, workdir):
    """Everything that a run comes to, but times."""
    logged = [timeless(line) for line in lines(workdir)]
    artefact = eotjax.load(workdir / "export")._params
    return logged, lines(workdir, "scores"), artefact, final_state(config, workdir)
