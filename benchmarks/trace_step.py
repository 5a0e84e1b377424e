"""Compiles a config's training step without running it, and prints what it costs.

PYTHONPATH=. XLA_FLAGS=--xla_force_host_platform_device_count=8 python \\
  benchmarks/trace_step.py --config=configs/horse2zebra.py --train_images=1067,1334

FLOPs are those of the whole step, over all devices, recomputation included; bytes are
one device's, by the compiled step's own analysis. Nothing of that size is allocated.
"""

import jax
from absl import app, flags
from ml_collections import config_flags

from benchmarks import tracing
from eotjax import parallel

CONFIG = config_flags.DEFINE_config_file("config")
TRAIN_IMAGES = flags.DEFINE_list("train_images", ["1000", "1000"], "source,target")
CHANNELS = flags.DEFINE_integer("channels", 32, "of the latents, where there are")


def main(_) -> None:
    mesh = parallel.make_mesh()
    lengths = tuple(map(int, TRAIN_IMAGES.value))
    config = CONFIG.value
    config.latent.channels = config.latent.channels or CHANNELS.value
    lowered, flops, params = tracing.traced(config, mesh, lengths)
    compiled = lowered.compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    parameters = sum(x.size for x in jax.tree.leaves(params))
    print(
        f"devices: {mesh.size} {mesh.devices.flat[0].platform}, jax {jax.__version__}"
    )
    print(f"parameters: {parameters / 1e6:.1f} M")
    print(f"step: {flops / 1e12:.3g} TFLOP")
    print(
        f"per device: {memory.argument_size_in_bytes / 2**30:.2f} GiB state and data, "
        f"{memory.temp_size_in_bytes / 2**30:.2f} GiB temporary"
    )
    for name, (count, size) in tracing.collected(text).items():
        print(f"{name}: {count}, {size / 2**20:.3g} MiB")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
