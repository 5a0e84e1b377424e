"""Every key of a configuration, with its default and what it means.

The other files import this one and change a few lines. A variant string after a colon
changes a config further, several after commas: configs/digits.py:cdiffe,smoke.
"""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

ESTIMATORS = ("cde", "cdiffe", "cmde", "bridge")


def get_config(variants: str = "") -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # of everything random: two runs of one config are equal
    c.steps = 10_000  # training steps
    c.batch_size = 64  # pairs a step, over all devices
    c.microbatch = 0  # pairs that the network takes at once, for less memory; 0: all
    c.log_every = 100  # steps between two lines of progress and metrics
    c.sample_every = 1_000  # steps between two grids of translated test images
    c.init = ""  # folder of an artefact whose parameters the run begins from
    c.license = "unknown"  # of the exported parameters, for the model card
    c.profile = 0  # steps to trace for a profiler, after the first ten; 0: none
    c.tensorboard = True  # also write TensorBoard files (needs TensorFlow)

    c.data = ConfigDict()
    c.data.kind = "folder"  # digits, tfds, folder, npz or known_plan
    c.data.name = ""  # tfds: the data set, such as cycle_gan/horse2zebra
    c.data.path = ""  # folder: what holds the four; npz: the file; tfds: data_dir
    c.data.train_source = "trainA"  # the four splits, folders or arrays
    c.data.train_target = "trainB"
    c.data.test_source = "testA"
    c.data.test_target = "testB"
    c.data.image_size = (64, 64)  # height, width
    c.data.channels = 3  # 1 reads images as grey, 3 as RGB
    c.data.fit = "crop"  # to image_size: crop the centre, pad with black, or stretch
    c.data.crop_margin = 0  # pixels training images are larger, for random crops
    c.data.flip = False  # mirror training images left to right at random
    c.data.tint = False  # give grey images (channels = 1) a random hue; they become RGB
    c.data.validation = 0.0  # share of the training images held out, to choose the
    # best step by; 0: the test images choose it, and its figures flatter
    c.data.device_gib = 4.0  # larger training sets are streamed from host or disk

    c.latent = ConfigDict()  # the space of a frozen autoencoder in front of everything
    c.latent.weights = ""  # folder, file or hub name of a TAESD; "": pixels
    c.latent.channels = 0  # of its latents; 0: what the weights say
    c.latent.license = ""  # of its weights, which go into the export
    c.latent.cache = ""  # where encoded images are kept; "": the user's cache folder

    c.known = ConfigDict()  # known_plan: pairs whose plan is known in closed form
    c.known.dim = 16  # of the vectors
    c.known.instance = 0  # the seed of everything random about the instance
    c.known.source = "gaussian"  # or mixture
    c.known.covariance = "isotropic"  # of the potential's components, or full
    c.known.count = 131_072  # training vectors of each side
    c.known.test_sources = 1_000  # that a plan is judged by, 1,000 targets each

    c.coupling = ConfigDict()
    c.coupling.method = "entropic"  # whole: one plan of the sets; independent: none
    c.coupling.group_size = 64  # points a side of one plan; divides batch_size, or is
    # a multiple of it: then one plan serves several steps
    c.coupling.draws = 1  # partners drawn for each point; more: for more steps
    c.coupling.epsilon = 0.02  # entropic regularisation of the cost |x - y|^2 / 2
    c.coupling.relative = "mean"  # epsilon is in units of the cost's mean, std, or ""
    c.coupling.entropy = 0.0  # find the epsilon whose plan has this entropy; 0: do not
    c.coupling.tau_source = 1.0  # below 1 a plan may leave sources out: it is
    # rho / (rho + epsilon), rho the weight of their marginal
    c.coupling.tau_target = 1.0  # the same of targets
    c.coupling.cost = "pixels"  # where it is taken: pixels, pooled, pca or features
    c.coupling.pool = 4  # pooled: pixels a side of the cells that are averaged
    c.coupling.components = 64  # pca: fitted on the training sets
    c.coupling.features = ""  # features: .npz, arrays aligned with the training sets
    c.coupling.copies = 1  # whole: views of each image, with tints and flips of theirs
    c.coupling.dense_gib = 2.0  # whole: larger cost matrices are not kept, a device
    c.coupling.threshold = 1e-3  # L1 marginal error at which Sinkhorn stops
    c.coupling.max_iterations = 2_000  # or here
    c.coupling.max_marginal_error = 0.1  # a run whose plans are worse stops

    c.estimator = ConfigDict()
    c.estimator.name = "cde"  # cde (rho 0), cdiffe (rho 1), cmde (rho below), bridge
    c.estimator.epsilon = 0.0  # bridge: variance of its noise over the whole way, in
    # every pixel; 0: a plan of pixels' own, as the Schroedinger bridge has it. A pixel
    # strays most half-way, by sqrt(epsilon) / 2, in images of range 2: so 3, a usual
    # plan's at 16x16, drowns them in noise half-way, and 0.05 lets them show through.
    c.estimator.noise = "white"  # bridge: or images, with their covariance
    c.estimator.spectrum = ""  # bridge, images: of its noise, as text; "": measured
    c.estimator.rho = 0.5  # cmde: the condition is noised rho times as fast
    c.estimator.direction = "forward"  # both: one network for both ways of the plan
    c.estimator.condition_dropout = 0.0  # share of examples that hide it, for guidance
    c.estimator.prediction = "v"  # of the network: v, noise or data; a bridge has v,
    # its drift, and data, exact at the end
    c.estimator.moments = ()  # bridge, data: E x^2, E y^2, E x y a value; (): measured

    c.refit = ConfigDict()  # of a bridge of both directions: pairs that it makes itself
    c.refit.after = 0  # steps on the plan's pairs alone; 0: these to the end
    c.refit.every = 1_000  # steps until it makes them anew; 0: never
    c.refit.plan = 0.0  # share of the pairs that the plan goes on drawing
    c.refit.copies = 1  # views of each image that pairs are made of
    c.refit.steps = 12  # of the sampler that makes them
    c.refit.guidance = 1.0  # away from the source's domain, as in sampling

    c.schedule = ConfigDict()  # of all but a bridge
    c.schedule.name = "vp_cosine"  # vp_linear, vp_cosine or ve
    c.schedule.beta_min = 0.1  # vp_linear
    c.schedule.beta_max = 20.0
    c.schedule.log_snr_max = 10.0  # vp_cosine
    c.schedule.log_snr_min = -10.0
    c.schedule.sigma_min = 0.01  # ve
    c.schedule.sigma_max = 50.0

    c.model = ConfigDict()  # a UNet for images, an MLP (width, blocks) for vectors
    c.model.width = 64  # channels at the first level; of the MLP's layers
    c.model.multipliers = (1, 2, 2)  # of width, one a resolution, each half the last
    c.model.patch = 1  # pixels (or latents) a side of one position at the first level
    c.model.blocks = 2  # residual blocks a resolution; of the MLP
    c.model.attention = (16,)  # heights with self-attention, of the levels' own
    c.model.head_channels = 64  # channels of one attention head
    c.model.dropout = 0.0
    c.model.remat = False  # recompute activations, for less memory: 15 % more FLOPs
    c.model.sharded = False  # cut parameters, their average and the optimiser's state
    # over the devices (FSDP); else each device holds them whole
    c.model.dtype = "auto"  # bfloat16, float32; auto: what the device is fast at

    c.optimizer = ConfigDict()  # AdamW, linear warm-up, cosine decay
    c.optimizer.learning_rate = 3e-4
    c.optimizer.muon = 0.0  # learning rate of matrices, moved by Muon; 0: AdamW's
    c.optimizer.warmup_steps = 500
    c.optimizer.final_fraction = 0.0  # of learning_rate, at the last step
    c.optimizer.cooldown_steps = 0  # the last ones, in which the rate, constant till
    # then, falls in a line: such a run can be made longer; 0: a cosine over all steps
    c.optimizer.clip_norm = 1.0  # largest global norm of a gradient
    c.optimizer.weight_decay = 0.0
    c.optimizer.ema_decay = 0.999  # of the averaged parameters that are exported

    c.sampling = ConfigDict()
    c.sampling.solver = "ancestral"  # or ddim; cde and bridge also heun, dpmpp_2m
    # and dpmpp_2m_sde
    c.sampling.steps = 50
    c.sampling.guidance = 1.0  # weight of the condition; else needs condition_dropout,
    # or, for a bridge, both directions: then it leads away from the sources' domain
    c.sampling.temperature = 1.0  # bridge: of the sampler's noise; below 1: less of it
    c.sampling.restart = 0.0  # bridge: a time that the sampler goes back to once from
    # the end, and on again; 0: never
    c.sampling.path = False  # cdiffe, cmde: the noised source follows one path
    c.sampling.batch_size = 64  # images translated at once, over all devices
    c.sampling.grid = 16  # test images in the grids

    c.judge = ConfigDict()  # of images, by a classifier's features; needs torch
    c.judge.classifier = ""  # efficientnet-lite0 or one of timm; "": by PCA of pixels
    c.judge.weights = ""  # its file; efficientnet-lite0 has some in a package
    c.judge.wanted = -1  # class that translations should be taken for; -1: none

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1_000  # steps
    c.checkpoint.keep = 2  # the latest so many

    return apply_variants(c, variants, {})


def estimator(name: str) -> Callable[[ConfigDict], None]:
    """The variant that chooses an estimator."""

    def choose(c: ConfigDict) -> None:
        c.estimator.name = name

    return choose


def independent(c: ConfigDict) -> None:
    """The control: pairs drawn without a plan."""
    c.coupling.method = "independent"
    c.coupling.entropy = 0.0  # which only a plan has


def both(c: ConfigDict) -> None:
    """One network for both directions."""
    c.estimator.direction = "both"


def whole(c: ConfigDict) -> None:
    """One plan between the whole training sets, solved before training."""
    c.coupling.method = "whole"


def smoke(c: ConfigDict) -> None:
    """A few steps of a tiny network: does everything run?"""
    c.steps, c.batch_size, c.coupling.group_size = 4, 8, 8
    c.log_every, c.sample_every = 2, 4
    c.model.width, c.model.blocks, c.model.head_channels = 8, 1, 8
    c.model.dtype, c.model.remat = "float32", False
    c.optimizer.warmup_steps = 1
    c.optimizer.muon = 0.0  # takes long to compile
    c.sampling.steps, c.sampling.batch_size, c.sampling.grid = 2, 8, 4
    c.checkpoint.every = 2
    c.known.count = c.known.test_sources = 64
    c.coupling.copies = 1
    c.tensorboard = False


VARIANTS = {
    **{name: estimator(name) for name in ESTIMATORS},
    "independent": independent,
    "both": both,
    "whole": whole,
    "smoke": smoke,
}


def apply_variants(
    c: ConfigDict, variants: str, own: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """Applies each word of `variants`: one of the common ones, or of the config's own.

    Raises:
      ValueError: a word is unknown; the message lists the known ones.
    """
    known = {**VARIANTS, **own}
    for word in filter(None, variants.split(",")):
        if word not in known:
            raise ValueError(f"no variant {word!r}; there are {', '.join(known)}")
        known[word](c)
    return c
