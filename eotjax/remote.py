"""Folders and files in object storage: copied here, worked on, and copied back.

Any address that fsspec knows: gs:// (the extra gcs), s3:// (the extra s3), az://, ...
"""

import contextlib
import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import jax
import numpy as np
from jax.experimental import multihost_utils

from eotjax import caches, parallel
from eotjax.errors import UserError, reason, require
from eotjax.storage import Copy, TakenOver, file_system, told

EVERY = 60.0  # seconds between copies

_kept_alike: dict[Path, Copy] = {}


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address such as gs://bucket/folder."""
    return "://" in str(path)


def below(path: str | Path, name: str) -> str | Path:
    """What lies in the folder `path` under a name, which here may be a whole path."""
    if is_remote(path):
        return f"{str(path).rstrip('/')}/{name}"
    return Path(path, name)


def local(path: str | Path) -> Path:
    """Where a path's files are on this machine: itself, or its copy's place.

    Raises:
      UserError: it is empty.
    """
    require(str(path) != "", "a path is empty; is a variable of the shell unset?")
    if not is_remote(path):
        try:
            return Path(path).expanduser()
        except RuntimeError:  # ~ and a name that is no user's is a name like others
            return Path(path)
    address = str(path).rstrip("/")
    name = PurePosixPath(address).name
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    return caches.folder() / "remote" / digest / name


def fetched(path: str | Path) -> Path:
    """A path on this machine to what `path` names; a local path is that itself.

    Only what is new, or has changed since it was last fetched, is copied.

    Raises:
      UserError: an address is not known, or cannot be read.
    """
    if is_remote(path):
        copy = Copy(str(path), local(path))
        copy.fetch()
        require(copy.local.exists(), f"there is nothing at {path}.")
    return local(path)


def is_folder(path: str | Path) -> bool:
    """Whether a path names a folder, here or there.

    Raises:
      UserError: an address is not known, or cannot be read.
    """
    if not is_remote(path):
        return local(path).is_dir()
    files, root = file_system(str(path))
    with told("read", str(path)):
        return bool(files.isdir(root))


@contextlib.contextmanager
def placing(path: str | Path) -> Iterator[Path]:
    """A path on this machine to write a file to, which is then copied to `path`.

    Raises:
      UserError: an address is not known, or cannot be written to.
    """
    if not is_remote(path):
        yield local(path)
        return
    (files, root), here = file_system(str(path)), local(path)
    here.parent.mkdir(parents=True, exist_ok=True)
    yield here
    with told("write", str(path)):
        files.put_file(str(here), root)


@contextlib.contextmanager
def mirrored(path: str | Path) -> Iterator[Path]:
    """A folder on this machine with what the folder `path` holds; kept alike.

    What is written there is copied to `path` every minute and at the end; of several
    processes by the first, and all must be on one machine. Who begins last owns the
    folder: the one before copies no more, and is sent SIGTERM. A local path is itself.

    Raises:
      UserError: an address is not known, cannot be read or written, or is owned by
        another process now.
    """
    if not is_remote(path):
        yield local(path)
        return
    _check_one_machine(str(path))
    copy = Copy(str(path), local(path))
    with contextlib.ExitStack() as stack:
        if parallel.is_leader():
            copy.fetch()
            copy.local.mkdir(parents=True, exist_ok=True)
            copy.claim()
            stack.callback(_kept_alike.pop, copy.local.absolute(), None)
            _kept_alike[copy.local.absolute()] = copy
            print(f"{path}: worked on in {copy.local}, copied every minute", flush=True)
            stack.enter_context(_pushing(copy))
        parallel.together(f"{path} is here")
        yield copy.local


def settle(folder: Path) -> None:
    """Copies a folder that is kept alike now: what was removed from it stays removed.

    Raises:
      UserError: it cannot be written to, or is owned by another process now.
    """
    if copy := _kept_alike.get(folder.absolute()):
        with told("write", copy.address):
            copy.push()


def _check_one_machine(path: str) -> None:
    if jax.process_count() > 1:
        name = np.frombuffer(hashlib.sha256(socket.gethostname().encode()).digest())
        names = multihost_utils.process_allgather(name.view(np.uint32))
        require(
            bool((names == names[0]).all()),
            f"the processes of {path} are on several machines, which need one file "
            "system: mount the bucket (gcsfuse) and give that folder.",
        )


@contextlib.contextmanager
def _pushing(copy: Copy) -> Iterator[None]:
    """Copies now and then, in a thread, and at the end."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(EVERY):
            try:
                copy.push()
            except TakenOver as error:
                print(error, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except Exception as error:
                print(
                    f"cannot copy to {copy.address} ({reason(error)}): tried again in "
                    "a minute",
                    flush=True,
                )

    thread = threading.Thread(target=run, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        failing = sys.exception() is not None
        ended.set()
        thread.join()
        try:
            copy.push()
        except Exception as error:
            sentence = (
                f"cannot copy {copy.local} to {copy.address} ({reason(error)}); the "
                "same command on this machine goes on from there."
            )
            if isinstance(error, TakenOver):
                sentence = str(error)
            if not failing:
                raise UserError(sentence) from error
            print(sentence, flush=True)
