"""A batch depends on nothing but seed and step, and shows true pieces of the data."""

import colorsys
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from eotjax import parallel, prepare
from eotjax.build import dataset, learning, planning
from eotjax.data import batch, domains
from eotjax.errors import UserError
from eotjax.transport import cost, pairing, sinkhorn

RNG = np.random.default_rng(0)
SOURCE = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
TARGET = RNG.integers(0, 256, (3, 6, 7, 3), dtype=np.uint8)
WHOLE = {"source": jnp.asarray(SOURCE), "target": jnp.asarray(TARGET)}
LENGTHS = (5, 3)


def make_draw(lengths=LENGTHS, seed=0, **changes):
    """draw(key, data) -> source, target of a step's independent pairs."""
    settings = {"size": (4, 4), "flip": True, "tinted": False} | changes
    pair = pairing.within_batches(
        view=batch.make_view(**settings),
        embed=cost.pixels,
        couple=sinkhorn.independent(),
        batch_size=8,
        group_size=4,
        lengths=lengths,
        seed=seed,
        constrain=lambda x: x,
    )
    return jax.jit(lambda number, data: pair(number, (), data)[:2])


def key(seed, number):
    return batch.step_keys(seed, number).draw


def stream(steps=range(4), rows=slice(None), source=SOURCE, target=TARGET):
    return batch.stream(
        {"source": source, "target": target},
        key_of_step=partial(key, 0),
        batch_size=8,
        steps=steps,
        rows=rows,
        threads=2,
    )


def test_a_batch_is_a_function_of_seed_and_step_alone():
    first, again = ({seed: make_draw(seed=seed) for seed in (0, 1)} for _ in range(2))
    drawn = {k: np.asarray(first[k[0]](k[1], WHOLE)) for k in [(0, 0), (0, 7), (1, 7)]}
    for seed, number in [(1, 7), (0, 0), (0, 7)]:  # another order, compiled anew
        np.testing.assert_array_equal(again[seed](number, WHOLE), drawn[seed, number])
    assert len({x.tobytes() for x in drawn.values()}) == 3


def test_a_view_depends_on_its_own_number_only():
    view = batch.make_view(size=(4, 4), flip=True, tinted=False)
    ids = jnp.array([3, 1, 3, 9])
    stored = jnp.broadcast_to(jnp.asarray(SOURCE[0]), (4, 6, 7, 3))
    views = view(jax.random.key(0), stored, ids)
    np.testing.assert_array_equal(views[0], views[2])
    alone = view(jax.random.key(0), stored[:1], ids[1:2])
    np.testing.assert_array_equal(views[1], alone[0])
    assert not np.array_equal(views[0], views[1])


def test_indices_are_uniform_and_independent_between_the_domains():
    i, j = batch.indices(jax.random.key(0), LENGTHS, 30_000)
    table = np.zeros(LENGTHS)
    np.add.at(table, (np.asarray(i), np.asarray(j)), 1)
    assert scipy.stats.chisquare(table.ravel()).pvalue > 1e-3


def test_streamed_batches_are_the_resident_ones_bit_for_bit():
    resident, streamed = make_draw(), make_draw(lengths=None)
    lazy = domains.Lazy(
        5, lambda index: SOURCE[index], lambda index: SOURCE[index].tobytes()
    )
    batches = list(stream(source=lazy))
    assert len(batches) == 4
    for number, stored in enumerate(batches):
        assert stored["source"].dtype == np.uint8
        for a, b in zip(
            resident(number, WHOLE),
            streamed(number, stored),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_a_stream_goes_on_anywhere_and_can_be_cut_over_processes():
    whole = list(stream())
    rest, half, other = (
        stream(range(2, 4)),
        stream(rows=slice(4)),
        stream(rows=slice(4, 8)),
    )
    for a, b in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(a["target"], b["target"])
    for a, b, c in zip(whole, half, other, strict=True):
        joined = np.concatenate([b["source"], c["source"]])
        np.testing.assert_array_equal(joined, a["source"])


def test_hues_are_those_of_the_standard_library():
    hues = np.linspace(0, 1, 50)
    expected = [colorsys.hsv_to_rgb(hue, 1, 1) for hue in hues]
    np.testing.assert_allclose(batch.hue_to_rgb(jnp.asarray(hues)), expected, atol=1e-5)


def augment(seed, stored, **settings):
    """`batch.augment` with a key for each image."""
    return batch.augment(
        jax.random.split(jax.random.key(seed), len(stored)), stored, **settings
    )


def windows(image, flip):
    """All 4x4 windows of an image, mirrored ones too, as bytes."""
    views = [image, image[:, ::-1]] if flip else [image]
    return {
        view[top : top + 4, left : left + 4].tobytes()
        for view in views
        for top in range(image.shape[0] - 3)
        for left in range(image.shape[1] - 3)
    }


@pytest.mark.parametrize("flip", [False, True])
def test_crops_and_mirror_images_are_all_the_true_windows_and_no_others(flip):
    stored = jnp.broadcast_to(jnp.asarray(SOURCE[0]), (600, 6, 7, 3))
    cut = augment(
        0,
        stored,
        size=(4, 4),
        flip=flip,
        tinted=False,
    )
    assert cut.dtype == jnp.float32
    bytes_of = {np.rint((x + 1) * 127.5).astype(np.uint8).tobytes() for x in cut}
    assert bytes_of == windows(SOURCE[0], flip)


def test_an_image_of_the_right_size_is_only_brought_to_the_range():
    image = augment(
        0,
        jnp.asarray(SOURCE),
        size=(6, 7),
        flip=False,
        tinted=False,
    )
    np.testing.assert_allclose(image, SOURCE / 127.5 - 1, atol=1e-6)


def test_a_tint_keeps_the_value_and_is_fully_saturated():
    grey = jnp.asarray(SOURCE[..., :1])
    tinted = augment(
        0,
        grey,
        size=(6, 7),
        flip=False,
        tinted=True,
    )
    assert tinted.shape == (5, 6, 7, 3)
    np.testing.assert_allclose(tinted.max(-1), SOURCE[..., 0] / 127.5 - 1, atol=1e-5)
    np.testing.assert_allclose(tinted.min(-1), -1, atol=1e-6)


def test_a_tinted_image_has_one_hue_and_the_hues_are_uniform():
    grey = jnp.full((2_000, 1, 2, 1), 255, jnp.uint8)
    tinted = augment(
        1,
        grey,
        size=(1, 2),
        flip=False,
        tinted=True,
    )
    light = np.asarray(tinted + 1) / 2
    np.testing.assert_array_equal(light[:, 0, 0], light[:, 0, 1])
    hues = [colorsys.rgb_to_hsv(*rgb)[0] for rgb in light[:, 0, 0]]
    assert scipy.stats.kstest(hues, "uniform").pvalue > 1e-3


def test_vectors_pass_unchanged():
    vectors = RNG.standard_normal((4, 3), dtype=np.float32)
    draw = make_draw(lengths=(4, 4), size=(64, 64))
    drawn = draw(0, {"source": vectors, "target": 100 + vectors})
    for found, expected in zip(drawn, (vectors, 100 + vectors), strict=True):
        assert {x.tobytes() for x in np.asarray(found)} <= {
            x.tobytes() for x in expected
        }


@pytest.fixture
def folder_config(smoke, image_folder):
    return smoke(
        data__kind="folder",
        data__path=str(image_folder),
        data__channels=3,
        data__tint=False,
        data__flip=True,
        data__image_size=(8, 8),
        data__crop_margin=3,
        model__multipliers=(1,),
    )


def run(config, steps):
    splits, mesh = dataset.load(config), parallel.make_mesh()
    lengths = (5, 3) if splits.resident else None
    config = planning.with_epsilon(config, 1.0)
    training = learning.training(config, (8, 8, 3), lengths, mesh)
    state = training.init()
    if splits.resident:
        whole = prepare.device_data(config, splits, cost.pixels, mesh)
        batches = itertools.repeat(whole)
    else:
        batches = prepare.streamed(config, splits, 0, mesh)
    for _ in range(steps):
        state, _ = training.step(state, next(batches))
    return splits.resident, jax.device_get(state)


def test_training_is_the_same_from_the_device_and_from_disk(folder_config, one_device):
    on_device, resident = run(folder_config, 3)
    folder_config.data.device_gib = 0.0
    still_on_device, streamed = run(folder_config, 3)
    assert on_device and not still_on_device
    assert any(np.any(x) for x in jax.tree.leaves(resident.opt_state))
    jax.tree.map(np.testing.assert_array_equal, resident, streamed)


def test_a_broken_image_that_is_met_in_training_is_named(folder_config, image_folder):
    for file in (image_folder / "trainB").iterdir():
        file.write_text("no image any more")
    folder_config.data.device_gib = 0.0
    with pytest.raises(UserError, match=r"trainB.*\.png"):
        run(folder_config, 1)


def test_streaming_without_jaxs_cpu_is_told_in_a_sentence(monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    images = np.zeros((4, 2, 2, 3), np.uint8)
    with pytest.raises(UserError, match="JAX_PLATFORMS leaves out"):
        batch.stream(
            {"source": images, "target": images},
            key_of_step=jax.random.key,
            batch_size=2,
            steps=range(1),
            rows=slice(2),
        )
