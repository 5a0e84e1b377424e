"""torchcfm's exact-OT flow matching beside eotjax on digits, trained for as long.

python3 -m venv VENV
VENV/bin/pip install -c requirements.lock absl-py clu dm-pix flatbuffers flax \\
  grain jax jaxtyping ml-collections optax orbax-checkpoint ott-jax pillow POT \\
  scikit-learn scipy torch
VENV/bin/pip install --no-deps torchcfm==1.0.7
PYTHONPATH=. VENV/bin/python benchmarks/torchcfm_digits.py --output=RESULT.json

(torch's CPU build is enough; of torchcfm only its flow matching is imported, so that
--no-deps does.) First eotjax trains by configs/digits.py:bridge, then, in the same
process and for as many seconds, torchcfm's ExactOptimalTransportConditionalFlowMatcher
(Tong et al. 2023, arXiv 2302.00482; sigma 0). eotjax's seconds include its compilation;
torchcfm's begin after its first batch is drawn.

Both see the same batches (images and tints of step k are equal), start from the same
parameters of the same UNet (Flax's own, converted), and have the same Adam, warm-up,
cosine decay, clipping and average; torchcfm's decay ends with its seconds. Both
translate the same test images and are judged by eotjax.evaluate. What differs: the
pairs (of an exact or an entropic plan), what is learnt (a flow or a bridge), the
framework. Run it on a machine that does nothing else: PyTorch's threads wait busily for
each other, so that two of them, on two cores shared with other work, were six times and
more as slow as one.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import (
    ExactOptimalTransportConditionalFlowMatcher,
)

from benchmarks.torch_unet import UNet, flax_parameters, network
from configs import digits
from eotjax import command, parallel, train
from eotjax.artefact import export
from eotjax.build import dataset, planning
from eotjax.build.checks import Shape
from eotjax.data.domains import DataSet
from eotjax.evaluation import evaluate, measures
from eotjax.transport import cost


@dataclasses.dataclass(frozen=True)
class Run:
    """A training that has ended; `compile_seconds` are part of `seconds`."""

    steps: int
    seconds: float
    compile_seconds: float
    parameters: int
    batch_size: int

    @property
    def images_per_second(self) -> float:
        return self.steps * self.batch_size / (self.seconds - self.compile_seconds)


def channels_first(x: np.ndarray) -> Tensor:
    """[b, h, w, c] as [b, c, h, w], the faster layout for this network on CPUs."""
    return torch.tensor(x).permute(0, 3, 1, 2).contiguous()


def batches(config: ConfigDict, splits: DataSet) -> Iterator[tuple[Tensor, Tensor]]:
    """The draws of eotjax's steps before they are paired: [b, c, h, w], two each."""
    unpaired = config.copy_and_resolve_references()
    unpaired.coupling.method = "independent"
    lengths = splits.lengths
    mesh = parallel.make_mesh()
    pair = planning.pair(
        unpaired, cost.pixels, planning.sinkhorn_settings(unpaired), lengths, mesh
    )
    stored = {
        "source": jnp.asarray(splits.source.train),
        "target": jnp.asarray(splits.target.train),
    }
    draw = jax.jit(lambda step: pair(step, (), stored)[:2])
    for step in itertools.count():
        source, target = (channels_first(np.asarray(x)) for x in draw(step))
        yield source, target


def set_threads(net: UNet, x: Tensor) -> None:
    """Gives PyTorch all cores or one, whichever is faster at this network and batch."""

    def step() -> float:
        start = time.monotonic()
        net(x, torch.rand(len(x))).mean().backward()
        return time.monotonic() - start

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        return float(np.median([step() for _ in range(6)][1:]))

    torch.set_num_threads(min((torch.get_num_threads(), 1), key=seconds))


def train_torchcfm(
    config: ConfigDict,
    splits: DataSet,
    *,
    steps: int | None,
    seconds: float,
    threads: int | None,
) -> tuple[UNet, UNet, Run]:
    """Trains for `steps`, or else for `seconds`, as eotjax/training/step.py does.

    Returns:
      The network, its average, and what the training took.
    """
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)  # torchcfm draws its pairs by it
    c = config.optimizer
    net = network(config, dataset.sample_shape(config, splits.source.train))
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    draws = batches(config, splits)
    first = next(draws)
    draws = itertools.chain([first], draws)
    if threads:
        torch.set_num_threads(threads)
    else:
        set_threads(copy.deepcopy(net), first[0])

    start, warm, elapsed = time.monotonic(), 0.0, 0.0
    for step, (source, target) in enumerate(draws):
        elapsed = time.monotonic() - start
        share = step / steps if steps else elapsed / seconds
        if share >= 1:
            break
        if step <= c.warmup_steps:
            rate, warm = step / c.warmup_steps, share
        else:
            rate = (1 + math.cos(math.pi * (share - warm) / (1 - warm))) / 2
        optimizer.param_groups[0]["lr"] = c.learning_rate * rate

        t, x_t, flow = matcher.sample_location_and_conditional_flow(source, target)
        loss = F.mse_loss(net(x_t, t), flow)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), c.clip_norm)
        optimizer.step()
        decay = min(c.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        if (step + 1) % config.log_every == 0:
            print(
                f"torchcfm: step {step + 1}, loss {loss.item():.4f}, "
                f"{elapsed:.0f} s, {100 * share:.0f} %",
                flush=True,
            )
    parameters = sum(x.numel() for x in net.parameters())
    return net, average, Run(step, elapsed, 0.0, parameters, config.batch_size)


@dataclasses.dataclass(frozen=True)
class Flow:
    """A learnt flow in a Translator's place, followed by Euler's or midpoint steps."""

    config: ConfigDict
    shape: Shape
    net: UNet
    steps: int
    midpoint: bool = False

    @torch.no_grad()
    def __call__(
        self, source: np.ndarray, *, direction: str, progress: bool
    ) -> np.ndarray:
        """Follows the flow from source images in [-1, 1] to their translations."""
        del direction, progress  # forward alone; quick
        x, h = channels_first(source), 1 / self.steps
        for step in range(self.steps):
            t = torch.full((len(x),), step * h)
            flow = self.net(x, t)
            if self.midpoint:
                flow = self.net(x + h / 2 * flow, t + h / 2)
            x = x + h * flow
        return x.clamp(-1, 1).permute(0, 2, 3, 1).numpy()


def train_eotjax(config: ConfigDict, workdir: Path) -> None:
    """Trains without pictures and checkpoints on the way: only steps take time."""
    config = config.copy_and_resolve_references()
    config.log_every = 10
    config.sample_every = config.checkpoint.every = config.steps
    config.tensorboard = False
    train.train(config, workdir)


def finished(workdir: Path) -> Run:
    """What a finished eotjax run took, by its metrics.jsonl.

    Its seconds begin with the compilation and may lack some of the last interval's.
    The compilation is what its first interval took longer than the median one.
    """
    config = export.load(workdir / "export").config
    shape = dataset.sample_shape(config, dataset.load(config))
    parameters = jax.eval_shape(lambda: flax_parameters(config, shape))
    lines = [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    ends = np.array([0] + [line["step"] for line in lines])
    rates = np.array([line["images_per_second"] for line in lines]) / config.batch_size
    compiling = max(1 / rates[0] - np.median(1 / rates), 0) * ends[1]
    return Run(
        steps=int(ends[-1]),
        seconds=float(np.sum(np.diff(ends) / rates)),
        compile_seconds=float(compiling),
        parameters=sum(x.size for x in jax.tree.leaves(parameters)),
        batch_size=config.batch_size,
    )


def described(row: measures.Row, run: Run | None) -> measures.Row:
    """A row of the table: what was trained for how long, and how good it is."""
    took = {
        "train_steps": run.steps if run else math.nan,
        "train_seconds": run.seconds if run else math.nan,
        "images_per_second": run.images_per_second if run else math.nan,
    }
    return took | row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--compare",
        default="train",
        help="the workdir of a finished eotjax run of this machine; train: train one "
        "now (default); none: torchcfm alone",
    )
    parser.add_argument("--seconds", type=float, help="of torchcfm's training")
    parser.add_argument("--steps", type=int, help="of torchcfm's training, instead")
    parser.add_argument("--eotjax_steps", type=int, help="instead of the config's")
    parser.add_argument("--sample_steps", type=int, default=50, help="and twice")
    parser.add_argument(
        "--threads", type=int, help="of PyTorch (default: all or one, the faster)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of both")
    parser.add_argument("--output", help="a JSON file for all numbers")
    arguments = parser.parse_args()
    if arguments.compare == "none" and not (arguments.seconds or arguments.steps):
        parser.error("--compare=none needs --seconds or --steps")

    config = digits.get_config("bridge,adam")
    config.seed = arguments.seed
    config.steps = arguments.eotjax_steps or config.steps
    splits = dataset.load(config)
    shape = dataset.sample_shape(config, splits.source.train)
    step_counts = (arguments.sample_steps, 2 * arguments.sample_steps)
    runs: dict[str, Run] = {}
    rows: dict[str, measures.Row] = {}

    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(arguments.compare)
        if arguments.compare == "train":
            workdir = Path(scratch) / "run"
            train_eotjax(config, workdir)
        if arguments.compare != "none":
            runs["eotjax"] = finished(workdir)
            for n in step_counts:
                translator = export.load(workdir / "export", steps=n)
                row = evaluate.evaluate(translator, splits)[0]["rows"]["eotjax"]
                rows[f"eotjax, {n} steps"] = described(row, runs["eotjax"])

    seconds = arguments.seconds or (runs["eotjax"].seconds if runs else 0.0)
    net, average, run = train_torchcfm(
        config,
        splits,
        steps=arguments.steps,
        seconds=seconds,
        threads=arguments.threads,
    )
    runs["torchcfm"] = run
    flows = {
        f"torchcfm, Euler {n}": Flow(config, shape, average, n) for n in step_counts
    }
    n = arguments.sample_steps
    flows[f"torchcfm, midpoint {n}"] = Flow(config, shape, average, n, midpoint=True)
    flows[f"torchcfm, Euler {n}, not averaged"] = Flow(config, shape, net, n)
    for name, flow in flows.items():
        judged = evaluate.evaluate(flow, splits)[0]["rows"]
        rows[name] = described(judged["eotjax"], run)
    for name in ("identity", "independent"):
        rows[name] = described(judged[name], None)

    print(measures.table(rows).replace("nan", "  -"))
    print(f"PyTorch's threads: {torch.get_num_threads()} of {os.cpu_count()} cores")
    for name, run in runs.items():
        print(
            f"{name}: {run.steps} steps of {run.batch_size} in {run.seconds:.1f} s, "
            f"{run.compile_seconds:.1f} s of them compiling, "
            f"{run.images_per_second:.0f} images/s; {run.parameters} parameters"
        )
    if arguments.output:
        names = ("jax", "flax", "ott-jax", "torch", "torchcfm", "pot", "numpy")
        result = {
            "rows": {
                name: {key: x for key, x in row.items() if not math.isnan(x)}
                for name, row in rows.items()
            },
            "runs": {
                name: dataclasses.asdict(run)
                | {"images_per_second": run.images_per_second}
                for name, run in runs.items()
            },
            "seed": arguments.seed,
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "versions": {name: metadata.version(name) for name in names}
            | {"python": platform.python_version()},
        }
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")
        print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    command.exit_after(main)
