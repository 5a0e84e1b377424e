"""Image files: found, decoded to uint8 [h, w, c], written, laid out in grids."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from eotjax import atomic
from eotjax.errors import UserError

Fit = Literal["crop", "pad", "stretch"]
Pixels = UInt8[np.ndarray, "h w c"]
AnySize = UInt8[np.ndarray, "_ _ c"]  # of several images, each of its own size
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of training images
ALL_SUFFIXES = (*SUFFIXES, ".bmp", ".gif", ".tif", ".tiff")
# Of these. Pillow goes by a file's content, and would hand PostScript to a program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 100_000_000  # that are decoded; a small file may hold many more
CONTACT_SHEET = "contact_sheet.png"  # beside translations; no image of its own
SAVING = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}}


def find(folder: str | Path) -> list[Path]:
    """The image files directly in a folder, sorted by name.

    But for hidden ones, and for the contact sheet of a folder of translations.

    Raises:
      UserError: the folder is missing, or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the path of one.")
    named = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    seen = [p for p in named if not p.name.startswith(".")]
    if len(seen) < len(named):
        print(f"hidden files passed over in {folder}: {len(named) - len(seen)}")
    found = [p for p in seen if p.name != CONTACT_SHEET]
    if len(found) < len(seen):
        print(f"{CONTACT_SHEET} passed over in {folder}: it shows other images")
    if not found:
        raise UserError(
            f"the folder {folder} holds no image; put files of {' '.join(SUFFIXES)} "
            "there."
        )
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings: an image that it reads all the same is no problem.

    Warnings are silenced for the whole process: hold this around threads that decode.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def decode(
    path: str | Path | BytesIO,
    *,
    size: tuple[int, int] | None,
    channels: int,
    fit: Fit = "crop",
) -> Pixels:
    """Reads one image file as uint8 of exactly (height, width, channels).

    Of an animation the first frame; for the rest see `to_pixels`.

    Raises:
      UserError: the file is no image that Pillow can read to its end, or one of more
        than MOST_PIXELS.
    """
    try:
        with quiet(), Image.open(path, formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MOST_PIXELS:
                raise ValueError(
                    f"{image.width}x{image.height} pixels, over {MOST_PIXELS:,}"
                )
            return to_pixels(image, size=size, channels=channels, fit=fit)
    except Exception as error:  # Pillow's readers stumble in many ways
        raise UserError(
            f"cannot read the image {path} ({_reason(error)}); mend or remove it."
        ) from error


def _reason(error: Exception) -> str:
    """What is wrong, without the path that Pillow and Python add."""
    if isinstance(error, UnidentifiedImageError):
        return "no image of a format that is read here"
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error) or type(error).__name__


def to_pixels(
    image: Image.Image,
    *,
    size: tuple[int, int] | None,
    channels: int,
    fit: Fit = "crop",
) -> Pixels:
    """Any Pillow image as uint8 of exactly (height, width, channels).

    EXIF orientation is applied, transparency is laid on white; integers of more than 8
    bits are taken to be of 16, floats to be in [0, 1].

    Args:
      image: of any mode and size.
      size: (height, width) wanted; None for the image's own.
      channels: 1 for grey, 3 for RGB.
      fit: "crop" scales the short side and cuts the centre out, "stretch" ignores
        the proportions, "pad" shrinks what is too large and centres it on black.

    Raises:
      ValueError: a value is over 65535, or a float over 1.
    """
    image = ImageOps.exif_transpose(image)
    height, width = size or (image.height, image.width)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more
        values = np.asarray(image, np.float32)
        values = np.nan_to_num(values, posinf=0, neginf=0)
        top = 1.0 if image.mode == "F" else 65535.0
        if values.max() > top:
            raise ValueError(f"its values reach {values.max():.6g}, over {top:g}")
        image = Image.fromarray(((values / top).clip(0, 1) * 255).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        method = Image.Resampling.BICUBIC
        if fit == "stretch":
            image = image.resize((width, height), method)
        elif fit == "crop":
            image = ImageOps.fit(image, (width, height), method)
        else:
            if image.width > width or image.height > height:
                image = _contain(image, width, height)
            image = _centre(image, width, height, "black")
    return np.asarray(image, np.uint8).reshape(height, width, channels)


def _contain(image: Image.Image, width: int, height: int) -> Image.Image:
    """`ImageOps.contain`, which fails where a side would round to no pixel."""
    if image.width / image.height > width / height:
        height = max(round(image.height / image.width * width), 1)
    else:
        width = max(round(image.width / image.height * height), 1)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _centre(image: Image.Image, width: int, height: int, colour: str) -> Image.Image:
    canvas = Image.new(image.mode, (width, height), colour)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def centre(
    images: UInt8[np.ndarray, "n h w c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "n height width c"]:
    """The middle of images that are of `size` (height, width) or larger."""
    top, left = (
        (have - want) // 2 for have, want in zip(images.shape[1:3], size, strict=True)
    )
    return images[:, top : top + size[0], left : left + size[1]]


def write(path: str | Path, pixels: Pixels) -> None:
    """Writes one image, whole or not at all; the suffix says in which format.

    Raises:
      UserError: the format is unknown, or cannot hold such an image.
    """
    path = Path(path)
    format, encoded = format_of(path.suffix), BytesIO()
    try:
        _to_image(pixels).save(encoded, format, **SAVING.get(format, {}))
    except Exception as error:  # Pillow's writers stumble in many ways
        raise UserError(
            f"cannot write the image {path} ({_reason(error)}); choose another format."
        ) from error
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def format_of(suffix: str) -> str:
    """Pillow's name for the format of a suffix.

    Raises:
      UserError: Pillow, as it is installed here, does not write it.
    """
    format = Image.registered_extensions().get(suffix.lower(), "")
    if format not in Image.SAVE:
        raise UserError(
            f"no images can be written as {suffix!r}; choose one of "
            f"{' '.join(ALL_SUFFIXES)}."
        )
    return format


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def contact_sheet(
    rows: Sequence[Sequence[AnySize]],
) -> UInt8[np.ndarray, "height width c"]:
    """Rows of images of any sizes, each in a cell of at most 128 pixels, on white.

    Images under 64 pixels are enlarged by a whole number.
    """

    def scaled(pixels: AnySize) -> Image.Image:
        image = _to_image(pixels)
        longest = max(image.size)
        if longest > 128:
            return _contain(image, 128, 128)
        zoom = -(-64 // longest)
        size = (image.width * zoom, image.height * zoom)
        return image.resize(size, Image.Resampling.NEAREST)

    cells = [[scaled(pixels) for pixels in row] for row in rows]
    width, height = (max(i.size[side] for row in cells for i in row) for side in (0, 1))
    channels = rows[0][0].shape[-1]

    def pixels(image: Image.Image) -> np.ndarray:
        cell = np.asarray(_centre(image, width, height, "white"))
        return cell.reshape(height, width, channels)

    return grid([np.stack([pixels(image) for image in row]) for row in cells])


def grid(
    rows: Sequence[UInt8[np.ndarray, "_ h w c"]], *, zoom: int = 1, gap: int = 2
) -> UInt8[np.ndarray, "height width c"]:
    """Rows of images of one size on a white sheet, every pixel `zoom` pixels wide."""
    n = max(len(row) for row in rows)
    height, width, channels = rows[0].shape[1:]
    height, width = height * zoom, width * zoom
    sheet = np.full(
        (len(rows) * (height + gap) + gap, n * (width + gap) + gap, channels),
        255,
        np.uint8,
    )
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = gap + r * (height + gap), gap + c * (width + gap)
            sheet[top : top + height, left : left + width] = image.repeat(
                zoom, 0
            ).repeat(zoom, 1)
    return sheet


def to_float(images: UInt8[np.ndarray, "..."]) -> np.ndarray:
    """uint8 as float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1


def to_uint8(images: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """float32 in [-1, 1] as uint8, rounded, cut to the range."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
