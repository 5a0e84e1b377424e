"""The number of devices changes the speed of a run and nothing else."""

import jax
import numpy as np
import pytest
from runs import final_state

import eotjax
from benchmarks import tracing
from configs import digits, horse2zebra
from eotjax import parallel, train
from eotjax.build import dataset, learning, planning

BUILT = {}


def built(config, devices):
    """The training of a config on some devices, and its data; made once."""
    key = config.to_json(), devices
    if key not in BUILT:
        BUILT[key] = build(config, devices)
    return BUILT[key]


def build(config, devices):
    config = planning.with_epsilon(config, config.coupling.epsilon)
    splits = dataset.load(config)
    shape = dataset.sample_shape(config, splits.source.train)
    lengths = splits.lengths
    mesh = parallel.make_mesh(jax.devices()[:devices])
    training = learning.training(config, shape, lengths, mesh)
    arrays = {"source": splits.source.train, "target": splits.target.train}
    return training, parallel.put(arrays, parallel.replicated(mesh))


def run(config, devices, steps=3, optimised=False):
    """The state and the metrics after some steps, the step that made them, its data.

    XLA optimises the step, as in use, only where it is asked to.
    """
    training, data = built(config, devices)
    state, metrics, step = training.init(), None, training.step
    if optimised:
        step = step.lower(state, data).compile(
            compiler_options={"xla_backend_optimization_level": 1}
        )
    for _ in range(steps):
        state, metrics = step(state, data)
    return state, metrics, step, data


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
    many, many_metrics, *_ = run(smoke(), 8, optimised=True)
    one, one_metrics, *_ = run(smoke(), 1, optimised=True)
    assert int(many.step) == int(one.step) == 3
    start = run(smoke(), 8, steps=0)[0].params
    assert_close(many.params, one.params, start)
    assert_close(many.ema_params, one.ema_params, start)
    assert many_metrics.keys() == one_metrics.keys()
    for name, value in many_metrics.items():
        # Of these two what is left is rounding.
        rest = 2e-4 if name in ("plan/marginal_error", "plan/dropped_mass") else 0
        np.testing.assert_allclose(
            value, one_metrics[name], rtol=1e-4, atol=rest, err_msg=name
        )


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


@pytest.mark.parametrize("sharded", [False, True])
def test_what_devices_exchange_is_the_parameters_whatever_the_images(smoke, sharded):
    found = []
    for side in (16, 32):
        config = smoke(
            batch_size=16,
            coupling__group_size=2,
            data__image_size=(side, side),
            model__sharded=sharded,
        )
        state, _, step, data = run(config, 8, steps=0)
        found.append(tracing.collected(step.lower(state, data).compile().as_text()))
    small, large = found
    size = sum(x.nbytes for x in jax.tree.leaves(state.params))
    assert small == large
    assert set(small) == ({"all-reduce", "all-gather"} if sharded else {"all-reduce"})
    assert size <= small["all-reduce"][1] < 1.1 * size + 4096
    if sharded:  # once forward, and perhaps once backward
        assert 0.9 * size <= small["all-gather"][1] < 2.2 * size


def test_collectives_are_counted_in_a_programs_text():
    program = """
      %a = f32[8,3]{1,0} all-reduce(%x), replica_groups={}
      %b = (bf16[10]{0}, s32[]) all-reduce-start(%y, %z), to_apply=%add
      ROOT %c = pred[16] all-gather(%w)
      %d = f32[8] add(%all-reduce, %a)
    """
    found = tracing.collected(program)
    assert found == {"all-reduce": (2, 96 + 20 + 4), "all-gather": (1, 16)}


def test_the_state_is_whole_on_every_device_and_compiled_for_once(vectors):
    state, _, step, _ = run(vectors(), 8, steps=4)
    assert step._cache_size() == 1
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8
        for copy in copies:
            np.testing.assert_array_equal(copy, copies[0])


def test_a_microbatch_takes_less_memory_and_trains_to_the_same_parameters(smoke):
    config = smoke(batch_size=64, coupling__group_size=8)
    start, whole = (run(config, 8, steps)[0].params for steps in (0, 3))
    config.microbatch = 16
    assert_close(run(config, 8)[0].params, whole, start)

    def temporary(config):
        state, _, step, data = run(config, 8, steps=0)
        program = step.lower(state, data).compile()
        assert set(tracing.collected(program.as_text())) == {"all-reduce"}
        return program.memory_analysis().temp_size_in_bytes

    parted = temporary(config)
    config.microbatch = 0
    assert parted < 0.6 * temporary(config)


def test_a_batch_in_pieces_counts_as_many_flops(smoke):
    mesh = parallel.make_mesh(jax.devices()[:1])
    of_64 = {"batch_size": 64, "coupling__group_size": 8}
    whole, cut = (
        tracing.traced(smoke(microbatch=size, **of_64), mesh, (64, 64))
        for size in (0, 8)
    )
    assert whole[1] == cut[1] > 2 * parallel.flops(cut[0])


def test_a_state_that_is_shared_out_trains_to_the_same_parameters(smoke):
    start, one = (run(smoke(), 1, steps)[0] for steps in (0, 3))
    many, *_ = run(smoke(model__sharded=True), 8)
    for name in ("params", "ema_params"):
        alike = getattr(many, name), getattr(one, name)
        assert_close(*alike, start.params)
    held = jax.tree.leaves(many.params) + jax.tree.leaves(many.opt_state)
    whole = sum(x.nbytes for x in held)
    here = sum(x.addressable_shards[3].data.nbytes for x in held)
    assert here < 1.3 * whole / 8  # of a tiny network much cannot be cut


@pytest.mark.parametrize(
    "config",
    [digits.get_config("bridge"), horse2zebra.get_config("large")],
    ids=["digits", "horses"],
)
def test_a_device_of_eight_holds_an_eighth_of_the_state(config):
    config = planning.with_epsilon(config, 1.0)
    config.model.sharded, shape = True, (16, 16, 3)
    config.estimator.noise, config.estimator.moments = "white", (1.0, 1.0, 0.5)
    if config.latent.weights:
        shape, config.latent.channels = (256, 256, 3), 32
    mesh = parallel.make_mesh()
    training = learning.training(config, shape, (64, 64), mesh)
    state = jax.eval_shape(training.init)
    whole = jax.tree.map(lambda _: parallel.replicated(mesh), state)
    ratio = parallel.bytes_held(state, whole) / parallel.bytes_held(
        state, training.layout
    )
    assert ratio == pytest.approx(8, rel=0.05)


def test_a_run_is_carried_on_whether_its_state_is_shared_out_or_not(
    smoke, trained, tmp_path, interrupt
):
    interrupt(2)
    assert not train.train(smoke(model__sharded=True), tmp_path)
    shared = final_state(smoke(), tmp_path)
    interrupt(3)
    assert not train.train(smoke(), tmp_path)
    interrupt(None)
    assert train.train(smoke(model__sharded=True), tmp_path)
    states = [final_state(smoke(), workdir) for workdir in (trained, tmp_path)]
    assert [int(state.step) for state in states] == [4, 4]
    assert_close(states[0].params, states[1].params, shared.params)
    exported = eotjax.load(tmp_path / "export")._params
    jax.tree.map(np.testing.assert_array_equal, exported, states[1].ema_params)


def test_an_array_that_the_devices_do_not_divide_stays_whole():
    mesh = parallel.make_mesh()
    shapes = {"a": (3, 3, 16, 24), "b": (7,), "c": (), "d": (8, 8), "e": (0, 5)}
    tree = {name: jax.ShapeDtypeStruct(shape, "f4") for name, shape in shapes.items()}
    layouts = parallel.shared_out(tree, mesh)
    pieces = {name: layouts[name].shard_shape(shape) for name, shape in shapes.items()}
    assert pieces == shapes | {"a": (3, 3, 16, 3), "d": (1, 8)}
    assert parallel.bytes_held(tree, layouts) == 4 * (432 + 7 + 1 + 8)
    values = np.arange(64.0, dtype="f4").reshape(8, 8)
    cut = parallel.put(values, layouts["d"])
    assert cut.addressable_shards[2].data.shape == (1, 8)
    whole = parallel.gathered(cut, mesh)
    assert whole.sharding.is_fully_replicated
    np.testing.assert_array_equal(whole, values)


def test_a_batch_is_cut_over_the_devices():
    mesh = parallel.make_mesh()
    rows = parallel.put(np.arange(32).reshape(16, 2), parallel.split(mesh))
    assert [shard.data.shape for shard in rows.addressable_shards] == [(2, 2)] * 8
    np.testing.assert_array_equal(rows, np.arange(32).reshape(16, 2))
