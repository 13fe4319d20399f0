"""Two real processes that train together, against one that does the same work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import SPACE, batches, phase, supernet

from hwnas.errors import HwnasError
from hwnas.train.paths import uniform_paths
from hwnas.train.ranks import SOLO, Ranks

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from hwnas.progress import NullProgress
from hwnas.train import loop
from hwnas.train.ranks import joined_ranks
from tiny_training import batches, phase, supernet
out, steps = Path(sys.argv[1]), int(sys.argv[2])
loop.CHECKPOINT_INTERVAL_S = 0.0
with joined_ranks() as ranks:
    net = supernet()
    if not ranks.leads:  # what the others begin with must not matter
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1.0)
    store = loop.CheckpointStore(out / "checkpoints", "supernet") if ranks.leads else None
    metrics = loop.MetricsLog(out / "metrics.csv") if ranks.leads else None
    stop = steps if steps > 0 else None
    loop.train_supernet(net, batches(phase(steps=20)), progress=NullProgress(), store=store, metrics=metrics,
                        stop_after=stop, ranks=ranks)
    gradients = {n: p.grad.contiguous() for n, p in net.named_parameters() if p.grad is not None}
    weights = {n: p.detach().contiguous() for n, p in net.named_parameters()}
    save_file({**{f"g/{n}": t for n, t in gradients.items()}, **{f"w/{n}": t for n, t in weights.items()}},
              out / f"rank{ranks.rank}.safetensors")
"""


def torchrun(out: Path, steps: int = 0) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    out.mkdir(exist_ok=True)
    script = out / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run(
        [*command, str(out), str(steps)], env=environment, capture_output=True, text=True, timeout=200
    )


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training by two processes that was stopped after one step."""
    out = tmp_path_factory.mktemp("ranks") / "two"
    done = torchrun(out, steps=1)
    assert done.returncode == 0, done.stderr
    return out


def test_gradients_are_those_of_one_process_with_two_groups(one_step: Path) -> None:
    first, second = (load_file(one_step / f"rank{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    net, source = supernet(), batches(phase(steps=20))
    net.to(memory_format=torch.channels_last).train()
    genes = uniform_paths(SPACE, source.seed)(0)
    losses = []
    for rank in range(2):
        images, labels = source.part(Ranks(rank, 2)).at(0)
        losses.append(torch.nn.functional.cross_entropy(net(images, genes), labels))
    torch.stack(losses).mean().backward()
    gradients = {f"g/{name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert gradients.keys() == {name for name in first if name.startswith("g/")}
    assert max(float((first[name] - value).abs().max()) for name, value in gradients.items()) < 1e-5


@pytest.mark.slow
def test_a_resumed_training_ends_in_the_same_weights_and_one_process_writes(one_step: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(one_step, stopped)
    undisturbed = tmp_path / "undisturbed"
    assert torchrun(undisturbed).returncode == 0
    assert torchrun(stopped).returncode == 0
    for rank in range(2):
        expected, found = (load_file(run / f"rank{rank}.safetensors") for run in (undisturbed, stopped))
        weights = [name for name in expected if name.startswith("w/")]
        assert all(torch.equal(expected[name], found[name]) for name in weights)
    assert [line.split(",")[0] for line in (undisturbed / "metrics.csv").read_text().splitlines()] == [
        "step",
        "10",
        "20",
    ]


def test_a_batch_is_cut_into_equal_parts_or_refused() -> None:
    source = batches(phase(batch_size=6))
    whole = set(source.at(0)[1].tolist())
    parts = [source.part(Ranks(rank, 3)).at(0)[1] for rank in range(3)]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert {int(label) for part in parts for label in part} == whole
    with pytest.raises(HwnasError, match="a batch of 6 cannot be divided among 4 processes"):
        source.part(Ranks(0, 4))
    with pytest.raises(HwnasError, match="at least two images"):
        source.part(Ranks(0, 6))


def test_one_process_alone_says_things_to_itself() -> None:
    assert SOLO.tell({"a": 1}) == {"a": 1}
    assert SOLO.gather([1]) == [[1]]
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(SOLO.mean(values), values)
    assert SOLO.leads
