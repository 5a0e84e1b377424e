"""Horses to zebras at 256x256, in the latents of a tiny frozen autoencoder.

python -m eotjax.main --config=configs/horse2zebra.py --workdir=RUN \\
  --config.latent.weights=FOLDER --config.data.path=FOLDER

data.path holds trainA, trainB, testA and testB; without it the data set (111 MB) is
downloaded and prepared by TFDS. latent.weights is a folder with the encoder and the
decoder of TAEF2 (github.com/madebyollin/taesd, 5 MB); without it they come from the
Hugging Face hub. --config.judge.classifier=efficientnet-lite0 chooses RUN/best by that
network's features and measures by them (the extra fid).

A bridge of both directions, of 7.5 M parameters, its noise like the images themselves:
between the pairs of one plan of the whole sets, then between pairs that it makes
itself. It has run on two CPU cores only, docs/horse2zebra.md: encoding all images
once takes 6 to 8 minutes there, training 50 to 85, 5 to 7 of them for making pairs,
all three to four times as long without AVX-512. A step is 0.10 TFLOP and needs 0.9 GiB,
the whole run 1,000 TFLOP: at 35 % of its peak six minutes of a T4 (float32), fifteen
seconds of a v5e, nine of an A100, which so small a network will hardly reach.

:cde and :cdiffe (the condition noised too) draw zebras from noise, beside the horse.
:pixels trains without an autoencoder, :large a network of 17 times the size; neither
was ever trained to an end. :narrow runs the same code in a minute or two.
"""

from configs import default


def get_config(variants: str = ""):
    c = default.get_config()
    photographs(c)
    c.data.kind = "tfds"
    c.data.name = "cycle_gan/horse2zebra"
    c.judge.wanted = 340  # ImageNet's zebra
    return default.apply_variants(c, variants, VARIANTS)


def photographs(c) -> None:
    """Photographs at 256x256 of any two kinds, in latents."""
    c.steps = 9_000
    c.batch_size = 32
    c.sample_every = c.checkpoint.every = 1_500

    c.data.image_size = (256, 256)
    c.data.crop_margin = 32
    c.data.flip = True
    c.data.validation = 0.05

    c.latent.weights = "madebyollin/taef2"
    c.latent.license = "MIT"

    c.coupling.method = "whole"
    c.coupling.cost = "pooled"
    c.coupling.copies = 4
    c.coupling.entropy = 0.2

    c.estimator.name = "bridge"
    c.estimator.prediction = "data"
    c.estimator.epsilon = 1.0  # as much as the latents vary
    c.estimator.noise = "images"
    c.estimator.direction = "both"  # which also gives the sampler its guidance

    c.refit.after, c.refit.every = 2_000, 0  # once: a second time fades colours
    c.refit.steps = 20  # few wash the pairs out
    c.refit.guidance = 1.5  # else zebras keep stripes, and horses need learn none

    c.model.patch = 2
    c.model.width = 64
    c.model.multipliers = (1, 2, 3)
    c.model.blocks = 1
    c.model.attention = (8,)

    c.optimizer.learning_rate = 1e-3
    c.optimizer.muon = 4e-3
    c.optimizer.warmup_steps = 100

    c.sampling.steps = 25
    c.sampling.guidance = 1.5
    c.sampling.temperature = 0.75
    c.sampling.restart = 0.5
    c.sampling.batch_size = 16


def conditional(name: str):
    """An estimator that draws the target from noise, forward only."""

    def choose(c) -> None:
        default.estimator(name)(c)
        c.estimator.direction = "forward"
        c.refit.after = 0
        c.estimator.noise = "white"
        c.sampling.guidance = c.sampling.temperature = 1.0
        c.sampling.restart = 0.0
        c.sampling.steps = 50

    return choose


def pixels(c) -> None:
    """Without an autoencoder, in patches of 4x4 pixels."""
    c.steps = 12_000
    c.refit.after = 4_000
    c.batch_size = 16  # 9 GiB; of 32 the blocks at the whole resolution take 14
    c.latent.weights = c.latent.license = ""
    c.coupling.pool = 32
    c.estimator.epsilon = 0.25  # about the variance of the pixels
    c.model.patch = 4
    c.model.width = 96
    c.model.multipliers = (1, 2, 3, 4)
    c.optimizer.learning_rate, c.optimizer.muon = 3e-4, 2e-3
    c.sampling.batch_size = 8


def large(c) -> None:
    """For a host of eight accelerators."""
    c.steps = 60_000
    c.batch_size = 128
    c.sample_every = c.checkpoint.every = 5_000
    c.refit.after = 20_000
    c.model.width = 192
    c.model.multipliers = (1, 2, 3)
    c.model.blocks = 3
    c.model.dropout = 0.1
    c.optimizer.learning_rate, c.optimizer.muon = 3e-4, 3e-3
    c.optimizer.warmup_steps = 1_000
    c.optimizer.ema_decay = 0.9995
    c.sampling.batch_size = 64


def narrow(c) -> None:
    """The same code path in a minute or two."""
    c.steps = 20
    c.batch_size = 8
    c.log_every = c.sample_every = c.checkpoint.every = 10
    c.data.image_size = (64, 64)
    c.data.crop_margin = 0
    c.coupling.copies = 1
    c.coupling.pool = 2
    c.refit.after = min(c.refit.after, 10)
    c.refit.steps = 4
    c.model.width = 16
    c.model.multipliers = (1, 2)
    c.model.attention = ()
    c.sampling.steps, c.sampling.batch_size, c.sampling.grid = 4, 8, 8


VARIANTS = {
    **{name: conditional(name) for name in ("cde", "cdiffe", "cmde")},
    "pixels": pixels,
    "large": large,
    "narrow": narrow,
}
