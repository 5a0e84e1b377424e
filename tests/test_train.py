"""A run leaves what it promises, goes on where it was, and says why it stops."""

import json
import re
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from runs import final_state, lines

import eotjax
from eotjax import export as command
from eotjax import parallel, prepare, train
from eotjax.artefact import export
from eotjax.artefact.translator import Translator
from eotjax.build import dataset
from eotjax.data import images
from eotjax.diffusion import noise
from eotjax.errors import UserError
from eotjax.evaluation import judge
from eotjax.training import refit
from eotjax.training.checkpoint import Checkpoints
from eotjax.transport import whole

BOTH_WAYS = {  # a bridge that saves only where it must
    "checkpoint__every": 1_000,
    "estimator__name": "bridge",
    "estimator__direction": "both",
}


def files(folder):
    """The contents of the files that eotjax itself writes, without orbax's."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in ("*", "samples/*", "export/*")
        for path in folder.glob(pattern)
        if path.is_file()
    }


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


def test_the_best_step_is_the_one_of_the_lowest_score(vectors, tmp_path, monkeypatch):
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


def test_the_best_step_is_of_this_run(vectors, tmp_path, monkeypatch, interrupt):
    """Where going back drops the score of what RUN/best holds, it counts no more."""
    values = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(judge, "selection", lambda *_: lambda *_: next(values))
    config = vectors(steps=6, sample_every=2, checkpoint__every=2, checkpoint__keep=5)
    interrupt(5)
    assert not train.train(config, tmp_path)
    assert train.step_of_best(tmp_path) == 4
    for later in ("4", "5"):
        shutil.rmtree(tmp_path / "checkpoints" / later, ignore_errors=True)
    values = iter([4.0, 2.0])
    interrupt(None)
    assert train.train(config, tmp_path)
    assert [line["frechet"] for line in lines(tmp_path, "scores")] == [3.0, 4.0, 2.0]
    assert train.step_of_best(tmp_path) == 6


def test_scores_of_another_sampler_do_not_choose_the_best_step(
    vectors, tmp_path, monkeypatch, interrupt
):
    values = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(judge, "selection", lambda *_: lambda *_: next(values))
    config = vectors(steps=6, sample_every=2, checkpoint__every=2)
    interrupt(3)
    assert not train.train(config, tmp_path)
    assert train.step_of_best(tmp_path) == 2
    config.sampling.batch_size *= 2  # which changes no sample
    interrupt(5)
    assert not train.train(config, tmp_path)
    assert train.step_of_best(tmp_path) == 2
    config.sampling.steps += 1
    interrupt(None)
    assert train.train(config, tmp_path)
    assert train.step_of_best(tmp_path) == 6


def test_parameters_lie_in_the_best_steps_folder_once(trained):
    sizes = {
        name: sum(
            path.stat().st_size for path in (trained / name / "params").rglob("*")
        )
        for name in ("best", "export")
    }
    assert sizes["best"] < 1.5 * sizes["export"]


def test_the_last_step_translates_its_test_images_once(smoke, tmp_path, monkeypatch):
    asked, call = [], Translator.__call__
    monkeypatch.setattr(
        Translator,
        "__call__",
        lambda self, x, **rest: asked.append(len(x)) or call(self, x, **rest),
    )
    assert train.train(smoke(), tmp_path)
    assert asked == [len(dataset.load(smoke()).test_source)]


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


def test_a_finished_run_that_is_started_again_changes_nothing(trained, smoke, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(trained, again)
    assert train.train(smoke(), again)
    before, after = files(trained), files(again)
    assert len(before) >= 6 and before == after
    states = [final_state(smoke(), workdir) for workdir in (trained, again)]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.fixture
def one_device(monkeypatch):
    """Many steps on many devices take long on few cores."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)


def test_200_steps_equal_100_a_restart_and_100(
    vectors, tmp_path, interrupt, capsys, one_device
):
    rare = {"sample_every": 1_000, "checkpoint__every": 1_000}
    config = vectors(steps=200, log_every=50, **rare)
    interrupt(None)
    assert train.train(config, tmp_path / "whole")
    interrupt(100)
    assert not train.train(config, tmp_path / "cut")
    assert "stopped at step 100" in capsys.readouterr().out
    assert not (tmp_path / "cut" / "export").exists()
    interrupt(None)
    assert train.train(config, tmp_path / "cut")
    assert "going on from step 100" in capsys.readouterr().out

    states = [final_state(config, tmp_path / name) for name in ("whole", "cut")]
    assert states[0].step == 200
    jax.tree.map(np.testing.assert_array_equal, *states)
    whole, cut = lines(tmp_path / "whole"), lines(tmp_path / "cut")
    assert [x["step"] for x in whole] == [x["step"] for x in cut] == [50, 100, 150, 200]
    for a, b in zip(whole, cut, strict=True):
        assert a["loss"] == b["loss"]


LARGE = {
    "whole": {"coupling__method": "whole"},
    "several steps": {"coupling__group_size": 16, "coupling__draws": 3},
}


@pytest.mark.parametrize("changes", list(LARGE.values()), ids=list(LARGE))
def test_a_plan_that_outlasts_a_step_outlasts_a_restart(
    vectors, tmp_path, interrupt, one_device, changes
):
    config = vectors(steps=8, checkpoint__every=1_000, **changes)
    interrupt(None)
    assert train.train(config, tmp_path / "whole")
    interrupt(3)
    assert not train.train(config, tmp_path / "cut")
    interrupt(None)
    assert train.train(config, tmp_path / "cut")
    states = [final_state(config, tmp_path / name) for name in ("whole", "cut")]
    assert states[0].held.stats.converged == 1
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_pairs_that_a_bridge_makes_outlast_a_restart(
    vectors, tmp_path, interrupt, one_device
):
    """Made after 4 steps and 6; the run is stopped before either, or between them."""
    own = {"refit__after": 4, "refit__every": 2, "refit__copies": 2, "refit__steps": 3}
    config = vectors(steps=8, sample_every=8, **BOTH_WAYS, **own)
    interrupt(None)
    assert train.train(config, tmp_path / "whole")
    whole = final_state(config, tmp_path / "whole")
    moved = jax.tree.map(np.array_equal, whole.maker, whole.ema_params)
    assert not all(jax.tree.leaves(moved))  # those of step 6
    for stop in (4, 7):
        interrupt(stop)
        assert not train.train(config, tmp_path / f"cut{stop}")
        interrupt(None)
        assert train.train(config, tmp_path / f"cut{stop}")
        cut = final_state(config, tmp_path / f"cut{stop}")
        jax.tree.map(np.testing.assert_array_equal, whole, cut)
    config.refit.after = 0
    assert train.train(config, tmp_path / "plan")
    assert lines(tmp_path / "plan")[-1]["loss"] != lines(tmp_path / "whole")[-1]["loss"]


def test_a_signal_while_pairs_are_made_loses_no_step(vectors, tmp_path, monkeypatch):
    own = {"refit__after": 3, "refit__steps": 2}
    config = vectors(steps=4, log_every=1, **BOTH_WAYS, **own)
    report = refit.Progress.update

    def signalled(self, count):
        report(self, count)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(refit.Progress, "update", signalled)
        assert not train.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]
    assert train.train(config, tmp_path / "run")


def test_a_signal_while_the_last_state_is_saved_is_heard(
    vectors, tmp_path, monkeypatch
):
    close = Checkpoints.close

    def signalled(self):
        close(self)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "close", signalled)
    assert not train.train(vectors(steps=2), tmp_path / "run")
    assert not (tmp_path / "run" / "export").exists()


def test_noise_like_the_images_is_measured_once_and_exported(
    smoke, tmp_path, interrupt, monkeypatch
):
    config = smoke(estimator__name="bridge", estimator__noise="images")
    interrupt(2)
    assert not train.train(config, tmp_path)
    interrupt(None)
    monkeypatch.delattr(noise, "of_images")
    assert train.train(config, tmp_path)
    kept = json.loads((tmp_path / "plan.json").read_text())["spectrum"]
    loaded = eotjax.load(tmp_path / "export").config.estimator
    assert loaded.spectrum == kept
    assert noise.from_text(kept).root.shape[1:] == (3, 3)


def test_a_whole_plan_is_solved_once_and_kept_before_the_first_step(
    vectors, tmp_path, interrupt, one_device, monkeypatch
):
    config = vectors(coupling__method="whole", coupling__relative="", steps=2)
    config.coupling.epsilon = 1.0
    interrupt(1)
    assert not train.train(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    monkeypatch.setattr(whole, "solve", lambda *_, **__: pytest.fail("again"))
    interrupt(None)
    assert train.train(config, tmp_path)
    assert lines(tmp_path)[-1]["plan/converged"] == 1


def test_a_whole_plan_that_was_not_solved_ends_the_run_before_its_first_step(
    vectors, tmp_path, one_device
):
    config = vectors(coupling__method="whole", coupling__max_marginal_error=1e-9)
    with pytest.raises(UserError, match=r"the whole plan's marginal error is .* raise"):
        train.train(config, tmp_path)


def test_the_newest_state_of_a_stopped_run_can_be_exported(
    trained, smoke, tmp_path, interrupt, monkeypatch, capsys
):
    run = tmp_path / "run"
    interrupt(2)
    assert not train.train(smoke(), run)
    monkeypatch.setattr(sys, "argv", ["export", f"--workdir={run}"])
    assert command.run() == 0
    assert f"exported step 2 to {run / 'newest'}" in capsys.readouterr().out
    state = final_state(smoke(), run)
    found = eotjax.load(run / "newest")
    jax.tree.map(np.testing.assert_array_equal, found._params, state.ema_params)
    assert "# digits" in (run / "newest" / "README.md").read_text()
    interrupt(None)  # the run goes on as if nothing had been
    assert train.train(smoke(), run)
    states = [final_state(smoke(), workdir) for workdir in (trained, run)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    monkeypatch.setattr(sys, "argv", ["export", f"--workdir={tmp_path / 'none'}"])
    with pytest.raises(UserError, match=r"none is no folder of a run"):
        command.run()


def test_images_go_on_bit_for_bit_from_a_step_between_two_log_lines(
    trained, smoke, tmp_path, interrupt
):
    interrupt(1)
    assert not train.train(smoke(), tmp_path)
    interrupt(None)
    assert train.train(smoke(), tmp_path)
    states = [final_state(smoke(), workdir) for workdir in (trained, tmp_path)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert (tmp_path / "export" / "translations.png").read_bytes() == (
        trained / "export" / "translations.png"
    ).read_bytes()


def test_the_folder_of_another_run_is_refused_by_the_keys_that_differ(trained, smoke):
    before = files(trained)
    config = smoke(optimizer__learning_rate=0.5, estimator__name="cdiffe")
    with pytest.raises(UserError) as told:
        train.train(config, trained)
    assert "optimizer.learning_rate was 0.001 and is 0.5" in str(told.value)
    assert "estimator.name was 'cde' and is 'cdiffe'" in str(told.value)
    assert "batch_size" not in str(told.value)
    assert files(trained) == before


def test_what_does_not_touch_its_course_may_change_when_a_run_goes_on(
    trained, smoke, tmp_path
):
    again = shutil.copytree(trained, tmp_path / "run")
    assert train.train(smoke(sampling__grid=3, log_every=1, data__device_gib=3), again)
    states = [final_state(smoke(), workdir) for workdir in (trained, again)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert json.loads((again / "config.json").read_text())["sampling"]["grid"] == 3


def test_a_run_does_not_go_on_with_other_data(vectors, tmp_path):
    config, path = vectors(steps=2), tmp_path / "vectors.npz"
    assert train.train(config, tmp_path / "run")
    with np.load(path) as whole:
        arrays = dict(whole)
    for name, other in (
        ("trainA", arrays["trainA"][::-1]),  # in another order
        ("trainB", arrays["trainB"][1:]),
    ):
        np.savez(path, **arrays | {name: other})
        with pytest.raises(UserError, match=rf"{name} is not what the run in .* began"):
            train.train(config, tmp_path / "run")
    np.savez(path, **arrays | {"testA": arrays["testA"][1:]})
    assert train.train(config, tmp_path / "run")  # none of its steps saw that


def test_a_run_does_not_go_on_with_other_features(vectors, tmp_path, interrupt):
    path = tmp_path / "features.npz"
    rng = np.random.default_rng(0)
    arrays = {"trainA": rng.normal(size=(30, 2)), "trainB": rng.normal(size=(20, 2))}
    np.savez(path, **{name: np.float32(x) for name, x in arrays.items()})
    config = vectors(coupling__cost="features", coupling__features=str(path))
    interrupt(1)
    assert not train.train(config, tmp_path / "run")
    np.savez(path, **{name: np.float32(-2 * x) for name, x in arrays.items()})
    with pytest.raises(UserError, match=r"coupling.features is not what the run in"):
        train.train(config, tmp_path / "run")


def test_changed_images_are_refused_before_any_is_decoded(
    smoke, image_folder, tmp_path, write_images, monkeypatch, interrupt
):
    config = smoke(data__kind="folder", data__path=str(image_folder), data__channels=3)
    config.data.tint = False
    interrupt(1)
    assert not train.train(config, tmp_path / "run")
    write_images(image_folder / "trainB", 4, seed=7)
    monkeypatch.setattr(images, "decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"trainB is not what the run in .* began with"):
        train.train(config, tmp_path / "run")


def test_a_damaged_config_of_a_run_is_named(smoke, tmp_path):
    for content in (b'{"seed": ', b"[1]", b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            train.train(smoke(), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy(vectors, tmp_path):
    config = vectors(optimizer__learning_rate=1e30, log_every=1)
    with pytest.raises(UserError, match=r"loss is (nan|inf).*optimizer\.learning_rate"):
        train.train(config, tmp_path)
    assert not (tmp_path / "export").exists()


def test_plans_that_fail_stop_the_run_with_a_remedy(vectors, tmp_path):
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


def test_tensorboard_shows_the_numbers_of_metrics_jsonl(vectors, tmp_path):
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
