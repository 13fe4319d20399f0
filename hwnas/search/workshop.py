"""`Workshop`: images, supernet and scores of one SPOS search, in every process that works on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hwnas.progress import NullProgress, Progress
from hwnas.search.data import load_splits
from hwnas.search.request import SearchRequest
from hwnas.spaces.base import Arch
from hwnas.train.batches import Batches
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.evaluate import Evaluator
from hwnas.train.finish import train_net
from hwnas.train.loop import train_supernet
from hwnas.train.metrics import MetricsLog
from hwnas.train.paths import make_paths
from hwnas.train.process import prepare_process
from hwnas.train.ranks import Ranks

if TYPE_CHECKING:
    from hwnas.nn.supernet import SinglePathSupernet
    from hwnas.train.checkpoint import CheckpointStore


class Workshop:
    """Reads the data; then trains the supernet, and scores architectures with it, in step with the other ranks.

    Raises:
        HwnasError: the data is unusable, has other classes than the space, or is not the same for all ranks; or the
            recipe's paths cannot be sampled.
    """

    supernet: SinglePathSupernet
    evaluator: Evaluator

    def __init__(self, request: SearchRequest, progress: Progress, ranks: Ranks) -> None:
        prepare_process(request.threads)
        self.request, self.progress, self.ranks = request, progress, ranks
        self.paths = make_paths(request.space, request.recipe.sampling, request.costs, request.seed)
        self.splits = load_splits(request, progress, ranks)

    @property
    def threads(self) -> int:
        """Architectures that are scored at a time."""
        return self.request.threads if self.ranks.device == "cpu" else 1

    def fresh(self) -> SinglePathSupernet:
        """The supernet as its training begins with it."""
        weights = torch_generator(step_rng(self.request.seed, "weights", 0))
        return self.request.space.supernet(generator=weights, zero_init_residual=self.request.recipe.zero_init_residual)

    def batches(self) -> Batches:
        """Of the supernet's training, whole."""
        request = self.request
        phase = request.recipe.supernet
        return Batches(self.splits.train, self.splits.normalisation, phase, request.seed, "supernet", self.ranks.device)

    def judge(self, supernet: SinglePathSupernet) -> Evaluator:
        """What scores architectures with the weights of `supernet`."""
        request = self.request
        return Evaluator(supernet, self.splits, request.recipe.scoring, seed=request.seed, device=self.ranks.device)

    def train(self, store: CheckpointStore | None = None, metrics: MetricsLog | None = None) -> None:
        """Trains the supernet to its end; all ranks call it, checkpoints and metrics are the first one's."""
        self.supernet = self.fresh()
        train_supernet(
            self.supernet,
            self.batches(),
            progress=self.progress,
            paths=self.paths,
            store=store,
            metrics=metrics,
            ranks=self.ranks,
        )
        self.evaluator = self.judge(self.supernet)

    def scores(self, genes: Sequence[Sequence[int]]) -> Iterator[float]:
        """The first rank's: scores of architectures in their order, every rank working on its share."""
        if self.ranks.world == 1:
            yield from self.evaluator.scores(genes, self.threads)
            return
        size = 2 * self.ranks.world * self.threads  # no more than that is lost by a kill
        for start in range(0, len(genes), size):
            part = [list(row) for row in genes[start : start + size]]
            self.ranks.order("score", genes=part)
            yield from self.score_share(part)

    def score_share(self, genes: Sequence[Sequence[int]]) -> list[float]:
        """Scores a share of `genes` and exchanges it for the others': all their scores, in order."""
        world = self.ranks.world
        shares = self.ranks.gather(list(self.evaluator.scores(genes[self.ranks.rank :: world], self.threads)))
        return [float(shares[index % world][index // world]) for index in range(len(genes))]

    def fingerprint(self) -> str:
        """Of everything that a score depends on beside the genes: weights, images, how many of them."""
        digest = hashlib.blake2b(digest_size=8)
        for name, parameter in self.supernet.named_parameters():
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().data)
        digest.update(self.splits.fingerprint().encode())
        digest.update(repr((self.request.seed, self.request.recipe.scoring)).encode())
        return digest.hexdigest()


def follow(request: SearchRequest, ranks: Ranks) -> None:
    """What every rank but the first does of a search: see `hwnas.search.spos.search`."""
    shops: list[Workshop] = []

    def begin(_: dict[str, Any]) -> None:
        shops.append(Workshop(request, NullProgress(), ranks))

    def net(order: dict[str, Any]) -> None:
        module = request.space.build(Arch(request.space.name, tuple(order["genes"])))
        phase = request.recipe.finetune
        train_net(
            module,
            shops[0].splits,
            phase,
            seed=request.seed,
            stream="finetune",
            progress=NullProgress(),
            description="fine-tuning",
            ranks=ranks,
        )

    def score(order: dict[str, Any]) -> None:
        shops[0].score_share(order["genes"])

    ranks.follow(
        {
            "begin": begin,
            "supernet": lambda _: shops[0].train(),
            "score": score,
            "net": net,
        }
    )
