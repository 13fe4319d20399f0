"""The nets that FiGS puts its gates into (`hwnas.spaces.figs`): FBNet's slots as sums, One-Shot cells, ResNets."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from hwnas.nn.blocks import ConvNormAct, Dropout, chain_of
from hwnas.ops import Shape
from hwnas.spaces.chain import ConvSpec, slots_of
from hwnas.spaces.fbnet import KERNELS, WIDENINGS, FBNetTable
from hwnas.spaces.figs import OneShotTable, ResNetTable
from hwnas.spaces.mobile import MBConv

NORM = partial(nn.BatchNorm2d, eps=1e-5)


class Mixed(nn.Module):
    """A slot of FBNet: the sum of its operators, and of its input where the shape stays (the skip)."""

    def __init__(self, cin: int, cout: int, stride: int, *, full: bool) -> None:
        super().__init__()
        self.ops = nn.ModuleDict()
        for kernel in KERNELS:
            for name, (expand, groups) in WIDENINGS.items():
                if name == "e6" or (full and groups == 1):
                    block = MBConv(kernel, expand, cin, cout, stride, groups, act="relu", always_expands=True)
                    self.ops[f"k{kernel}{name}"] = chain_of((*block.layers(), block.project), NORM)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.ops.values()
        total: Tensor = first(x)
        if self.residual:
            total = total + x  # here, and each further sum behind it, a device fuses it into a convolution
        for op in others:
            total = total + op(x)
        return total


class MixedFBNet(nn.Module):
    """FBNet's supernet with the additive aggregator."""

    def __init__(self, table: FBNetTable, input_shape: Shape, num_classes: int, *, full: bool) -> None:
        super().__init__()
        self.stem = ConvNormAct(ConvSpec("stem", input_shape[0], table.stem, 3, 2, act="relu"), NORM)
        self.slots = nn.Sequential(
            *(Mixed(cin, cout, stride, full=full) for cin, cout, stride in slots_of(table.stages, table.stem))
        )
        self.head = ConvNormAct(ConvSpec("head", table.stages[-1].width, table.head, act="relu"), NORM)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(table.head, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.head(self.slots(self.stem(x))))
        return y


class Separable(nn.Module):
    """Twice ReLU, depthwise, 1x1 convolution, BatchNorm."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(2):
            depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
            parts += [nn.ReLU(), depthwise, nn.Conv2d(width, width, 1, bias=False), NORM(width)]
        self.layers = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class OneShotBlock(nn.Module):
    """Reads everything that the cell has so far through a 1x1 convolution; its operators' outputs are aggregated."""

    def __init__(self, cin: int, width: int, *, adds: bool) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.ReLU(), nn.Conv2d(cin, width, 1, bias=False), NORM(width))
        self.ops = nn.ModuleDict(
            {
                "sep3": Separable(width, 3),
                "sep5": Separable(width, 5),
                "sep7": Separable(width, 7),
                "max": nn.MaxPool2d(3, 1, 1),
                "mean": nn.AvgPool2d(3, 1, 1),
            }
        )
        mixed = len(self.ops) + 1
        self.mix = None if adds else nn.Sequential(nn.Conv2d(mixed * width, width, 1, bias=False), NORM(width))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        x: Tensor = self.read(torch.cat(inputs, 1))
        given: list[Tensor] = [op(x) for op in self.ops.values()]
        if self.mix is not None:
            y: Tensor = self.mix(torch.cat([x, *given], 1))
            return y
        for one in given:
            x = x + one
        return x


class OneShotCell(nn.Module):
    """Blocks each of which reads the two cells before and the blocks before it; their outputs are lined up."""

    def __init__(self, before: tuple[int, int], width: int, blocks: int, *, adds: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            OneShotBlock(sum(before) + index * width, width, adds=adds) for index in range(blocks)
        )

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for block in self.blocks:
            parts.append(block([before, last, *parts]))
        return torch.cat(parts, 1)


class OneShot(nn.Module):
    """The One-Shot supernet: cells, halved and doubled in width after every so many of them by an average pooling."""

    def __init__(self, table: OneShotTable, input_shape: Shape, num_classes: int, *, adds: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        channels = input_shape[0]
        for place, stride in enumerate(table.stem_strides):
            self.stem.append(nn.Conv2d(channels, table.width, 3, stride, 1, bias=False))
            self.stem.append(NORM(table.width))
            if place < len(table.stem_strides) - 1:
                self.stem.append(nn.ReLU())
            channels = table.width
        self.every = table.every
        self.cells = nn.ModuleList()
        before, width = (table.width, table.width), table.width
        for index in range(table.cells):
            width = table.width * 2 ** (index // table.every)
            self.cells.append(OneShotCell(before, width, table.blocks, adds=adds))
            before = (before[1], table.blocks * width)
        self.pool = nn.AvgPool2d(2, 2)
        self.classifier = nn.Sequential(
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(table.blocks * width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        before = last = self.stem(x)
        for index, cell in enumerate(self.cells):
            if index and index % self.every == 0:
                before, last = self.pool(before), self.pool(last)
            before, last = last, cell(before, last)
        y: Tensor = self.classifier(last)
        return y


class Bottleneck(nn.Module):
    """ResNet's bottleneck (He et al. 2015) with its stride in the 3x3 convolution, as torchvision has it."""

    def __init__(self, cin: int, planes: int, stride: int) -> None:
        super().__init__()
        cout = 4 * planes
        self.main = nn.Sequential(
            nn.Conv2d(cin, planes, 1, bias=False), NORM(planes), nn.ReLU(),
            nn.Conv2d(planes, planes, 3, stride, 1, bias=False), NORM(planes), nn.ReLU(),
            nn.Conv2d(planes, cout, 1, bias=False), NORM(cout),
        )  # fmt: skip
        changes = stride != 1 or cin != cout
        self.short = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), NORM(cout)) if changes else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.short is None else self.short(x)
        y: Tensor = self.relu(self.main(x) + kept)
        return y


class SmallResNet(nn.Module):
    """A ResNet of bottlenecks for small images: a 3x3 stem without pooling."""

    def __init__(self, table: ResNetTable, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.stem = ConvNormAct(ConvSpec("stem", input_shape[0], table.stem, 3, act="relu"), NORM)
        blocks, channels = [], table.stem
        for stage, (planes, layers) in enumerate(zip(table.planes, table.layers, strict=True)):
            for layer in range(layers):
                blocks.append(Bottleneck(channels, planes, 2 if stage and not layer else 1))
                channels = 4 * planes
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.blocks(self.stem(x)))
        return y


def repeatable(net: nn.Module) -> nn.Module:
    """A net without chance that nobody seeds: dropout asks a generator, no layer is dropped whole."""
    from torchvision.ops import StochasticDepth  # type: ignore[import-untyped]

    for part in list(net.modules()):
        for name, child in part.named_children():
            if type(child) is nn.Dropout:
                setattr(part, name, Dropout(child.p))
            elif isinstance(child, StochasticDepth):
                setattr(part, name, nn.Identity())
    return net
