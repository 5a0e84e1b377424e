"""Data sources: each gives the training and test images (or vectors) of two domains."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from eotjax import arrays, remote
from eotjax.data import images
from eotjax.data.domains import NONE, Domain, Four, Lazy
from eotjax.errors import UserError, reason, require

Decode = Callable[[str | Path | io.BytesIO], np.ndarray]


def digits(size: tuple[int, int]) -> Four[np.ndarray]:
    """UCI handwritten twos (source) and threes (target), grey, from scikit-learn.

    Every fourth image is a test image, shown four times (for four tints). Alpaydin &
    Kaynak 1998, "Optical recognition of handwritten digits", 8x8 pixels enlarged.
    """
    pixels, labels = digit_images(size)
    held_out = is_test_digit(labels)
    return Four(
        *(pixels[(labels == digit) & ~held_out] for digit in (2, 3)),
        *(np.repeat(pixels[(labels == digit) & held_out], 4, 0) for digit in (2, 3)),
    )


def digit_images(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits: uint8 [n, h, w, 1] and their labels [n]."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = (loaded.images * (255 / 16)).round().astype(np.uint8)
    enlarge = [
        images.to_pixels(Image.fromarray(x), size=size, channels=1, fit="stretch")
        for x in pixels
    ]
    return np.stack(enlarge), loaded.target


def is_test_digit(labels: np.ndarray) -> np.ndarray:
    """Marks every fourth image of each class: bool [n]."""
    rank = np.zeros(len(labels), int)
    for digit in np.unique(labels):
        rank[labels == digit] = np.arange(np.sum(labels == digit))
    return rank % 4 == 3


def folder(path: str, names: Four[str], decode: Four[Decode]) -> Four[Domain]:
    """Four folders of image files, by name below `path` (CycleGAN's layout).

    A folder of test images may be missing; the domain is then empty.

    Args:
      path: the folder that holds them; a name may also be an absolute path.
      names: of the folders, one a split.
      decode: how a file of each split becomes an array.
    """
    if not path:
        raise UserError(
            "data.path is empty; give the folder that holds "
            f"{', '.join(names)}: --config.data.path=FOLDER."
        )

    base = remote.fetched(path)

    def split(number: int, name: str, decode_one: Decode) -> Domain:
        place = base / name
        if number >= 2 and not place.exists():
            return NONE
        return of_files(images.find(place), decode_one)

    return Four(*map(split, range(4), names, decode))


def marks_of(name: str) -> str:
    """The array of a file of features that tells which images a folder held."""
    return f"{name}_images"


def of_files(paths: Sequence[Path], decode: Decode) -> Lazy:
    """Files of images, told apart by their names and sizes."""
    return Lazy(
        len(paths),
        lambda index: decode(paths[index]),
        lambda index: paths[index].read_bytes(),
        lambda index: f"{paths[index].name!a} {paths[index].stat().st_size}",
    )


def tfds(
    name: str, data_dir: str, names: Four[str], decode: Four[Decode]
) -> Four[Lazy]:
    """Four splits of a TensorFlow data set with an `image` feature, by random access.

    Prepared (downloaded, converted) on first use below `data_dir`, or TFDS's own
    default place where that is empty.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"data.kind='tfds' needs tensorflow-datasets ({error}); install it, or use "
            "a folder of images with configs/folder.py."
        ) from error

    try:
        builder = tensorflow_datasets.builder(
            name, data_dir=data_dir or None, file_format="array_record"
        )
    except Exception as error:
        raise UserError(
            f"TFDS knows no data set {name!r} ({reason(error)}); correct data.name."
        ) from error
    if not builder.is_prepared():
        _check_network(builder)
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"TFDS could not prepare {name!r}: {reason(error)} Mend that, "
            "or download it elsewhere and use it with configs/folder.py."
        ) from error
    missing = [split for split in names if split not in builder.info.splits]
    if missing:
        raise UserError(
            f"{name} has no split {', '.join(missing)}; it has "
            f"{', '.join(builder.info.splits)}: set data.train_source and the others."
        )
    raw = {"image": tensorflow_datasets.decode.SkipDecoding()}

    def split(split_name: str, decode_one: Decode) -> Lazy:
        records = builder.as_data_source(split_name, decoders=raw)
        return Lazy(
            len(records),
            lambda index: decode_one(io.BytesIO(records[index]["image"])),
            lambda index: records[index]["image"],
            lambda index: f"{builder.info.full_name} {index}",
        )

    return Four(*map(split, names, decode))


def _check_network(builder: Any) -> None:
    """Raises UserError where no host of a TFDS set answers; TFDS tries for minutes."""
    import requests

    urls = map(urlsplit, builder.url_infos or ())
    roots = sorted({f"{url.scheme}://{url.netloc}" for url in urls})
    if any(Path(builder.data_dir_root, "downloads").glob("*")):
        return  # perhaps it is there
    for root in roots:
        try:
            requests.head(root, timeout=10)
            return
        except requests.RequestException:
            continue
    if roots:
        raise UserError(
            f"{builder.name} is not prepared in {builder.data_dir_root}, and there is "
            f"no way to {' or '.join(roots)}: download it elsewhere and give its "
            "folder, --config.data.path=FOLDER."
        )


def npz(path: str, names: Four[str], key: str = "data.path") -> Four[np.ndarray]:
    """Four arrays of one .npz file: uint8 [n, h, w, c] images or float32 [n, d].

    An array of test images may be missing; the domain is then empty.

    Args:
      path: of the file.
      names: of the arrays.
      key: of the config that holds the path, for messages.
    """
    try:
        found, within = arrays.read(remote.fetched(path), names)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path or key!r} ({error}); it must be a .npz file of "
            f"plain arrays, as numpy.savez writes it: --config.{key}=FILE."
        ) from error
    absent = [name for name in names[:2] if name not in found]
    require(
        not absent,
        f"{path} has no array {', '.join(absent)}; it has {', '.join(within)}.",
    )
    splits = Four(*(found.get(x, NONE) for x in names))
    for name, array in zip(names, splits, strict=True):
        image = array.dtype == np.uint8 and array.ndim == 4
        vector = array.dtype == np.float32 and array.ndim == 2
        if array is NONE:
            continue
        if not (image or vector) or array.shape[1:] != splits[0].shape[1:]:
            raise UserError(
                f"{name} in {path} is {array.dtype} {array.shape}; all four arrays "
                "must be uint8 [n, h, w, c] of one size or float32 [n, d] of one d."
            )
        if vector:
            broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
            require(
                not len(broken),
                f"{name} in {path} is nan or infinite in {len(broken)} of its "
                f"{len(array)} rows, the first of them {broken[:1]}; mend or remove "
                "them.",
            )
    return splits


def check_not_empty(splits: Four[Domain], names: Four[str]) -> None:
    """Raises UserError where a split is there and holds nothing."""
    for name, split in zip(names, splits, strict=True):
        if split is not NONE and len(split) == 0:
            raise UserError(f"the split {name} is empty; put at least one image there.")
