"""Cost spaces as projections and against scikit-learn; features that users bring."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist

from eotjax import parallel, prepare, train
from eotjax.build import dataset, planning
from eotjax.errors import UserError
from eotjax.transport import cost

RNG = np.random.default_rng(0)
SHAPE = (6, 4, 3)
IMAGES = RNG.uniform(-1, 1, (12, *SHAPE)).astype(np.float32)


def principal(count):
    _, directions = cost.principal_components(IMAGES.reshape(12, -1), count)
    return cost.principal(jnp.asarray(directions))


EMBEDS = {
    "pixels": cost.pixels,
    "pooled": cost.pooled(2),
    "principal": lambda x: principal(5)(x),
}


def distances(embed, images):
    points = np.asarray(embed(jnp.asarray(images)), float)
    assert points.ndim == 2 and len(points) == len(images)
    return pdist(points)


@pytest.mark.parametrize("name", EMBEDS)
def test_points_are_orthonormal_coordinates(name):
    """Linear, and of a matrix with orthonormal rows: an orthogonal projection."""
    embed = EMBEDS[name]
    basis = np.eye(np.prod(SHAPE), dtype=np.float32).reshape(-1, *SHAPE)
    matrix = np.asarray(embed(jnp.asarray(basis)))
    dimensions = {"pixels": 72, "pooled": 18, "principal": 5}[name]
    assert matrix.shape == (72, dimensions)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(dimensions), atol=1e-5)
    points = embed(jnp.asarray(IMAGES))
    np.testing.assert_allclose(points, IMAGES.reshape(12, -1) @ matrix, atol=1e-5)
    assert np.all(distances(embed, IMAGES) <= pdist(IMAGES.reshape(12, -1)) + 1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_pooling_keeps_the_distances_of_images_that_are_constant_on_cells(size):
    cells = RNG.normal(size=(7, 6 // size, 4 // size, 3)).astype(np.float32)
    images = np.kron(cells, np.ones((1, size, size, 1), np.float32))
    assert images.shape == (7, *SHAPE)
    np.testing.assert_allclose(
        distances(cost.pooled(size), images), distances(cost.pixels, images)
    )


def test_pooling_sees_cells_and_not_what_is_inside_them():
    embed, images = cost.pooled(2), jnp.asarray(IMAGES)
    rows = np.arange(6)
    swapped = images[:, rows ^ 1]  # 1, 0, 3, 2...: within cells
    moved = images[:, np.roll(rows, 1)]
    np.testing.assert_allclose(embed(swapped), embed(images), atol=1e-6)
    assert np.all(np.abs(embed(moved) - embed(images)).max(1) > 0.1)
    mirrored = distances(embed, IMAGES[:, :, ::-1])
    np.testing.assert_allclose(mirrored, distances(embed, IMAGES), rtol=1e-5)


def test_all_principal_components_keep_all_distances_and_more_keep_more():
    kept = np.array([distances(principal(k), IMAGES) for k in (1, 3, 11)])
    assert np.all(np.diff(kept, axis=0) > -1e-5)
    np.testing.assert_allclose(kept[-1], distances(cost.pixels, IMAGES), rtol=1e-4)


def test_principal_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    x = RNG.normal(size=(60, 9)) @ np.diag(np.arange(1, 10)) + 5
    mean, directions = cost.principal_components(x, 4)
    expected = PCA(4, svd_solver="full").fit(x)
    np.testing.assert_allclose(mean, expected.mean_)
    agreement = np.abs(np.sum(directions.T * expected.components_, axis=1))
    np.testing.assert_allclose(agreement, 1, atol=1e-9)
    embed = cost.principal(jnp.float32(directions))
    np.testing.assert_allclose(
        distances(embed, np.float32(x)), pdist(expected.transform(x)), rtol=1e-4
    )


def test_a_configs_principal_components_are_those_of_what_training_sees(smoke):
    """Tinted digits of one component differ most in how bright their hues are."""
    config = smoke(
        coupling__cost="pca", coupling__components=20, data__image_size=(8, 8)
    )
    splits = dataset.load(config)
    embed = planning.embed(config, splits)
    views = [
        planning.view(config)(jax.random.key(9), jnp.asarray(x), jnp.arange(len(x)))
        for x in splits.train
    ]
    x = np.concatenate(views)
    flat = x.reshape(len(x), -1)
    kept = np.asarray(embed(jnp.asarray(x))).var(0)
    assert kept.shape == (20,)
    # Nearly all that any 20 directions can keep, of views that it has not seen.
    most = np.linalg.eigvalsh(np.cov(flat.T))[::-1]
    assert 0.97 * most[:20].sum() < kept.sum() < 1.001 * most[:20].sum()
    assert kept.sum() < 0.95 * most.sum()


@pytest.fixture
def with_features(tmp_path, vectors):
    """Makes a config of 1-vectors 0, 1, 2... whose features say another order."""

    def make(source=None, target=None, sizes=(30, 20), **changes):
        rng = np.random.default_rng(1)
        sizes = dict(zip(("trainA", "trainB"), sizes, strict=True))
        sizes |= {"testA": 8, "testB": 8}
        numbers = {
            name: np.arange(size, dtype=np.float32)[:, None]
            for name, size in sizes.items()
        }
        np.savez(tmp_path / "numbers.npz", **numbers)
        source = rng.normal(size=(sizes["trainA"], 3)) if source is None else source
        target = rng.normal(size=(sizes["trainB"], 3)) if target is None else target
        features = {"trainA": np.float32(source), "trainB": np.float32(target)}
        np.savez(tmp_path / "features.npz", **features)
        config = vectors(
            data__path=str(tmp_path / "numbers.npz"),
            coupling__cost="features",
            coupling__features=str(tmp_path / "features.npz"),
            batch_size=16,
            coupling__group_size=16,
        )
        for name, value in changes.items():
            config.coupling[name] = value
        return config, features

    return make


@pytest.mark.parametrize("draws", [1, 2])
def test_pairs_follow_the_features_and_not_the_images(with_features, draws):
    sizes = (3000, 2000)  # so many that no image is drawn twice
    config, features = with_features(sizes=sizes, draws=draws, max_iterations=50_000)
    splits = dataset.load(config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    embed, settings = (
        planning.embed(config, splits),
        planning.sinkhorn_settings(config, 1e-3),
    )
    data, drawn = prepare.device_data(config, splits, embed, mesh), {}
    for method in ("entropic", "independent"):
        config.coupling.method = method
        pair = planning.pair(config, embed, settings, sizes, mesh)
        pairs = jax.jit(pair)(0, planning.nothing_held(config, sizes), data)
        drawn[method] = [np.asarray(x[:, 0], int) for x in pairs[:2]]
    (i, j), (all_i, all_j) = drawn["entropic"], drawn["independent"]
    cost = cdist(features["trainA"], features["trainB"], "sqeuclidean")
    assert len(set(all_i)) == len(set(all_j)) == 16
    # The step's own points, in the cheapest of all matchings.
    assert sorted(i) == sorted(all_i) and sorted(j) == sorted(all_j)
    group = cost[all_i][:, all_j]
    best = group[linear_sum_assignment(group)].sum()
    assert cost[i, j].sum() == pytest.approx(best, rel=1e-5)
    assert best < 0.5 * group.trace()


def test_features_stay_with_their_images_where_these_are_streamed(with_features):
    config, features = with_features()
    mesh = parallel.make_mesh(jax.devices()[:1])
    batches = prepare.streamed(config, dataset.load(config), 0, mesh)
    for stored in itertools.islice(batches, 2):
        for side, name in (("source", "trainA"), ("target", "trainB")):
            rows = np.asarray(stored[side][:, 0], int)
            assert len(rows) == 16
            np.testing.assert_array_equal(
                stored[f"{side}_points"], features[name][rows]
            )


def test_a_whole_plan_of_features_is_between_the_images_own(with_features):
    """As many features as sources: every source has one target to go to."""
    order = np.random.default_rng(0).permutation(30)[:20]
    source = 5 * np.eye(30, dtype=np.float32)
    config, _ = with_features(source, source[order], method="whole")
    splits = dataset.load(config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    data = prepare.device_data(config, splits, planning.embed(config, splits), mesh)
    np.testing.assert_array_equal(data["source_points"], source)
    assert planning.WholeSets(config, data, mesh).costs.shape == (30, 20)
    pair = planning.pair(
        config, cost.pixels, planning.sinkhorn_settings(config, 0.5), (30, 20), mesh
    )
    held = planning.nothing_held(config, (30, 20))  # no potentials: the nearest target
    pairs = jax.jit(pair)(0, held, data)
    i, j = (np.asarray(x[:, 0], int) for x in pairs[:2])
    known = np.isin(i, order)
    assert 3 < known.sum() < 16
    np.testing.assert_array_equal(order[j[known]], i[known])


def test_a_run_measures_its_plans_in_features(with_features, monkeypatch, tmp_path):
    mesh = parallel.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)
    config, features = with_features(relative="mean", epsilon=0.1)
    assert train.train(config, tmp_path / "run")
    cost = cdist(features["trainA"], features["trainB"], "sqeuclidean").mean() / 2
    found = json.loads((tmp_path / "run" / "plan.json").read_text())["epsilon"]
    assert found == pytest.approx(0.1 * cost, rel=0.25)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        # Of numbers up to 30 it would be a hundred.
        assert metrics["plan/independent_cost"] == pytest.approx(cost, rel=0.4)
        assert metrics["plan/transport_cost"] < 0.7 * cost


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (
            np.ones((29, 3)),
            r"features \(29, 3\) for the source set of 30; give float32",
        ),
        (np.ones((30, 1, 3, 1), np.uint8), "trainA in .* all four arrays"),
        (np.ones(30), r"trainA in .* is float32 \(30,\)"),
        (np.ones((30, 2)), r"trainB in .* is float32 \(20, 3\)"),
    ],
)
def test_features_that_are_not_one_row_an_image_are_refused(
    with_features, source, complaint
):
    config, _ = with_features(source)
    with pytest.raises(UserError, match=complaint):
        dataset.aligned(config, dataset.load(config))


def test_features_are_refused_where_they_are_missing_and_not_read_unless_used(
    with_features,
):
    config, _ = with_features()
    splits = dataset.load(config)
    assert dataset.aligned(config, splits).keys() == {
        "source",
        "target",
        "source_points",
        "target_points",
    }
    config.coupling.features += ".other"
    with pytest.raises(UserError, match=r"features.npz.other.*coupling\.features=FILE"):
        dataset.aligned(config, splits)
    config.coupling.method = "independent"
    assert dataset.aligned(config, splits).keys() == {"source", "target"}
