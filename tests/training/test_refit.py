"""Pairs that a bridge makes itself, against the Schroedinger bridge of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eotjax import parallel
from eotjax.diffusion import bridge
from eotjax.training import refit
from eotjax.transport.pairing import Drawn

EPSILON = 0.5
COPY = 0.0
SCALES = (1.0, 0.6)  # deviations of source and target


def test_pairs_are_made_at_the_steps_asked_for():
    found = [refit.number(step, after=30, every=20) for step in (0, 29, 30, 49, 50, 90)]
    assert found == [0, 0, 1, 1, 2, 4]
    assert refit.number(10**6, after=0, every=20) == 0
    once = [refit.number(step, after=30, every=0) for step in (29, 30, 10**6)]
    assert once == [0, 1, 1]


def cross_moment_of_bridge(source, target, epsilon):
    """E x y of the entropic plan between N(0, s^2) and N(0, t^2), cost |x - y|^2 / 2.

    Janati et al. 2020, theorem 1 (in their units epsilon = 2 sigma^2).
    """
    return np.sqrt(source**2 * target**2 + epsilon**2 / 4) - epsilon / 2


def exact_drift(pairs):
    """The network that a bridge between jointly Gaussian pairs would learn, exactly.

    E[y | x_t] is linear in x_t; of both directions, from the pairs' second moments.
    """
    xx, yy, xy = pairs

    def predict(x_t, t, direction):
        a, b = (jnp.where(direction == 0, *v) for v in ((xx, yy), (yy, xx)))
        variance = (1 - t) ** 2 * a + t**2 * b + 2 * t * (1 - t) * xy
        variance += EPSILON * t * (1 - t)
        slope = ((1 - t) * xy + t * b) / variance
        return slope[:, None] * x_t

    return predict


def sampler_of(steps):
    """As `build.sample_points`, of pairs' moments in place of parameters."""
    estimate = bridge.Bridge(epsilon=EPSILON)
    solver = estimate.solvers()["ancestral"]

    def sample(params, keys, source, direction):
        predict = exact_drift(params)

        def network(inputs, t, label):
            at = t[:, None]
            _, _, out, scale = bridge.drift(EPSILON, at)
            x_t = inputs * scale
            change = predict(x_t, t, label) - x_t
            return change / (jnp.sqrt(1 - at) * out)

        times = solver.times(steps)
        return estimate.sample(network, keys, source, direction, times, solver.step)

    return sample


def views(data, side, index):
    """Each copy of a stored value is 0.5 above the last."""
    stored = data[side]
    return stored[index % len(stored)] + COPY * (index // len(stored))[:, None]


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    return {
        side: jnp.asarray(scale * rng.standard_normal((20_000, 1), dtype=np.float32))
        for side, scale in zip(refit.SIDES, SCALES, strict=True)
    }


def maker_of(sampler, *, copies, at_once, settings=""):
    return refit.maker(
        sampler,
        views=views,
        copies=copies,
        at_once=at_once,
        seed=0,
        settings=settings,
        mesh=parallel.make_mesh(),
    )


def test_own_pairs_tend_to_the_schroedinger_bridge(sets, tmp_path):
    """From independent pairs, by the exact bridge between the last pairs."""
    make = maker_of(sampler_of(100), copies=1, at_once=4_000)
    wanted = cross_moment_of_bridge(*SCALES, EPSILON)
    xx, yy = (float(jnp.mean(sets[side] ** 2)) for side in refit.SIDES)
    xy, errors = 0.0, []
    for number in range(1, 7):
        made = make((xx, yy, xy), sets, number, tmp_path)
        back, forth = (
            float(jnp.mean(sets[side] * made[refit.made(other)]))
            for side, other in (refit.SIDES, refit.SIDES[::-1])
        )
        assert back == pytest.approx(forth, abs=0.015)  # of one process, two ways
        for side, scale in zip(refit.SIDES, SCALES, strict=True):
            end = np.asarray(made[refit.made(side)], np.float32)
            assert end.std() == pytest.approx(scale, rel=0.03)
        xy = (back + forth) / 2
        errors.append(abs(xy - wanted))
    assert errors[0] > 0.03  # independent pairs are far from it
    assert errors[-1] < 0.012
    assert errors[1] < 0.7 * errors[0]


def test_views_that_show_the_same_have_ends_of_their_own(sets, tmp_path):
    few = {side: values[:8] for side, values in sets.items()}
    make = maker_of(sampler_of(5), copies=3, at_once=8)
    ends = [make((1.0, 0.36, 0.2), few, number, tmp_path) for number in (1, 2)]
    for side in refit.SIDES:
        of_side = np.concatenate([np.asarray(end[refit.made(side)]) for end in ends])
        assert len(np.unique(of_side.reshape(6, 8, 1), axis=0)) == 6


@pytest.mark.parametrize("copies", [1, 3])
def test_made_pairs_are_real_on_the_side_to_be_learnt(monkeypatch, tmp_path, copies):
    """Rows and their partners are told apart by values that encode them."""
    monkeypatch.setitem(globals(), "COPY", 0.5)
    count, size = 40, 16
    data = {
        "source": jnp.arange(count, dtype=jnp.float32)[:, None],
        "target": 100 + jnp.arange(count, dtype=jnp.float32)[:, None],
    }

    def shifted(params, keys, source, direction):
        return source + jnp.where(direction == 0, 500.0, 700.0)[:, None]

    made = maker_of(shifted, copies=copies, at_once=16)((), data, 2, tmp_path)

    def plan_draw(step, held, data):
        return Drawn(jnp.full((size, 1), -1.0), jnp.full((size, 1), -2.0), (), held)

    draw = refit.mixed(
        plan_draw,
        views=views,
        share=0.25,
        batch_size=size,
        seed=0,
        constrain=lambda x: x,
    )
    before = draw(0, (), data)
    assert (np.asarray(before.source) == -1).all()
    drawn = draw(0, (), data | made)
    source, target = (np.asarray(x)[:, 0] for x in (drawn.source, drawn.target))
    assert (source[:4] == -1).all() and (target[:4] == -2).all()
    for row in range(4, size):
        if row % 2:  # turned round later
            assert source[row] < 100 and target[row] == source[row] + 500
        else:
            assert target[row] < 200 and source[row] == target[row] + 700
    assert len(set(source[4:])) > 6  # not one pair again and again
    assert not np.array_equal(
        source[4:], np.asarray(draw(1, (), data | made).source)[4:, 0]
    )


@pytest.fixture
def watched(sets, tmp_path, monkeypatch):
    """Makes ends of ten views of each side, in parts of 8; which views were sent."""
    monkeypatch.setattr(refit, "PART", 8)
    few = {side: values[:10] for side, values in sets.items()}

    def made(params, number=1, *, at_once=8, settings="", **how):
        sent = []

        def bridge(params, keys, start, way):
            jax.debug.callback(lambda x: sent.extend(x.ravel().tolist()), start)
            return sampler_of(5)(params, keys, start, way)

        make = maker_of(bridge, copies=2, at_once=at_once, settings=settings)
        ends = make(params, few, number, tmp_path, **how)
        jax.effects_barrier()
        return jax.device_get(ends), len(sent)

    return made


FIRST, OTHERS = (1.0, 0.36, 0.2), (1.0, 0.36, 0.3)


def test_ends_that_are_kept_are_not_made_again(watched, tmp_path):
    whole, sent = watched(FIRST)
    assert sent == 6 * 8  # three parts of each side, the last one filled up
    assert len(list(tmp_path.glob("*/*"))) == 6
    again, sent = watched(FIRST)
    np.testing.assert_equal(again, whole)
    assert not sent

    damaged, missing = sorted(tmp_path.glob("*/*"))[1:3]
    damaged.write_bytes(damaged.read_bytes()[:-50])
    missing.unlink()
    again, sent = watched(FIRST)
    np.testing.assert_equal(again, whole)
    assert sent == 2 * 8


def test_ends_of_other_parameters_settings_and_numbers_are_others(watched, tmp_path):
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "a-note").touch()
    whole, _ = watched(FIRST)
    for changes in ({"settings": "guided"}, {"params": OTHERS}, {"number": 2}):
        other, sent = watched(**{"params": FIRST} | changes)
        assert sent == 6 * 8
        if "settings" not in changes:  # which are only told
            assert (other["target_made"] != whole["target_made"]).any()
    (place,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert place.name.startswith("2-")  # the others have given way
    _, sent = watched(OTHERS, 3, keep=False)
    assert sent == 6 * 8
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [place]


def test_making_pairs_goes_on_where_it_was_stopped(watched):
    answers = iter([False, False, True])
    stopped, _ = watched(FIRST, stop=lambda: next(answers))
    assert stopped is None
    resumed, sent = watched(FIRST)
    assert sent == 4 * 8
    whole, _ = watched(FIRST, 1, settings="anew")
    np.testing.assert_equal(resumed, whole)


def test_larger_batches_are_not_filled_up_for_each_part(watched):
    _, sent = watched(FIRST, at_once=16)
    assert sent == 2 * (16 + 16)  # a part of 16 and one of 4, of either side


def test_a_disk_without_room_for_ends_stops_nothing(sets, tmp_path, capsys):
    (tmp_path / "taken").write_text("no folder")
    few = {side: values[:8] for side, values in sets.items()}
    make = maker_of(sampler_of(5), copies=1, at_once=8)
    assert make((1.0, 0.36, 0.2), few, 1, tmp_path / "taken") is not None
    assert "a restart makes it again" in capsys.readouterr().out
