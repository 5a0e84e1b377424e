"""How far a long job is: its rate and the time that is left."""

import sys
import time


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"


class Progress:
    """Prints how far a countable job is, its rate and its time left.

    On a terminal the line is rewritten in place, elsewhere it is printed now and then.
    """

    def __init__(self, label: str, total: int, unit: str, begun: int = 0):
        """Args: begun: how many were done before, of which the rate knows nothing."""
        self._label, self._total, self._unit = label, total, unit
        self._begun = self._done = begun
        self._start = time.monotonic()
        self._printed = self._start

    def update(self, count: int) -> None:
        """Counts `count` more as done."""
        self._done += count
        now, finished = time.monotonic(), self._done >= self._total
        every = 0.2 if sys.stdout.isatty() else 10.0
        if now - self._printed < every and not (finished and now - self._start > 1):
            return
        self._printed = now
        rate = (self._done - self._begun) / max(now - self._start, 1e-9)
        left = duration((self._total - self._done) / max(rate, 1e-9))
        end = "\r" if sys.stdout.isatty() and not finished else "\n"
        print(
            f"{self._label}: {self._done}/{self._total} {self._unit}, "
            f"{rate:.1f}/s, {left} left",
            end=end,
            flush=True,
        )
