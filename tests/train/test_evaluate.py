"""Recalibration gives the exact statistics, and a score depends on weights and genes only."""

from __future__ import annotations

import torch
from torch import nn

from hwnas.spaces import Arch, get_space
from hwnas.train.data import DataInfo, DataSplits, Images, Normalisation
from hwnas.train.evaluate import Evaluator, accuracy
from hwnas.train.recalibrate import recalibrate
from hwnas.train.recipe import Scoring

SPACE = get_space("proxyless-tiny", num_classes=3)


def splits() -> DataSplits:
    images = torch.randint(0, 256, (60, 3, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(60) % 3
    info = DataInfo("none", "none", ("a", "b", "c"), 28)
    train, val = Images(images[:40], labels[:40]), Images(images[40:], labels[40:])
    return DataSplits(info, train, val, Normalisation.of(train.images), None)


def test_statistics_are_the_means_over_the_batches() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    module.train()
    batches = list(torch.randn(4, 8, 3, 9, 9, generator=torch.Generator().manual_seed(0)))
    module(100 * batches[0])  # statistics that must not survive
    recalibrate(module, module, batches)
    with torch.no_grad():
        seen = [module[0](batch) for batch in batches]
    means = torch.stack([y.mean(dim=(0, 2, 3)) for y in seen]).mean(0)
    variances = torch.stack([y.var(dim=(0, 2, 3)) for y in seen]).mean(0)
    torch.testing.assert_close(module[1].running_mean, means)
    torch.testing.assert_close(module[1].running_var, variances)
    assert module.training
    assert module[1].momentum == 0.1


def test_dropout_stays_off_during_recalibration() -> None:
    module = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3))
    batch = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    recalibrate(module.train(), module, [batch])
    torch.testing.assert_close(module[1].running_mean, batch.mean(dim=(0, 2, 3)))
    assert module[0].training


def test_a_score_does_not_depend_on_what_was_scored_before() -> None:
    supernet = SPACE.supernet(generator=torch.Generator().manual_seed(0), zero_init_residual=False)
    evaluator = Evaluator(supernet, splits(), Scoring(recalibrate_images=20, val_images=18, batch_size=10), seed=0)
    genes, others = (0,) * len(SPACE.slots), (3,) * len(SPACE.slots)
    first = evaluator(genes)
    evaluator(others)
    assert evaluator(genes) == first
    afresh = Evaluator(supernet, splits(), Scoring(recalibrate_images=20, val_images=18, batch_size=10), seed=0)
    assert afresh(genes) == first


def test_the_extracted_net_has_the_accuracy_that_the_supernet_scored() -> None:
    data = splits()
    supernet = SPACE.supernet(generator=torch.Generator().manual_seed(0), zero_init_residual=False)
    evaluator = Evaluator(supernet, data, Scoring(recalibrate_images=40, val_images=20, batch_size=10), seed=0)
    arch = Arch(SPACE.name, (1,) * len(SPACE.slots))
    score = evaluator(arch.genes)
    net = supernet.extract(arch)
    subset = data.val.take(_balanced(data))
    assert accuracy(net, subset, data.normalisation) == score


def _balanced(data: DataSplits) -> object:
    from hwnas.train.data import balanced_subset

    return balanced_subset(data.val.labels.numpy(), 20, seed=0)
