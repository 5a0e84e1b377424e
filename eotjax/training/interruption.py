"""Ending a run early without losing anything."""

import signal

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Turns SIGTERM and Ctrl-C into a stop after the current step."""

    def __enter__(self) -> "Interruption":
        self._asked = False
        self._before = {
            number: signal.signal(number, self._ask)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, _frame) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def agreed(self, done: int) -> bool:
        """Whether to stop after step `done`; the same on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(done)
        return self._asked
