"""Where one process of a run dies or hangs, the others say so and end."""

import signal
import time

import jax
import numpy as np
import pytest
from runs import begun, begun_as, begun_as_two, lines, timeless, wait_for

import eotjax

ENDLESS = ("--config.steps=1000000", "--config.checkpoint.every=5")


def pytest_generate_tests(metafunc):
    """Where faults are tried: each waits for half a minute."""
    if "fault" in metafunc.fixturenames:
        cases = [(signal.SIGSTOP, 1), (signal.SIGKILL, 1)]
        cases += [(signal.SIGSTOP, 0), (signal.SIGKILL, 0)]
        if not metafunc.config.getoption("--faults"):
            cases = []
        metafunc.parametrize(
            "fault", cases, ids=[f"{number.name} to {of}" for number, of in cases]
        )


def test_the_others_end_within_a_minute_and_the_run_goes_on(vectors, tmp_path, fault):
    """As two processes, or as one."""
    number, of = fault
    data_path, workdir = vectors().data.path, tmp_path / "run"
    processes = begun_as_two(data_path, workdir, *ENDLESS)
    other = processes[1 - of]
    try:
        wait_for(workdir / "metrics.jsonl", 12, processes[0])
        start = time.monotonic()
        processes[of].send_signal(number)
        said, _ = other.communicate(timeout=300)
        took = time.monotonic() - start
    finally:
        for process in processes:
            process.kill()
    print(f"{number.name} to process {of}: the other ended after {took:.1f} s")
    assert other.returncode != 0
    if fault == (signal.SIGKILL, 0):
        assert "Either the leader task was preempted/died" in said  # JAX's own word
        assert "most recent call first" not in said
    else:
        assert f"eotjax: process {of} of 2 has not answered for 30 seconds" in said
    assert "Traceback" not in said

    before = len(lines(workdir))
    if of:
        processes = [begun(data_path, workdir, *ENDLESS, XLA_FLAGS="")]
    else:
        processes = begun_as_two(data_path, workdir, *ENDLESS)
    try:
        wait_for(workdir / "metrics.jsonl", before + 20, processes[0])
        processes[0].send_signal(signal.SIGTERM)
        said, _ = processes[0].communicate(timeout=300)
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 143 and "going on from step" in said, said


def test_a_process_that_fails_tells_the_others_why(vectors, tmp_path):
    data_path, workdir = vectors().data.path, tmp_path / "run"
    processes = begun_as_two(data_path, workdir, second=tmp_path / "no.npz")
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1]
    assert "eotjax: cannot read" in said[1] and "no.npz" in said[1]
    assert "eotjax: process 1 of 2 has ended: cannot read" in said[0]


def test_a_run_is_the_same_by_one_two_and_four_processes(vectors, tmp_path, request):
    """To the end by each; and stopped as four, gone on with as one, ended as two."""
    if not request.config.getoption("--faults"):
        pytest.skip("four minutes: tried with --faults")
    data_path = vectors().data.path
    end = ("--config.steps=40", "--config.batch_size=16")

    def train(workdir, count, until=None):
        """Its processes' common status; stopped once so many lines are written."""
        processes = begun_as([data_path] * count, workdir, *end)
        try:
            if until is not None:
                wait_for(workdir / "metrics.jsonl", until, processes[0])
                processes[-1].send_signal(signal.SIGTERM)
            said = [process.communicate(timeout=120)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        (status,) = {process.returncode for process in processes}
        assert status in (0, 143), said
        return status

    for count in (1, 2, 4):
        assert train(tmp_path / str(count), count) == 0
    parted = tmp_path / "parted"
    stops = [train(parted, 4, until=3), train(parted, 1, until=12)]
    stops.append(train(parted, 2))
    assert stops == [143, 143, 0]

    expected = lines(tmp_path / "1")
    found = eotjax.load(tmp_path / "1" / "export")._params
    for name in ("2", "4", "parted"):
        for a, b in zip(lines(tmp_path / name), expected, strict=True):
            assert timeless(a).keys() == timeless(b).keys()
            for key in ("loss", "plan/entropy", "plan/transport_cost"):
                assert a[key] == pytest.approx(b[key], rel=1e-3), key
        other = eotjax.load(tmp_path / name / "export")._params
        for x, y in zip(
            *(jax.tree.leaves(params) for params in (found, other)), strict=True
        ):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
