"""Every data source gives the arrays that lie in its files, or says what is wrong."""

import shutil
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image
from split_sets import NAMES, config, four, rows

from eotjax.build import dataset
from eotjax.data import domains, images, sources
from eotjax.errors import UserError

DECODE = partial(images.decode, size=(20, 24), channels=3)


def test_digits_are_the_twos_and_threes_of_scikit_learn_without_overlap():
    from sklearn.datasets import load_digits

    loaded = load_digits()
    splits = sources.digits((8, 8))
    for digit, train, test in [
        (2, splits.train_source, splits.test_source),
        (3, splits.train_target, splits.test_target),
    ]:
        pixels = np.round(loaded.images[loaded.target == digit] * 255 / 16)
        every, count = rows(pixels.astype(np.uint8))
        (train, train_count), (test, test_count) = rows(train), rows(test)
        assert not train & test
        assert train | test == every
        assert test_count == 4 * (count // 4)
        assert train_count == count - count // 4
        assert len(test) == count // 4  # each of them four times


def test_digits_are_enlarged_and_tinted_in_hues_that_cover_the_circle(smoke):
    splits = dataset.load(smoke())
    assert splits.source.train.shape[1:] == (16, 16, 1)
    assert splits.source.test.shape == (176, 16, 16, 3)
    import colorsys

    brightest = splits.source.test.reshape(176, -1, 3)
    brightest = brightest[np.arange(176), brightest.max(-1).argmax(-1)]
    hues = np.sort([colorsys.rgb_to_hsv(*rgb)[0] for rgb in brightest / 255])
    assert np.diff([*hues, hues[0] + 1]).max() < 0.02
    np.testing.assert_array_equal(splits.source.test.min(-1), 0)


def test_a_folder_gives_the_pixels_of_its_files_in_order(image_folder):
    splits = dataset.load(config("folder", image_folder))
    for name, split in zip(NAMES, four(splits), strict=True):
        files = sorted((image_folder / name).iterdir())
        expected = np.stack([np.asarray(Image.open(f)) for f in files])
        np.testing.assert_array_equal(split, expected)


def test_training_images_are_larger_by_the_crop_margin(image_folder):
    splits = dataset.load(config("folder", image_folder, crop_margin=6))
    assert splits.source.train.shape == (5, 26, 30, 3)
    assert splits.source.test.shape == (2, 20, 24, 3)


def test_four_folders_anywhere_can_be_named_by_absolute_paths(tmp_path, write_images):
    folders = [tmp_path / f"place {index}" / "deep" for index in range(4)]
    written = [write_images(f, 1, seed=seed) for seed, f in enumerate(folders)]
    keys = ("train_source", "train_target", "test_source", "test_target")
    named = dict(zip(keys, map(str, folders), strict=True))
    splits = dataset.load(config("folder", tmp_path, **named))
    for split, pixels in zip(four(splits), written, strict=True):
        np.testing.assert_array_equal(split, list(pixels.values()))


def test_a_set_too_large_for_the_device_is_read_image_by_image(image_folder):
    whole = dataset.load(config("folder", image_folder))
    lazy = dataset.load(config("folder", image_folder, device_gib=0.0))
    assert isinstance(lazy.source.train, domains.Lazy) and len(lazy.source.train) == 5
    for index in (4, 0, 2):
        np.testing.assert_array_equal(
            lazy.source.train.read(index), whole.source.train[index]
        )
    np.testing.assert_array_equal(lazy.source.test, whole.source.test)


def test_all_broken_images_of_a_folder_are_told_at_once_by_name(image_folder):
    for name in ("x.png", "y.jpg"):
        (image_folder / "trainA" / name).write_text("no image")
    with pytest.raises(UserError, match=r"2 of 7 .*x\.png.*y\.jpg"):
        dataset.load(config("folder", image_folder))


def test_nothing_comes_after_a_broken_image():
    """What is kept of the images before it could else be of others."""

    def read(i):
        if i == 3:
            raise UserError("image 3 is broken")
        return np.full(2, i)

    came = []
    with pytest.raises(UserError, match=r"1 of 6 images .* image 3 is broken"):
        for image in domains.each(domains.Lazy(6, read, bytes), "looking"):
            came.append(int(image[0]))
    assert came == [0, 1, 2]


def test_broken_images_of_all_folders_are_told_at_once(image_folder):
    for name in ("trainA/x.png", "trainB/y.jpg", "testB/z.png"):
        (image_folder / name).write_text("no image")
    with pytest.raises(UserError, match=r"trainA/x\.png.*trainB/y\.jpg.*testB/z\.png"):
        dataset.load(config("folder", image_folder))


def test_hidden_files_are_passed_over_and_counted(image_folder, capsys):
    before = len(dataset.load(config("folder", image_folder)).source.train)
    (image_folder / "trainA" / "._horse.jpg").write_text("another system's notes")
    found = dataset.load(config("folder", image_folder))
    assert len(found.source.train) == before
    assert "trainA: 1\n" in capsys.readouterr().out


def test_a_folder_is_told_from_others_by_names_and_sizes(image_folder, tmp_path):
    def mark(folder):
        names = domains.Four(*[folder.name] * 4)
        found = sources.folder(str(folder.parent), names, domains.Four(*[DECODE] * 4))
        return domains.unread(found.train_source)

    first = mark(image_folder / "trainA")
    elsewhere = shutil.copytree(image_folder / "trainA", tmp_path / "elsewhere")
    assert mark(elsewhere) == first
    one, *_, last = sorted(elsewhere.iterdir())
    for change in (
        lambda: one.write_bytes(one.read_bytes() + b"."),
        lambda: last.rename(elsewhere / "a.png"),
        lambda: shutil.copy(one, elsewhere / "b.png"),
    ):
        before = mark(elsewhere)
        change()
        assert mark(elsewhere) not in (before, first)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb.png .*400000000 pixels"):
        DECODE(tmp_path / "bomb.png")
    Image.new("1", (10_000, 10_001)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb.png .*10000x10001 pixels, over 100,000"):
        DECODE(tmp_path / "bomb.png")


def test_a_missing_folder_an_empty_one_and_no_path_are_refused(image_folder):
    with pytest.raises(UserError, match=r"data\.path is empty.*--config\.data\.path"):
        dataset.load(config("folder"))
    with pytest.raises(UserError, match="nowhere"):
        dataset.load(config("folder", image_folder / "nowhere"))
    for file in (image_folder / "testB").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"testB.* holds no image"):
        dataset.load(config("folder", image_folder))


def test_test_images_that_are_not_there_are_cut_from_those_to_train_on(
    tmp_path, capsys
):
    """Before validation; features keep to the images that are left."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), np.uint8)
    np.savez(tmp_path / "a.npz", trainA=pixels, trainB=pixels[:30], testB=pixels[30:])
    numbered = {"trainA": np.arange(40), "trainB": np.arange(30)}
    features = {k: np.float32(v)[:, None] for k, v in numbered.items()}
    np.savez(tmp_path / "features.npz", **features)
    c = config("npz", tmp_path / "a.npz")
    c.data.validation = 0.1
    c.coupling.cost, c.coupling.features = "features", str(tmp_path / "features.npz")
    splits = dataset.load(c)
    assert (
        "there is no testA: 4 images of trainA are held out" in capsys.readouterr().out
    )
    assert [
        len(x) for x in (*splits.train, splits.source.test, splits.target.test)
    ] == [*(32, 27, 4, 10)]
    parts = (splits.source.train, splits.source.valid, splits.source.test)
    assert rows(np.concatenate(parts)) == rows(pixels)  # each is in one of them
    kept = dataset.aligned(c, splits)["source_points"][:, 0].astype(int)
    np.testing.assert_array_equal(splits.source.train, pixels[kept])
    np.testing.assert_array_equal(splits.target.test, pixels[30:])


def test_a_folder_of_tests_may_be_missing(image_folder):
    for file in (image_folder / "testA").iterdir():
        file.unlink()
    (image_folder / "testA").rmdir()
    with pytest.raises(UserError, match=r"no testA, and for testing 0.1 of the 5"):
        dataset.load(config("folder", image_folder))


def arrays(n=4, shape=(20, 24, 3), dtype=np.uint8):
    rng = np.random.default_rng(0)
    return {name: (rng.random((n, *shape)) * 255).astype(dtype) for name in NAMES}


@pytest.mark.parametrize(("shape", "dtype"), [((20, 24, 3), "uint8"), ((5,), "f4")])
def test_an_npz_gives_its_own_arrays(tmp_path, shape, dtype):
    written = arrays(shape=shape, dtype=dtype)
    np.savez(tmp_path / "a.npz", **written)
    c = config("npz", tmp_path / "a.npz")
    splits = dataset.load(c)
    for name, split in zip(NAMES, four(splits), strict=True):
        assert split.dtype == dtype
        np.testing.assert_array_equal(split, written[name])
    assert dataset.sample_shape(c, splits.source.train) == shape


def bad_npz(path, kind):
    good = arrays()
    if kind == "missing":
        return
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no archive")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("trainA.npy", "no array")
    elif kind == "truncated":
        np.savez(path, **good)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "one array":
        with path.open("wb") as file:
            np.save(file, good["trainA"])
    else:
        changed = {
            "key": {"trainB": None},
            "no test": {"testA": None},
            "dtype": {"testA": good["testA"].astype(np.float64)},
            "rank": {"trainB": good["trainB"][0]},
            "shape": {"trainB": good["trainB"][:, :10]},
            "objects": {"trainA": np.array([{}, None], dtype=object)},
            "no image": {"testB": good["testB"][:0]},
        }[kind]
        kept = {k: v for k, v in (good | changed).items() if v is not None}
        np.savez(path, **kept)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("missing", "a.npz"),
        ("empty", "a.npz"),
        ("text", "a.npz"),
        ("zip", "a.npz"),
        ("truncated", "a.npz"),
        ("one array", "a.npz"),
        ("objects", "a.npz"),
        ("key", "no array trainB.*trainA, testA, testB"),
        ("no test", "no testA, and for testing 0.1 of the 4 images in trainA are 0;"),
        ("dtype", r"testA in .*a\.npz is float64 \(4, 20, 24, 3\)"),
        ("rank", r"trainB in .*a\.npz is uint8 \(20, 24, 3\)"),
        ("shape", r"trainB in .*a\.npz is uint8 \(4, 10, 24, 3\)"),
        ("no image", "testB is empty"),
    ],
)
def test_a_bad_npz_is_refused_with_what_is_wrong(tmp_path, kind, told):
    bad_npz(tmp_path / "a.npz", kind)
    with pytest.raises(UserError, match=told):
        dataset.load(config("npz", tmp_path / "a.npz"))


def test_an_npz_of_another_size_than_the_config_says_which_keys_to_set(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(shape=(6, 10, 1)))
    with pytest.raises(UserError, match=r"image_size = \(6, 10\).*channels = 1"):
        dataset.load(config("npz", tmp_path / "a.npz"))


@pytest.mark.parametrize("key", ["kind", "fit"])
def test_an_unknown_option_is_told_beside_the_known_ones(key):
    known = {"kind": "digits, tfds, folder, npz", "fit": "crop, pad, stretch"}[key]
    with pytest.raises(UserError, match=rf"data\.{key} is 'other'.*{known}"):
        dataset.load(config(**{"kind": "digits", key: "other"}))


def test_grey_images_that_will_be_tinted_are_stored_with_one_channel(image_folder):
    c = config("folder", image_folder, channels=1, tint=True)
    splits = dataset.load(c)
    assert splits.source.train.shape == (5, 20, 24, 1)
    assert splits.source.test.shape == (2, 20, 24, 3)
    assert dataset.sample_shape(c, splits.source.train) == (20, 24, 3)
    grey = images.decode(
        sorted((image_folder / "testA").iterdir())[0],
        size=(20, 24),
        channels=1,
        fit="crop",
    )
    np.testing.assert_array_equal(splits.source.test[0].max(-1), grey[..., 0])
