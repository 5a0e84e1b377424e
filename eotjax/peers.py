"""Processes of one run that learn of each other's end.

A collective that one process does not come to waits for it without end. So each process
counts up a number in JAX's own distributed store and reads the others': whose number
stands still has died or hangs, and the others end with a sentence.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the store has no public name

from eotjax.errors import reason

EVERY = 2.0  # seconds between two counts
SILENT = 30.0  # seconds after which a process counts as gone
GONE = 1  # status
ENDED = "ended: "  # in place of a count, with the reason; none where all went well
PLACE = "eotjax/alive/"


class Watch:
    """Counts for this process and looks at the others, in threads of its own."""

    def __init__(self, store: Any):
        """Args: store: JAX's client of its distributed service."""
        self._store, self._me = store, str(jax.process_index())
        self._moved = {str(i): time.monotonic() for i in range(jax.process_count())}
        self._seen: dict[str, str] = {}
        self._answered = time.monotonic()
        self._over = threading.Event()
        self._counting = threading.Thread(target=self._count, daemon=True)
        self._counting.start()
        threading.Thread(target=self._look, daemon=True).start()

    def _say(self, word: str) -> None:
        self._store.key_value_set(f"{PLACE}{self._me}", word, allow_overwrite=True)

    def _count(self) -> None:
        number = 0
        while not self._over.wait(EVERY):
            number += 1
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._say(str(number))
                said = dict(self._store.key_value_dir_get(PLACE))
                self._answered = time.monotonic()
                for name, word in said.items():
                    process = name.rpartition("/")[2]
                    if self._seen.get(process) != word:
                        self._seen[process] = word
                        self._moved[process] = self._answered

    def _look(self) -> None:
        while not self._over.wait(EVERY / 4):
            last = {"0": self._answered}  # the store is in process 0
            for process, moved in self._moved.items():
                word = self._seen.get(process, "")
                if not word.startswith(ENDED):
                    last[process] = min(moved, last.get(process, moved))
                elif word != ENDED:
                    self._end(process, f"has {word}")
            for process, moved in last.items():
                if time.monotonic() - moved > SILENT:
                    self._end(process, f"has not answered for {SILENT:.0f} seconds")

    def _end(self, process: str, what: str) -> NoReturn:
        print(
            f"eotjax: process {process} of {jax.process_count()} {what}; this process "
            "ends as well. Mend that and start all again: training goes on from the "
            "last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(GONE)

    def close(self, why: str = "") -> None:
        """Tells the others that this process ends, and why where that is an error."""
        self._over.set()
        self._counting.join(EVERY)  # a count after the last word would undo it
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._say(ENDED + why)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """While this process works, it and the others of its run watch each other.

    A process that fails tells the others why, and they end; does nothing where there is
    one process alone.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = Watch(distributed.global_state.client)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # A collective breaks at once where another process died: who, the watch tells.
        time.sleep(SILENT + 2 * EVERY)
        watch.close(reason(error))
        raise
    except BaseException as error:
        watch.close(f"{error}" or type(error).__name__)
        raise
    watch.close()
