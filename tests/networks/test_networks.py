"""Architectures: golden sizes, and what must and must not change an output."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eotjax.networks.embedding import time_embedding
from eotjax.networks.mlp import MLP
from eotjax.networks.unet import SelfAttention, UNet, from_patches, to_patches

KEY = jax.random.key(0, impl="rbg")  # compiles in half the time
COUNTED_UNET = UNet(channels=3, width=8, multipliers=(1, 2), blocks=1, attention=(1,))
COUNTED_INPUT = (2, 16, 8, 6)
NETWORKS = {  # as small as they may be: compiling takes longer than computing
    "unet": (
        functools.partial(
            UNet, channels=3, width=8, multipliers=(1,), blocks=1, attention=(0,)
        ),
        (2, 4, 8, 6),
    ),
    "mlp": (functools.partial(MLP, channels=3, width=16, blocks=2), (4, 6)),
}


def inputs(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    times = jnp.linspace(0.1, 0.9, shape[0])
    return jnp.float32(x), times, jnp.zeros(shape[0], int)


class Built(NamedTuple):
    """A network with random parameters, none at its zero, and its output."""

    make: Callable
    params: Any
    x: jax.Array
    t: jax.Array
    label: jax.Array
    apply: Callable
    output: jax.Array


@pytest.fixture(scope="module", params=NETWORKS)
def built(request):
    return build(request.param)


@functools.cache
def build(name):
    make, shape = NETWORKS[name]
    given = inputs(shape)
    rng, shapes = np.random.default_rng(1), jax.eval_shape(make().init, KEY, *given)
    params = jax.tree.map(lambda p: jnp.float32(0.3 * rng.normal(size=p.shape)), shapes)
    apply = jax.jit(make().apply)
    return Built(make, params, *given, apply, np.asarray(apply(params, *given)))


def names_and_sizes(network, shape):
    shapes = jax.eval_shape(network.init, KEY, *inputs(shape))
    flat = jax.tree_util.tree_leaves_with_path(shapes["params"])
    return {jax.tree_util.keystr(path): leaf.size for path, leaf in flat}


def test_patches_are_squares_and_come_back():
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    patches = to_patches(jnp.asarray(x), 2)
    assert patches.shape == (2, 3, 4, 12)
    square = x[1, 2:4, 6:8]
    np.testing.assert_array_equal(np.sort(patches[1, 1, 3]), np.sort(square.ravel()))
    np.testing.assert_array_equal(from_patches(patches, 2), x)
    np.testing.assert_array_equal(to_patches(jnp.asarray(x), 1), x)


def test_a_network_of_patches_gives_what_went_in_its_size():
    network = UNet(channels=5, width=8, multipliers=(1, 2), blocks=1, patch=4)
    shapes = jax.eval_shape(network.init_with_output, KEY, *inputs((2, 16, 24, 6)))
    output, params = shapes
    assert output.shape == (2, 16, 24, 5)
    assert params["params"]["conv_in"]["kernel"].shape == (3, 3, 16 * 6, 8)
    assert params["params"]["conv_out"]["kernel"].shape == (3, 3, 8, 16 * 5)


def conv(a, b):
    return 9 * a * b + b


def dense(a, b):
    return a * b + b


def residual(a, b, time):
    """Two norms (scale, bias), two convolutions, FiLM, a skip where sizes differ."""
    skip = dense(a, b) if a != b else 0
    return 2 * a + conv(a, b) + dense(time, 2 * b) + 2 * b + conv(b, b) + skip


def attention(c):
    return 2 * c + dense(c, 3 * c) + dense(c, c)


def test_a_small_unet_has_the_parameters_counted_by_hand():
    # Width 8 and 16; time 32; skips on the way up: 16, 8 | 8, 8.
    expected = (
        dense(8, 32) + dense(32, 32) + conv(6, 8)  # time, first convolution
        + residual(8, 8, 32) + conv(8, 8)  # down 0
        + residual(8, 16, 32) + attention(16)  # down 1
        + residual(16, 16, 32) + attention(16) + residual(16, 16, 32)  # middle
        + residual(32, 16, 32) + residual(24, 16, 32) + 2 * attention(16)  # up 1
        + conv(16, 16) + residual(24, 8, 32) + residual(16, 8, 32)  # up 0
        + 2 * 8 + conv(8, 3)  # last norm and convolution
    )  # fmt: skip
    sizes = names_and_sizes(COUNTED_UNET, COUNTED_INPUT)
    assert sum(sizes.values()) == expected == 48_907


def test_a_small_unet_of_patches_has_the_parameters_counted_by_hand():
    network = UNet(channels=3, width=8, multipliers=(1,), blocks=1, patch=2)
    expected = (
        dense(8, 32) + dense(32, 32) + conv(4 * 6, 8)  # time, first convolution
        + 3 * residual(8, 8, 32)  # down, middle
        + 2 * residual(16, 8, 32) + 2 * 8 + conv(8, 4 * 3)  # up, last convolution
        + conv(3 + 6, 8) + residual(8, 8, 32) + 2 * 8 + conv(8, 3)  # refinement
    )  # fmt: skip
    assert sum(names_and_sizes(network, (2, 8, 8, 6)).values()) == expected


NEAR = (slice(2, 4), slice(4, 7))  # of pixel 4, in the patch before its own and there


def test_the_last_layers_see_across_the_borders_of_patches():
    """To a pixel at its patch's corner those around it count, in all four patches, and
    more than any farther off, which count by the norms' moments alone."""
    network = UNet(channels=1, width=8, multipliers=(1,), blocks=1, patch=4)
    given = inputs((1, 64, 64, 1))
    params = network.init(KEY, *given)["params"]
    params["refine_out"] = jax.tree.map(lambda p: p + 1, params["refine_out"])
    # The patches say nothing, so all that is seen is seen by the refinement.
    seen = jax.grad(
        lambda x: network.apply({"params": params}, x, *given[1:])[0, 4, 4, 0]
    )
    counts = np.abs(np.asarray(seen(given[0])))[0, ..., 0]
    assert counts[2:7, 2:7].min() > 1e-4
    patches = [counts[rows, columns] for rows in NEAR for columns in NEAR]
    assert min(patch.max() for patch in patches) > 10 * counts[9:, 9:].max()


def test_a_small_mlp_has_the_parameters_counted_by_hand():
    block = 2 * 16 + dense(16, 16) + dense(16, 16)
    expected = dense(16, 16) + dense(6, 16) + 2 * block + 2 * 16 + dense(16, 3)
    sizes = names_and_sizes(MLP(channels=3, width=16, blocks=2), (4, 6))
    assert sum(sizes.values()) == expected == 1_619


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((), set()),
        ((0,), {"down0_0", "up0_0", "up0_1"}),
        ((1,), {"down1_0", "middle_0", "up1_0", "up1_1"}),
    ],
)
def test_attention_follows_each_block_at_the_listed_levels_alone(levels, expected):
    sizes = names_and_sizes(COUNTED_UNET.clone(attention=levels), COUNTED_INPUT)
    found = {name.split("'")[1] for name in sizes if "_attention" in name}
    assert found == {f"{block}_attention" for block in expected}


def test_the_output_is_zero_at_first_and_float32_like_the_parameters(built):
    network = built.make(dtype=jnp.bfloat16)
    params = jax.jit(network.init)(KEY, built.x, built.t, built.label)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    output = built.apply(params, built.x, built.t, built.label)
    assert output.dtype == jnp.float32
    np.testing.assert_array_equal(output, np.zeros_like(built.output))


def test_bfloat16_computes_the_same_more_coarsely(built):
    coarse = jax.jit(built.make(dtype=jnp.bfloat16).apply)
    rough = coarse(built.params, built.x, built.t, built.label)
    assert rough.dtype == jnp.float32
    assert 1e-4 < np.std(rough - built.output) / np.std(built.output) < 0.05


def test_time_and_every_input_channel_matter_to_their_own_image_alone(built):
    x, t = built.x, built.t
    changes = [(x, t.at[0].add(0.01))]
    changes += [(x.at[0, ..., c].add(0.1), t) for c in range(x.shape[-1])]
    for changed in changes:
        output = built.apply(built.params, *changed, built.label)
        assert np.abs(output[0] - built.output[0]).max() > 1e-4
        np.testing.assert_allclose(output[1:], built.output[1:], atol=1e-5)


def test_a_label_matters_to_its_own_image_alone_where_there_are_several(built):
    apply = jax.jit(built.make(labels=4).apply)
    shapes = jax.eval_shape(
        built.make(labels=4).init, KEY, built.x, built.t, built.label
    )
    rng, (more, less) = (
        np.random.default_rng(2),
        (
            {jax.tree_util.keystr(path): leaf.shape for path, leaf in flat}
            for flat in map(jax.tree_util.tree_leaves_with_path, (shapes, built.params))
        ),
    )
    (added,) = more.keys() - less.keys()
    assert more[added][0] == 4 and "Embed" in added
    params = jax.tree.map(lambda p: jnp.float32(0.3 * rng.normal(size=p.shape)), shapes)
    first = apply(params, built.x, built.t, built.label)
    for label in (1, 2, 3):
        output = apply(params, built.x, built.t, built.label.at[0].set(label))
        assert np.abs(output[0] - first[0]).max() > 1e-3
        np.testing.assert_allclose(output[1:], first[1:], atol=1e-5)


def test_dropout_acts_in_training_alone(built):
    apply = jax.jit(built.make(dropout=0.5).apply, static_argnames="train")

    def output(train, key):
        rngs = {"dropout": jax.random.key(key)}
        return apply(
            built.params, built.x, built.t, built.label, train=train, rngs=rngs
        )

    np.testing.assert_allclose(output(False, 0), built.output, atol=1e-5)
    np.testing.assert_array_equal(output(True, 0), output(True, 0))
    assert not np.allclose(output(True, 0), built.output, atol=1e-2)
    assert not np.allclose(output(True, 0), output(True, 1), atol=1e-2)


def test_remat_changes_neither_the_output_nor_the_gradients():
    unet = build("unet")

    def loss_and_gradients(remat):
        network = unet.make(remat=remat, dropout=0.1)

        def loss(params):
            rngs = {"dropout": KEY}
            output = network.apply(
                params, unet.x, unet.t, unet.label, train=True, rngs=rngs
            )
            return jnp.mean(output**2)

        both = jax.value_and_grad(loss)
        assert ("remat" in str(jax.make_jaxpr(both)(unet.params))) is remat
        return jax.jit(both)(unet.params)

    plain, recomputed = loss_and_gradients(False), loss_and_gradients(True)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
        recomputed,
        plain,
    )


@pytest.mark.parametrize("shape", [(1, 4, 4, 2), (3, 24, 8, 2), (2, 8, 20, 2)])
def test_the_unet_keeps_the_height_and_width_of_its_input(shape):
    network = UNet(channels=5, width=8, multipliers=(1, 1, 2), blocks=1)
    output = jax.eval_shape(network.init_with_output, KEY, *inputs(shape))
    assert output[0].shape == (*shape[:-1], 5)


def test_attention_is_that_of_flax_over_all_positions():
    x, *_ = inputs((2, 4, 6, 8))
    attend = SelfAttention(head_channels=4, dtype=jnp.float32)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(attend.init, KEY, x)
    params = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), shapes)
    own = params["params"]
    normed = nn.GroupNorm(num_groups=2).apply({"params": own["GroupNorm_0"]}, x)
    theirs = {"out": own["out"]} | {
        name: {"kernel": own["qkv"]["kernel"][:, i], "bias": own["qkv"]["bias"][i]}
        for i, name in enumerate(["query", "key", "value"])
    }
    expected = nn.MultiHeadDotProductAttention(num_heads=2).apply(
        {"params": theirs}, normed.reshape(2, 24, 8)
    )
    np.testing.assert_allclose(
        attend.apply(params, x), x + expected.reshape(x.shape), atol=1e-4
    )


def test_a_time_embedding_tells_times_apart_and_has_one_length():
    embedding = np.asarray(time_embedding(jnp.linspace(0, 1, 1001), 64))
    np.testing.assert_allclose((embedding**2).sum(1), 32, rtol=1e-4)
    apart = np.linalg.norm(np.diff(embedding, axis=0), axis=1)
    assert apart.min() > 0.5  # neighbours of Ho et al.'s 1000 steps
    far = np.linalg.norm(embedding[:, None] - embedding[None], axis=-1)
    assert far[np.abs(np.subtract.outer(range(1001), range(1001))) > 5].min() > 1
