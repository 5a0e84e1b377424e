"""A step's pairs, rebuilt from a run's folder, are those that it trained on."""

import jax
import numpy as np
import pytest
from PIL import Image

from eotjax import pairs, train
from eotjax.build import planning
from eotjax.errors import UserError

GROUPS = {"coupling__group_size": 16, "coupling__draws": 2}  # a plan for some steps
OWN = {
    "estimator__name": "bridge",
    "estimator__direction": "both",
    "refit__after": 2,
    "refit__every": 2,
    "refit__steps": 2,
}


@pytest.fixture
def seen(monkeypatch):
    """Of each step of a run, counted from 1, the pairs that it trained on."""
    seen, pair = {}, planning.pair

    def keep(step, source, target):
        seen[int(step) + 1] = (np.array(source), np.array(target))

    def watched(*arguments):
        draw = pair(*arguments)

        def drawn(step, held, data):
            found = draw(step, held, data)
            jax.debug.callback(keep, step, found.source, found.target)
            return found

        return drawn

    monkeypatch.setattr(planning, "pair", watched)
    yield seen
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("changes", "steps"),
    [(GROUPS, [3]), (OWN, [2, 5])],
    ids=["of a plan", "of a plan and the bridge's own"],
)
def test_they_are_those_of_the_step(
    vectors, tmp_path, seen, changes, steps, one_device
):
    config = vectors(steps=5, batch_size=8, **changes)
    train.train(config, tmp_path / "run")
    jax.effects_barrier()
    known = dict(seen)
    for step in steps:
        with np.load(pairs.write(tmp_path / "run", step)) as found:
            assert {*found} == {"source", "target"}
            for number, side in enumerate(found.files):
                np.testing.assert_array_equal(found[side], known[step][number])
                assert (found[side] != known[step - 1][number]).any()


def test_steps_that_cannot_be_rebuilt_are_refused(
    vectors, tmp_path, interrupt, one_device
):
    interrupt(5)
    assert not train.train(vectors(steps=5, **OWN), tmp_path / "run")
    with pytest.raises(UserError, match=r"no step 6.*from 1 to 5"):
        pairs.write(tmp_path / "run", 6)
    with pytest.raises(UserError, match=r"step 3 with parameters .* a later step"):
        pairs.write(tmp_path / "run", 3)
    with pytest.raises(UserError, match="no folder of a run"):
        pairs.write(tmp_path / "nowhere", 1)
    with pytest.raises(UserError, match=r"x\.png cannot hold these pairs"):
        pairs.write(tmp_path / "run", 5, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_images_are_drawn_source_above_target(trained, tmp_path, seen, capsys):
    path = pairs.write(trained, 4, tmp_path / "pairs.png")
    jax.effects_barrier()
    source, target = seen[4]
    assert "all finite" in capsys.readouterr().out
    sheet = np.asarray(Image.open(path))
    zoom = 64 // source.shape[1]
    cell = 64 + 2
    for row, images in enumerate((source, target)):
        shown = sheet[2 + row * cell :, 2 + cell :][:64:zoom, :64:zoom]
        np.testing.assert_allclose(shown, (images[1] + 1) * 127.5, atol=0.51)
