"""What a training step would exchange on many devices, and how long that would take.

XLA_FLAGS=--xla_force_host_platform_device_count=8 PYTHONPATH=. python \\
  benchmarks/scaling.py --config=configs/horse2zebra.py:large --train_images=1013,1267

The step is compiled for eight devices. Each device keeps its share of the batch as
there are more of them, so that FLOPs and bytes a device stay what they are there; what
is exchanged goes round in rings, within what the fast links join and then between
these, not hidden behind anything. Peaks are those that the makers publish. Nothing
here was run on such devices: latency, which counts on thousands of them, is left out.
"""

from typing import NamedTuple

import jax
from absl import app, flags
from ml_collections import config_flags

from benchmarks import tracing
from eotjax import parallel

CONFIG = config_flags.DEFINE_config_file("config")
TRAIN_IMAGES = flags.DEFINE_list("train_images", ["1000", "1000"], "source,target")
CHANNELS = flags.DEFINE_integer("channels", 32, "of the latents, where there are")
REACHED = 0.35  # of the peak, while computing
DEVICES = (8, 64, 512, 4096)


class Device(NamedTuple):
    """An accelerator, and what joins it to others."""

    name: str
    flops: float  # a second, bfloat16, dense
    joined: int  # by the fast links
    fast: float  # bytes a second, out of one device
    slow: float  # between those that the fast links join


KINDS = (
    # cloud.google.com/tpu/docs/v5e: 1,600 Gb/s a chip; 6.4 Tb/s a pod of 256.
    Device("TPU v5e", parallel.PEAK["TPU v5 lite"], 256, 200e9, 6.4e12 / 8 / 256),
    # NVLink 900 GB/s both ways; one 400 Gb/s adapter for each GPU.
    Device("H100 SXM", parallel.PEAK["H100"], 8, 450e9, 50e9),
)


def seconds(size: float, devices: int, kind: Device, *, gathers: bool) -> float:
    """How long an all-reduce of so many bytes takes, or a gathering to so many."""
    within = min(devices, kind.joined)
    between = devices // within
    rounds = 1 if gathers else 2
    return rounds * (
        (within - 1) / within * size / kind.fast
        + (between - 1) / between * size / within / kind.slow
    )


def main(_) -> None:
    mesh = parallel.make_mesh()
    config = CONFIG.value
    config.latent.channels = config.latent.channels or CHANNELS.value
    lengths = tuple(map(int, TRAIN_IMAGES.value))
    lowered, flops, params = tracing.traced(config, mesh, lengths)
    flops /= mesh.size
    found = tracing.collected(lowered.compile().as_text())
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    print(
        f"{config.batch_size // mesh.size} pairs a device: {flops / 1e12:.3g} TFLOP; "
        f"parameters {size / 2**20:.1f} MiB; "
        + ", ".join(
            f"{kind} {each / 2**20:.1f} MiB ({n})" for kind, (n, each) in found.items()
        )
    )
    print("\n| device | " + " | ".join(f"{n:,}" for n in DEVICES) + " |")
    print("|---|" + "---:|" * len(DEVICES))
    for kind in KINDS:
        computing = flops / kind.flops / REACHED
        shares = []
        for devices in DEVICES:
            exchanging = sum(
                seconds(each, devices, kind, gathers=name != "all-reduce")
                for name, (_, each) in found.items()
            )
            shares.append(computing / (computing + exchanging))
        cells = " | ".join(f"{share:.0%}" for share in shares)
        print(f"| {kind.name}, {1000 * computing:.3g} ms of computing | {cells} |")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
