"""The notebooks run from top to bottom, show pictures, and are kept without outputs."""

import base64
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from runs import ON_TWO

pytest.importorskip("ipykernel", reason="the extra dev is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra dev is not installed")
nbformat = pytest.importorskip("nbformat", reason="the extra dev is not installed")

NOTEBOOKS = {path.stem: path for path in (ROOT / "colab").glob("*.ipynb")}
PICTURES = {  # that each cell shows
    "train": {"data": 1, "train": 4, "curves": 1, "pictures": 2},
    "translate": dict.fromkeys(
        ("images", "solvers", "guidance", "direction", "program", "plan", "laws"), 1
    ),
}
KERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook in `tmp_path`, by a kernel of this very interpreter."""
    folder = tmp_path / "jupyter"
    kernel = folder / "kernels" / "this" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    spec = {"argv": KERNEL, "display_name": "this", "language": "python"}
    kernel.write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("EOTJAX_SMOKE", "1")
    monkeypatch.setenv("XLA_FLAGS", ON_TWO["XLA_FLAGS"])
    # Building its cache takes long at times, and matplotlib then says so to stderr.
    importlib.import_module("matplotlib.font_manager")

    def run(name):
        notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
        nbclient.NotebookClient(
            notebook,
            kernel_name="this",
            timeout=1_800,
            resources={"metadata": {"path": str(tmp_path)}},
        ).execute()  # raises where a cell does
        return notebook

    return run


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    """(cell's name, output) of everything that a notebook shows."""
    return [(cell.id, output) for cell in code(notebook) for output in cell.outputs]


def pictures(notebook):
    """(cell's name, pixels) of every picture that a notebook shows."""
    found = [
        (name, output.data["image/png"])
        for name, output in outputs(notebook)
        if "image/png" in output.get("data", {})
    ]
    return [
        (name, np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")))
        for name, png in found
    ]


def check_shown(notebook, name):
    assert not [o for _, o in outputs(notebook) if o.output_type == "error"]
    assert not [o.text for _, o in outputs(notebook) if o.get("name") == "stderr"]
    shown = pictures(notebook)
    assert Counter(cell for cell, _ in shown) == PICTURES[name]
    for cell, pixels in shown:
        assert min(pixels.shape[:2]) > 60 and pixels.std() > 10, f"{cell} is blank"


def test_the_first_notebook_trains_and_leaves_an_export(execute, tmp_path):
    check_shown(execute("train"), "train")
    folder = tmp_path / "workdir" / "digits" / "export"
    names = {"config.json", "evaluation.json", "README.md", "translate.stablehlo"}
    assert names <= {path.name for path in folder.iterdir()}
    assert names <= set(zipfile.ZipFile(f"{folder.parent}_export.zip").namelist())
    # This is where the second one looks for it.
    assert str(folder.relative_to(tmp_path)) in NOTEBOOKS["translate"].read_text()


def test_the_second_notebook_runs_without_an_export(execute, tmp_path):
    check_shown(execute("translate"), "translate")
    assert (tmp_path / "workdir" / "digits_in_short" / "export").is_dir()


TRAINING = """
import signal, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *signal: heard.append(signal))
print("begun", flush=True)
while not heard:
    time.sleep(0.01)
time.sleep(0.5)  # its step, and its checkpoint
open("signals", "w").write(str(len(heard)))
"""
KERNELS = """
import subprocess, sys
from pathlib import Path
ROOT = RUN = Path()
name, words, keys = "digits", [], {}
exec(sys.argv[1])
"""


def test_the_stop_button_stops_training_once(tmp_path):
    """Two signals would end it without a checkpoint; a kernel's group gets one."""
    (tmp_path / "eotjax").mkdir()
    (tmp_path / "eotjax" / "main.py").write_text(TRAINING)
    cells = code(nbformat.read(NOTEBOOKS["train"], as_version=4))
    cell = next(cell.source for cell in cells if cell.id == "train")
    with subprocess.Popen(
        [sys.executable, "-c", KERNELS, cell],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as kernel:
        assert kernel.stdout.readline() == "begun\n"
        os.killpg(kernel.pid, signal.SIGINT)
        assert kernel.wait() != 0
    assert (tmp_path / "signals").read_text() == "1"


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_is_kept_without_outputs_places_and_secrets(name):
    text = NOTEBOOKS[name].read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert not outputs(notebook)
    assert {cell.execution_count for cell in code(notebook)} == {None}
    assert not any(cell.metadata for cell in notebook.cells)
    assert 'REPOSITORY = \\"\\"' in text and "SMOKE = bool(" in text
    assert not re.search(r"/(home|root|Users|tmp|work|mnt)/", text)
    assert not re.search(r"\b(hf_|gh[a-z]_|sk-|AIza)\w{8}", text)


def repository_of(name, folder, monkeypatch, place=""):
    """What the first cell of a notebook finds in `folder`, of eotjax itself."""
    source = code(nbformat.read(NOTEBOOKS[name], as_version=4))[0].source
    names = {}
    exec(source.partition("if importlib.util.find_spec")[0], names)
    names["REPOSITORY"] = place
    monkeypatch.chdir(folder)
    return names["repository"]()


@pytest.mark.parametrize("name", list(NOTEBOOKS))
def test_eotjax_is_found_where_it_was_uploaded(name, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match=r"upload its archive, eotjax\.zip"):
        repository_of(name, tmp_path, monkeypatch)
    with zipfile.ZipFile(tmp_path / "eotjax.zip", "w") as archive:
        archive.writestr("eotjax-main/pyproject.toml", "")
    unpacked = tmp_path / "eotjax_repository" / "eotjax-main"
    assert repository_of(name, tmp_path, monkeypatch) == unpacked
    other = tmp_path / "mine"
    other.mkdir()
    found = repository_of(name, tmp_path, monkeypatch, place=str(other))
    assert found == other
