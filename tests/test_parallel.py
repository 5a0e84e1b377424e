"""The number of devices changes the speed of a run and nothing else."""

import jax
import numpy as np
import pytest

from eotjax import parallel
from eotjax.build import dataset, learning, planning


def run(config, devices, steps=3):
    """The state and the metrics after some steps, and the jitted step."""
    config = planning.with_epsilon(config, config.coupling.epsilon)
    splits = dataset.load(config)
    shape = dataset.sample_shape(config, splits)
    lengths = (len(splits.train_source), len(splits.train_target))
    mesh = parallel.make_mesh(jax.devices()[:devices])
    training = learning.training(config, shape, lengths, mesh)
    arrays = {"source": splits.train_source, "target": splits.train_target}
    data = parallel.put(arrays, parallel.replicated(mesh))
    state = training.init()
    metrics = None
    for _ in range(steps):
        state, metrics = training.step(state, data)
    return state, metrics, training.step, data


def assert_close(a, b, start):
    """Far closer to each other than training moved either."""

    def distance(x, y):
        return np.sqrt(
            sum(
                float(np.sum((np.float64(u) - v) ** 2))
                for u, v in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
            )
        )

    moved = distance(a, start)
    assert moved > 0
    assert distance(a, b) < 1e-4 * moved


def test_there_are_eight_devices_to_test_with():
    assert jax.device_count() == 8


def test_one_plan_on_eight_devices_gives_the_parameters_of_one_device(smoke):
    many, many_metrics, *_ = run(smoke(), 8)
    one, one_metrics, *_ = run(smoke(), 1)
    assert int(many.step) == int(one.step) == 3
    start = run(smoke(), 8, steps=0)[0].params
    assert_close(many.params, one.params, start)
    assert_close(many.ema_params, one.ema_params, start)
    assert many_metrics.keys() == one_metrics.keys()
    for name, value in many_metrics.items():
        # Of these two what is left is rounding.
        rest = 2e-4 if name in ("plan/marginal_error", "plan/dropped_mass") else 0
        np.testing.assert_allclose(value, one_metrics[name], rtol=1e-4, atol=rest)


@pytest.mark.parametrize("group", [8, 4, 1])
def test_the_networks_work_is_cut_over_the_devices_whatever_the_groups(smoke, group):
    config = smoke(coupling__group_size=group)

    def flops(devices):
        state, _, step, data = run(config, devices, steps=0)
        return step.lower(state, data).compile().cost_analysis()["flops"]

    assert flops(8) < flops(1) / 4


def test_a_plan_on_each_device_gives_the_parameters_of_one_device(vectors):
    config = vectors(batch_size=16, coupling__group_size=2)
    start, many, one = (
        run(config, devices, steps)[0].params
        for devices, steps in ((8, 0), (8, 3), (1, 3))
    )
    assert_close(many, one, start)


def test_plans_that_lie_on_one_device_need_no_data_of_another(vectors):
    _, _, step, data = run(vectors(batch_size=16, coupling__group_size=2), 8)
    state = run(vectors(batch_size=16, coupling__group_size=2), 8, steps=1)[0]
    program = step.lower(state, data).compile().as_text()
    assert "all-reduce" in program  # of the gradients
    assert "all-gather" not in program and "all-to-all" not in program


def test_the_state_is_whole_on_every_device_and_compiled_for_once(vectors):
    state, _, step, _ = run(vectors(), 8, steps=4)
    assert step._cache_size() == 1
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8
        for copy in copies:
            np.testing.assert_array_equal(copy, copies[0])


def test_a_batch_is_cut_over_the_devices():
    mesh = parallel.make_mesh()
    rows = parallel.put(np.arange(32).reshape(16, 2), parallel.split(mesh))
    assert [shard.data.shape for shard in rows.addressable_shards] == [(2, 2)] * 8
    np.testing.assert_array_equal(rows, np.arange(32).reshape(16, 2))
