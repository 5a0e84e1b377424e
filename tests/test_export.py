"""The artefact: equal to what was trained, portable, honest about wrong input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eotjax
from eotjax import UserError, data, dataset, evaluate

ROOT = Path(__file__).parents[1]
BLOCK_TENSORFLOW = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "sklearn"):
    sys.modules[name] = None
"""


def run(code):
    return subprocess.run(
        [sys.executable, code], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def translator(trained):
    return eotjax.load(trained / "export")


@pytest.fixture(scope="module")
def sources(translator):
    return dataset.load(translator.config).test_source[:6]


def test_the_artefact_translates_as_the_training_process_did(trained, translator):
    splits = dataset.load(translator.config)
    result, _ = evaluate.evaluate(translator, splits)
    written = json.loads((trained / "export" / "evaluation.json").read_text())
    assert result["rows"] == written["rows"]


def test_it_runs_in_a_process_without_tensorflow(
    trained, translator, sources, tmp_path
):
    np.save(tmp_path / "sources.npy", sources)
    code = tmp_path / "run.py"
    code.write_text(
        BLOCK_TENSORFLOW
        + "import numpy, eotjax\n"
        + f"translator = eotjax.load({str(trained / 'export')!r})\n"
        + f"sources = numpy.load({str(tmp_path / 'sources.npy')!r})\n"
        + f"numpy.save({str(tmp_path / 'targets.npy')!r}, translator(sources))\n"
    )
    done = subprocess.run(
        [sys.executable, code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(
        np.load(tmp_path / "targets.npy"), translator(sources)
    )


def test_training_without_tensorflow_warns_once_and_goes_on(tmp_path):
    code = tmp_path / "run.py"
    code.write_text(
        BLOCK_TENSORFLOW.replace(', "sklearn"', "")
        + "from configs import digits\n"
        + "from eotjax import train\n"
        + "config = digits.get_config('smoke')\n"
        + "config.tensorboard = True\n"
        + f"assert train.train(config, {str(tmp_path / 'run')!r})\n"
    )
    done = subprocess.run(
        [sys.executable, code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no TensorBoard") == 1
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_image_depends_on_itself_only(trained, translator, sources):
    x = sources.astype(np.float32) / 127.5 - 1
    whole = translator(x)
    np.testing.assert_allclose(translator(x[::-1])[::-1], whole, atol=1e-4)
    np.testing.assert_allclose(translator(x[3:4])[0], whole[3], atol=1e-4)
    smaller = eotjax.load(trained / "export", batch_size=8)
    many = np.concatenate([x] * 4)
    np.testing.assert_allclose(smaller(many)[6:12], whole, atol=1e-4)


def test_seeds_and_samples_differ_and_have_their_shapes(translator, sources):
    four = translator(sources, num_samples=4)
    assert four.shape == (4, *sources.shape)
    assert four.dtype == np.uint8
    np.testing.assert_array_equal(four[0], translator(sources))
    assert len({four[i].tobytes() for i in range(4)}) == 4
    assert (translator(sources, seed=1) != four[0]).any()
    np.testing.assert_array_equal(translator(sources), translator(sources))


def test_no_images_give_no_translations(translator):
    assert translator(np.zeros((0, *translator.shape), np.uint8)).shape[0] == 0


def test_sampling_can_be_chosen_when_loading(trained, sources):
    ddim = eotjax.load(trained / "export", solver="ddim", steps=3, path=True)
    assert ddim.config.sampling.steps == 3
    assert ddim(sources).shape == sources.shape
    with pytest.raises(UserError, match="sampling has no 'stesp'"):
        eotjax.load(trained / "export", stesp=3)
    with pytest.raises(UserError, match="ancestral, ddim"):
        eotjax.load(trained / "export", solver="euler")


def test_wrong_arrays_are_refused(translator, sources):
    with pytest.raises(UserError, match=r"\[n, 16, 16, 3\]"):
        translator(sources[0])
    with pytest.raises(UserError, match="float64"):
        translator(sources.astype(np.float64))


def test_a_damaged_artefact_is_told(trained, tmp_path):
    with pytest.raises(UserError, match="is no eotjax export"):
        eotjax.load(tmp_path)
    shutil.copytree(trained / "export", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "params")
    with pytest.raises(UserError, match="cannot restore the parameters"):
        eotjax.load(tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text('{"format": 1')
    with pytest.raises(UserError, match="is no eotjax export"):
        eotjax.load(tmp_path / "copy")


def test_no_digit_of_the_test_split_was_trained_on():
    splits = data.digits((16, 16))
    for train, test in zip(splits[:2], splits[2:], strict=True):
        trained_on = {image.tobytes() for image in train}
        assert not trained_on & {image.tobytes() for image in test}
