"""The layers hold: who may import whom."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = sorted(path.parent for path in (ROOT / "eotjax").glob("*/__init__.py"))


def contract(folder):
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [command, "--no-cache"], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path):
    # Other processes make and rename compiled files there.
    compiled = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "eotjax", tmp_path / "eotjax", ignore=compiled)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contract_is_kept(copy):
    done = contract(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "file, line",
    [
        ("diffusion/bridge.py", "from eotjax.networks import unet"),
        ("transport/sinkhorn.py", "from eotjax.build import wiring"),
        ("networks/unet.py", "from ml_collections import ConfigDict"),
        ("parallel.py", "from eotjax.training import step"),
    ],
)
def test_one_wrong_import_breaks_it(copy, file, line):
    with (copy / "eotjax" / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = contract(copy)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout and line.split()[1] in done.stdout


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_a_layer_says_what_it_is_for(layer):
    text = (layer / "__init__.py").read_text()
    assert text.startswith('"""') and len(text.split()) > 20
