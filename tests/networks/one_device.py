"""Compares kernels by oneDNN with those of XLA, on one device, for test_kernels."""

import json

import jax
import jax.numpy as jnp

from eotjax.networks import kernels
from eotjax.networks.unet import UNet

KEY = jax.random.key(0)


def difference(one, other):
    """The largest, relative to the largest value of each array."""
    return max(
        float(jnp.abs(a - b).max() / jnp.abs(b).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def both(function, *arguments):
    """How far the value and all gradients of a sum of squares are from XLA's."""

    def all_of(*arguments):
        def loss(*arguments):
            y = function(*arguments)
            return jnp.mean(y**2), y

        every = tuple(range(len(arguments)))
        return jax.grad(loss, every, has_aux=True)(*arguments)

    with kernels.portable():
        wanted = jax.jit(lambda *a: all_of(*a))(*arguments)
    found = jax.jit(lambda *a: all_of(*a))(*arguments)
    return difference(found, wanted)


def image(*shape):
    return jax.random.normal(KEY, shape)


def conv(x, kernel, bias, stride, padding):
    return kernels.conv(x, kernel, bias, stride, padding)


problems = {
    "same": (8, 9, 3, 1, "SAME"),
    "one pixel": (8, 8, 1, 1, "SAME"),
    "half": (8, 10, 3, 2, "SAME"),
    "half, as PyTorch pads": (9, 8, 3, 2, 1),
    "unpadded": (7, 8, 3, 1, 0),
}
said = {"used": kernels.used(), "rounded": kernels.rounded()}
with jax.default_matmul_precision("highest"):
    for name, (height, width, size, stride, padding) in problems.items():
        said[name] = both(
            lambda x, k, b, stride=stride, padding=padding: conv(
                x, k, b, stride, padding
            ),
            image(3, height, width, 5),
            image(size, size, 5, 7),
            image(7),
        )
    dense = kernels.DenseGeneral((3, 2), axis=(-2, -1))
    params = dense.init(KEY, image(2, 6, 4, 5))
    said["dense"] = both(dense.apply, params, image(2, 6, 4, 5))
    net = UNet(
        channels=4, width=8, multipliers=(1, 2), blocks=1, attention=(1,), patch=2,
        head_channels=8, labels=2, dropout=0.1, remat=True,
    )  # fmt: skip
    rest = jnp.linspace(0, 1, 3), jnp.array([0, 1, 1])
    params = jax.jit(net.init)(KEY, image(3, 8, 8, 4), *rest)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * image(*p.shape), params)

    def apply(params, x):
        return net.apply(
            {"params": params}, x, *rest, train=True, rngs={"dropout": KEY}
        )

    said["network"] = both(apply, params, image(3, 8, 8, 4))

x, kernel = image(3, 8, 8, 5), image(3, 3, 5, 7)
exact = kernels.rounded()
round_ = (
    (lambda y: y.astype(jnp.bfloat16).astype(jnp.float32)) if exact else (lambda y: y)
)
with kernels.portable():
    wanted = conv(round_(x), round_(kernel), jnp.zeros(7), 1, "SAME")
said["rounded factors"] = difference(conv(x, kernel, jnp.zeros(7), 1, "SAME"), wanted)
narrow = image(3, 8, 8, 5).astype(jnp.bfloat16), image(3, 3, 5, 7).astype(jnp.bfloat16)
said["bfloat16 arrays"] = str(conv(*narrow, jnp.zeros(7, jnp.bfloat16), 1, 1).dtype)
texts = []
for portable in (False, True):
    with kernels.portable() if portable else jax.default_matmul_precision("highest"):
        texts.append(jax.jit(lambda x: apply(params, x)).lower(x[..., :4]).as_text())
said["calls"] = ["eotjax_forward" in text for text in texts]
print(json.dumps(said))
