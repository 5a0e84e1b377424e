"""Coarse noise against SciPy's cosine transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dctn

from eotjax.diffusion.noise import coarse

LENGTHS = [0.3, 1.0, 2.5]


@pytest.mark.parametrize("length", LENGTHS)
def test_coarse_noise_has_less_of_fine_waves(length):
    white = jax.random.normal(jax.random.key(0), (3, 6, 9, 2))
    waves = dctn(np.asarray(coarse(white, length)), axes=(1, 2), norm="ortho")
    gain = waves / np.asarray(white)  # white noise is as white in its waves
    y, x = (np.pi * np.arange(n) / n for n in (6, 9))
    fall = 1 / (1 + length**2 * (y[:, None] ** 2 + x[None, :] ** 2))
    expected = np.sqrt(fall)[None, :, :, None] * gain[0, 0, 0, 0]
    np.testing.assert_allclose(gain, np.broadcast_to(expected, gain.shape), rtol=2e-3)


@pytest.mark.parametrize("size", [(64, 64), (200, 40)])
@pytest.mark.parametrize("length", [0.0, *LENGTHS])
def test_coarse_noise_has_variance_1_and_its_correlations_at_any_size(length, size):
    found = coarse(jax.random.normal(jax.random.key(0), (300, *size, 1)), length)
    inner = np.asarray(found)[:, 12:-12, 12:-12]
    assert inner.var() == pytest.approx(1, rel=0.02)
    # The spectrum's integral over all waves, by SciPy's rule for one row of pixels.
    w = np.pi * (np.arange(2000) + 0.5) / 2000
    fall = 1 / (1 + length**2 * (w[:, None] ** 2 + w[None] ** 2))
    for apart in (1, 3):
        expected = np.sum(fall * np.cos(apart * w)[:, None]) / fall.sum()
        product = np.mean(inner[:, apart:] * inner[:, :-apart])
        assert product == pytest.approx(expected, abs=0.02)


def test_vectors_have_white_noise():
    white = jnp.ones((3, 5))
    np.testing.assert_array_equal(coarse(white, 0.0), white)
