"""Horses to zebras, 256x256, for one host of 8 accelerators with 40 GB each.

python -m eotjax.main --config=configs/horse2zebra.py --workdir=RUN

The data set (111 MB) is downloaded and prepared by TFDS on first use; where its server
is out of reach, launch/prepare_cyclegan.py prepares an archive that you have. Another
of CycleGAN's: --config.data.name=cycle_gan/monet2photo.

What it costs, from the compiled step for 8 devices (benchmarks/trace_step.py; CPU
compiler, jax 0.10.2, bfloat16): 124.1 M parameters; 111 TFLOP a step of 64 pairs, with
the recomputation; 2.4 GiB of state and data and 26 GiB of temporaries on each device;
10 all-reduces, and 5 all-gathers for the one plan over all 64. At 35% of the peak of 8
A100 that is 0.13 s a step and 7 hours in all: an estimate, no run of this size was
made. With less memory halve batch_size and coupling.group_size.

The estimator is conditional denoising (cde): of the three it keeps the source best on
digits at equal cost (docs/digits.md). :cdiffe is the conditional diffusive estimator.
epsilon 0.01 of the mean cost gave plans of normalised entropy 0.20 between 60 horses
and 60 paintings at 256x256. :narrow runs the same code at a size that a laptop trains.
"""

from configs import default


def get_config(variants: str = ""):
    c = default.get_config()
    c.steps = 200_000
    c.batch_size = 64
    c.sample_every = 5_000

    c.data.kind = "tfds"
    c.data.name = "cycle_gan/horse2zebra"
    c.data.image_size = (256, 256)
    c.data.crop_margin = 30
    c.data.flip = True

    c.coupling.group_size = 64
    c.coupling.epsilon = 0.01

    c.model.width = 128
    c.model.multipliers = (1, 1, 2, 2, 4, 4)
    c.model.blocks = 2
    c.model.attention = (16, 8)
    c.model.dropout = 0.1
    c.model.remat = True

    c.optimizer.learning_rate = 1e-4
    c.optimizer.warmup_steps = 2_000
    c.optimizer.ema_decay = 0.9999

    c.checkpoint.every = 2_500
    return default.apply_variants(c, variants, {"narrow": narrow})


def narrow(c) -> None:
    """The same code path at a size that a laptop trains."""
    c.steps = 300
    c.batch_size = c.coupling.group_size = 8
    c.log_every, c.sample_every, c.checkpoint.every = 10, 100, 100
    c.data.image_size = (64, 64)
    c.data.crop_margin = 8
    c.model.width = 16
    c.model.multipliers = (1, 2, 2, 4)
    c.model.blocks = 1
    c.model.attention = (8,)
    c.model.head_channels = 16
    c.model.remat = False
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 20
    c.optimizer.ema_decay = 0.99
    c.sampling.steps, c.sampling.batch_size = 20, 16
