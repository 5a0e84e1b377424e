"""Every config builds, at full size, and every key of theirs is read and explained."""

import importlib
import math
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny
from conftest import keys_of
from ml_collections import ConfigDict

from configs import default, digits, horse2zebra, known_plan
from eotjax import parallel, prepare, train
from eotjax.build import checks, dataset, learning, planning, wiring
from eotjax.errors import UserError

FILES = sorted(Path(default.__file__).parent.glob("*.py"))
FILES = [path.stem for path in FILES if path.stem != "__init__"]


def get_config(name):
    """The config that the command line calls configs/file.py:variants."""
    file, _, variants = name.partition(":")
    return importlib.import_module(f"configs.{file}").get_config(variants)


def known_variants(file):
    with pytest.raises(ValueError, match="no variant 'other'; there are") as told:
        get_config(f"{file}:other")
    return str(told.value).partition("there are ")[2].split(", ")


# The common variants in two configs, of small networks; cde is what all files but one
# choose.
COMBINED = ["cdiffe,independent,smoke", "cmde,smoke", "bridge,smoke"]


def names():
    """Each file and its own variants at full size, and with the common variants."""
    common = {"cde", *",".join(COMBINED).split(",")}
    for file in FILES:
        theirs = {*importlib.import_module(f"configs.{file}").VARIANTS}
        others = common if file == "default" else common - theirs
        own = [variant for variant in known_variants(file) if variant not in others]
        yield from (file, *(f"{file}:{variant}" for variant in [*COMBINED, *own]))


def abstract_data(config, name):
    """Training sets of 100 and 90, without their pixels, and the network's shape."""
    c = config.data
    if "vectors" in name or "known_plan" in name:
        stored, dtype, shape = (5,), jnp.float32, (5,)
    else:
        stored = (*(side + c.crop_margin for side in c.image_size), c.channels)
        dtype, shape = jnp.uint8, (*c.image_size, 3 if c.tint else c.channels)
    if config.latent.weights:
        config.latent.channels = 32
        stored, dtype = (2, stored[0] // 8, stored[1] // 8, 32), jnp.float16
    sets = {"source": 100, "target": 90}
    data = {k: jax.ShapeDtypeStruct((n, *stored), dtype) for k, n in sets.items()}
    if config.coupling.method == "whole":
        data |= {
            f"{k}_points": jax.ShapeDtypeStruct(
                (config.coupling.copies * n, 7), jnp.float32
            )
            for k, n in sets.items()
        }
    return data, shape


@pytest.mark.parametrize("name", list(names()))
def test_a_config_describes_a_step_that_keeps_the_state_what_it_is(name):
    config = get_config(name)
    data, shape = abstract_data(config, name)
    checks.check_config(config, 8)
    checks.check_shape(config, shape)
    config = planning.with_epsilon(config, 1.0)
    training = learning.training(config, shape, (100, 90), parallel.make_mesh())
    state = jax.eval_shape(training.init)
    after, metrics = jax.eval_shape(training.step, state, data)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {"loss", "grad_norm", "plan/entropy"} <= metrics.keys()
    assert {x.shape for x in metrics.values()} == {()}


def test_cde_is_the_default_and_variants_are_applied_in_turn():
    for file in set(FILES) - {"horse2zebra"}:
        assert get_config(f"{file}:cde") == get_config(file)
    config = get_config("digits:cmde,independent,smoke")
    assert config.estimator.name == "cmde"
    assert config.coupling.method == "independent"
    assert config.steps < digits.get_config().steps


def test_horse2zebra_has_the_size_that_its_description_says():
    config = planning.with_epsilon(horse2zebra.get_config(), 1.0)
    config.latent.channels = 32
    training = learning.training(config, (256, 256, 3), (9, 9), parallel.make_mesh())
    params = jax.eval_shape(training.init).params
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert f"{count / 1e6:.1f} M parameters" in horse2zebra.__doc__


@pytest.mark.parametrize("file", FILES)
def test_every_file_has_a_description_and_only_the_keys_of_default(file):
    assert importlib.import_module(f"configs.{file}").__doc__
    for variant in ("", *known_variants(file)):
        assert set(keys_of(get_config(f"{file}:{variant}"))) == set(
            keys_of(default.get_config())
        )


# Explained by the comment on the key above, or by the one on their group.
WITH_NEIGHBOURS = """
data.train_target data.test_source data.test_target schedule.beta_max
schedule.log_snr_min schedule.sigma_max model.dropout optimizer.learning_rate
optimizer.warmup_steps optimizer.weight_decay sampling.steps
"""


def test_every_key_is_explained_beside_its_default():
    source = Path(default.__file__).read_text()
    explained = set(re.findall(r"^    c\.([\w.]+) = .+  # \S+", source, re.M))
    unexplained = set(keys_of(default.get_config())) - explained
    assert unexplained <= set(WITH_NEIGHBOURS.split())


@pytest.fixture
def read_keys(monkeypatch):
    """The keys that eotjax reads from configs, for more than to check them."""
    groups = {frozenset(default.get_config()): ""}
    for name, value in default.get_config().items():
        if isinstance(value, ConfigDict):
            groups[frozenset(value)] = f"{name}."
    seen = set()

    def recorded(original):
        def read(self, key):
            reader = sys._getframe(1).f_globals["__name__"]
            if reader.startswith("eotjax.") and reader != "eotjax.build.checks":
                seen.add(f"{groups[frozenset(self)]}{key}")
            return original(self, key)

        return read

    for method in ("__getattr__", "__getitem__"):
        original = getattr(ConfigDict, method)
        monkeypatch.setattr(ConfigDict, method, recorded(original))
    return seen


def test_every_key_is_read_somewhere(read_keys, smoke, image_folder, tmp_path):
    train.train(smoke(), tmp_path / "run")
    for name in ("vp_linear", "vp_cosine", "ve"):
        wiring.make_schedule(smoke(schedule__name=name))
    for name in ("cmde", "bridge"):
        wiring.estimator(smoke(estimator__name=name), (16, 16, 3))
    dataset.load(smoke(data__kind="folder", data__path=str(image_folder)))
    with pytest.raises(UserError):
        dataset.load(smoke(data__kind="tfds", data__name="no_such_set"))
    dataset.load(known_plan.get_config("smoke"))
    learning.rounds(smoke(refit__after=1), 1)
    for name in ("pooled", "pca"):
        config = smoke(coupling__cost=name)
        planning.embed(config, dataset.load(config))
    with pytest.raises(UserError, match=r"coupling\.features"):
        dataset.aligned(smoke(coupling__cost="features"), dataset.load(smoke()))
    latent = smoke(
        coupling__method="whole",
        data__kind="folder",
        data__path=str(image_folder),
        data__channels=3,
        data__tint=False,
        data__image_size=(16, 16),
        latent__weights=str(tiny.save(tmp_path / "weights")),
        latent__cache=str(tmp_path / "cache"),
    )
    run = prepare.prepare(latent, tmp_path / "latent")
    run.export(run.state, tmp_path / "latent" / "export")
    run.checkpoints.close()
    assert set(keys_of(default.get_config())) - read_keys == set()


def test_reads_are_recorded_by_group_and_reader(read_keys, smoke):
    config = smoke()
    assert config.steps and config.sampling.batch_size and not read_keys
    wiring.make_schedule(config)
    assert {"schedule.name", "schedule.log_snr_max"} <= read_keys
    assert "schedule.beta_min" not in read_keys and "data.name" not in read_keys


@pytest.mark.parametrize(
    "platform, capability, dtype",
    [
        ("cpu", None, jnp.float32),
        ("gpu", "7.5", jnp.float32),  # T4
        ("gpu", "8.0", jnp.bfloat16),  # A100
        ("gpu", "12.0", jnp.bfloat16),
        ("gpu", "gfx942", jnp.bfloat16),  # AMD's MI300
        ("tpu", None, jnp.bfloat16),
    ],
)
def test_the_computation_is_in_bfloat16_where_the_device_has_it(
    monkeypatch, platform, capability, dtype
):
    device = types.SimpleNamespace(platform=platform)
    if capability:
        device.compute_capability = capability
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert wiring.compute_dtype(default.get_config()) == dtype
