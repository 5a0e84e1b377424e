"""A trace of some training steps, for TensorBoard's profiler and for Perfetto."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

WARM = 10  # steps before it: the first ones compile, allocate and fill the caches


def seconds_of(program: Callable[..., PyTree], *given: Any) -> float:
    """Seconds of one call: the least of three, after one that compiles."""
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(program(*given))
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


class Trace:
    """Traces `steps` steps of a run, once it is warm; nothing where these are 0."""

    def __init__(self, folder: Path, *, start: int, steps: int):
        """Args: folder: for the trace. start: the step that the run goes on from."""
        self._folder, self._steps = folder, steps
        self._first, self._last = start + WARM, start + WARM + steps
        self._done = start

    def after(self, done: int, values: PyTree) -> None:
        """Begins or ends after step number `done`, when its `values` are there."""
        self._done = done
        if not self._steps or done not in (self._first, self._last):
            return
        jax.block_until_ready(values)
        if done == self._first:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
        else:
            self.close()

    def close(self) -> None:
        """Ends the trace where it has begun; says so where there can be none."""
        if not self._steps:
            return
        if self._done >= self._first:
            jax.profiler.stop_trace()
        if self._done > self._first:
            print(
                f"traced steps {self._first + 1} to {self._done}: {self._folder} (for "
                "TensorBoard's profiler; perfetto_trace.json.gz for ui.perfetto.dev)"
            )
        else:
            print(f"no trace: the run ended within {WARM + 1} steps")
        self._steps = 0
