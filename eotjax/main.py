"""Trains: python -m eotjax.main --config=configs/digits.py --workdir=FOLDER."""

import contextlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from eotjax import command, parallel, peers

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file; a variant after a colon.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything of the run is kept.", required=True
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One process of several.")

SIGTERM_STATUS = 143  # what a shell reports for a process that ended on SIGTERM


def add_configs_root(argv: list[str]) -> None:
    """Lets a config import its neighbours, as `configs`, from any working folder."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config":
            path = Path((value or following).partition(":")[0]).resolve()
            sys.path.append(str(path.parent.parent))


def own_mistake(error: Exception) -> str:
    """What is wrong in a config file, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    file, line = place.filename, place.lineno
    if isinstance(error, SyntaxError):
        file, line = error.filename or file, error.lineno
    said = error.args[0] if isinstance(error, KeyError) else error
    return f"eotjax: {file}, line {line}: {type(error).__name__}: {said}"


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with every mistake told in one sentence."""
    add_configs_root(argv)
    try:
        rest = flags.FLAGS(argv)
        CONFIG.value.keys()  # a config that could not be loaded raises here
    except (AttributeError, KeyError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if "ml_collections" not in Path(place.filename).parts:
            sys.exit(own_mistake(error))
        if isinstance(error, KeyError):
            sys.exit(f"eotjax: {error.args[0]}")
        name = re.findall(r"\w+", str(error))[0]
        given = [arg for arg in argv if name in arg.split("=")[0].split(".")]
        hint = re.search(r"Did you mean .*?\?", str(error))
        sys.exit(
            f"eotjax: the config has no key {' '.join(given) or name}; "
            + (hint.group().replace("\\", "") if hint else "see configs/default.py.")
        )
    except (flags.Error, OSError, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sys.exit(f"eotjax: {lines[-1].removeprefix('ValueError: ')}")
    except Exception as error:  # a config is a program: anything
        sys.exit(own_mistake(error))
    if rest[1:]:
        sys.exit(f"eotjax: {rest[1]!r} is no option; write --name=value.")
    return rest


def run() -> int:
    """Trains to the end, or until a signal asks to stop."""
    from eotjax import train  # seconds, which a mistyped key need not wait for
    from eotjax.training import interruption

    if DISTRIBUTED.value:
        parallel.start_processes()
        interruption.set_notice_aside()
    parallel.check_devices()
    with contextlib.ExitStack() as quiet:
        if not parallel.is_leader():  # all processes would print the same
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
        quiet.enter_context(peers.watched())
        finished = train.train(CONFIG.value, WORKDIR.value)
    return 0 if finished else SIGTERM_STATUS


def end(status: int) -> NoReturn:
    """Ends this process; one that failed does not wait for the others, as JAX would."""
    if status not in (0, SIGTERM_STATUS) and DISTRIBUTED.value:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(lambda _: command.exit_after(run, end), flags_parser=parse)
