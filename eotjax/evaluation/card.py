"""The model card: README.md of an artefact, made from what lies beside it."""

import json
from collections.abc import Mapping
from pathlib import Path

from eotjax import atomic
from eotjax.artefact import export, stablehlo
from eotjax.errors import UserError, reason
from eotjax.evaluation import measures

NAME = "README.md"
PLAN = ("epsilon", "entropy", "transport_cost", "marginal_error")
ROWS = {  # of an evaluation: what answers there
    "eotjax": "is this model",
    "identity": "changes nothing",
    "independent": "answers with random targets",
    "exact": "draws from the true plan",
    "rows": "is the law of the plans of single batches",
}


def figures(plan: Mapping[str, float]) -> str:
    """What the plans of a run were like, in a line."""
    known = [f"{name} {plan[name]:.4g}" for name in PLAN if name in plan]
    return ", ".join(known) or "not recorded"


def data_name(config: Mapping) -> str:
    """What the data of a config is called."""
    data = config["data"]
    return data["name"] or Path(data["path"]).name or data["kind"]


def sampler(sampling: Mapping) -> str:
    """How translations are drawn, in words."""
    usual = {"guidance": 1, "temperature": 1, "restart": 0, "path": False}
    others = [
        f", {name} {sampling[name]:g}"
        for name, value in usual.items()
        if sampling.get(name, value) != value
    ]
    return f"{sampling['steps']} steps of `{sampling['solver']}`{''.join(others)}"


def autoencoder(description: Mapping) -> list[str]:
    """Whose latents the model works in, and under which licence they were given."""
    found = description.get("autoencoder")
    if not found:
        return []
    return [
        f"- **Autoencoder**: `{Path(found['weights']).name}`, frozen, licence "
        f"{found['license'] or 'unknown'}; its parameters are in autoencoder.npz"
    ]


def text(description: Mapping, evaluation: Mapping) -> str:
    """The card, in Markdown.

    Args:
      description: of the artefact's config.json.
      evaluation: of its evaluation.json; empty where there is none.
    """
    config, shape = description["config"], description["shape"]
    data, estimator, sampling = (
        config[group] for group in ("data", "estimator", "sampling")
    )
    both = estimator["direction"] == "both"
    of_images = len(shape) > 1
    things, arrays, warning = "vectors", "float32 [n, d]", ""
    tags = "optimal-transport, diffusion"
    if of_images:
        tags = f"image-to-image, {tags}"
        things, arrays = "images", "uint8 [n, h, w, c]"
        warning = ": it must not be taken for a photograph of what the source shows"
    source, target = data["train_source"], data["train_target"]
    name = data_name(config)
    lines = [
        "---",
        f"license: {description['license']}",
        "library_name: eotjax",
        f"tags: [{tags}]",
        "---",
        "",
        f"# {name}: {source} to {target}" + (" and back" if both else ""),
        "",
        "Unpaired translation, learnt by distilling entropic optimal transport into a "
        "diffusion model.",
        "",
        f"- **Data**: {data['kind']}, `{name}`; {'x'.join(map(str, shape))}",
        f"- **Training**: {description['step']} steps of {config['batch_size']} pairs, "
        f"seed {config['seed']}, estimator `{estimator['name']}`",
        *(
            [f"- **Begun from**: {begun}"]
            if (begun := description.get("begun"))
            else []
        ),
        f"- **Plan**: {figures(description['plan'])} (of the cost |x - y|^2 / 2; "
        "entropy 0 is a matching, 1 no plan)",
        f"- **Sampling**: {sampler(sampling)}",
        *autoencoder(description),
        "",
        "## Measures",
        "",
    ]
    for direction, result in evaluation.items():
        settings = result.get("settings", {})
        way = settings.get("sampling", sampling)
        tested = settings.get("data", name)
        lines += [
            f"{direction.capitalize()}, on the test sets of `{tested}`, by "
            f"{sampler(way)}:",
            "",
        ]
        lines += [measures.table(result["rows"]), ""]
    if not evaluation:
        lines += ["None yet: `python -m eotjax.evaluate --export=FOLDER`.", ""]
    shown = {name for result in evaluation.values() for name in result["rows"]}
    told = [f"`{name}` {does}" for name, does in ROWS.items() if name in shown]
    if told:
        lines += [", ".join(told) + ".", ""]
    lines += [
        "## Use",
        "",
        "```python",
        "import eotjax",
        "",
        'translator = eotjax.load("FOLDER")',
        f"targets = translator(sources, seed=0)  # {arrays}",
        "```",
        "",
        f"`{stablehlo.NAME}` is the same as a program that JAX alone runs. "
        "`config.json` has the SHA-256 of both.",
        "",
        "## Limits",
        "",
        f"It translates {things} like those of its training data. A translation is a "
        f"draw from a distribution, not a measurement{warning}.",
    ]
    return "\n".join(lines) + "\n"


def measured(folder: Path) -> dict[str, dict]:
    """What an artefact's evaluation.json says of each direction; nothing without.

    Raises:
      UserError: it is damaged.
    """
    path = folder / "evaluation.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({reason(error)}); remove it, and evaluate again."
        ) from error


def write(folder: str | Path) -> None:
    """Writes README.md into an artefact, from its config.json and evaluation.json."""
    folder = Path(folder)
    card = text(export.describe(folder), measured(folder))
    atomic.write_text(folder / NAME, card)


def there(folder: Path) -> bool:
    """Whether an artefact has its card, which a run writes last."""
    return (folder / NAME).exists()
