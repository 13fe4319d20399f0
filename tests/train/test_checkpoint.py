"""Checkpoints: by name, atomic, and never trusted when damaged."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from hwnas.errors import HwnasError
from hwnas.train.checkpoint import CheckpointStore, disk_errors


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


def stepped(module: nn.Module, value: float) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()
    return optimizer


def test_weights_and_optimizer_come_back_by_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "supernet")
    module = net()
    optimizer = stepped(module, 0.5)
    store.save(7, module, optimizer)
    other = net()
    reordered = torch.optim.AdamW(list(other.parameters())[::-1], lr=0.1, fused=True)
    assert store.load(other, reordered) == 7
    for first, second in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)
        for key, value in optimizer.state[first].items():
            assert torch.equal(value, reordered.state[second][key])
            assert value.stride() == reordered.state[second][key].stride()


def test_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "supernet")
    module = net()
    optimizer = stepped(module, 0.5)
    for step in (1, 2, 3):
        store.save(step, module, optimizer)
    assert [path.stem[-1] for path in store.paths()] == ["3", "2"]
    newest, older = store.paths()
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1  # one bit of one weight
    newest.write_bytes(bytes(data))
    assert store.load(net(), optimizer) == 2
    newest.write_bytes(bytes(data[:100]))
    assert store.load(module, optimizer) == 2
    older.write_bytes(b"")
    with pytest.raises(HwnasError, match=r"is damaged .* remove .* to begin again"):
        store.load(module, optimizer)


def test_another_net_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "supernet")
    store.save(1, net(), stepped(net(), 0.5))
    other = nn.Linear(3, 3)
    with pytest.raises(HwnasError, match="of another net"):
        store.load(other, stepped(other, 0.5))


def test_nothing_there_is_step_zero(tmp_path: Path) -> None:
    module = net()
    assert CheckpointStore(tmp_path / "none", "supernet").load(module, stepped(module, 0.5)) == 0


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(HwnasError, match=r"full: make room .* nothing that was finished is lost"),
        disk_errors(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(HwnasError, match="choose another --out"), disk_errors(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")
