"""What a training asks of its process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys

import torch

from hwnas.train.process import prepare_process

if sys.argv[1] == "prepared":
    prepare_process(1)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), torch.nn.ReLU(), torch.nn.Conv2d(32, 4, 1))
images = torch.zeros(5, 3, 256, 256)  # 40 MiB behind the first layer: more than what glibc learns not to map
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(images).sum().backward()
    net.zero_grad()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[6:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what another C library does is left alone")
def test_the_second_step_finds_the_memory_of_the_first() -> None:
    def faults(kind: str) -> int:
        command = [sys.executable, "-c", FAULTS, kind]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("plain") > 5000
    assert faults("prepared") < 100
