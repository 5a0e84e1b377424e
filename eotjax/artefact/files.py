"""Which image files a path means, and the files that their translations go to."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from eotjax import remote
from eotjax.data import images
from eotjax.data.images import ALL_SUFFIXES
from eotjax.errors import UserError


def search(source: str | Path, *, apart_from: str | Path) -> tuple[Path, list[Path]]:
    """The image files that a path means: `base / name` for each of the names, sorted.

    Args:
      source: an image; a folder, for all images below it; or a glob, where ** is any
        folders. Hidden files and folders and contact sheets are passed over. Names are
        relative to the image's folder, the folder, or the part of the glob before its
        first wildcard.
      apart_from: a folder whose images do not count where it lies below `source`.

    Raises:
      UserError: nothing is there, or no image.
    """
    source, apart_from = remote.local(source), Path(apart_from).resolve()
    if source.is_file():
        if source.suffix.lower() not in ALL_SUFFIXES:
            raise UserError(
                f"{source} is none of {' '.join(ALL_SUFFIXES)}; convert it to one."
            )
        return source.parent, [Path(source.name)]
    if source.is_dir():
        base, paths = source, _walk(source)
        nothing = f"the folder {source} holds no image; put files of"
    elif _is_wild(str(source)):
        base = Path(*takewhile(lambda part: not _is_wild(part), source.parts))
        if ".." in source.parts[len(base.parts) :]:
            raise UserError(f"{source} has .. after a wildcard; write it without.")
        paths = map(Path, glob.iglob(str(source), recursive=True))
        nothing = f"nothing that matches {source} is an image; match files of"
    else:
        raise UserError(
            f"there is nothing at {source}; give an image, a folder or a quoted glob."
        )
    names = {
        path.relative_to(base)
        for path in paths
        if path.suffix.lower() in ALL_SUFFIXES
        and path.name != images.CONTACT_SHEET
        and (path.is_file() or path.is_symlink())
    }
    if not base.resolve().is_relative_to(apart_from):
        names = {
            name
            for name in names
            if not (base / name).parent.resolve().is_relative_to(apart_from)
        }
    if not names:
        raise UserError(f"{nothing} {' '.join(ALL_SUFFIXES)} there.")
    return base, sorted(names)


def _is_wild(part: str) -> bool:
    return re.search(r"[*?[]", part) is not None


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder but hidden ones; each folder once, also where linked."""
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in files if not name.startswith("."))


class Job(NamedTuple):
    """An image and the files that its translations go to, one a sample."""

    source: Path
    targets: list[Path]


def plan(
    source: str | Path,
    output: str | Path,
    *,
    num_samples: int = 1,
    format: str | None = None,
) -> list[Job]:
    """What is to be translated and where to; reads no image and writes nothing.

    Args:
      source: an image, a folder or a glob; see `search`.
      output: the folder that the names below `source` are kept in.
      num_samples: with more than one the names end in _0, _1, ...
      format: of all files (png, jpg, ...); None for each image's own. Two images of
        one name, such as a.jpg and a.png, then become a.jpg.png and a.png.png.

    Raises:
      UserError: there is no image, a file cannot be written in its format, or a
        translation would be written over an image or over another translation.
    """
    output = remote.local(output)
    base, names = search(source, apart_from=output)
    if output.is_file():
        raise UserError(f"the output {output} is a file; give a folder.")
    if output.exists() and output.samefile(base):
        raise UserError(
            f"the output is the folder of the images, {output}; give another one."
        )

    ending = f".{format}"
    if format is not None:
        images.format_of(ending)
    plain = [name.with_suffix(ending) if format else name for name in names]
    count = Counter(plain)
    jobs = []
    for name, new in zip(names, plain, strict=True):
        if count[new] > 1:
            new = name.with_name(name.name + ending)
        numbers = [f"_{k}" for k in range(num_samples)] if num_samples > 1 else [""]
        targets = [output / new.with_stem(new.stem + number) for number in numbers]
        jobs.append(Job(base / name, targets))
    _check_targets(jobs)
    return jobs


def _check_targets(jobs: list[Job]) -> None:
    """Raises UserError where a file cannot be written, or over another one."""
    for suffix in sorted({target.suffix for job in jobs for target in job.targets}):
        images.format_of(suffix)
    sources = {job.source.resolve() for job in jobs}
    owners: dict[Path, Path] = {}
    for source, targets in jobs:
        for target in targets:
            other = owners.setdefault(target, source)
            if other != source:
                raise UserError(
                    f"{other} and {source} would both be written to {target}; rename "
                    "one of them."
                )
            if target.resolve() in sources:
                raise UserError(
                    f"the translation of {source} would be written over the image "
                    f"{target}; give another folder for the output."
                )
    folders = {parent for target in owners for parent in target.parents}
    for target in sorted(folders & set(owners)):
        raise UserError(
            f"{target} would be the translation of {owners[target]} and a folder; "
            "rename one of them."
        )
