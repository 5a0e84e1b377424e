"""Conversions between predictions, against images noised by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eotjax.diffusion import prediction, schedule

SCHEDULES = {
    "vp_linear": schedule.vp_linear(),
    "vp_cosine": schedule.vp_cosine(),
    "ve": schedule.ve(),
}
PREDICTIONS = ("v", "noise", "data")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def images():
    """(data, noise), both [5, 4, 4, 3]."""
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal((5, 4, 4, 3))) for _ in range(2))


@pytest.fixture(params=SCHEDULES)
def levels(request):
    """alpha and sigma of five times."""
    t = jnp.array([0.01, 0.2, 0.5, 0.8, 0.99])[:, None, None, None]
    return SCHEDULES[request.param].alpha(t), SCHEDULES[request.param].sigma(t)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_data_and_noise_survive_the_round_trip(kind, images, levels):
    data, noise = images
    alpha, sigma = levels
    output = prediction.from_data_and_noise(kind, data, noise, alpha, sigma)
    back = prediction.to_data_and_noise(
        kind, output, alpha * data + sigma * noise, alpha, sigma
    )
    np.testing.assert_allclose(back[0], data, atol=1e-9)
    np.testing.assert_allclose(back[1], noise, atol=1e-9)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_any_output_is_read_as_data_and_noise_that_make_up_the_image(
    kind, images, levels
):
    output, y_t = images
    alpha, sigma = levels
    data, noise = prediction.to_data_and_noise(kind, output, y_t, alpha, sigma)
    np.testing.assert_allclose(alpha * data + sigma * noise, y_t, atol=1e-9)
    again = prediction.from_data_and_noise(kind, data, noise, alpha, sigma)
    np.testing.assert_allclose(again, output, atol=1e-9)


def test_v_is_the_velocity_along_the_arc_from_data_to_noise(images):
    data, noise = images
    angle, h = 0.7, 1e-5  # Salimans & Ho 2022: v = d y_t / d angle

    def noised(angle):
        return np.cos(angle) * data + np.sin(angle) * noise

    v = prediction.from_data_and_noise("v", data, noise, jnp.cos(angle), jnp.sin(angle))
    difference = (noised(angle + h) - noised(angle - h)) / (2 * h)
    np.testing.assert_allclose(v, difference, atol=1e-9)


def test_v_of_independent_unit_images_has_unit_variance(levels):
    rng = np.random.default_rng(1)
    data, noise = (jnp.asarray(rng.standard_normal((5, 50, 50, 4))) for _ in range(2))
    v = prediction.from_data_and_noise("v", data, noise, *levels)
    np.testing.assert_allclose(np.var(v, axis=(1, 2, 3)), 1, atol=5 * np.sqrt(2 / 1e4))


def test_v_stays_finite_where_nothing_or_everything_is_noise(images):
    y_t, v = images
    zero, one = jnp.zeros(()), jnp.ones(())
    clean = prediction.to_data_and_noise("v", v, y_t, one, zero)
    np.testing.assert_array_equal(clean, (y_t, v))
    pure = prediction.to_data_and_noise("v", v, y_t, zero, one)
    np.testing.assert_array_equal(pure, (-v, y_t))
