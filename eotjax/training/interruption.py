"""Ending a run early without losing anything."""

import ctypes
import os
import signal
import socket
import threading

import jax
from jax.experimental import multihost_utils

_handler_of = ctypes.CDLL(None).signal  # C's, whose handlers Python does not know
_handler_of.argtypes, _handler_of.restype = (
    (ctypes.c_int, ctypes.c_void_p),
    ctypes.c_void_p,
)
_notice: int | None = None  # JAX's handler of SIGTERM


def set_notice_aside() -> None:
    """Lets SIGTERM end a process, one of several, at once while none takes steps.

    JAX's own handler, which `jax.distributed.initialize` has set, only notes it.
    """
    global _notice
    _notice = _handler_of(signal.SIGTERM, None)


class Interruption:
    """Turns SIGTERM and Ctrl-C into a stop after the current step.

    The first is answered at once, and a second ends the process at once, also while
    JAX compiles or waits for a device, when Python runs no handler: the interpreter
    writes each signal's number to a socket, which a thread reads.

    Of several processes none handles them: JAX's own notice of a pre-emption, which
    our handlers would replace, tells all of a SIGTERM to one.
    """

    def __enter__(self) -> "Interruption":
        self.asked = False  # by a signal, where one process trains
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {n: signal.signal(n, self._ask) for n in numbers}
        if _notice and not numbers:
            _handler_of(signal.SIGTERM, _notice)
        self._read, self._written = socket.socketpair()
        self._written.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._written.fileno())
        threading.Thread(target=self._answer, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if _notice and not self._before:
            _handler_of(signal.SIGTERM, None)
        signal.set_wakeup_fd(self._wakeup)
        self._written.close()

    def _ask(self, _number, _frame) -> None:
        self.asked = True

    def _answer(self) -> None:
        """Until the socket is closed."""
        asked = False
        with self._read:
            while received := self._read.recv(1):
                number = received[0]
                if number not in self._before:
                    continue
                if asked:
                    os._exit(128 + number)  # as a shell reports it
                asked = True
                print(
                    f"{signal.Signals(number).name}: stopping after this step, once "
                    "all is saved; a second one ends the run at once",
                    flush=True,
                )

    def agreed(self, done: int) -> bool:
        """Whether to stop after step `done`; the same on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(done)
        return self.asked
