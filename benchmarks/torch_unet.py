"""UNet of networks/unet in PyTorch, with Flax's own parameters."""

import math

import jax
import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from torch import Tensor, nn

from eotjax.build import wiring
from eotjax.build.checks import Shape


def group_norm(channels: int) -> nn.GroupNorm:
    groups = max(g for g in range(1, 33) if channels % g == 0 and channels // g >= 4)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """ResidualBlock of networks/unet, its parameters by the names they have in Flax."""

    def __init__(self, inputs: int, channels: int, time: int):
        super().__init__()
        self.GroupNorm_0 = group_norm(inputs)
        self.conv_in = nn.Conv2d(inputs, channels, 3, padding=1)
        self.Dense_0 = nn.Linear(time, 2 * channels)
        self.GroupNorm_1 = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        if inputs != channels:
            self.skip = nn.Conv2d(inputs, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.GroupNorm_0(x)))
        scale, shift = self.Dense_0(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = self.GroupNorm_1(h) * (1 + scale) + shift
        h = self.conv_out(F.silu(h))
        return h + (self.skip(x) if hasattr(self, "skip") else x)


class SelfAttention(nn.Module):
    """SelfAttention of networks/unet."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.heads = max(channels // head_channels, 1)
        self.GroupNorm_0 = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(y).reshape(b, h * w, 3, self.heads, c // self.heads)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        y = self.out(y.transpose(1, 2).reshape(b, h * w, c))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


class UNet(nn.ModuleDict):
    """UNet of networks/unet: (x [b, inputs, h, w], t [b]) -> [b, channels, h, w]."""

    def __init__(self, inputs: int, channels: int, config: ConfigDict):
        super().__init__()
        model = config.model
        self.width, self.levels = model.width, len(model.multipliers)
        self.blocks, self.patch = model.blocks, model.patch
        height = config.data.image_size[0] // model.patch
        attention = [height // 2**i in model.attention for i in range(self.levels)]
        time, cells = 4 * self.width, self.patch**2

        def block(name: str, inputs: int, channels: int, attends: bool) -> None:
            self[name] = ResidualBlock(inputs, channels, time)
            if attends:
                self[f"{name}_attention"] = SelfAttention(channels, model.head_channels)

        self["time_in"] = nn.Linear(self.width, time)
        self["time_out"] = nn.Linear(time, time)
        self["conv_in"] = nn.Conv2d(inputs * cells, self.width, 3, padding=1)
        c, skips = self.width, [self.width]
        for level, multiplier in enumerate(model.multipliers):
            for i in range(self.blocks):
                block(f"down{level}_{i}", c, self.width * multiplier, attention[level])
                c = self.width * multiplier
                skips.append(c)
            if level < self.levels - 1:
                self[f"down{level}_conv"] = nn.Conv2d(c, c, 3, stride=2)
                skips.append(c)
        block("middle_0", c, c, attention[-1])
        block("middle_1", c, c, False)
        for level, multiplier in reversed(list(enumerate(model.multipliers))):
            for i in range(self.blocks + 1):
                wide, c = c + skips.pop(), self.width * multiplier
                block(f"up{level}_{i}", wide, c, attention[level])
            if level > 0:
                self[f"up{level}_conv"] = nn.Conv2d(c, c, 3, padding=1)
        self["GroupNorm_0"] = group_norm(c)
        self["conv_out"] = nn.Conv2d(c, channels * cells, 3, padding=1)
        if self.patch > 1:
            self["refine_in"] = nn.Conv2d(channels + inputs, self.width, 3, padding=1)
            for i in range(self.blocks):
                block(f"refine_{i}", self.width, self.width, False)
            self["GroupNorm_1"] = group_norm(self.width)
            self["refine_out"] = nn.Conv2d(self.width, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self["time_out"](F.silu(self["time_in"](embed_time(t, self.width))))
        pixels = x

        def block(x: Tensor, name: str) -> Tensor:
            x = self[name](x, time)
            attention = f"{name}_attention"
            return self[attention](x) if attention in self else x

        x = self["conv_in"](to_patches(x, self.patch))
        skips = [x]
        for level in range(self.levels):
            for i in range(self.blocks):
                x = block(x, f"down{level}_{i}")
                skips.append(x)
            if level < self.levels - 1:
                # Where Flax's "SAME" pads an even size that is halved.
                x = self[f"down{level}_conv"](F.pad(x, (0, 1, 0, 1)))
                skips.append(x)
        x = block(block(x, "middle_0"), "middle_1")
        for level in reversed(range(self.levels)):
            for i in range(self.blocks + 1):
                x = block(torch.cat([x, skips.pop()], dim=1), f"up{level}_{i}")
            if level > 0:
                x = self[f"up{level}_conv"](F.interpolate(x, scale_factor=2))
        coarse = self["conv_out"](F.silu(self["GroupNorm_0"](x)))
        if self.patch == 1:
            return coarse
        coarse = from_patches(coarse, self.patch)
        x = self["refine_in"](torch.cat([coarse, pixels], dim=1))
        for i in range(self.blocks):
            x = block(x, f"refine_{i}")
        return coarse + self["refine_out"](F.silu(self["GroupNorm_1"](x)))


def to_patches(x: Tensor, size: int) -> Tensor:
    """Squares of pixels as channels, in the order of eotjax's."""
    b, c, h, w = x.shape
    cells = x.reshape(b, c, h // size, size, w // size, size)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(b, -1, h // size, w // size)


def from_patches(x: Tensor, size: int) -> Tensor:
    """The inverse of `to_patches`."""
    b, c, h, w = x.shape
    cells = x.reshape(b, size, size, c // size**2, h, w)
    return cells.permute(0, 3, 4, 1, 5, 2).reshape(b, -1, h * size, w * size)


def embed_time(t: Tensor, width: int) -> Tensor:
    """eotjax.networks.embedding.time_embedding."""
    half = width // 2
    steps = torch.arange(half, device=t.device)
    frequencies = torch.exp(-math.log(1e4) * steps / max(half - 1, 1))
    angles = 1000 * t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def load_flax(net: nn.Module, params: dict) -> None:
    """Copies a Flax network's parameters into `net`, which must have the same ones."""
    mine = net.state_dict()
    theirs = {
        name.replace("kernel", "weight").replace("scale", "weight"): np.asarray(x)
        for name, x in flatten_dict(params, sep=".").items()
    }
    assert theirs.keys() == mine.keys(), theirs.keys() ^ mine.keys()
    assert sum(x.size for x in theirs.values()) == sum(x.numel() for x in mine.values())
    for name, x in theirs.items():
        if ".qkv." in name:  # [c, 3, heads, d]
            x = x.reshape(*x.shape[:-3], -1)
        if name.endswith("_attention.out.weight"):  # [heads, d, c]
            x = x.reshape(-1, x.shape[-1])
        if x.ndim > 1:
            x = np.moveaxis(x, (-1, -2), (0, 1))
        mine[name].copy_(torch.tensor(x).reshape(mine[name].shape))


def flax_parameters(config: ConfigDict, shape: Shape) -> dict:
    """What eotjax's training starts from."""
    inputs = wiring.inputs(config, shape)
    init = jax.jit(wiring.network(config, shape).init)
    return init(jax.random.key(config.seed), *inputs)["params"]


def network(config: ConfigDict, shape: Shape) -> UNet:
    """The config's network in PyTorch, its parameters those that eotjax starts from."""
    assert not config.model.dropout
    inputs = wiring.inputs(config, shape)[0].shape[-1]
    net = UNet(inputs, shape[-1], config)
    load_flax(net, flax_parameters(config, shape))
    return net
