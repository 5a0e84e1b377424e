"""What is made of a config's names is what they say."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from eotjax.build import wiring
from eotjax.diffusion import noise
from eotjax.diffusion.noise import Spectrum


def test_a_bridge_is_what_its_config_says():
    spectrum = Spectrum(np.float32([0, 1]), np.float32([np.eye(3), np.eye(3) / 2]))
    c = digits.get_config("smoke,both")
    c.estimator.update(
        {
            **{"name": "bridge", "epsilon": 0.3, "prediction": "data"},
            **{"moments": (1.0, 0.8, 0.5), "noise": "images"},
            "spectrum": noise.to_text(spectrum),
        }
    )
    c.sampling.update({"guidance": 1.5, "temperature": 0.7, "restart": 0.4})
    bridge = wiring.estimator(c, (16, 16, 3))
    assert bridge.epsilon == 0.3 and bridge.bound == 1.0
    assert tuple(bridge.moments) == (1.0, 0.8, 0.5)
    assert (bridge.guidance, bridge.temperature, bridge.restart) == (1.5, 0.7, 0.4)
    np.testing.assert_array_equal(bridge.spectrum.root[1], np.eye(3) / 2)
    assert wiring.estimator(c, (3,)).bound == np.inf
    c.estimator.prediction, c.estimator.epsilon = "v", 0.0
    plain = wiring.estimator(c, (16, 16, 3))
    assert plain.moments is None and plain.epsilon == c.coupling.epsilon


@pytest.mark.parametrize("name, rho", [("cde", 0), ("cdiffe", 1), ("cmde", 0.5)])
def test_a_conditional_estimator_is_what_its_config_says(name, rho):
    c = digits.get_config(f"{name},smoke")
    c.estimator.condition_dropout, c.sampling.guidance = 0.2, 1.5
    found = wiring.estimator(c, (16, 16, 3))
    assert (found.rho, found.bound) == (rho, 1.0)
    assert (found.condition_dropout, found.guidance) == (0.2, 1.5)


@pytest.mark.parametrize(
    "name, ends",
    [
        ("vp_cosine", (10, -10)),
        ("ve", (2 * np.log(1 / 0.01), 2 * np.log(1 / 50))),
        ("vp_linear", (np.inf, np.log(1 / np.expm1((0.1 + 20) / 2)))),
    ],
)
def test_a_schedule_is_the_one_of_its_name(name, ends):
    c = digits.get_config("smoke")
    c.schedule.name = name
    found = wiring.make_schedule(c).log_snr(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(found, ends, rtol=2e-3)
