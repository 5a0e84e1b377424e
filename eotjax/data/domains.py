"""Domains: images or vectors, all in memory or read one by one; and sets of them."""

import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
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
U = TypeVar("U")


class Four(NamedTuple, Generic[T]):
    """One thing a split: names, decoders, domains."""

    train_source: T
    train_target: T
    test_source: T
    test_target: T


class Side(NamedTuple):
    """One domain's sets.

    Attributes:
      train: what is trained on.
      valid: what is cut from the training images; empty where none is wanted.
      test: what is tested on.
      trained: bool, which of the stored training images are in `train`.
      fingerprint: tells `train` from others, as `unread`.
    """

    train: Domain
    valid: np.ndarray
    test: np.ndarray
    trained: np.ndarray
    fingerprint: str


class DataSet(NamedTuple):
    """Both domains as they are used: training lazily, perhaps, testing in memory."""

    source: Side
    target: Side
    resident: bool  # the training sets are small enough for the device's memory

    @property
    def train(self) -> tuple[Domain, Domain]:
        """Both training sets."""
        return self.source.train, self.target.train

    @property
    def lengths(self) -> tuple[int, int]:
        """How many images are trained on."""
        return len(self.source.train), len(self.target.train)

    @property
    def fingerprints(self) -> tuple[str, str]:
        """Those of both training sets."""
        return self.source.fingerprint, self.target.fingerprint

    def reversed(self) -> "DataSet":
        """As the way back sees it: the targets are its sources."""
        return self._replace(source=self.target, target=self.source)


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

    None that comes after a broken one.

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
        read, numbers = partial(attempt, domain.read), range(begin, len(domain))
        for _, image in ahead(pool, read, numbers, AHEAD):
            if isinstance(image, UserError):
                broken.append(image)
            elif not broken:  # what is made of those after it would be of another set
                yield image
            progress.update(1)
    if broken:
        names = " ".join(str(error) for error in broken[:5])
        raise UserError(f"{len(broken)} of {len(domain)} images are broken: {names}")


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T], count: int
) -> Iterator[tuple[T, U]]:
    """Each item with its result, in order, `count` items being computed ahead."""
    rest = iter(items)
    waiting = deque((item, pool.submit(function, item)) for item in islice(rest, count))
    while waiting:
        item, future = waiting.popleft()
        waiting.extend((item, pool.submit(function, item)) for item in islice(rest, 1))
        yield item, future.result()


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


def fingerprint(domain: Domain, label: str) -> str:
    """A digest of all that a domain's images are made of, and of their order.

    Args:
      domain: whose.
      label: of the progress that is shown: files are read whole.
    """
    if isinstance(domain, np.ndarray):
        return _of_array(domain)
    progress, digest = Progress(label, len(domain), "images"), hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _, part in ahead(
            pool,
            lambda i: hashlib.sha256(domain.stored(i)).digest(),
            range(len(domain)),
            AHEAD,
        ):
            digest.update(part)
            progress.update(1)
    return digest.hexdigest()


def unread(domain: Domain) -> str:
    """As `fingerprint`, of files' names and sizes only; of arrays that itself."""
    if isinstance(domain, np.ndarray):
        return _of_array(domain)
    return of_marks(map(domain.mark, range(len(domain))))


def _of_array(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    for part in array:
        digest.update(part.tobytes())
    return digest.hexdigest()


def of_marks(marks: Iterable[str]) -> str:
    """What `unread` says of a domain whose images have these marks."""
    digest = hashlib.sha256()
    for mark in marks:
        digest.update(hashlib.sha256(mark.encode()).digest())
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
