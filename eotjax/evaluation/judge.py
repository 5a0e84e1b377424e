"""What translations are measured by, of either direction."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from eotjax.artefact.translator import Translator
from eotjax.build import dataset
from eotjax.build.checks import Shape
from eotjax.data import domains, images, sources
from eotjax.data.domains import DataSet
from eotjax.errors import require
from eotjax.evaluation import classifier as classifiers
from eotjax.evaluation import fidelity, measures
from eotjax.evaluation.classifier import Classify, Seen
from eotjax.progress import Progress
from eotjax.transport import cost

PCA_IMAGES = 512  # training targets that the principal components are fitted on
SELECTION = 256  # test images that the best step is chosen by

Translations = Mapping[str, np.ndarray]  # of all test sources, by direction


def turned(splits: DataSet, direction: str) -> DataSet:
    """The data set as a direction sees it: backward, the targets are its sources."""
    if direction == "forward":
        return splits
    return splits.reversed()


def classifier(kind: str, splits: DataSet, direction: str) -> measures.Classifier:
    """Digits: knows all ten classes. Other data: source against target."""
    if kind == "digits":
        pixels, labels = sources.digit_images(splits.source.test.shape[1:3])
        known = ~sources.is_test_digit(labels)
        wanted = 3 if direction == "forward" else 2
        return measures.Classifier(pixels[known], labels[known], wanted)
    size = splits.source.test.shape[1:3]
    source, target = (
        images.centre(domains.sample(x, 5_000), size) for x in splits.train
    )
    labels = np.repeat([0, 1], [len(source), len(target)])
    return measures.Classifier(np.concatenate([source, target]), labels, wanted=1)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Networks that perceptual measures need; None or "" leaves these out.

    Attributes:
      inception: file of weights, for FID and KID.
      lpips: file of weights.
      classifier: name of one, for its features: see `classifier.load`.
      classifier_weights: its file.
      wanted: number of the class that translations should be taken for, backward the
        class that they should no longer be; -1 for none.
    """

    inception: str | None = None
    lpips: str | None = None
    classifier: str = ""
    classifier_weights: str = ""
    wanted: int = -1

    @staticmethod
    def of(config: ConfigDict) -> "Weights":
        """Those that a run is judged by."""
        c = config.judge
        return Weights(
            classifier=c.classifier, classifier_weights=c.weights, wanted=c.wanted
        )

    def find(self) -> None:
        """Raises UserError where the classifier is not there."""
        if self.classifier:
            classifiers.load(self.classifier, self.classifier_weights)

    def check(self, shape: Shape) -> None:
        """Raises UserError where images of `shape` cannot be measured by these."""
        require(
            len(shape) == 3 or not (self.inception or self.lpips or self.classifier),
            "these are vectors, which no classifier sees: leave inception, lpips and "
            "classifier out.",
        )
        fidelity.check(shape, self.inception, self.lpips)
        self.find()

    @property
    def score(self) -> str:
        """The name of what the best step is chosen by."""
        return "feature_kid" if self.classifier else "frechet"


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
        self.source = self._to_float(self._splits.source.test)
        self.target = self._to_float(self._splits.target.test)

    def _to_float(self, x: np.ndarray) -> np.ndarray:
        return images.to_float(x) if self._is_image else np.asarray(x)

    def _training_targets(self, number: np.ndarray) -> np.ndarray:
        """Some as test targets are: of their size, tinted."""
        stored = domains.at(self._splits.target.train, number)
        if self._config.data.tint:
            stored = dataset.tint_test(stored, number)
        return images.centre(stored, self.source.shape[1:3])

    @cached_property
    def _known(self) -> np.ndarray:
        """Some training targets: as many as there are sources, or more."""
        known = self._splits.target.train
        number = domains.evenly(len(known), max(PCA_IMAGES, len(self.source)))
        if not self._is_image:
            return domains.at(known, number)
        return self._to_float(self._training_targets(number))

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
        mean, directions = cost.principal_components(flat, self.components)
        return lambda x: (x.reshape(len(x), -1) - mean) @ directions

    @cached_property
    def _classify(self) -> measures.Classifier:
        return classifier(self._config.data.kind, self._splits, self._direction)

    @cached_property
    def _look(self) -> Classify:
        return classifiers.load(
            self._weights.classifier, self._weights.classifier_weights
        )

    @cached_property
    def _target_seen(self) -> Seen:
        return self._look(images.to_uint8(self.target))

    @cached_property
    def _training_features(self) -> Float[np.ndarray, "n d"]:
        """Of all training targets."""
        count = len(self._splits.target.train)
        parts = np.split(np.arange(count), range(PCA_IMAGES, count, PCA_IMAGES))
        progress, features = Progress("looking at targets", count, "images"), []
        for part in parts:
            features.append(self._look(self._training_targets(part)).features)
            progress.update(len(part))
        return np.concatenate(features)

    def score(self, y: np.ndarray) -> float:
        """How far translations are from the targets, by `Weights.score`."""
        seen = self.look(y)
        if seen is None:
            return self.frechet(y)
        return 100 * measures.kernel_distance(seen.features, self._target_seen.features)

    def look(self, y: np.ndarray) -> Seen | None:
        """What the classifier sees in images; None where there is none."""
        return self._look(images.to_uint8(y)) if self._weights.classifier else None

    def _recognition(self, seen: Seen) -> measures.Row:
        """What the classifier makes of translations, and how far memory goes.

        `novelty` is the median distance to the nearest training target, where that of
        the test targets is 1.
        """
        wanted, known = self._target_seen, self._training_features
        near, usual = (
            np.median(measures.nearest(x.features, known)[0]) for x in (seen, wanted)
        )
        values: measures.Row = {}
        if self._several:
            sides = seen.features, wanted.features
            values["feature_kid"] = 100 * measures.kernel_distance(*sides)
            values["feature_frechet"] = measures.frechet_distance(*sides)
        values["novelty"] = float(near / usual)
        if self._weights.wanted >= 0:
            values["recognised"] = float(np.mean(seen.top1 == self._weights.wanted))
        return values

    @property
    def _several(self) -> bool:
        """Whether a distribution can be told from the test images of either side."""
        return min(len(self.source), len(self.target)) > 1

    def frechet(self, y: np.ndarray) -> float:
        """Frechet distance of the features of translations and test targets."""
        return measures.frechet_distance(self.features(y), self.features(self.target))

    def nearest(self, y: np.ndarray, seen: Seen | None) -> np.ndarray:
        """The training target that is nearest to each translation.

        Of all in the features of what the classifier has `seen` in them; else of some,
        in principal components.
        """
        if seen is None:
            _, found = measures.nearest(self.features(y), self.features(self._known))
            return self._known[found]
        _, found = measures.nearest(seen.features, self._training_features)
        return self._to_float(self._training_targets(found))

    def realism(self, y: np.ndarray) -> Float[np.ndarray, "n"]:
        """How far each translation is from the nearest of some training targets."""
        return measures.nearest(self.features(y), self.features(self._known))[0]

    def row(self, y: np.ndarray, seen: Seen | None) -> measures.Row:
        """Every measure of the translations y of the test sources, `seen` as `look`."""
        values = {"transport_cost": measures.transport_cost(self.source, y)}
        if self._several:
            values["frechet"] = self.frechet(y)
        if self._is_image:
            values["structure"] = measures.structure(self.source, y)
            values["layout"] = measures.light_correlation(self.source, y)
            if seen is not None:
                values |= self._recognition(seen)
        if self._config.data.tint:
            values["class_accuracy"] = self._classify(y)
            values["hue_error"] = measures.hue_error(self.source, y)
        if self._weights.inception:
            values |= fidelity.distribution(
                images.to_uint8(y), self._splits.target.test, self._weights.inception
            )
        if self._weights.lpips:
            pairs = self._splits.source.test, images.to_uint8(y)
            values["lpips"] = float(
                np.mean(fidelity.lpips(*pairs, self._weights.lpips))
            )
        return values


def chosen_by(splits: DataSet) -> tuple[domains.Domain, domains.Domain]:
    """What the best step is chosen on: validation or, without such, test images."""
    valid = splits.source.valid, splits.target.valid
    return valid if min(map(len, valid)) else (splits.source.test, splits.target.test)


def selection(
    translator: Translator, splits: DataSet, weights: Weights
) -> Callable[..., float]:
    """Builds score(translator, known): the distance that the best step is chosen by.

    Of at most 256 validation images of each side (of test images, where there are no
    such), the mean over the trained directions. `known` are translations of all test
    sources by direction, of a translator that has translated them already.
    """
    sides = chosen_by(splits)
    validated = sides[0] is splits.source.valid
    source, target = (domains.sample(x, SELECTION) for x in sides)
    few = splits._replace(
        source=splits.source._replace(test=source),
        target=splits.target._replace(test=target),
    )
    judges = {
        way: Judge(translator, few, way, weights) for way in translator.directions
    }

    def translated(translator: Translator, way: str, known: Translations) -> np.ndarray:
        if validated or way not in known:
            return translator(judges[way].source, direction=way)
        return known[way][domains.evenly(len(known[way]), SELECTION)]

    def score(translator: Translator, known: Translations) -> float:
        found = [
            judge.score(translated(translator, way, known))
            for way, judge in judges.items()
        ]
        return float(np.mean(found))

    return score
