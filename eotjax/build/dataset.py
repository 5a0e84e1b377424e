"""The data set that a config describes, loaded."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from eotjax import arrays, remote
from eotjax.build.checks import Shape, check_arrays, check_shape
from eotjax.data import batch, domains, images, sources
from eotjax.data.domains import DataSet, Domain, Four, Side
from eotjax.errors import UserError, choose, gather, require
from eotjax.transport import known_plan
from eotjax.transport.known_plan import KnownPlan

TEST_SHARE = 0.1  # of the training images, where there are no others to test on


def load(
    config: ConfigDict, approve: Callable[[tuple[str, ...]], None] = lambda marks: None
) -> DataSet:
    """The data set: test splits decoded (and tinted), training splits where they fit.

    Args:
      config: the whole config.
      approve: raises where the training sets' fingerprints are not those it wants,
        before anything is decoded.

    Raises:
      UserError: what is wrong with the data or its description.
    """
    c = config.data
    names = Four(c.train_source, c.train_target, c.test_source, c.test_target)
    size = tuple(c.image_size)
    stored = (size[0] + c.crop_margin, size[1] + c.crop_margin)
    choose(dict.fromkeys(("crop", "pad", "stretch")), c.fit, "data.fit")

    def decode(size: tuple[int, int]) -> sources.Decode:
        return partial(images.decode, size=size, channels=c.channels, fit=c.fit)

    decoders = Four(decode(stored), decode(stored), decode(size), decode(size))
    load = choose(
        {
            "digits": lambda: sources.digits(size),
            "tfds": lambda: sources.tfds(c.name, c.path, names, decoders),
            "folder": lambda: sources.folder(c.path, names, decoders),
            "npz": lambda: sources.npz(c.path, names),
            "known_plan": lambda: known_plan_splits(config),
        },
        kind(config),
        "data.kind",
    )
    splits = load()
    sources.check_not_empty(splits, names)
    if isinstance(splits.train_source, np.ndarray):
        check_arrays(config, splits.train_source)
    # Before minutes of decoding.
    check_shape(config, sample_shape(config, splits.train_source))

    sides = [
        cut(splits[side], splits[2 + side], c.validation, names[side::2])
        for side in range(2)
    ]
    marks = [domains.unread(side.train) for side in sides]
    approve(tuple(marks))
    one = np.prod((*stored, c.channels))  # bytes
    if isinstance(sides[0].train, np.ndarray):
        one = sides[0].train[0].nbytes
    count = sum(len(side.train) for side in sides)
    resident = bool(one * count <= c.device_gib * 2**30)

    def decoded(side: Cut, fingerprint: str, names: tuple[str, ...]) -> Side:
        """With all in memory that has to be, and what is held out as it is shown."""
        reads = [(side.valid, names[0]), (side.test, names[1])]
        if resident and not config.latent.weights:  # latents have files of their own
            reads.insert(0, (side.train, names[0]))
        *train, valid, test = gather(partial(domains.read_all, *x) for x in reads)
        valid, test = (centred(x, size) for x in (valid, test))
        if c.tint:
            valid, test = (tint_test(x) if len(x) else x for x in (valid, test))
        return Side(
            train[0] if train else side.train, valid, test, side.trained, fingerprint
        )

    source, target = gather(
        partial(decoded, side, marks[number], names[number::2])
        for number, side in enumerate(sides)
    )
    return DataSet(source, target, resident)


def centred(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stored training images as test images are; vectors as they are."""
    return images.centre(x, size) if x.ndim == 4 else x


class Cut(NamedTuple):
    """One domain's sets, not yet decoded."""

    train: Domain
    valid: Domain
    test: Domain
    trained: np.ndarray  # bool, which of all that is stored to train on


def kind(config: ConfigDict) -> str:
    """The kind of data; `folder` where a set of TFDS lies unpacked in data.path."""
    c = config.data
    place = remote.below(c.path, c.train_source)
    unpacked = c.kind == "tfds" and c.path and remote.is_folder(place)
    return "folder" if unpacked else c.kind


def cut(
    stored: domains.Domain, test: domains.Domain, share: float, names: tuple[str, ...]
) -> Cut:
    """Holds out a share of the training images to validate on, evenly spread.

    And TEST_SHARE of them, before, where there are no test images.

    Args:
      stored: the training images.
      test: the test images, or domains.NONE.
      share: to validate on.
      names: of the training images and of the test images.

    Raises:
      UserError: a share is less than two images.
    """
    rows = np.arange(len(stored))
    if test is domains.NONE:
        held = evenly_spread(len(rows), TEST_SHARE)
        if len(held) < 2:
            raise UserError(
                f"there is no {names[1]}, and for testing {TEST_SHARE} of the "
                f"{len(rows)} images in {names[0]} are {len(held)}; it takes two or "
                f"more: make {names[1]}."
            )
        print(f"there is no {names[1]}: {len(held)} images of {names[0]} are held out")
        test, rows = domains.take(stored, rows[held]), np.delete(rows, held)
    held = evenly_spread(len(rows), share)
    if share and len(held) < 2:
        raise UserError(
            f"data.validation {share} of the {len(rows)} images in {names[0]} are "
            f"{len(held)}; it takes two or more: raise it, or set it to 0."
        )
    require(
        len(held) < len(rows),
        f"data.validation {share} leaves none of the {len(rows)} images in {names[0]} "
        "to train on; lower it.",
    )
    valid, rows = domains.take(stored, rows[held]), np.delete(rows, held)
    trained = np.isin(np.arange(len(stored)), rows)
    return Cut(domains.take(stored, rows), valid, test, trained)


def evenly_spread(count: int, share: float) -> np.ndarray:
    """Which of `count` images make up a share."""
    number = round(share * count)
    return ((np.arange(number) + 0.5) * count / max(number, 1)).astype(int)


def takes_features(config: ConfigDict) -> bool:
    """Whether the plan is between features that the user brings."""
    c = config.coupling
    return c.cost == "features" and c.method != "independent"


def aligned(config: ConfigDict, splits: DataSet) -> dict[str, domains.Domain]:
    """The training sets and, where the user brings them, their features.

    Raises:
      UserError: the features are missing, not one for each image, or of others.
    """
    sets = {"source": splits.source.train, "target": splits.target.train}
    c = config.coupling
    if not takes_features(config):
        return sets
    names = Four(*[config.data.train_source, config.data.train_target] * 2)
    found = sources.npz(c.features, names, key="coupling.features")
    marks = {}  # there are none in files of another's making
    if kind(config) == "folder":
        wanted = map(sources.marks_of, names)
        marks = arrays.read(remote.fetched(c.features), wanted).arrays
    for key, side, name, features in (
        ("source", splits.source, names.train_source, found.train_source),
        ("target", splits.target, names.train_target, found.train_target),
    ):
        rows = side.trained
        if features.ndim != 2 or len(features) != len(rows):
            raise UserError(
                f"{c.features} has features {features.shape} for the {key} set of "
                f"{len(rows)}; give float32 [n, d], one row for each image in the "
                "order of its file names."
            )
        told = marks.get(sources.marks_of(name))
        if told is not None:
            require(
                len(told) == len(rows)
                and domains.of_marks(told[rows]) == side.fingerprint,
                f"{c.features} was made of other images than {name} holds now; make it "
                "anew.",
            )
        sets[f"{key}_points"] = features[rows]
    return sets


def known_plan_splits(config: ConfigDict) -> Four[np.ndarray]:
    """Unpaired draws: the sources behind the targets are not those of the sources."""
    plan, count = known_plan_of(config), config.known.count
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 6)

    def source(key, n):
        return known_plan.sample_mixture(key, plan.source, n)

    def target(key, key_hidden, n):
        return known_plan.sample(key, plan, source(key_hidden, n))

    tests = min(count, config.known.test_sources)
    made = (
        source(keys[0], count),
        target(keys[1], keys[2], count),
        source(keys[3], tests),
        target(keys[4], keys[5], tests),
    )
    return Four(*map(np.asarray, made))


def known_plan_of(config: ConfigDict) -> KnownPlan:
    """The instance that a config describes."""
    c = config.known
    choose(dict.fromkeys(get_args(known_plan.Sources)), c.source, "known.source")
    options = dict.fromkeys(get_args(known_plan.Covariances))
    choose(options, c.covariance, "known.covariance")
    return known_plan.make(
        dim=c.dim,
        epsilon=config.coupling.epsilon,
        seed=c.instance,
        source=c.source,
        covariance=c.covariance,
    )


def tint_test(grey: np.ndarray, number: np.ndarray | None = None) -> np.ndarray:
    """Images in fixed hues by their numbers, spread by the golden ratio: uint8 RGB."""
    number = np.arange(len(grey)) if number is None else number
    hue = jnp.mod(jnp.asarray(number) * 0.6180339887, 1)
    tinted = batch.tint(jnp.asarray(images.to_float(grey)), hue)
    return images.to_uint8(np.asarray(tinted))


def sample_shape(config: ConfigDict, train: Domain) -> Shape:
    """The shape of one image or vector of a training set, as the network sees it."""
    if isinstance(train, np.ndarray) and train.ndim == 2:
        return train.shape[1:]
    return (*config.data.image_size, 3 if config.data.tint else config.data.channels)
