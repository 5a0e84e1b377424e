"""What commands keep for the next one, in the user's own cache folder."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

MOST_BYTES = 2**31  # of compiled programs; the least used make room
# Compiled in less than this, in seconds, a program is not worth its file.
QUICK = 0.3


def folder() -> Path:
    """The folder of all that eotjax keeps: ~/.cache/eotjax, or below XDG_CACHE_HOME."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "eotjax"


def own(path: Path) -> bool:
    """Whether a folder, made if need be, is the user's alone: what lies in it is run.

    Raises:
      OSError: there can be no such folder.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o022


def keep_programs() -> None:
    """Lets JAX keep what it compiles, where the user has not said where it shall.

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false
    keeps nothing. What lies in the folder is run: it is the user's alone.
    """
    config: Any = jax.config
    wanted = config.jax_enable_compilation_cache
    if programs() or not wanted or not _can_be_loaded():
        return
    # Programs for a CPU have that very CPU's instructions, and homes are shared.
    path = folder() / f"programs-{_machine()}"
    try:
        if not own(path):
            return
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", QUICK)


def programs() -> str:
    """Where compiled programs are kept; empty where they are not."""
    config: Any = jax.config
    on = config.jax_enable_compilation_cache
    return (on and config.jax_compilation_cache_dir) or ""


def _cpu() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _machine() -> str:
    """A digest of the kind of processor."""
    said = (platform.machine(), platform.processor(), _cpu().get("flags", ""))
    return hashlib.sha256(repr(said).encode()).hexdigest()[:12]


def _can_be_loaded() -> bool:
    """Whether XLA takes its own programs for this CPU back.

    Not where gathering is slow, Intel's processors that Downfall is mended on: it looks
    for that hint among the processor's features, in vain (openxla/xla issue 44565).
    """
    return "gds" not in _cpu().get("bugs", "").split()
