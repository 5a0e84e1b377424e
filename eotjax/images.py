"""Image files: found, decoded to uint8 [h, w, c], written, laid out in grids."""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from eotjax.errors import UserError

Fit = Literal["crop", "pad", "stretch"]
Pixels = UInt8[np.ndarray, "h w c"]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find(folder: str | Path) -> list[Path]:
    """The image files directly in a folder, sorted by name.

    Raises:
      UserError: the folder is missing, or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the path of one.")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(
            f"the folder {folder} holds no image; put files of {' '.join(SUFFIXES)} "
            "there."
        )
    return found


def decode(
    path: str | Path | BytesIO, *, size: tuple[int, int], channels: int, fit: Fit
) -> Pixels:
    """Reads one image file as uint8 of exactly (height, width, channels).

    Raises:
      UserError: the file is no image that Pillow can read to its end.
    """
    try:
        # A decompression-bomb warning is about untrusted servers, not one's own files.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return to_pixels(image, size=size, channels=channels, fit=fit)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"cannot read the image {path} ({error}); mend or remove it."
        ) from error


def to_pixels(
    image: Image.Image, *, size: tuple[int, int], channels: int, fit: Fit
) -> Pixels:
    """Any Pillow image as uint8 of exactly (height, width, channels).

    EXIF orientation is applied, transparency is laid on white, 16 bits become 8.

    Args:
      image: of any mode and size.
      size: (height, width) wanted.
      channels: 1 for grey, 3 for RGB.
      fit: "crop" scales the short side and cuts the centre out, "stretch" ignores
        the proportions, "pad" shrinks what is too large and centres it on black.
    """
    height, width = size
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more
        values = np.asarray(image, np.float32)
        top = 65535.0 if image.mode != "F" else max(float(values.max()), 1.0)
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
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
                image = ImageOps.contain(image, (width, height), method)
            image = _centre(image, (width, height))
    return np.asarray(image, np.uint8).reshape(height, width, channels)


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new(image.mode, size)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def write(path: str | Path, pixels: Pixels) -> None:
    """Writes one image; the suffix says in which format."""
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path)


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
