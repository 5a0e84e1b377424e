"""A folder or file in object storage, and its copy here: what differs is copied."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from eotjax import atomic
from eotjax.errors import UserError, reason, require
from eotjax.progress import Progress

# Written after all else: what a folder holds, and whose it is. What a kill leaves of a
# copy that was under way is not in it.
MANIFEST = ".eotjax.json"
AT_ONCE = 32  # files that are brought together
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}
# What tells one version of an object from the next, by kind of storage.
VERSIONS = ("ETag", "etag", "generation", "mtime", "created", "LastModified")

Stamp = tuple[int, int]  # a file's size and its time of change, ns


class TakenOver(UserError):
    """Another process owns the folder."""


class Copy:
    """A folder or file in object storage, and its copy here.

    Attributes:
      address: gs://bucket/folder
      local: the copy's path.
    """

    def __init__(self, address: str, local: Path):
        self.address, self.local = address.rstrip("/"), local
        self._fs, self._root = file_system(self.address)
        self._notes_path = self.local.with_name(".notes.json")
        self._owner = ""  # who pushed last from here
        self._pushing = threading.Lock()
        # By name: the file here, and the version there that it is (None: pushed).
        self._known: dict[str, tuple[Stamp, str | None]] = {}

    def _read_notes(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            notes = json.loads(self._notes_path.read_text())
            self._known = {
                name: ((int(size), int(time)), version)
                for name, ((size, time), version) in notes["files"].items()
            }
            self._owner = str(notes["owner"])

    def fetch(self) -> None:
        """Makes the copy what is there, but for what only this machine has changed."""
        place = self._notes_path.parent
        place.mkdir(parents=True, exist_ok=True)
        with atomic.alone(place / ".lock"):  # processes may share what they read
            self._read_notes()
            self._fetch()

    def _fetch(self) -> None:
        with told("read", self.address):
            self._fs.invalidate_cache()
            there = self._listed()
            manifest = self._manifest()
        here = _stamps(self.local)
        own = manifest is not None and manifest["owner"] == self._owner
        if manifest is not None:
            there = {name: there[name] for name in manifest["files"] if name in there}
        if self._owner and not own:
            uncopied = [name for name in here if self._stamp(name) != here[name]]
            self._set_aside(uncopied)
            here = _stamps(self.local)
        wanted = [
            name
            for name, version in there.items()
            if name not in here
            or (not own and self._known.get(name) != (here[name], version))
        ]
        report = Progress(f"fetching {self.address}", len(wanted), "files")
        for start in range(0, len(wanted), AT_ONCE):
            names = wanted[start : start + AT_ONCE]
            for name in names:
                self._here(name).parent.mkdir(parents=True, exist_ok=True)
            self._bring(names)
            report.update(len(names))
        if own:
            return
        for name in here.keys() - there.keys():
            self._here(name).unlink()
        now = _stamps(self.local)
        self._known = {name: (now[name], there[name]) for name in there if name in now}
        self._note()

    def _bring(self, names: list[str]) -> None:
        """Fetches files; each is in its place when it is whole."""
        places = [self._here(name) for name in names]
        coming = [x.with_name(f".{uuid4().hex}.tmp") for x in places]
        try:
            with told("read", self.address):
                self._fs.get([self._there(x) for x in names], list(map(str, coming)))
            for temporary, place in zip(coming, places, strict=True):
                temporary.replace(place)
        finally:
            for temporary in coming:
                temporary.unlink(missing_ok=True)

    def _set_aside(self, names: list[str]) -> None:
        """Keeps what was done here for a folder that another process then took over."""
        place = self.local.with_name(f"{self.local.name}.uncopied")
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            self._here(name).replace(place / name)
        if names:
            print(
                f"{self.address}: {len(names)} files that were written here, and not "
                f"copied there before another process took over, are now in {place}",
                flush=True,
            )

    def claim(self) -> None:
        """Makes the folder this process's own."""
        self._owner = uuid4().hex
        with told("write", self.address):
            self._write_manifest()
        self._note()

    def push(self) -> None:
        """Copies what has changed here, then says so, then removes what is gone.

        Raises:
          TakenOver: the folder is another process's by now.
        """
        with self._pushing:
            self._push()

    def _push(self) -> None:
        now, new = self._put_all()
        gone = self._known.keys() - now.keys()
        if not new and not gone:
            return
        self._known = {name: x for name, x in self._known.items() if name in now}
        self._write_manifest()
        # What another process has listed of a folder in this one is not so any more.
        above = {str(x) for name in (*new, *gone) for x in PurePosixPath(name).parents}
        lists = [self._there(f"{folder}/{MANIFEST}") for folder in above - {"."}]
        lost = [path for path in lists if self._fs.exists(path)]
        lost += [self._there(name) for name in gone]
        if lost:
            self._fs.rm(lost)
        self._note()

    def _put_all(self) -> tuple[dict[str, Stamp], set[str]]:
        """Copies what has changed here; what lies here, and the names of what was new.

        What vanishes meanwhile was a part of something, a checkpoint perhaps, whose
        other parts must not take the place of what is whole: all is looked at again.
        """
        every: set[str] = set()
        while True:
            manifest = self._manifest()
            if manifest is None or manifest["owner"] != self._owner:
                raise TakenOver(
                    f"another process works in {self.address} since then: nothing more "
                    f"of this one is copied there; what it has done is in {self.local}."
                )
            now, whole = _stamps(self.local), True
            new = [name for name, stamp in now.items() if self._stamp(name) != stamp]
            for name in new:
                try:
                    self._fs.put_file(str(self._here(name)), self._there(name))
                except FileNotFoundError:
                    if self._here(name).exists():
                        raise
                    whole = False  # removed just now
                    continue
                self._known[name] = now[name], None
            every.update(new)
            if whole:
                return now, every

    def _stamp(self, name: str) -> Stamp | None:
        return self._known[name][0] if name in self._known else None

    def _listed(self) -> dict[str, str]:
        """What is there: the version of each object by name."""
        found, names = self._fs.find(self._root, detail=True), {}
        for path, info in found.items():
            name = path.removeprefix(self._root).lstrip("/")
            require(
                ".." not in name.split("/"),
                f"{self.address} holds {name!r}, a name that leads out of it.",
            )
            if name != MANIFEST and not path.endswith("/"):  # the mark of a folder
                marks = [str(info[key]) for key in VERSIONS if key in info]
                names[name] = " ".join([str(info["size"]), *marks[:1]])
        return names

    def _manifest(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._fs.cat_file(self._there(MANIFEST)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write_manifest(self) -> None:
        content = {"owner": self._owner, "files": sorted(self._known)}
        self._fs.pipe_file(self._there(MANIFEST), json.dumps(content).encode())

    def _note(self) -> None:
        notes = {"address": self.address, "owner": self._owner, "files": self._known}
        atomic.write_text(self._notes_path, json.dumps(notes))

    def _here(self, name: str) -> Path:
        return self.local / name if name else self.local

    def _there(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


@contextlib.contextmanager
def told(verb: str, address: str) -> Iterator[None]:
    """Whatever a kind of storage raises (each has many), as one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot {verb} {address} ({reason(error)}); correct it, or log in to that "
            "storage."
        ) from error


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the address's path in it."""
    import fsspec

    scheme = address.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(scheme)
        raise UserError(
            f"cannot read {address} ({reason(error)})"
            + (f"; launch/install.sh {extra} brings it." if extra else ".")
        ) from error


def _stamps(place: Path) -> dict[str, Stamp]:
    """The files of a folder, by name, but those that are being written.

    A place that is a file has one, of no name.
    """
    stamps = {}
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        name = "" if path == place else path.relative_to(place).as_posix()
        with contextlib.suppress(FileNotFoundError):  # removed just now
            if path.is_file() and not any(map(_is_unfinished, Path(name).parts)):
                found = path.stat()
                stamps[name] = found.st_size, found.st_mtime_ns
    return stamps


def _is_unfinished(name: str) -> bool:
    """Whether a file or folder of this name is written to, and renamed when whole."""
    return ".orbax-checkpoint-tmp" in name or (name[:1] == "." and name[-4:] == ".tmp")
