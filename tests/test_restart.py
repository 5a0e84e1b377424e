"""A run goes on where it was, with what it was begun with."""

import json
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from runs import final_state, lines

import eotjax
from eotjax import atomic, parallel, prepare, train
from eotjax import export as command
from eotjax.artefact import export
from eotjax.artefact.translator import Translator
from eotjax.build import dataset, run_folder
from eotjax.data import batch, images
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
        for pattern in ("*", "samples/*", "export/*", "best/*")
        for path in folder.glob(pattern)
        if path.is_file()
    }


def test_the_best_step_is_of_this_run(
    vectors, tmp_path, monkeypatch, interrupt, one_device
):
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
    # Which took the place of another; nothing of that is left.
    best, last = (
        {path.relative_to(folder) for path in (folder / "params").rglob("*")}
        for folder in (tmp_path / "best", tmp_path / "export")
    )
    assert best == last


def test_scores_of_another_sampler_do_not_choose_the_best_step(
    vectors, tmp_path, monkeypatch, interrupt, one_device
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


def test_a_finished_run_that_is_started_again_does_nothing(
    trained, smoke, tmp_path, capsys
):
    again = tmp_path / "run"
    shutil.copytree(trained, again)
    later = again / "export" / "evaluation.json"
    later.write_text('{"measured": "later"}')
    before = files(again)
    assert train.train(smoke(), again)
    assert f"the run had ended: remove {again / 'export'}" in capsys.readouterr().out
    assert len(before) >= 6 and files(again) == before


@pytest.mark.parametrize("cut", ["export/README.md", "best/README.md"])
def test_a_run_that_was_killed_at_its_end_ends_as_one_that_was_not(
    trained, smoke, tmp_path, cut
):
    again = tmp_path / "run"
    shutil.copytree(trained, again)
    (again / cut).unlink()
    assert train.train(smoke(), again)
    before, after = files(trained), files(again)
    assert len(before) >= 6 and before == after
    states = [final_state(smoke(), workdir) for workdir in (trained, again)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_finished_run_is_exported_anew_as_its_config_asks_now(
    trained, smoke, tmp_path
):
    again = tmp_path / "run"
    shutil.copytree(trained, again)
    assert train.train(smoke(sampling__steps=3), again)
    last, best = (export.describe(again / name) for name in ("export", "best"))
    assert last["config"]["sampling"]["steps"] == 3
    # What was measured of RUN/best was drawn as its own config says.
    assert best["step"] == last["step"] and best["config"] == last["config"]
    measured = [again / name / "evaluation.json" for name in ("export", "best")]
    assert measured[0].read_text() == measured[1].read_text()


def test_a_damaged_best_is_none(trained, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(trained, again)
    assert train.step_of_best(again) is not None
    (again / "best" / "config.json").write_text("{")
    assert train.step_of_best(again) is None


@pytest.mark.parametrize("device_gib", [4.0, 0.0], ids=["resident", "streamed"])
def test_200_steps_equal_100_a_restart_and_100(
    vectors, tmp_path, interrupt, capsys, one_device, device_gib
):
    rare = {"sample_every": 1_000, "checkpoint__every": 1_000}
    config = vectors(steps=200, log_every=50, data__device_gib=device_gib, **rare)
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
    """Made after 4 steps and 6; the run is stopped before either, and between them."""
    own = {"refit__after": 4, "refit__every": 2, "refit__copies": 2, "refit__steps": 3}
    config = vectors(steps=8, sample_every=8, **BOTH_WAYS, **own)
    interrupt(None)
    assert train.train(config, tmp_path / "whole")
    whole = final_state(config, tmp_path / "whole")
    moved = jax.tree.map(np.array_equal, whole.maker, whole.ema_params)
    assert not all(jax.tree.leaves(moved))  # those of step 6
    # How translations are drawn, which a run may change, is not how pairs are made.
    config.sampling.update(
        {"solver": "ddim", "steps": 3, "temperature": 0.5, "restart": 0.5}
    )
    interrupt(4)
    assert not train.train(config, tmp_path / "cut")
    before = final_state(config, tmp_path / "cut")
    interrupt(5)
    assert not train.train(config, tmp_path / "cut")
    made_by = final_state(config, tmp_path / "cut").maker
    jax.tree.map(np.testing.assert_array_equal, made_by, before.ema_params)
    interrupt(None)
    assert train.train(config, tmp_path / "cut")
    cut = final_state(config, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
    config.refit.after = 0
    assert train.train(config, tmp_path / "plan")
    assert lines(tmp_path / "plan")[-1]["loss"] != lines(tmp_path / "whole")[-1]["loss"]


def test_a_signal_while_pairs_are_made_loses_no_step(
    vectors, tmp_path, monkeypatch, one_device
):
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
    vectors, tmp_path, monkeypatch, one_device
):
    close = Checkpoints.close

    def signalled(self):
        close(self)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "close", signalled)
    assert not train.train(vectors(steps=2), tmp_path / "run")
    assert not (tmp_path / "run" / "export").exists()


def test_noise_like_the_images_is_measured_once_and_exported(
    smoke, tmp_path, interrupt, monkeypatch, one_device
):
    bridge = {"name": "bridge", "noise": "images", "epsilon": 1.0}
    config = smoke(**{f"estimator__{key}": value for key, value in bridge.items()})
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


def test_a_stopped_run_is_exported_and_goes_on_bit_for_bit(
    trained, smoke, tmp_path, interrupt, monkeypatch, capsys
):
    """From between two lines of its log, and from a signal in its last step."""
    run = tmp_path / "run"
    interrupt(1)
    assert not train.train(smoke(), run)
    monkeypatch.setattr(sys, "argv", ["export", f"--workdir={run}"])
    assert command.run() == 0
    assert f"exported step 1 to {run / 'newest'}" in capsys.readouterr().out
    state = final_state(smoke(), run)
    found = eotjax.load(run / "newest")
    jax.tree.map(np.testing.assert_array_equal, found._params, state.ema_params)
    assert "# digits" in (run / "newest" / "README.md").read_text()
    interrupt(4)
    assert not train.train(smoke(), run)
    assert not (run / "export").exists()
    interrupt(None)
    asked, call = [], Translator.__call__
    monkeypatch.setattr(
        Translator,
        "__call__",
        lambda self, x, **rest: asked.append(len(x)) or call(self, x, **rest),
    )
    # What does not touch its course may change.
    config = smoke(sampling__grid=3, log_every=1, data__device_gib=3)
    assert train.train(config, run)
    assert asked == [len(dataset.load(smoke()).source.test)]  # once
    assert json.loads((run / "config.json").read_text())["sampling"]["grid"] == 3
    states = [final_state(smoke(), workdir) for workdir in (trained, run)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    rows = [
        json.loads((workdir / "export" / "evaluation.json").read_text())["forward"]
        for workdir in (trained, run)
    ]
    assert rows[0]["rows"] == rows[1]["rows"]
    monkeypatch.setattr(sys, "argv", ["export", f"--workdir={tmp_path / 'none'}"])
    with pytest.raises(UserError, match=r"none is no folder of a run"):
        command.run()


def test_the_folder_of_another_run_is_refused_by_the_keys_that_differ(trained, smoke):
    before = files(trained)
    config = smoke(optimizer__learning_rate=0.5, estimator__name="cdiffe")
    with pytest.raises(UserError) as told:
        train.train(config, trained)
    assert "optimizer.learning_rate was 0.001 and is 0.5" in str(told.value)
    assert "estimator.name was 'cde' and is 'cdiffe'" in str(told.value)
    assert "batch_size" not in str(told.value)
    assert files(trained) == before


def test_a_run_does_not_go_on_with_other_data(vectors, tmp_path, one_device):
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


def test_a_run_does_not_go_on_with_other_features(
    vectors, tmp_path, interrupt, one_device
):
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
    smoke, image_folder, tmp_path, write_images, monkeypatch, interrupt, one_device
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


def test_each_process_reads_its_own_rows_from_the_step_on(vectors, monkeypatch):
    seen, config = [], vectors(batch_size=8, coupling__group_size=8)

    def stream(*_, rows, steps, **__):
        seen.append((rows, steps))
        return iter(())

    splits = dataset.load(config)
    monkeypatch.setattr(batch, "stream", stream)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert not list(prepare.streamed(config, splits, 3, parallel.make_mesh()))
    assert seen == [(slice(4, 8), range(3, config.steps))]


def test_a_run_that_never_trained_leaves_its_folder_to_another(
    vectors, tmp_path, monkeypatch
):
    """As one that the device could not hold, begun again with a smaller batch."""
    config = vectors(coupling__method="whole", batch_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "compiled", lambda _: pytest.fail("too large"))
        with pytest.raises(pytest.fail.Exception, match="too large"):
            train.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()
    config.batch_size, config.coupling.entropy = 8, 0.5
    assert train.train(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert found["batch_size"] == 8
    assert lines(tmp_path / "run")[-1]["plan/entropy"] == pytest.approx(0.5, abs=0.02)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # for its room: the artefact stays
    config.batch_size = 16
    with pytest.raises(UserError, match="batch_size was 8 and is 16"):
        train.train(config, tmp_path / "run")


def test_a_folder_that_cannot_be_written_to_is_told_before_data_are_read(
    vectors, tmp_path, monkeypatch
):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(atomic, "check_writable", refuse)
    monkeypatch.setattr(dataset, "load", lambda *_, **__: pytest.fail("read"))
    run = tmp_path / "run"
    with pytest.raises(UserError, match=f"{run} cannot be a run's folder.* denied"):
        train.train(vectors(), run)


def test_a_run_may_find_its_data_and_its_weights_elsewhere(
    vectors, tmp_path, interrupt, monkeypatch, one_device
):
    config = vectors()
    config.latent.weights = "hub/name"
    found = run_folder.of(config, ("a", "b"), "")
    run_folder.claim(tmp_path / "run", config, found)
    (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
    config.latent.weights, config.coupling.features = "here", "features.npz"
    run_folder.check(tmp_path / "run", config)
    config.latent.weights = ""
    with pytest.raises(UserError, match=r"latent\.weights was 'hub/name' and is ''"):
        run_folder.check(tmp_path / "run", config)

    config, run = vectors(), tmp_path / "moved"
    interrupt(1)
    assert not train.train(config, run)
    before = files(run)
    elsewhere = (tmp_path / "vectors.npz").rename(tmp_path / "elsewhere.npz")
    options = [f"--workdir={run}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["export", *options])
    with pytest.raises(UserError, match=r"vectors\.npz"):
        command.run()
    monkeypatch.setattr(sys, "argv", ["export", *options, f"--data_path={elsewhere}"])
    assert command.run() == 0
    assert export.describe(tmp_path / "out")["step"] == 1
    assert files(run) == before  # of a colleague, perhaps, and read-only


def test_an_artefact_is_not_taken_for_a_run(trained):
    for folder in ("export", "best"):
        with pytest.raises(UserError, match="is no folder of a run"):
            run_folder.config(trained / folder)
