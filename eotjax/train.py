"""The training run: prepare, loop, finish."""

import contextlib
import dataclasses
import itertools
import math
import shutil
import types
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from eotjax import atomic, errors, parallel, prepare, remote
from eotjax.artefact import export
from eotjax.build import learning, planning, run_folder, wiring
from eotjax.data import images
from eotjax.data.batch import Data
from eotjax.evaluation import card, evaluate, judge
from eotjax.networks import kernels
from eotjax.prepare import Run
from eotjax.training import log as logging
from eotjax.training import step
from eotjax.training.checkpoint import Checkpoints
from eotjax.training.interruption import Interruption
from eotjax.training.trace import Trace, seconds_of

# Keys that a run may change when it goes on, and that its scores depend on.
JUDGED = (
    "sampling.solver",
    "sampling.steps",
    "sampling.path",
    "sampling.guidance",
    "sampling.temperature",
    "sampling.restart",
    "judge.",
)


@dataclasses.dataclass
class Viewer:
    """Looks at a run's translations while it trains, and keeps the best step.

    Attributes:
      run: whose.
      writer: of scores and pictures.
      weights: what the judge measures by.
      score: of translations, lower is better; None where there is nothing to choose
        the best step by.
      lowest: the score of the best step so far.
      scored: steps that were before the run was interrupted.
    """

    run: Run
    writer: logging.Writer
    weights: judge.Weights
    score: Callable[..., float] | None
    lowest: float
    scored: Collection[int]

    def show(
        self,
        state: step.TrainState,
        known: judge.Translations = types.MappingProxyType({}),
    ) -> None:
        """Shows some translations, and keeps the parameters if they are the best.

        Args:
          state: whose averaged parameters translate.
          known: the test sources' translations, of the last step, exported already.
        """
        run, translator, done = self.run, self.run.translator(state), int(state.step)
        if self.score is not None and done not in self.scored:
            score = self.score(translator, known)
            if score < self.lowest:
                self.lowest, best = score, run.workdir / "best"
                if known:  # of the last step, which is exported already
                    export.copy(run.workdir / "export", best)
                else:
                    run.export(state, best)
            self.writer.scalars(done, {self.weights.score: score}, logging.SCORES)
        if len(run.shape) == 1:
            return
        sources = run.splits.source.test[: run.config.sampling.grid]
        translated = (
            images.to_uint8(known["forward"][: len(sources)])
            if known
            else translator(sources)
        )
        picture = evaluate.overview(len(sources), sources, translated)
        if parallel.is_leader():
            path = run.workdir / "samples" / f"step_{done:07d}.png"
            try:
                path.parent.mkdir(exist_ok=True)
                images.write(path, picture)
            except OSError as error:  # on a full disk, perhaps, or a read-only one
                print(f"cannot write {path} ({error.strerror}): training goes on")
            self.writer.image(done, "translations", picture)


def train(config: ConfigDict, workdir: str | Path) -> bool:
    """Trains, or goes on training, in `workdir`; then exports and evaluates.

    Does nothing where all that is done already.

    Returns:
      False where a signal stopped the run early; its state is then saved.

    Raises:
      UserError: something about the config, the data or the workdir is wrong.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_folder.alone(remote.local(workdir).absolute()))
        folder = stack.enter_context(remote.mirrored(workdir))
        run = prepare.prepare(config, folder.absolute())
        if has_ended(run):
            run.checkpoints.close()
            made = run.workdir / "export"
            print(f"the run had ended: remove {made} to have it made again")
            return True
        begun = int(run.state.step)
        writer = logging.Writer(
            run.workdir, step=begun, tensorboard=run.config.tensorboard
        )
        stack.enter_context(contextlib.closing(writer))
        viewer = viewer_of(run, writer)
        with (
            Interruption() as interruption,
            contextlib.closing(run.checkpoints),  # also where the run fails
        ):
            state, ended = loop(run, interruption, log_of(run, writer), viewer)
        if ended and not interruption.asked:  # while the last state was saved
            finish(run, state, viewer)
            print(f"peak memory: {parallel.peak_memory() / 2**30:.2f} GiB")
            return True
    print(f"stopped at step {int(state.step)}; the same command goes on from there")
    return False


def has_ended(run: Run) -> bool:
    """Whether the last state's artefact, as this config asks for it, is all there."""
    best, folder = run.workdir / "best", run.workdir / "export"
    artefacts = [folder, *([best] if best.exists() else [])]
    if int(run.state.step) < run.config.steps or not all(map(card.there, artefacts)):
        return False
    try:
        described = export.describe(folder)
    except errors.UserError:
        return False  # it is damaged, and written anew
    changed = run_folder.changes(described["config"], run.config)
    return described["step"] == run.config.steps and not changed


def log_of(run: Run, writer: logging.Writer) -> logging.Log:
    """Tells of a run's steps."""
    config, peak = run.config, parallel.peak_flops(run.mesh.devices.flat[0])
    if wiring.compute_dtype(config) != jnp.bfloat16:
        peak = None  # it is told of bfloat16 alone
    return logging.Log(
        writer,
        every=config.log_every,
        total_steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=learning.optimizer(config).learning_rate,
        max_marginal_error=config.coupling.max_marginal_error,
        peak_flops=peak and peak * run.mesh.size,
    )


def viewer_of(run: Run, writer: logging.Writer) -> Viewer:
    """Looks at a run's translations."""
    score, weights = None, judge.Weights.of(run.config)
    scores = logging.history(run.workdir / logging.SCORES, weights.score)
    # The leader drops later ones from the file, which the others may read before.
    before = {done: x for done, x in scores.items() if done <= int(run.state.step)}
    sides = judge.chosen_by(run.splits)
    if run.config.data.kind != "known_plan" and min(map(len, sides)) > 1:
        score = judge.selection(run.translator(run.state), run.splits, weights)
    # Else going back dropped it, or it was judged otherwise and cannot be compared.
    kept = step_of_best(run.workdir) in before and _judged_alike(run)
    lowest = min(before.values()) if kept else math.inf
    return Viewer(run, writer, weights, score, lowest, before)


def _judged_alike(run: Run) -> bool:
    """Whether RUN/best was sampled and judged as this run does it."""
    best = export.describe(run.workdir / "best")["config"]
    changed = run_folder.changes(best, run.config)
    return not any(key.startswith(JUDGED) for key in changed)


def step_of_best(workdir: Path) -> int | None:
    """The step in RUN/best; None where there is none yet, or none that is whole."""
    try:
        return export.describe(workdir / "best")["step"]
    except errors.UserError:  # it is damaged, and gives way to the next
        return None


def loop(
    run: Run, interruption: Interruption, log: logging.Log, viewer: Viewer
) -> tuple[step.TrainState, bool]:
    """Trains from the run's state to its last step, or to a signal.

    Returns:
      The state then, and whether no signal came.
    """
    config, state, start = run.config, run.state, int(run.state.step)
    make_pairs = learning.pair_maker(config, run.shape, run.mesh)
    data, advance, stop = run.batches(start), None, False
    made: Data | None
    rounds = learning.rounds(config, start - 1)
    trace = Trace(run.workdir / "trace", start=start, steps=config.profile)
    due = start and start % config.sample_every == 0 and start < config.steps
    if due and start not in viewer.scored:  # a signal came when it was due
        with log.aside():
            viewer.show(state)
    for done in range(start + 1, config.steps + 1):
        earlier, rounds = rounds, learning.rounds(config, done - 1)
        if rounds > earlier:
            if run.checkpoints.latest_step() != done - 1:
                log.flush()
                run.checkpoints.save(done - 1, state)  # making pairs takes minutes
            state = state._replace(maker=jax.tree.map(jnp.copy, state.ema_params))
        if rounds > earlier or (rounds and advance is None):
            assert run.on_device is not None  # checked with the data
            data, made = iter(()), None  # those made before give way
            with log.aside():
                made = make_pairs(
                    state.maker,
                    run.on_device,
                    rounds,
                    run.workdir / run_folder.OWN_PAIRS,
                    stop=lambda: interruption.asked,
                )
            if stop := made is None:
                break
            data = itertools.repeat(run.on_device | made)
        if advance is None or rounds > earlier == 0:
            print("compiling the step", flush=True)
            first = next(data)
            with log.aside():
                lowered = run.training.step.lower(state, first)
                advance = parallel.compiled(lowered)
                if not kernels.used():  # of which XLA would count nothing
                    log.flops = learning.flops(run.training, lowered, state, first)
                if config.profile and planning.steps_of_plan(config) == 1:
                    pairs = jax.jit(run.training.pairs)
                    log.pairing = seconds_of(pairs, state.step, state.held, first)
            data = itertools.chain(iter([first]), data)  # which lets go of it
            del first
        state, values = advance(state, next(data))
        log.add(done, values)
        trace.after(done, values)
        last = done == config.steps
        stop = interruption.agreed(done)
        turning = done == learning.cooldown_begins(config)
        if done % config.checkpoint.every == 0 or turning or last or stop:
            log.flush()  # saving waits for the device anyway
            run.checkpoints.save(done, state)
        if stop:
            break
        if done % config.sample_every == 0 and not last:
            log.flush()
            with log.aside():
                viewer.show(state)
    log.flush()
    trace.close()
    return state, not stop


def finish(run: Run, state: step.TrainState, viewer: Viewer) -> None:
    """Exports the last state, evaluates and shows it, and the best one."""
    folder = run.workdir / "export"
    run.export(state, folder)
    print(f"exported step {run.config.steps} to {folder}")
    translated = evaluate.report(
        run.translator(state), run.splits, folder, weights=viewer.weights
    )
    viewer.show(state, translated)
    if parallel.is_leader():
        card.write(folder)
    report_best(run, viewer.weights)


def report_best(run: Run, weights: judge.Weights) -> None:
    """Evaluates the artefact of the best step, where that is not the last one."""
    folder, best, splits = run.workdir / "best", step_of_best(run.workdir), run.splits
    if best is None:
        return
    judged_alike = _judged_alike(run)
    parallel.together("the best step is known")  # before it is written anew
    validated = judge.chosen_by(splits)[0] is splits.source.valid
    flattering = "test sets (so its figures flatter; the last step's do not)"
    print(
        f"best: step {best} in {folder}, by {weights.score} on the "
        + ("validation sets" if validated else flattering)
    )
    if best != run.config.steps:
        evaluate.report(export.load(folder), splits, folder, weights=weights)
        if parallel.is_leader():
            card.write(folder)
        return
    if not judged_alike:  # the last step was sampled otherwise before
        export.copy(run.workdir / "export", folder)
    if parallel.is_leader():
        for path in export.measured(run.workdir / "export"):
            shutil.copy(path, folder)


def export_newest(
    workdir: str | Path, output: str | Path | None = None, **elsewhere: str
) -> Path:
    """Writes the artefact of a run's newest checkpoint, whether or not it has ended.

    Args:
      workdir: the run's folder.
      output: of the artefact; `newest` in the run's folder where None.
      **elsewhere: places of what the run has read, as `run_folder.config`.

    Returns:
      The artefact's folder.

    Raises:
      UserError: there is no such run, it has saved nothing yet, or `output` holds other
        things than an artefact.
    """
    output = output or remote.below(workdir, "newest")
    workdir = remote.fetched(workdir).absolute()
    config = run_folder.config(workdir, **elsewhere)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    with contextlib.closing(checkpoints):
        saved = checkpoints.latest_step()
    errors.require(  # before minutes are spent on a plan of its own
        bool(saved),
        f"the run in {workdir} has saved no trained state yet; wait for one.",
    )
    with remote.mirrored(output) as folder:
        export.check_place(folder)
        folder.mkdir(parents=True, exist_ok=True)
        atomic.check_writable(folder)
        run = prepare.prepare(config, workdir, claim=False)
        run.checkpoints.close()
        done = int(run.state.step)
        run.export(run.state, folder)
        if parallel.is_leader():
            card.write(folder)
    print(f"exported step {done} to {output}")
    return folder
