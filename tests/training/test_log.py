"""What a run prints of its pace."""

import itertools

import jax.numpy as jnp
import pytest

from eotjax.training import log as logging


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves on when told."""
    now = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: now[0])
    return now


def test_the_rate_counts_the_steps_alone(clock, tmp_path, capsys):
    writer = logging.Writer(tmp_path, step=0, tensorboard=False)
    log = logging.Log(
        writer,
        every=2,
        total_steps=6,
        batch_size=8,
        learning_rate=lambda step: jnp.float32(0.1),
        max_marginal_error=1.0,
    )
    names = "loss", "plan/entropy", "plan/marginal_error"
    for done in itertools.count(1):
        clock[0] += 4  # seconds a step: 2 images each
        log.add(done, {name: jnp.float32(0.5) for name in names})
        if done == 3:
            with log.aside():
                clock[0] += 1000
        if done == 6:
            break
    log.flush()
    lines = logging.read(tmp_path / logging.METRICS)
    assert [line["images_per_second"] for line in lines] == [2, 2, 2]
    assert "2 images/s, 0:00:08 left" in capsys.readouterr().out
