"""Evaluates an artefact on a test split: python -m eotjax.evaluate --export=FOLDER."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from eotjax import (
    card,
    command,
    cost_space,
    data,
    dataset,
    export,
    fidelity,
    images,
    known_plan_report,
    measures,
    parallel,
)
from eotjax.data import DataSet
from eotjax.errors import UserError

PCA_IMAGES = 512  # training targets that the principal components are fitted on
SELECTION = 256  # test images that the best step is chosen by
RANKED = 5  # translations in each part of the picture of best, median and worst


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
        translator: export.Translator,
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
        height, width = self.source.shape[1:3]
        top, left = (known.shape[1] - height) // 2, (known.shape[2] - width) // 2
        return self._to_float(known[:, top:, left:][:, :height, :width])

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


def selection(translator: export.Translator, splits: DataSet) -> Callable[..., float]:
    """Builds score(translator): the Frechet distance that the best step is chosen by.

    Of at most 256 test images of each side, the mean over the trained directions.
    """
    few = splits._replace(
        test_source=data.sample(splits.test_source, SELECTION),
        test_target=data.sample(splits.test_target, SELECTION),
    )
    judges = {way: Judge(translator, few, way) for way in translator.directions}

    def score(translator: export.Translator) -> float:
        found = [
            judge.frechet(translator(judge.source, direction=way))
            for way, judge in judges.items()
        ]
        return float(np.mean(found))

    return score


def evaluate(
    translator: export.Translator,
    splits: DataSet,
    *,
    direction: str = "forward",
    weights: Weights | None = None,
) -> tuple[dict, np.ndarray, np.ndarray]:
    """All measures of the translated test sources, beside the baselines'.

    `identity` changes nothing. `independent` answers with random training targets, the
    ideal of a model without a plan: its frechet is the floor a finite test set allows.

    Returns:
      {"rows": {name: {measure: value}}, "settings": ...}, the translations, and each
      one's distance to the nearest training target.
    """
    judge = Judge(translator, splits, direction, weights)
    translated = translator(judge.source, direction=direction, progress=True)
    rows = {
        "eotjax": judge.row(translated),
        "identity": judge.row(judge.source),
        "independent": judge.row(judge.independent),
    }
    settings = {
        "test_source": len(judge.source),
        "test_target": len(judge.target),
        "pca_components": judge.components,
        "sampling": translator.config.sampling.to_dict(),
    }
    result = {"rows": rows, "settings": settings}
    return result, translated, judge.realism(translated)


def overview(source: np.ndarray, translated: np.ndarray, count: int) -> np.ndarray:
    """Some sources, evenly spread, above their translations: uint8 [h, w, c]."""
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    zoom = max(64 // source.shape[1], 1)
    return images.grid([source[chosen], translated[chosen]], zoom=zoom)


def ranked(
    source: np.ndarray, translated: np.ndarray, distance: Float[np.ndarray, "n"]
) -> np.ndarray:
    """The nearest to, about the median from and the farthest from the targets."""
    order, count = np.argsort(distance), min(RANKED, len(source))
    middle = (len(order) - count) // 2
    parts = {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[-count:],
    }
    sheets = []
    for name, chosen in parts.items():
        sheet = Image.fromarray(
            overview(source[chosen], translated[chosen], count).repeat(
                3 // source.shape[-1], axis=-1
            )
        )
        titled = Image.new("RGB", (sheet.width + 8, sheet.height + 16), "white")
        titled.paste(sheet, (4, 16))
        ImageDraw.Draw(titled).text((6, 2), name, fill="black")
        sheets.append(np.asarray(titled))
    return np.concatenate(sheets, axis=1)


def report(
    translator: export.Translator,
    splits: DataSet,
    folder: str | Path,
    *,
    directions: tuple[str, ...] | None = None,
    weights: Weights | None = None,
) -> None:
    """Prints the tables; writes evaluation.json and pictures into `folder`.

    Args:
      translator: what is judged.
      splits: whose test images are translated.
      folder: for evaluation.json, translations.png and ranked.png; those of the
        backward direction end in _backward.
      directions: all that were trained where None.
      weights: for FID, KID and LPIPS.
    """
    folder, results = Path(folder), {}
    if translator.config.data.kind == "known_plan":
        results["forward"] = known_plan_report.evaluate(translator, splits)
        _print("forward", results)
        _write(folder, results)
        return
    for direction in directions or translator.directions:
        result, translated, distance = evaluate(
            translator, splits, direction=direction, weights=weights
        )
        results[direction] = result
        _print(direction, results)
        if len(translator.shape) == 3 and parallel.is_leader():
            ending = "" if direction == "forward" else f"_{direction}"
            pair = turned(splits, direction).test_source, images.to_uint8(translated)
            pictures = {
                "translations": overview(*pair, translator.config.sampling.grid),
                "ranked": ranked(*pair, distance),
            }
            for name, picture in pictures.items():
                path = folder / f"{name}{ending}.png"
                images.write(path, picture)
                print(f"wrote {path}")
    _write(folder, results)


def _print(direction: str, results: dict) -> None:
    if len(results) > 1 or direction != "forward":
        print(f"{direction}:")
    print(measures.table(results[direction]["rows"]))


def _write(folder: Path, results: dict) -> None:
    if parallel.is_leader():
        path = folder / "evaluation.json"
        path.write_text(json.dumps(results, indent=2) + "\n")
        print(f"wrote {path}")


def run() -> int:
    """Evaluates the artefact that the command line names."""
    parser = argparse.ArgumentParser(description="Evaluates an artefact.")
    export.add_arguments(parser)
    parser.add_argument("--output", help="where to write (default: the artefact)")
    parser.add_argument("--data_path", help="instead of the config's data.path")
    parser.add_argument(
        "--direction", choices=export.DIRECTIONS, help="only this one of those trained"
    )
    parser.add_argument(
        "--inception", help="weights file for FID and KID (needs the extra fid)"
    )
    parser.add_argument("--lpips", help="weights file for LPIPS (needs the extra fid)")
    arguments = parser.parse_args()
    weights = Weights(arguments.inception, arguments.lpips)
    for path in (arguments.inception, arguments.lpips):
        if path and not Path(path).is_file():
            raise UserError(f"there is no file {path}; give the path of weights.")
    translator = export.load_named(arguments)
    if arguments.data_path:
        translator.config.data.path = arguments.data_path
    description = export.describe(arguments.export)
    print(f"step {description['step']}; plan: " + card.figures(description["plan"]))
    output = Path(arguments.output or arguments.export)
    output.mkdir(parents=True, exist_ok=True)
    report(
        translator,
        dataset.load(translator.config),
        output,
        directions=(arguments.direction,) if arguments.direction else None,
        weights=weights,
    )
    if output.samefile(arguments.export):
        card.write(output)
    return 0


if __name__ == "__main__":
    command.exit_after(run)
