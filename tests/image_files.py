"""Image files of all kinds for tests, and a stand-in for what translates them."""

from io import BytesIO

import numpy as np
from PIL import Image

import eotjax
from eotjax.data import images

RNG = np.random.default_rng(0)


class Negative(eotjax.Translator):
    """Stands for a model: sample k of an image is its negative, less k."""

    def __init__(self, config, multiple=4):
        super().__init__(config, (16, 16, 3), {}, lambda *_: None)
        self.calls, self._multiple = [], multiple

    @property
    def multiple(self):
        return self._multiple

    def __call__(self, source, *, num_samples=1, **options):
        self.calls.append((source, options))
        samples = [255 - source - np.uint8(k) for k in range(num_samples)]
        return np.stack(samples) if num_samples > 1 else samples[0]


def random(*shape):
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def names(folder):
    """All files below a folder but the contact sheet, and no leftover of writing."""
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))
    return [name for name in found if name != "contact_sheet.png"]


def write_odd(folder):
    """Files that are unusual, and the pixels meant; files that are broken."""
    image = random(16, 16)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # upright after a quarter turn clockwise
    write(folder / "turned.png", np.rot90(image), exif=rotated)
    frames = [Image.fromarray(frame) for frame in (image, random(16, 16))]
    for suffix in ("png", "webp", "tif"):
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(
            folder / f"animated.{suffix}",
            save_all=True,
            append_images=frames[1:],
            **options,
        )
    few = np.repeat(np.arange(0, 256, 16, dtype=np.uint8), 16).reshape(16, 16)
    palette = Image.fromarray(few)
    palette.save(
        folder / "animated.gif", save_all=True, append_images=[palette.rotate(90)]
    )
    Image.fromarray(few.astype(np.uint16) * 257).save(folder / "sixteen_bits.png")
    write(folder / "dot.png", np.full((1, 1, 3), 7, np.uint8))
    write(folder / "wide.png", np.full((20, 20_000, 3), 8, np.uint8))
    Image.new("CMYK", (16, 16)).save(folder / "ink.jpg", quality=100)
    Image.new("RGBA", (16, 16)).save(folder / "transparent.png")
    grey = np.repeat(few[..., None], 3, -1)
    meant = {
        "turned.png": image,
        **{f"animated.{suffix}": image for suffix in ("png", "webp", "tif")},
        "animated.gif": grey,
        "sixteen_bits.png": grey,
        "dot.png": np.full((16, 16, 3), 7, np.uint8),
        "wide.png": np.full((16, 16, 3), 8, np.uint8),
        "ink.jpg": np.full((16, 16, 3), 255, np.uint8),
        "transparent.png": np.full((16, 16, 3), 255, np.uint8),
    }
    for suffix in ("jpg", "png", "tif", "gif"):
        file = BytesIO()
        format = images.format_of(f".{suffix}")
        Image.fromarray(random(64, 64)).save(file, format)
        data = file.getvalue()
        (folder / f"truncated.{suffix}").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("these are not the pixels you are looking for")
    (folder / "nowhere.png").symlink_to(folder / "missing.png")
    broken = [f"truncated.{suffix}" for suffix in ("jpg", "png", "tif", "gif")]
    return meant, [*broken, "empty.png", "text.jpg", "nowhere.png"]
