"""Domains: images or vectors, all in memory or read one by one; and sets of them."""

import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from eotjax.errors import UserError, attempt
from eotjax.progress import Progress

AHEAD = 64  # images that are decoded before they are asked for


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A domain that is decoded image by image, in many threads perhaps.

    Attributes:
      length: how many there are.
      read: i -> image i, decoded.
      stored: i -> the bytes that image i is decoded from.
      mark: i -> what tells image i from others without reading it.
    """

    length: int
    read: Callable[[int], np.ndarray]
    stored: Callable[[int], bytes]
    mark: Callable[[int], str] = str

    def __len__(self) -> int:
        return self.length


Domain = np.ndarray | Lazy  # uint8 [n, h, w, c] or float32 [n, d]


NONE = np.empty(0)  # the domain of a split that is not there


T = TypeVar("T")


class Four(NamedTuple, Generic[T]):
    """One thing a split: names, decoders, domains."""

    train_source: T
    train_target: T
    test_source: T
    test_target: T


class DataSet(NamedTuple):
    """Both domains as they are used: training lazily, perhaps, testing in memory.

    `resident` tells that the training arrays are small enough for the device's memory.
    The validation sets are cut from the training sets, and empty where none is wanted.
    `trained` marks, side by side, which of the stored images are still trained on; None
    for all. `fingerprints` tell the stored training sets from others, side by side.
    """

    train_source: Domain
    train_target: Domain
    test_source: np.ndarray
    test_target: np.ndarray
    resident: bool
    valid_source: np.ndarray = np.empty(0)
    valid_target: np.ndarray = np.empty(0)
    trained: tuple[np.ndarray, np.ndarray] | None = None
    fingerprints: tuple[str, str] = ("", "")


def read_all(domain: Domain, label: str) -> np.ndarray:
    """Decodes a whole domain in parallel, once, with progress.

    Raises:
      UserError: some images are broken; names up to five of them.
    """
    if isinstance(domain, np.ndarray):
        return domain
    images = list(each(domain, f"decoding {label}"))
    return np.stack(images) if images else np.empty(0)


def each(domain: Domain, label: str, begin: int = 0) -> Iterator[np.ndarray]:
    """A domain's images in turn, from number `begin` on, decoded ahead, with progress.

    Raises:
      UserError: after the last one, where some are broken; names up to five of them.
    """
    progress = Progress(label, len(domain), "images", begin)
    if isinstance(domain, np.ndarray):
        for image in domain[begin:]:
            yield image
            progress.update(1)
        return

    broken: list[UserError] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(begin, len(domain), AHEAD):  # not all are kept at once
            few = range(start, min(start + AHEAD, len(domain)))
            for image in pool.map(lambda i: attempt(domain.read, i), few):
                if isinstance(image, UserError):
                    broken.append(image)
                else:
                    yield image
                progress.update(1)
    if broken:
        names = " ".join(str(error) for error in broken[:5])
        raise UserError(f"{len(broken)} of {len(domain)} images are broken: {names}")


def check(domain: Domain, label: str) -> None:
    """Raises UserError where some of a domain's images are broken; names up to five."""
    if not isinstance(domain, np.ndarray):
        deque(each(domain, label), maxlen=0)


def take(domain: Domain, index: np.ndarray) -> Domain:
    """The part of a domain that `index` names, in its order."""
    if isinstance(domain, np.ndarray):
        return domain[index]
    return Lazy(
        len(index),
        lambda i: domain.read(int(index[i])),
        lambda i: domain.stored(int(index[i])),
        lambda i: domain.mark(int(index[i])),
    )


def fingerprint(domain: Domain, *, read: bool = True) -> str:
    """A digest of what a domain's images are made of, and of their order.

    Args:
      domain: whose.
      read: all that is stored; else only files' names and sizes are looked at.
    """
    if isinstance(domain, np.ndarray):
        digest = hashlib.sha256(f"{domain.dtype} {domain.shape}".encode())
        for part in domain:
            digest.update(part.tobytes())
        return digest.hexdigest()
    if not read:
        return of_marks(map(domain.mark, range(len(domain))))
    return _of_all(map(domain.stored, range(len(domain))))


def of_marks(marks: Iterable[str]) -> str:
    """The fingerprint, unread, of a domain whose images have these marks."""
    return _of_all(mark.encode() for mark in marks)


def _of_all(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def at(domain: Domain, index: Int[np.ndarray, "n"]) -> np.ndarray:
    """The images of a domain that `index` names, in its order, decoded."""
    if isinstance(domain, np.ndarray):
        return domain[index]
    return np.stack([domain.read(int(i)) for i in index])


def sample(domain: Domain, count: int) -> np.ndarray:
    """At most `count` of a domain's images, evenly spread, decoded."""
    return at(domain, evenly(len(domain), count))


def filled(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The numbers below `count` in parts of one `size`, and how many of each are new.

    The last part is filled up from the first numbers: one shape, one compilation.
    """
    for start in range(0, count, size):
        yield np.arange(start, start + size) % count, min(size, count - start)


def evenly(length: int, count: int) -> np.ndarray:
    """At most `count` numbers below `length`, evenly spread."""
    return np.linspace(0, length - 1, min(count, length)).astype(int)
