"""Metrics give the known answers on data whose answers are known."""

import colorsys
import dataclasses
import json
import shutil

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.spatial
from PIL import Image

import eotjax
from eotjax import evaluate as command
from eotjax import train
from eotjax.build import dataset
from eotjax.data import images
from eotjax.evaluation import evaluate, judge, measures
from eotjax.transport import cost

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_draws(monkeypatch):
    """Whatever tests ran before."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def random_covariance(dimension, rng):
    root = rng.standard_normal((dimension, dimension))
    return root @ root.T / dimension + 0.1 * np.eye(dimension)


def gaussian_distance(mean_a, a, mean_b, b):
    """Squared Bures-Wasserstein distance, by SciPy's matrix square root."""
    root = scipy.linalg.sqrtm(a)
    cross = scipy.linalg.sqrtm(root @ b @ root).real
    return np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2 * cross)


@pytest.mark.parametrize("dimension", [1, 2, 8])
def test_frechet_distance_is_that_of_the_gaussians_the_samples_came_from(dimension):
    rng = np.random.default_rng(dimension)
    n = 100_000
    means = rng.standard_normal((2, dimension))
    covariances = [random_covariance(dimension, rng) for _ in range(2)]
    a, b = (
        rng.multivariate_normal(mean, covariance, n)
        for mean, covariance in zip(means, covariances, strict=True)
    )
    expected = gaussian_distance(means[0], covariances[0], means[1], covariances[1])
    assert measures.frechet_distance(a, b) == pytest.approx(expected, rel=0.02)


def test_frechet_distance_of_a_set_to_itself_is_zero_and_to_its_shift_the_shift():
    x = RNG.standard_normal((50, 4))
    shift = np.array([3.0, 0, -4.0, 0])
    assert measures.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert measures.frechet_distance(x, x + shift) == pytest.approx(25)


def test_frechet_distance_of_fewer_samples_than_dimensions_is_finite():
    x, y = RNG.standard_normal((2, 3, 10))
    assert np.isfinite(measures.frechet_distance(x, y))


def tinted(degrees, shape=(4, 4)):
    """Random light of the given hues, by the standard library, in [-1, 1]."""
    hues = [colorsys.hsv_to_rgb(d / 360 % 1, 1, 1) for d in degrees]
    light = RNG.uniform(0.1, 1, (len(hues), *shape, 1))
    return np.float32(2 * light * np.array(hues)[:, None, None] - 1)


def test_the_hue_of_an_image_is_the_one_it_was_tinted_with():
    degrees = np.arange(0, 360, 7.5)
    difference = np.abs(measures.hue(tinted(degrees)) - degrees)
    assert np.minimum(difference, 360 - difference).max() < 5  # 60 degrees: exact


@pytest.mark.parametrize(
    ("first", "second", "error"),
    [
        ([0, 120, 240], [0, 120, 240], 0),
        ([0, 120, 240], [60, 180, 300], 60),
        ([300, 300, 300], [60, 60, 60], 120),  # across red, not 240
        ([0, 0, 0], [180, 180, 180], 180),
        ([0, 0, 0], [0, 60, 180], 60),  # the median
    ],
)
def test_hue_error_is_the_shorter_way_round_the_circle(first, second, error):
    found = measures.hue_error(tinted(first), tinted(second))
    assert found == pytest.approx(error, abs=0.1)


def test_independent_hues_have_an_error_of_90_degrees():
    a, b = (tinted(RNG.uniform(0, 360, 4_000), (1, 1)) for _ in range(2))
    assert measures.hue_error(a, b) == pytest.approx(90, abs=4)


def test_transport_cost_is_half_the_mean_squared_distance():
    x = np.zeros((2, 2, 2, 1), np.float32)
    y = x.copy()
    y[0] = 1.0  # |x - y|^2 = 4
    assert measures.transport_cost(x, y) == 1.0
    assert measures.transport_cost(y, y) == 0.0


def test_principal_components_span_what_varies():
    directions = np.linalg.qr(RNG.standard_normal((6, 2)))[0]
    x = 5 + RNG.standard_normal((200, 2)) * [3, 1] @ directions.T
    mean, found = cost.principal_components(x, 2)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(found.T @ found, np.eye(2), atol=1e-9)
    np.testing.assert_allclose((x - mean) @ found @ found.T, x - mean, atol=1e-9)
    variances = ((x - mean) @ found).var(0)
    assert variances[0] > variances[1]


@pytest.fixture(scope="module")
def digits():
    from configs import digits

    config = digits.get_config()
    return config, dataset.load(config)


def test_the_classifier_knows_threes_from_twos_whatever_their_tint(digits):
    _, splits = digits
    classify = judge.classifier("digits", splits, "forward")
    twos, threes = (
        np.float32(x / 127.5 - 1) for x in (splits.source.test, splits.target.test)
    )
    assert classify(threes) > 0.9  # 3 of the 45 are hard to tell from 7 and 9
    assert classify(twos) < 0.03


def test_the_classifier_of_other_data_tells_target_from_source(digits):
    _, splits = digits
    classify = judge.classifier("folder", splits, "forward")
    assert classify(np.float32(splits.target.test / 127.5 - 1)) > 0.95
    assert classify(np.float32(splits.source.test / 127.5 - 1)) < 0.05


def test_the_classifier_looks_at_training_images_without_their_margin(digits):
    _, splits = digits
    pads = ((0, 0), (3, 3), (3, 3), (0, 0))
    source, target = (np.pad(x, pads, constant_values=7) for x in splits.train)
    larger = splits._replace(
        source=splits.source._replace(train=source),
        target=splits.target._replace(train=target),
    )
    classify = judge.classifier("folder", larger, "forward")
    assert classify(np.float32(splits.target.test / 127.5 - 1)) > 0.95


def test_the_baselines_of_a_run_have_their_known_values(trained):
    rows = json.loads((trained / "export" / "evaluation.json").read_text())["forward"][
        "rows"
    ]
    assert rows["identity"]["transport_cost"] == 0
    assert rows["identity"]["hue_error"] == 0
    assert rows["identity"]["class_accuracy"] < 0.05
    assert rows["independent"]["class_accuracy"] > 0.95
    assert rows["independent"]["hue_error"] == pytest.approx(90, abs=15)
    assert rows["independent"]["frechet"] < rows["identity"]["frechet"]


def ssim_of_scipy(a, b):
    """Wang et al. 2004 on light in [0, 255], windows of a Gaussian, by SciPy."""

    def blurred(x):
        window = {"sigma": 1.5, "truncate": 5 / 1.5}
        return scipy.ndimage.gaussian_filter(x, **window)[5:-5, 5:-5]

    def covariance(x, y):
        return blurred(x * y) - blurred(x) * blurred(y)

    luminance, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    means = blurred(a), blurred(b)
    top = (2 * means[0] * means[1] + luminance) * (2 * covariance(a, b) + contrast)
    below = (means[0] ** 2 + means[1] ** 2 + luminance) * (
        covariance(a, a) + covariance(b, b) + contrast
    )
    return np.mean(top / below)


@pytest.mark.parametrize("lights", [(90, 90), (140, 115), (30, 220)])
def test_structure_is_the_similarity_of_wang_et_al(lights):
    rng = np.random.default_rng(1)
    shared, own = rng.uniform(-20, 20, (2, 40, 32))
    a, b = (light + shared + i * own for i, light in enumerate(lights))
    pair = [np.float32(x / 127.5 - 1)[None, :, :, None] for x in (a, b)]
    assert measures.structure(*pair) == pytest.approx(ssim_of_scipy(a, b), abs=1e-3)


def test_structure_falls_with_noise_and_is_blind_to_colour():
    rng = np.random.default_rng(0)
    x = np.float32(rng.uniform(-1, 1, (3, 24, 20, 3)))
    assert measures.structure(x, x) == pytest.approx(1, abs=1e-5)
    tinted_x = x[..., ::-1].copy()  # the same light
    assert measures.structure(x, tinted_x) == pytest.approx(1, abs=1e-4)
    noise = np.float32(rng.uniform(-1, 1, x.shape))
    values = [measures.structure(x, (1 - s) * x + s * noise) for s in (0.1, 0.4, 1.0)]
    assert 1 > values[0] > values[1] > values[2]
    assert abs(values[2]) < 0.1


def test_the_nearest_distance_is_scipys():
    a, b = RNG.standard_normal((2, 20, 4))
    expected = scipy.spatial.distance.cdist(a, b).min(1)
    np.testing.assert_allclose(measures.nearest(a, b)[0], expected)


def test_ranked_translations_run_from_best_to_worst():
    distance = np.array([3.0, 0.0, 9.0, 1.0, 5.0])
    source = np.zeros((5, 4, 4, 1), np.uint8)
    translated = (source + 20 * np.arange(5)[:, None, None, None]).astype(np.uint8)
    picture = evaluate.ranked(source, translated, distance)
    seen = [int(v) for v in dict.fromkeys(picture[110, ::8, 0]) if v not in (0, 255)]
    assert seen == [20, 60, 80, 40]  # (the image of distance 3 is black)


def test_a_tiny_test_set_is_evaluated_too(vectors, tmp_path, one_device):
    config = vectors(steps=1)
    with np.load(config.data.path) as arrays:
        one = dict(arrays) | {k: arrays[k][:1] for k in ("testA", "testB")}
    np.savez(config.data.path, **one)
    assert train.train(config, tmp_path / "run")
    path = tmp_path / "run" / "export" / "evaluation.json"
    rows = json.loads(path.read_text())["forward"]["rows"]
    assert np.isfinite(rows["eotjax"]["transport_cost"])


def test_images_that_are_cropped_in_training_are_evaluated_at_their_size(
    smoke, image_folder, tmp_path
):
    """The training images, larger by a margin, give the independent answers."""
    from eotjax import parallel
    from eotjax.build import wiring

    config = smoke(
        data__kind="folder",
        data__path=str(image_folder),
        data__channels=3,
        data__tint=False,
        data__image_size=(8, 12),
        data__crop_margin=3,
    )
    splits = dataset.load(config)

    class Same(eotjax.Translator):
        def __call__(self, source, **_):
            return source

    sample = wiring.sampling(config, (8, 12, 3), parallel.make_mesh())
    translator = Same(config, (8, 12, 3), {}, sample)
    result, translated, *_ = evaluate.evaluate(translator, splits)
    np.testing.assert_allclose(translated, splits.source.test / 127.5 - 1, atol=1e-6)
    assert result["rows"]["eotjax"] == result["rows"]["identity"]
    assert result["rows"]["independent"]["transport_cost"] > 0


def test_the_table_shows_every_value_in_its_place():
    rows = {
        "eotjax": {"cost": 1.23456, "error": 12345.678},
        "independent": {"cost": 0.0, "error": 90.0},
    }
    lines = measures.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["", "cost", "error"]
    assert all(cell.endswith("-:") for cell in cells[1])  # Markdown, right-aligned
    assert cells[2] == ["eotjax", "1.235", "1.235e+04"]
    assert cells[3] == ["independent", "0", "90"]


def test_the_command_evaluates_with_another_solver_into_another_folder(
    trained, tmp_path, monkeypatch, capsys
):
    artefact = shutil.copytree(trained / "export", tmp_path / "export")
    before = (artefact / "evaluation.json").read_bytes()
    arguments = ["--export", artefact, "--output", tmp_path / "out"]
    options = ["--solver", "ddim", "--steps", "1"]
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, arguments), *options])
    assert command.run() == 0
    said = capsys.readouterr().out
    assert "independent" in said and "may have been trained on" not in said
    assert (artefact / "evaluation.json").read_bytes() == before
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())["forward"]
    assert result["settings"]["sampling"]["steps"] == 1
    assert result["settings"]["sampling"]["solver"] == "ddim"
    assert (
        result["rows"]["identity"] == json.loads(before)["forward"]["rows"]["identity"]
    )
    assert (tmp_path / "out" / "translations.png").exists()
    assert eotjax.load(artefact).config.sampling.steps == 2

    monkeypatch.setattr("sys.argv", ["evaluate", f"--export={artefact}", *options])
    assert command.run() == 0
    card = (artefact / "README.md").read_text()
    assert "on the test sets of `digits`, by 1 steps of `ddim`:" in card
    assert "- **Sampling**: 2 steps of `ancestral`" in card  # what it was made for


def test_test_images_that_may_have_been_trained_on_are_told_of(
    vectors, tmp_path, monkeypatch, capsys, one_device
):
    config = vectors(steps=1)
    with np.load(config.data.path) as arrays:
        training = {name: arrays[name] for name in ("trainA", "trainB")}
    np.savez(config.data.path, **training)  # a tenth of them is held out
    assert train.train(config, tmp_path / "run")
    where = ("--export", str(tmp_path / "run" / "export"))
    monkeypatch.setattr("sys.argv", ["evaluate", *where])
    for changes, told in (({}, False), ({"trainA": training["trainA"][::-1]}, True)):
        np.savez(config.data.path, **training | changes)
        capsys.readouterr()
        assert command.run() == 0
        assert ("may have been trained on" in capsys.readouterr().out) == told


def test_both_directions_are_exported_and_judged_each_by_its_own_targets(
    smoke, tmp_path, monkeypatch
):
    assert train.train(smoke(estimator__direction="both"), tmp_path)
    folder = tmp_path / "export"
    found = json.loads((folder / "evaluation.json").read_text())
    assert found.keys() == {"forward", "backward"}
    there, back = (found[way]["rows"] for way in ("forward", "backward"))
    # Twos are no threes and threes no twos, but each other's targets are.
    for rows in (there, back):
        assert rows["identity"]["class_accuracy"] < 0.05
        assert rows["independent"]["class_accuracy"] > 0.95
    assert found["forward"]["settings"]["test_source"] == 176
    assert found["backward"]["settings"]["test_source"] == 180
    for name in ("translations", "ranked"):
        assert (folder / f"{name}.png").exists()
        assert (folder / f"{name}_backward.png").exists()
    for way in ("forward", "backward"):
        assert len(list((folder / "examples" / way).glob("*.png"))) == 8
    with Image.open(folder / "examples" / "backward" / "00.png") as example:
        first = dataset.load(smoke()).target.test[0]
        np.testing.assert_array_equal(np.asarray(example), first)
    assert "and back" in (folder / "README.md").read_text()
    options = [f"--export={folder}", "--direction=backward", "--steps=1"]
    monkeypatch.setattr("sys.argv", ["evaluate", *options])
    assert command.run() == 0
    again = json.loads((folder / "evaluation.json").read_text())
    assert again["forward"] == found["forward"]
    assert again["backward"]["settings"]["sampling"]["steps"] == 1


def test_weights_add_the_measures_that_need_them(trained, digits, monkeypatch):
    _, splits = digits
    seen = []

    def distribution(translated, target, weights):
        seen.append((translated, target, weights))
        return {"fid": 1.0, "kid": 2.0}

    def lpips(source, translated, weights):
        seen.append((source, translated, weights))
        return np.array([1.0, 3.0])

    monkeypatch.setattr(judge.fidelity, "distribution", distribution)
    monkeypatch.setattr(judge.fidelity, "lpips", lpips)
    translator = eotjax.load(trained / "export")
    weights = judge.Weights(inception="i.pth", lpips="l.pth")
    judging = judge.Judge(translator, splits, weights=weights)
    y = judging.independent
    row = judging.row(y, judging.look(y))
    assert (row["fid"], row["kid"], row["lpips"]) == (1.0, 2.0, 2.0)
    (made, wanted, inception), (source, again, file) = seen
    np.testing.assert_array_equal(made, images.to_uint8(y))
    np.testing.assert_array_equal(wanted, splits.target.test)
    np.testing.assert_array_equal(source, splits.source.test)
    np.testing.assert_array_equal(again, images.to_uint8(y))
    assert (inception, file) == ("i.pth", "l.pth")


def test_the_command_changes_what_it_is_given_and_nothing_else(
    trained, tmp_path, monkeypatch
):
    given = []

    def report(translator, splits, folder, *, directions, weights, earlier):
        given.append(weights)

    def asked(*options):
        where = [f"--export={trained / 'export'}", f"--output={tmp_path}"]
        monkeypatch.setattr("sys.argv", ["evaluate", *where, *options])
        command.run()
        return given.pop()

    monkeypatch.setattr(command.evaluate, "report", report)
    of_run = judge.Weights(classifier="a", classifier_weights="a.pth", wanted=340)
    monkeypatch.setattr(command.Weights, "of", lambda config: of_run)
    monkeypatch.setattr(judge.classifiers, "load", lambda *names: names)
    assert asked() == of_run
    other = tmp_path / "b.pth"
    other.touch()
    assert asked(f"--classifier_weights={other}").classifier_weights == str(other)
    assert asked("--wanted=1") == dataclasses.replace(of_run, wanted=1)
    none = dataclasses.replace(of_run, classifier="", classifier_weights="")
    assert asked("--classifier=") == none
    assert asked("--classifier=b") == dataclasses.replace(none, classifier="b")


def test_vectors_are_measured_by_no_classifier(vectors, tmp_path):
    with pytest.raises(eotjax.UserError, match="vectors, which no classifier sees"):
        train.train(vectors(judge__classifier="efficientnet-lite0"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_file_of_weights_is_told_before_anything_is_loaded(
    tmp_path, monkeypatch
):
    arguments = ["evaluate", "--export", "nowhere", "--inception", "none.pth"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(eotjax.UserError, match=r"no file none\.pth"):
        command.run()


def test_the_best_step_is_chosen_by_validation_images(vectors):
    config, asked = vectors(data__validation=0.2), []
    splits = dataset.load(config)

    class Same(eotjax.Translator):
        def __call__(self, x, **_):
            asked.append(x)
            return x

    same = Same(config, (3,), {}, lambda *_: None)
    score = judge.selection(same, splits, judge.Weights())
    score(same, {"forward": splits.source.test})
    np.testing.assert_array_equal(asked[0], splits.source.valid)
