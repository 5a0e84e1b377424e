"""The original of the tiny autoencoder, in PyTorch, with random or given weights."""

import torch
from torch import nn


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Block(nn.Module):
    def __init__(self, pooled):
        super().__init__()
        relu = nn.ReLU()
        self.conv = nn.Sequential(conv(64, 64), relu, conv(64, 64), relu, conv(64, 64))
        self.pool = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False),
                nn.GroupNorm(4, 256),
                nn.ReLU(),
                nn.Conv2d(256, 64, 1, bias=False),
            )

    def forward(self, x):
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Squash(nn.Module):
    def forward(self, x):
        return 3 * torch.tanh(x / 3)


def blocks(pooled=False):
    return [Block(pooled) for _ in range(3)]


def halve():
    return conv(64, 64, stride=2, bias=False)


def double():
    return [nn.Upsample(scale_factor=2), conv(64, 64, bias=False)]


def encoder(channels, pooled):
    layers = [conv(3, 64), Block(False), halve(), *blocks(), halve(), *blocks()]
    return nn.Sequential(*layers, halve(), *blocks(pooled), conv(64, channels))


def decoder(channels, pooled):
    layers = [Squash(), conv(channels, 64), nn.ReLU(), *blocks(pooled), *double()]
    layers += [*blocks(), *double(), *blocks(), *double()]
    return nn.Sequential(*layers, Block(False), conv(64, 3))


def random(make, channels, pooled, seed=0):
    """With weights of which none is at its start."""
    torch.manual_seed(seed)
    module = make(channels, pooled).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.04 * torch.randn_like(parameter))
    return module


def save(folder, channels=4, pooled=False, seed=0):
    """Two files of random weights, as they are published."""
    folder.mkdir(parents=True, exist_ok=True)
    for make in (encoder, decoder):
        path = folder / f"tiny_{make.__name__}.pth"
        torch.save(random(make, channels, pooled, seed).state_dict(), path)
    return folder
