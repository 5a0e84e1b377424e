"""A run that is killed, at any moment, ends as one that never was."""

import subprocess
import time

import jax
import numpy as np
from runs import QUICKLY, begun, left

STEPS = (
    *("--config.steps=60", "--config.checkpoint.every=2"),
    "--config.sample_every=20",
)


def run(config, workdir):
    """On one device."""
    return begun(config.data.path, workdir, *STEPS, XLA_FLAGS=QUICKLY)


def test_a_run_killed_again_and_again_ends_as_one_that_never_was(
    vectors, tmp_path, request
):
    """While it starts, compiles, saves, restores or exports, wherever that falls."""
    wanted = 50 if request.config.getoption("--faults") else 3
    config, rng = vectors(steps=60), np.random.default_rng(0)
    start = time.monotonic()
    said, _ = run(config, tmp_path / "whole").communicate()
    duration = time.monotonic() - start
    expected = left(config, tmp_path / "whole")
    assert [line["step"] for line in expected[0]] == list(range(1, 61)), said

    kills, runs = 0, 0
    while kills < wanted:
        workdir, runs = tmp_path / f"killed{runs}", runs + 1
        while True:
            process = run(config, workdir)
            try:
                moment = rng.uniform(0, duration) if kills < wanted else None
                said, _ = process.communicate(timeout=moment)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
                kills += 1
            finally:
                process.kill()
            assert "Traceback" not in said, said
        assert process.returncode == 0, said
        jax.tree.map(np.testing.assert_array_equal, left(config, workdir), expected)
