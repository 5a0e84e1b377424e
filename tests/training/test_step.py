"""The training step against numpy, and end to end on a plan known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist

from eotjax.data import batch
from eotjax.diffusion import sampler, schedule
from eotjax.diffusion.conditional import ConditionalScore
from eotjax.diffusion.estimator import Example
from eotjax.networks.mlp import MLP
from eotjax.training import step
from eotjax.transport import pairing, sinkhorn


def plain(key, source, target, direction, t):
    """Regress the target on the source, as they are."""
    del key
    return Example(inputs=source, t=t, label=direction, output=target)


def scale(params, inputs, t, label, key):
    """The network y = w x."""
    del t, label, key
    return params["w"] * inputs


def draw_pairs(key, data):
    """Sources, and targets that are twice those and `data`."""
    source = jax.random.normal(key, (8, 3))
    return source, 2 * source + data


def pair_with(draw, couple, group_size, seed=0):
    """Pairs of each step's independent draws."""

    def pair(number, held, data):
        key_draw, key_plan = batch.step_keys(seed, number)[:2]
        source, target = draw(key_draw, data)
        groups = [x.reshape(-1, group_size, x.shape[1]) for x in (source, target)]
        pairs, stats = couple(key_plan, *groups)
        source, target = (
            jax.vmap(lambda x, rows: x[rows])(x, rows).reshape(source.shape)
            for x, rows in zip(groups, pairs, strict=True)
        )
        return pairing.Drawn(source, target, stats, held)

    return pair


def make_step(optimizer, seed=0, **changes):
    parts = {
        "pair": pair_with(draw_pairs, sinkhorn.independent(), 4, seed),
        "make_example": plain,
        "apply": scale,
        "optimizer": optimizer,
        "ema_decay": 0.6,
        "seed": seed,
    }
    return jax.jit(step.make_train_step(**parts | changes))


def optimizer_of(peak=0.1, **settings):
    settings = {"warmup_steps": 0, "total_steps": 100} | settings
    return step.make_optimizer(learning_rate=peak, **settings)


@pytest.fixture
def start():
    return step.init({"w": jnp.array(0.5)}, optimizer_of().update)


def test_loss_and_gradient_norm_are_those_of_numpy(start):
    _, metrics = make_step(optimizer_of().update)(start, 0.3)
    source, target = map(np.asarray, draw_pairs(batch.step_keys(0, 0).draw, 0.3))
    rest = 0.5 * source - target
    assert metrics["loss"] == pytest.approx(np.mean(rest**2), rel=1e-5)
    gradient = abs(2 * np.mean(rest * source))
    assert metrics["grad_norm"] == pytest.approx(gradient, rel=1e-5)
    # Independent pairs: all of a group are as likely.
    groups = zip(*(x.reshape(2, 4, 3) for x in (source, target)), strict=True)
    cost = np.mean([cdist(x, y, "sqeuclidean") / 2 for x, y in groups])
    assert metrics["plan/transport_cost"] == pytest.approx(cost, rel=1e-5)


@pytest.mark.parametrize("pieces", [2, 8])
def test_a_batch_in_pieces_has_the_same_gradient(start, pieces):
    update = optimizer_of().update
    whole, one = make_step(update)(start, 0.3)
    cut, some = make_step(update, pieces=pieces)(start, 0.3)
    for a, b in ((whole.params, cut.params), (one, some)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_every_piece_has_rows_of_all_devices():
    """Of eight rows on four devices, two each, a piece of four has one of each."""
    first, second = step.dealt(jnp.arange(8), 2)
    assert first.tolist() == [0, 2, 4, 6] and second.tolist() == [1, 3, 5, 7]


def test_the_step_is_a_function_of_the_state_the_data_and_the_seed(start):
    train_step = make_step(optimizer_of().update)
    first, again = train_step(start, 0.0), train_step(start, 0.0)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    others = [
        train_step(start, 1.0),
        train_step(start._replace(step=jnp.array(1)), 0.0),
        make_step(optimizer_of().update, seed=1)(start, 0.0),
    ]
    losses = {float(metrics["loss"]) for _, metrics in (first, *others)}
    assert len(losses) == 4


def test_every_random_choice_of_a_step_has_a_key_of_its_own():
    keys = [key for at in [(0, 0), (0, 1), (1, 0)] for key in batch.step_keys(*at)]
    keys += batch.view_keys(0)
    words = {tuple(jax.random.key_data(key).tolist()) for key in keys}
    assert len(words) == 15 + 4


def test_training_lowers_the_loss_to_the_least_squares_solution(start):
    train_step, state = make_step(optimizer_of(total_steps=150).update), start
    losses = []
    for _ in range(150):
        state, metrics = train_step(state, 0.0)
        losses.append(metrics["loss"])
    assert state.step == 150
    assert state.params["w"] == pytest.approx(2, abs=1e-3)
    assert losses[-1] < 1e-4 * losses[0]


def test_one_network_learns_both_ways_of_the_pairs():
    """Targets are twice the sources: 2 one way, 1/2 back."""
    train_step = make_step(
        optimizer_of(total_steps=300).update,
        both=True,
        apply=lambda params, inputs, t, label, key: (
            params["w"][label][:, None] * inputs
        ),
    )
    state = step.init({"w": jnp.array([1.0, 1.0])}, optimizer_of().update)
    for _ in range(300):
        state, _ = train_step(state, 0.0)
    np.testing.assert_allclose(state.params["w"], [2, 0.5], atol=1e-2)


def test_the_average_of_the_parameters_warms_up_to_its_decay(start):
    train_step, state = make_step(optimizer_of().update), start
    history, averages = [float(state.params["w"])], []
    for _ in range(20):
        state, _ = train_step(state, 0.0)
        history.append(float(state.params["w"]))
        averages.append(float(state.ema_params["w"]))
    # The new parameters' weight: 9/10, 9/11, 9/12 ... and no less than 1 - 0.6.
    weights = np.maximum(9 / np.arange(10, 30), 0.4)
    expected = history[0]
    for weight, new, average in zip(weights, history[1:], averages, strict=True):
        expected = (1 - weight) * expected + weight * new
        assert average == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_step_of_no_finite_loss_changes_nothing_but_its_number(start, bad):
    train_step = make_step(optimizer_of().update)
    before, _ = train_step(start, 0.0)
    after, metrics = train_step(before, bad)
    assert (metrics["skipped"], metrics["loss"], metrics["grad_norm"]) == (1, 0, 0)
    assert after.step == before.step + 1
    jax.tree.map(
        np.testing.assert_array_equal, after._replace(step=before.step), before
    )
    later, metrics = train_step(after, 0.0)
    assert metrics["skipped"] == 0 and metrics["loss"] > 0
    assert later.params["w"] != after.params["w"]


def test_stratified_times_lie_one_in_each_stratum_and_are_uniform():
    keys = jax.random.split(jax.random.key(0), 2_000)
    times = np.asarray(jax.vmap(lambda key: step.stratified_times(key, 7))(keys))
    assert times.min() >= 0 and times.max() < 1
    strata = np.floor(7 * np.sort(times, 1))
    assert np.mean(strata == np.arange(7)) > 0.999  # rounding at a stratum's edge
    for column in times.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_the_learning_rate_warms_up_and_decays_to_its_end(final):
    rate = optimizer_of(
        3e-4, warmup_steps=20, total_steps=100, final_fraction=final
    ).learning_rate
    rates = np.array([rate(i) for i in range(130)])
    np.testing.assert_allclose(rates[:21], np.linspace(0, 3e-4, 21), atol=1e-9)
    assert rates[60] == pytest.approx(3e-4 * (1 + final) / 2, rel=1e-4)  # half-way
    np.testing.assert_allclose(rates[100:], 3e-4 * final, atol=1e-9)
    assert np.all(np.diff(rates[20:]) <= 1e-12)


def test_a_gradient_past_the_clip_moves_no_further_than_one_at_the_clip():
    update = optimizer_of(clip_norm=2.0).update
    params = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    direction = {"a": jnp.array([2.0, 1.0]), "b": jnp.array(2.0)}  # of norm 3

    def second_update(norm):
        """After a small first gradient, so that Adam cannot divide the norm away."""
        state = update.init(params)
        for size in (0.1, norm):
            gradient = jax.tree.map(lambda g, s=size: g * s / 3, direction)
            moves, state = update.update(gradient, state, params)
        return np.append(moves["a"], moves["b"])

    at_clip = second_update(2.0)
    np.testing.assert_allclose(second_update(2e6), at_clip, rtol=1e-5)
    assert not np.allclose(second_update(1.0), at_clip, rtol=1e-3)


def test_weight_decay_shrinks_parameters_without_a_gradient():
    update = optimizer_of(0.1, weight_decay=0.2, final_fraction=1.0).update
    params = {"w": jnp.array(5.0)}
    moves, _ = update.update({"w": jnp.zeros(())}, update.init(params), params)
    assert moves["w"] == pytest.approx(-0.1 * 0.2 * 5, rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape", "inputs"),
    [("conv", (3, 3, 8, 16), 72), ("dense", (12, 30), 12), ("qkv", (32, 3, 2, 4), 32)],
)
def test_muon_moves_a_kernel_towards_the_nearest_orthogonal_matrix(
    layer, shape, inputs
):
    update = optimizer_of(1e-3, muon=0.1, final_fraction=1.0).update
    rng = np.random.default_rng(0)
    params = {layer: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}}
    gradient = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), params)
    moves, _ = update.update(gradient, update.init(params), params)
    move, slope = (
        np.asarray(x[layer]["kernel"]).reshape(inputs, -1) for x in (moves, gradient)
    )
    u, _, vt = np.linalg.svd(slope, full_matrices=False)
    scale = 0.1 * 0.2 * np.sqrt(max(move.shape))
    sizes = np.linalg.svd(move, compute_uv=False) / scale
    assert sizes.min() > 0.6 and sizes.max() < 1.3
    share = -np.sum(move * (u @ vt)) / np.linalg.norm(move) / np.linalg.norm(u @ vt)
    assert share > 0.97
    # A bias is AdamW's: its first move is about the learning rate, whatever its slope.
    moved = np.abs(moves[layer]["bias"])
    np.testing.assert_allclose(moved, moved[0], rtol=1e-3)
    assert 0.5e-3 < moved[0] < 2e-3


# Source N(0, I), epsilon 1 and the potential N(MU, SIGMA) of Gushchin et al. 2023: the
# entropic plan between source and push-forward is y | x ~ N(SLOPE x + SHIFT, COV).
MU, SIGMA = np.array([1.0, -0.5]), np.array([[1.5, 0.8], [0.8, 0.7]])
COV = np.linalg.inv(np.eye(2) + np.linalg.inv(SIGMA))
SLOPE, SHIFT = COV, COV @ np.linalg.solve(SIGMA, MU)


def draw_gaussians(key, data):
    """Unpaired: the sources behind the targets are not those returned."""
    del data
    source, hidden, noise = jax.random.normal(key, (3, 256, 2))
    root = np.linalg.cholesky(COV)
    target = hidden @ SLOPE.T + noise @ root.T + SHIFT[None]
    return source, target.astype(jnp.float32)


def test_training_on_unpaired_gaussians_recovers_their_entropic_plan():
    steps, process = 1_500, schedule.vp_cosine()
    score = ConditionalScore(process, "v", rho=0.0)
    network = MLP(channels=2, width=64, blocks=2)
    params = network.init(
        jax.random.key(0), jnp.zeros((1, 4)), jnp.zeros(1), jnp.zeros(1, int)
    )
    update = optimizer_of(2e-3, warmup_steps=50, total_steps=steps).update
    train_step = make_step(
        update,
        pair=pair_with(
            draw_gaussians, sinkhorn.entropic(sinkhorn.Settings(epsilon=1.0)), 256
        ),
        make_example=score.example,
        apply=lambda params, *inputs: network.apply(params, *inputs[:3]),
        ema_decay=0.995,
    )
    state = step.init(params, update)
    options = {"xla_backend_optimization_level": 1}  # many steps: worth compiling well
    advance = train_step.lower(state, None).compile(compiler_options=options)
    for _ in range(steps):
        state, metrics = advance(state, None)
    assert metrics["plan/converged"] == 1

    def denoise(*inputs):
        return network.apply(state.ema_params, *inputs)

    sources, n = np.array([[0, 0], [1, 1], [-1.5, 0.5], [-1, -1], [2, 0]]), 2_000
    samples = jax.jit(score.sample, static_argnums=(0, 5))(
        denoise,
        jax.random.split(jax.random.key(1), n * len(sources)),
        jnp.float32(np.repeat(sources, n, 0)),
        jnp.zeros(n * len(sources), int),
        jnp.linspace(1, 0, 51),
        sampler.ddim(process),
    )
    means = sources @ SLOPE.T + SHIFT
    for mean, y in zip(means, np.split(np.asarray(samples), len(sources)), strict=True):
        np.testing.assert_allclose(y.mean(0), mean, atol=0.1)
        np.testing.assert_allclose(np.cov(y.T), COV, atol=0.08)
    # Independent pairs would give every x the mean and covariance of all targets.
    assert np.abs(means - SHIFT).max(1)[1:].min() > 6 * 0.1
    assert np.abs(SLOPE @ SLOPE.T).max() > 4 * 0.08


def test_a_step_of_no_finite_gradient_changes_nothing():
    def rooted(params, inputs, t, label, key):
        del t, label, key
        return jnp.sqrt(params["w"]) * inputs  # of an infinite slope at 0

    update = optimizer_of().update
    begun = step.init({"w": jnp.array(0.0)}, update)
    after, metrics = make_step(update, apply=rooted)(begun, 0.0)
    assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 1
    assert after.params["w"] == 0
