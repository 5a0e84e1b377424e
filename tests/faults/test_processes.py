"""Where one process of a run dies or hangs, the others say so and end."""

import signal
import time

from runs import begun, begun_as_two, lines, wait_for

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
        said, _ = other.communicate(timeout=60)
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
        said, _ = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 143 and "going on from step" in said, said


def test_a_process_that_fails_tells_the_others_why(vectors, tmp_path):
    data_path, workdir = vectors().data.path, tmp_path / "run"
    processes = begun_as_two(data_path, workdir, second=tmp_path / "no.npz")
    try:
        said = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1]
    assert "eotjax: cannot read" in said[1] and "no.npz" in said[1]
    assert "eotjax: process 1 of 2 has ended: cannot read" in said[0]
