"""Training: what a step touches, and a kill at any moment."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import SPACE, batches, phase, supernet

from hwnas.errors import HwnasError
from hwnas.progress import NullProgress
from hwnas.train.checkpoint import CheckpointStore, read_tensors
from hwnas.train.loop import train_supernet
from hwnas.train.metrics import MetricsLog
from hwnas.train.optimizers import learning_rate, make_optimizer
from hwnas.train.paths import uniform_paths


def test_batches_are_functions_of_their_step() -> None:
    source = batches(phase())
    images, labels = source.at(11)
    source.at(3)
    again, same_labels = source.at(11)
    assert torch.equal(images, again)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(images, batches(phase(), seed=1).at(11)[0])


def test_an_epoch_shows_every_image_at_most_once() -> None:
    source = batches(phase(crop_padding=0, flip=False))
    assert source.per_epoch == 7
    shown = [image.numpy().tobytes() for step in range(7) for image in source.at(step)[0]]
    assert len(set(shown)) == len(shown) == 28


def test_paths_are_uniform_and_depend_on_seed_and_step_only() -> None:
    paths = [uniform_paths(SPACE, 0)(step) for step in range(2000)]
    assert paths[:5] == [uniform_paths(SPACE, 0)(step) for step in range(5)]
    for slot, choices in enumerate(SPACE.slots):
        for gene in range(len(choices)):
            share = sum(path[slot] == gene for path in paths) / 2000
            assert share == pytest.approx(1 / len(choices), abs=0.04)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_choices_that_the_path_left_out_do_not_move(optimizer: str) -> None:
    """Neither gradient nor momentum nor weight decay: after a step along one path and a step along another, what only
    the first has is as the first step left it, and what neither has is as it was."""
    net = SPACE.supernet(generator=torch.Generator().manual_seed(0))
    recipe = phase(optimizer=optimizer, lr=0.1, weight_decay=0.5, warmup_steps=0)
    optim = make_optimizer(net, recipe)
    images, labels = batches(recipe).at(0)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}

    def step(gene: int) -> dict[str, torch.Tensor]:
        optim.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(images, [gene] * len(SPACE.slots)), labels).backward()
        optim.step()
        return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}

    first = step(0)
    second = step(1)
    choice = SPACE.slots[0][0]
    untouched = [n for n in before if n.startswith("slots.") and n.split(".")[2] not in SPACE.slots[0][:2]]
    assert untouched
    assert all(torch.equal(before[name], second[name]) for name in untouched)
    of_first = [n for n in before if n.startswith("slots.") and n.split(".")[2] == choice and n.endswith("conv.weight")]
    assert any(not torch.equal(before[name], first[name]) for name in of_first)
    assert all(torch.equal(first[name], second[name]) for name in of_first)


def test_weight_decay_is_for_weights_of_two_dimensions_or_more() -> None:
    groups = make_optimizer(supernet(), phase(weight_decay=0.3)).param_groups
    assert {(group["weight_decay"], parameter.ndim >= 2) for group in groups for parameter in group["params"]} == {
        (0.3, True),
        (0.0, False),
    }


def test_learning_rates() -> None:
    linear = phase(schedule="linear", steps=100, warmup_steps=9, lr=1.0)
    assert learning_rate(linear, 0) == pytest.approx(0.1)
    assert learning_rate(linear, 9) == 1.0
    assert learning_rate(linear, 99) == pytest.approx(1 / 91)
    cosine = phase(schedule="cosine", steps=100, warmup_steps=0, lr=1.0)
    assert learning_rate(cosine, 50) == pytest.approx(0.5)
    assert learning_rate(cosine, 99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


def test_a_loss_that_is_no_number_is_said_and_never_saved(tmp_path: Path) -> None:
    source = batches(phase(lr=1e30, warmup_steps=0, optimizer="sgd"))
    with pytest.raises(HwnasError, match=r"the loss became (nan|inf) at step [23] .*it has no checkpoint yet"):
        train_supernet(supernet(), source, progress=NullProgress(), store=CheckpointStore(tmp_path, "supernet"))
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    """The last loss is a number; the update after it makes infinite weights."""
    source = batches(phase(lr=1e38, weight_decay=1e3, warmup_steps=0, optimizer="sgd", steps=1))
    with pytest.raises(HwnasError, match="a weight is not a number after step 1"):
        train_supernet(supernet(), source, progress=NullProgress(), store=CheckpointStore(tmp_path, "supernet"))
    assert not list(tmp_path.iterdir())


def test_a_training_that_breaks_later_keeps_its_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.train.loop.CHECKPOINT_INTERVAL_S", 0.0)
    store, net = CheckpointStore(tmp_path, "supernet"), supernet()
    recipe = phase(steps=40, optimizer="sgd", warmup_steps=0)
    train_supernet(net, batches(recipe), progress=NullProgress(), store=store, stop_after=20)
    good = store.paths()[0].read_bytes()
    broken = batches(recipe.model_copy(update={"lr": 1e38}))
    with pytest.raises(HwnasError, match=r"at step 2[0-9] .*the checkpoint of step 20 is kept"):
        train_supernet(supernet(), broken, progress=NullProgress(), store=store)
    assert store.paths()[0].read_bytes() == good


def test_a_torn_last_row_is_not_joined_to_the_next(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.csv")
    log.resume(0)
    log.add(10, 1.5, 0.1, 2.0)
    with log.path.open("a") as file:
        file.write("20,1.4")
    assert log.resume(10) == 2.0
    log.add(20, 1.25, 0.1, 4.0)
    assert log.path.read_text() == "step,loss,lr,seconds\n10,1.5,0.1,2.0\n20,1.25,0.1,4.0\n"


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from hwnas.train import loop
from tiny_training import batches, phase, supernet
loop.CHECKPOINT_INTERVAL_S = 0.0
out = Path(sys.argv[1])
from hwnas.progress import NullProgress
store = loop.CheckpointStore(out / "checkpoints", "supernet")
metrics = loop.MetricsLog(out / "metrics.csv")
loop.train_supernet(supernet(), batches(phase(steps=60)), progress=NullProgress(), store=store, metrics=metrics)
"""


def start(out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], env=environment)


@pytest.mark.slow
def test_killed_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed).wait(300) == 0
    process = start(killed)
    checkpoints = CheckpointStore(killed / "checkpoints", "supernet")
    while not checkpoints.paths():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert int(checkpoints.paths()[0].stem[-9:]) < 60
    assert start(killed).wait(300) == 0
    expected, step = read_tensors(CheckpointStore(undisturbed / "checkpoints", "supernet").paths()[0])
    found, same_step = read_tensors(checkpoints.paths()[0])
    assert step == same_step == 60
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    logs = [MetricsLog(folder / "metrics.csv").rows() for folder in (undisturbed, killed)]
    assert [row[0] for row in logs[0]] == ["10", "20", "30", "40", "50", "60"]
    assert [row[:3] for row in logs[0]] == [row[:3] for row in logs[1]]
