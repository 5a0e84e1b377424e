"""What a run shows while it runs: lines, metrics files, TensorBoard."""

import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from eotjax import atomic, errors, parallel
from eotjax.errors import UserError
from eotjax.progress import duration

METRICS = "metrics.jsonl"  # of training, a line an interval
SCORES = "scores.jsonl"  # of the test set, a line an evaluation


class Board:
    """TensorBoard's files, written in a thread of their own.

    TensorFlow takes seconds to import, for which no step waits. Where it is missing or
    fails, as on a full disk, nothing more is written, which is told once.
    """

    def __init__(self, folder: Path):
        """Args: folder: made at the first writing."""
        self._folder, self._failed = folder, False
        self._writer: Any = None  # clu's
        self._thread = ThreadPoolExecutor(1)

    def write(self, what: str, step: int, values: Mapping[str, Any]) -> None:
        """Calls a method of clu's writer, later: write_scalars or write_images."""
        self._thread.submit(self._now, what, step, values)

    def _now(self, what: str, *given: Any) -> None:
        if self._failed:
            return
        try:
            if self._writer is None:
                # It computes nothing here; this keeps it from talking about how.
                os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
                from clu import metric_writers

                self._writer = metric_writers.SummaryWriter(str(self._folder))
            getattr(self._writer, what)(*given)
        except Exception as error:  # TensorFlow has kinds of its own
            self._failed = True
            warnings.warn(
                f"no TensorBoard: {errors.reason(error)}. {METRICS} holds the same "
                "numbers.",
                stacklevel=2,
            )

    def close(self) -> None:
        """Waits until all is written."""
        self._thread.shutdown()
        if self._writer is not None:
            self._now("close")


class Writer:
    """Scalars to files of JSON lines and, where TensorFlow is, to TensorBoard."""

    def __init__(self, folder: Path, *, step: int, tensorboard: bool):
        """Goes on after `step`: later lines, of an interrupted run, are dropped."""
        self._leader = parallel.is_leader()
        self._board: Board | None = None
        if not self._leader:
            return
        self._folder = folder
        for path in (folder / METRICS, folder / SCORES):
            if path.exists():
                lines = path.read_text().splitlines()
                kept = [line for line in lines if _step_of(line) <= step]
                atomic.write_text(path, "".join(line + "\n" for line in kept))
        if tensorboard:
            self._board = Board(folder / "tensorboard")

    def scalars(
        self, step: int, values: Mapping[str, float], name: str = METRICS
    ) -> None:
        """Appends one line {"step": ..., name: value, ...} to the file of that name."""
        if not self._leader:
            return
        with (self._folder / name).open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            self._board.write("write_scalars", step, values)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w c"]) -> None:
        """Shows one picture in TensorBoard."""
        if self._board is not None:
            self._board.write("write_images", step, {name: pixels[None]})

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._board is not None:
            self._board.close()


class Interval(NamedTuple):
    """Some steps' metrics, on the device."""

    done: int  # the number of the last step
    steps: int
    rate: float  # steps a second
    total: Mapping[str, Array]  # the sums
    skipped: list[Array]  # of each step, 1 or 0


class Log:
    """Means of a run's metrics over an interval, read one interval late.

    By then the device has long computed them: reading never makes it wait.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        every: int,
        total_steps: int,
        batch_size: int,
        learning_rate: Callable[[int], Float[Array, ""]],
        max_marginal_error: float,
        peak_flops: float | None = None,
    ):
        """Args:
        max_marginal_error: mean of the plans'; a run that is over it stops.
        peak_flops: a second, of all devices; None where unknown.
        """
        self.flops = 0.0  # of a step, over all devices; 0 while unknown
        self.pairing = 0.0  # seconds of a step's drawing and pairing; 0 if not to tell
        self._peak_flops = peak_flops
        self._writer, self._every, self._total_steps = writer, every, total_steps
        self._batch_size, self._learning_rate = batch_size, learning_rate
        self._max_marginal_error = max_marginal_error
        self._sum: Mapping[str, Array] | None = None
        self._count, self._time = 0, time.monotonic()
        self._skipped: list[Array] = []  # of the interval's steps, 1 or 0
        self._pending: Interval | None = None
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))

    def add(self, done: int, values: Mapping[str, Array]) -> None:
        """Takes the metrics of step number `done`, counted from 1.

        Raises:
          UserError: most steps of an earlier interval were skipped, or its plans
            failed.
        """
        total = values if self._sum is None else self._add(self._sum, values)
        self._sum = total
        self._count += 1
        self._skipped.append(values["skipped"])
        if done % self._every == 0 or done == self._total_steps:
            # The host waits for the device, in flush where something is pending:
            # between two of these moments both have come equally far.
            if self._pending is None:
                jax.block_until_ready(total)
            self.flush()
            now = time.monotonic()
            rate = self._count / (now - self._time)
            self._pending = Interval(done, self._count, rate, total, self._skipped)
            self._sum, self._count, self._skipped, self._time = None, 0, [], now

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Work that is no step's, which the rate and the time left do not count."""
        jax.block_until_ready((self._sum, self._pending))  # the steps' own time
        start = time.monotonic()
        yield
        self._time += time.monotonic() - start

    def flush(self) -> None:
        """Prints and writes the last whole interval, and judges it."""
        if self._pending is None:
            return
        done, count, rate, total, skipped = self._pending
        self._pending = None
        values = {name: float(x) / count for name, x in total.items()}
        values["skipped"] *= count
        for name in ("loss", "grad_norm"):  # means over the steps that were not
            values[name] *= count / max(count - values["skipped"], 1)
        images_per_second = rate * self._batch_size
        speed = {}  # FLOP/s and their share of the peak, where these are known
        if self.flops:
            speed["flops_per_second"] = self.flops * rate
            if self._peak_flops:
                speed["mfu"] = speed["flops_per_second"] / self._peak_flops
        mfu = f"MFU {speed['mfu']:.0%}, " if "mfu" in speed else ""
        print(
            f"step {done}/{self._total_steps}: loss {values['loss']:.4f}, "
            f"plan entropy {values['plan/entropy']:.2f}, "
            f"{images_per_second:.0f} images/s, {mfu}"
            f"{duration((self._total_steps - done) / rate)} left",
            flush=True,
        )
        if self.pairing:
            print(f"drawing and pairing: {self.pairing * rate:.1%} of a step")
            self.pairing = 0.0
        learning_rate = float(self._learning_rate(done - 1))
        extra = {"learning_rate": learning_rate, "images_per_second": images_per_second}
        self._writer.scalars(done, {**values, **extra, **speed})
        if values["skipped"]:
            first = done - count + 1
            steps = [first + i for i, x in enumerate(skipped) if x]
            told = (
                f"the loss is nan or infinite, or its gradient, at step "
                f"{', '.join(map(str, steps[:5]))}{', ...' * (len(steps) > 5)}"
            )
            errors.require(
                2 * len(steps) <= count,
                f"{told}: at {len(steps)} of {count} steps; lower "
                "optimizer.learning_rate and start in a new --workdir.",
            )
            print(f"{told}: skipped", flush=True)
        if not values["plan/marginal_error"] <= self._max_marginal_error:
            raise UserError(
                f"the plans' marginal error is {values['plan/marginal_error']:.3g} at "
                f"step {done}, over coupling.max_marginal_error "
                f"{self._max_marginal_error}: raise coupling.epsilon or "
                "coupling.max_iterations."
            )


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if math.isfinite(_step_of(line))]


def history(path: Path, name: str) -> dict[int, float]:
    """One of the scalars of a file of JSON lines, by step."""
    return {line["step"]: line[name] for line in read(path) if name in line}


def _step_of(line: str) -> float:
    """The step of a metrics line; infinite for one cut off by a crash."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf
