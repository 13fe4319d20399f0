"""Devices that are elsewhere, over a real sshd on loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import pytest
from command import Hwnas
from measure.sshd import Sshd, running
from quick import quick_profile, tiny_network

from hwnas.devices import find_profile
from hwnas.errors import HwnasError, UsageError
from hwnas.latency.table import LatencyTable
from hwnas.measure import ssh
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.process import MeasurementError, MeasuringProcess, Subject

PROFILE = """name = "quick"
runtime = "onnxruntime"
device = "cpu"
[timing]
min_passes = 2
max_passes = 2
runs = 1
min_run_ms = 0.01
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    with running(folder) as found:
        for name, value in found.variables.items():
            monkeypatch.setenv(name, value)
        yield found


SUBJECT = Subject("tiny", "network", lambda: network_to_onnx(tiny_network()))


@pytest.mark.parametrize(
    ("text", "host", "name", "python"),
    [
        ("ssh://jetson/cpu", "ssh://jetson", "cpu", ""),
        ("ssh://jetson", "ssh://jetson", "cpu", ""),
        (
            "ssh://me@10.0.0.7:2222/openvino?python=~/v/bin/python",
            "ssh://me@10.0.0.7:2222",
            "openvino",
            "~/v/bin/python",
        ),
        ("ssh://[fe80::1]:22/cpu", "ssh://[fe80::1]:22", "cpu", ""),
    ],
)
def test_addresses(text: str, host: str, name: str, python: str) -> None:
    profile = find_profile(text)
    assert (profile.host, profile.name, profile.python) == (host, name, python)


@pytest.mark.parametrize(
    "text",
    ["ssh:///cpu", "ssh://-oProxyCommand=id/cpu", "ssh://a b/cpu", "ssh://me:secret@host/cpu", "ssh://h/cpu?pyton=x",
     "ssh://h;id/cpu", "ssh://-x@h/cpu", "ssh://h\n/cpu"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        find_profile(text)


def test_a_hostile_python_is_one_word_of_no_shell(tmp_path: Path) -> None:
    script = ssh._there("x; touch owned #'\"$(touch owned)", "token").removeprefix("exec ")
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True)
    assert done.returncode == 127
    assert not list(tmp_path.iterdir())


def test_dropped_and_hanging_links(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "PAUSES_S", (0.1, 0.2, 0.5))
    profile = quick_profile().override(host="ssh://board")
    with MeasuringProcess(profile) as process:
        assert len(process.time_ms(SUBJECT, 3)[1]) == 3
        here = dict(process.describe)
        server.drop()
        assert len(process.time_ms(SUBJECT, 2)[1]) == 2
        assert process.describe == here
        broken = Subject("broken", "network", lambda: b"no model")
        with pytest.raises(MeasurementError) as caught:  # the operator's own failure stays one
            process.time_ms(broken, 1)
        assert not caught.value.process_died
        server.stop()
        with pytest.raises(HwnasError, match=r"stays out of reach .* the same command goes on"):
            process.time_ms(SUBJECT, 1)
        server.start()


def test_what_stands_in_the_way_is_one_line(server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hwnas = Hwnas(tmp_path)

    def says(address: str, **variables: str) -> str:
        finished = hwnas("devices", "--self-test", address, env={**server.variables, **variables})
        assert finished.code == 1
        return finished.error

    assert "nobody knows the host" in says("ssh://no-such-host.invalid/cpu")
    assert "refused" in says("ssh://127.0.0.1:1/cpu")
    assert "no such Python" in says("ssh://board/cpu?python=/no/python")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    assert "install hwnas there" in says("ssh://board/cpu", HWNAS_REMOTE_PYTHON=str(bare / "bin" / "python"))
    (server.folder / "known").write_text("")
    assert "does not trust" in says("ssh://board/cpu")
    shutil.copy(server.folder / "known", server.folder / "authorized")


def test_a_profile_survives_what_happens_to_the_connection(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "quick.toml").write_text(PROFILE)
    hwnas = Hwnas(tmp_path)
    command = ("profile", "--device", "ssh://board/./quick.toml", "--space", "proxyless-tiny", "--lut", "far.lut")
    environment = hwnas.environment(server.variables)
    log = (tmp_path / "log").open("wb")
    started = subprocess.Popen(hwnas.argv(*command), cwd=tmp_path, env=environment, stderr=log, stdout=log)
    with log:
        _wait_for_visits(tmp_path / "far.lut", 5)
        server.drop()
        sleep(0.2)
        _wait_for_visits(tmp_path / "far.lut", 40)
        started.kill()
        started.wait()
    with LatencyTable.open(tmp_path / "far.lut") as table:
        before = table.fingerprint.split("-")[1]
    document = hwnas(*command, "--json", env=server.variables).document
    assert document["failed"] == 0
    assert document["entries"] > 0
    with LatencyTable.open(tmp_path / "far.lut") as table:
        assert int(table.fingerprint.split("-")[1]) > int(before) >= 40
        assert table.header["profile"]["host"] == "ssh://board"
        assert "python" not in table.header["profile"]
    again = hwnas(*command, "--json", env=server.variables).document
    assert again["measured"] == 0


def _wait_for_visits(path: Path, count: int) -> None:
    for _ in range(600):
        if path.is_file():
            with LatencyTable.open(path) as table:
                if int(table.fingerprint.split("-")[1]) >= count:
                    return
        sleep(0.1)
    raise AssertionError((path.parent / "log").read_text())
