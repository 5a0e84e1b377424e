"""Arrays in files that need not be trusted: no code, no more than they hold."""

import hashlib
import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree
from numpy.lib import format

from eotjax import atomic
from eotjax.errors import reason

HEADERS = {(1, 0): format.read_array_header_1_0, (2, 0): format.read_array_header_2_0}

_KEPT = "kept"


class Found(NamedTuple):
    """What is read of an .npz file, and the names of all that it holds."""

    arrays: dict[str, np.ndarray]
    names: list[str]


def read(path: str | Path | BytesIO, names: Iterable[str] | None = None) -> Found:
    """The arrays of an .npz file: those of `names` that it has, or all.

    Raises:
      OSError: there is no such file, or none that can be read.
      ValueError: it is another kind of file, damaged, or larger than the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            within = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            wanted = within.keys() if names is None else within.keys() & set(names)
            need = sum(_size(archive, within[name]) for name in wanted)
            have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if need > have:
                raise ValueError(
                    f"its arrays take {need / 2**30:.1f} GiB, this machine has "
                    f"{have / 2**30:.1f}"
                )
            found = {x: _array(archive, within[x]) for x in within if x in wanted}
            return Found(found, list(within))
    except (OSError, ValueError):
        raise
    except Exception as error:  # what is damaged raises almost anything
        raise ValueError(reason(error)) from error


def _size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes of an array, as its header says and the archive confirms."""
    with archive.open(member) as file:
        version = format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{member.filename} is no array of plain numbers")
        shape, _, dtype = HEADERS[version](file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or file.tell() + size != member.file_size:
            raise ValueError(
                f"{member.filename} is not the array of {dtype} {shape} that it says"
            )
        return size


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        return format.read_array(file, allow_pickle=False)


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file, whole or not at all; NumPy's own takes not every name."""
    with atomic.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as to:
        for name, array in arrays.items():
            with to.open(f"{name}.npy", "w", force_zip64=True) as file:
                format.write_array(file, np.asanyarray(array), allow_pickle=False)


def write_one(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file, whole or not at all."""
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def keep(path: Path, array: np.ndarray) -> None:
    """Writes a part of a long work, whole or not at all."""
    write(path, {_KEPT: array})


def kept(path: Path) -> np.ndarray | None:
    """What `keep` wrote; None where there is nothing, or it is damaged."""
    try:
        return read(path, [_KEPT]).arrays[_KEPT]
    except (OSError, ValueError, KeyError):
        return None


def digest(tree: PyTree) -> str:
    """The SHA-256 of all arrays of a tree, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        said = f"{jax.tree_util.keystr(name)} {array.dtype} {array.shape}"
        digest.update(said.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
