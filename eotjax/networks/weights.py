"""Pretrained parameters from a file, by name, without executing anything in it.

Safetensors, and what torch.save writes of a state dict: a zip of raw arrays and of a
pickle that says where they are. Torch is not needed.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eotjax.errors import UserError, reason

Weights = Mapping[str, np.ndarray]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# Torch's storages, by the types that numpy has too.
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}


def read(path: str | Path) -> Weights:
    """The arrays of a .safetensors file or of a state dict (.pth, .pt, .bin).

    Raises:
      UserError: there is no such file, or it is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file of weights {path}; give the path of one.")
    try:
        if zipfile.is_zipfile(path):
            return _state_dict(path)
        from safetensors.numpy import load_file

        return load_file(path)
    except Exception as error:  # what is damaged raises almost anything
        raise UserError(
            f"cannot read weights from {path} ({reason(error)}); it must be a "
            ".safetensors file, or a state dict as torch.save writes it (.pth)."
        ) from error


def _state_dict(path: Path) -> Weights:
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        stored = archive.getinfo(name)
        if stored.file_size != stored.compress_size:  # it may unpack to any size
            raise ValueError(f"its {name} is compressed")
        with archive.open(name) as file:
            found = _Arrays(file, archive, name.removesuffix("data.pkl")).load()
    if not isinstance(found, dict) or not all(
        isinstance(array, np.ndarray) for array in found.values()
    ):
        raise ValueError("it holds something other than arrays by name")
    return found


class _Arrays(pickle.Unpickler):
    """Knows how to make arrays and ordered dicts, and nothing else."""

    def __init__(self, file, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self._archive, self._folder = archive, folder
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _array
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        raise ValueError(f"it asks for {module}.{name}, which no state dict needs")

    def persistent_load(self, pid) -> np.ndarray:
        _, dtype, key, _, count = pid
        if key not in self._storages:
            name = f"{self._folder}data/{key}"
            info = self._archive.getinfo(name)
            if not info.file_size == info.compress_size == count * dtype.itemsize:
                raise ValueError(f"its storage {key} is not {count} values as they are")
            self._storages[key] = np.frombuffer(self._archive.read(name), dtype)
        return self._storages[key]


def _array(storage: np.ndarray, offset: int, shape, strides, *_) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2, for arrays that lie in a row."""
    count = int(np.prod(shape, dtype=int))
    array = storage[offset : offset + count].reshape(shape)
    if tuple(s // array.itemsize for s in array.strides) != tuple(strides):
        raise ValueError("it holds an array that does not lie in a row")
    return array
