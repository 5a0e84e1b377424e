"""Turns a config into its plans: their epsilon, their cost, where pairs come from."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from eotjax import parallel
from eotjax.build.checks import factor_of, outlasts_a_step
from eotjax.data import batch, domains
from eotjax.data.batch import Data
from eotjax.data.domains import DataSet, Domain
from eotjax.diffusion.bridge import PairMoments
from eotjax.training import refit
from eotjax.transport import cost, pairing, sinkhorn, whole
from eotjax.transport import epsilon as search
from eotjax.transport.sinkhorn import PlanStats, Settings
from eotjax.transport.whole import Plan, RowBlocks

CALIBRATION_STEPS = 4  # whose plans tell an epsilon's entropy
MOMENT_STEPS = 16  # whose pairs tell their moments
VIEWS_AT_ONCE = 512


def sinkhorn_settings(
    config: ConfigDict, epsilon: float | Array | None = None
) -> Settings:
    """How plans are solved; with another epsilon, where one is given."""
    c = config.coupling
    return Settings(
        epsilon=c.epsilon if epsilon is None else epsilon,
        threshold=c.threshold,
        max_iterations=c.max_iterations,
        tau_source=c.tau_source,
        tau_target=c.tau_target,
    )


def view(config: ConfigDict) -> batch.View:
    """Stored images, latents or vectors as training sees them."""
    c = config.data
    height, width = (side // factor_of(config) for side in c.image_size)
    return batch.make_view(size=(height, width), flip=c.flip, tinted=c.tint)


def sample_views(config: ConfigDict, splits: DataSet) -> list[np.ndarray]:
    """Up to 512 images of each training set as training sees them."""

    def side(domain: Domain, key: Array) -> np.ndarray:
        stored = jnp.asarray(domains.sample(domain, VIEWS_AT_ONCE))
        return np.asarray(view(config)(key, stored, jnp.arange(len(stored))))

    keys = batch.view_keys(config.seed)
    return [
        side(splits.source.train, keys.sample_source),
        side(splits.target.train, keys.sample_target),
    ]


def embed(config: ConfigDict, splits: DataSet) -> cost.Embed:
    """Where the cost is taken; principal components are those of the training sets."""
    c = config.coupling
    if c.cost == "pooled":
        return cost.pooled(c.pool)
    if c.cost == "pca":
        views = [x.reshape(len(x), -1) for x in sample_views(config, splits)]
        _, directions = cost.principal_components(np.concatenate(views), c.components)
        return cost.principal(jnp.asarray(directions))
    return cost.pixels  # unused by features: the data has their points


def couple(config: ConfigDict, settings: Settings) -> sinkhorn.Couple:
    """How pairs are drawn, one plan a group."""
    if config.coupling.method == "independent":
        return sinkhorn.independent(config.coupling.draws)
    return sinkhorn.entropic(settings, config.coupling.draws)


def pair(
    config: ConfigDict,
    embed: cost.Embed,
    settings: Settings,
    lengths: tuple[int, int] | None,
    mesh: Mesh,
) -> pairing.Pairing:
    """Where a step's pairs come from: plans, and perhaps the bridge itself.

    Args:
      config: the whole config.
      embed: to where the cost is taken.
      settings: of the plans' solver.
      lengths: of the training sets, whole on the device; None to stream.
      mesh: of all devices.
    """
    c = config.coupling
    step: dict[str, Any] = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "constrain": partial(parallel.constrain_batch, mesh),
    }
    groups = step | {
        "view": view(config),
        "embed": embed,
        "couple": couple(config, settings),
        "group_size": c.group_size,
    }
    if c.method == "whole":
        draw = pairing.over_the_sets(
            view=view(config),
            settings=settings,
            fixed_views=c.cost != "features",
            **step,
        )
    elif outlasts_a_step(config):
        assert lengths is not None  # checked with the data
        draw = pairing.over_steps(lengths=lengths, draws=c.draws, **groups)
    else:
        draw = pairing.within_batches(lengths=lengths, **groups)
    return refit.mixed(draw, views=fixed_views(config), share=config.refit.plan, **step)


def fixed_views(config: ConfigDict) -> refit.Views:
    """The views of the training sets that stay the same over the run, by number."""
    return partial(pairing.views_of_all, view(config), seed=config.seed)


def nothing_held(config: ConfigDict, lengths: tuple[int, int] | None) -> pairing.Held:
    """What a run keeps of its plans between steps, before the first one."""
    c = config.coupling
    if c.method == "whole":
        assert lengths is not None
        return whole.no_plan(*(c.copies * n for n in lengths))
    if outlasts_a_step(config):
        return pairing.empty_pool(c.group_size * c.draws)
    return ()


def measure_moments(
    config: ConfigDict,
    held: pairing.Held | None,
    batches: Iterator[Data],
    lengths: tuple[int, int] | None,
    embed: cost.Embed,
    mesh: Mesh,
) -> PairMoments:
    """The second moments of the very pairs that a run's first steps draw."""
    if held is None:
        held = nothing_held(config, lengths)
    draw = pair(config, embed, sinkhorn_settings(config), lengths, mesh)

    @jax.jit
    def moments(step, held, sets):
        drawn = draw(step, held, sets)
        x, y = drawn.source, drawn.target
        return drawn.held, [jnp.mean(p) for p in (x * x, y * y, x * y)]

    found = []
    for number, sets in enumerate(islice(batches, MOMENT_STEPS)):
        held, values = moments(number, held, sets)
        found.append(jax.device_get(values))
    source, target, cross = (float(np.mean(x)) for x in zip(*found, strict=True))
    if config.estimator.direction == "both":  # every second pair is turned round
        source = target = (source + target) / 2
    print(f"pairs: variances {source:.3g} and {target:.3g}, covariance {cross:.3g}")
    return PairMoments(source, target, cross)


def all_points(config: ConfigDict, embed: cost.Embed, sets: Data, mesh: Mesh) -> Data:
    """The points that a whole-set plan is between: of `copies` views of each image."""
    if "source_points" in sets:
        return {name: sets[name] for name in ("source_points", "target_points")}

    def side(sets: Data, name: str) -> Array:
        views = partial(fixed_views(config), sets, name)
        count = config.coupling.copies * len(sets[name])
        return jax.lax.map(
            lambda row: embed(views(row[None]))[0],
            jnp.arange(count),
            batch_size=VIEWS_AT_ONCE,
        )

    both_sides = jax.jit(
        lambda sets: {f"{x}_points": side(sets, x) for x in ("source", "target")},
        out_shardings=parallel.replicated(mesh),
    )
    return both_sides(sets)


class WholeSets:
    """Plans between the whole training sets, each solved from the last one on."""

    def __init__(self, config: ConfigDict, sets: Data, mesh: Mesh):
        """Args: sets: with their points, from `all_points`. mesh: of all devices."""
        self._config, self._sets, self._mesh = config, sets, mesh
        self._last: Plan | None = None

    @cached_property
    def costs(self) -> RowBlocks:
        """Between all points of both sets."""
        return whole.make_geometry(
            self._sets["source_points"],
            self._sets["target_points"],
            mesh=self._mesh,
            dense_gib=self._config.coupling.dense_gib,
        )

    def plan(self, epsilon: float) -> Plan:
        """The plan of an epsilon, in units of the cost."""
        settings = sinkhorn_settings(self._config, epsilon)
        self._last = whole.solve(
            self.costs, settings, mesh=self._mesh, start=self._last
        )
        return self._last

    def trials(self) -> "Trials":
        """What its plans are like."""
        return Trials(
            independent=lambda: whole.independent_stats(self.costs, self._mesh),
            entropic=lambda epsilon: self.plan(epsilon).stats,
        )


class Trials(NamedTuple):
    """What a run's plans would be like, before it begins."""

    independent: Callable[[], PlanStats]  # without a plan: what the cost is like
    entropic: search.Describe


def steps_of_plan(config: ConfigDict) -> int:
    """How many steps a plan of a group lasts; 1 where one plan serves all."""
    c = config.coupling
    if c.method == "whole":
        return 1
    return max(c.group_size * c.draws // config.batch_size, 1)


def try_groups(
    config: ConfigDict,
    embed: cost.Embed,
    batches: list[Data],
    lengths: tuple[int, int] | None,
    mesh: Mesh,
) -> Trials:
    """The very plans of a run's first steps."""
    each = steps_of_plan(config)
    empty = nothing_held(config, lengths)

    @partial(jax.jit, static_argnums=0, out_shardings=parallel.replicated(mesh))
    def stats(method, epsilon, step, sets) -> PlanStats:
        tried = config.copy_and_resolve_references()
        tried.coupling.method = method
        draw = pair(tried, embed, sinkhorn_settings(config, epsilon), lengths, mesh)
        return jax.tree.map(jnp.mean, draw(step, empty, sets).stats)

    def mean_stats(method: str, epsilon: float) -> PlanStats:
        # One at a time: CPU devices may wait for each other in overlapping programs.
        found = [
            jax.device_get(stats(method, epsilon, each * number, sets))
            for number, sets in enumerate(batches)
        ]
        return jax.tree.map(lambda *x: float(np.mean(x)), *found)

    return Trials(
        independent=lambda: mean_stats("independent", 1.0),
        entropic=partial(mean_stats, "entropic"),
    )


def find_epsilon(config: ConfigDict, trials: Callable[[], Trials]) -> float:
    """The epsilon that the config asks for, in units of the cost.

    Raises:
      UserError: no plan has the entropy asked for.
    """
    c = config.coupling
    if not c.entropy and not c.relative:
        return c.epsilon
    tried = trials()
    stats = tried.independent()
    mean, std = float(stats.independent_cost), float(stats.independent_std)
    if c.entropy:
        return search.of_entropy(tried.entropic, c.entropy, mean=mean)
    # All points equal leave a cost without a unit, and any plan is as good.
    return c.epsilon * max({"mean": mean, "std": std}[c.relative], 1e-12)


def with_epsilon(config: ConfigDict, epsilon: float) -> ConfigDict:
    """The config with its epsilon in units of the cost."""
    absolute = config.copy_and_resolve_references()
    absolute.coupling.epsilon = epsilon
    absolute.coupling.relative, absolute.coupling.entropy = "", 0.0
    return absolute
