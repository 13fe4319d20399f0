"""Training steps with the weight gradients of `hwnas.nn.depthwise` and with torch's, in turns.

    python benchmarks/depthwise.py --threads 1

Supernets of the tiny spaces at batch 32, along the path of the middle choice of each slot (all atoms of an atom space).
Medians, and the ratio's 95% interval by resampling the pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from search_speed import interval
from torch import nn

from hwnas.nn import depthwise
from hwnas.spaces import Arch, AtomSpace, Space, find_space
from hwnas.train.process import prepare_process

SPACES = ("proxyless-tiny", "spos-shufflenet-tiny", "fbnet-tiny", "atomnas-tiny", "proxyless", "atomnas-a")


def seconds(net: nn.Module, images: torch.Tensor, *, tiles: bool) -> float:
    """Of one forward and backward pass."""
    depthwise.TILED = tiles
    began = time.perf_counter()
    net.zero_grad()
    nn.functional.cross_entropy(net(images), torch.arange(len(images)) % 10).backward()
    return time.perf_counter() - began


def main() -> None:
    """Prints a line a space."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    prepare_process(options.threads)
    for name in SPACES:
        space = find_space(name)
        generator = torch.Generator().manual_seed(0)
        if isinstance(space, AtomSpace):
            net = space.build(space.supernet_arch, generator=generator)
        else:
            assert isinstance(space, Space)
            middle = tuple(len(slot) // 2 for slot in space.slots)
            net = space.build(Arch(space.name, middle), generator=generator)
        net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        batch = 32 if name.endswith("-tiny") else 8
        images = torch.randn(batch, *space.input_shape, generator=torch.Generator().manual_seed(1))
        images = images.to(memory_format=torch.channels_last)
        pairs = []
        for index in range(options.pairs + 2):
            order = (True, False) if index % 2 else (False, True)
            taken = {tiles: seconds(net, images, tiles=tiles) for tiles in order}
            pairs.append((taken[False], taken[True]))
        pairs = pairs[2:]
        ratios = [slow / fast for slow, fast in pairs]
        low, high = interval(ratios)
        slow, fast = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:22} batch {batch:2}: torch {slow:7.1f} ms, hwnas {fast:7.1f} ms, "
              f"{statistics.median(ratios):.2f} times as fast (95%: {low:.2f} to {high:.2f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
