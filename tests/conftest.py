"""What all tests share: eight CPU devices, checked shapes, small data, one run."""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import jaxtyping
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent

# XLA compiles in about half of the time, to slower programs.
QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

# Subprocesses inherit all of these.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        QUICKLY,
        # Eight devices share few cores: one that comes late must not end the process.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        "--xla_cpu_collective_timeout_seconds=600",
    ]
)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the same programs, many times
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="eotjax_tests_")
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
sys.path.insert(0, str(ROOT))

# Every annotated shape is checked at run time. Not in these modules: beartype does not
# know generic named tuples.
UNCHECKED = {"__init__", "sources", "dataset"}
jaxtyping.install_import_hook(
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "eotjax").rglob("*.py"))
        if path.stem not in UNCHECKED
    ],
    # An int is a float to beartype, as it is to mypy.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

import jax  # noqa: E402

# What is imported before this line must not import JAX, which reads its settings then.
assert jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
jax.config.update("jax_numpy_rank_promotion", "raise")

from flax.traverse_util import flatten_dict  # noqa: E402

from configs import digits, npz  # noqa: E402
from eotjax import parallel  # noqa: E402
from eotjax import train as training  # noqa: E402
from eotjax.training.interruption import Interruption  # noqa: E402

# Tracing makes many objects, most of which stay: looking through all of them again and
# again took a tenth of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 100)

# The files that take longest, so that none of them is begun last.
LONGEST = (
    "test_restart",
    "test_parallel",
    "test_bridge_solvers",
    "test_latents",
    "test_configs",
    "test_notebooks",
    "test_pairing",
    "test_train",
    "test_epsilon",
    "test_pairs",
    "test_sampler",
    "test_export",
)


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_addoption(parser):
    parser.addoption("--faults", action="store_true", help="try each fault many times")


def changed(config, changes):
    """The config with keys set by names such as data__flip."""
    for name, value in changes.items():
        *group, key = name.split("__")
        (config[group[0]] if group else config)[key] = value
    return config


def keys_of(config):
    """The names of a config's keys, such as data.flip."""
    return list(flatten_dict(config.to_dict(), sep="."))


def one_resolution():
    """configs/digits.py:smoke with a UNet that compiles in half the time."""
    return changed(digits.get_config("smoke"), {"model__multipliers": (1,)})


@pytest.fixture
def smoke():
    """Makes configs/digits.py:smoke, of one resolution, with some keys changed."""
    return lambda **changes: changed(one_resolution(), changes)


@pytest.fixture
def vectors(tmp_path):
    """Makes a smoke config of 3-vectors in a .npz file, with some keys changed."""

    def make(**changes):
        rng = np.random.default_rng(0)
        sizes = {"trainA": 30, "trainB": 20, "testA": 12, "testB": 10}
        arrays = {n: rng.normal(size=(k, 3)).astype("f4") for n, k in sizes.items()}
        np.savez(tmp_path / "vectors.npz", **arrays)
        config = npz.get_config("vectors,smoke")
        config.data.path = str(tmp_path / "vectors.npz")
        return changed(config, changes)

    return make


@pytest.fixture
def write_images():
    """Writes random RGB images as PNG files; returns their pixels by name."""

    def write(folder, count, size=(20, 24), seed=0):
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(
            0, 256, (count, *size, 3), dtype=np.uint8
        )
        names = [f"{seed}_{index:03d}.png" for index in range(count)]
        for name, image in zip(names, pixels, strict=True):
            Image.fromarray(image).save(folder / name)
        return dict(zip(names, pixels, strict=True))

    return write


@pytest.fixture
def image_folder(tmp_path, write_images):
    """CycleGAN's layout: random images of 20x24 in four folders of unequal sizes."""
    counts = {"trainA": 5, "trainB": 3, "testA": 2, "testB": 1}
    for seed, (name, count) in enumerate(counts.items()):
        write_images(tmp_path / "images" / name, count, seed=seed)
    return tmp_path / "images"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The workdir of a finished run of `smoke`, one for all workers."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    workdir, done = shared / "trained" / "run", shared / "trained" / "done"
    with filelock.FileLock(shared / "trained.lock"):
        if not done.exists():
            assert training.train(one_resolution(), workdir)
            done.touch()
    return workdir


@pytest.fixture
def interrupt(monkeypatch):
    """Asks every run to stop after the given step, or, with None, no more."""

    def at(step):
        monkeypatch.setattr(Interruption, "agreed", lambda self, done: done == step)

    return at


@pytest.fixture
def one_device(monkeypatch):
    """Many steps on many devices take long on few cores."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)


@pytest.fixture(scope="module")
def one_torch_thread():
    """Two, on cores that others use too, wait for each other ten times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command():
    """Runs `python -m module *arguments` from the repository's root."""

    def run(module, *arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )

    return run
