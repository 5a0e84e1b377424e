"""A longer run is the run of its steps; an artefact's parameters begin another."""

import json
import shutil

import jax
import numpy as np
import pytest
from runs import final_state, lines, timeless

import eotjax
from eotjax import beginning, train
from eotjax.artefact import export
from eotjax.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")


def cooled(vectors, steps):
    return vectors(
        steps=steps,
        log_every=1,
        sample_every=100,
        checkpoint__every=4,
        optimizer__cooldown_steps=3,
    )


def test_a_run_carried_on_is_the_run_of_more_steps_bit_for_bit(
    vectors, tmp_path, capsys
):
    whole, short, long = tmp_path / "whole", tmp_path / "run", cooled(vectors, 18)
    assert train.train(long, whole)
    assert train.train(cooled(vectors, 9), short)
    assert lines(short)[-1]["learning_rate"] < 0.5 * lines(whole)[8]["learning_rate"]
    capsys.readouterr()
    assert train.train(long, short)
    assert "back to step 6, before the rate fell" in capsys.readouterr().out
    states = [final_state(long, workdir) for workdir in (whole, short)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert list(map(timeless, lines(whole))) == list(map(timeless, lines(short)))
    assert export.describe(short / "export")["step"] == 18
    assert json.loads((short / "config.json").read_text())["steps"] == 18


def test_a_run_can_be_made_shorter_while_its_rate_has_not_fallen(
    vectors, tmp_path, interrupt
):
    short = cooled(vectors, 9)
    interrupt(None)
    assert train.train(short, tmp_path / "whole")
    interrupt(5)
    assert not train.train(cooled(vectors, 18), tmp_path / "run")
    interrupt(None)
    assert train.train(short, tmp_path / "run")
    states = [final_state(short, tmp_path / name) for name in ("whole", "run")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_steps_that_come_too_late_to_change_are_refused(vectors, tmp_path, interrupt):
    interrupt(8)
    assert not train.train(cooled(vectors, 18), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    interrupt(None)
    with pytest.raises(UserError, match=r"from step 6 on.*steps to at least 11, or"):
        train.train(cooled(vectors, 9), tmp_path)
    with pytest.raises(UserError, match=r"too few for optimizer\.warmup_steps 1 and"):
        train.train(cooled(vectors, 3), tmp_path)


def test_the_steps_of_a_cosine_cannot_change(vectors, tmp_path, interrupt):
    interrupt(1)
    assert not train.train(vectors(steps=2), tmp_path)
    with pytest.raises(UserError, match="steps was 2 and is 3"):
        train.train(vectors(steps=3), tmp_path)


@pytest.fixture
def still(vectors):
    """Makes a config that learns nothing, so that a run ends where it begins."""
    return lambda **changes: vectors(
        steps=1, optimizer__learning_rate=0.0, model__width=16, **changes
    )


def test_a_run_begins_from_an_artefact_and_its_card_says_so(
    still, tmp_path, one_device
):
    assert train.train(still(seed=3), tmp_path / "other")
    artefact = tmp_path / "other" / "export"
    config = still(init=str(artefact))
    assert train.train(config, tmp_path / "run")
    began, ended = (eotjax.load(x)._params for x in (artefact, tmp_path / "run/export"))
    jax.tree.map(np.testing.assert_array_equal, began, ended)
    digest = export.describe(artefact)["sha256"]["params"]
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert f"other/export, step 1, parameters {digest[:16]}" in card
    shutil.rmtree(artefact)  # a run that has begun needs it no more
    assert train.train(config, tmp_path / "run")
    assert digest[:16] in (tmp_path / "run" / "export" / "README.md").read_text()


def test_what_does_not_fit_is_named_and_begins_anew(
    still, tmp_path, capsys, one_device
):
    assert train.train(still(seed=3), tmp_path / "other")
    assert train.train(still(model__blocks=3), tmp_path / "anew")
    config = still(model__blocks=3, init=str(tmp_path / "other" / "export"))
    assert train.train(config, tmp_path / "run")
    told = next(x for x in capsys.readouterr().out.splitlines() if "begun" in x)
    assert "; new: " in told
    anew, run, old = (
        eotjax.load(tmp_path / name / "export")._params
        for name in ("anew", "run", "other")
    )
    known = dict(jax.tree_util.tree_leaves_with_path(old))
    kept = 0
    for (path, first), (_, now) in zip(
        jax.tree_util.tree_leaves_with_path(anew),
        jax.tree_util.tree_leaves_with_path(run),
        strict=True,
    ):
        fits = path in known and known[path].shape == now.shape
        kept += fits
        np.testing.assert_array_equal(now, known[path] if fits else first)
    assert 0 < kept < len(jax.tree.leaves(anew))
    assert f"{kept} of {len(jax.tree.leaves(anew))} arrays" in told


def test_what_is_no_beginning_is_refused(trained, vectors, tmp_path):
    for artefact, told in (
        (tmp_path, "is no eotjax export"),
        (trained / "export", "none of the parameters of"),
    ):
        with pytest.raises(UserError, match=told):
            train.train(vectors(init=str(artefact)), tmp_path / "run")


def test_arrays_fit_by_name_and_shape():
    ours = {"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "b": np.zeros(1)}
    theirs = {"a": {"kernel": np.ones((2, 3)), "bias": np.ones(4)}, "c": np.ones(1)}
    params, left = beginning.fitted(ours, theirs)
    np.testing.assert_array_equal(params["a"]["kernel"], np.ones((2, 3)))
    np.testing.assert_array_equal(params["a"]["bias"], np.zeros(3))
    assert sorted(left) == ["a/bias", "b"]
