"""A trace ends, however a run does."""

import jax.numpy as jnp

from eotjax.training.trace import Trace


def test_a_run_that_ends_early_ends_its_trace(tmp_path, capsys):
    trace = Trace(tmp_path, start=0, steps=5)
    for done in range(1, 13):
        trace.after(done, jnp.zeros(1))
    trace.close()
    trace.close()  # again changes nothing
    assert capsys.readouterr().out.startswith(f"traced steps 11 to 12: {tmp_path}")
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_run_that_ends_before_its_trace_says_so(tmp_path, capsys):
    trace = Trace(tmp_path, start=90, steps=5)
    for done in range(91, 101):
        trace.after(done, jnp.zeros(1))
    trace.close()
    assert capsys.readouterr().out == "no trace: the run ended within 11 steps\n"


def test_who_asks_for_none_is_told_of_none(tmp_path, capsys):
    trace = Trace(tmp_path, start=0, steps=0)
    for done in range(1, 13):
        trace.after(done, jnp.zeros(1))
    trace.close()
    assert not capsys.readouterr().out and not list(tmp_path.iterdir())
