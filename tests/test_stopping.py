"""A run stops when it is told to, at once, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import QUICKLY
from runs import ENDLESS, begun, begun_as_two, free_port, lines, wait_for

from eotjax import train
from eotjax.build import run_folder
from eotjax.errors import UserError
from eotjax.training.interruption import Interruption


def terminated(data_path, workdir, count):
    """A real run of endless length, stopped once it has logged `count` steps."""
    with begun(data_path, workdir, *ENDLESS, XLA_FLAGS=QUICKLY) as process:
        try:
            wait_for(workdir / "metrics.jsonl", count, process)
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate()
        finally:
            process.kill()
    return process.returncode, said


def test_a_terminated_run_saves_says_so_and_goes_on(vectors, tmp_path):
    config, workdir = vectors(), tmp_path / "run"
    status, said = terminated(config.data.path, workdir, 3)
    assert status == 143, said
    first = [line["step"] for line in lines(workdir)]
    assert f"stopped at step {first[-1] + 1}" in said or f"step {first[-1]};" in said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said and not (workdir / "export").exists()

    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    with (workdir / "metrics.jsonl").open("a") as file:  # a crash after the checkpoint
        file.write(json.dumps({"step": saved + 1, "loss": 0.0}) + '\n{"step": 12')
    status, said = terminated(config.data.path, workdir, len(first) + 3)
    assert status == 143 and f"going on from step {saved}" in said
    logged = [line["step"] for line in lines(workdir)]
    assert len(logged) > len(first)
    assert logged == sorted(set(logged))
    assert logged == list(range(1, logged[-1] + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_once_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.agreed(1)
        signal.raise_signal(number)
        assert interruption.agreed(2) and interruption.agreed(3)
    assert signal.getsignal(number) is before


# Hashing holds no lock of the interpreter's, and lets no handler run: like a compiler.
BUSY = """
import hashlib
from eotjax.training.interruption import Interruption
with Interruption():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_answered_at_once_whatever_runs(number):
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "busy\n"
            process.send_signal(number)
            assert process.stdout.readline().startswith(f"{number.name}: stopping")
            process.send_signal(number)
            assert process.wait(timeout=10) == 128 + number
        finally:
            process.kill()


def test_a_signal_to_one_of_two_processes_stops_both(vectors, tmp_path):
    config, workdir = vectors(), tmp_path / "run"
    processes = begun_as_two(config.data.path, workdir, *ENDLESS)
    try:
        wait_for(workdir / "metrics.jsonl", 3, processes[0])
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [143, 143], said
    assert "stopped at step" in said[0]
    (saved,) = (workdir / "checkpoints").iterdir()
    assert f"stopped at step {saved.name};" in said[0]


def test_a_process_of_several_ends_at_once_where_none_takes_steps():
    """As one that trains alone: JAX's own handler would only note the signal."""
    program = (
        "import os, signal, time; from eotjax import parallel; "
        "from eotjax.training import interruption; parallel.start_processes(); "
        "interruption.set_notice_aside(); os.kill(os.getpid(), signal.SIGTERM); "
        "time.sleep(60)"
    )
    environment = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        **{"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, check=False
    )
    assert done.returncode == -signal.SIGTERM


def test_two_runs_never_share_a_folder(smoke, tmp_path):
    refused = pytest.raises(UserError, match=r"another process is training in .*run")
    with run_folder.alone(tmp_path / "run"):
        for _ in range(2):  # refusing one does not let the next one in
            with refused:
                train.train(smoke(), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing was written to it
    with run_folder.alone(tmp_path / "run"):
        pass
