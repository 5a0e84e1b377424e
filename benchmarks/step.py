"""Times a training step beside the same step in PyTorch, one after the other.

PYTHONPATH=. python benchmarks/step.py [CASE ...] [--output=RESULT.json]

A step: draw a batch of tinted digits from memory, pair it by optimal transport, noise
it, the UNet forward and backward, clipping, Adam, the average. PyTorch pairs as
torchcfm does (Tong et al. 2023, arXiv 2302.00482): the exact plan by POT, on the CPU.
The UNets have the same parameters in number and place, and begin with the same values.

Of each a few steps in turn, so that all meet the same machine. Each is given what is
faster for it here: PyTorch its layout of images and its threads. In bfloat16 where the
device multiplies that faster, and then in float32 too. Nothing else should run.

Then eotjax's sampler, by a batch. MFU is of the FLOPs that XLA counts in our step, and
of the peak that the device's maker tells.
"""

import argparse
import contextlib
import copy
import json
import math
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn

with contextlib.suppress(ImportError):
    import triton  # noqa: F401, torch imports it too late: it bears no TensorFlow
import ot

from benchmarks.torch_unet import network
from configs import digits
from eotjax import command, parallel, prepare
from eotjax.build import dataset, learning, planning, wiring
from eotjax.networks import kernels

PAIRS = "eotjax's pairs alone"
SECONDS = 2.0  # of one contender before it is the next one's turn


class Case(NamedTuple):
    """One network, by the keys of configs/digits.py that it changes."""

    size: int
    batch: int
    model: dict
    gpu: bool = False

    def config(self) -> ConfigDict:
        config = digits.get_config("adam")
        config.data.image_size = (self.size, self.size)
        config.batch_size = config.coupling.group_size = self.batch
        config.model.update(self.model)
        return config


WIDE = {"width": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention": (16,)}
LARGE = {"width": 96, "multipliers": (1, 2, 3, 4), "attention": (16,), "patch": 4}
CASES = {
    "16": Case(16, 128, {}),
    "32": Case(32, 128, {"width": 32, "multipliers": (1, 2, 2)}),
    "64": Case(64, 32, {"multipliers": (1, 2, 3, 4)}),
    "64-patches": Case(64, 32, {"width": 48, "patch": 4}),
    "64-wide": Case(64, 64, WIDE, gpu=True),
    "256-patches": Case(256, 16, LARGE, gpu=True),
}


class Contender(NamedTuple):
    """A step; called with how often to take it, it returns once all are done."""

    name: str
    steps: Callable[[int], None]


class Setting(NamedTuple):
    """A case, ready to be trained on: epsilon found, images in memory."""

    config: ConfigDict
    shape: tuple[int, ...]
    data: dict
    lengths: tuple[int, int]


def setting(case: Case) -> Setting:
    """Loads a case's data and finds its epsilon."""
    config, mesh = case.config(), parallel.make_mesh()
    splits = dataset.load(config)
    embed = planning.embed(config, splits)
    data = prepare.device_data(config, splits, embed, mesh)
    lengths = splits.lengths
    batches = [data] * planning.CALIBRATION_STEPS
    epsilon = planning.find_epsilon(
        config, lambda: planning.try_groups(config, embed, batches, lengths, mesh)
    )
    shape = dataset.sample_shape(config, splits.source.train)
    return Setting(planning.with_epsilon(config, epsilon), shape, data, lengths)


def eotjax_step(given: Setting, precision: str | None) -> Contender:
    """Our step, compiled; with a precision of JAX's, or in that of its defaults."""
    training = learning.training(
        given.config, given.shape, given.lengths, parallel.make_mesh()
    )
    before = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    jax.config.update("jax_default_matmul_precision", precision)
    advance = parallel.compiled(training.step.lower(training.init(), given.data))
    jax.config.update("jax_default_matmul_precision", before)
    state = training.init()

    def steps(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, _ = advance(state, given.data)
        jax.block_until_ready(state)

    rounded = wiring.compute_dtype(given.config) != np.float32 or kernels.rounded()
    dtype = "float32" if precision or not rounded else "bfloat16"
    return Contender(f"eotjax, {dtype}", steps)


def step_flops(given: Setting) -> float:
    """Of our step, were it all XLA's."""
    with kernels.portable():
        training = learning.training(
            given.config, given.shape, given.lengths, parallel.make_mesh()
        )
        state = jax.eval_shape(training.init)
        return parallel.flops(training.step.lower(state, given.data))


def sampling_rate(given: Setting) -> float:
    """Images a second that our sampler translates."""
    training = learning.training(
        given.config, given.shape, given.lengths, parallel.make_mesh()
    )
    params, batch = training.init().params, given.config.batch_size
    sample = wiring.sampling(given.config, given.shape, parallel.make_mesh())
    number, forward = np.arange(batch, dtype=np.uint32), np.zeros(batch, int)
    source = np.zeros((batch, *given.shape), np.float32)

    def translate(count: int) -> None:
        for _ in range(count):
            found = sample(params, np.uint32(0), number, forward, source)
            jax.block_until_ready(found)

    return batch / seconds(translate, 1)


def coupling_step(given: Setting) -> Contender:
    """The part of our step that draws, solves and pairs."""
    pairs = jax.jit(
        learning.training(
            given.config, given.shape, given.lengths, parallel.make_mesh()
        ).pairs
    )
    held = planning.nothing_held(given.config, given.lengths)

    def steps(count: int) -> None:
        for number in range(count):
            jax.block_until_ready(pairs(number, held, given.data))

    return Contender(PAIRS, steps)


def torch_step(
    given: Setting, device: str, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[nn.Module, Callable[[nn.Module, int], Callable[[int], None]]]:
    """The network, and what makes the step of it, or of it compiled."""
    config, c = given.config, given.config.optimizer
    net = network(config, given.shape).to(device, memory_format=layout)
    sets = [
        torch.tensor(np.asarray(given.data[side]), device=device)
        for side in ("source", "target")
    ]
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    means, values = list(average.parameters()), list(net.parameters())

    def draw(images: Tensor) -> Tensor:
        """Grey images, each tinted with a colour, in [-1, 1]."""
        index = torch.randint(len(images), (config.batch_size,), device=device)
        colour = torch.rand(config.batch_size, 3, 1, 1, device=device)
        grey = images[index].permute(0, 3, 1, 2) / 255
        return (2 * grey * colour - 1).contiguous(memory_format=layout)

    def pair(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs drawn from the exact plan, as torchcfm's OTPlanSampler draws them."""
        cost = torch.cdist(source.flatten(1), target.flatten(1)) ** 2
        share = np.full(len(cost), 1 / len(cost))
        plan = ot.emd(share, share, cost.double().cpu().numpy()).ravel()
        chosen = np.random.choice(len(plan), len(cost), p=plan / plan.sum())
        rows, columns = np.divmod(chosen, len(cost))
        return source[rows], target[columns]

    def one(net: nn.Module, number: int) -> None:
        source, target = pair(*map(draw, sets))
        t = torch.rand(config.batch_size, device=device)
        noise = torch.randn_like(target)
        angle = (t * math.pi / 2)[:, None, None, None]
        x_t = angle.cos() * target + angle.sin() * noise
        v = angle.cos() * noise - angle.sin() * target
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            found = net(torch.cat([x_t, source], dim=1), t)
        loss = F.mse_loss(found.float(), v)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(values, c.clip_norm)
        optimizer.param_groups[0]["lr"] = c.learning_rate * min(1, number / 50)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(means, values, 1 - c.ema_decay)

    def make(net: nn.Module, threads: int) -> Callable[[int], None]:
        def steps(count: int) -> None:
            torch.set_num_threads(threads)
            for number in range(count):
                one(net, number)
            if device == "cuda":
                torch.cuda.synchronize()

        return steps

    return net, make


def torch_steps(given: Setting, compiled: bool) -> list[Contender]:
    """PyTorch's contenders, eager and compiled, with the threads that suit it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layouts = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    dtypes = {"float32": torch.float32}
    if device == "cuda" or kernels.rounded():
        dtypes["bfloat16"] = torch.bfloat16
    most, contenders = torch.get_num_threads(), []
    for name, dtype in dtypes.items():
        tried = {}
        for layout, order in layouts.items():
            net, make = torch_step(given, device, dtype, order)
            for threads in {1, most} if device == "cpu" else {most}:
                tried[layout, threads] = (seconds(make(net, threads), 3), net, make)
        (layout, threads), (_, net, make) = min(
            tried.items(), key=lambda item: item[1][0]
        )
        told = f"{name} ({layout}, {threads} threads)"
        contenders.append(Contender(f"eager, {told}", make(net, threads)))
        if compiled:
            torch.compiler.reset()
            faster = make(torch.compile(net, dynamic=False), threads)
            contenders.append(Contender(f"compiled, {told}", faster))
    return contenders


def seconds(steps: Callable[[int], None], count: int) -> float:
    """Of one step, the first apart, which may compile."""
    steps(1)
    start = time.perf_counter()
    steps(count)
    return (time.perf_counter() - start) / count


def measured(contenders: list[Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each contender in each round; a round is a turn of each."""
    counts = [max(round(SECONDS / seconds(steps, 3)), 3) for _, steps in contenders]
    taken: dict[str, list[float]] = {name: [] for name, _ in contenders}
    for _ in range(rounds):
        for (name, steps), count in zip(contenders, counts, strict=True):
            taken[name].append(seconds(steps, count))
    return taken


class Result(NamedTuple):
    """What was measured of a case."""

    batch: int
    flops: float  # of a step
    sampled: float  # images a second
    seconds: dict[str, list[float]]  # a step, of each contender in each round


def table(results: dict[str, Result]) -> str:
    """Milliseconds a step, and each contender's part of eotjax's first one."""
    peak = parallel.peak_flops(jax.devices()[0])
    rows = [
        "| case | | ms a step | images/s | MFU | as long as eotjax's |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for case, (batch, flops, sampled, taken) in results.items():
        first = np.array(next(iter(taken.values())))
        for name, values in taken.items():
            ratios, median = np.array(values) / first, np.median(values)
            spread = f"{ratios.min():.2f} to {ratios.max():.2f}"
            whole = name != PAIRS
            rate = f"{batch / median:.0f}" if whole else ""
            mfu = f"{flops / median / peak:.1%}" if whole and peak else ""
            rows.append(
                f"| {case} | {name} | {1e3 * median:.1f} | {rate} | {mfu} | "
                f"{np.median(ratios):.2f} ({spread}) |"
            )
        rows.append(f"| {case} | eotjax, sampling | | {sampled:.1f} | | |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    on_gpu = jax.default_backend() == "gpu"
    usual = [name for name, case in CASES.items() if on_gpu or not case.gpu]
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each")
    parser.add_argument(
        "--eager", action="store_true", help="leave torch.compile out, which takes long"
    )
    parser.add_argument("--output", help="a JSON file for all numbers")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(unknown)}")
    results = {}
    for name in arguments.cases or usual:
        given = setting(CASES[name])
        contenders = [eotjax_step(given, None)]
        if not on_gpu and kernels.rounded():
            contenders.append(eotjax_step(given, "float32"))
        contenders.append(coupling_step(given))
        contenders += torch_steps(given, not arguments.eager)
        results[name] = Result(
            given.config.batch_size,
            step_flops(given),
            sampling_rate(given),
            measured(contenders, arguments.rounds),
        )
        print(table({name: results[name]}), flush=True)
    devices = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    names = ("jax", "flax", "ott-jax", "torch", "pot", "numpy")
    versions = {name: metadata.version(name) for name in names}
    print("\n" + table(results))
    print(f"{devices}; {versions}")
    if arguments.output:
        result = {
            "results": {name: found._asdict() for name, found in results.items()},
            "device": devices,
            "versions": versions | {"python": platform.python_version()},
        }
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    command.exit_after(main)
