"""What was compiled is there at the next start, and is nobody else's."""

import os
import re
import stat
import subprocess
import sys
import tomllib

import jax
import pytest
from conftest import ROOT
from runs import ON_TWO

from eotjax import caches

ALONE = {"JAX_COMPILATION_CACHE_DIR": ""}  # the tests' own


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """What JAX was told, with a cache folder of the test's own."""
    told = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(caches, "programs", lambda: "")
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    return told


@pytest.mark.skipif(
    not caches._can_be_loaded(), reason="XLA does not take programs back on this CPU"
)
def test_a_second_start_compiles_nothing_anew(vectors, tmp_path):
    def start(run):
        keeping_all = (
            "import runpy; from eotjax import caches; caches.QUICK = 0.0; "
            "runpy.run_module('eotjax.main', run_name='__main__', alter_sys=True)"
        )
        return subprocess.run(
            [
                *(sys.executable, "-c", keeping_all),
                *("--config=configs/npz.py:vectors,smoke", f"--workdir={run}"),
                f"--config.data.path={vectors().data.path}",
            ],
            cwd=ROOT,
            env=os.environ | ALONE | ON_TWO | {"XDG_CACHE_HOME": f"{tmp_path}/cache"},
            capture_output=True,
            text=True,
        )

    first = start(tmp_path / "first")
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "cache" / "eotjax").glob("programs-*")
    assert f"compiled programs: kept in {folder}" in first.stdout
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept = {path.name for path in folder.glob("*-cache")}
    large = ("jit_train_step", "jit_translate")
    assert set(large) <= {name.split("-")[0] for name in kept}

    def read_at():
        """When JAX last took each of the large programs from there."""
        times = (path for name in large for path in folder.glob(f"{name}-*-atime"))
        return {path.name: path.read_bytes() for path in times}

    before = read_at()
    second = start(tmp_path / "second")
    assert second.returncode == 0, second.stderr
    assert "persistent compilation cache" not in second.stderr  # a read that failed
    assert {path.name for path in folder.glob("*-cache")} == kept
    after = read_at()
    assert len(before) >= 2 and before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)
    metrics = [
        (tmp_path / name / "metrics.jsonl").read_text().split("images_per_second")[0]
        for name in ("first", "second")
    ]
    assert len(set(metrics)) == 1


def test_nothing_is_kept_where_the_environment_says_so():
    said = subprocess.run(
        [
            *(sys.executable, "-c"),
            "from eotjax import caches; caches.keep_programs(); "
            "print(repr(caches.programs()))",
        ],
        cwd=ROOT,
        env=os.environ | ALONE | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() in ("''", "None")


def test_a_folder_that_others_may_write_to_is_not_used(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "_can_be_loaded", lambda: True)
    caches.keep_programs()
    place = settings.pop("jax_compilation_cache_dir")
    assert place.startswith(str(tmp_path / "eotjax" / "programs-"))
    settings.clear()
    (tmp_path / "eotjax" / place.rsplit("/")[-1]).chmod(0o777)
    caches.keep_programs()
    assert not settings


def test_other_processors_have_other_programs(settings, monkeypatch):
    places = []
    for flags in ("sse avx", "sse avx avx512f"):
        monkeypatch.setattr(caches, "_cpu", lambda flags=flags: {"flags": flags})
        caches.keep_programs()
        places.append(settings["jax_compilation_cache_dir"])
    assert len(set(places)) == 2


def test_no_programs_are_kept_where_xla_would_not_take_them_back(settings, monkeypatch):
    monkeypatch.setattr(caches, "_cpu", lambda: {"bugs": "spectre_v1 gds"})
    caches.keep_programs()
    assert not settings


def test_what_keeping_programs_needs_is_asked_for():
    """JAX says only in a warning that it keeps none where this is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(re.match(r"filelock\b[^;]*$", line) for line in project["dependencies"])
