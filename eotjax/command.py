"""What the commands share: quiet libraries, and errors as a sentence."""

import sys
from collections.abc import Callable
from typing import NoReturn

from absl import logging

from eotjax.errors import UserError


def exit_after(run: Callable[[], int]) -> NoReturn:
    """Runs a command and exits with the status that it returns.

    A UserError, or a failed read or write, ends it with one sentence on standard error
    and status 1.
    """
    # orbax tells of every file, and of errors that it raises as well.
    logging.set_verbosity(logging.FATAL)
    try:
        sys.exit(run())
    except UserError as error:
        sys.exit(f"eotjax: {error}")
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        sys.exit(
            f"eotjax: cannot read or write{place}: {error.strerror or error}. Mend "
            "that and run the same command again; training goes on from its last "
            "checkpoint."
        )
