"""Images go in, translations come out: name by name, whatever the files are like."""

import itertools
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import jax
import numpy as np
import pytest
from image_files import Negative, names, pixels, random, write, write_odd
from PIL import Image

import eotjax
from eotjax.artefact import files as artefact_files
from eotjax.artefact.folder import make_task, translate_jobs
from eotjax.data import domains, images
from eotjax.errors import UserError


@pytest.fixture(scope="module")
def translator(trained):
    return eotjax.load(trained / "export")


@pytest.fixture
def negative(smoke):
    return Negative(smoke())


def translate_files(
    translator, source, output, *, format=None, overwrite=False, **changes
):
    """What the command does with a translator and its options."""
    options = {"seed": 0, "num_samples": 1, "direction": "forward", "fit": None}
    options |= changes
    task = make_task(translator, **options)
    jobs = artefact_files.plan(
        source, output, num_samples=task.num_samples, format=format
    )
    return translate_jobs(task, jobs, output, overwrite=overwrite)


# What goes where


def test_every_image_below_a_folder_is_translated_under_its_own_name(
    translator, tmp_path
):
    source, output = tmp_path / "in", tmp_path / "o" / "p"
    written = {
        name: write(source / name, random(16, 16))
        for name in ("a.png", "b/a.bmp", "b/c/A.TIF", "b/looks_like.png/a.png")
    }
    (source / "notes.txt").touch()
    write(source / ".hidden.png", random(16, 16))
    write(source / ".cache" / "a.png", random(16, 16))
    outcome = translate_files(translator, source, output)
    assert outcome.broken == outcome.kept == []
    assert {path.relative_to(output).as_posix() for path in outcome.written} == set(
        written
    )
    for name, image in written.items():
        expected = translator(image[None])[0]
        np.testing.assert_array_equal(pixels(output / name), expected)
    files = [p for p in output.rglob("*") if p.is_file()]
    assert len(files) == len(written) + 1  # the contact sheet


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in", ["a.png", "b/a.jpg", "b/c/d.png"]),
        ("in/a.png", ["a.png"]),
        ("in/b/c/d.png", ["d.png"]),
        ("in/*.png", ["a.png"]),
        ("in/**/*.png", ["a.png", "b/c/d.png"]),
        ("in/b/*/d.*", ["c/d.png"]),
        ("in/[b]/a.jpg", ["b/a.jpg"]),
        ("i*", None),
    ],
)
def test_a_file_a_folder_and_a_glob_keep_the_names_below_them(
    negative, tmp_path, monkeypatch, pattern, expected
):
    for name in ("a.png", "b/a.jpg", "b/c/d.png"):
        write(tmp_path / "in" / name, random(16, 16))
    monkeypatch.chdir(tmp_path)
    for source in (pattern, tmp_path / pattern):
        shutil.rmtree("out", ignore_errors=True)
        if expected is None:
            with pytest.raises(UserError, match="nothing that matches"):
                translate_files(negative, source, "out")
            continue
        translate_files(negative, source, "out")
        assert names(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("suffix", "format"),
    [
        *(("jpg", "JPEG"), ("jpeg", "JPEG"), ("JPG", "JPEG"), ("png", "PNG")),
        *(("webp", "WEBP"), ("bmp", "BMP"), ("gif", "GIF")),
        *(("tif", "TIFF"), ("tiff", "TIFF")),
    ],
)
def test_a_translation_has_the_format_of_its_image(negative, tmp_path, suffix, format):
    flat = np.full((16, 16, 3), (30, 60, 90), np.uint8)
    write(tmp_path / "in" / f"a.{suffix}", flat)
    translate_files(negative, tmp_path / "in", tmp_path / "out")
    with Image.open(tmp_path / "out" / f"a.{suffix}") as image:
        assert image.format == format and getattr(image, "n_frames", 1) == 1
        found = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(found - (255 - flat)).max() <= 3


def test_a_jpeg_has_the_quality_95(negative, tmp_path):
    write(tmp_path / "in" / "a.jpg", random(16, 16))
    translate_files(negative, tmp_path / "in", tmp_path / "out")
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=95)
    with Image.open(tmp_path / "out" / "a.jpg") as found, Image.open(file) as wanted:
        assert found.quantization == wanted.quantization


def test_one_format_can_be_asked_for_all(negative, tmp_path):
    for name in ("a.png", "b/c.JPG", "d.e.bmp"):
        write(tmp_path / "in" / name, random(16, 16))
    translate_files(negative, tmp_path / "in", tmp_path / "out", format="webp")
    assert names(tmp_path / "out") == ["a.webp", "b/c.webp", "d.e.webp"]
    with Image.open(tmp_path / "out" / "a.webp") as image:
        assert image.format == "WEBP"
    with pytest.raises(UserError, match=r"'\.xyz'"):
        translate_files(negative, tmp_path / "in", tmp_path / "no", format="xyz")
    assert not (tmp_path / "no").exists()


def test_images_of_one_stem_keep_apart(negative, tmp_path):
    inputs = {
        name: write(tmp_path / "in" / name, random(16, 16))
        for name in ("a.bmp", "a.png", "b.png", "c/a.png")
    }
    for k, ending in ((1, [""]), (2, ["_0", "_1"])):
        output = tmp_path / f"out{k}"
        translate_files(negative, tmp_path / "in", output, format="png", num_samples=k)
        assert names(output) == sorted(
            f"{stem}{end}.png"
            for stem in ("a.bmp", "a.png", "b", "c/a")
            for end in ending
        )
        for name, stem in [("a.bmp", "a.bmp"), ("a.png", "a.png"), ("b.png", "b")]:
            found = pixels(output / f"{stem}{ending[0]}.png")
            np.testing.assert_array_equal(found, 255 - inputs[name])


@pytest.mark.parametrize(
    "clashing", [("a.jpg", "a.png", "a.jpg.bmp"), ("a.jpg", "a.png/b.jpg")]
)
def test_what_would_still_collide_is_refused_before_any_work(
    negative, tmp_path, clashing
):
    for name in clashing:
        write(tmp_path / "in" / name, random(16, 16))
    with pytest.raises(UserError, match=r"a\.jpg"):
        translate_files(negative, tmp_path / "in", tmp_path / "out", format="png")
    assert not negative.calls and not (tmp_path / "out").exists()


def test_samples_are_numbered_and_a_seed_gives_others(
    translator, write_images, tmp_path
):
    written = write_images(tmp_path / "in", 2, size=(16, 16))
    source = np.stack(list(written.values()))
    translate_files(
        translator, tmp_path / "in", tmp_path / "out", seed=5, num_samples=2
    )
    assert names(tmp_path / "out") == [
        f"0_00{image}_{number}.png" for image in (0, 1) for number in (0, 1)
    ]
    expected = translator(source, seed=5, num_samples=2)
    for image, number in itertools.product((0, 1), (0, 1)):
        found = pixels(tmp_path / "out" / f"0_00{image}_{number}.png")
        np.testing.assert_array_equal(found, expected[number, image])
    assert (expected != translator(source, seed=6, num_samples=2)).any()


def test_a_grey_image_becomes_an_image_of_the_models_channels(translator, tmp_path):
    (tmp_path / "in").mkdir()
    images.write(tmp_path / "in" / "grey.png", np.full((16, 16, 1), 99, np.uint8))
    translate_files(translator, tmp_path / "in", tmp_path / "out")
    expected = translator(np.full((1, 16, 16, 3), 99, np.uint8))[0]
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "grey.png"), expected)


# What is not written over


def test_originals_are_not_written_over(negative, tmp_path):
    source = tmp_path / "in"
    write(source / "a.png", random(16, 16))
    write(source / "b" / "a.png", random(16, 16))
    (tmp_path / "link").symlink_to(source)
    before = {path: path.read_bytes() for path in source.rglob("*.png")}
    for given, output in [
        (source, source),
        (source, source / "b" / ".."),
        (source, tmp_path / "link"),
        (source / "a.png", source),
        (f"{source}/*/a.png", source),  # to in/b/a.png
        (f"{source}/**/*.png", tmp_path / "link"),
        (source, source / "a.png"),
    ]:
        for format in (None, "png"):
            with pytest.raises(UserError, match=r"output"):
                translate_files(negative, given, output, format=format)
    assert {path: path.read_bytes() for path in tmp_path.rglob("in/**/*.png")} == before
    assert not negative.calls


def test_a_link_to_an_image_is_not_written_over_it(negative, tmp_path):
    write(tmp_path / "out" / "a.png", random(16, 16))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "out" / "a.png")
    with pytest.raises(UserError, match="over the image"):
        translate_files(negative, tmp_path / "in", tmp_path / "out", overwrite=True)


def test_translations_below_the_images_are_not_translated_again(negative, tmp_path):
    write(tmp_path / "a.png", random(16, 16))
    for source in (tmp_path, f"{tmp_path}/**/*.png"):
        outcome = translate_files(negative, source, tmp_path / "out", overwrite=True)
        assert outcome.written == [tmp_path / "out" / "a.png"]


def test_images_below_the_output_are_translated(negative, tmp_path):
    write(tmp_path / "run" / "test" / "a.png", random(16, 16))
    outcome = translate_files(negative, tmp_path / "run" / "test", tmp_path / "run")
    assert outcome.written == [tmp_path / "run" / "a.png"]


def test_translations_that_are_there_are_kept_unless_told(negative, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.png"):
        write(source / name, random(16, 16))
    mine = {name: write(output / name, random(16, 16)) for name in ("a_0.png", "b.png")}
    outcome = translate_files(negative, source, output, num_samples=2)
    assert outcome.kept == [output / "a_0.png"]
    np.testing.assert_array_equal(pixels(output / "a_0.png"), mine["a_0.png"])
    second = 254 - pixels(source / "a.png")
    np.testing.assert_array_equal(pixels(output / "a_1.png"), second)

    outcome = translate_files(negative, source, output)
    assert outcome.kept == [output / "b.png"]
    assert outcome.written == [output / "a.png"]
    before, calls = (output / "b.png").stat().st_mtime_ns, len(negative.calls)
    outcome = translate_files(negative, source, output)
    assert outcome.written == [] and len(outcome.kept) == 2
    assert (output / "b.png").stat().st_mtime_ns == before
    assert len(negative.calls) == calls

    outcome = translate_files(negative, source, output, overwrite=True)
    assert outcome.kept == [] and len(outcome.written) == 2
    np.testing.assert_array_equal(
        pixels(output / "b.png"), 255 - pixels(source / "b.png")
    )


def test_an_interrupted_run_goes_on_where_it_was(smoke, write_images, tmp_path):
    write_images(tmp_path / "in", 20, size=(16, 16))

    class Interrupted(Negative):
        def __call__(self, source, **options):
            if len(self.calls) == 1:
                raise KeyboardInterrupt
            return super().__call__(source, **options)

    with pytest.raises(KeyboardInterrupt):
        translate_files(Interrupted(smoke()), tmp_path / "in", tmp_path / "out")
    assert len(names(tmp_path / "out")) == 8  # one batch, whole
    outcome = translate_files(Negative(smoke()), tmp_path / "in", tmp_path / "out")
    assert len(outcome.kept) == 8 and len(outcome.written) == 12
    translate_files(Negative(smoke()), tmp_path / "in", tmp_path / "at_once")
    for path in (tmp_path / "at_once").iterdir():
        np.testing.assert_array_equal(
            pixels(path), pixels(tmp_path / "out" / path.name)
        )


# Files as they come


@pytest.mark.parametrize("fit", ["pad", "stretch", "full"])
def test_odd_files_are_read_whatever_the_fit(negative, tmp_path, fit):
    (tmp_path / "in").mkdir()
    meant, broken = write_odd(tmp_path / "in")
    outcome = translate_files(
        negative, tmp_path / "in", tmp_path / "out", fit=fit, format="png"
    )
    assert len(outcome.written) == len(meant)
    assert len(outcome.broken) == len(broken)


def test_a_folder_of_broken_images_only_ends_without_translations(negative, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").touch()
    (told,) = translate_files(negative, tmp_path / "in", tmp_path / "out").broken
    assert "a.png" in told and not (tmp_path / "out").exists()


def test_what_a_format_cannot_hold_is_skipped_and_listed(negative, tmp_path):
    write(tmp_path / "in" / "a.png", random(16, 16))
    write(tmp_path / "in" / "b.png", np.zeros((1, 16_384, 3), np.uint8))  # WebP: 16383
    outcome = translate_files(
        negative, tmp_path / "in", tmp_path / "out", fit="full", format="webp"
    )
    assert names(tmp_path / "out") == ["a.webp"]
    (told,) = outcome.broken
    assert "b.webp" in told and "format" in told


def test_an_error_of_the_disk_ends_the_run(negative, write_images, tmp_path):
    write_images(tmp_path / "in", 3, size=(16, 16))
    (tmp_path / "out" / "0_001.png").mkdir(parents=True)
    with pytest.raises(OSError, match="0_001"):
        translate_files(negative, tmp_path / "in", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp"]


# How they are translated


@pytest.mark.parametrize("fit", [None, "crop", "pad", "stretch"])
def test_images_are_fitted_as_they_are_told_or_as_the_config_says(smoke, tmp_path, fit):
    image = write(tmp_path / "in" / "a.png", random(10, 40))
    stub = Negative(smoke(data__fit="pad"))
    translate_files(stub, tmp_path / "in", tmp_path / "out", fit=fit)
    found = 255 - pixels(tmp_path / "out" / "a.png")
    resized = {
        "crop": ((16, 16), (15, 0, 25, 10)),  # the middle
        "pad": ((16, 4), None),
        "stretch": ((16, 16), None),
    }
    size, box = resized[fit or "pad"]
    expected = np.asarray(
        Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box=box)
    )
    if expected.shape[0] == 4:
        expected = np.pad(expected, ((6, 6), (0, 0), (0, 0)))
    np.testing.assert_array_equal(found, expected)


def test_an_unknown_fit_is_refused(negative, tmp_path):
    write(tmp_path / "in" / "a.png", random(16, 16))
    with pytest.raises(UserError, match="fit is 'full-size'"):
        translate_files(negative, tmp_path / "in", tmp_path / "out", fit="full-size")


def test_whole_images_keep_their_sizes_and_are_padded_by_their_edges(
    negative, tmp_path
):
    sizes = [(16, 16), (15, 14), (1, 1), (9, 40), (13, 16), (12, 37)]
    written = {
        name: write(tmp_path / "in" / name, random(*size))
        for name, size in zip("abcdef", sizes, strict=True)
        for name in [f"{name}.png"]
    }
    translate_files(negative, tmp_path / "in", tmp_path / "out", fit="full")
    for name, image in written.items():
        np.testing.assert_array_equal(pixels(tmp_path / "out" / name), 255 - image)
    assert all(options["any_size"] for _, options in negative.calls)
    batches = {batch.shape[1:3]: batch for batch, _ in negative.calls}
    assert {size: len(batch) for size, batch in batches.items()} == {
        (16, 16): 3,
        (4, 4): 1,
        (12, 40): 2,
    }
    padded, image = batches[12, 40][0], written["d.png"]
    np.testing.assert_array_equal(padded[:9], image)
    np.testing.assert_array_equal(padded[9:], np.stack([image[8]] * 3))


def test_a_whole_image_too_large_for_the_device_is_skipped(smoke, tmp_path):
    class Small(Negative):
        def __call__(self, source, **options):
            if source.shape[2] > 100:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return super().__call__(source, **options)

    write(tmp_path / "in" / "a.png", random(16, 16))
    write(tmp_path / "in" / "b.png", random(16, 101))
    outcome = translate_files(
        Small(smoke()), tmp_path / "in", tmp_path / "out", fit="full"
    )
    assert names(tmp_path / "out") == ["a.png"]
    (told,) = outcome.broken
    assert "b.png" in told and "101x16" in told


def test_the_device_gets_batches_of_one_shape(negative, write_images, tmp_path):
    written = write_images(tmp_path / "in", 19, size=(16, 16))
    (tmp_path / "in" / "0_000_broken.png").touch()
    translate_files(negative, tmp_path / "in", tmp_path / "out")
    assert [len(batch) for batch, _ in negative.calls] == [8, 8, 8]
    for name, image in written.items():
        np.testing.assert_array_equal(pixels(tmp_path / "out" / name), 255 - image)
    negative.calls.clear()
    translate_files(negative, tmp_path / "in", tmp_path / "out", num_samples=4)
    assert {len(batch) for batch, _ in negative.calls} == {2}  # 8 samples at once


def test_large_images_come_one_by_one(negative, tmp_path):
    for name in "abc":
        write(tmp_path / "in" / f"{name}.png", random(64, 64))  # as 16 of 16x16
    translate_files(negative, tmp_path / "in", tmp_path / "out", fit="full")
    assert [len(batch) for batch, _ in negative.calls] == [1, 1, 1]


def test_no_more_is_decoded_ahead_than_told():
    begun, enough = [], threading.Event()

    def begin(item):
        begun.append(item)
        if len(begun) == 4:
            enough.set()
        return -item

    with ThreadPoolExecutor(3) as pool:
        results = domains.ahead(pool, begin, list(range(100)), 3)
        assert next(results) == (0, 0)
        assert enough.wait(60)
    # The pool has ended with what it was given: the first item, and three ahead of it.
    assert sorted(begun) == [0, 1, 2, 3]


def test_items_keep_their_order_and_their_results():
    with ThreadPoolExecutor(4) as pool:
        found = list(domains.ahead(pool, lambda x: x * x, list(range(50)), 7))
    assert found == [(x, x * x) for x in range(50)]


def test_seed_and_direction_reach_the_translator(negative, tmp_path):
    write(tmp_path / "in" / "a.png", random(16, 16))
    translate_files(
        negative, tmp_path / "in", tmp_path / "out", seed=9, direction="backward"
    )
    ((_, options),) = negative.calls
    assert options["seed"] == 9 and options["direction"] == "backward"


def test_a_model_of_vectors_is_refused(vectors, tmp_path):
    translator = eotjax.Translator(vectors(), (3,), {}, lambda *_: None)
    with pytest.raises(UserError, match="vectors, not images"):
        translate_files(translator, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The contact sheet


def cell(sheet, row, column, side=64, gap=2):
    top, left = (gap + index * (side + gap) for index in (row, column))
    return sheet[top : top + side, left : left + side]


def test_the_contact_sheet_shows_sources_above_their_translations(
    negative, write_images, tmp_path
):
    written = list(write_images(tmp_path / "in", 18, size=(16, 16)).values())
    (tmp_path / "in" / "0_000_broken.png").touch()
    translate_files(negative, tmp_path / "in", tmp_path / "out", num_samples=6)
    sheet = pixels(tmp_path / "out" / "contact_sheet.png")
    assert sheet.shape == (5 * 66 + 2, 16 * 66 + 2, 3)
    for column, image in enumerate(written[:16]):
        source = cell(sheet, 0, column)
        np.testing.assert_array_equal(source[2::4, 2::4], image)
        for number in range(4):
            shown = cell(sheet, 1 + number, column)[2::4, 2::4]
            np.testing.assert_array_equal(shown, 255 - image - np.uint8(number))


def test_the_contact_sheet_shows_whole_images_small(negative, tmp_path):
    write(tmp_path / "in" / "a.png", np.full((20, 400, 3), 50, np.uint8))
    write(tmp_path / "in" / "b.png", np.full((300, 300, 3), 60, np.uint8))
    translate_files(negative, tmp_path / "in", tmp_path / "out", fit="full")
    sheet = pixels(tmp_path / "out" / "contact_sheet.png")
    assert sheet.shape == (2 * 130 + 2, 2 * 130 + 2, 3)
    wide, square = (cell(sheet, 1, column, side=128) for column in (0, 1))
    assert (square == 195).all()
    assert (wide[61:67] == 205).all()  # 6 of 128 rows, in the middle
    assert (wide[:61] == 255).all() and (wide[67:] == 255).all()


def test_the_contact_sheet_is_no_image_of_its_folder(negative, tmp_path, capsys):
    write(tmp_path / "in" / "a.png", random(16, 16))
    translate_files(negative, tmp_path / "in", tmp_path / "out")
    there = translate_files(negative, tmp_path / "out", tmp_path / "back")
    assert [path.name for path in there.written] == ["a.png"]
    assert [path.name for path in images.find(tmp_path / "out")] == ["a.png"]
    assert "it shows other images" in capsys.readouterr().out


def test_a_translation_is_not_written_over_by_the_contact_sheet(negative, tmp_path):
    image = write(tmp_path / "in" / "contact_sheet.png", random(16, 16))
    translate_files(negative, tmp_path / "in" / "contact_sheet.png", tmp_path / "out")
    found = pixels(tmp_path / "out" / "contact_sheet.png")
    np.testing.assert_array_equal(found, 255 - image)
    assert pixels(tmp_path / "out" / "_contact_sheet.png").shape == (134, 68, 3)
