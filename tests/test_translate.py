"""A folder of images goes in, a folder of translations comes out, name by name."""

import shutil

import numpy as np
import pytest
from PIL import Image

import eotjax
from eotjax import export, images, translate
from eotjax.errors import UserError


@pytest.fixture(scope="module")
def translator(trained):
    return eotjax.load(trained / "export")


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_image_is_translated_under_its_own_name(
    translator, write_images, tmp_path
):
    written = write_images(tmp_path / "in", 3, size=(16, 16))
    Image.new("RGB", (40, 30)).save(tmp_path / "in" / "photo.JPG")
    (tmp_path / "in" / "notes.txt").touch()
    assert (
        translate.translate_folder(translator, tmp_path / "in", tmp_path / "o" / "p")
        == []
    )
    assert names(tmp_path / "o" / "p") == [*written, "photo.png"]
    for name, image in written.items():
        expected = translator(image[None])[0]
        np.testing.assert_array_equal(pixels(tmp_path / "o" / "p" / name), expected)
    assert pixels(tmp_path / "o" / "p" / "photo.png").shape == (16, 16, 3)


def test_images_of_one_stem_keep_apart(translator, write_images, tmp_path):
    write_images(tmp_path / "in", 1, size=(16, 16))
    shutil.copy(tmp_path / "in" / "0_000.png", tmp_path / "in" / "a.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "in" / "a.jpg")
    translate.translate_folder(translator, tmp_path / "in", tmp_path / "out")
    found = names(tmp_path / "out")
    assert len(found) == 3 and "0_000.png" in found
    (jpg,) = (name for name in found if name.startswith("a.jpg"))
    (png,) = (name for name in found if name.startswith("a.png"))
    original = pixels(tmp_path / "out" / "0_000.png")
    np.testing.assert_array_equal(pixels(tmp_path / "out" / png), original)
    assert (pixels(tmp_path / "out" / jpg) != original).any()


def test_samples_are_numbered_and_a_seed_gives_others(
    translator, write_images, tmp_path
):
    written = write_images(tmp_path / "in", 2, size=(16, 16))
    source = np.stack(list(written.values()))
    translate.translate_folder(
        translator, tmp_path / "in", tmp_path / "out", seed=5, num_samples=2
    )
    assert names(tmp_path / "out") == [
        f"0_00{image}_{number}.png" for image in (0, 1) for number in (0, 1)
    ]
    expected = translator(source, seed=5, num_samples=2)
    for image in (0, 1):
        for number in (0, 1):
            found = pixels(tmp_path / "out" / f"0_00{image}_{number}.png")
            np.testing.assert_array_equal(found, expected[number, image])


def test_more_images_than_fit_in_memory_are_translated_in_chunks(
    translator, write_images, tmp_path, monkeypatch
):
    written = write_images(tmp_path / "in", 5, size=(16, 16))
    monkeypatch.setattr(translate, "CHUNK", 2)
    translate.translate_folder(translator, tmp_path / "in", tmp_path / "out")
    for name, image in written.items():
        expected = translator(image[None])[0]
        np.testing.assert_array_equal(pixels(tmp_path / "out" / name), expected)


def test_broken_images_are_skipped_and_listed(
    trained, write_images, tmp_path, monkeypatch, capsys
):
    write_images(tmp_path / "in", 2, size=(16, 16))
    (tmp_path / "in" / "broken.png").write_text("no image")
    options = ["--export", trained / "export", "--input", tmp_path / "in"]
    options += ["--output", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["translate", *map(str, options)])
    assert translate.run() == 1
    said = capsys.readouterr().out
    assert said.count("skipped:") == 1 and "broken.png" in said
    assert names(tmp_path / "out") == ["0_000.png", "0_001.png"]
    (tmp_path / "in" / "broken.png").unlink()
    assert translate.run() == 0


def test_a_folder_of_broken_images_only_ends_without_translations(translator, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").touch()
    (told,) = translate.translate_folder(translator, tmp_path / "in", tmp_path / "out")
    assert "a.png" in told and names(tmp_path / "out") == []


def test_a_model_of_vectors_is_refused(vectors, tmp_path):
    translator = export.Translator(vectors(), (3,), {}, lambda *_: None)
    with pytest.raises(UserError, match="vectors, not images"):
        translate.translate_folder(translator, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_originals_are_not_written_over(translator, write_images, tmp_path):
    (name,) = write_images(tmp_path, 1, size=(16, 16))
    before = (tmp_path / name).read_bytes()
    with pytest.raises(UserError, match=str(tmp_path)):
        translate.translate_folder(translator, tmp_path, tmp_path / "." / ".")
    assert (tmp_path / name).read_bytes() == before


def test_images_are_fitted_as_the_config_says(smoke, write_images, tmp_path):
    class Same(export.Translator):
        def __call__(self, source, **_):
            return source[None]

    write_images(tmp_path / "in", 1, size=(10, 40))
    same = Same(smoke(data__fit="pad"), (16, 16, 3), {}, lambda *_: None)
    translate.translate_folder(same, tmp_path / "in", tmp_path / "out")
    found = pixels(tmp_path / "out" / "0_000.png")
    assert found[6:10].any() and not found[:5].any() and not found[11:].any()


def test_the_command_refuses_in_one_sentence(command, trained, tmp_path):
    done = command(
        "eotjax.translate",
        *("--export", trained / "export", "--input", tmp_path / "none"),
        *("--output", tmp_path / "out"),
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"eotjax: there is no folder {tmp_path / 'none'}; " + (
        "give the path of one.\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_grey_image_becomes_an_image_of_the_models_channels(translator, tmp_path):
    (tmp_path / "in").mkdir()
    images.write(tmp_path / "in" / "grey.png", np.full((16, 16, 1), 99, np.uint8))
    translate.translate_folder(translator, tmp_path / "in", tmp_path / "out")
    expected = translator(np.full((1, 16, 16, 3), 99, np.uint8))[0]
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "grey.png"), expected)
