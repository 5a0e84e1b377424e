"""The autoencoder is the original, layer by layer: held to it in PyTorch."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch

from eotjax.data import images
from eotjax.errors import UserError
from eotjax.networks import autoencoder, latents, weights

SHARED = Path(__file__).parents[3] / "shared"
FAMILY = [(4, False), (16, False), (32, True)]


def original(module, x):
    with torch.inference_mode():
        y = module(torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy()))
    return jnp.asarray(np.moveaxis(y.numpy(), 1, -1))


def arrays(module):
    return {name: x.numpy() for name, x in module.state_dict().items()}


def both(channels, pooled):
    """Encoder and decoder in PyTorch, and the same space in JAX."""
    modules = [tiny.random(m, channels, pooled) for m in (tiny.encoder, tiny.decoder)]
    params = [
        autoencoder.from_torch(arrays(module), side)
        for module, side in zip(modules, ("encoder", "decoder"), strict=True)
    ]
    space = latents.Autoencoder(*params, jnp.zeros(channels), jnp.ones(channels))
    return modules, space


@pytest.mark.parametrize("channels, pooled", FAMILY)
def test_it_is_the_original(channels, pooled):
    (encoder, decoder), space = both(channels, pooled)
    x = jnp.float32(np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)))
    z = original(encoder, (x + 1) / 2)
    assert z.shape == (2, 2, 3, channels) and z.std() > 0.1
    np.testing.assert_allclose(latents.encode(space, x, jnp.float32), z, atol=1e-4)
    large = 4 * z / z.std()  # of which some are squashed
    y = 2 * original(decoder, large) - 1
    assert y.std() > 0.1
    found = latents.decode(space, large, jnp.float32)
    np.testing.assert_allclose(found, y.clip(-1, 1), atol=1e-4)


def test_the_names_of_diffusers_are_known():
    encoder, decoder = (tiny.random(m, 4, False) for m in (tiny.encoder, tiny.decoder))

    def renamed(module, side, shift):
        split = [(name.split(".", 1), x) for name, x in arrays(module).items()]
        return {f"{side}.layers.{int(i) - shift}.{r}": x for (i, r), x in split}

    both = renamed(encoder, "encoder", 0) | renamed(decoder, "decoder", 1)
    for module, side in ((encoder, "encoder"), (decoder, "decoder")):
        own, shared = (autoencoder.from_torch(x, side) for x in (arrays(module), both))
        for name in own:
            for a, b in zip(
                autoencoder.flatten_dict(own).items(),
                autoencoder.flatten_dict(shared).items(),
                strict=True,
            ):
                assert a[0] == b[0], name
                np.testing.assert_array_equal(a[1], b[1])


def test_weights_of_another_family_are_refused():
    encoder = arrays(tiny.random(tiny.encoder, 4, False))
    for wrong in (
        {},
        {"a": np.zeros(3)},
        {name: x for name, x in encoder.items() if not name.startswith("3.")},
        encoder | {"14.weight": np.zeros((5, 64, 3, 3)), "14.bias": np.zeros(5)},
    ):
        with pytest.raises(UserError, match="no encoder of a tiny autoencoder"):
            autoencoder.from_torch(wrong, "encoder")
    with pytest.raises(UserError, match="no decoder of a tiny autoencoder"):
        autoencoder.from_torch(encoder, "decoder")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real weights beside the project")
def test_real_photographs_survive_it_as_in_pytorch():
    paths = images.find(SHARED / "data" / "horse2zebra" / "testA")[:2]
    pixels = [images.decode(path, size=(256, 256), channels=3) for path in paths]
    x = jnp.asarray(images.to_float(np.stack(pixels)))
    space = latents.load(str(SHARED / "weights"))
    encoder, decoder = tiny.encoder(32, True), tiny.decoder(32, True)
    for module, side in ((encoder, "encoder"), (decoder, "decoder")):
        found = weights.read(SHARED / "weights" / f"taef2_{side}.pth")
        module.load_state_dict({k: torch.tensor(v).float() for k, v in found.items()})
    z = original(encoder.eval(), (x + 1) / 2)
    np.testing.assert_allclose(latents.encode(space, x, jnp.float32), z, atol=1e-4)
    y = (2 * original(decoder.eval(), z) - 1).clip(-1, 1)
    found = np.asarray(latents.decode(space, z, jnp.float32))
    np.testing.assert_allclose(found, y, atol=1e-4)
    assert np.abs(found - x).mean() < 0.1  # it is a picture of the same thing
    rough = np.asarray(latents.decode(space, z, jnp.bfloat16))
    assert np.abs(rough - y).mean() < 0.01
