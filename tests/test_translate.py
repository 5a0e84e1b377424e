"""The command that translates: what it says, and that it works on whole folders."""

import os
import shutil

import numpy as np
import pytest
from conftest import ROOT
from image_files import names, pixels, random, write, write_odd
from PIL import Image

import eotjax
from eotjax import translate
from eotjax.errors import UserError

PHOTOS = ROOT.parent / "shared" / "data" / "photo2monet_256" / "testA"


@pytest.fixture(scope="module")
def translator(trained):
    return eotjax.load(trained / "export")


@pytest.fixture
def run(trained, monkeypatch, capsys):
    """Runs the command in this process: its status and what it printed."""

    def run(source, output, *options):
        arguments = [f"--export={trained / 'export'}", f"--input={source}"]
        arguments += [f"--output={output}", *options]
        monkeypatch.setattr("sys.argv", ["translate", *arguments])
        return translate.run(), capsys.readouterr().out

    return run


def test_the_command_says_that_it_was_interrupted(
    run, write_images, tmp_path, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    write_images(tmp_path / "in", 1, size=(16, 16))
    monkeypatch.setattr(eotjax.Translator, "__call__", interrupt)
    status, said = run(tmp_path / "in", tmp_path / "out")
    assert status == 130 and "goes on" in said


def test_odd_files_are_translated_and_broken_ones_skipped_and_listed(
    run, translator, tmp_path
):
    (tmp_path / "in" / "folder.png").mkdir(parents=True)
    meant, broken = write_odd(tmp_path / "in")
    status, said = run(tmp_path / "in", tmp_path / "out", "--format=png")
    assert status == 1 and "Traceback" not in said
    for name, image in meant.items():
        expected = translator(image[None])[0]
        new = name if name.startswith("animated") else f"{name.split('.')[0]}.png"
        new = f"{name}.png" if name.startswith("animated") else new
        np.testing.assert_array_equal(pixels(tmp_path / "out" / new), expected, name)
    assert f"wrote {len(meant)} images to {tmp_path / 'out'}, kept 0" in said
    assert len(names(tmp_path / "out")) == len(meant)
    skipped = [line for line in said.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == len(broken) and f"skipped {len(broken)}\n" in said
    for name in broken:
        (line,) = (line for line in skipped if name in line)
        assert line.count(str(tmp_path / "in")) == line.count(name) == 1, line
        assert line.endswith("mend or remove it.")
        (tmp_path / "in" / name).unlink()
    status, said = run(tmp_path / "in", tmp_path / "out", "--format=png")
    assert status == 0 and f"kept {len(meant)}" in said and "skipped:" not in said


def test_a_name_that_is_no_text_can_be_told(run, tmp_path):
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path / "in") + b"/\xff.png", "wb"):
        pass
    status, said = run(tmp_path / "in", tmp_path / "out")
    assert status == 1 and "udcff.png" in said


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"there is no {PHOTOS}")
def test_photographs_are_translated(run, translator, tmp_path):
    photos = sorted(PHOTOS.glob("*.jpg"))[:5]
    (tmp_path / "in").mkdir()
    for photo in photos:
        shutil.copy(photo, tmp_path / "in")
    status, _ = run(tmp_path / "in", tmp_path / "out", "--format=png")
    assert status == 0
    for photo in photos:
        with Image.open(photo) as image:
            small = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
        expected = translator(small[None])[0]
        found = pixels(tmp_path / "out" / f"{photo.stem}.png")
        np.testing.assert_array_equal(found, expected)
    status, _ = run(PHOTOS / photos[0].name, tmp_path / "full", "--fit=full")
    with Image.open(tmp_path / "full" / photos[0].name) as image:
        assert status == 0 and image.format == "JPEG" and image.size == (256, 256)


def test_an_image_is_translated_alone_as_among_others(run, write_images, tmp_path):
    write_images(tmp_path / "in", 11, size=(20, 24))
    assert run(tmp_path / "in", tmp_path / "out", "--num_samples=3")[0] == 0
    (tmp_path / "in" / "broken.png").touch()
    for name in ("0_000", "0_009"):
        run(tmp_path / "in" / f"{name}.png", tmp_path / "one", "--num_samples=3")
        for number in range(3):
            one, other = (
                (tmp_path / folder / f"{name}_{number}.png").read_bytes()
                for folder in ("one", "out")
            )
            assert one == other


def test_whole_images_are_what_the_translator_makes_of_them(run, translator, tmp_path):
    step = translator.multiple
    image = write(tmp_path / "in" / "a.png", random(5 * step, 7 * step))
    assert run(tmp_path / "in", tmp_path / "out", "--fit=full", "--seed=3")[0] == 0
    expected = translator(image[None], seed=3, any_size=True)[0]
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "a.png"), expected)


def test_a_direction_that_was_not_trained_is_refused(run, tmp_path):
    write(tmp_path / "in" / "a.png", random(16, 16))
    with pytest.raises(UserError, match="backward"):
        run(tmp_path / "in", tmp_path / "out", "--direction=backward")
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_in_one_sentence(command, trained, tmp_path):
    done = command(
        "eotjax.translate",
        *("--export", trained / "export", "--input", tmp_path / "none"),
        *("--output", tmp_path / "out"),
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"eotjax: there is nothing at {tmp_path / 'none'}; " + (
        "give an image, a folder or a quoted glob.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option",
    ["--num_samples=0", "--seed=-1", "--format=doc", "--fit=", "--direction=up"],
)
def test_wrong_options_are_refused_by_name(run, tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "out", option)
    assert option.split("=")[0] in capsys.readouterr().err
