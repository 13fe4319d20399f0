"""Does a supernet whose channels are searched train from scratch? With and without the warm-up from the widest.

    python benchmarks/channel_training.py --space spos-joint-tiny --steps 1500

Published code of others does not converge with narrow channels unless the supernet warms up (CanyonWind's README,
ShuffleNet-Series issue 13). Here each supernet is trained on Fashion-MNIST with the same images and the same paths;
then random architectures, and those of one width everywhere, are scored with inherited weights on validation images.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from hwnas.progress import NullProgress
from hwnas.spaces import Arch, Space, get_space
from hwnas.train.batches import Batches
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.data import DataSplits, load_data
from hwnas.train.evaluate import Evaluator
from hwnas.train.loop import train_supernet
from hwnas.train.recipe import Recipe, load_recipe, recipe_from

WIDENINGS = (0.0, 0.25)
WIDTHS = 8
"""Of every kind of block, in the channel spaces."""

RANDOM = 20
"""Random architectures; the same for every supernet."""


def main() -> None:
    """Trains and prints one line a supernet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="spos-joint-tiny", help="with widths to search")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    splits = load_data(args.data, seed=0)
    space = get_space(args.space, image_size=splits.train.images.shape[-1], num_classes=splits.num_classes)
    print(f"{args.space}, {args.data}, {args.steps} steps, accuracies on {scoring_images()} validation images:")
    print("widening seed  random: mean (least, most)      narrowest widest  seconds")
    for seed in range(args.seeds):
        for widening in WIDENINGS:
            print(line(space, splits, recipe(args.steps, widening), seed, args.threads, widening), flush=True)


def scoring_images() -> int:
    """Validation images of the quickstart recipe."""
    return load_recipe("quickstart").scoring.val_images


def recipe(steps: int, widening: float) -> Recipe:
    """The quickstart recipe with so many steps."""
    data = load_recipe("quickstart").model_dump()
    data["supernet"] |= {"steps": steps, "widening": widening}
    return recipe_from(data, "benchmark")


def line(space: Space, splits: DataSplits, made: Recipe, seed: int, threads: int, widening: float) -> str:
    """Trains one supernet and says how good its architectures are."""
    began = time.monotonic()
    supernet = space.supernet(generator=torch_generator(step_rng(seed, "weights", 0)))
    batches = Batches(splits.train, splits.normalisation, made.supernet, seed, "supernet")
    train_supernet(supernet, batches, progress=NullProgress())
    rng = np.random.default_rng(1)
    archs = [space.sample(rng) for _ in range(RANDOM)]
    widths = [Arch(space.name, space.widened(arch.genes, 0.0)) for arch in archs[:5]]
    narrow = [Arch(space.name, tuple(gene - gene % WIDTHS for gene in arch.genes)) for arch in archs[:5]]
    evaluator = Evaluator(supernet, splits, made.scoring, seed=seed)
    scores = np.array(list(evaluator.scores([arch.genes for arch in (*archs, *narrow, *widths)], threads)))
    some, least, most = scores[:RANDOM], scores[RANDOM : RANDOM + 5].mean(), scores[RANDOM + 5 :].mean()
    return (
        f"{widening:8.2f} {seed:4d}  {some.mean():.3f} ({some.min():.3f}, {some.max():.3f}) "
        f"{least:20.3f} {most:6.3f} {time.monotonic() - began:8.0f}"
    )


if __name__ == "__main__":
    main()
