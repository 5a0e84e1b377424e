"""All that a run needs, made of a config and a folder."""

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eotjax import arrays, beginning, caches, errors, parallel, progress, remote
from eotjax.artefact import export
from eotjax.artefact.translator import Translator
from eotjax.build import (
    checks,
    dataset,
    encoding,
    learning,
    planning,
    run_folder,
    wiring,
)
from eotjax.build.checks import Shape
from eotjax.data import batch
from eotjax.data.batch import Data
from eotjax.data.domains import DataSet
from eotjax.diffusion import noise
from eotjax.evaluation import judge
from eotjax.networks import kernels, latents
from eotjax.networks.latents import Autoencoder
from eotjax.training import log as logging
from eotjax.training import step
from eotjax.training.checkpoint import Checkpoints
from eotjax.transport import cost, whole

EXAMPLES = 8  # test sources that go into the artefact


class Run(NamedTuple):
    """What a config and a folder come to: the parts of a run, wired.

    Attributes:
      config: with all that was found out about the plans.
      workdir: the run's folder, claimed.
      mesh: of all devices.
      splits: the data set, of images or vectors.
      shape: of one of them.
      space: of the latents; None where it trains on the images themselves.
      on_device: the whole training sets; None where they are streamed.
      batches: from a step on, what its steps draw from.
      training: the first state, and the step.
      sample: translates.
      checkpoints: of its states, open.
      state: the newest one's, or the first.
    """

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    splits: DataSet
    shape: Shape
    space: latents.Autoencoder | None
    on_device: Data | None
    batches: Callable[[int], Iterator[Data]]
    training: learning.Training
    sample: Callable[..., jax.Array]
    checkpoints: Checkpoints
    state: step.TrainState

    def model(self, state: step.TrainState) -> step.Params | latents.Model:
        """What a state has to export: its averaged parameters, and their space."""
        average = parallel.gathered(state.ema_params, self.mesh)
        return average if self.space is None else latents.Model(average, self.space)

    def translator(self, state: step.TrainState) -> Translator:
        """A state's averaged parameters, in use."""
        return Translator(self.config, self.shape, self.model(state), self.sample)

    def export(self, state: step.TrainState, folder: Path) -> None:
        """Writes the artefact of a state."""
        export.save(
            folder,
            config=self.config,
            shape=self.shape,
            step=int(state.step),
            params=self.model(state),
            plan=plan_figures(self.workdir, self.config),
            begun=run_folder.measured(self.workdir).begun,
            fingerprints=self.splits.fingerprints,
            examples=examples(self.translator(state), self.splits),
        )


def prepare(config: ConfigDict, workdir: Path, *, claim: bool = True) -> Run:
    """Loads, checks and wires all that a run needs, and claims its folder.

    Args:
      config: of the run.
      workdir: its folder.
      claim: else nothing is written there: of a run that has its folder.

    Raises:
      UserError: something about the config, the data or the workdir is wrong.
    """
    mesh = parallel.make_mesh()
    devices = mesh.devices.flat
    by = ", convolutions by oneDNN" if kernels.used() else ""  # docs/machines.md
    print(f"devices: {mesh.size} {devices[0].device_kind} ({devices[0].platform}){by}")
    if programs := caches.programs():
        print(f"compiled programs: kept in {programs}")
    checks.check_config(config, mesh.size)
    wiring.check_names(config)
    run_folder.check(workdir, config)
    known = run_folder.measured(workdir)
    begun = known.begun or beginning.described(config.init)
    asked, config = config, config.copy_and_resolve_references()
    splits, trained, shape, space, marks = load(config, workdir, known, mesh)
    resident = trained.lengths if trained.resident else None
    embed = planning.embed(config, trained)
    on_device = device_data(config, trained, embed, mesh) if resident else None

    def batches(start: int) -> Iterator[Data]:
        """What the steps from `start` on draw from: the whole sets, or batches."""
        if on_device is not None:
            return itertools.repeat(on_device)
        return streamed(config, trained, start, mesh)

    sets = None
    if config.coupling.method == "whole":
        assert on_device is not None  # checked with the data
        sets = planning.WholeSets(config, on_device, mesh)

    def trials() -> planning.Trials:
        if sets is not None:
            return sets.trials()
        first = list(itertools.islice(batches(0), planning.CALIBRATION_STEPS))
        return planning.try_groups(config, embed, first, resident, mesh)

    epsilon = known.epsilon or planning.find_epsilon(config, trials)
    print(f"epsilon: {epsilon:.4g} in units of |x - y|^2 / 2")
    config = planning.with_epsilon(config, epsilon)
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        keep=config.checkpoint.keep,
        always=learning.cooldown_begins(config),
        own=claim,
    )
    beginning.carry_on(workdir, config, checkpoints)
    fresh, held = checkpoints.latest_step() is None, None
    measuring = learning.needs_moments(config) and not known.moments
    if sets is not None and (fresh or measuring):
        held = whole_plan(config, sets)
    if learning.needs_moments(config):
        config.estimator.moments = known.moments or planning.measure_moments(
            config, held, batches(0), resident, embed, mesh
        )
    if config.estimator.noise == "images" and not config.estimator.spectrum:
        config.estimator.spectrum = known.spectrum or noise.to_text(
            noise.of_images(planning.sample_views(config, trained))
        )
    training = learning.training(config, shape, resident, mesh, embed)
    sample = wiring.sampling(config, shape, mesh)
    found = run_folder.of(config, marks, begun)
    abstract = jax.eval_shape(training.init)
    check_state(abstract, training.layout)
    if claim:
        run_folder.claim(workdir, asked, found)
        remote.settle(workdir)  # checkpoints that were dropped are of the config before
    tell_parameters(abstract.params, workdir if claim else None)
    state = beginning.first_state(
        training.init, abstract, checkpoints, config.init, training.layout
    )
    if fresh and held is not None:
        state = state._replace(held=held)
        checkpoints.save(0, state)
    return Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        splits=splits,
        shape=shape,
        space=space,
        on_device=on_device,
        batches=batches,
        training=training,
        sample=sample,
        checkpoints=checkpoints,
        state=state,
    )


class Loaded(NamedTuple):
    """A run's data.

    Attributes:
      splits: of images or vectors.
      trained: the same, or the latents of those that are trained on.
      shape: of one image or vector.
      space: of the latents; None where there are none.
      marks: fingerprints of all that the training depends on.
    """

    splits: DataSet
    trained: DataSet
    shape: Shape
    space: Autoencoder | None
    marks: tuple[str, ...]


def load(
    config: ConfigDict, workdir: Path, known: run_folder.Measured, mesh: Mesh
) -> Loaded:
    """Reads the data, encodes them where the config says so, and tells of them.

    Sets the config's latent.channels to what the autoencoder has.

    Raises:
      UserError: something is wrong with the data, or they are not those that the run
        in this folder began with.
    """
    space = None
    if config.latent.weights:
        space = latents.load(config.latent.weights)
        config.latent.channels = len(space.mean)
    beside = beside_images(config, space)
    judging = judge.Weights.of(config)
    judging.find()  # what is missing is told before images are decoded

    def approve(marks: tuple[str, ...]) -> None:
        run_folder.check_data(workdir, config, known, (*marks, *beside))

    splits = dataset.load(config, approve=approve)
    shape = dataset.sample_shape(config, splits.source.train)
    judging.check(shape)
    trained, fits = splits, splits.resident
    if space is not None:
        fits = encoding.resident(config, splits, space)
    checks.check_coupling(config, fits)
    if space is not None:
        dataset.aligned(config, splits)  # before hours of encoding
        trained, space = encoding.encoded(config, splits, space)
        space = parallel.put(space, parallel.replicated(mesh))
    print(told(config, splits, shape, trained.resident))
    return Loaded(splits, trained, shape, space, (*splits.fingerprints, *beside))


def beside_images(config: ConfigDict, space: Autoencoder | None) -> tuple[str, str]:
    """Fingerprints of autoencoder and features; empty where there is none."""
    features, name = "", config.coupling.features
    if name and dataset.takes_features(config):
        path = remote.fetched(name)
        errors.require(
            path.is_file(), f"there is no file coupling.features {name}; give its path."
        )
        with path.open("rb") as file:
            features = hashlib.file_digest(file, "sha256").hexdigest()
    return arrays.digest(space) if space is not None else "", features


def check_state(state: step.TrainState, layout: step.TrainState) -> None:
    """Raises UserError where a device cannot even hold the state of a run."""
    need = parallel.bytes_held(state, layout)
    have = parallel.memory(jax.local_devices()[0])
    errors.require(
        need <= have,
        f"the state of a run, with its optimiser's, takes {need / 2**30:.1f} GiB on "
        f"each device, which has {have / 2**30:.1f}: lower model.width, "
        "model.multipliers or model.blocks, or set model.sharded on several devices.",
    )


def tell_parameters(params: step.Params, workdir: Path | None) -> None:
    """Prints how many parameters each level has, and writes all into a folder."""
    if workdir is not None and parallel.is_leader():
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        (workdir / "parameters.txt").write_text(table + "\n")
    levels: Counter[str] = Counter()
    for path, leaf in jax.tree.leaves_with_path(params):
        levels[path[0].key.split("_")[0]] += leaf.size
    parts = ", ".join(f"{name} {size:,}" for name, size in levels.items())
    print(f"parameters: {levels.total():,} ({parts})")


def told(config: ConfigDict, splits: DataSet, shape: Shape, resident: bool) -> str:
    """The data set in a line."""
    source, target = splits.source, splits.target
    valid = f"validation {len(source.valid)}, {len(target.valid)}; "
    what = "latents " if config.latent.weights else ""
    where = what + ("on the device" if resident else "streamed")
    return (
        f"data: train {len(source.train)} source, {len(target.train)} target; "
        f"{valid if len(source.valid) else ''}test {len(source.test)}, "
        f"{len(target.test)}; {'x'.join(map(str, shape))}, {where}"
    )


def device_data(
    config: ConfigDict, splits: DataSet, embed: cost.Embed, mesh: Mesh
) -> Data:
    """The whole training sets, and their points where the plan's cost needs them."""
    sets = parallel.put(dataset.aligned(config, splits), parallel.replicated(mesh))
    if config.coupling.method == "whole":
        sets |= planning.all_points(config, embed, sets, mesh)
    return sets


def whole_plan(config: ConfigDict, sets: planning.WholeSets) -> whole.Plan:
    """The plan between the whole training sets, solved.

    Raises:
      UserError: it did not come near enough to its marginals.
    """
    start = time.monotonic()
    found = sets.plan(config.coupling.epsilon)
    stats = jax.device_get(found.stats)
    print(
        f"the whole plan: {stats.iterations:.0f} iterations in "
        f"{progress.duration(time.monotonic() - start)}, marginal error "
        f"{stats.marginal_error:.2g}, entropy {stats.entropy:.3f}"
    )
    most = config.coupling.max_marginal_error
    errors.require(
        bool(stats.marginal_error <= most),
        f"the whole plan's marginal error is {stats.marginal_error:.3g}, over "
        f"coupling.max_marginal_error {most}: raise coupling.epsilon or "
        "coupling.max_iterations.",
    )
    return found


def streamed(
    config: ConfigDict, splits: DataSet, start: int, mesh: Mesh
) -> Iterator[Data]:
    """The batches in turn, of sets that the device does not hold."""
    share = config.batch_size // jax.process_count()
    first = share * jax.process_index()
    batches = batch.stream(
        dataset.aligned(config, splits),
        key_of_step=lambda number: batch.step_keys(config.seed, number).draw,
        batch_size=config.batch_size,
        steps=range(start, config.steps),
        rows=slice(first, first + share),
    )
    layout = parallel.split(mesh)
    for rows in batches:
        yield jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(layout, x), rows
        )


def plan_figures(workdir: Path, config: ConfigDict) -> dict[str, float]:
    """What the run's plans were like when it last logged, and their epsilon."""
    lines = logging.read(workdir / logging.METRICS)
    plans = {
        name.removeprefix("plan/"): value
        for name, value in (lines[-1] if lines else {}).items()
        if name.startswith("plan/")
    }
    return {"epsilon": config.coupling.epsilon, **plans}


def examples(translator: Translator, splits: DataSet) -> dict[str, np.ndarray]:
    """A few test sources of each direction, for the artefact; none of vectors."""
    if len(translator.shape) == 1:
        return {}
    return {
        way: judge.turned(splits, way).source.test[:EXAMPLES]
        for way in translator.directions
    }
