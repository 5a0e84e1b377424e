"""The training run: wires the config's parts, then loops."""

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from eotjax import (
    batch,
    build,
    card,
    checks,
    cost_space,
    dataset,
    encoding,
    evaluate,
    export,
    images,
    judge,
    kernels,
    latents,
    metrics,
    pairing,
    parallel,
    plan,
    potentials,
    refit,
    run_folder,
    step,
)
from eotjax.best import Best
from eotjax.bridge import PairMoments
from eotjax.checkpoint import Checkpoints
from eotjax.checks import Shape
from eotjax.data import DataSet
from eotjax.interruption import Interruption
from eotjax.translator import Translator

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
    on_device: step.Data | None
    batches: Callable[[int], Iterator[step.Data]]
    training: build.Training
    sample: Callable[..., jax.Array]
    checkpoints: Checkpoints
    state: step.TrainState

    def model(self, state: step.TrainState) -> step.Params | latents.Model:
        """What a state has to export: its averaged parameters, and their space."""
        average = state.ema_params
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
            examples=examples(self.translator(state), self.splits),
        )


def prepare(config: ConfigDict, workdir: Path) -> Run:
    """Loads, checks and wires all that a run needs, and claims its folder.

    Raises:
      UserError: something about the config, the data or the workdir is wrong.
    """
    mesh = parallel.make_mesh()
    devices = mesh.devices.flat
    by = ", convolutions by oneDNN" if kernels.used() else ""  # docs/machines.md
    print(f"devices: {mesh.size} {devices[0].device_kind} ({devices[0].platform}){by}")
    checks.check_config(config, mesh.size)
    run_folder.check(workdir, config)
    asked, config = config, config.copy_and_resolve_references()
    space = None
    if config.latent.weights:
        space = latents.load(config.latent.weights)
        config.latent.channels = len(space.mean)

    splits = dataset.load(config)
    shape = dataset.sample_shape(config, splits)
    checks.check_shape(config, shape)
    trained = splits
    if space is not None:
        trained, space = encoding.encoded(config, splits, space)
        space = parallel.put(space, parallel.replicated(mesh))
    lengths = (len(splits.train_source), len(splits.train_target))
    print(told(config, splits, shape, trained.resident))
    resident = lengths if trained.resident else None
    checks.check_coupling(config, trained.resident)
    embed = plan.embed(config, trained)
    on_device = device_data(config, trained, embed, mesh) if resident else None
    known = run_folder.plan(workdir)
    batches = partial(batches_from, config, trained, on_device, mesh)
    config = resolve(config, known, batches, resident, embed, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    held = None
    if config.coupling.method == "whole" and checkpoints.latest_step() is None:
        assert on_device is not None  # checked with the data
        held = whole_plan(config, on_device, mesh)
    if build.needs_moments(config):
        config.estimator.moments = known.moments or measure_moments(
            config, held, batches(0), resident, embed, mesh
        )
    training = build.training(config, shape, resident, mesh, embed)
    sample = build.sampling(config, shape, mesh)
    run_folder.claim(workdir, asked, run_folder.of(config))
    state = first_state(training, checkpoints, parallel.replicated(mesh))
    if held is not None:
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


def export_newest(workdir: str | Path, output: str | Path | None = None) -> Path:
    """Writes the artefact of a run's newest checkpoint, whether or not it has ended.

    Args:
      workdir: the run's folder.
      output: of the artefact; `newest` in the run's folder where None.

    Returns:
      The artefact's folder.

    Raises:
      UserError: there is no such run, or it has saved nothing yet.
    """
    workdir = Path(workdir).absolute()
    config = run_folder.config(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    with contextlib.closing(checkpoints):
        saved = checkpoints.latest_step()
    checks.require(  # before minutes are spent on a plan of its own
        bool(saved),
        f"the run in {workdir} has saved no trained state yet; wait for one.",
    )
    run = prepare(config, workdir)
    run.checkpoints.close()
    done = int(run.state.step)
    folder = Path(output or workdir / "newest")
    run.export(run.state, folder)
    if parallel.is_leader():
        card.write(folder)
    print(f"exported step {done} to {folder}")
    return folder


def train(config: ConfigDict, workdir: str | Path) -> bool:
    """Trains, or goes on training, in `workdir`; then exports and evaluates.

    Returns:
      False where a signal stopped the run early; its state is then saved.

    Raises:
      UserError: something about the config, the data or the workdir is wrong.
    """
    workdir = Path(workdir).absolute()
    run = prepare(config, workdir)
    config, splits, shape, state = run.config, run.splits, run.shape, run.state
    make_pairs = build.pair_maker(config, shape, run.mesh)
    start = int(state.step)
    writer = metrics.Writer(workdir, step=start, tensorboard=config.tensorboard)
    log = metrics.Log(
        writer,
        every=config.log_every,
        total_steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=build.optimizer(config).learning_rate,
        max_marginal_error=config.coupling.max_marginal_error,
    )
    sources = splits.test_source[: config.sampling.grid]

    best, weights = None, judge.Weights.of(config)
    if config.data.kind != "known_plan" and min(map(len, splits[2:4])) > 1:
        score = judge.selection(run.translator(state), splits, weights)
        before = metrics.history(workdir / metrics.SCORES, weights.score).values()
        best = Best(score, lambda: run.export(state, workdir / "best"), before)

    def show(done: int) -> None:
        """Shows some translations, and keeps the parameters if they are the best."""
        if best is not None:
            scores = {weights.score: best.offer(run.translator(state))}
            writer.scalars(done, scores, metrics.SCORES)
        if len(shape) == 1:
            return
        picture = evaluate.overview(
            len(sources), sources, run.translator(state)(sources)
        )
        if parallel.is_leader():
            (workdir / "samples").mkdir(exist_ok=True)
            images.write(workdir / "samples" / f"step_{done:07d}.png", picture)
            writer.image(done, "translations", picture)

    stop = False
    with (
        Interruption() as interruption,
        contextlib.closing(run.checkpoints),  # also where the run fails
        contextlib.closing(writer),
    ):
        data, advance = run.batches(start), None
        rounds = refit.number(config.refit, start - 1)
        for done in range(start + 1, config.steps + 1):
            earlier, rounds = rounds, refit.number(config.refit, done - 1)
            if rounds > earlier:
                state = state._replace(maker=jax.tree.map(jnp.copy, state.ema_params))
            if rounds > earlier or (rounds and advance is None):
                assert run.on_device is not None  # checked with the data
                with log.aside():
                    made = make_pairs(state.maker, run.on_device, rounds)
                data = itertools.repeat(run.on_device | made)
            if advance is None or rounds > earlier == 0:
                print("compiling the step", flush=True)
                first = next(data)
                with log.aside():
                    advance = parallel.compiled(run.training.step, state, first)
                data = itertools.chain([first], data)
            state, values = advance(state, next(data))
            log.add(done, values)
            last = done == config.steps
            stop = interruption.agreed(done) and not last
            if (done % config.sample_every == 0 or last) and not stop:
                log.flush()
                with log.aside():
                    show(done)
            if done % config.checkpoint.every == 0 or last or stop:
                log.flush()  # saving waits for the device anyway
                run.checkpoints.save(done, state)
            if stop:
                break
        log.flush()
    if stop:
        print(f"stopped at step {done}; the same command goes on from there")
        return False

    run.export(state, workdir / "export")
    print(f"exported step {config.steps} to {workdir / 'export'}")
    evaluate.report(run.translator(state), splits, workdir / "export", weights=weights)
    if parallel.is_leader():
        card.write(workdir / "export")
    if (workdir / "best" / "config.json").exists():
        report_best(workdir, config, splits)
    return True


def report_best(workdir: Path, config: ConfigDict, splits: DataSet) -> None:
    """Evaluates the artefact of the best step, where that is not the last one."""
    last, folder = workdir / "export", workdir / "best"
    weights = judge.Weights.of(config)
    step_of_best = export.describe(folder)["step"]
    print(
        f"best: step {step_of_best} in {folder}, by {weights.score} on the "
        + (
            "validation sets"
            if len(splits.valid_source)
            else "test sets (so its figures flatter; the last step's do not)"
        )
    )
    if step_of_best == config.steps:
        if parallel.is_leader():
            shutil.copytree(last, folder, dirs_exist_ok=True)
        return
    evaluate.report(export.load(folder), splits, folder, weights=weights)
    if parallel.is_leader():
        card.write(folder)


def plan_figures(workdir: Path, config: ConfigDict) -> dict[str, float]:
    """What the run's plans were like when it last logged, and their epsilon."""
    lines = metrics.read(workdir / metrics.METRICS)
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
        way: judge.turned(splits, way).test_source[:EXAMPLES]
        for way in translator.directions
    }


def first_state(
    training: build.Training, checkpoints: Checkpoints, layout: NamedSharding
) -> step.TrainState:
    """The newest checkpoint's state, or a new one; prints its parameters."""
    abstract = jax.eval_shape(training.init)
    overview = parameter_overview.get_parameter_overview
    print(overview(abstract.params, include_stats=False))
    if checkpoints.latest_step() is None:
        return training.init()
    state = checkpoints.restore(
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), abstract
        )
    )
    print(f"going on from step {int(state.step)}")
    return state


def whole_plan(config: ConfigDict, sets: step.Data, mesh: Mesh) -> potentials.Plan:
    """The plan between the whole training sets, solved.

    Raises:
      UserError: it did not come near enough to its marginals.
    """
    settings, start = plan.solver(config), time.monotonic()
    found = potentials.solve(plan.costs(config, sets, mesh), settings, mesh=mesh)
    stats = jax.device_get(found.stats)
    print(
        f"the whole plan: {stats.iterations:.0f} iterations in "
        f"{metrics.duration(time.monotonic() - start)}, marginal error "
        f"{stats.marginal_error:.2g}, entropy {stats.entropy:.3f}"
    )
    most = config.coupling.max_marginal_error
    checks.require(
        bool(stats.marginal_error <= most),
        f"the whole plan's marginal error is {stats.marginal_error:.3g}, over "
        f"coupling.max_marginal_error {most}: raise coupling.epsilon or "
        "coupling.max_iterations.",
    )
    return found


def device_data(
    config: ConfigDict, splits: DataSet, embed: cost_space.Embed, mesh: Mesh
) -> step.Data:
    """The whole training sets, and their points where the plan's cost needs them."""
    whole = parallel.put(dataset.aligned(config, splits), parallel.replicated(mesh))
    if config.coupling.method == "whole":
        whole |= plan.all_points(config, embed, whole, mesh)
    return whole


def told(config: ConfigDict, splits: DataSet, shape: Shape, resident: bool) -> str:
    """The data set in a line."""
    counts = [len(x) for x in (*splits[:4], splits.valid_source, splits.valid_target)]
    valid = f"validation {counts[4]}, {counts[5]}; " if counts[4] else ""
    where = "latents " * bool(config.latent.weights) + (
        "on the device" if resident else "streamed"
    )
    return (
        f"data: train {counts[0]} source, {counts[1]} target; {valid}"
        f"test {counts[2]}, {counts[3]}; {'x'.join(map(str, shape))}, {where}"
    )


def measure_moments(
    config: ConfigDict,
    held: pairing.Held | None,
    batches: Iterator[step.Data],
    lengths: tuple[int, int] | None,
    embed: cost_space.Embed,
    mesh: Mesh,
) -> PairMoments:
    """The second moments of the pairs of a run's first steps."""
    if held is None:
        held = plan.nothing_held(config, lengths)
    draw = plan.pair(config, embed, plan.solver(config), lengths, mesh)
    first = list(itertools.islice(batches, plan.MOMENT_STEPS))
    found = plan.pair_moments(draw, held, first)
    print(
        f"pairs: variances {found.source:.3g} and {found.target:.3g}, covariance "
        f"{found.cross:.3g}"
    )
    return found


def resolve(
    config: ConfigDict,
    known: run_folder.Plan,
    batches: Callable[[int], Iterator[step.Data]],
    lengths: tuple[int, int] | None,
    embed: cost_space.Embed,
    mesh: Mesh,
) -> ConfigDict:
    """The config with its epsilon in units of the cost: the run's, or found now."""

    def trials() -> plan.Trials:
        if config.coupling.method == "whole":
            costs = plan.costs(config, next(batches(0)), mesh)
            return plan.try_whole(config, costs, mesh)
        first = list(itertools.islice(batches(0), plan.CALIBRATION_STEPS))
        return plan.try_groups(config, embed, first, lengths, mesh)

    epsilon = known.epsilon or plan.find_epsilon(config, trials)
    print(f"epsilon: {epsilon:.4g} in units of |x - y|^2 / 2")
    return plan.with_epsilon(config, epsilon)


def batches_from(
    config: ConfigDict,
    splits: DataSet,
    on_device: step.Data | None,
    mesh: Mesh,
    start: int,
) -> Iterator[step.Data]:
    """What the steps from `start` on draw from: the whole sets, or streamed batches."""
    if on_device is not None:
        return itertools.repeat(on_device)
    return streamed(config, splits, start, mesh)


def streamed(
    config: ConfigDict, splits: DataSet, start: int, mesh: Mesh
) -> Iterator[step.Data]:
    """The batches in turn, of sets that the device does not hold."""
    share = config.batch_size // jax.process_count()
    first = share * jax.process_index()
    batches = batch.stream(
        dataset.aligned(config, splits),
        key_of_step=lambda number: batch.keys(config.seed, number)[0],
        batch_size=config.batch_size,
        steps=range(start, config.steps),
        rows=slice(first, first + share),
    )
    layout = parallel.split(mesh)
    for arrays in batches:
        yield jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(layout, x), arrays
        )
