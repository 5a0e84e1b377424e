"""An .npz file gives its arrays, or one word on what is wrong with it."""

import io
import os
import zipfile

import numpy as np
import pytest
from numpy.lib import format

from eotjax import arrays


def written(path, **members):
    """An archive of arrays, or of bytes as they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            if not isinstance(member, bytes):
                file = io.BytesIO()
                np.save(file, member)
                member = file.getvalue()
            archive.writestr(f"{name}.npy", member)
    return path


def header(shape, dtype="<f4"):
    file = io.BytesIO()
    format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path, save):
    wanted = {
        "a": np.arange(6, dtype="f4").reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.uint8),
        "scalar": np.float64(3),
    }
    save(tmp_path / "f.npz", **wanted)
    found, names = arrays.read(tmp_path / "f.npz")
    assert found.keys() == wanted.keys() and names == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    some = arrays.read(tmp_path / "f.npz", ["b", "c", "b"])
    assert some.arrays.keys() == {"b"} and some.names == names


def test_a_header_that_lies_allocates_nothing(tmp_path):
    for shape in ((2, 10**12), (10**6,), (2,)):
        path = written(tmp_path / "f.npz", a=header(shape) + bytes(12))
        with pytest.raises(ValueError, match=r"a.npy is not the array of float32"):
            arrays.read(path)


def test_more_than_the_memory_is_not_begun_with(tmp_path, monkeypatch):
    path = written(tmp_path / "f.npz", a=np.zeros(2**20, "f4"))
    assert path.stat().st_size < 2**14
    values = {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**9}
    monkeypatch.setattr(os, "sysconf", values.get)
    with pytest.raises(ValueError, match=r"take 0.0 GiB, this machine has 0.0"):
        arrays.read(path)


def test_no_code_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trap"),))

    np.savez(tmp_path / "f.npz", a=np.array([Trap()], object))
    with pytest.raises(ValueError, match="is not the array of object"):
        arrays.read(tmp_path / "f.npz")
    assert not (tmp_path / "trap").exists()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("words")
    with pytest.raises(ValueError, match="zip"):
        arrays.read(tmp_path / "text")
    with pytest.raises(OSError, match="No such file"):
        arrays.read(tmp_path / "nothing")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="zip"):
        arrays.read(tmp_path / "one.npy")


def test_arrays_of_any_name_are_written(tmp_path):
    wanted = {name: np.arange(3) for name in ("file", "allow_pickle", "/a/b", "arr_0")}
    arrays.write(tmp_path / "f.npz", wanted)
    found, names = arrays.read(tmp_path / "f.npz")
    assert names == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    with np.load(tmp_path / "f.npz") as numpys:
        np.testing.assert_array_equal(numpys["file"], np.arange(3))


def test_a_part_that_is_damaged_anywhere_is_none(tmp_path):
    path = tmp_path / "part.npz"
    assert arrays.kept(path) is None
    part = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float16)
    arrays.keep(path, part)
    np.testing.assert_array_equal(arrays.kept(path), part)
    whole = path.read_bytes()
    at = whole.index(part.tobytes())
    for damaged in (
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        whole[:at] + bytes(10) + whole[at + 10 :],
        whole[:-30],
        b"",
    ):
        path.write_bytes(damaged)
        assert arrays.kept(path) is None
