"""Measures an artefact's translations of a test split, in numbers and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from eotjax import atomic, errors, parallel
from eotjax.artefact.translator import Translator
from eotjax.data import domains, images
from eotjax.data.domains import DataSet
from eotjax.evaluation import card, known_plan_report, measures
from eotjax.evaluation.judge import Judge, Weights, turned

RANKED = 5  # translations in each part of the picture of best, median and worst


class Evaluation(NamedTuple):
    """The measures, and the translations that they are of."""

    result: dict  # {"rows": {name: {measure: value}}, "settings": ...}
    translated: np.ndarray
    distance: Float[np.ndarray, "n"]  # to the nearest training target
    nearest: np.ndarray  # that target, where near is what the judge's features say


def evaluate(
    translator: Translator,
    splits: DataSet,
    *,
    direction: str = "forward",
    weights: Weights | None = None,
) -> Evaluation:
    """All measures of the translated test sources, beside the baselines'.

    `identity` changes nothing. `independent` answers with random training targets, the
    ideal of a model without a plan: its frechet is the floor a finite test set allows.
    """
    judge = Judge(translator, splits, direction, weights)
    translated = translator(judge.source, direction=direction, progress=True)
    seen = judge.look(translated)
    rows = {"eotjax": judge.row(translated, seen)}
    for name, y in (("identity", judge.source), ("independent", judge.independent)):
        rows[name] = judge.row(y, judge.look(y))
    settings = {
        "test_source": len(judge.source),
        "test_target": len(judge.target),
        "pca_components": judge.components,
        "data": card.data_name(translator.config.to_dict()),
        "sampling": translator.config.sampling.to_dict(),
    }
    return Evaluation(
        {"rows": rows, "settings": settings},
        translated,
        judge.realism(translated),
        judge.nearest(translated, seen),
    )


def overview(count: int, *rows: np.ndarray) -> np.ndarray:
    """Some of each row's images, evenly spread, one row below the other.

    Args:
      count: at most so many.
      *rows: uint8 [n, h, w, c]: sources, their translations, and more.
    """
    chosen = domains.evenly(len(rows[0]), count)
    zoom = max(64 // rows[0].shape[1], 1)
    return images.grid([row[chosen] for row in rows], zoom=zoom)


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
            overview(count, source[chosen], translated[chosen]).repeat(
                3 // source.shape[-1], axis=-1
            )
        )
        titled = Image.new("RGB", (sheet.width + 8, sheet.height + 16), "white")
        titled.paste(sheet, (4, 16))
        ImageDraw.Draw(titled).text((6, 2), name, fill="black")
        sheets.append(np.asarray(titled))
    return np.concatenate(sheets, axis=1)


def report(
    translator: Translator,
    splits: DataSet,
    folder: str | Path,
    *,
    directions: tuple[str, ...] | None = None,
    weights: Weights | None = None,
    earlier: Mapping[str, dict] | None = None,
) -> dict[str, np.ndarray]:
    """Prints the tables; writes evaluation.json and pictures into `folder`.

    Args:
      translator: what is judged.
      splits: whose test images are translated.
      folder: for evaluation.json, translations.png (sources, translations, the nearest
        training targets) and ranked.png; those backward end in _backward.
      directions: all that were trained where None.
      weights: of the networks that measure; None for none.
      earlier: results of other directions, which evaluation.json keeps.

    Returns:
      The translated test sources of each direction; none of known plans.

    Raises:
      UserError: a known plan is to be judged backward.
    """
    folder, results, translations = Path(folder), {}, {}
    if translator.config.data.kind == "known_plan":
        errors.require(
            directions in (None, ("forward",)),
            "a known plan is judged forward only; leave --direction=backward out.",
        )
        results["forward"] = known_plan_report.evaluate(translator, splits)
        print(measures.table(results["forward"]["rows"]))
        directions = ()
    elif directions is None:
        directions = translator.directions
    for direction in directions:
        found = evaluate(translator, splits, direction=direction, weights=weights)
        results[direction] = found.result
        translations[direction] = found.translated
        if len(results) > 1 or direction != "forward":
            print(f"{direction}:")
        print(measures.table(found.result["rows"]))
        if len(translator.shape) == 3 and parallel.is_leader():
            ending = "" if direction == "forward" else f"_{direction}"
            source = turned(splits, direction).source.test
            translated, nearest = map(
                images.to_uint8, (found.translated, found.nearest)
            )
            count = translator.config.sampling.grid
            pictures = {
                "translations": overview(count, source, translated, nearest),
                "ranked": ranked(source, translated, found.distance),
            }
            for name, picture in pictures.items():
                path = folder / f"{name}{ending}.png"
                images.write(path, picture)
                print(f"wrote {path}")
    if parallel.is_leader():
        path = folder / "evaluation.json"
        told = json.dumps({**(earlier or {}), **results}, indent=2)
        atomic.write_text(path, f"{told}\n")
        print(f"wrote {path}")
    return translations
