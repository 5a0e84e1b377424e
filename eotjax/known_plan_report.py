"""How near a model comes to a plan that is known in closed form."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from eotjax import coupling, dataset, known_plan, moments
from eotjax.data import DataSet
from eotjax.export import Translator
from eotjax.metrics import Progress
from eotjax.plan import solver

# (first, sources [n, d]) -> draws [n, SAMPLES, d] of the targets of these sources,
# which are the test set's from number `first` on
Sampler = Callable[[int, Float[np.ndarray, "n d"]], Float[np.ndarray, "n samples d"]]
SOURCES_AT_ONCE = 16


def evaluate(translator: Translator, splits: DataSet) -> dict:
    """BW2-UVP and cBW2-UVP (percent) of a model and of what to judge it by.

    BW2-UVP compares the test sources' targets with p1, cBW2-UVP the targets of each
    source with pi(y | x): half squared Bures-Wasserstein distances, in units of half
    the variance of p1. `exact` draws from the true plan: the floor that so many samples
    allow. `independent` draws from p1, `rows` from plans of the run's group size.

    Returns:
      {"rows": {name: {metric: value}}, "settings": ...}.
    """
    config = translator.config
    truth = dataset.known_plan_of(config)
    rng = jax.random.key(2**31)
    key_moments, key_exact, key_hidden, key_rows = jax.random.split(rng, 4)
    target = known_plan.target_moments(truth, key_moments)
    unit = np.trace(target.covariance) / 2
    sources = splits.test_source

    def model(first: int, x: np.ndarray) -> np.ndarray:
        del first
        return translator(x, num_samples=known_plan.SAMPLES).swapaxes(0, 1)

    @jax.jit
    def draw(key, x):
        return known_plan.sample(key, truth, x)

    def exact(first: int, x: np.ndarray) -> np.ndarray:
        repeated = jnp.repeat(jnp.asarray(x), known_plan.SAMPLES, axis=0)
        drawn = draw(jax.random.fold_in(key_exact, first), repeated)
        return np.asarray(drawn).reshape(len(x), -1, x.shape[1])

    def independent(first: int, x: np.ndarray) -> np.ndarray:
        key = jax.random.fold_in(key_hidden, first)
        count = known_plan.SAMPLES * len(x)
        hidden = known_plan.sample_mixture(key, truth.source, count)
        return np.asarray(draw(key, hidden)).reshape(len(x), -1, x.shape[1])

    def row(sample: Sampler, label: str, sources: np.ndarray = sources) -> dict:
        progress = Progress(label, len(sources), "sources")
        distances, firsts = [], []
        for start in range(0, len(sources), SOURCES_AT_ONCE):
            x = sources[start : start + SOURCES_AT_ONCE]
            y = sample(start, x)
            wanted = known_plan.conditional_moments(truth, jnp.asarray(x))
            found = moments.of(y)
            distances.append(moments.bures_wasserstein(wanted, found))
            firsts.append(y[:, 0])
            progress.update(len(x))
        each = np.concatenate(distances) / unit * 100
        overall = moments.of(np.concatenate(firsts))
        distance = moments.bures_wasserstein(target, overall) / unit * 100
        return {
            "bw2_uvp": float(distance),
            "cbw2_uvp": float(each.mean()),
            "cbw2_uvp_error": float(each.std() / np.sqrt(len(each))),
        }

    rows = {
        "eotjax": row(model, "translating"),
        "exact": row(exact, "drawing exactly"),
        "independent": row(independent, "drawing independently"),
    }
    if config.coupling.method == "entropic":
        some = sources[: config.coupling.group_size]
        drawn = from_rows(config, truth, some, key_rows)
        rows["rows"] = row(
            lambda first, x: drawn[first : first + len(x)], "judging rows", some
        )
    settings = {
        "sources": len(sources),
        "samples": known_plan.SAMPLES,
        "sampling": config.sampling.to_dict(),
    }
    return {"rows": rows, "settings": settings}


def from_rows(config, truth, sources, key) -> Float[np.ndarray, "n samples d"]:
    """A target for each source from as many plans of the run's group size as samples.

    Each plan is between `sources`, filled up with fresh ones, and fresh targets.
    """
    n, settings = config.coupling.group_size, solver(config)

    @jax.jit
    def one(key):
        keys = jax.random.split(key, 4)
        fresh = known_plan.sample_mixture(keys[0], truth.source, n - len(sources))
        hidden = known_plan.sample_mixture(keys[1], truth.source, n)
        target = known_plan.sample(keys[2], truth, hidden)
        x = jnp.concatenate([jnp.asarray(sources), fresh])
        cost = coupling.half_squared_distance(x, target)
        rows, _ = coupling.log_rows(
            cost, coupling.solve(cost, settings).g, settings.epsilon
        )
        partner = jax.random.categorical(keys[3], rows[: len(sources)], axis=1)
        return target[partner]

    progress = Progress("solving plans", known_plan.SAMPLES, "plans")
    drawn = []
    for index in range(known_plan.SAMPLES):
        drawn.append(np.asarray(one(jax.random.fold_in(key, index))))
        progress.update(1)
    return np.stack(drawn, axis=1)
