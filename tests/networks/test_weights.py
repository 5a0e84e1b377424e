"""Weights are read as torch and safetensors read them, and nothing is executed."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from eotjax.errors import UserError
from eotjax.networks import weights


def some(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return collections.OrderedDict(
        {
            "0.weight": torch.randn(3, 2, 1, 1, generator=generator).to(dtype),
            "0.bias": torch.randn(3, generator=generator).to(dtype),
            "count": torch.tensor(7),
        }
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_state_dict_is_what_torch_loads(tmp_path, dtype):
    torch.save(some(dtype), tmp_path / "a.pth")
    expected = torch.load(tmp_path / "a.pth", weights_only=True)
    found = weights.read(tmp_path / "a.pth")
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name].numpy())
        assert array.dtype == expected[name].numpy().dtype


def test_arrays_that_share_their_storage_are_told_apart(tmp_path):
    whole = torch.arange(12.0)
    torch.save({"a": whole[:4].view(2, 2), "b": whole[4:]}, tmp_path / "a.pth")
    found = weights.read(tmp_path / "a.pth")
    np.testing.assert_array_equal(found["a"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(found["b"], np.arange(4, 12))


def test_safetensors_are_read(tmp_path):
    arrays = {name: x.numpy() for name, x in some().items()}
    save_file(arrays, tmp_path / "a.safetensors")
    found = weights.read(tmp_path / "a.safetensors")
    assert set(found) == set(arrays)
    np.testing.assert_array_equal(found["0.weight"], arrays["0.weight"])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def archive(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", content)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive(tmp_path / "evil.pth", pickle.dumps({"a": Evil()}))
    with pytest.raises(UserError, match=r"asks for \w+\.mkdir, which no state dict"):
        weights.read(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def damaged(path):
    torch.save(some(), path)
    return path.read_bytes()[: path.stat().st_size // 2]


@pytest.mark.parametrize(
    "content",
    [
        lambda path: b"",
        lambda path: b"no weights at all",
        damaged,
        lambda path: pickle.dumps(some()),
    ],
    ids=["empty", "text", "half", "pickle"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_none_is_named(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content(path))
    with pytest.raises(UserError, match=f"cannot read weights from .*a{suffix}"):
        weights.read(path)


def test_other_things_in_a_state_dict_are_refused(tmp_path):
    for number, content in enumerate((["a"], {"a": 1}, {"a": some()})):
        archive(tmp_path / f"{number}.pth", pickle.dumps(content))
        with pytest.raises(UserError, match="cannot read weights"):
            weights.read(tmp_path / f"{number}.pth")
    torch.save({"a": torch.ones(2, 3).T}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="does not lie in a row"):
        weights.read(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("part", "told"),
    [("data/0", "is not 100000 values as they are"), ("data.pkl", "is compressed")],
)
def test_what_is_packed_is_not_unpacked(tmp_path, part, told):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as packed,
    ):
        for name in stored.namelist():
            way = zipfile.ZIP_DEFLATED if name.endswith(part) else zipfile.ZIP_STORED
            packed.writestr(name, stored.read(name), way)
        sizes = {x.filename: (x.compress_size, x.file_size) for x in packed.filelist}
    (found,) = (sizes[name] for name in sizes if name.endswith(part))
    assert found[0] < found[1]
    if part == "data/0":
        assert (tmp_path / "b.pth").stat().st_size < 10_000
    with pytest.raises(UserError, match=told):
        weights.read(tmp_path / "b.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file of weights .*a\.pth"):
        weights.read(tmp_path / "a.pth")
