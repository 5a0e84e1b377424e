"""A run: what it leaves, how it goes on, when it stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from eotjax import UserError, build, dataset, parallel, train
from eotjax.checkpoint import Checkpoints
from eotjax.interruption import Interruption

ROOT = Path(__file__).parents[1]


def final_state(config, workdir):
    splits = dataset.load(config)
    shape = dataset.sample_shape(config, splits)
    mesh = parallel.make_mesh()
    lengths = (len(splits.train_source), len(splits.train_target))
    training = build.training(config, shape, lengths, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    state = train.first_state(training, checkpoints, parallel.replicated(mesh))
    checkpoints.close()
    return state


def steps_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_run_leaves_its_artefacts(trained):
    for name in (
        "config.json",
        "metrics.jsonl",
        "samples/step_0000004.png",
        "export/config.json",
        "export/evaluation.json",
        "export/translations.png",
    ):
        assert (trained / name).is_file(), name
    assert steps_of(trained) == [2, 4]
    rows = json.loads((trained / "export" / "evaluation.json").read_text())["rows"]
    assert set(rows) == {"eotjax", "identity", "independent"}


def test_200_steps_equal_100_and_restart_and_100_bit_for_bit(
    smoke, tmp_path, monkeypatch
):
    config = smoke(
        steps=200, log_every=50, sample_every=200, checkpoint__every=100,
        model__multipliers=(1,), sampling__steps=1,
    )  # fmt: skip
    assert train.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "agreed", lambda self, done: done == 100)
        assert not train.train(config, tmp_path / "parts")
    assert int(final_state(config, tmp_path / "parts").step) == 100
    assert train.train(config, tmp_path / "parts")
    whole, parts = (final_state(config, tmp_path / name) for name in ("whole", "parts"))
    assert int(whole.step) == 200
    assert_equal(whole, parts)
    assert steps_of(tmp_path / "parts") == [50, 100, 150, 200]


def test_streaming_equals_holding_the_data_on_the_device(smoke, tmp_path):
    states = []
    for gib in (4.0, 0.0):
        config = smoke(data__device_gib=gib)
        assert train.train(config, tmp_path / str(gib))
        states.append(final_state(config, tmp_path / str(gib)))
    assert_equal(*states)


def test_a_finished_run_given_again_changes_nothing(trained, smoke):
    before = final_state(smoke(), trained)
    assert train.train(smoke(), trained)
    assert_equal(before, final_state(smoke(), trained))
    assert steps_of(trained) == [2, 4]


def test_the_folder_of_another_config_is_refused_by_the_keys_that_differ(
    trained, smoke
):
    with pytest.raises(UserError, match=r"model\.width was 8 and is 16"):
        train.train(smoke(model__width=16), trained)


def test_sampling_may_differ_when_a_run_goes_on(trained, smoke):
    assert train.train(smoke(sampling__steps=3), trained)


def test_a_loss_that_is_not_finite_stops_the_run(smoke, tmp_path):
    config = smoke(steps=40, optimizer__learning_rate=1e30, checkpoint__every=40)
    with pytest.raises(UserError, match="learning_rate"):
        train.train(config, tmp_path)


def test_plans_that_do_not_converge_stop_the_run(smoke, tmp_path):
    config = smoke(
        coupling__epsilon=1e-4, coupling__max_iterations=1, checkpoint__every=4
    )
    with pytest.raises(UserError, match=r"marginal error .* raise coupling\.epsilon"):
        train.train(config, tmp_path)


def test_a_killed_run_saves_itself_and_says_how_to_go_on(tmp_path):
    command = [
        sys.executable, "-m", "eotjax.main", "--config=configs/digits.py:smoke",
        "--config.steps=100000", "--config.log_every=1", f"--workdir={tmp_path}",
        "--config.checkpoint.every=100000", "--config.sample_every=100000",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 300
        for line in process.stdout:
            if line.startswith("step ") or time.monotonic() > deadline:
                process.send_signal(signal.SIGTERM)
                break
        said = process.stdout.read()
    assert process.returncode == 143, said
    assert "the same command goes on from there" in said
    stopped = int(said.split("stopped at step ")[1].split(";")[0])
    assert Checkpoints(tmp_path / "checkpoints", keep=1).latest_step() == stopped
