"""Known plans against Monte Carlo and a discrete solve; the report on a tiny model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import eotjax
from configs import known_plan as config_file
from eotjax import train
from eotjax.build import dataset
from eotjax.errors import UserError
from eotjax.evaluation import evaluate
from eotjax.transport import known_plan, moments, sinkhorn


@pytest.mark.parametrize("source", ["gaussian", "mixture"])
@pytest.mark.parametrize("covariance", ["isotropic", "full"])
def test_exact_draws_have_the_exact_conditional_moments(source, covariance):
    truth = known_plan.make(
        dim=3, epsilon=0.7, seed=1, source=source, covariance=covariance
    )
    x = known_plan.sample_mixture(jax.random.key(0), truth.source, 4)
    draws = 40_000
    y = known_plan.sample(jax.random.key(1), truth, jnp.repeat(x, draws, 0))
    found = moments.of(np.asarray(y).reshape(4, draws, 3))
    exact = known_plan.conditional_moments(truth, x)
    np.testing.assert_allclose(found.mean, exact.mean, atol=0.06)
    np.testing.assert_allclose(found.covariance, exact.covariance, atol=0.12)
    distance = moments.bures_wasserstein(exact, found)
    assert np.all(np.abs(distance) < 3e-3)


@pytest.mark.parametrize("covariance", ["isotropic", "full"])
def test_a_discrete_plan_of_many_points_comes_to_the_closed_form(covariance):
    """Sinkhorn knows nothing of the closed form: it sees unpaired samples."""
    truth = known_plan.make(dim=2, epsilon=1.0, covariance=covariance)
    keys, n = jax.random.split(jax.random.key(0), 4), 4_000
    x = known_plan.sample_mixture(keys[0], truth.source, n)
    hidden = known_plan.sample_mixture(keys[1], truth.source, n)
    y = known_plan.sample(keys[2], truth, hidden)
    cost = sinkhorn.half_squared_distance(x, y)
    found = jax.jit(sinkhorn.solve, static_argnums=1)(cost, sinkhorn.Settings(1.0))
    rows, _ = sinkhorn.log_rows(cost, found.g, 1.0)
    exact = known_plan.conditional_moments(truth, x).mean
    wrong = jnp.mean(jnp.sum((jnp.exp(rows) @ y - exact) ** 2, 1))
    assert wrong < 0.01 * jnp.mean(jnp.var(y, axis=0)) * 2


def test_the_targets_moments_are_those_of_its_samples():
    truth = known_plan.make(dim=3, epsilon=1.0)
    keys, n = jax.random.split(jax.random.key(0), 3), 100_000
    source = known_plan.sample_mixture(keys[0], truth.source, n)
    y = np.asarray(known_plan.sample(keys[1], truth, source))
    target = known_plan.target_moments(truth, keys[2])
    np.testing.assert_allclose(target.mean, y.mean(0), atol=0.06)
    np.testing.assert_allclose(target.covariance, np.cov(y.T), atol=0.2)


def test_the_distance_of_gaussians_in_one_dimension_and_of_singular_ones():
    def normal(mean, std):
        return moments.Moments(np.array([mean]), np.array([[std**2]]))

    distance = moments.bures_wasserstein(normal(1.0, 2.0), normal(4.0, 0.5))
    assert distance == pytest.approx((3.0**2 + 1.5**2) / 2)
    flat = moments.Moments(np.zeros(2), np.diag([4.0, 0.0]))
    assert moments.bures_wasserstein(flat, flat) == pytest.approx(0)


@pytest.mark.parametrize("estimator", ["bridge", "cde"])
def test_a_run_is_judged_beside_what_bounds_it(monkeypatch, tmp_path, estimator):
    monkeypatch.setattr(known_plan, "SAMPLES", 200)
    config: ConfigDict = config_file.get_config(f"{estimator},smoke")
    config.known.dim = 2
    assert train.train(config, tmp_path)
    report = json.loads((tmp_path / "export" / "evaluation.json").read_text())
    rows = {name: row["cbw2_uvp"] for name, row in report["forward"]["rows"].items()}
    # A tiny plan is better than none and worse than the truth, and so few steps of
    # training teach nothing.
    assert 0 < rows["exact"] < 5 < rows["independent"]
    assert rows["exact"] < rows["rows"] < rows["independent"]
    assert rows["eotjax"] > rows["exact"]
    for name in ("exact", "independent"):  # both are of the targets' law
        assert 0 <= report["forward"]["rows"][name]["bw2_uvp"] < 0.5
    translator = eotjax.load(tmp_path / "export")
    splits = dataset.load(translator.config)
    with pytest.raises(UserError, match="judged forward only"):
        evaluate.report(translator, splits, tmp_path, directions=("backward",))


@pytest.mark.parametrize("key", ["source", "covariance"])
def test_an_unknown_law_is_refused(tmp_path, key):
    config = config_file.get_config("smoke")
    config.known[key] = "other"
    with pytest.raises(UserError, match=rf"known\.{key} is 'other'; .* one of"):
        train.train(config, tmp_path)
