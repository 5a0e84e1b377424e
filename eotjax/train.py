"""The training run: wires the config's parts, then loops."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from clu import parameter_overview
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from eotjax import (
    batch,
    build,
    checks,
    dataset,
    evaluate,
    export,
    images,
    metrics,
    parallel,
    run_folder,
    step,
)
from eotjax.checkpoint import Checkpoints
from eotjax.data import DataSet
from eotjax.interruption import Interruption


def train(config: ConfigDict, workdir: str | Path) -> bool:
    """Trains, or goes on training, in `workdir`; then exports and evaluates.

    Returns:
      False where a signal stopped the run early; its state is then saved.

    Raises:
      UserError: something about the config, the data or the workdir is wrong.
    """
    workdir = Path(workdir).absolute()
    mesh = parallel.make_mesh()
    devices = mesh.devices.flat
    print(f"devices: {mesh.size} {devices[0].device_kind} ({devices[0].platform})")
    checks.check_config(config, mesh.size)
    run_folder.check(workdir, config)

    splits = dataset.load(config)
    shape = dataset.sample_shape(config, splits)
    checks.check_shape(config, shape)
    lengths = (len(splits.train_source), len(splits.train_target))
    print(
        f"data: train {lengths[0]} source, {lengths[1]} target; "
        f"test {len(splits.test_source)}, {len(splits.test_target)}; "
        f"{'x'.join(map(str, shape))}, "
        + ("on the device" if splits.resident else "streamed")
    )
    training = build.training(config, shape, lengths if splits.resident else None, mesh)
    sample = build.sampling(config, shape, mesh)
    run_folder.claim(workdir, config)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    state = first_state(training, checkpoints, parallel.replicated(mesh))
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

    def write_grid(done: int) -> None:
        if len(shape) == 1:
            return
        translate = export.Translator(config, shape, state.ema_params, sample)
        picture = images.grid(
            [sources, translate(sources)], zoom=max(64 // shape[0], 1)
        )
        if not parallel.is_leader():
            return
        (workdir / "samples").mkdir(exist_ok=True)
        images.write(workdir / "samples" / f"step_{done:07d}.png", picture)
        writer.image(done, "translations", picture)

    stop = False
    with (
        Interruption() as interruption,
        contextlib.closing(checkpoints),  # also where the run fails
        contextlib.closing(writer),
    ):
        data = training_data(config, splits, start, mesh)
        if start < config.steps:
            print("compiling the step", flush=True)
        for done in range(start + 1, config.steps + 1):
            state, values = training.step(state, next(data))
            log.add(done, values)
            last = done == config.steps
            stop = interruption.agreed(done) and not last
            if done % config.checkpoint.every == 0 or last or stop:
                log.flush()  # saving waits for the device anyway
                checkpoints.save(done, state)
            if done % config.sample_every == 0 or last:
                log.flush()
                write_grid(done)
            if stop:
                break
        log.flush()
    if stop:
        print(f"stopped at step {done}; the same command goes on from there")
        return False

    export.save(
        workdir / "export",
        config=config,
        shape=shape,
        step=config.steps,
        params=state.ema_params,
    )
    print(f"exported to {workdir / 'export'}")
    translate = export.Translator(config, shape, state.ema_params, sample)
    evaluate.report(translate, splits, workdir / "export")
    return True


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


def training_data(
    config: ConfigDict, splits: DataSet, start: int, mesh: Mesh
) -> Iterator[step.Data]:
    """What the step reads: the whole sets each time, or the batches in turn."""
    if splits.resident:
        whole = {"source": splits.train_source, "target": splits.train_target}
        on_device = parallel.put(whole, parallel.replicated(mesh))
        while True:
            yield on_device
    share = config.batch_size // jax.process_count()
    first = share * jax.process_index()
    batches = batch.stream(
        splits.train_source,
        splits.train_target,
        key_of_step=lambda number: step.keys(config.seed, number)[0],
        batch_size=config.batch_size,
        steps=range(start, config.steps),
        rows=slice(first, first + share),
    )
    layout = parallel.split(mesh)
    for arrays in batches:
        yield jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(layout, x), arrays
        )
