"""Times a config's training step on a CPU, with oneDNN's kernels and with XLA's own.

PYTHONPATH=. python benchmarks/cpu_step.py --config=configs/horse2zebra.py

The step is forward, backward, clipping, the optimiser and the average, on noise in
place of the plan's pairs. One of each in turn; the median of each and their ratio.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from eotjax import command
from eotjax.build import learning, planning, wiring
from eotjax.networks import kernels
from eotjax.training import step
from eotjax.transport import sinkhorn
from eotjax.transport.pairing import Drawn

CONFIG = config_flags.DEFINE_config_file("config")
ROUNDS = flags.DEFINE_integer("rounds", 10, "steps of each")
CHANNELS = flags.DEFINE_integer("channels", 32, "of the latents, where there are")


def main(_) -> None:
    command.keep_memory()
    config = planning.with_epsilon(CONFIG.value, 1.0)
    shape = (*config.data.image_size, 3 if config.data.tint else config.data.channels)
    if config.latent.weights:
        config.latent.channels = CHANNELS.value
    inner = wiring.inner_shape(config, shape)

    def pair(number, held, data):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number))
        x, y = (jax.random.normal(key, (config.batch_size, *inner)) for key in keys)
        return Drawn(x, y, sinkhorn.no_stats(), held)

    def compiled():
        net = wiring.network(config, shape)
        params = net.init(jax.random.key(0), *wiring.inputs(config, shape))["params"]
        state = step.init(params, learning.optimizer(config).update)
        run = jax.jit(learning.train_step(config, shape, pair), donate_argnums=0)
        return run.lower(state, jnp.zeros(())).compile(), state

    if not kernels.used():
        raise SystemExit("oneDNN is not in use here: launch/install.sh cpu")
    ours = compiled()
    with kernels.portable():
        theirs = compiled()
    rounded = "bfloat16" if kernels.rounded() else "float32"

    states = [ours[1], theirs[1]]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS.value + 1):
        for i, (run, _) in enumerate((ours, theirs)):
            start = time.perf_counter()
            states[i], _ = jax.block_until_ready(run(states[i], jnp.zeros(())))
            times[i].append(time.perf_counter() - start)
    one, other = (float(np.median(x[1:])) for x in times)
    print(f"batch {config.batch_size}, jax {jax.__version__}")
    print(f"oneDNN, factors of {rounded}: {one:.3f} s a step")
    print(f"XLA, float32: {other:.3f} s a step, {other / one:.2f} times as long")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
