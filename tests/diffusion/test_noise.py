"""Noise like images: against the images that it is like, made by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from eotjax.diffusion import noise
from eotjax.errors import UserError

RNG = np.random.default_rng(0)
MIX = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 0.5]])
COLOUR = [0.3, -2.0, 1.0]
SIGMAS = (0.5, 1.0, 2.0)  # pixels


def textures(n, size):
    """Stationary images, as fine as coarse: blurred by Gaussians, channels mixed."""
    height, width = size
    whole = 0
    for sigma in SIGMAS:
        white = RNG.normal(size=(n, height + 16, width + 16, 3))
        blurred = gaussian_filter(white, sigma, axes=(1, 2))[:, 8:-8, 8:-8]
        whole += blurred / blurred.std()
    return whole @ np.linalg.cholesky(MIX).T / len(SIGMAS) ** 0.5 + COLOUR


@pytest.fixture(scope="module")
def measured():
    return noise.of_images([textures(n, (24, 32)) for n in (4_000, 2_000)])


def drawn(spectrum, n, size):
    white = jax.random.normal(jax.random.key(1), (n, *size, 3))
    return np.asarray(noise.coloured(white, spectrum))


@pytest.mark.parametrize("size", [(24, 32), (40, 40)])
def test_noise_has_the_images_correlations_at_any_size(measured, size):
    """In the inner pixels, whose variance is 1."""
    found = correlations(drawn(measured, 1_500, size))
    images = textures(3_000, size) - COLOUR
    wanted = correlations(images / np.sqrt(np.trace(MIX) / 3))
    # A wave of the DCT is a narrow band of true ones, not one alone.
    np.testing.assert_allclose(found, wanted, atol=0.08)
    assert np.trace(found[0]) == pytest.approx(3, rel=0.03)


def correlations(images):
    """Of the channels of pixels in a row, 0 to 4 apart: [5, c, c]."""
    inner = images[:, 6:-6, 6:-6]
    ends = [(inner[:, :, d:], inner[:, :, : inner.shape[2] - d]) for d in range(5)]
    return [np.einsum("nhwc,nhwd->cd", *e) / e[0][..., 0].size for e in ends]


def test_white_images_give_white_noise():
    spectrum = noise.of_images([RNG.normal(size=(500, 16, 16, 3))])
    np.testing.assert_allclose(
        spectrum.root, np.broadcast_to(np.eye(3), spectrum.root.shape), atol=0.12
    )
    white = jnp.ones((3, 5))
    assert noise.coloured(white, None) is white


def test_images_that_vary_in_nothing_are_no_obstacle():
    for images in (np.ones((4, 8, 8, 2)), np.ones((4, 1, 1, 2))):
        found = noise.of_images([images, images])
        assert np.isfinite(found.root).all()
        np.testing.assert_allclose(
            (found.root**2).sum() / len(found.root), 2, rtol=0.01
        )


def test_a_spectrum_in_a_word_is_the_same(measured):
    again = noise.from_text(noise.to_text(measured))
    for left, right in zip(again, measured, strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(UserError, match="spectrum is damaged"):
        noise.from_text(noise.to_text(measured)[:-40])
