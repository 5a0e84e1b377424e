"""The model card says what lies beside it."""

import json
import shutil

import pytest

from eotjax.artefact import export
from eotjax.errors import UserError
from eotjax.evaluation import card


def test_a_card_tells_the_data_the_steps_the_plan_the_measures_and_the_licence(trained):
    text = (trained / "export" / "README.md").read_text()
    description = export.describe(trained / "export")
    plan = description["plan"]
    assert text.startswith("---\nlicense: unknown\n")
    for words in (
        "4 steps of 8 pairs",
        "16x16x3",
        f"epsilon {plan['epsilon']:.4g}, entropy {plan['entropy']:.4g}",
        "2 steps of `ancestral`",
    ):
        assert words in text
    rows = json.loads((trained / "export" / "evaluation.json").read_text())["forward"]
    for name, row in rows["rows"].items():
        (line,) = (
            line for line in text.splitlines() if line.startswith(f"| {name:>11}")
        )
        assert [float(cell) for cell in line.split("|")[2:-1]] == [
            float(f"{value:.4g}") for value in row.values()
        ]


def test_a_card_of_vectors_speaks_of_no_images(trained):
    description = export.describe(trained / "export") | {"shape": [2]}
    rows = {"eotjax": {"cbw2_uvp": 1.0}, "exact": {"cbw2_uvp": 0.1}}
    text = card.text(description, {"forward": {"rows": rows}})
    assert "`exact` draws from the true plan." in text
    assert "float32 [n, d]" in text
    for word in ("identity", "image-to-image", "images", "photograph"):
        assert word not in text


def test_a_card_without_an_evaluation_says_how_to_make_one(trained):
    text = card.text(export.describe(trained / "export"), {})
    assert "eotjax.evaluate" in text and "|" not in text.split("## Use")[0][600:]


def test_the_licence_is_the_configs(trained):
    description = export.describe(trained / "export") | {"license": "cc-by-4.0"}
    assert "license: cc-by-4.0\n" in card.text(description, {})


def test_names_that_are_no_text_are_written_all_the_same(trained, tmp_path):
    artefact = shutil.copytree(trained / "export", tmp_path / "export")
    path = artefact / "config.json"
    description = json.loads(path.read_text())
    description["config"]["data"] |= {"kind": "folder", "path": "/caf\udce9"}
    path.write_text(json.dumps(description))
    card.write(artefact)
    assert "caf\\udce9" in (artefact / "README.md").read_text()


def test_all_that_makes_the_sampler_another_is_told(trained):
    sampling = export.describe(trained / "export")["config"]["sampling"]
    assert card.sampler(sampling) == "2 steps of `ancestral`"
    told = card.sampler(sampling | {"guidance": 1.5, "restart": 0.5, "path": True})
    assert told == "2 steps of `ancestral`, guidance 1.5, restart 0.5, path 1"


def test_a_damaged_evaluation_is_named(tmp_path):
    (tmp_path / "evaluation.json").write_text('{"forward": ')
    with pytest.raises(UserError, match=r"evaluation\.json is damaged .* remove it"):
        card.measured(tmp_path)
