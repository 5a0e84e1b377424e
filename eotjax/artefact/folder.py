"""Image files into a folder of translations, read and written beside the device."""

import contextlib
import dataclasses
import os
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from eotjax import remote
from eotjax.artefact.files import Job
from eotjax.artefact.translator import Translator
from eotjax.data import domains, images
from eotjax.data.images import AnySize, Pixels
from eotjax.errors import UserError, attempt, choose, out_of_memory
from eotjax.progress import Progress

FITS = ("crop", "pad", "stretch", "full")
WORKERS = min(os.cpu_count() or 1, 16)  # threads that decode and encode
SHEET = (16, 4)  # sources, and samples of each, that a contact sheet shows at most


# A job's samples, or what is wrong with its image.
Result = tuple[Job, UInt8[np.ndarray, "k _ _ c"] | UserError]


class Outcome(NamedTuple):
    """The files written, those that were there before, a sentence for each failure."""

    written: list[Path]
    kept: list[Path]
    broken: list[str]


@dataclasses.dataclass(frozen=True)
class Task:
    """How images are read and translated.

    Attributes:
      translator: of images.
      seed: another one gives other translations.
      num_samples: translations of each image.
      direction: forward, from source to target, or backward.
      fit: how an image gets the trained size: crop, pad or stretch; or full, to be
        translated at its own.
    """

    translator: Translator
    seed: int
    num_samples: int
    direction: str
    fit: images.Fit | Literal["full"]

    @property
    def full(self) -> bool:
        """Whether images keep their sizes."""
        return self.fit == "full"

    @property
    def count(self) -> int:
        """Images of the trained size that the device takes at once."""
        return max(self.translator.config.sampling.batch_size // self.num_samples, 1)

    def read(self, path: Path) -> Pixels:
        """One image as the translator takes it, but for `padded`."""
        if self.fit == "full":
            return self.read_whole(path)
        height, width, channels = self.translator.shape
        size = (height, width)
        return images.decode(path, size=size, channels=channels, fit=self.fit)

    def read_whole(self, path: Path) -> Pixels:
        """One image at its own size."""
        return images.decode(path, size=None, channels=self.translator.shape[2])

    def padded(self, pixels: AnySize) -> AnySize:
        """With its last rows and columns repeated to a size that the network takes."""
        multiple = self.translator.multiple if self.full else 1
        height, width, _ = pixels.shape
        margins = ((0, -height % multiple), (0, -width % multiple), (0, 0))
        return np.pad(pixels, margins, mode="edge")

    def draw(
        self, batch: UInt8[np.ndarray, "n h w c"]
    ) -> UInt8[np.ndarray, "k n h w c"]:
        """All samples of images of one size."""
        drawn = self.translator(
            batch,
            seed=self.seed,
            num_samples=self.num_samples,
            direction=self.direction,
            any_size=self.full,
        )
        return drawn.reshape(self.num_samples, *batch.shape)


def make_task(
    translator: Translator,
    *,
    seed: int,
    num_samples: int,
    direction: str,
    fit: str | None,
) -> Task:
    """A `Task`, where `fit` None is the way of the translator's config.

    Raises:
      UserError: the translator is for vectors, or `fit` is unknown.
    """
    if len(translator.shape) != 3:
        raise UserError(
            "this export translates vectors, not images; call eotjax.load from Python."
        )
    known = {name: name for name in FITS}
    way = choose(known, translator.config.data.fit if fit is None else fit, "fit")
    return Task(translator, seed, num_samples, direction, way)


def translate_jobs(
    task: Task, jobs: list[Job], output: str | Path, *, overwrite: bool
) -> Outcome:
    """Writes translations of images, and a contact sheet of some, to a folder.

    Images that cannot be read are passed over, and translations that are there are
    kept: after an interruption the same call goes on where it was.

    Args:
      task: how.
      jobs: which images, and where their translations go: see `files.plan`.
      output: the folder.
      overwrite: translate again what was translated before.
    """
    targets = [target for job in jobs for target in job.targets]
    kept = [] if overwrite else [target for target in targets if target.is_file()]
    wanted = set(targets).difference(kept)
    todo = [job for job in jobs if not wanted.isdisjoint(job.targets)]

    written: list[Path] = []
    broken: list[str] = []
    writing: deque[tuple[Path, Future]] = deque()

    def finish(most: int) -> None:
        """Waits until so many files are being written."""
        while len(writing) > most:
            target, future = writing.popleft()
            error = future.result()
            if error is None:
                written.append(target)
            else:
                broken.append(str(error))

    progress = Progress("translating", len(todo), "images")
    with images.quiet(), ThreadPoolExecutor(WORKERS) as pool:
        for job, result in _translations(pool, task, todo):
            progress.update(1)
            if isinstance(result, UserError):
                broken.append(str(result))
                continue
            for target, image in zip(job.targets, result, strict=True):
                if target in wanted:
                    future = pool.submit(attempt, _write, target, image)
                    writing.append((target, future))
            finish(WORKERS if task.full else task.count * task.num_samples)
        finish(0)
        sheet = _contact_sheet(jobs, task)
    if sheet is not None:
        path = remote.local(output) / images.CONTACT_SHEET
        while path in targets:
            path = path.with_name(f"_{path.name}")
        images.write(path, sheet)
    return Outcome(written, kept, broken)


def _translations(
    pool: ThreadPoolExecutor, task: Task, jobs: list[Job]
) -> Iterator[Result]:
    """Each job with all its samples, or with what is wrong with its image.

    While the device translates some images the pool decodes the next.
    """
    height, width, _ = task.translator.shape
    counts: dict[tuple[int, ...], int] = {}
    chunk: list[tuple[Job, AnySize]] = []
    area = 0
    # Of images of any size few are held ready: they may be large.
    count = WORKERS if task.full else task.count
    for job, read in domains.ahead(
        pool, lambda job: attempt(task.read, job.source), jobs, count
    ):
        if isinstance(read, UserError):
            yield job, read
            continue
        chunk.append((job, read))
        area += read.shape[0] * read.shape[1]
        if len(chunk) == task.count or area >= task.count * height * width:
            yield from _translated(task, chunk, counts)
            chunk, area = [], 0
    yield from _translated(task, chunk, counts)


def _translated(
    task: Task,
    chunk: list[tuple[Job, AnySize]],
    counts: dict[tuple[int, ...], int],
) -> Iterator[Result]:
    """A chunk's results, size by size.

    `counts` holds how many images of each size the first call had. Later ones are
    filled up to that, for another number would be compiled again.
    """
    groups = defaultdict(list)
    for job, pixels in chunk:
        padded = task.padded(pixels)
        groups[padded.shape].append((job, pixels.shape, padded))
    for size, group in groups.items():
        count = counts.setdefault(size, len(group))
        for start in range(0, len(group), count):
            part = group[start : start + count]
            batch = np.stack([padded for _, _, padded in part])
            try:
                samples = task.draw(batch[np.arange(count) % len(part)])
            except jax.errors.JaxRuntimeError as error:
                if not task.full or not out_of_memory(error):
                    raise
                for job, (height, width, _), _ in part:
                    sentence = (
                        f"{job.source} has {width}x{height} pixels, too many for the "
                        "device's memory; shrink it, or use --fit=crop."
                    )
                    yield job, UserError(sentence)
                continue
            for index, (job, (height, width, _), _) in enumerate(part):
                yield job, samples[:, index, :height, :width]


def _write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(path, pixels)


def _contact_sheet(jobs: list[Job], task: Task) -> Pixels | None:
    """Sources above their translations, as they are in the files; None without any."""
    columns: list[list[AnySize]] = []
    for source, targets in jobs:
        shown = targets[: SHEET[1]]
        if len(columns) == SHEET[0]:
            break
        if not all(target.is_file() for target in shown):
            continue
        # A source that has broken since it was translated is passed over.
        with contextlib.suppress(UserError):
            columns.append([task.read(source), *map(task.read_whole, shown)])
    return images.contact_sheet(list(zip(*columns, strict=True))) if columns else None
