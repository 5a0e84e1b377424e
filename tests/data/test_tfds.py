"""Data sets of TFDS give the arrays in their archives, or say what is wrong."""

import runpy
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from split_sets import NAMES, config, four, rows

from eotjax.build import dataset
from eotjax.data import sources
from eotjax.errors import UserError


def cyclegan_archive(path):
    """A .zip in CycleGAN's form; returns its images, as Pillow reads them, by split."""
    rng, pixels = np.random.default_rng(0), {}
    with zipfile.ZipFile(path, "w") as archive:
        for name, count in zip(NAMES, (3, 2, 2, 1), strict=True):
            pixels[name] = []
            for index in range(count):
                member = f"{path.stem}/{name}/{index}.jpg"
                noise = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                with archive.open(member, "w") as file:
                    Image.fromarray(noise).save(file, "JPEG")
                with archive.open(member) as file:
                    pixels[name].append(np.asarray(Image.open(file)))
    return pixels


def assert_from_archive(splits, pixels):
    """In any order, for TFDS shuffles."""
    for name, split in zip(NAMES, four(splits), strict=True):
        assert rows(split) == rows(np.stack(pixels[name]))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """TFDS's own builder of CycleGAN's sets, its archive already at hand."""
    pytest.importorskip("tensorflow", reason="TFDS's builders need TensorFlow")
    from tensorflow_datasets.image_classification import cycle_gan

    folder = tmp_path_factory.mktemp("tfds")
    pixels = cyclegan_archive(folder / "horse2zebra.zip")
    with pytest.MonkeyPatch.context() as patch:
        archive = str(folder / "horse2zebra.zip")
        patch.setitem(cycle_gan._DL_URLS, "horse2zebra", archive)
        patch.setattr(sources, "_check_network", lambda builder: None)
        c = config("tfds", folder / "data", name="cycle_gan/horse2zebra")
        return c, pixels, dataset.load(c)


def test_a_tfds_set_that_cannot_be_downloaded_is_refused_at_once(tmp_path, monkeypatch):
    """TFDS itself tries ten times, ever more slowly."""
    requests = pytest.importorskip("requests")
    asked = []

    def head(url, timeout):
        asked.append(url)
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", head)
    builder = SimpleNamespace(
        name="some_set",
        data_dir_root=tmp_path,
        url_infos=dict.fromkeys(["https://a.test/x.zip", "https://a.test/y.zip"]),
    )
    with pytest.raises(UserError, match=r"some_set is .*no way to https://a\.test: .*"):
        sources._check_network(builder)
    assert asked == ["https://a.test"]
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "x.zip").touch()  # brought there by hand
    sources._check_network(builder)


def test_a_tfds_set_gives_the_pixels_of_its_archive(prepared):
    c, pixels, splits = prepared
    assert_from_archive(splits, pixels)
    again = dataset.load(c)  # from disk
    np.testing.assert_array_equal(again.source.train, splits.source.train)


def test_an_archive_at_hand_is_prepared_under_its_name(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorflow", reason="TFDS's builders need TensorFlow")
    from tensorflow_datasets.image_classification import cycle_gan

    monkeypatch.setattr(cycle_gan, "_DL_URLS", dict(cycle_gan._DL_URLS))
    archive, data = tmp_path / "apple2orange.zip", tmp_path / "data"
    pixels = cyclegan_archive(archive)

    def prepare(path):
        monkeypatch.setattr(sys, "argv", ["prepare", str(path), f"--data_dir={data}"])
        script = ROOT / "launch" / "prepare_cyclegan.py"
        runpy.run_path(str(script), run_name="__main__")

    prepare(archive)
    assert "'trainA': 3" in capsys.readouterr().out
    splits = dataset.load(config("tfds", data, name="cycle_gan/apple2orange"))
    assert_from_archive(splits, pixels)
    for wrong in (archive.rename(tmp_path / "mine.zip"), tmp_path / "maps.zip"):
        with pytest.raises(SystemExit):
            prepare(wrong)
        assert f"{wrong} must be an existing file named" in capsys.readouterr().err


def test_a_tfds_set_can_be_read_image_by_image(prepared):
    c, _, splits = prepared
    c = c.copy_and_resolve_references()
    c.data.device_gib = 0.0
    lazy = dataset.load(c).target.train
    np.testing.assert_array_equal(lazy.read(1), splits.target.train[1])
    np.testing.assert_array_equal(lazy.read(0), splits.target.train[0])


def test_an_unknown_tfds_split_is_told_beside_the_known_ones(prepared):
    c = prepared[0].copy_and_resolve_references()
    c.data.test_target = "validation"
    with pytest.raises(UserError, match=r"no split validation.*testB"):
        dataset.load(c)


@pytest.mark.parametrize("name", ["no_such_set", "cycle_gan/no_such_config", ""])
def test_an_unknown_tfds_set_is_refused_by_name(tmp_path, name):
    pytest.importorskip("tensorflow", reason="TFDS's builders need TensorFlow")
    with pytest.raises(UserError, match=rf"no data set '{name}'.*data\.name"):
        dataset.load(config("tfds", tmp_path, name=name))


def test_a_tfds_set_that_cannot_be_downloaded_points_to_the_folder_config(
    tmp_path, monkeypatch
):
    pytest.importorskip("tensorflow", reason="TFDS's builders need TensorFlow")
    from tensorflow_datasets.image_classification import cycle_gan

    missing = str(tmp_path / "missing.zip")
    monkeypatch.setitem(cycle_gan._DL_URLS, "maps", missing)
    monkeypatch.setattr(sources, "_check_network", lambda builder: None)
    with pytest.raises(UserError, match=r"could not prepare.*configs/folder\.py"):
        dataset.load(config("tfds", tmp_path, name="cycle_gan/maps"))
