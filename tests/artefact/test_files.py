"""A path means the image files that its user would expect."""

from pathlib import Path

import pytest

from eotjax.artefact import files
from eotjax.data import images
from eotjax.errors import UserError


def found(source, apart_from="out"):
    base, names = files.search(source, apart_from=apart_from)
    return base, [name.as_posix() for name in names]


def test_search_finds_the_images_below_a_folder_by_name(tmp_path):
    names = [
        "a.JPG",
        "b/c.tif",
        "b/d/e.jpeg",
        "b.png/f.png",
        *(f"g{x}" for x in images.ALL_SUFFIXES),
    ]
    for name in [*names, "notes.txt", ".a.png", ".b/c.png", "b/._e.jpg", "none/x.doc"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    base, names_found = found(tmp_path)
    assert base == tmp_path and sorted(names_found) == sorted(names)
    assert names_found == sorted(names_found, key=Path)
    everything = found(f"{tmp_path}/**")
    assert everything == found(f"{tmp_path}/**/*.*") == (base, names_found)


def test_search_reads_each_folder_once_also_where_it_is_linked(tmp_path):
    for name in ("real/a.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "real" / "round").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "over").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real" / "twice").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "real")[1] == ["a.png", "over/b.png"]


def test_search_passes_over_the_outputs_below_the_source(tmp_path):
    for name in ("a.png", "out/a.png", "out/b/c.png", "outer/a.png", "deep/out/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = ["a.png", "deep/out/a.png", "outer/a.png"]
    for source in (tmp_path, f"{tmp_path}/**/*.png"):
        assert found(source, tmp_path / "out")[1] == names
        assert found(source, tmp_path / "outer" / ".." / "out")[1] == names
    assert found(tmp_path / "out" / "b", tmp_path / "out")[1] == ["c.png"]


def test_search_takes_a_name_with_a_bracket_as_it_is(tmp_path):
    (tmp_path / "[a]").mkdir()
    (tmp_path / "[a]" / "b[1].png").touch()
    expected = (tmp_path / "[a]", ["b[1].png"])
    assert found(tmp_path / "[a]") == found(tmp_path / "[a]" / "b[1].png") == expected


def test_search_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").touch()
    assert found("~")[1] == found("~/*.png")[1] == ["a.png"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~no user").mkdir()  # a name like others
    (tmp_path / "~no user" / "b.png").touch()
    assert found("~no user")[1] == ["b.png"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere", "nothing at .*nowhere"),
        ("nowhere/*.png", r"nothing that matches .*nowhere/\*\.png is an image"),
        ("full/*.txt", r"nothing that matches .*full/\*\.txt is an image"),
        ("empty", "folder .*empty holds no image"),
        ("full", "folder .*full holds no image"),
        ("full/a.txt", r"full/a\.txt is none of .*\.jpg"),
        ("*/../*.txt", "after a wildcard"),
    ],
)
def test_search_says_in_a_sentence_what_is_not_there(tmp_path, source, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    with pytest.raises(UserError, match=sentence) as told:
        found(tmp_path / source)
    assert "\n" not in str(told.value)
