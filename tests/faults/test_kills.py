"""A run that is killed, at any moment, ends as one that never was."""

import subprocess
import time

import jax
import numpy as np
import pytest
from conftest import QUICKLY
from runs import begun, left, wait_for

STEPS = (
    *("--config.steps=60", "--config.checkpoint.every=2"),
    "--config.sample_every=20",
)


def run(config, workdir):
    """On one device."""
    return begun(config.data.path, workdir, *STEPS, XLA_FLAGS=QUICKLY)


def test_a_run_killed_again_and_again_among_its_steps_ends_as_one_that_never_was(
    vectors, tmp_path
):
    """While it trains, saves or shows, wherever that falls."""
    config, rng = vectors(steps=60), np.random.default_rng(0)
    said, _ = run(config, tmp_path / "whole").communicate()
    expected = left(config, tmp_path / "whole")
    assert [line["step"] for line in expected[0]] == list(range(1, 61)), said

    workdir = tmp_path / "killed"
    for count in sorted(rng.integers(1, 55, 3)):
        process = run(config, workdir)
        try:
            wait_for(workdir / "metrics.jsonl", count, process)
            time.sleep(rng.uniform(0, 0.3))
        finally:
            process.kill()
        said, _ = process.communicate()
        assert process.returncode == -9 and "Traceback" not in said, said
    said, _ = run(config, workdir).communicate()
    assert "going on from step" in said
    jax.tree.map(np.testing.assert_array_equal, left(config, workdir), expected)


def test_a_run_killed_at_any_moment_ends_as_one_that_never_was(
    vectors, tmp_path, request
):
    """Also while it starts, compiles, restores or exports."""
    if not request.config.getoption("--faults"):
        pytest.skip("fifty kills: tried with --faults")
    config, rng = vectors(steps=60), np.random.default_rng(0)
    run(config, tmp_path / "first").communicate()  # which compiles for the others
    start = time.monotonic()
    run(config, tmp_path / "whole").communicate()
    duration = time.monotonic() - start
    expected = left(config, tmp_path / "whole")

    kills, runs, wanted = 0, 0, 50
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
