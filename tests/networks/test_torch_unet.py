"""The network that benchmarks measure ours beside is the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks import torch_unet
from configs import digits
from eotjax.build import wiring


@pytest.mark.parametrize("patch", [1, 2])
def test_the_unet_in_pytorch_is_ours(patch):
    config = digits.get_config()
    config.model.update(
        {"width": 8, "multipliers": (1, 2), "patch": patch, "head_channels": 4}
    )
    config.model.attention = (16 // patch // 2,)
    shape = (16, 16, 3)
    net = torch_unet.network(config, shape)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype("f4"),
        torch_unet.flax_parameters(config, shape),
    )  # none of them at its start
    torch_unet.load_flax(net, params)
    x = jnp.asarray(rng.normal(size=(3, 16, 16, 6)), jnp.float32)
    t = jnp.asarray(rng.uniform(size=3), jnp.float32)
    ours = wiring.network(config, shape).apply(
        {"params": params}, x, t, jnp.zeros(3, int)
    )
    with torch.no_grad():
        theirs = net(
            torch.tensor(np.asarray(x)).permute(0, 3, 1, 2), torch.tensor(np.asarray(t))
        )
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1), ours, rtol=0, atol=2e-4)
    assert np.abs(ours).max() > 0.1
