"""A run leaves what it promises, and says why it stops."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from runs import lines

import eotjax
from eotjax import parallel, prepare, train
from eotjax.artefact import export
from eotjax.errors import UserError
from eotjax.evaluation import classifier, judge


def test_a_run_leaves_all_that_it_promises(trained):
    assert json.loads((trained / "config.json").read_text())["steps"] == 4
    written = lines(trained)
    assert [line["step"] for line in written] == [2, 4]
    for line in written:
        assert {"loss", "grad_norm", "learning_rate", "plan/entropy"} <= line.keys()
        assert all(np.isfinite(value) for value in line.values())
        assert line["plan/converged"] == 1
        assert line["plan/transport_cost"] < line["plan/independent_cost"]
    assert (trained / "checkpoints" / "4").is_dir()
    for picture in ("samples/step_0000004.png", "export/translations.png"):
        with Image.open(trained / picture) as image:
            assert image.mode == "RGB" and image.width > image.height
    assert (trained / "export" / "params").is_dir()
    rows = json.loads((trained / "export" / "evaluation.json").read_text())["forward"][
        "rows"
    ]
    assert set(rows) == {"eotjax", "identity", "independent"}


def test_a_run_keeps_its_best_step(trained, smoke):
    (score,) = lines(trained, "scores")
    assert score["step"] == 4 and score["frechet"] > 0
    best, last = (eotjax.load(trained / name) for name in ("best", "export"))
    source = np.zeros((2, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(best(source), last(source))
    assert (trained / "best" / "evaluation.json").exists()


def test_the_best_step_is_the_one_of_the_lowest_score(
    vectors, tmp_path, monkeypatch, one_device
):
    values = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(judge, "selection", lambda *_: lambda *_: next(values))
    assert train.train(vectors(steps=6, sample_every=2), tmp_path / "run")
    scores = [line["frechet"] for line in lines(tmp_path / "run", "scores")]
    assert scores == [3.0, 1.0, 2.0]
    folders = [tmp_path / "run" / name for name in ("best", "export")]
    assert [export.describe(folder)["step"] for folder in folders] == [4, 6]
    for folder in folders:
        assert (folder / "evaluation.json").exists()
        assert "# vectors" in (folder / "README.md").read_text()


def test_the_best_step_is_chosen_by_a_classifiers_features(
    smoke, tmp_path, monkeypatch, interrupt, one_device
):
    """As photographs are judged, also after a restart."""

    def look(pixels):
        light = pixels.reshape(len(pixels), -1, 3).mean(1) / 255
        return classifier.Seen(np.float32(light), np.zeros(len(pixels), int))

    monkeypatch.setattr(classifier, "load", lambda *_: look)
    every_two = {"sample_every": 2, "checkpoint__every": 2}
    config = smoke(judge__classifier="any", **every_two)
    interrupt(3)
    assert not train.train(config, tmp_path)
    interrupt(None)
    assert train.train(config, tmp_path)
    scores = lines(tmp_path, "scores")
    assert [line["step"] for line in scores] == [2, 4]
    best = min(scores, key=lambda line: line["feature_kid"])
    assert export.describe(tmp_path / "best")["step"] == best["step"]
    report = json.loads((tmp_path / "export" / "evaluation.json").read_text())
    measured = report["forward"]["rows"]["eotjax"]
    assert measured["feature_kid"] == pytest.approx(scores[-1]["feature_kid"])


def test_a_step_that_no_device_can_hold_is_refused_before_it_is_run(
    smoke, tmp_path, monkeypatch
):
    abstract = []
    check = prepare.check_state
    monkeypatch.setattr(
        prepare, "check_state", lambda x, *y: (abstract.append(x), check(x, *y))
    )
    monkeypatch.setattr(parallel, "memory", lambda device: 2**10)
    with pytest.raises(UserError, match=r"the state of a run.* lower model\.width"):
        train.train(smoke(), tmp_path)
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    monkeypatch.setattr(parallel, "memory", lambda device: whole)
    with pytest.raises(
        UserError, match=r"needs 0\.\d GiB .* has 0\.0: lower batch_size"
    ):
        train.train(smoke(), tmp_path)


def test_a_whole_plan_that_was_not_solved_ends_the_run_before_its_first_step(
    vectors, tmp_path, one_device
):
    config = vectors(coupling__method="whole", coupling__max_marginal_error=1e-9)
    with pytest.raises(UserError, match=r"the whole plan's marginal error is .* raise"):
        train.train(config, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy(
    vectors, tmp_path, one_device
):
    config = vectors(optimizer__learning_rate=1e30, log_every=1)
    with pytest.raises(UserError, match=r"loss is (nan|inf).*optimizer\.learning_rate"):
        train.train(config, tmp_path)
    assert not (tmp_path / "export").exists()


def test_plans_that_fail_stop_the_run_with_a_remedy(vectors, tmp_path, one_device):
    config = vectors(coupling__max_iterations=1, coupling__epsilon=1e-6)
    with pytest.raises(UserError, match=r"marginal error.*raise coupling\.epsilon"):
        train.train(config, tmp_path)
    assert not (tmp_path / "export").exists()


def test_a_failing_run_leaves_no_traceback_of_its_checkpoints(
    vectors, tmp_path, command
):
    done = command(
        "eotjax.main",
        "--config=configs/npz.py:vectors,smoke",
        f"--config.data.path={vectors().data.path}",
        f"--workdir={tmp_path / 'run'}",
        *("--config.optimizer.learning_rate=1e30", "--config.log_every=1"),
        *("--config.checkpoint.every=1", "--config.steps=50"),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("eotjax: the loss is")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_profile_is_of_the_steps_after_the_first_ten(
    vectors, tmp_path, one_device, capsys
):
    with pytest.raises(UserError, match="profile is 3; give as many as there are of"):
        train.train(vectors(steps=12, profile=3), tmp_path)
    assert train.train(vectors(steps=14, profile=3), tmp_path)
    told = capsys.readouterr().out
    assert f"traced steps 11 to 13: {tmp_path / 'trace'}" in told
    assert re.search(r"^drawing and pairing: \d+\.\d% of a step$", told, re.MULTILINE)
    for name in ("*.xplane.pb", "perfetto_trace.json.gz"):
        (found,) = (tmp_path / "trace").rglob(name)
        assert found.stat().st_size > 1_000


def test_tensorboard_shows_the_numbers_of_metrics_jsonl(vectors, tmp_path, one_device):
    pytest.importorskip("tensorflow", reason="clu's writer needs TensorFlow")
    assert train.train(vectors(tensorboard=True), tmp_path)
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {
        event.step: float(tensor_util.make_ndarray(event.tensor_proto))
        for event in events.Tensors("loss")
    }
    assert shown == pytest.approx({x["step"]: x["loss"] for x in lines(tmp_path)})


def test_a_workdir_that_cannot_be_made_is_named(vectors, tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"{workdir} cannot be a run's folder"):
            train.train(vectors(), workdir)
