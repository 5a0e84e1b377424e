"""What launch/ would run is what is meant; what can be run here is run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from conftest import QUICKLY, ROOT
from runs import ENDLESS, lines, wait_for

SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch" / "slurm.sbatch"]
TOOLS = Path(sys.executable).parent
ARGUMENTS = ["--config=configs/npz.py:vectors,smoke", "--workdir=a folder"]


def said(*command, **environment):
    """What a script prints in a dry run."""
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a shell script in a command's place; gives the file of its calls."""
    calls = tmp_path / "calls"
    calls.touch()

    def put(name, body):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>{calls}\n{body}\n')
        path.chmod(0o755)
        return calls

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", sys.executable)
    return put


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    done = subprocess.run([TOOLS / "shellcheck", script], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


def test_the_container_file_is_sound_and_copies_what_is_there():
    path = ROOT / "launch" / "Containerfile"
    if not (TOOLS / "hadolint").exists():
        pytest.skip("there is no hadolint for this platform")
    done = subprocess.run([TOOLS / "hadolint", path], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    copied = [
        name
        for line in path.read_text().splitlines()
        if line.startswith("COPY")
        for name in line.split()[1:-1]
    ]
    assert copied and all((ROOT / name).exists() for name in copied)


def test_processes_of_one_machine_find_each_other(stand_in):
    stand_in("nvidia-smi", "exit 9")
    script = ROOT / "launch" / "multiprocess.sh"
    first, second, third = said(script, "--dry-run", 3, *ARGUMENTS)
    ports = {x.split("127.0.0.1:")[1].split()[0] for x in (first, second, third)}
    assert len(ports) == 1
    assert "JAX_NUM_PROCESSES=3 JAX_PROCESS_ID=1 JAX_PLATFORMS=cpu" in second
    assert third.rstrip().endswith(
        r"-m eotjax.main --distributed --config=configs/npz.py:vectors\,smoke "
        r"--workdir=a\ folder"
    )
    stand_in("nvidia-smi", "echo GPU 0; echo GPU 1")
    first, second = said(script, "--dry-run", 2, *ARGUMENTS)
    assert "CUDA_VISIBLE_DEVICES=0" in first and "CUDA_VISIBLE_DEVICES=1" in second
    chosen = {"CUDA_VISIBLE_DEVICES": "5,GPU-2f"}
    first, second = said(script, "--dry-run", 2, *ARGUMENTS, **chosen)
    assert "CUDA_VISIBLE_DEVICES=5" in first and "CUDA_VISIBLE_DEVICES=GPU-2f" in second
    done = subprocess.run([script, "3", *ARGUMENTS], capture_output=True, text=True)
    assert done.returncode == 2 and "there are 2 GPUs for 3 processes" in done.stderr
    done = subprocess.run([script, *ARGUMENTS], capture_output=True, text=True)
    assert done.returncode == 2 and "number of processes first" in done.stderr


def test_two_processes_train_and_a_signal_to_the_script_stops_both(vectors, tmp_path):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(ROOT / "launch" / "multiprocess.sh", "2", ARGUMENTS[0], *ENDLESS),
            *(f"--workdir={workdir}", "--config.log_every=1"),
            f"--config.data.path={vectors().data.path}",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": QUICKLY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(workdir / "metrics.jsonl", 5, process)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=300)
    finally:  # each of its processes has a group of its own in this session
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
    assert process.returncode == 143, told
    assert "devices: 2 cpu" in told and "Traceback" not in told
    last = lines(workdir)[-1]["step"]
    assert any((workdir / "checkpoints" / str(last + i)).is_dir() for i in range(3))


def test_a_slurm_job_queues_again_where_it_was_stopped_only(stand_in, tmp_path):
    script = ROOT / "launch" / "slurm.sbatch"
    (line,) = said("bash", script, *ARGUMENTS, DRY_RUN="1")
    assert line.startswith("srun ") and "eotjax.main --distributed --config=" in line
    assert "--cpus-per-task=8" in line
    calls = stand_in("scontrol", "")
    for status, asked in ((1, False), (143, True), (0, False)):
        calls.write_text("")
        stand_in("srun", f"exit {status}")
        done = subprocess.run(
            ["bash", script, *ARGUMENTS], env=os.environ | {"SLURM_JOB_ID": "7"}
        )
        assert done.returncode == status
        assert ("scontrol requeue 7" in calls.read_text()) == asked
    options = [x for x in script.read_text().splitlines() if x.startswith("#SBATCH")]
    assert "#SBATCH --requeue" in options and "#SBATCH --signal=TERM@120" in options


@pytest.mark.parametrize(
    ("lost", "before"), [("eotjax.main", ["ssh", "ssh"]), ("gcsfuse", ["ssh"])]
)
def test_a_tpu_that_is_taken_away_is_made_again(stand_in, tmp_path, lost, before):
    """None; it is made; training or setting up loses it; the next one trains."""
    script = ROOT / "launch" / "tpu_vm.sh"
    create, setup, train = said(
        *(script, "--dry-run", "run", "tpu", *ARGUMENTS), REPOSITORY="address"
    )
    assert "create tpu --zone=us-central2-b --accelerator-type=v4-8" in create
    assert "git\\ clone" in setup and "--worker=all" in setup
    assert "eotjax.main" in train and "--distributed" in train
    assert setup.index("python3.11-venv") < setup.index("git\\ clone")

    state, seen, full = (tmp_path / name for name in ("state", "seen", "full"))
    calls = stand_in(
        "gcloud",
        f"""case $4 in
        describe) [ -f {state} ] && cat {state} || exit 1;;
        create) [ -f {full} ] && {{ rm {full}; exit 1; }}; echo READY >{state};;
        delete) rm {state};;
        ssh) case "$*" in
          *{lost}*) [ -f {seen} ] && exit
            touch {seen} {full}; echo PREEMPTED >{state}; exit 255;;
          esac;;
        esac""",
    )
    command = [script, "run", "tpu", *ARGUMENTS]
    environment = os.environ | {"REPOSITORY": "address", "BUCKET": "kept", "PAUSE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tpu was taken away" in done.stderr
    made = [line.split()[4] for line in calls.read_text().splitlines()]
    made = [name for name in made if name != "describe"]
    again = ["delete", "create", "create", "ssh", "ssh"]  # first there is no capacity
    assert made == ["create", *before, *again]
    assert (
        "gcsfuse --implicit-dirs --rename-dir-limit=200000 kept bucket"
        in calls.read_text()
    )


def test_a_tpu_that_cannot_be_made_ends(stand_in):
    calls = stand_in("gcloud", "exit 4")
    done = subprocess.run(
        [ROOT / "launch" / "tpu_vm.sh", "run", "tpu", *ARGUMENTS],
        env=os.environ | {"REPOSITORY": "address", "PAUSE": "0"},
    )
    assert done.returncode == 4
    assert calls.read_text().count(" create ") == 1


def test_a_training_that_fails_on_a_tpu_that_is_there_ends(stand_in):
    calls = stand_in(
        "gcloud",
        'case "$*" in *describe*) echo READY;; *eotjax.main*) exit 3;; esac',
    )
    done = subprocess.run(
        [ROOT / "launch" / "tpu_vm.sh", "run", "tpu", *ARGUMENTS],
        env=os.environ | {"REPOSITORY": "address"},
    )
    assert done.returncode == 3
    assert calls.read_text().count("eotjax.main") == 1


def test_the_job_set_is_one_that_kubernetes_takes():
    job_set = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    assert job_set["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert set(job_set["spec"]) <= {"failurePolicy", "replicatedJobs", "network"}
    (replicated,) = job_set["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    job = {"apiVersion": "batch/v1", "kind": "Job", **replicated["template"]}
    job["metadata"] = {"name": "eotjax"}
    kubernetes_validate.validate(job, "1.34", strict=True)
    wrong = job | {"spec": job["spec"] | {"completion": 4}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.34", strict=True)

    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = {setting["name"]: setting for setting in container["env"]}
    assert given["JAX_NUM_PROCESSES"]["value"] == str(job["spec"]["completions"])
    name, kind = job_set["metadata"]["name"], replicated["name"]
    host = f"{name}-{kind}-0-0.{name}:"  # as JobSet calls the first pod
    assert given["JAX_COORDINATOR_ADDRESS"]["value"].startswith(host)
    assert "JAX_PROCESS_ID" in given
    config = next(x for x in container["args"] if x.startswith("--config="))
    assert (ROOT / config.removeprefix("--config=")).exists()
