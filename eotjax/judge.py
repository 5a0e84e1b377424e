"""What translations are measured by, of either direction."""

import dataclasses
from collections.abc import Callable
from functools import cached_property

import numpy as np
from jaxtyping import Float

from eotjax import cost_space, data, dataset, fidelity, images, measures
from eotjax.data import DataSet
from eotjax.translator import Translator

PCA_IMAGES = 512  # training targets that the principal components are fitted on
SCORE = "frechet"  # that the best step is chosen by
SELECTION = 256  # test images that the best step is chosen by


def turned(splits: DataSet, direction: str) -> DataSet:
    """The data set as a direction sees it: backward, the targets are its sources."""
    if direction == "forward":
        return splits
    return DataSet(
        splits.train_target,
        splits.train_source,
        splits.test_target,
        splits.test_source,
        splits.resident,
        splits.valid_target,
        splits.valid_source,
    )


def classifier(kind: str, splits: DataSet, direction: str) -> measures.Classifier:
    """Digits: knows all ten classes. Other data: source against target."""
    if kind == "digits":
        pixels, labels = data.digit_images(splits.test_source.shape[1:3])
        known = ~data.is_test_digit(labels)
        wanted = 3 if direction == "forward" else 2
        return measures.Classifier(pixels[known], labels[known], wanted)
    source, target = (data.sample(x, 5_000) for x in splits[:2])
    labels = np.repeat([0, 1], [len(source), len(target)])
    return measures.Classifier(np.concatenate([source, target]), labels, wanted=1)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Files of the networks that perceptual measures need; None leaves these out."""

    inception: str | None = None
    lpips: str | None = None


class Judge:
    """What translations of one direction are measured by."""

    def __init__(
        self,
        translator: Translator,
        splits: DataSet,
        direction: str = "forward",
        weights: Weights | None = None,
    ):
        self._config = translator.config
        self._is_image = len(translator.shape) == 3
        self._splits, self._direction = turned(splits, direction), direction
        self._weights = weights or Weights()
        self.source = self._to_float(self._splits.test_source)
        self.target = self._to_float(self._splits.test_target)

    def _to_float(self, x: np.ndarray) -> np.ndarray:
        return images.to_float(x) if self._is_image else np.asarray(x)

    @cached_property
    def _known(self) -> np.ndarray:
        """Training targets as test targets are: of their size, tinted."""
        count = max(PCA_IMAGES, len(self.source))
        known = data.sample(self._splits.train_target, count)
        if not self._is_image:
            return known
        if self._config.data.tint:
            known = dataset.tint_test(known)
        return self._to_float(images.centre(known, self.source.shape[1:3]))

    @cached_property
    def _order(self) -> np.ndarray:
        return np.random.default_rng(0).permutation(len(self._known))

    @property
    def independent(self) -> np.ndarray:
        """Random training targets, one for each test source."""
        return self._known[np.resize(self._order, len(self.source))]

    @cached_property
    def components(self) -> int:
        """Principal components: not more than a third of the smaller test set."""
        smallest = min(len(self.source), len(self.target))
        flat = int(np.prod(self._known.shape[1:]))
        fitted = min(PCA_IMAGES, len(self._known))
        return max(min(32, smallest // 3, fitted, flat), 1)

    @cached_property
    def features(self) -> Callable[[np.ndarray], np.ndarray]:
        """Coordinates along the principal components of the training targets."""
        flat = self._known[self._order[:PCA_IMAGES]]
        flat = flat.reshape(len(flat), -1)
        mean, directions = cost_space.principal_components(flat, self.components)
        return lambda x: (x.reshape(len(x), -1) - mean) @ directions

    @cached_property
    def _classify(self) -> measures.Classifier:
        return classifier(self._config.data.kind, self._splits, self._direction)

    def frechet(self, y: np.ndarray) -> float:
        """Frechet distance of the features of translations and test targets."""
        return measures.frechet_distance(self.features(y), self.features(self.target))

    def realism(self, y: np.ndarray) -> Float[np.ndarray, "n"]:
        """Distance of each translation's features to the nearest training target's."""
        return measures.nearest_distance(self.features(y), self.features(self._known))

    def row(self, y: np.ndarray) -> measures.Row:
        """Every measure of the translations y of the test sources."""
        values = {"transport_cost": measures.transport_cost(self.source, y)}
        if min(len(self.source), len(self.target)) > 1:
            values["frechet"] = self.frechet(y)
        if self._is_image:
            values["structure"] = measures.structure(self.source, y)
        if self._config.data.tint:
            values["class_accuracy"] = self._classify(y)
            values["hue_error"] = measures.hue_error(self.source, y)
        if self._weights.inception:
            values |= fidelity.distribution(
                images.to_uint8(y), self._splits.test_target, self._weights.inception
            )
        if self._weights.lpips:
            pairs = self._splits.test_source, images.to_uint8(y)
            values["lpips"] = float(
                np.mean(fidelity.lpips(*pairs, self._weights.lpips))
            )
        return values


def selection(translator: Translator, splits: DataSet) -> Callable[..., float]:
    """Builds score(translator): the Frechet distance that the best step is chosen by.

    Of at most 256 validation images of each side (of test images, where there are no
    such), the mean over the trained directions.
    """
    sides = (splits.valid_source, splits.valid_target)
    if not len(sides[0]):
        sides = (splits.test_source, splits.test_target)
    source, target = (data.sample(x, SELECTION) for x in sides)
    few = splits._replace(test_source=source, test_target=target)
    judges = {way: Judge(translator, few, way) for way in translator.directions}

    def score(translator: Translator) -> float:
        found = [
            judge.frechet(translator(judge.source, direction=way))
            for way, judge in judges.items()
        ]
        return float(np.mean(found))

    return score
