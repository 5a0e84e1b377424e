"""The one kind of error a user is expected to read: a sentence, no traceback."""

import textwrap
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Wrong input. The message names the thing that is wrong and the remedy."""


def choose(options: dict[str, Any], name: str, key: str) -> Any:
    """options[name], or a UserError that names the config's key and the options."""
    if name not in options:
        raise UserError(f"{key} is {name!r}; it must be one of {', '.join(options)}.")
    return options[name]


def reason(error: Exception) -> str:
    """What is wrong, in a line that can be read: libraries tell of whole trees."""
    lines = str(error).splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[0], 200)


def out_of_memory(error: Exception) -> bool:
    """Whether a device's memory was full, for which JAX has no kind of error."""
    return "RESOURCE_EXHAUSTED" in str(error)


def require(condition: bool, sentence: str) -> None:
    """Raises UserError(sentence) where the condition does not hold."""
    if not condition:
        raise UserError(sentence)


def attempt(function: Callable[..., T], *arguments: Any) -> T | UserError:
    """What a call returns, or the UserError that it raises."""
    try:
        return function(*arguments)
    except UserError as error:
        return error


def gather(calls: Iterable[Callable[[], T]]) -> list[T]:
    """What all calls return, or one UserError of all that they raise."""
    found = [attempt(call) for call in calls]
    told = [str(x) for x in found if isinstance(x, UserError)]
    require(not told, " ".join(told))
    return [x for x in found if not isinstance(x, UserError)]
