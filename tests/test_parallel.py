"""One device or eight: the same training, compiled once."""

import jax
import numpy as np
import pytest

from eotjax import build, dataset, parallel

DEVICES = (1, 8)


def run(config, devices, steps=3):
    """The state after some steps, its mesh, and how often the step was compiled."""
    splits = dataset.load(config)
    shape = dataset.sample_shape(config, splits)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    lengths = (len(splits.train_source), len(splits.train_target))
    training = build.training(config, shape, lengths, mesh)
    data = parallel.put(
        {"source": splits.train_source, "target": splits.train_target},
        parallel.replicated(mesh),
    )
    state = training.init()
    for _ in range(steps):
        state, metrics = training.step(state, data)
    return state, metrics, training.step._cache_size()


@pytest.mark.parametrize("group_size", [16, 2])
def test_one_device_equals_eight(smoke, group_size):
    config = smoke(batch_size=16, coupling__group_size=group_size)
    (one, metrics_one, _), (eight, metrics_eight, _) = (run(config, n) for n in DEVICES)
    for name, value in metrics_one.items():
        np.testing.assert_allclose(
            metrics_eight[name], value, rtol=1e-4, atol=1e-5, err_msg=name
        )
    for a, b in zip(
        jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-5)


def test_the_step_is_compiled_once_and_its_state_is_on_every_device(smoke):
    state, _, compilations = run(smoke(), 8, steps=4)
    assert compilations == 1
    assert int(state.step) == 4
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == 8


def test_put_lays_rows_out_in_order():
    mesh = parallel.make_mesh()
    x = np.arange(16.0).reshape(16, 1)
    y = parallel.put({"x": x}, parallel.split(mesh))["x"]
    np.testing.assert_array_equal(np.asarray(y), x)
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 1)}
