"""Every config builds its step; every key is documented and read."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from eotjax import build, checks, parallel, train

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
FULL_SIZE = [(name, "") for name in NAMES] + [
    *(("digits", word) for word in ("cde", "cdiffe", "cmde", "independent", "smoke")),
    ("folder", "small"),
    ("folder", "mnist"),
    ("horse2zebra", "narrow"),
    ("horse2zebra", "cdiffe,independent"),
]


def trace(config, shape):
    """The step's output, abstractly: nothing of its size is allocated."""
    mesh = parallel.make_mesh()
    checks.check_config(config, mesh.size)
    checks.check_shape(config, shape)
    training = build.training(config, shape, (7, 5), mesh)
    state = jax.eval_shape(training.init)
    if len(shape) == 1:
        stored, dtype = shape, jnp.float32
    else:
        margin = config.data.crop_margin
        stored = (shape[0] + margin, shape[1] + margin, config.data.channels)
        dtype = jnp.uint8
    data = {
        "source": jax.ShapeDtypeStruct((7, *stored), dtype),
        "target": jax.ShapeDtypeStruct((5, *stored), dtype),
    }
    new, metrics = jax.eval_shape(training.step, state, data)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert jax.tree.leaves(new) == jax.tree.leaves(state), "shapes and dtypes are kept"
    assert all(value.shape == () for value in metrics.values())


@pytest.mark.parametrize(("name", "variant"), FULL_SIZE)
def test_every_config_traces_in_full_size(name, variant):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    channels = 3 if config.data.tint else config.data.channels
    trace(config, (*config.data.image_size, channels))


def test_vectors_trace_through_the_mlp():
    trace(importlib.import_module("configs.npz").get_config("vectors"), (5,))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_variant_is_answered_with_the_known(name):
    config = importlib.import_module(f"configs.{name}")
    with pytest.raises(ValueError, match=r"no variant 'x'; there are cde, cdiffe"):
        config.get_config("cde,x")


def test_the_words_choose_the_estimator():
    for name in ("cde", "cdiffe", "cmde"):
        assert default.get_config(name).estimator.name == name


def leaves(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_has_a_comment():
    text = (ROOT / "configs" / "default.py").read_text()
    assignments = re.findall(r"^    c\.([\w.]+) = (.*)$", text, re.M)
    documented = {key for key, rest in assignments if "  # " in rest}
    # Some neighbours share the comment of the first.
    shared = {"beta_max", "log_snr_min", "sigma_max", "train_target", "test_source"}
    shared |= {"test_target", "dropout", "learning_rate", "warmup_steps"}
    shared |= {"weight_decay", "solver", "steps"}
    for key in leaves(default.get_config()):
        assert key in documented or key.split(".")[-1] in shared, key


def test_every_key_is_read(tmp_path, monkeypatch, smoke, image_folder):
    read = set()
    original = ConfigDict.__getattr__

    def recording(self, name):
        if not name.startswith("_"):
            read.add((id(self), name))
        return original(self, name)

    monkeypatch.setattr(ConfigDict, "__getattr__", recording)
    unread = None
    for number, changes in enumerate(
        (
            {"schedule__name": "vp_linear"},
            {"schedule__name": "ve", "estimator__name": "cmde"},
            {"data__kind": "folder", "data__path": str(image_folder)},
        )
    ):
        config = smoke(steps=1, sampling__steps=1, **changes)
        if config.data.kind == "folder":
            config.data.channels, config.data.tint = 3, False
        read.clear()
        keys = set(leaves(config))
        read.clear()
        train.train(config, tmp_path / str(number))
        groups = {id(config): ""}
        for key, value in config._fields.items():
            if isinstance(value, ConfigDict):
                groups[id(value)] = f"{key}."
        seen = {f"{groups[i]}{name}" for i, name in read if i in groups}
        unread = keys - seen if unread is None else unread & (keys - seen)
    assert unread <= {"data.name"}, "read where data.kind is tfds: test_data.py"


def test_vectors_train_end_to_end(tmp_path):
    config = importlib.import_module("configs.npz").get_config("vectors,smoke")
    config.data.path = str(tmp_path / "vectors.npz")
    rng = np.random.default_rng(0)
    splits = ("trainA", "trainB", "testA", "testB")
    arrays = {name: rng.normal(size=(20, 3)).astype(np.float32) for name in splits}
    np.savez(config.data.path, **arrays)
    assert train.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "export" / "evaluation.json").exists()
