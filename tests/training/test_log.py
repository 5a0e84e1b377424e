"""What a run prints of its pace."""

import itertools

import jax.numpy as jnp
import pytest

from eotjax.errors import UserError
from eotjax.training import log as logging


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves on when told."""
    now = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: now[0])
    return now


def make_log(folder, **changes):
    parts = {
        "every": 2,
        "total_steps": 6,
        "batch_size": 8,
        "learning_rate": lambda step: jnp.float32(0.1),
        "max_marginal_error": 1.0,
    }
    writer = logging.Writer(folder, step=0, tensorboard=False)
    return logging.Log(writer, **parts | changes)


def values(loss=0.5, skipped=0.0):
    found = {"loss": loss, "grad_norm": 2 * loss, "skipped": skipped}
    plan = {"plan/entropy": 0.5, "plan/marginal_error": 0.5}
    return {name: jnp.float32(x) for name, x in (found | plan).items()}


def test_the_rate_counts_the_steps_alone(clock, tmp_path, capsys):
    log = make_log(tmp_path)
    for done in itertools.count(1):
        clock[0] += 4  # seconds a step: 2 images each
        log.add(done, values())
        if done == 3:
            with log.aside():
                clock[0] += 1000
        if done == 6:
            break
    log.flush()
    lines = logging.read(tmp_path / logging.METRICS)
    assert [line["images_per_second"] for line in lines] == [2, 2, 2]
    assert "2 images/s, 0:00:08 left" in capsys.readouterr().out


def test_the_speed_is_that_of_all_devices_and_a_share_of_their_peak(
    clock, tmp_path, capsys
):
    log = make_log(tmp_path, total_steps=4, peak_flops=1e12)
    for done in range(1, 5):
        clock[0] += 4
        log.add(done, values())
        log.flops = 1e12  # known once the step is compiled
    log.flush()
    for line in logging.read(tmp_path / logging.METRICS):
        assert line["flops_per_second"] == pytest.approx(0.25e12)
        assert line["mfu"] == pytest.approx(0.25)
    assert "2 images/s, MFU 25%, " in capsys.readouterr().out


def test_steps_that_were_skipped_are_named_and_count_for_nothing(
    clock, tmp_path, capsys
):
    log = make_log(tmp_path, every=4, total_steps=8)
    for done in range(1, 9):
        clock[0] += 1
        log.add(done, values(0.0, 1.0) if done in (2, 4) else values(0.5))
    log.flush()
    first, second = logging.read(tmp_path / logging.METRICS)
    assert (first["loss"], first["grad_norm"], first["skipped"]) == (0.5, 1.0, 2)
    assert (second["loss"], second["skipped"]) == (0.5, 0)
    assert "at step 2, 4: skipped" in capsys.readouterr().out


def test_a_run_that_skips_most_of_its_steps_stops(clock, tmp_path):
    log = make_log(tmp_path, every=3, total_steps=6)
    for done in range(1, 4):
        clock[0] += 1
        log.add(done, values(0.0, 1.0) if done > 1 else values())
    with pytest.raises(UserError, match=r"at step 2, 3: at 2 of 3 steps; lower"):
        log.flush()


def test_a_board_that_cannot_be_written_is_told_of_once(tmp_path):
    pytest.importorskip("tensorflow")
    (tmp_path / "board").write_text("no folder")
    with pytest.warns(UserWarning, match="no TensorBoard: .*metrics.jsonl") as told:
        board = logging.Board(tmp_path / "board")
        for step in range(3):
            board.write("write_scalars", step, {"loss": 1.0})
        board.close()
    assert len(told) == 1
