"""What the commands share: quiet libraries, and errors as a sentence."""

import ctypes
import io
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import logging

from eotjax.caches import keep_programs
from eotjax.errors import UserError, out_of_memory, reason

# Options of glibc's mallopt, from malloc.h, and their values here.
KEEP = {"ARENA_MAX": (-8, 1), "MMAP_MAX": (-4, 0), "TRIM_THRESHOLD": (-1, 2**31 - 1)}


def keep_memory() -> None:
    """Lets the process keep what it frees, for its next arrays; before JAX's threads.

    glibc gives large blocks back to the system, which then clears every page that the
    next training step touches: on a CPU a quarter of the step, docs/machines.md.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc alone
    if mallopt:
        for option, value in KEEP.values():
            mallopt(option, value)


def quiet() -> None:
    """Silences orbax, which tells of every file, and of errors that it raises too."""
    logging.set_verbosity(logging.FATAL)


def exit_after(
    run: Callable[[], int], end: Callable[[int], NoReturn] = sys.exit
) -> NoReturn:
    """Runs a command and ends, by `end`, with the status that it returns.

    A UserError, a failed read or write, or a device's full memory ends it with one
    sentence on standard error and status 1, Ctrl-C with one and status 130.
    """
    keep_memory()
    keep_programs()
    quiet()
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run()
    except UserError as error:
        status = _told(f"{error}")
    except KeyboardInterrupt:
        status = _told("interrupted.", 128 + signal.SIGINT)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        status = _told(
            f"cannot read or write{place}: {error.strerror or error}. Mend that and "
            "run the same command again."
        )
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        status = _told(
            f"the device's memory is full ({reason(error)}). Give a translation a "
            "smaller --batch_size, a training a smaller microbatch (and its pictures a "
            "smaller sampling.batch_size); is something else running there?"
        )
    end(status)


def _told(sentence: str, status: int = 1) -> int:
    print(f"eotjax: {sentence}", file=sys.stderr)
    return status
