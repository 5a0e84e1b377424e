"""Image files of every kind become the pixels that are meant."""

import contextlib
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from eotjax.data import images
from eotjax.errors import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (8, 12), dtype=np.uint8)


def pixels(image, channels=3, size=(8, 12), fit="crop"):
    return images.to_pixels(image, size=size, channels=channels, fit=fit)


def decoded(path, channels=3, size: tuple[int, int] | None = (8, 12), fit="crop"):
    return images.decode(path, size=size, channels=channels, fit=fit)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_lossless_file_gives_the_pixels_that_were_written(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, lossless=True)
    np.testing.assert_array_equal(decoded(path), RGB)
    images.write(tmp_path / "b.png", RGB)
    np.testing.assert_array_equal(decoded(tmp_path / "b.png"), RGB)


def test_a_grey_image_is_written_and_read_as_one_channel(tmp_path):
    images.write(tmp_path / "a.png", GREY[..., None])
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L"
    np.testing.assert_array_equal(decoded(tmp_path / "a.png", 1), GREY[..., None])


def test_a_jpeg_is_close_to_what_was_written(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 12)[None, :, None], RGB.shape)
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(decoded(tmp_path / "a.jpg") - smooth).max() < 8


def test_grey_becomes_three_equal_channels_and_colour_its_luma():
    np.testing.assert_array_equal(
        pixels(Image.fromarray(GREY)), np.repeat(GREY[..., None], 3, -1)
    )
    luma = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    grey = pixels(Image.fromarray(RGB), channels=1)[..., 0]
    np.testing.assert_allclose(grey, luma, atol=1)


def test_transparency_is_laid_on_white():
    alpha = np.zeros((8, 12), np.uint8)
    alpha[:, 6:] = 255
    alpha[0] = 128
    rgba = Image.fromarray(np.dstack([RGB, alpha]))
    opacity = alpha[..., None] / 255
    expected = RGB * opacity + 255 * (1 - opacity)
    np.testing.assert_allclose(pixels(rgba), expected, atol=1)
    assert (pixels(rgba)[1:, :6] == 255).all()

    la = pixels(Image.fromarray(np.dstack([GREY, alpha])), channels=1)
    np.testing.assert_array_equal(la[1:, 6:, 0], GREY[1:, 6:])
    assert (la[1:, :6] == 255).all()


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
def test_a_transparent_colour_of_a_palette_is_white(tmp_path, transparency):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.frombytes("P", (2, 2), indices.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=transparency)
    red, green, blue = [255, 0, 0], [255, 255, 255], [0, 0, 255]
    np.testing.assert_array_equal(
        decoded(tmp_path / "a.png", size=(2, 2)), [[red, green], [blue, green]]
    )


def test_cmyk_is_read_as_the_light_that_its_ink_leaves(tmp_path):
    ink = np.zeros((8, 12, 4), np.uint8)
    ink[:, 6:, 0] = 255  # cyan takes the red away
    ink[4:, :, 3] = 255  # black takes everything away
    Image.fromarray(ink, mode="CMYK").save(tmp_path / "a.jpg", quality=100)
    found = decoded(tmp_path / "a.jpg").astype(int)
    for rows, columns, colour in [
        (slice(0, 3), slice(0, 4), (255, 255, 255)),
        (slice(0, 3), slice(8, 12), (0, 255, 255)),
        (slice(5, 8), slice(0, 12), (0, 0, 0)),
    ]:
        assert np.abs(found[rows, columns] - colour).max() < 40


def test_a_bitmap_is_black_and_white():
    found = pixels(Image.fromarray(GREY > 127), channels=1)
    np.testing.assert_array_equal(found[..., 0], np.where(GREY > 127, 255, 0))


def test_sixteen_bits_become_eight(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)  # 257 = 65535 / 255
    Image.fromarray(values).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "I;16"
    found = decoded(tmp_path / "a.png", channels=1, size=(1, 4))
    np.testing.assert_allclose(found[0, :, 0], [0, 1, 128, 255], atol=0)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (6, lambda x: np.rot90(x, -1)),  # a quarter turn clockwise
        (8, np.rot90),
    ],
)
def test_the_orientation_in_exif_is_respected(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    expected = upright(RGB)
    found = decoded(tmp_path / "a.png", size=expected.shape[:2])
    np.testing.assert_array_equal(found, expected)
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    Image.fromarray(RGB).save(tmp_path / "b.jpg", quality=100, subsampling=0)
    with Image.open(tmp_path / "b.jpg") as image:
        plain = np.asarray(image)
    found = decoded(tmp_path / "a.jpg", size=expected.shape[:2])
    np.testing.assert_array_equal(found, upright(plain))


def halves(first, second, axis, shape):
    image = np.empty((*shape, 3), np.uint8)
    one, two = np.array_split(np.arange(shape[axis]), 2)
    for colour, part in ((first, one), (second, two)):
        image[(part,) if axis == 0 else (slice(None), part)] = colour
    return Image.fromarray(image)


def test_crop_keeps_the_middle_of_the_long_side():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = np.random.default_rng(1).integers(0, 256, (10, 10, 3))
    for image in (wide, wide.transpose(1, 0, 2)):
        found = pixels(Image.fromarray(image), size=(10, 10), fit="crop")
        middle = image[:, 10:20] if image.shape[1] == 30 else image[10:20]
        np.testing.assert_array_equal(found, middle)


def test_crop_scales_the_short_side_to_the_size():
    wide = halves((255, 0, 0), (0, 0, 255), axis=1, shape=(20, 80))
    found = pixels(wide, size=(10, 10), fit="crop")  # of the middle 20 columns
    assert (found[:, :3] == (255, 0, 0)).all() and (found[:, 7:] == (0, 0, 255)).all()


def test_pad_centres_a_small_image_on_black_unchanged():
    found = pixels(Image.fromarray(RGB), size=(16, 20), fit="pad")
    np.testing.assert_array_equal(found[4:12, 4:16], RGB)
    border = np.ones((16, 20), bool)
    border[4:12, 4:16] = False
    assert not found[border].any()


def test_pad_shrinks_a_large_image_in_its_proportions():
    white = Image.new("RGB", (80, 40), "white")
    found = pixels(white, size=(16, 16), fit="pad")
    assert (found[4:12] == 255).all()
    assert not found[:4].any() and not found[12:].any()


def test_stretch_shows_the_whole_image_whatever_its_proportions():
    wide = halves((255, 0, 0), (0, 0, 255), axis=1, shape=(10, 60))
    found = pixels(wide, size=(12, 12), fit="stretch")
    assert (found[:, :5] == (255, 0, 0)).all() and (found[:, 7:] == (0, 0, 255)).all()


def test_an_image_of_one_pixel_fills_any_size():
    dot = Image.new("RGB", (1, 1), (10, 20, 30))
    for fit in ("crop", "stretch"):
        assert (pixels(dot, size=(8, 12), fit=fit) == (10, 20, 30)).all()


def test_without_a_size_an_image_keeps_its_own(tmp_path):
    for size in ((8, 12), (1, 1), (300, 7)):
        image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "a.png")
        np.testing.assert_array_equal(decoded(tmp_path / "a.png", size=None), image)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    upright = decoded(tmp_path / "a.png", size=None)
    np.testing.assert_array_equal(upright, np.rot90(RGB, -1))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_an_image_can_be_very_long(fit):
    for size in ((20_000, 20), (20, 20_000), (20_000, 1)):
        grey = pixels(Image.new("RGB", size, (9, 9, 9)), size=(16, 16), fit=fit)
        assert (grey == 9).any() and set(np.unique(grey)) <= {0, 9}


@pytest.mark.parametrize("size", [(80, 41), (41, 80), (33, 32), (100, 100), (640, 427)])
def test_pad_shrinks_as_pillow_does(size):
    image = Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    small = np.asarray(ImageOps.contain(image, (32, 32), Image.Resampling.BICUBIC))
    top, left = ((32 - side) // 2 for side in small.shape[:2])
    seen = pixels(image, size=(32, 32), fit="pad")
    part = seen[top : top + small.shape[0], left : left + small.shape[1]]
    np.testing.assert_array_equal(part, small)
    assert seen.sum(dtype=int) == small.sum(dtype=int)


def test_a_very_large_image_is_read_without_a_warning(tmp_path):
    Image.new("1", (20_000, 4_500)).save(tmp_path / "a.png")  # over Pillow's 89 million
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "a.png").close()
    assert not decoded(tmp_path / "a.png").any()


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for suffix in ("png", "webp", "tiff"):
        path = tmp_path / f"a.{suffix}"
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        with Image.open(path) as image:
            assert image.n_frames == 2
        np.testing.assert_array_equal(decoded(path), RGB)


def test_what_is_no_number_is_black(tmp_path):
    values = np.array([[0.5, np.nan, np.inf, -np.inf, -3e38, 0]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    seen = decoded(tmp_path / "a.tif", channels=1, size=None)
    np.testing.assert_array_equal(seen[0, :, 0], [127, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.float32(120), "reach 120, over 1"), (np.int32(65536), "65536, over 65535")],
)
def test_values_of_no_known_range_are_refused(tmp_path, value, said):
    """Each image by its own largest, they would be of different brightness."""
    Image.fromarray(np.full((4, 4), value)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=said):
        decoded(tmp_path / "a.tif", channels=1, size=None)


BROKEN = [
    "truncated.jpg",
    "truncated.png",
    "garbled.png",
    "empty.png",
    "text.jpg",
    "folder.jpg",
    "missing.png",
]


def write_broken(folder):
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(folder / "whole.jpg")
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(folder / "whole.png")
    for suffix in ("jpg", "png"):
        whole = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"truncated.{suffix}").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("these are not the pixels you are looking for")
    (folder / "folder.jpg").mkdir()
    (folder / "garbled.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))


@pytest.mark.parametrize(
    "name",
    BROKEN,
)
def test_a_broken_file_is_named_in_the_error(tmp_path, name):
    write_broken(tmp_path)
    with pytest.raises(UserError, match=name) as told:
        decoded(tmp_path / name)
    assert str(told.value).count(name) == 1


def test_a_program_that_is_named_an_image_is_not_run(tmp_path):
    """Pillow would hand PostScript to Ghostscript, where that is installed."""
    path = tmp_path / "x.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n{} loop\n")
    with pytest.raises(UserError, match="no image of a format that is read"):
        images.decode(path, size=(8, 8), channels=3)


def test_bytes_changed_at_random_end_in_an_image_or_a_sentence(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in images.ALL_SUFFIXES:
        images.write(tmp_path / f"a{suffix}", RGB)
        whole = (tmp_path / f"a{suffix}").read_bytes()
        for _ in range(60):
            garbled = np.frombuffer(whole, np.uint8).copy()
            at = rng.integers(0, len(garbled), 4)
            garbled[at] = rng.integers(0, 256, 4)
            end = rng.integers(1, len(garbled) + 1) if rng.random() < 0.2 else None
            with contextlib.suppress(UserError):
                decoded(BytesIO(garbled[:end].tobytes()))


def test_find_gives_the_images_of_a_folder_in_the_order_of_their_names(tmp_path):
    for name in ("b.png", "a.JPG", "d.webp", "c.jpeg", "e.txt", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    assert [path.name for path in images.find(tmp_path)] == [
        "a.JPG",
        "b.png",
        "c.jpeg",
        "d.webp",
    ]


def test_find_refuses_a_missing_and_an_empty_folder_by_name(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=str(folder)):
            images.find(folder)
    Path(tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder"):
        images.find(tmp_path / "file")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk")

    path = tmp_path / "a.png"
    images.write(path, RGB)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk"):
            images.write(path, 255 - RGB)
    np.testing.assert_array_equal(decoded(path), RGB)
    assert os.listdir(tmp_path) == ["a.png"]
    images.write(path, 255 - RGB)
    np.testing.assert_array_equal(decoded(path), 255 - RGB)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("name", "width"), [("a.xyz", 8), ("a", 8), ("a.webp", 16_384), ("a.jpg", 70_000)]
)
def test_what_cannot_be_written_is_told_in_a_sentence(tmp_path, name, width):
    with pytest.raises(UserError, match=r"cannot write|can be written"):
        images.write(tmp_path / name, np.zeros((1, width, 3), np.uint8))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((16, 16), (64, 64)),
        ((28, 28), (84, 84)),  # three times
        ((63, 20), (126, 40)),
        ((64, 64), (64, 64)),
        ((128, 96), (128, 96)),
        ((256, 256), (128, 128)),
        ((1000, 500), (128, 64)),
        ((1, 20_000), (1, 128)),
        ((1, 1), (64, 64)),
    ],
)
def test_the_cells_of_a_contact_sheet_have_64_to_128_pixels(size, shown):
    image = np.full((*size, 1), 7, np.uint8)
    sheet = images.contact_sheet([[image, image], [image, image]])
    assert sheet.shape == (2 * (shown[0] + 2) + 2, 2 * (shown[1] + 2) + 2, 1)
    assert (sheet == 7).sum() == 4 * shown[0] * shown[1]
    assert set(np.unique(sheet)) == {7, 255}


def test_every_uint8_value_survives_the_way_to_float_and_back():
    values = np.arange(256, dtype=np.uint8)
    floats = images.to_float(values)
    assert floats.dtype == np.float32
    assert floats[0] == -1 and floats[-1] == 1 and (np.diff(floats) > 0).all()
    np.testing.assert_array_equal(images.to_uint8(floats), values)


def test_floats_beyond_the_range_are_cut_to_it():
    values = np.array([-9.0, -1.001, 1.001, 9.0], np.float32)
    np.testing.assert_array_equal(images.to_uint8(values), [0, 0, 255, 255])


def test_a_grid_shows_every_image_in_its_place_on_white():
    rows = [np.full((n, 3, 5, 1), shade, np.uint8) for n, shade in [(2, 10), (1, 20)]]
    rows[0][1] = 30
    sheet = images.grid(rows, zoom=2, gap=4)
    assert sheet.shape == (2 * 6 + 3 * 4, 2 * 10 + 3 * 4, 1)
    places = {(0, 0): 10, (0, 1): 30, (1, 0): 20, (1, 1): 255}
    for (row, column), shade in places.items():
        top, left = 4 + row * 10, 4 + column * 14
        assert (sheet[top : top + 6, left : left + 10] == shade).all()
    counts = {shade: int((sheet == shade).sum()) for shade in (10, 20, 30)}
    assert counts == {10: 60, 20: 60, 30: 60}


def test_a_grid_zooms_pixels_without_mixing_them():
    image = RNG.integers(0, 256, (1, 2, 3, 3), dtype=np.uint8)
    sheet = images.grid([image], zoom=3, gap=1)
    np.testing.assert_array_equal(sheet[2:-1:3, 2:-1:3], image[0])
    np.testing.assert_array_equal(sheet[1:-1:3, 3:-1:3], image[0])
