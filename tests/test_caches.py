"""What was compiled is there at the next start, and is nobody else's."""

import re
import stat
import tomllib

import jax
import pytest
from conftest import ROOT

from eotjax import caches

ALONE = {"JAX_COMPILATION_CACHE_DIR": ""}  # the tests' own


def programs_of(files):
    return {name.split("-")[0] for name in files}


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
def test_a_second_start_compiles_nothing_anew(command, vectors, tmp_path):
    def start(run, **environment):
        return command(
            *("eotjax.main", "--config=configs/npz.py:vectors,smoke"),
            *(f"--config.data.path={vectors().data.path}", f"--workdir={run}"),
            **ALONE,
            XDG_CACHE_HOME=str(tmp_path / "cache"),
            **environment,
        )

    done = start(tmp_path / "off", JAX_ENABLE_COMPILATION_CACHE="false")
    assert done.returncode == 0, done.stderr
    assert "compiled programs" not in done.stdout
    first = start(tmp_path / "first")
    (folder,) = (tmp_path / "cache" / "eotjax").glob("programs-*")
    assert f"compiled programs: kept in {folder}" in first.stdout
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept = {path.name for path in folder.glob("*-cache")}
    assert {"jit_train_step", "jit_translate"} <= programs_of(kept)
    second = start(tmp_path / "second")
    assert second.returncode == 0, second.stderr
    # A small one that took long this time, on a busy machine, may have come to them.
    new = {path.name for path in folder.glob("*-cache")} - kept
    assert not programs_of(new) & programs_of(kept)
    metrics = [
        (tmp_path / name / "metrics.jsonl").read_text().split("images_per_second")[0]
        for name in ("off", "first", "second")
    ]
    assert len(set(metrics)) == 1


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
