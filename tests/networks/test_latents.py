"""Training in latents: encoded once, standardised, and images on the outside."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import eotjax
from configs import folder
from eotjax import prepare, train
from eotjax.build import dataset, encoding, planning
from eotjax.data import images
from eotjax.errors import UserError
from eotjax.networks import latents


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def config(weights, image_folder, tmp_path):
    """Training in latents of 2x4 of images of 16x32."""
    c = folder.get_config("smoke")
    c.data.path, c.data.image_size = str(image_folder), (16, 32)
    c.data.crop_margin = 8
    c.latent.weights, c.latent.cache = str(weights), str(tmp_path / "cache")
    c.estimator.name, c.estimator.prediction = "bridge", "data"
    c.estimator.epsilon = 1.0
    c.model.multipliers, c.model.attention, c.model.patch = (1,), (), 1
    return c


def encoded(config):
    space = latents.load(config.latent.weights)
    return encoding.encoded(config, dataset.load(config), space)


def test_training_sets_become_latents_of_images_and_of_their_mirror_images(config):
    splits, space = encoded(config)
    raw = latents.load(config.latent.weights)
    assert splits.source.train.shape == (5, 2, 3, 5, 4)
    assert splits.target.train.shape == (3, 2, 3, 5, 4)
    assert splits.source.test.dtype == np.uint8
    pixels = dataset.load(config).source.train
    for i, mirrored in ((0, False), (4, True)):
        image = pixels.read(i)[:, ::-1] if mirrored else pixels.read(i)
        z = latents.encode(raw, jnp.asarray(images.to_float(image[None])), jnp.float32)[
            0
        ]
        found = splits.source.train[i, int(mirrored)] * np.asarray(space.deviation)
        found = found + np.asarray(space.mean)
        np.testing.assert_allclose(found, z, atol=0.01 * float(z.std()))


def test_latents_have_mean_0_and_variance_1_over_both_sets_alike(config):
    splits, _ = encoded(config)
    first, second = (
        np.mean(
            [np.mean(x.astype(float) ** k, axis=(0, 1, 2, 3)) for x in splits.train], 0
        )
        for k in (1, 2)
    )
    np.testing.assert_allclose(first, 0, atol=1e-3)
    np.testing.assert_allclose(second, 1, atol=2e-3)


def test_encoding_that_was_cut_off_goes_on_where_it_was(config, monkeypatch):
    monkeypatch.setattr(encoding, "AT_ONCE", 1)
    whole, _ = encoded(config)
    config.latent.cache += "_again"
    monkeypatch.setattr(encoding, "PART", 2)
    to_float, calls = images.to_float, itertools.count(1)

    def cut_off(x):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return to_float(x)

    monkeypatch.setattr(images, "to_float", cut_off)
    with pytest.raises(KeyboardInterrupt):
        encoded(config)
    again, _ = encoded(config)
    # Of five sources two were kept, and then there are three targets.
    assert next(calls) - 1 == 4 + 3 + 3
    for found, expected in zip(again.train, whole.train, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert all(path.is_file() for path in Path(config.latent.cache).iterdir())


def test_a_broken_image_is_told_before_any_is_encoded(config, monkeypatch):
    monkeypatch.setattr(encoding, "encode", lambda *_, **__: pytest.fail("encoded"))
    for name in ("trainA", "trainB"):
        last = sorted((Path(config.data.path) / name).iterdir())[-1]
        last.write_bytes(last.read_bytes()[:60])
    with pytest.raises(UserError, match=r"1 of 5 images[^$]*1 of 3 images"):
        encoded(config)


def test_what_was_encoded_is_read_again_until_something_changes(config, capsys):
    once, _ = encoded(config)
    assert capsys.readouterr().out.count("kept in") == 2
    twice, _ = encoded(config)
    assert "kept in" not in capsys.readouterr().out
    np.testing.assert_array_equal(once.source.train, twice.source.train)
    path = f"{config.data.path}/trainA/0_000.png"
    Image.open(path).rotate(180).save(path)
    turned, _ = encoded(config)
    assert capsys.readouterr().out.count("kept in") == 1
    assert not np.allclose(once.source.train[0], turned.source.train[0], atol=0.1)


def test_a_run_does_not_go_on_in_another_autoencoders_latents(
    config, tmp_path, one_device
):
    weights = tiny.save(tmp_path / "weights")
    config.latent.weights = str(weights)
    prepare.prepare(config, tmp_path / "run").checkpoints.close()
    tiny.save(weights, seed=1)
    with pytest.raises(UserError, match=r"latent\.weights is not what the run in"):
        train.train(config, tmp_path / "run")


def test_streamed_latents_are_the_resident_ones(config):
    resident, _ = encoded(config)
    config.data.device_gib = 0.0
    streamed, _ = encoded(config)
    assert resident.resident and not streamed.resident
    for i in range(5):
        np.testing.assert_array_equal(
            streamed.source.train.read(i), resident.source.train[i]
        )


def test_a_view_is_a_window_of_one_of_an_images_latents(config):
    splits, _ = encoded(config)
    stored = jnp.asarray(splits.source.train[:2].repeat(20, 0))
    views = planning.view(config)(jax.random.key(0), stored, jnp.arange(40))
    assert views.shape == (40, 2, 4, 4) and views.dtype == jnp.float32
    seen = set()
    for number, view in enumerate(np.asarray(views)):
        places = [
            (way, top, left)
            for way in (0, 1)
            for top in (0, 1)
            for left in (0, 1)
            if np.array_equal(stored[number, way, top : top + 2, left : left + 4], view)
        ]
        assert len(places) == 1
        seen |= set(places)
    assert len(seen) == 8


def test_a_damaged_file_of_latents_is_named(config, tmp_path):
    encoded(config)
    for path in (tmp_path / "cache").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"\.npy is damaged"):
        encoded(config)


def test_what_holds_no_autoencoder_is_named(config, tmp_path, weights):
    with pytest.raises(UserError, match="there is no folder or file nowhere"):
        latents.load("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds 0 files of weights named encoder"):
        latents.load(str(tmp_path / "empty"))
    mixed = tiny.save(tmp_path / "mixed", channels=16)
    (mixed / "tiny_decoder.pth").write_bytes(
        (weights / "tiny_decoder.pth").read_bytes()
    )
    with pytest.raises(UserError, match="of 16 channels, the decoder of 4"):
        latents.load(str(mixed))


def test_a_space_is_restored_as_it_was_saved(weights, tmp_path):
    space = latents.load(str(weights))._replace(mean=jnp.arange(4.0))
    latents.save(tmp_path / "space.npz", space)
    found = latents.restore(tmp_path / "space.npz")
    assert jax.tree.structure(found) == jax.tree.structure(space)
    jax.tree.map(np.testing.assert_array_equal, found, space)
    (tmp_path / "space.npz").write_bytes(b"other")
    with pytest.raises(UserError, match="cannot read the autoencoder"):
        latents.restore(tmp_path / "space.npz")


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("data.crop_margin", 6, "multiple of 8"),
        ("data.image_size", (16, 20), "multiple of 8"),
        ("data.channels", 1, "takes RGB images"),
        ("model.patch", 4, "patches of 4 a side"),
        ("coupling.cost", "pooled", "cells of 4 a side"),
        ("data.validation", 1.0, "1 excluded"),
        ("data.validation", 2.0, "1 excluded"),
        ("data.validation", 0.1, "it takes two or more"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_encoded(
    config, tmp_path, key, value, told
):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=told):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("whole", [False, True])
def test_a_run_in_latents_translates_images(config, tmp_path, whole):
    config.model.multipliers = (1, 2)
    if whole:
        config.coupling.method = "whole"
    assert train.train(config, tmp_path / "run")
    moments = json.loads((tmp_path / "run" / "plan.json").read_text())["moments"]
    assert 0.5 < moments[0] < 2 and 0.5 < moments[1] < 2
    translator = eotjax.load(tmp_path / "run" / "export")
    assert translator.shape == (16, 32, 3) and translator.multiple == 16
    assert list(translator.config.estimator.moments) == moments
    x = np.random.default_rng(0).integers(0, 256, (3, 16, 32, 3), np.uint8)
    y = translator(x)
    assert y.shape == x.shape and y.dtype == np.uint8
    larger = np.zeros((1, 32, 48, 3), np.uint8)
    assert translator(larger, any_size=True).shape == larger.shape
    program = jax.export.deserialize(bytearray(translator.stablehlo()))
    floats = images.to_float(x)
    np.testing.assert_allclose(
        program.call(floats, np.uint32(3), np.int32(0)),
        translator(floats, seed=3),
        atol=1e-5,
    )


def test_a_run_goes_on_with_the_moments_it_began_with(
    config, tmp_path, capsys, interrupt, one_device
):
    config.coupling.method = "whole"
    path = tmp_path / "run" / "plan.json"
    begun = None
    for steps in (1, 2, 3):
        interrupt(steps)
        assert not train.train(config, tmp_path / "run")
        said = capsys.readouterr().out
        assert ("pairs: variances" in said) == (steps in (1, 3))
        moments = json.loads(path.read_text())["moments"]
        begun = begun or moments
        assert moments == pytest.approx(begun, rel=1e-5)
        if steps == 2:  # as one is told to where it is damaged
            path.unlink()
    assert "going on from step 2" in said


def test_latents_of_other_views_or_weights_have_another_name(config):
    kept = images.to_uint8(np.zeros((2, 24, 40, 3), np.float32))
    space = latents.load(config.latent.weights)
    first = encoding._digest(config, kept, "A", space)
    assert encoding._digest(config, kept, "B", space) == first  # the same images
    for key, value in (
        ("image_size", (32, 16)),
        ("crop_margin", 0),
        ("fit", "stretch"),
        ("channels", 1),
        ("flip", not config.data.flip),
    ):
        other = config.copy_and_resolve_references()
        other.data[key] = value
        assert encoding._digest(other, kept, "A", space) != first, key
    changed = space._replace(encoder=jax.tree.map(lambda x: x + 1, space.encoder))
    assert encoding._digest(config, kept, "A", changed) != first
    assert encoding._digest(config, kept[::-1] + 1, "A", space) != first
