"""Plans against POT, the Hungarian method and SciPy; pairs against their plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from eotjax.transport import sinkhorn


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
    return sinkhorn.half_squared_distance(source[:n], target[:m])


def settings_of(**settings):
    """As tight as float32 can."""
    tight = {"threshold": 1e-5, "max_iterations": 20_000}
    return sinkhorn.Settings(**tight | settings)


@functools.cache
def compiled(settings):
    """`solve` compiled once for all tests alike."""
    return jax.jit(functools.partial(sinkhorn.solve, settings=settings))


def plan(cost, **settings):
    """(P, Potentials)."""
    settings = settings_of(**settings)
    solved = compiled(settings)(cost)
    exponent = (solved.f[:, None] + solved.g[None, :] - cost) / settings.epsilon
    return np.exp(np.asarray(exponent, float)) / cost.size, solved


def entropic(**settings):
    """`entropic` with these settings, jitted."""
    return jax.jit(sinkhorn.entropic(sinkhorn.Settings(**settings)))


def entropy_of(plan):
    """sinkhorn.normalised_entropy of a matrix that sums to 1."""
    rows = plan / plan.sum(1, keepdims=True)
    row_entropy = jax.scipy.special.entr(jnp.float32(rows)).sum(1)
    return sinkhorn.normalised_entropy(
        jnp.float32(plan.sum(1)), row_entropy, plan.shape[1]
    )


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_cost_is_half_the_squared_distance_also_far_from_the_origin(offset):
    source, target = clouds(20, 48)
    source, target = source + offset, target[:15] + offset
    expected = cdist(np.float64(source), np.float64(target), "sqeuclidean") / 2
    cost = sinkhorn.half_squared_distance(source, target)
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
    assert solved.error <= 1e-5
    assert np.abs(found - expected).sum() < 1e-4
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_a_plan_of_tiny_epsilon_is_the_hungarian_assignment():
    cost = cost_matrix(24, 24)
    found, solved = plan(
        cost, epsilon=1e-3 * float(cost.mean()), threshold=1e-3, max_iterations=50_000
    )
    rows, columns = linear_sum_assignment(np.asarray(cost))
    assert solved.error <= 1e-3
    np.testing.assert_array_equal(found.argmax(1), columns)
    best = np.asarray(cost)[rows, columns].mean()
    assert (found * cost).sum() == pytest.approx(best, rel=2e-3)


def test_a_plan_of_huge_epsilon_is_independent_and_a_matching_has_no_entropy():
    cost = cost_matrix(30, 12)
    found, _ = plan(cost, epsilon=1e5)
    np.testing.assert_allclose(found, 1 / (30 * 12), rtol=1e-3)
    assert entropy_of(found) == pytest.approx(1, abs=1e-5)
    assert entropy_of(np.eye(9) / 9) == pytest.approx(0, abs=1e-6)


def test_the_normalised_entropy_is_that_of_scipy():
    found, _ = plan(cost_matrix(20, 37), epsilon=0.2)
    joint, rows, columns = (
        scipy.stats.entropy(p) for p in (found.ravel(), np.ones(20), np.ones(37))
    )
    expected = 2 * joint / (rows + columns) - 1
    assert entropy_of(found) == pytest.approx(expected, abs=1e-5)


def test_pairs_are_drawn_with_the_frequencies_of_the_plan():
    n, draws = 5, 20_000
    source, target = clouds(n, 2)
    couple = entropic(epsilon=0.5, threshold=1e-5)
    pairs, stats = couple(
        jax.random.key(0), *(jnp.tile(x, (draws, 1, 1)) for x in (source, target))
    )
    np.testing.assert_array_equal(pairs.i, np.tile(np.arange(n), (draws, 1)))
    partner = np.asarray(pairs.j)
    cost = sinkhorn.half_squared_distance(source, target)
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
    couple = entropic(epsilon=10.0)
    first, second = (couple(jax.random.key(k), source, target)[0] for k in (0, 1))
    for other in (first.j[1], second.j[0]):
        assert np.mean(first.j[0] == other) < 0.05


def test_a_group_is_solved_as_if_it_were_alone():
    source, target = clouds(3, 24, 2)
    source = source * jnp.array([1.0, 5.0, 0.2])[:, None, None]
    couple = entropic(epsilon=0.2)
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
        couple = entropic(epsilon=0.01, max_iterations=most, threshold=1e-3)
        _, stats = couple(jax.random.key(0), source, target)
        assert stats.converged[0] == enough
        assert (stats.iterations[0] < most) == enough
        assert stats.marginal_error[0] < 2e-3 if enough else stats.marginal_error > 0.1


def test_a_plan_of_relative_epsilon_1e_4_is_finite():
    source, target = clouds(2, 32, 200)
    cost = sinkhorn.half_squared_distance(source[0], target[0]).mean()
    couple = entropic(epsilon=float(cost))  # of data a hundred times smaller
    pairs, stats = couple(jax.random.key(0), 100 * source, 100 * target)
    assert all(np.isfinite(x).all() for x in (*pairs, *stats))


def test_independent_leaves_the_batch_as_it_is():
    source, target = clouds(2, 500, 3)
    pairs, stats = sinkhorn.independent()(jax.random.key(0), source, target)
    np.testing.assert_array_equal(pairs, np.tile(np.arange(500), (2, 2, 1)))
    np.testing.assert_array_equal(stats.entropy, 1)
    np.testing.assert_array_equal(stats.marginal_error, 0)
    expected = [
        cdist(x, y, "sqeuclidean").mean() / 2
        for x, y in zip(source, target, strict=True)
    ]
    np.testing.assert_allclose(stats.independent_cost, expected, rtol=1e-5)
    np.testing.assert_allclose(stats.transport_cost, expected, rtol=1e-5)


@pytest.mark.parametrize(("n", "m", "taus"), [(40, 30, (0.8, 0.8)), (30, 40, (0.9, 1))])
def test_an_unbalanced_plan_is_that_of_pot(pot, n, m, taus):
    cost, epsilon = cost_matrix(n, m), 0.3
    found, solved = plan(cost, epsilon=epsilon, tau_source=taus[0], tau_target=taus[1])
    rho = tuple(epsilon * t / (1 - t) if t < 1 else np.inf for t in taus)
    expected = pot.unbalanced.sinkhorn_unbalanced(
        np.full(n, 1 / n),
        np.full(m, 1 / m),
        np.asarray(cost, float),
        epsilon,
        rho,
        reg_type="kl",
        numItermax=20_000,
        stopThr=1e-12,
    )
    assert solved.error <= 1e-5
    assert np.abs(found - expected).sum() < 1e-4
    dropped = 1 - expected.sum()
    # A side that is kept exactly keeps the whole mass; only its rows' shares change.
    assert 0.05 < dropped < 0.95 if max(taus) < 1 else abs(dropped) < 1e-6


def test_an_unbalanced_plan_leaves_an_outlier_alone_and_tells_what_it_dropped():
    source, target = clouds(1, 32, 2)
    source = source.at[0, 0].set(30.0)
    balanced, kept = entropic(epsilon=0.5)(jax.random.key(0), source, target)
    settings = {"epsilon": 0.5, "tau_source": 0.9, "tau_target": 0.9}
    pairs, stats = entropic(**settings)(jax.random.key(0), source, target)
    assert 0 in balanced.i[0].tolist() and 0 not in pairs.i[0].tolist()
    assert kept.dropped_mass[0] == pytest.approx(0, abs=1e-3)
    found, _ = plan(sinkhorn.half_squared_distance(source[0], target[0]), **settings)
    assert stats.dropped_mass[0] == pytest.approx(1 - found.sum(), abs=1e-3)
    assert stats.transport_cost[0] < kept.transport_cost[0] / 2
