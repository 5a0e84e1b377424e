"""Features for a plan's cost: their order, going on, and what is refused."""

import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from configs import folder
from eotjax import features
from eotjax.build import dataset
from eotjax.data import images, sources
from eotjax.errors import UserError
from eotjax.evaluation.classifier import Seen

SIZES = {"trainA": 150, "trainB": 70}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Image i of each folder is of the grey value i, the folders' names apart."""
    root = tmp_path_factory.mktemp("photographs")
    for name, count in SIZES.items():
        (root / name).mkdir()
        for i in range(count):
            Image.new("RGB", (9, 7), (i, i, i)).save(root / name / f"{i:04d}.png")
    return root


class Looking:
    """A classifier that remembers what it has seen; it may be interrupted."""

    def __init__(self, stop_after=None):
        self.seen, self.stop_after = [], stop_after

    def __call__(self, pixels):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        grey = pixels[:, 0, 0, 0].astype(int)
        self.seen += grey.tolist()
        return Seen(np.stack([np.cos(grey / 100), np.sin(grey / 100)], 1) * 7, grey)


def make(root, output, look, **changes):
    settings = {"size": (4, 4), "fit": "crop", "identity": "a"}
    paths = {name: images.find(root / name) for name in SIZES}
    features.make(paths, output, classify=look, **settings | changes)


def angles(array):
    return np.round(np.arctan2(array[:, 1], array[:, 0]) * 100).astype(int).tolist()


def test_rows_are_in_the_order_of_names_and_of_length_one(photographs, tmp_path):
    make(photographs, tmp_path / "f.npz", Looking())
    with np.load(tmp_path / "f.npz") as found:
        assert set(found) == {*SIZES, *map(sources.marks_of, SIZES)}
        for name, count in SIZES.items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(found[name], axis=1), 1, 1e-6)
            assert angles(found[name]) == list(range(count))
    config = folder.get_config()
    config.data.path = str(photographs)
    config.data.validation = 0.1
    config.coupling.cost = "features"
    config.coupling.features = str(tmp_path / "f.npz")
    config.data.image_size = (16, 16)
    splits = dataset.load(config)  # cuts test and validation images from both
    points = dataset.aligned(config, splits)["source_points"]
    assert angles(points) == splits.source.train[:, 0, 0, 0].tolist()


def test_features_of_other_images_are_refused(photographs, tmp_path):
    root = shutil.copytree(photographs, tmp_path / "photographs")
    make(root, tmp_path / "f.npz", Looking())
    config = folder.get_config()
    config.data.path, config.data.image_size = str(root), (16, 16)
    config.coupling.cost, config.coupling.features = "features", f"{tmp_path}/f.npz"
    dataset.aligned(config, dataset.load(config))
    (root / "trainB" / "0069.png").rename(root / "trainB" / "00.png")
    with pytest.raises(UserError, match="of other images than trainB holds"):
        dataset.aligned(config, dataset.load(config))


def test_all_broken_images_are_told_before_any_is_looked_at(photographs, tmp_path):
    root = shutil.copytree(photographs, tmp_path / "photographs")
    for name in ("trainA/0003.png", "trainA/0149.png", "trainB/0069.png"):
        (root / name).write_bytes(b"none")
    look = Looking()
    with pytest.raises(UserError, match=r"2 of 150 [^$]*0149.png[^$]*1 of 70 "):
        make(root, tmp_path / "f.npz", look)
    assert not look.seen


def test_an_interrupted_command_goes_on_where_it_was(photographs, tmp_path):
    output, first, second = tmp_path / "f.npz", Looking(stop_after=128), Looking()
    with pytest.raises(KeyboardInterrupt):
        make(photographs, output, first)
    assert not output.exists()
    make(photographs, output, second)
    assert first.seen + second.seen == [i for n in SIZES.values() for i in range(n)]
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]
    make(photographs, tmp_path / "whole.npz", Looking())
    with np.load(output) as a, np.load(tmp_path / "whole.npz") as b:
        for name in SIZES:
            np.testing.assert_array_equal(a[name], b[name])


def test_work_of_another_classifier_is_not_gone_on_with(photographs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(photographs, tmp_path / "f.npz", Looking(stop_after=64))
    other = Looking()
    make(photographs, tmp_path / "f.npz", other, identity="b")
    assert len(other.seen) == sum(SIZES.values())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"data": "none"}, "there is no folder .*none.trainA"),
        ({"output": "f.txt"}, "must end in .npz"),
        ({"output": "none/f.npz"}, "there is no folder .*none"),
        ({"output": "there.npz"}, "is there already"),
        ({"weights": "none.pth"}, "there is no file of weights"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    photographs, tmp_path, monkeypatch, arguments, told
):
    (tmp_path / "there.npz").touch()
    monkeypatch.chdir(tmp_path)
    given = {"data": photographs, "output": "f.npz"} | arguments
    line = ["features", *(f"--{key}={value}" for key, value in given.items())]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(UserError, match=re.compile(told)):
        features.run()
