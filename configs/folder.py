"""Your own images: a folder with trainA and trainB, perhaps testA and testB.

python -m eotjax.main --config=configs/folder.py --config.data.path=FOLDER --workdir=OUT

:photos takes the way of configs/horse2zebra.py, 256x256 in the latents of a tiny
autoencoder. Without it the images are 64x64; for larger ones set data.image_size and
lengthen model.multipliers, one more for each doubling, so that attention stays at
heights of 8 to 32.
"""

from configs import default, horse2zebra


def get_config(variants: str = ""):
    c = default.get_config()
    c.steps = 20_000
    c.data.kind = "folder"
    c.data.flip = True
    c.data.crop_margin = 6
    return default.apply_variants(c, variants, VARIANTS)


def bridge(c) -> None:
    """Of clean data, and of so little noise that the source shows through half-way."""
    default.estimator("bridge")(c)
    c.estimator.prediction = "data"
    c.estimator.epsilon = 0.25  # about the variance of the pixels


def small(c) -> None:
    """A network and a run that a CPU trains in minutes."""
    c.steps = 1_000
    c.batch_size = c.coupling.group_size = 32
    c.sample_every = c.checkpoint.every = 250
    c.log_every = 50
    c.model.width = 16
    c.model.multipliers = (1, 2, 3, 4)
    c.model.blocks = 1
    c.model.attention = ()
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 50
    c.optimizer.ema_decay = 0.995


def mnist(c) -> None:
    """Grey 28x28 digits, padded to 32x32 and tinted, for a CPU."""
    small(c)
    c.batch_size = c.coupling.group_size = 64
    c.data.image_size = (32, 32)
    c.data.fit = "pad"
    c.data.channels = 1
    c.data.tint = True
    c.data.flip = False
    c.data.crop_margin = 0
    c.model.multipliers = (1, 2, 3)


VARIANTS = {
    "photos": horse2zebra.photographs,
    "bridge": bridge,
    "small": small,
    "mnist": mnist,
}
