"""The StableHLO program is the Translator, run by JAX alone."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import eotjax
from eotjax import parallel
from eotjax.artefact import stablehlo
from eotjax.artefact.translator import Translator
from eotjax.build import wiring

SOURCE = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
ALONE = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
allowed = {"jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "flatbuffers"}
outside = sys.argv[4]

def only_jax(name, *where):
    found = find(name, *where)
    if found and found.origin and outside in found.origin:
        if name.split(".")[0] not in allowed:
            return None
    return found

PathFinder.find_spec = only_jax
try:
    import flax
except ImportError:
    pass
else:
    raise SystemExit("flax was found: nothing is shown")
import jax, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
source = np.load(sys.argv[2])
np.save(sys.argv[3], program.call(source, np.uint32(5), np.int32(0)))
"""


def test_jax_alone_translates_as_the_translator_does(trained, tmp_path):
    np.save(tmp_path / "source.npy", SOURCE)
    done = subprocess.run(
        [
            *(sys.executable, "-c", ALONE, trained / "export" / stablehlo.NAME),
            *(tmp_path / "source.npy", tmp_path / "target.npy"),
            Path(jax.__file__).parent.parent,
        ],
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = eotjax.load(trained / "export")(SOURCE, seed=5)
    np.testing.assert_allclose(np.load(tmp_path / "target.npy"), expected, atol=1e-5)


def test_the_program_takes_any_batch_and_is_for_all_platforms(trained):
    content = (trained / "export" / stablehlo.NAME).read_bytes()
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "cuda", "tpu")
    one, three = (program.call(SOURCE[:n], np.uint32(0), np.int32(0)) for n in (1, 3))
    assert three.shape == SOURCE.shape
    np.testing.assert_allclose(one, three[:1], atol=1e-5)
    other = program.call(SOURCE, np.uint32(1), np.int32(0))
    assert np.abs(other - three).max() > 0.1


def test_a_program_has_the_sampling_that_was_asked_for(trained):
    translator = eotjax.load(trained / "export", solver="dpmpp_2m", steps=3)
    program = jax.export.deserialize(bytearray(translator.stablehlo()))
    np.testing.assert_allclose(
        program.call(SOURCE, np.uint32(2), np.int32(0)),
        translator(SOURCE, seed=2),
        atol=1e-5,
    )


def test_a_bridges_program_goes_back_and_on_again(smoke):
    config, shape = smoke(estimator__name="bridge", estimator__epsilon=0.5), (16, 16, 3)
    init = jax.jit(wiring.network(config, shape).init)
    params = init(jax.random.key(0), *wiring.inputs(config, shape))["params"]
    sample = wiring.sampling(config, shape, parallel.make_mesh())
    once = Translator(config, shape, params, sample)
    again = once.using(restart=0.5)
    program = jax.export.deserialize(bytearray(again.stablehlo()))
    expected = again(SOURCE, seed=2)
    np.testing.assert_allclose(
        program.call(SOURCE, np.uint32(2), np.int32(0)), expected, atol=1e-5
    )
    assert np.abs(expected - once(SOURCE, seed=2)).max() > 0.1


def test_equal_translators_give_equal_programs(trained):
    translator = eotjax.load(trained / "export")
    content = (trained / "export" / stablehlo.NAME).read_bytes()
    assert translator.stablehlo() == content
