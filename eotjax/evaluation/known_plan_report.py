"""How near a model comes to a plan that is known in closed form."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from eotjax.artefact.translator import Translator
from eotjax.build import dataset
from eotjax.build.checks import outlasts_a_step
from eotjax.build.planning import sinkhorn_settings
from eotjax.data.domains import DataSet
from eotjax.progress import Progress
from eotjax.transport import known_plan, moments, sinkhorn
from eotjax.transport.known_plan import KnownPlan
from eotjax.transport.moments import Moments
from eotjax.transport.sinkhorn import Settings

# (first, sources [n, d], count) -> that many targets of each source, [n, count, d];
# the sources are those from number `first` on
Sampler = Callable[[int, Float[np.ndarray, "n d"], int], Float[np.ndarray, "n count d"]]
SOURCES_AT_ONCE = 16
OVERALL = 2**14  # sources that p1 is judged by, one target each
PLANS = 100  # whose rows are averaged


def evaluate(translator: Translator, splits: DataSet) -> dict:
    """BW2-UVP and cBW2-UVP (percent) of a model and of what to judge it by.

    BW2-UVP compares the targets of many sources with p1, cBW2-UVP the targets of each
    test source with pi(y | x): half squared Bures-Wasserstein distances, in units of
    half the variance of p1. `exact` draws from the true plan: the floor that so many
    samples allow. `independent` draws from p1. `rows` is the average law of a row of
    100 plans of single batches of n: what such a run is trained on. Its floor is that
    of 100 n samples at the most; its mixture over so few sources says nothing of p1.

    Returns:
      {"rows": {name: {metric: value}}, "settings": ...}.
    """
    config = translator.config
    truth, keys = dataset.known_plan_of(config), _keys()
    target = known_plan.target_moments(truth, keys[0])
    judge = partial(_judge, truth, target, splits.source.test)

    draw = jax.jit(lambda key, x: known_plan.sample(key, truth, x))

    def exact(first: int, x: np.ndarray, count: int) -> np.ndarray:
        repeated = jnp.repeat(jnp.asarray(x), count, axis=0)
        drawn = draw(jax.random.fold_in(keys[2], first), repeated)
        return np.asarray(drawn).reshape(len(x), count, x.shape[1])

    def independent(first: int, x: np.ndarray, count: int) -> np.ndarray:
        key = jax.random.fold_in(keys[3], first)
        hidden = known_plan.sample_mixture(key, truth.source, count * len(x))
        return exact(first, np.asarray(hidden), 1).reshape(len(x), count, x.shape[1])

    rows = {
        "eotjax": judge(_of(translator), "translating"),
        "exact": judge(exact, "drawing exactly"),
        "independent": judge(independent, "drawing independently"),
    }
    if config.coupling.method == "entropic" and not outlasts_a_step(config):
        n = config.coupling.group_size
        some = splits.source.test[:n]
        law = row_law(truth, some, keys[4], n=n, settings=sinkhorn_settings(config))
        wanted = known_plan.conditional_moments(truth, jnp.asarray(some))
        rows["rows"] = _of_plan(target, wanted, law)
    settings = {
        "sources": len(splits.source.test),
        "samples": known_plan.SAMPLES,
        "sampling": config.sampling.to_dict(),
    }
    return {"rows": rows, "settings": settings}


def judge(translator: Translator, splits: DataSet) -> dict[str, float]:
    """The model's row of `evaluate`."""
    truth = dataset.known_plan_of(translator.config)
    target = known_plan.target_moments(truth, _keys()[0])
    return _judge(truth, target, splits.source.test, _of(translator), "translating")


def _keys() -> Key[Array, "5"]:
    return jax.random.split(jax.random.key(2**31), 5)


def _of(translator: Translator) -> Sampler:
    def sample(first: int, x: np.ndarray, count: int) -> np.ndarray:
        del first
        return translator(x, num_samples=count).reshape(count, *x.shape).swapaxes(0, 1)

    return sample


def _judge(
    truth: KnownPlan,
    target: Moments,
    sources: Float[np.ndarray, "n d"],
    sample: Sampler,
    label: str,
) -> dict[str, float]:
    """The metrics of a sampler."""
    progress = Progress(label, len(sources), "sources")
    wanted, found = [], []
    for start in range(0, len(sources), SOURCES_AT_ONCE):
        x = sources[start : start + SOURCES_AT_ONCE]
        found.append(moments.of(sample(start, x, known_plan.SAMPLES)))
        wanted.append(known_plan.conditional_moments(truth, jnp.asarray(x)))
        progress.update(len(x))
    many = known_plan.sample_mixture(_keys()[1], truth.source, OVERALL)
    overall = moments.of(sample(0, np.asarray(many), 1)[:, 0])
    return _row(
        target,
        overall,
        *(
            Moments(*map(np.concatenate, zip(*each, strict=True)))
            for each in (wanted, found)
        ),
    )


def _row(
    target: Moments, overall: Moments, wanted: Moments, found: Moments
) -> dict[str, float]:
    """The metrics of moments: of all targets, and of each source's."""
    distance = moments.bures_wasserstein(target, overall)
    return {"bw2_uvp": float(_percent(target) * distance)} | _of_plan(
        target, wanted, found
    )


def _of_plan(target: Moments, wanted: Moments, found: Moments) -> dict[str, float]:
    """The metrics of each source's targets."""
    each = _percent(target) * moments.bures_wasserstein(wanted, found)
    return {
        "cbw2_uvp": float(each.mean()),
        "cbw2_uvp_error": float(each.std() / np.sqrt(len(each))),
    }


def _percent(target: Moments) -> float:
    """Of half the targets' variance, a unit."""
    return 100 / (np.trace(target.covariance) / 2)


def row_law(
    truth: KnownPlan,
    sources: Float[np.ndarray, "k d"],
    key: Key[Array, ""],
    *,
    n: int,
    settings: Settings,
) -> Moments:
    """Moments of the average row of each source over PLANS plans of n points a side.

    Each plan is between `sources`, filled up with fresh ones, and fresh targets.
    """

    @jax.jit
    def one(key):
        keys = jax.random.split(key, 3)
        fresh = known_plan.sample_mixture(keys[0], truth.source, n - len(sources))
        hidden = known_plan.sample_mixture(keys[1], truth.source, n)
        y = known_plan.sample(keys[2], truth, hidden)
        x = jnp.concatenate([jnp.asarray(sources), fresh])
        cost = sinkhorn.half_squared_distance(x, y)
        found = sinkhorn.solve(cost, settings)
        rows, _ = sinkhorn.log_rows(cost, found.g, settings.epsilon)
        p = jnp.exp(rows[: len(sources)])
        outer = (y[:, :, None] * y[:, None, :]).reshape(n, -1)
        with jax.default_matmul_precision("highest"):
            return p @ y, (p @ outer).reshape(len(sources), *2 * y.shape[1:])

    progress = Progress("solving plans", PLANS, "plans")
    mean: np.ndarray | float = 0.0
    second: np.ndarray | float = 0.0
    for index in range(PLANS):
        first_moment, second_moment = one(jax.random.fold_in(key, index))
        mean = mean + np.asarray(first_moment, float) / PLANS
        second = second + np.asarray(second_moment, float) / PLANS
        progress.update(1)
    mean = np.asarray(mean)
    return Moments(mean, second - mean[:, :, None] * mean[:, None, :])
