"""Muon, held to optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import _muon as published

from eotjax.networks.unet import UNet
from eotjax.training import muon


def axes(path, leaf):
    """A parameter's axes as optax's Muon wants them; None where it is no kernel."""
    if path[-1].key != "kernel":
        return None
    inputs = 1 if path[-2].key == "qkv" else leaf.ndim - 1
    every = tuple(range(leaf.ndim))
    return optax.contrib.MuonDimensionNumbers(every[:inputs], every[inputs:])


@pytest.mark.parametrize("shape", [(90, 20), (20, 90), (32, 32), (7, 1)])
@pytest.mark.parametrize("decades", [0, 3, 5])
def test_the_iteration_is_the_published_one(shape, decades):
    rng = np.random.default_rng(0)
    u, s, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    x = jnp.asarray(u * np.logspace(0, -decades, len(s)) @ vt, jnp.float32)
    wanted = published.orthogonalize_via_newton_schulz(
        x, jnp.asarray(muon.COEFFICIENTS), muon.STEPS
    )
    (made,) = muon.orthogonalised([x])
    np.testing.assert_allclose(made, wanted, atol=1e-3)


def test_matrices_taken_at_once_keep_to_themselves():
    rng = np.random.default_rng(0)
    shapes = (90, 20), (32, 32), (20, 50), (7, 1), (20, 20), (64, 32)
    matrices = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    for x, made in zip(matrices, muon.orthogonalised(matrices), strict=True):
        (alone,) = muon.orthogonalised([x])
        np.testing.assert_allclose(made, alone, atol=1e-6)


def test_updates_of_a_network_are_those_of_optax():
    network = UNet(
        channels=4, width=8, multipliers=(1, 2), blocks=1, attention=(1,), labels=2,
        head_channels=8, patch=2,
    )  # fmt: skip
    inputs = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1, int)
    params = jax.jit(network.init)(jax.random.key(0), *inputs)["params"]
    own = optax.masked(
        muon.scale_by_muon(), jax.tree.map_with_path(muon.is_matrix, params)
    )
    theirs = optax.contrib.muon(
        -1.0,
        muon_weight_dimension_numbers=lambda tree: jax.tree.map_with_path(axes, tree),
        consistent_rms=muon.RMS,
    )
    mine, other = own.init(params), theirs.init(params)
    move_mine, move_other = jax.jit(own.update), jax.jit(theirs.update)
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params
        )
        moves, mine = move_mine(grads, mine, params)
        wanted, other = move_other(grads, other, params)
        pairs = zip(
            jax.tree.leaves_with_path(moves), jax.tree.leaves(wanted), strict=True
        )
        for (path, move), want in pairs:
            if path[-1].key == "kernel":
                np.testing.assert_allclose(move, want, rtol=2e-3, atol=2e-4)
