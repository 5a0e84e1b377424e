"""On a full disk there is one sentence; with room again the run ends as any other."""

import contextlib
import shutil
import subprocess

import jax
import numpy as np
import pytest
import tiny
from conftest import QUICKLY
from runs import begun, left

STEPS = ("--config.steps=30", "--config.checkpoint.every=2", "--config.sample_every=10")


@contextlib.contextmanager
def disk(folder, size):
    """A file system of so many KiB; gives what changes its size."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}k", "eotjax", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", folder], check=True)


def run(config, workdir):
    """On one device."""
    with begun(config.data.path, workdir, *STEPS, XLA_FLAGS=QUICKLY) as process:
        said, _ = process.communicate()
    return process.returncode, said


def test_a_run_on_a_full_disk_says_so_and_goes_on_with_room(vectors, tmp_path, request):
    """Full at any place, from its first file to its last."""
    config = vectors()
    status, said = run(config, tmp_path / "whole")
    assert status == 0, said
    expected = left(config, tmp_path / "whole")
    most = int(subprocess.check_output(["du", "-sk", tmp_path / "whole"]).split()[0])
    sizes = np.array([most // 3])
    if request.config.getoption("--faults"):
        sizes = np.linspace(8, 1.1 * most, 12).astype(int)
    refused = 0
    for number, size in enumerate(sizes):
        folder = tmp_path / f"disk{number}"
        with disk(folder, size) as resize:
            status, said = run(config, folder / "run")
            print(f"{size} KiB of {most}: {said.splitlines()[-1]}")
            if status:
                refused += 1
                assert status == 1 and "Traceback" not in said, said
                assert said.splitlines()[-1].startswith("eotjax: "), said
                resize(4 * most)
                status, said = run(config, folder / "run")
            assert status == 0 and "Traceback" not in said, said
            jax.tree.map(
                np.testing.assert_array_equal, left(config, folder / "run"), expected
            )
    assert refused


WRITERS = {
    "translations": (
        "eotjax.translate",
        "--export={run}/export",
        "--input={images}/testA",
        "--output={disk}/out",
    ),
    "an artefact": ("eotjax.export", "--workdir={run}", "--output={disk}/newest"),
    "pairs": (
        "eotjax.pairs",
        "--workdir={run}",
        "--step=2",
        "--output={disk}/pairs.png",
    ),
    "latents": (
        "eotjax.main",
        "--config=configs/folder.py:smoke",
        "--workdir={run}_latent",
        "--config.data.path={images}",
        "--config.data.image_size=(16,16)",
        "--config.data.crop_margin=0",
        "--config.latent.weights={weights}",
        "--config.latent.cache={disk}/cache",
        "--config.model.multipliers=(1,)",
        "--config.model.attention=()",
    ),
}


@pytest.fixture
def faults(request):
    """Where faults are tried."""
    if not request.config.getoption("--faults"):
        pytest.skip("a minute: tried with --faults")


@pytest.mark.parametrize("arguments", list(WRITERS.values()), ids=list(WRITERS))
def test_what_a_command_writes_to_a_full_disk(
    faults, command, trained, image_folder, tmp_path, arguments
):
    run = shutil.copytree(trained, tmp_path / "run")
    with disk(tmp_path / "disk", 4) as resize:
        known = {
            "run": run,
            "images": image_folder,
            "weights": tiny.save(tmp_path / "weights"),
            "disk": tmp_path / "disk",
        }
        given = [argument.format(**known) for argument in arguments]
        done = command(*given)
        assert done.returncode == 1, done.stdout
        print(done.stderr)
        (told,) = done.stderr.splitlines()
        assert told.startswith("eotjax: ") and str(tmp_path / "disk") in told
        resize(4_000)
        done = command(*given)
        assert done.returncode == 0, done.stderr
