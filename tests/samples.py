"""Operators of every kind and small networks, for tests that go through them."""

from __future__ import annotations

import functools

from hwnas.network import Network, NetworkBuilder
from hwnas.ops import ACTIVATIONS, Op


def operators(channels: int) -> list[Op]:
    """At least one operator of each kind, and those that resemble the anchors or what is fused into them."""
    image, half = (channels, 8, 8), channels // 2
    conv = functools.partial(Op.conv, image, channels)
    return [
        Op.conv((3, 16, 16), channels, kernel=3, stride=2, norm=True, act="relu6"),
        conv(kernel=3, stride=2, norm=True, act="relu6"),
        conv(kernel=1, groups=channels),  # an anchor's twin
        conv(kernel=1, groups=channels, act="tanh"),
        conv(kernel=1, groups=channels, norm=True),
        conv(kernel=(1, 5), groups=channels, act="silu"),
        conv(kernel=3, groups=2, bias=True),
        conv(kernel=1, norm=True, residual=True),
        conv(kernel=1, norm=True, residual=True, act="relu"),
        conv(kernel=3, groups=channels, norm=True, residual=True),
        Op.linear(12, 5),
        Op.linear(12, 5, bias=False, act="hardswish"),
        Op.pool("max_pool", image, kernel=3, stride=2, ceil_mode=True),
        Op.pool("avg_pool", image, kernel=2),
        Op.global_avg_pool(image),
        Op.add(image),
        Op.add(image, act="relu"),
        Op.mul(image, (channels, 1, 1)),
        Op.mul(image, image, act="sigmoid"),
        Op.concat([image, (2, 8, 8)]),
        Op.concat([image, image]),
        Op.concat([(4,), (3,)]),
        Op.split(image, (half, channels - half)),
        Op.split(image, (channels,)),
        Op.shuffle(image, 2),
        Op.affine(image, act="relu"),
        Op.affine((12,)),
        *[Op.activation(image, act) for act in ACTIVATIONS if act],
        Op.activation((12,), "relu"),
    ]


def conversions(channels: int) -> list[Op]:
    """What lowering adds: a tensor brought to blocks of channels, and back."""
    return [Op.conversion((channels, 8, 8), blocked=blocked) for blocked in (True, False)]


def resnet_like(channels: int = 64, *, fused: bool = True) -> Network:
    """Stem, pooling, a block with the identity and one with a convolution beside; without `fused`, every addition and
    activation behind the first convolution is described as an operator of its own."""
    builder = NetworkBuilder((3, 64, 64))
    builder.add(Op.conv((3, 64, 64), channels, kernel=7, stride=2, norm=True, act="relu"))
    builder.add(Op.pool("max_pool", builder.shape(), kernel=3, stride=2, padding=1))
    entry = builder.last
    builder.add(Op.conv(builder.shape(), channels, kernel=3, norm=True, act="relu"))
    if fused:
        op = Op.conv(builder.shape(), channels, kernel=3, norm=True, act="relu", residual=True)
        builder.add(op, (builder.last, entry))
    else:
        builder.add(Op.conv(builder.shape(), channels, kernel=3, norm=True))
        builder.add(Op.add(builder.shape(), act="relu"), (builder.last, entry))
    entry = builder.last
    beside = builder.add(Op.conv(builder.shape(), 2 * channels, kernel=1, stride=2, norm=True))
    builder.add(Op.conv(builder.shape(entry), 2 * channels, kernel=3, stride=2, norm=True, act="relu"), (entry,))
    op = Op.conv(builder.shape(), 2 * channels, kernel=3, norm=True, act="relu", residual=True)
    builder.add(op, (builder.last, beside))
    builder.add(Op.global_avg_pool(builder.shape()))
    builder.add(Op.linear(2 * channels, 10))
    return builder.build()
