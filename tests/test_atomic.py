"""Files are written whole or not at all."""

import os

import numpy as np
import pytest

from eotjax import arrays, atomic
from eotjax.data import images


@pytest.mark.parametrize(
    "write",
    [
        lambda path: atomic.write_text(path, "new"),
        lambda path: arrays.write(path, {"a": np.zeros(3)}),
        lambda path: arrays.write_one(path, np.zeros(3)),
        lambda path: images.write(path, np.zeros((4, 4, 3), np.uint8)),
    ],
)
def test_what_is_there_stays_until_the_new_is_whole(tmp_path, monkeypatch, write):
    def fail(*_):
        raise OSError("disk")

    path = tmp_path / "file.png"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    atomic.check_writable(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError) as told:
        atomic.check_writable(tmp_path / "none")
    assert told.value.filename == str(tmp_path / "none")
