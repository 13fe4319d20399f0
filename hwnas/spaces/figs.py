"""The spaces that FiGS searches: One-Shot, FBNet, two ResNets, and any net of torchvision.

``figs-fbnet``: the slots of FBNet (Wu et al. 2019), each the sum of its operators. Fine-grained search shrinks an
operator by itself, so that of nine operators three are left: kernels 3 and 5 at expansion 6, and the skip (section 3.3
of Chaudhuri et al. 2020; that it is these three follows from "3x fewer"). ``figs-fbnet@full`` keeps all but the two of
group convolutions, which the paper leaves out too: their groups would fix the channels of everything they are added to.

``figs-oneshot``: cells of densely connected blocks of separable convolutions (Bender et al. 2018), their outputs lined
up and mixed by a 1x1 convolution; ``figs-oneshot@add`` adds them. The paper names 8 cells, 4 blocks, base width 64 and
a pooling after every second cell. The stem, what a block reads and the doubling of widths are this instantiation's
(`hwnas.nn.figs`): its parameters cannot be compared with the paper's.

``figs-resnet50`` and ``figs-resnet152``: torchvision's ResNets, without weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.errors import UsageError
from hwnas.ops import Shape
from hwnas.spaces.fbnet import FBNET, FBNET_TINY, FBNetTable
from hwnas.spaces.gated import GateFamily, MakeNet

if TYPE_CHECKING:
    from torch import nn

LARGE, SMALL = (64, 1024), (28, 64)


@dataclass(frozen=True, slots=True)
class OneShotTable:
    """A space of this family.

    Attributes:
        width: channels of the first cells; doubled at each pooling.
        cells: one after the other.
        blocks: of each cell.
        every: cells between two poolings.
        stem_strides: of the convolutions before the first cell.
    """

    width: int
    cells: int
    blocks: int
    every: int
    stem_strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ResNetTable:
    """A ResNet of bottlenecks for small images.

    Attributes:
        stem: channels of the first convolution.
        planes: channels inside the bottlenecks of each stage; they give four times as many.
        layers: bottlenecks of each stage; all but the first stage begin with stride 2.
    """

    stem: int
    planes: tuple[int, ...]
    layers: tuple[int, ...]


ONESHOT = OneShotTable(64, 8, 4, 2, (2, 2))
ONESHOT_TINY = OneShotTable(16, 4, 2, 2, (2,))
RESNET50_TINY = ResNetTable(16, (16, 32, 64), (1, 2, 2))
RESNET152_TINY = ResNetTable(16, (16, 32, 64), (2, 4, 4))


def _fbnet_net(table: FBNetTable, variant: str) -> MakeNet:
    def make(input_shape: Shape, num_classes: int) -> nn.Module:
        from hwnas.nn.figs import MixedFBNet

        return MixedFBNet(table, input_shape, num_classes, full=variant == "full")

    return make


def _oneshot_net(table: OneShotTable, variant: str) -> MakeNet:
    def make(input_shape: Shape, num_classes: int) -> nn.Module:
        from hwnas.nn.figs import OneShot

        return OneShot(table, input_shape, num_classes, adds=variant == "add")

    return make


def _resnet_net(table: ResNetTable) -> MakeNet:
    def make(input_shape: Shape, num_classes: int) -> nn.Module:
        from hwnas.nn.figs import SmallResNet

        return SmallResNet(table, input_shape, num_classes)

    return make


def torchvision_net(name: str) -> MakeNet:
    """The classifier `name` of torchvision, without weights.

    Raises:
        UsageError: when it is made: torchvision has no such classifier.
    """

    def make(input_shape: Shape, num_classes: int) -> nn.Module:
        del input_shape
        from torchvision import models  # type: ignore[import-untyped]

        from hwnas.nn.figs import repeatable

        known = models.list_models(module=models)
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"torchvision has no classifier {name[:60]!r}{hint}")
        options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        return repeatable(models.get_model(name, weights=None, num_classes=num_classes, **options))

    return make


FAMILIES: dict[str, GateFamily] = {
    "figs-oneshot": GateFamily(lambda variant: _oneshot_net(ONESHOT, variant), 224, LARGE, 1000, "add"),
    "figs-oneshot-tiny": GateFamily(lambda variant: _oneshot_net(ONESHOT_TINY, variant), 28, SMALL, 10, "add"),
    "figs-fbnet": GateFamily(lambda variant: _fbnet_net(FBNET, variant), 224, LARGE, 1000, "full"),
    "figs-fbnet-tiny": GateFamily(lambda variant: _fbnet_net(FBNET_TINY, variant), 28, SMALL, 10, "full"),
    "figs-resnet50": GateFamily(lambda _: torchvision_net("resnet50"), 224, LARGE, 1000),
    "figs-resnet152": GateFamily(lambda _: torchvision_net("resnet152"), 224, LARGE, 1000),
    "figs-resnet50-tiny": GateFamily(lambda _: _resnet_net(RESNET50_TINY), 28, SMALL, 10),
    "figs-resnet152-tiny": GateFamily(lambda _: _resnet_net(RESNET152_TINY), 28, SMALL, 10),
}
"""The named spaces of gates."""

TORCHVISION = "torchvision:"


def torchvision_family(name: str) -> GateFamily:
    """The space of one of torchvision's nets."""
    return GateFamily(lambda _: torchvision_net(name.removeprefix(TORCHVISION)), 224, (28, 1024), 1000)
