"""BatchNorm statistics recomputed for one architecture (SPOS, section 3.4).

The running statistics of a supernet mix all paths and fit none. They are replaced by the mean over fixed batches of
what each layer sees when only this architecture runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def _recomputing(norms: list[_BatchNorm]) -> Iterator[None]:
    """Layers in training mode with a cumulative mean, started afresh; momentum and mode are put back afterwards."""
    before = [(norm, norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative mean: every batch counts the same
        norm.train()
    try:
        yield
    finally:
        for norm, momentum, training in before:
            norm.momentum = momentum
            norm.train(training)


def recalibrate(module: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]) -> None:
    """Recomputes the statistics of every BatchNorm of `module` that `forward` runs through.

    Mean and (unbiased) variance become the plain averages over the batches, which must be of one size. Dropout and
    everything else stay in inference mode.

    Args:
        module: its BatchNorm statistics are changed in place; weights are not.
        forward: runs the architecture on a batch.
        batches: normalised images.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    try:
        with torch.inference_mode(), _recomputing(norms):
            for batch in batches:
                forward(batch)
    finally:
        for part, training in modes:
            part.training = training
