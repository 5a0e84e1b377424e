"""Pairs against POT's plans, the Hungarian method and the groups they were drawn in."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from eotjax import parallel
from eotjax.build import checks, dataset, planning
from eotjax.errors import UserError
from eotjax.transport import cost, pairing, sinkhorn, whole

SIZES = (40, 30)  # of the training sets
TINY = sinkhorn.Settings(epsilon=1e-3, threshold=1e-3, max_iterations=50_000)


@pytest.fixture(scope="module")
def pot():
    """POT, kept from importing TensorFlow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POT_BACKEND_DISABLE_TENSORFLOW", "1")
        import ot
    return ot


def view(key, stored, ids):
    """A random shift of each vector, as a tint is of images; its id in front."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(ids)
    shift = jax.vmap(lambda key: jax.random.normal(key, stored.shape[1:]))(keys)
    return jnp.concatenate([ids[:, None].astype(jnp.float32), stored + shift], axis=1)


def embed(views):
    """A view without its id."""
    return views[:, 1:]


def ids_of(views):
    return np.asarray(views[:, 0]).astype(int)


def clouds(sizes=SIZES):
    """Source and target vectors."""
    rng = np.random.default_rng(0)
    source, target = (rng.standard_normal((n, 2), dtype=np.float32) for n in sizes)
    return {"source": jnp.asarray(source), "target": jnp.asarray(target + 0.5)}


def half_cost(x, y):
    return cdist(np.float64(x), np.float64(y), "sqeuclidean") / 2


def best_cost(x, y):
    """Of the cheapest matching."""
    cost = half_cost(x, y)
    return cost[linear_sum_assignment(cost)].sum()


def pair_within(couple, lengths, batch_size, group_size, view=view):
    return jax.jit(
        pairing.within_batches(
            view=view,
            embed=embed,
            couple=couple,
            batch_size=batch_size,
            group_size=group_size,
            lengths=lengths,
            seed=0,
            constrain=lambda x: x,
        )
    )


def test_a_group_is_matched_at_least_cost_within_itself():
    groups, size = 3, 8
    drawn, alone = (
        pair_within(couple, SIZES, groups * size, size)(2, (), clouds())
        for couple in (sinkhorn.entropic(TINY), sinkhorn.independent())
    )
    for g in range(groups):
        rows = slice(g * size, (g + 1) * size)
        own = set(range(g * size, (g + 1) * size))
        assert set(ids_of(drawn.source[rows])) == set(ids_of(drawn.target[rows])) == own
        found, given = (
            (embed(x.source[rows]), embed(x.target[rows])) for x in (drawn, alone)
        )
        cost = half_cost(*found).trace()
        # The groups' points are those of the step's batch without a plan.
        assert cost == pytest.approx(best_cost(*given), rel=1e-5)
        assert cost < 0.8 * half_cost(*given).trace()
    everything = embed(alone.source), embed(alone.target)
    assert best_cost(*everything) < 0.9 * half_cost(*map(embed, drawn[:2])).trace()


def pair_over(
    couple,
    *,
    batch_size,
    group_size,
    draws,
    seed=0,
    view=view,
    lengths=SIZES,
    constrain=lambda x: x,
):
    """A jitted `over_steps` and what it holds before its first step."""
    pair = pairing.over_steps(
        view=view,
        embed=embed,
        couple=couple,
        batch_size=batch_size,
        group_size=group_size,
        draws=draws,
        lengths=lengths,
        seed=seed,
        constrain=constrain,
    )
    return jax.jit(pair), pairing.empty_pool(group_size * draws)


def run(pair, held, data, steps):
    """The pairs of these steps, in turn: (source, target, [held])."""
    drawn = []
    for step in steps:
        drawn.append(jax.device_get(pair(step, held, data)))
        held = drawn[-1].held
    return (
        np.concatenate([x.source for x in drawn]),
        np.concatenate([x.target for x in drawn]),
        [x.held for x in drawn],
    )


def equal(a, b):
    """Whether two pytrees are, bit for bit."""
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize(("group_size", "draws"), [(16, 3), (4, 6)])
def test_each_point_of_a_plan_is_used_once_in_every_pass(group_size, draws):
    batch_size = 8
    couple = sinkhorn.entropic(sinkhorn.Settings(1.0), draws)
    pair, held = pair_over(
        couple, batch_size=batch_size, group_size=group_size, draws=draws
    )
    steps = group_size * draws // batch_size
    source, target, kept = run(pair, held, clouds(), range(2 * steps))
    assert len(source) == 2 * group_size * draws
    passes = ids_of(source).reshape(-1, group_size)
    np.testing.assert_array_equal(
        np.sort(passes), np.tile(np.arange(group_size), (2 * draws, 1))
    )
    # The plan is a new one after so many steps, and only then.
    changed = [not equal(a, b) for a, b in itertools.pairwise(kept)]
    assert changed == [step % steps == 0 for step in range(1, 2 * steps)]
    # An id is one view in one plan and another one in the next.
    for views in (source, target):
        for plan_views in np.split(views, 2):
            assert len(np.unique(plan_views, axis=0)) == len(set(ids_of(plan_views)))
        first, second = (embed(x) for x in np.split(views, 2))
        assert not set(map(bytes, first)) & set(map(bytes, second))


def nearest(key, source, target):
    """Draws the nearest target for each source, eight times; quick to compile."""
    cost = jnp.sum((source[0, :, None] - target[0, None]) ** 2, axis=2)
    pairs = jnp.arange(len(cost)), jnp.argmin(cost, axis=1)
    pairs = sinkhorn.Pairs(*(jnp.tile(x, 8)[None] for x in pairs))
    return pairs, jax.tree.map(lambda x: x[None], sinkhorn.no_stats())


def test_a_plan_is_solved_at_its_first_step_only():
    solved = []

    def couple(key, source, target):
        jax.debug.callback(lambda: solved.append(step))
        return nearest(key, source, target)

    pair, held = pair_over(couple, batch_size=16, group_size=12, draws=8)
    for step in range(13):
        held = pair(step, held, clouds()).held
        jax.effects_barrier()
    assert solved == [0, 6, 12]


def test_the_views_that_are_paired_are_those_that_the_plan_was_between():
    """Of other views than the solver saw, it would not be the cheapest matching."""
    n = 16
    pair, held = pair_over(sinkhorn.entropic(TINY), batch_size=8, group_size=n, draws=1)
    for first in (0, 2):
        source, target, _ = run(pair, held, clouds(), range(first, first + 2))
        for views in (source, target):
            np.testing.assert_array_equal(np.sort(ids_of(views)), np.arange(n))
        found = half_cost(embed(source), embed(target))
        assert found.trace() == pytest.approx(best_cost(*map(embed, (source, target))))
        assert found.trace() < 0.7 * np.roll(found, 1, axis=0).trace()


def test_partners_are_drawn_with_the_frequencies_of_the_plan(pot):
    n, draws, epsilon = 4, 6_000, 0.7
    settings = sinkhorn.Settings(epsilon, threshold=1e-5)
    pair, held = pair_over(
        sinkhorn.entropic(settings, draws), batch_size=8_000, group_size=n, draws=draws
    )
    source, target, _ = run(pair, held, clouds(), range(3))
    i, j = ids_of(source), ids_of(target)
    x, y = (
        np.stack([views[list(ids).index(k), 1:] for k in range(n)])
        for views, ids in ((source, i), (target, j))
    )
    expected = pot.sinkhorn(
        np.full(n, 1 / n), np.full(n, 1 / n), half_cost(x, y), epsilon, stopThr=1e-10
    )
    for row in range(n):
        counts = np.bincount(j[i == row], minlength=n)
        assert counts.sum() == draws
        assert scipy.stats.chisquare(counts, draws * n * expected[row]).pvalue > 1e-3
    # What a pass draws for a point tells nothing of what the next one does.
    assert abs(np.corrcoef(j[i == 0][1:], j[i == 0][:-1])[0, 1]) < 5 / np.sqrt(draws)


def test_an_interrupted_run_goes_on_bit_for_bit_from_what_it_held():
    couple = sinkhorn.entropic(sinkhorn.Settings(1.0), 3)
    shape = {"batch_size": 8, "group_size": 16, "draws": 3}
    pair, empty = pair_over(couple, **shape)
    source, target, held = run(pair, empty, clouds(), range(12))
    again, _ = pair_over(couple, **shape)  # as a new process has it
    for cut in (2, 6, 7):
        rest = run(again, held[cut - 1], clouds(), range(cut, 12))
        np.testing.assert_array_equal(rest[0], source[8 * cut :])
        np.testing.assert_array_equal(rest[1], target[8 * cut :])
        assert equal(rest[2][-1], held[-1])
    # Two seeds draw other points.
    other, _ = pair_over(couple, **shape, seed=1)
    assert not np.allclose(run(other, empty, clouds(), range(1))[0], source[:8])


def test_the_cost_is_taken_between_the_points_that_the_data_brings():
    """The points say the opposite of the vectors: what is alike there, is not here."""
    n = 8
    vectors = 100 * jnp.arange(n, dtype=jnp.float32)[:, None]
    order = np.random.default_rng(0).permutation(n)
    points = 10 * np.eye(n, dtype=np.float32)
    data = {
        "source": vectors,
        "target": vectors,
        "source_points": points,
        "target_points": points[order],
    }
    shape = {"batch_size": n, "view": lambda key, stored, ids: stored}
    couple = sinkhorn.entropic(TINY._replace(epsilon=0.1))

    def rows(drawn):
        return (np.rint(x[:, 0] / 100).astype(int) for x in drawn[:2])

    pair = pair_within(couple, None, group_size=n, **shape)
    i, j = rows(pair(0, (), data))
    np.testing.assert_array_equal(order[j], i)

    pair, held = pair_over(couple, group_size=2 * n, draws=1, lengths=(n, n), **shape)
    matched = []
    for first in range(0, 20, 2):
        i, j = rows(run(pair, held, data, range(first, first + 2)))
        # Of points drawn with replacement not all find their like.
        most = sum(min(np.sum(i == k), np.sum(order[j] == k)) for k in range(n))
        assert np.sum(order[j] == i) == most
        matched.append(most)
    assert np.mean(matched) > n


def pair_sets(settings, batch_size, *, fixed_views, constrain=lambda x: x):
    return jax.jit(
        pairing.over_the_sets(
            view=view,
            settings=settings,
            batch_size=batch_size,
            fixed_views=fixed_views,
            seed=0,
            constrain=constrain,
        )
    )


@pytest.mark.parametrize("tau", [1.0, 0.6])
def test_pairs_of_the_sets_have_the_frequencies_of_their_plan(pot, tau):
    sizes, count, epsilon = (7, 5), 40_000, 0.5
    settings = sinkhorn.Settings(epsilon, 1e-5, 5_000, tau, tau)
    mesh = parallel.make_mesh(jax.devices()[:1])
    costs = whole.make_geometry(*clouds(sizes).values(), mesh=mesh, dense_gib=1)
    held = whole.solve(costs, settings, mesh=mesh)
    a, b = (np.full(n, 1 / n) for n in sizes)
    cost = half_cost(*clouds(sizes).values())
    if settings.balanced:
        expected = pot.sinkhorn(a, b, cost, epsilon, stopThr=1e-12)
    else:
        rho = epsilon * tau / (1 - tau)
        expected = pot.unbalanced.sinkhorn_unbalanced(
            a, b, cost, epsilon, rho, reg_type="kl", stopThr=1e-12
        )
        assert expected.sum(1).max() > 1.2 * expected.sum(1).min()
    data = {f"{name}_points": x for name, x in clouds(sizes).items()}
    for name, n in zip(("source", "target"), sizes, strict=True):
        data[name] = jnp.arange(n, dtype=jnp.float32)[:, None]
    pair = pairing.over_the_sets(
        view=lambda key, stored, ids: stored,
        settings=settings,
        batch_size=count,
        fixed_views=False,
        seed=0,
        constrain=lambda x: x,
    )
    drawn = jax.jit(pair)(3, held, data)
    table = np.zeros(sizes)
    np.add.at(table, tuple(np.asarray(x[:, 0], int) for x in drawn[:2]), 1)
    expected *= count / expected.sum()
    assert scipy.stats.chisquare(table.ravel(), expected.ravel()).pvalue > 1e-3
    assert scipy.stats.chisquare(table.sum(1), expected.sum(1)).pvalue > 1e-3
    assert equal(drawn.held, held) and equal(drawn.stats, held.stats)


@pytest.mark.parametrize("fixed_views", [True, False])
def test_copies_are_views_that_stay_the_same_where_they_are_fixed(fixed_views):
    copies, sizes, batch_size = 3, (4, 5), 200
    data = clouds(sizes)
    points = {
        f"{name}_points": jnp.tile(x, (copies if fixed_views else 1, 1))
        for name, x in data.items()
    }
    held = whole.no_plan(*map(len, points.values()))
    pair = pair_sets(sinkhorn.Settings(9.0), batch_size, fixed_views=fixed_views)
    source, target, _ = run(pair, held, data | points, range(4))
    for views, name in ((source, "source"), (target, "target")):
        different = np.unique(views, axis=0)
        if not fixed_views:
            assert len(different) == len(views)
            continue
        n = copies * len(data[name])
        np.testing.assert_array_equal(ids_of(different), np.arange(n))
        shift = embed(different) - np.tile(data[name], (copies, 1))
        assert len(np.unique(shift.round(4), axis=0)) == n
    if fixed_views:
        shift = [
            embed(views)[ids_of(views) == 0][0] - np.asarray(data[name])[0]
            for views, name in ((source, "source"), (target, "target"))
        ]
        assert not np.allclose(*shift, atol=0.1)


def test_training_sees_the_very_views_that_the_whole_plan_is_between(smoke):
    config = smoke(coupling__method="whole", coupling__copies=2, batch_size=64)
    splits = dataset.load(config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    sets = {
        "source": jnp.asarray(splits.source.train[:9]),
        "target": jnp.asarray(splits.target.train[:7]),
    }
    points = planning.all_points(config, cost.pixels, sets, mesh)
    assert {name: len(x) for name, x in points.items()} == {
        "source_points": 18,
        "target_points": 14,
    }
    pair = planning.pair(config, cost.pixels, sinkhorn.Settings(0.01), (9, 7), mesh)
    held = planning.nothing_held(config, (9, 7))  # no potentials: the nearest target
    assert (len(held.f), len(held.g)) == (18, 14)
    drawn = jax.jit(pair)(0, held, sets | points)
    source, target = (cost.pixels(x) for x in drawn[:2])
    np.testing.assert_allclose(
        cdist(source, points["source_points"]).min(1), 0, atol=1e-3
    )
    expected = cdist(source, points["target_points"]).argmin(1)
    np.testing.assert_allclose(target, points["target_points"][expected], atol=1e-5)
    assert len(np.unique(expected)) > 3


@pytest.mark.parametrize("kind", ["over_the_sets", "over_steps"])
def test_pairs_are_the_same_on_one_device_and_on_eight(kind):
    drawn = []
    for devices in (1, 8):
        data, mesh = clouds(), parallel.make_mesh(jax.devices()[:devices])
        constrain = partial(parallel.constrain_batch, mesh)
        if kind == "over_the_sets":
            settings, held = sinkhorn.Settings(0.5), whole.no_plan(*SIZES)
            data |= {f"{name}_points": x for name, x in data.items()}
            pair = pair_sets(settings, 16, fixed_views=True, constrain=constrain)
        else:  # a group smaller than the devices are many
            shape = {"batch_size": 16, "group_size": 4, "draws": 8}
            pair, held = pair_over(nearest, **shape, constrain=constrain)
        state = parallel.put((held, data), parallel.replicated(mesh))
        drawn.append(run(pair, *state, range(2))[:2])
    np.testing.assert_allclose(*drawn, atol=1e-5)
    assert len(set(ids_of(drawn[0][0]))) > 3


@pytest.mark.parametrize(
    "make", [partial(sinkhorn.entropic, TINY), sinkhorn.independent]
)
def test_a_point_of_several_draws_serves_both_directions(make):
    """As every second pair is turned round."""
    points = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 2)), jnp.float32)
    pairs, _ = make(draws=2)(jax.random.key(0), points, points)
    places = [np.flatnonzero(np.asarray(pairs.i[0]) == source) for source in range(6)]
    assert all(sorted(place % 2) == [0, 1] for place in places)


def test_independent_pairs_of_a_group_are_all_different():
    n, draws = 7, 5
    points = jnp.zeros((2, n, 1))
    pairs, _ = sinkhorn.independent(draws)(jax.random.key(0), points, points)
    for i, j in zip(*pairs, strict=True):
        assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == n * draws
        for side in (i, j):
            assert np.bincount(side).tolist() == [draws] * n
            np.testing.assert_array_equal(
                np.sort(side.reshape(draws, n)), np.tile(np.arange(n), (draws, 1))
            )


@pytest.mark.parametrize(
    ("group_size", "draws", "complaint"),
    [
        (4, 3, r"4 \* 3 pairs .*do not fill batches of 8; make them a multiple"),
        (8, 0, r"coupling\.draws is 0; it must be at least 1"),
        (12, 2, "12 neither divides batch_size 8 nor is a multiple"),
        (0, 1, "0 neither divides batch_size 8"),
        (4, 2, ""),
        (16, 1, ""),
        (24, 5, ""),
    ],
)
def test_pairs_that_do_not_fill_batches_are_refused(
    smoke, group_size, draws, complaint
):
    config = smoke(coupling__group_size=group_size, coupling__draws=draws)
    assert config.batch_size == 8
    if not complaint:
        checks.check_config(config, 8)
        return
    with pytest.raises(UserError, match=complaint):
        checks.check_config(config, 8)
