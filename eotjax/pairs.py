"""The pairs that a step trained on: python -m eotjax.pairs --workdir=RUN --step=N.

They are a function of the run's seed and the step's number: a step that was skipped,
since its loss was not finite, can be looked at afterwards.
"""

import argparse
import contextlib
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from eotjax import arrays, atomic, command, prepare, remote
from eotjax.build import learning, planning, run_folder, wiring
from eotjax.data import domains, images
from eotjax.errors import require
from eotjax.networks import latents
from eotjax.prepare import Run
from eotjax.training.checkpoint import Checkpoints

ACROSS = 8  # pairs in a row of the picture
AT_ONCE = 8  # latents that are decoded together

Points = Float[np.ndarray, "b ..."]


def of_step(run: Run, done: int) -> tuple[Points, Points]:
    """Sources and targets that step number `done`, counted from 1, trained on.

    Raises:
      UserError: the run has thrown away what made them.
    """
    config, at, trained = run.config, done - 1, int(run.state.step)
    data, rounds = next(run.batches(at)), learning.rounds(config, at)
    if rounds:
        require(
            rounds == learning.rounds(config, trained - 1),
            f"the bridge made the pairs of step {done} with parameters that are no "
            "longer kept; give a later step.",
        )
        make = learning.pair_maker(config, run.shape, run.mesh)
        kept = run.workdir / run_folder.OWN_PAIRS
        made = make(run.state.maker, data, rounds, kept, keep=False)
        assert made is not None  # nothing stops it
        data = data | made
    draw = jax.jit(run.training.pairs)
    held, late = run.state.held, at % planning.steps_of_plan(config)
    if late:  # the plan was solved so many steps before
        held = draw(at - late, held, data).held
    drawn = draw(at, held, data)
    return jax.device_get((drawn.source, drawn.target))


def decoded(run: Run, points: Points) -> Points:
    """Points as images in [-1, 1], out of the latents where the run is in these."""
    if run.space is None:
        return points
    model = jax.jit(latents.decode, static_argnums=2)
    dtype = wiring.compute_dtype(run.config)
    parts = [
        np.asarray(model(run.space, points[rows], dtype))[:new]
        for rows, new in domains.filled(len(points), AT_ONCE)
    ]
    return np.concatenate(parts)


def picture(source: Points, target: Points) -> images.Pixels:
    """Images in [-1, 1]: rows of sources, below each the targets of their pairs."""
    sides = [images.to_uint8(x) for x in (source, target)]
    rows = [
        side[start : start + ACROSS]
        for start in range(0, len(source), ACROSS)
        for side in sides
    ]
    return images.grid(rows, zoom=max(64 // source.shape[1], 1))


def write(
    workdir: str | Path, done: int, output: str | Path | None = None, **elsewhere: str
) -> str:
    """Writes the pairs of a step as a picture, those of vectors as an .npz file.

    Args:
      workdir: the run's folder.
      done: the step's number, counted from 1.
      output: the file; in the run's folder where None.
      **elsewhere: places of what the run has read, as `run_folder.config`.

    Returns:
      The file: `output`, or one in the run's folder.

    Raises:
      UserError: there is no such run or step.
    """
    folder = remote.fetched(workdir).absolute()
    config = run_folder.config(folder, **elsewhere)
    if (suffix := Path(str(output or "")).suffix) not in ("", ".npz"):
        images.format_of(suffix)  # refuses what is none
    with contextlib.closing(
        Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
    ) as checkpoints:
        trained = checkpoints.latest_step() or 0
    require(  # before minutes are spent on a plan of its own
        0 < done <= trained,
        f"there is no step {done} in {folder}, whose last checkpoint is of step "
        f"{trained}; give one from 1 to {trained}.",
    )
    if output and not remote.is_remote(output):
        atomic.check_writable(remote.local(output).absolute().parent)
    run = prepare.prepare(config, folder, claim=False)
    run.checkpoints.close()
    vectors = len(run.shape) == 1
    suffix = suffix or (".npz" if vectors else ".png")
    require(
        vectors == (suffix == ".npz"),
        f"{output} cannot hold these pairs: those of vectors go to an .npz file, those "
        "of images to a picture; name it so.",
    )
    source, target = of_step(run, done)
    broken = [
        row
        for row, pair in enumerate(zip(source, target, strict=True))
        if not all(np.isfinite(x).all() for x in pair)
    ]
    print(
        f"step {done}: {len(source)} pairs, "
        + (f"rows {broken} are nan or infinite" if broken else "all finite")
    )
    address = output or remote.below(workdir, f"pairs_{done:07d}{suffix}")
    with remote.placing(address) as path:
        if vectors:
            arrays.write(path, {"source": source, "target": target})
        else:
            images.write(path, picture(*(decoded(run, x) for x in (source, target))))
    return str(address)


def run() -> int:
    """Writes the pairs of the step that the command line names."""
    parser = argparse.ArgumentParser(
        description="Writes the pairs that a step of a run trained on."
    )
    parser.add_argument("--workdir", required=True, help="the folder of a run")
    parser.add_argument("--step", required=True, type=int, help="counted from 1")
    parser.add_argument(
        "--output",
        help="a picture, of vectors an .npz file (default: in WORKDIR)",
    )
    run_folder.add_arguments(parser)
    arguments = parser.parse_args()
    places = run_folder.elsewhere(arguments)
    print(
        f"wrote {write(arguments.workdir, arguments.step, arguments.output, **places)}"
    )
    return 0


if __name__ == "__main__":
    command.exit_after(run)
