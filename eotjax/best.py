"""The best step of a run so far."""

import math
from collections.abc import Callable, Iterable

from eotjax.translator import Translator


class Best:
    """Keeps the parameters of the step with the lowest score."""

    def __init__(
        self,
        score: Callable[[Translator], float],
        save: Callable[[], None],
        before: Iterable[float],
    ):
        """Args: score: lower is better. save: keeps a step's parameters, those just
        scored. before: earlier scores."""
        self._score, self._save = score, save
        self._value = min(before, default=math.inf)

    def offer(self, translator: Translator) -> float:
        """The score of parameters, which are kept where it is the lowest so far."""
        value = self._score(translator)
        if value < self._value:
            self._value = value
            self._save()
        return value
