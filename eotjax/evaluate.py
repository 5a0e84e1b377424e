"""Evaluates an artefact on a test split: python -m eotjax.evaluate --export=FOLDER."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from eotjax import (
    command,
    cost_space,
    data,
    dataset,
    export,
    images,
    known_plan_report,
    moments,
    parallel,
)
from eotjax.data import DataSet

Row = dict[str, float]
PCA_IMAGES = 512  # training targets that the principal components are fitted on


def transport_cost(
    source: Float[np.ndarray, "n ..."], target: Float[np.ndarray, "n ..."]
) -> float:
    """Mean of |x - y|^2 / 2 over the pairs."""
    return float(
        np.mean(np.sum((source - target).reshape(len(source), -1) ** 2, 1)) / 2
    )


def frechet_distance(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "m k"]) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the sets' moments.

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson & Landau 1982).
    """
    half = moments.bures_wasserstein(moments.of(a, ddof=1), moments.of(b, ddof=1))
    return max(2 * float(half), 0.0)


def hue(rgb: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n"]:
    """The hue of each image's mean light, in degrees."""
    r, g, b = np.moveaxis((rgb + 1).mean((1, 2)), -1, 0)
    return np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)) % 360


def hue_error(
    source: Float[np.ndarray, "n h w 3"], target: Float[np.ndarray, "n h w 3"]
) -> float:
    """Median difference of the pairs' hues, 0 to 180 degrees; 90 where independent."""
    difference = np.abs(hue(source) - hue(target)) % 360
    return float(np.median(np.minimum(difference, 360 - difference)))


class Classifier:
    """Share of tinted images whose 3 nearest neighbours say they show the target."""

    def __init__(self, grey: np.ndarray, labels: np.ndarray, wanted: int):
        """Args: grey: uint8 [n, h, w, 1]. labels: [n]. wanted: the target's label."""
        from sklearn.neighbors import KNeighborsClassifier

        self._wanted = wanted
        self._neighbours = KNeighborsClassifier(3)
        self._neighbours.fit(images.to_float(grey).reshape(len(grey), -1), labels)

    def __call__(self, rgb: Float[np.ndarray, "n h w 3"]) -> float:
        light = rgb.max(-1).reshape(len(rgb), -1)
        return float(np.mean(self._neighbours.predict(light) == self._wanted))


def classifier(kind: str, splits: DataSet) -> Classifier:
    """Digits: knows all ten classes. Other data: source against target."""
    if kind == "digits":
        pixels, labels = data.digit_images(splits.test_source.shape[1:3])
        known = ~data.is_test_digit(labels)
        return Classifier(pixels[known], labels[known], wanted=3)
    source, target = (data.sample(x, 5_000) for x in splits[:2])
    labels = np.repeat([0, 1], [len(source), len(target)])
    return Classifier(np.concatenate([source, target]), labels, wanted=1)


def evaluate(translator: export.Translator, splits: DataSet) -> tuple[dict, np.ndarray]:
    """All metrics of the translated test sources, beside the baselines'.

    `identity` changes nothing. `independent` answers with random training targets, the
    ideal of a model without a plan: its frechet is the floor a finite test set allows.

    Returns:
      {"rows": {name: {metric: value}}, "settings": ...} and the translations.
    """
    config, is_image = translator.config, len(translator.shape) == 3
    to_float: Callable = images.to_float if is_image else np.asarray
    source, target = to_float(splits.test_source), to_float(splits.test_target)
    translated = translator(source, progress=True)

    known = data.sample(splits.train_target, max(PCA_IMAGES, len(source)))
    if is_image:
        if config.data.tint:
            known = dataset.tint_test(known)
        margins = [
            a - b for a, b in zip(known.shape[1:3], source.shape[1:3], strict=True)
        ]
        top, left = margins[0] // 2, margins[1] // 2
        known = to_float(known[:, top:, left:][:, : source.shape[1], : source.shape[2]])
    shuffled = np.random.default_rng(0).permutation(len(known))
    independent = known[np.resize(shuffled, len(source))]

    flat = known[shuffled[:PCA_IMAGES]].reshape(-1, int(np.prod(known.shape[1:])))
    smallest = min(len(source), len(target))
    components = max(min(32, smallest // 3, *flat.shape), 1)
    mean, directions = cost_space.principal_components(flat, components)

    def features(x: np.ndarray) -> np.ndarray:
        return (x.reshape(len(x), -1) - mean) @ directions

    classify = classifier(config.data.kind, splits) if config.data.tint else None

    def row(y: np.ndarray) -> Row:
        values = {"transport_cost": transport_cost(source, y)}
        if smallest > 1:
            values["frechet"] = frechet_distance(features(y), features(target))
        if classify is not None:
            values["class_accuracy"] = classify(y)
            values["hue_error"] = hue_error(source, y)
        return values

    rows = {
        "eotjax": row(translated),
        "identity": row(source),
        "independent": row(independent),
    }
    settings = {
        "test_source": len(source),
        "test_target": len(target),
        "pca_components": components,
        "sampling": config.sampling.to_dict(),
    }
    return {"rows": rows, "settings": settings}, translated


def table(rows: dict[str, Row]) -> str:
    """Rows of metrics, right-aligned, for a terminal or a Markdown file."""
    names = list(next(iter(rows.values())))
    lines = [["", *names]]
    lines += [
        [key, *(f"{row[name]:.4g}" for name in names)] for key, row in rows.items()
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join(text)


def report(translator: export.Translator, splits: DataSet, folder: str | Path) -> None:
    """Prints the table; writes evaluation.json and translations.png into `folder`."""
    folder = Path(folder)
    if translator.config.data.kind == "known_plan":
        result, translated = known_plan_report.evaluate(translator, splits), None
    else:
        result, translated = evaluate(translator, splits)
    if not parallel.is_leader():
        return
    print(table(result["rows"]))
    (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {folder / 'evaluation.json'}")
    if translated is not None and len(translator.shape) == 3:
        shown = min(translator.config.sampling.grid, len(translated))
        chosen = np.linspace(0, len(translated) - 1, shown).astype(int)
        rows = [splits.test_source[chosen], images.to_uint8(translated[chosen])]
        picture = images.grid(rows, zoom=max(64 // translator.shape[0], 1))
        images.write(folder / "translations.png", picture)
        print(f"wrote {folder / 'translations.png'}")


def run() -> int:
    """Evaluates the artefact that the command line names."""
    parser = argparse.ArgumentParser(description="Evaluates an artefact.")
    export.add_arguments(parser)
    parser.add_argument("--output", help="where to write (default: the artefact)")
    parser.add_argument("--data_path", help="instead of the config's data.path")
    arguments = parser.parse_args()
    translator = export.load_named(arguments)
    if arguments.data_path:
        translator.config.data.path = arguments.data_path
    output = Path(arguments.output or arguments.export)
    output.mkdir(parents=True, exist_ok=True)
    report(translator, dataset.load(translator.config), output)
    return 0


if __name__ == "__main__":
    command.exit_after(run)
