"""Plans against POT, the Hungarian method and SciPy; pairs against their plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from eotjax import coupling


@pytest.fixture(scope="module")
def pot():
    """POT, kept from importing TensorFlow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POT_BACKEND_DISABLE_TENSORFLOW", "1")
        import ot
    return ot


def clouds(*shape, seed=0):
    """Two clouds of points, [n, d] or [g, n, d], neither centred nor alike."""
    rng = np.random.default_rng(seed)
    source, target = rng.standard_normal((2, *shape))
    return jnp.float32(source), jnp.float32(0.6 * target + 0.5)


def cost_matrix(n, m, seed=0):
    source, target = clouds(max(n, m), 3, seed=seed)
    return coupling.half_squared_distance(source[:n], target[:m])


@functools.cache
def solver(**settings):
    """`solve`, as tight as float32 can; compiled once for all tests alike."""
    tight = {"threshold": 1e-5, "max_iterations": 20_000}
    return jax.jit(functools.partial(coupling.solve, **tight | settings))


def plan(cost, **settings):
    """(P, Plan)."""
    solved = solver(**settings)(cost)
    return np.exp(np.asarray(solved.log_rows, float)) / len(cost), solved


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_cost_is_half_the_squared_distance_also_far_from_the_origin(offset):
    source, target = clouds(20, 4, 4, 3)
    source, target = source + offset, target[:15] + offset
    flat = (np.asarray(x, float).reshape(len(x), -1) for x in (source, target))
    expected = cdist(*flat, "sqeuclidean") / 2
    cost = coupling.half_squared_distance(source, target)
    np.testing.assert_allclose(cost, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "m", "epsilon"), [(16, 16, 0.2), (64, 64, 1.0), (20, 37, 0.2), (50, 9, 10.0)]
)
def test_a_plan_is_that_of_pot(pot, n, m, epsilon):
    cost = cost_matrix(n, m)
    found, solved = plan(cost, epsilon=epsilon)
    expected = pot.sinkhorn(
        np.full(n, 1 / n),
        np.full(m, 1 / m),
        np.asarray(cost, float),
        epsilon,
        method="sinkhorn_log",
        stopThr=1e-10,
        numItermax=20_000,
    )
    assert solved.converged == 1
    assert np.abs(found - expected).sum() < 1e-4
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_a_plan_of_tiny_epsilon_is_the_hungarian_assignment():
    cost = cost_matrix(24, 24)
    found, solved = plan(
        cost, epsilon=1e-3, relative="mean", threshold=1e-3, max_iterations=50_000
    )
    rows, columns = linear_sum_assignment(np.asarray(cost))
    assert solved.converged == 1
    np.testing.assert_array_equal(found.argmax(1), columns)
    best = np.asarray(cost)[rows, columns].mean()
    assert (found * cost).sum() == pytest.approx(best, rel=2e-3)


def test_a_plan_of_huge_epsilon_is_independent_and_a_matching_has_no_entropy():
    cost = cost_matrix(30, 12)
    found, solved = plan(cost, epsilon=1e5)
    np.testing.assert_allclose(found, 1 / (30 * 12), rtol=1e-3)
    assert coupling.normalised_entropy(solved.log_rows) == pytest.approx(1, abs=1e-5)
    matching = jnp.where(jnp.eye(9) > 0, 0.0, -1e4)
    assert coupling.normalised_entropy(matching) == pytest.approx(0, abs=1e-6)


def test_the_normalised_entropy_is_that_of_scipy():
    found, solved = plan(cost_matrix(20, 37), epsilon=0.2)
    joint, rows, columns = (
        scipy.stats.entropy(p) for p in (found.ravel(), np.ones(20), np.ones(37))
    )
    expected = 2 * joint / (rows + columns) - 1
    entropy = coupling.normalised_entropy(solved.log_rows)
    assert entropy == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("unit", ["mean", "std"])
def test_a_relative_epsilon_is_in_units_of_the_cost(unit):
    cost = cost_matrix(16, 16)
    found, _ = plan(cost, epsilon=0.2, relative=unit)
    absolute = 0.2 * float(getattr(np, unit)(np.asarray(cost)))
    np.testing.assert_allclose(found, plan(cost, epsilon=absolute)[0], atol=1e-7)
    # Rescaling the data then changes nothing.
    np.testing.assert_allclose(
        found, plan(100 * cost, epsilon=0.2, relative=unit)[0], atol=1e-6
    )


def test_pairs_are_drawn_with_the_frequencies_of_the_plan():
    n, draws = 5, 20_000
    source, target = clouds(n, 2)
    couple = jax.jit(coupling.entropic(epsilon=0.5, threshold=1e-5))
    pairs, stats = couple(
        jax.random.key(0), *(jnp.tile(x, (draws, 1, 1)) for x in (source, target))
    )
    np.testing.assert_array_equal(pairs.source, np.tile(source, (draws, 1, 1)))
    partner = (pairs.target[:, :, None] == target[None, None]).all(-1).argmax(-1)
    cost = coupling.half_squared_distance(source, target)
    expected = plan(cost, epsilon=0.5)[0]
    expected /= expected.sum(1, keepdims=True)
    for i in range(n):
        counts = np.bincount(partner[:, i], minlength=n)
        assert scipy.stats.chisquare(counts, draws * expected[i]).pvalue > 1e-3
    mean_cost = float((expected * cost).sum() / n)
    assert stats.transport_cost.mean() == pytest.approx(mean_cost, rel=0.01)
    np.testing.assert_allclose(stats.independent_cost, cost.mean(), rtol=1e-5)


def test_partners_of_different_groups_and_keys_are_drawn_independently():
    source, target = (jnp.tile(x, (2, 1, 1)) for x in clouds(200, 2))
    couple = jax.jit(coupling.entropic(epsilon=10.0))
    first, second = (couple(jax.random.key(k), source, target)[0] for k in (0, 1))
    for other in (first.target[1], second.target[0]):
        assert np.mean((first.target[0] == other).all(-1)) < 0.05


def test_a_group_is_solved_as_if_it_were_alone():
    source, target = clouds(3, 24, 2)
    source = source * jnp.array([1.0, 5.0, 0.2])[:, None, None]
    couple = jax.jit(coupling.entropic(epsilon=0.05, relative="std"))
    _, together = couple(jax.random.key(0), source, target)
    for g in range(3):
        _, alone = couple(jax.random.key(0), source[g : g + 1], target[g : g + 1])
        for name in ("iterations", "converged", "entropy", "independent_cost"):
            np.testing.assert_allclose(
                getattr(alone, name)[0], getattr(together, name)[g], rtol=1e-4
            )
    assert len(set(together.iterations.tolist())) > 1


def test_the_plan_does_not_depend_on_the_order_of_the_points():
    cost, order = cost_matrix(16, 16), np.random.default_rng(0).permutation(16)
    found, shuffled = (plan(c, epsilon=0.2)[0] for c in (cost, cost[order][:, order]))
    np.testing.assert_allclose(shuffled, found[order][:, order], atol=1e-6)


def test_a_plan_that_stopped_too_early_says_so():
    source, target = clouds(1, 64, 2)
    for most, enough in [(10, False), (20_000, True)]:
        couple = coupling.entropic(
            epsilon=1e-2, relative="mean", max_iterations=most, threshold=1e-3
        )
        _, stats = jax.jit(couple)(jax.random.key(0), source, target)
        assert stats.converged[0] == enough
        assert (stats.iterations[0] < most) == enough
        assert stats.marginal_error[0] < 2e-3 if enough else stats.marginal_error > 0.1


def test_a_plan_of_relative_epsilon_1e_4_is_finite():
    source, target = clouds(2, 32, 200)
    couple = jax.jit(coupling.entropic(epsilon=1e-4, relative="mean"))
    pairs, stats = couple(jax.random.key(0), 100 * source, 100 * target)
    assert all(np.isfinite(x).all() for x in (*pairs, *stats))


def test_independent_leaves_the_batch_as_it_is():
    source, target = clouds(2, 500, 3)
    pairs, stats = coupling.independent()(jax.random.key(0), source, target)
    np.testing.assert_array_equal(pairs, (source, target))
    np.testing.assert_array_equal(stats.entropy, 1)
    np.testing.assert_array_equal(stats.marginal_error, 0)
    expected = [
        cdist(x, y, "sqeuclidean").mean() / 2
        for x, y in zip(source, target, strict=True)
    ]
    np.testing.assert_allclose(stats.independent_cost, expected, rtol=1e-5)
    np.testing.assert_allclose(stats.transport_cost, expected, rtol=0.1)
