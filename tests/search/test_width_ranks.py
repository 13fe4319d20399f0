"""Two real processes that search for widths in step, against one that does the same work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import batches, phase

from hwnas.atom_costs import CountCost
from hwnas.gate_costs import gate_costs
from hwnas.nn.blocks import Dropout
from hwnas.nn.gates import GatedNet
from hwnas.nn.shrink import importances
from hwnas.search.atom_projection import Limit
from hwnas.search.atom_training import AtomTraining
from hwnas.search.figs_training import FigsTraining
from hwnas.search.looks import Log
from hwnas.spaces import AtomSpace, GateSpace, find_space
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.optimizers import learning_rate
from hwnas.train.ranks import SOLO, Ranks
from hwnas.train.recipe import Atoms, Gates

STEPS, STOP = 12, 7


def atoms(ranks: Ranks = SOLO, log: Log | None = None) -> AtomTraining:
    """A training in which many atoms are dead at the first look, and which lands on half the MACs.

    What another rank makes of the budget and of the threshold is wrong, and must not matter.
    """
    space = find_space("atomnas-tiny", num_classes=3)
    assert isinstance(space, AtomSpace)
    net = space.build(space.supernet_arch, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for gamma in importances(net).values():
            gamma[::3] = 1e-5
    net.to(memory_format=torch.channels_last)
    cost = CountCost(space, "macs")
    limit = Limit(cost, (0.5 if ranks.leads else 0.9) * cost.total(space.full))
    settings = Atoms(ramp=0.0, penalty=1e-3, threshold=1e-3 if ranks.leads else 1e-30, delta=1e-6, land=0.75,
                     check_steps=4, control_steps=3, ema_decay=0.5)  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    return AtomTraining(space, net, optimizer, cost, (limit,), settings, STEPS, log=log, ranks=ranks)


def gates(ranks: Ranks = SOLO, log: Log | None = None) -> FigsTraining:
    """A search by gates for half the parameters; the other rank, wrongly, for a tenth."""
    space = find_space("figs-resnet50-tiny", num_classes=3)
    assert isinstance(space, GateSpace)
    plain = space.supernet(generator=torch.Generator().manual_seed(0))
    net = GatedNet(plain, space.input_shape, readable=space.readable, backward_tau=1.0)
    net.to(memory_format=torch.channels_last)
    cost = gate_costs(space, None)["params"]
    limit = Limit(cost, (0.5 if ranks.leads else 0.1) * cost.total(space.full))
    optimizer = torch.optim.SGD(net.net.parameters(), lr=1e-3, momentum=0.9)
    settings = Gates(control_steps=2, lr=10.0, ramp=0.0)
    return FigsTraining(space, net, optimizer, cost, (limit,), settings, STEPS, log=log, ranks=ranks)


MAKERS = {"atoms": atoms, "gates": gates}

SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from hwnas.progress import NullProgress
from hwnas.search.looks import Log
from hwnas.train import loop
from hwnas.train.checkpoint import CheckpointStore, tensors_of
from hwnas.train.ranks import joined_ranks
from tiny_training import batches, phase
import width_ranks as tests
out = Path(sys.argv[1])
loop.CHECKPOINT_INTERVAL_S, loop.LOG_STEPS = 0.0, 1
with joined_ranks() as ranks:
    for name, make in tests.MAKERS.items():
        def train(run, stop=None):
            log = Log(out / f"{name}-{run}.jsonl") if ranks.leads else None
            training = make(ranks, log)
            if not ranks.leads:  # what the others begin with must not matter
                with torch.no_grad():
                    for parameter in training.net.parameters():
                        parameter.add_(1.0)
            forward = getattr(training, "forward", lambda images, _: training.net(images))
            store = CheckpointStore(out / "checkpoints", f"{name}-{run}") if ranks.leads else None
            loop.train(training.net, batches(phase(steps=tests.STEPS, batch_size=8)), forward=forward,
                       progress=NullProgress(), description=name, store=store, stop_after=stop, ranks=ranks,
                       optimizer=training.optimizer, hooks=training)
            return training
        def keep(what, tensors):
            plain = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(plain, out / f"{name}-{what}-{ranks.rank}.safetensors")
        def everything(training):
            tensors = tensors_of(training.net, training.optimizer, training)
            return {key: t for key, t in tensors.items() if "running" not in key and not key.startswith("method")}
        one = train("one", 1)
        keep("gradients", {n: p.grad for n, p in one.net.named_parameters()})
        whole = train("whole")
        keep("whole", everything(whole))
        train("stopped", tests.STOP)
        keep("stopped", everything(train("stopped")))
        widths = whole.widths if name == "atoms" else whole.wanted()
        (out / f"{name}-{ranks.rank}.json").write_text(json.dumps([widths, whole._controller.log_factor]))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind: of one step, of a whole training, of one that was stopped and went on."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "script.py").write_text(SCRIPT)
    (out / "width_ranks.py").write_text(Path(__file__).read_text())
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(out)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(out / "script.py"), str(out)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return out


def left(two: Path, name: str, what: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(two / f"{name}-{what}-{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("name", list(MAKERS))
def test_gradients_are_those_of_one_process_with_two_groups(two: Path, name: str) -> None:
    first, second = left(two, name, "gradients")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)

    training, source = MAKERS[name](), batches(phase(steps=STEPS, batch_size=8))
    training.net.train()
    losses = []
    dropouts = [part for part in training.net.modules() if isinstance(part, Dropout)]
    for rank in range(2):
        part = source.part(Ranks(rank, 2))
        images, labels = part.at(0)
        for place, dropout in enumerate(dropouts):
            dropout.generator = torch_generator(step_rng(part.seed, part.of_rank(f"{part.stream} dropout {place}"), 0))
        scores = training.forward(images, 0) if isinstance(training, FigsTraining) else training.net(images)
        losses.append(torch.nn.functional.cross_entropy(scores, labels))
    torch.stack(losses).mean().backward()
    training.before_update(0, learning_rate(source.phase, 0))
    assert training.penalty > 0
    gradients = {key: parameter.grad for key, parameter in training.net.named_parameters()}
    assert gradients.keys() == first.keys()
    for key, gradient in gradients.items():
        assert gradient is not None
        assert float((first[key] - gradient).abs().max()) < 1e-5, key


@pytest.mark.parametrize("name", list(MAKERS))
def test_both_ranks_have_the_net_that_the_first_decided_on(two: Path, name: str) -> None:
    first, second = left(two, name, "whole")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    told = [json.loads((two / f"{name}-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert told[0][1] != 0  # the controller had its say
    if name == "atoms":
        rows = [json.loads(line) for line in (two / "atoms-whole.jsonl").read_text().splitlines()]
        assert rows[0]["removed"] > 100
        assert rows[-1]["projected"] > 0
        training = atoms()
        assert training.limits[0].met(told[0][0])


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_training_that_was_stopped_ends_in_the_same_weights_on_both(two: Path, name: str) -> None:
    for undisturbed, stopped in zip(left(two, name, "whole"), left(two, name, "stopped"), strict=True):
        assert undisturbed.keys() == stopped.keys()
        assert all(torch.equal(undisturbed[key], stopped[key]) for key in undisturbed)
    logs = [(two / f"{name}-{run}.jsonl").read_text() for run in ("whole", "stopped")]
    assert logs[0] == logs[1]
