"""The best step of a run so far."""

import math
from collections.abc import Callable, Iterable

from eotjax.artefact.translator import Translator
from eotjax.evaluation.judge import Translations


class Best:
    """Keeps the parameters of the step with the lowest score."""

    def __init__(
        self,
        score: Callable[[Translator, Translations], float],
        before: Iterable[float],
    ):
        """Args: score: lower is better. before: earlier scores."""
        self._score = score
        self._value = min(before, default=math.inf)

    def offer(
        self, translator: Translator, known: Translations, save: Callable[[], None]
    ) -> float:
        """The score of parameters; `save` keeps them where it is the lowest so far."""
        value = self._score(translator, known)
        if value < self._value:
            self._value = value
            save()
        return value
