"""The epsilon of a run: in units of the cost, or by the entropy of its plan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from eotjax import parallel
from eotjax.build import planning
from eotjax.errors import UserError
from eotjax.transport import cost as spaces
from eotjax.transport import epsilon, sinkhorn, whole


def clouds(scale=1.0, n=48):
    rng = np.random.default_rng(0)
    source, target = rng.standard_normal((2, n, 3), dtype=np.float32)
    return scale * source, scale * (0.6 * target + 0.5)


def described(source, target):
    """epsilon -> the plan between two clouds, as scalars."""
    cost = sinkhorn.half_squared_distance(jnp.asarray(source), jnp.asarray(target))

    @jax.jit
    def describe(epsilon):
        settings = sinkhorn.Settings(epsilon, max_iterations=20_000)
        found = sinkhorn.solve(cost, settings)
        rows = sinkhorn.describe_rows(cost, found.g, epsilon)
        return sinkhorn.describe(found, rows, settings)[1]

    return describe, float(cost.mean())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("wanted", [0.1, 0.5, 0.9])
def test_the_epsilon_found_has_the_entropy_wanted_in_any_units(wanted, scale):
    describe, mean = described(*clouds(scale))
    tried = []
    found = epsilon.of_entropy(describe, wanted, mean=mean, report=tried.append)
    assert float(describe(found).entropy) == pytest.approx(wanted, abs=0.01)
    assert len(tried) == len(set(tried)) < 12
    again = epsilon.of_entropy(describe, wanted, mean=mean, report=tried.append)
    assert again == found


def test_the_epsilon_grows_with_the_entropy_wanted():
    describe, mean = described(*clouds())
    found = [
        epsilon.of_entropy(describe, wanted, mean=mean, report=str)
        for wanted in (0.05, 0.2, 0.4, 0.8)
    ]
    assert np.all(np.diff(found) > 0)


def test_an_entropy_that_no_solved_plan_has_is_refused():
    cost_mean = described(*clouds())[1]
    describe, _ = described(*clouds())

    def unsolved(value):
        return describe(value)._replace(converged=0.0)

    with pytest.raises(UserError, match="does not converge; set"):
        epsilon.of_entropy(unsolved, 0.1, mean=cost_mean, report=str)

    def constant(value):
        return describe(cost_mean)._replace(entropy=0.5)

    for wanted, way in [(0.1, "higher"), (0.9, "lower")]:
        with pytest.raises(UserError, match=f"still is 0.500; set .* {way}"):
            epsilon.of_entropy(constant, wanted, mean=cost_mean, report=str)
    with pytest.raises(UserError, match="all images are equal"):
        epsilon.of_entropy(describe, 0.5, mean=0.0)


def test_only_the_plan_that_is_kept_must_be_solved():
    describe, mean = described(*clouds())
    expected = epsilon.of_entropy(describe, 0.1, mean=mean, report=str)

    def unsolved_below(value):
        return describe(value)._replace(converged=float(value > 0.9 * expected))

    found = epsilon.of_entropy(unsolved_below, 0.1, mean=mean, report=str)
    assert found == expected


@pytest.mark.parametrize("unit", ["mean", "std"])
@pytest.mark.parametrize("method", ["entropic", "whole", "independent"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_relative_epsilon_is_in_units_of_the_cost(vectors, unit, method, scale):
    source, target = clouds(scale)
    config = vectors(
        coupling__epsilon=0.2, coupling__relative=unit, coupling__method=method
    )
    mesh = parallel.make_mesh()
    cost = cdist(source, target, "sqeuclidean") / 2
    sets = {"source": jnp.asarray(source), "target": jnp.asarray(target)}

    def trials():
        if method == "whole":
            points = planning.all_points(config, spaces.pixels, sets, mesh)
            return planning.WholeSets(config, points, mesh).trials()
        return planning.try_groups(
            config, spaces.pixels, [sets] * 64, (len(source), len(target)), mesh
        )

    found = planning.find_epsilon(config, trials)
    # The batches' cost is a sample of the sets' cost.
    exact = 1e-4 if method == "whole" else 0.1
    assert found == pytest.approx(0.2 * getattr(np, unit)(cost), rel=exact)


def test_a_given_epsilon_is_taken_without_trying_any_plan(vectors):
    config = vectors(coupling__epsilon=0.2, coupling__relative="")
    assert planning.find_epsilon(config, lambda: pytest.fail("tried")) == 0.2


def test_a_whole_plan_goes_on_from_the_last_one_tried(vectors, monkeypatch):
    config = vectors(coupling__method="whole", coupling__threshold=1e-4)
    mesh = parallel.make_mesh()
    source, target = map(jnp.asarray, clouds(1.0))
    points = {"source_points": source, "target_points": target}
    made, make = [], whole.make_geometry
    monkeypatch.setattr(
        whole, "make_geometry", lambda *x, **y: made.append(1) or make(*x, **y)
    )
    sets = planning.WholeSets(config, points, mesh)
    sets.trials().independent()
    tried = sets.plan(0.3)
    again = sets.plan(0.3)
    assert len(made) == 1
    assert again.stats.iterations < tried.stats.iterations / 4
    anew = planning.WholeSets(config, points, mesh).plan(0.3)
    assert again.stats.entropy == pytest.approx(float(anew.stats.entropy), abs=1e-3)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("dense_gib", [0, 1])
@pytest.mark.parametrize("tau", [1.0, 0.9])
def test_the_whole_plan_is_that_of_one_dense_solve(
    monkeypatch, devices, dense_gib, tau
):
    monkeypatch.setattr(whole, "BLOCK_BYTES", 2**12)  # several blocks a device
    source, target = map(jnp.asarray, clouds(n=301))
    target = target[:200]
    mesh = parallel.make_mesh(jax.devices()[:devices])
    settings = sinkhorn.Settings(0.3, 1e-5, 5_000, tau, tau)
    costs = whole.make_geometry(source, target, mesh=mesh, dense_gib=dense_gib)
    devices, blocks, rows, _ = costs.blocks.shape
    assert blocks > 1 and devices * blocks * rows > 301
    assert (costs.target is None) == (dense_gib == 1)
    found = whole.solve(costs, settings, mesh=mesh)
    cost = sinkhorn.half_squared_distance(source, target)
    expected = sinkhorn.solve(cost, settings)
    rows = sinkhorn.describe_rows(cost, expected.g, settings.epsilon)
    log_mass, stats = sinkhorn.describe(expected, rows, settings)
    shift = found.f[0] - expected.f[0]  # the potentials' free constant
    np.testing.assert_allclose(found.f - shift, expected.f, atol=1e-3)
    np.testing.assert_allclose(found.g + shift, expected.g, atol=1e-3)
    np.testing.assert_allclose(found.log_mass, log_mass, atol=1e-3)
    assert found.stats.converged == 1
    for name in ("entropy", "transport_cost", "independent_cost", "independent_std"):
        np.testing.assert_allclose(
            getattr(found.stats, name), getattr(stats, name), rtol=1e-3
        )
    np.testing.assert_allclose(found.stats.dropped_mass, stats.dropped_mass, atol=1e-3)
    assert (stats.dropped_mass > 0.05) == (tau < 1)


@pytest.mark.parametrize("method", ["whole", "entropic"])
def test_a_config_finds_the_epsilon_of_its_entropy(vectors, method):
    source, target = map(jnp.asarray, clouds())
    config = vectors(
        coupling__entropy=0.4,
        coupling__relative="",
        coupling__method=method,
        coupling__group_size=48,
        coupling__max_iterations=20_000,
        batch_size=48,
    )
    mesh = parallel.make_mesh(jax.devices()[:1])
    sets = {"source": source, "target": target}
    if method == "whole":
        points = planning.all_points(config, spaces.pixels, sets, mesh)
        trials = planning.WholeSets(config, points, mesh).trials()
    else:
        trials = planning.try_groups(config, spaces.pixels, [sets] * 2, (48, 48), mesh)
    found = planning.find_epsilon(config, lambda: trials)
    assert float(trials.entropic(found).entropy) == pytest.approx(0.4, abs=0.01)


def test_a_plan_is_solved_as_its_config_says(vectors):
    settings = planning.sinkhorn_settings(
        vectors(coupling__tau_source=0.9, coupling__tau_target=0.8)
    )
    assert (settings.tau_source, settings.tau_target) == (0.9, 0.8)
