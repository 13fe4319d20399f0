"""Devices that are elsewhere, over a real sshd on loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from command import Hwnas
from measure.sshd import Sshd, running
from quick import alive, quick_profile, tiny_network, wait_until

import hwnas as hwnas_package
from hwnas import __version__
from hwnas.devices import find_profile
from hwnas.errors import HwnasError, UsageError
from hwnas.latency.table import LatencyTable
from hwnas.measure import ssh
from hwnas.measure.link import MeasurementError
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.process import MeasuringProcess, Subject

pytestmark = pytest.mark.usefixtures("own_lock")

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


def test_dropped_links(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
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
        (worker,) = _workers(process)
        os.kill(worker, signal.SIGKILL)  # the worker's own end is not the link's
        wait_until(lambda: not _workers(process))
        with pytest.raises(MeasurementError, match=r"took the measuring process down \(killed by SIGKILL") as caught:
            process.time_ms(SUBJECT, 1)
        assert caught.value.process_died
        assert len(process.time_ms(SUBJECT, 2)[1]) == 2
        large = np.zeros((1, 3, 1024, 1024), np.float32)  # 12 MB through ssh, which splits them as it likes
        with pytest.raises(MeasurementError, match=r"shape|dimension"):
            process.run(SUBJECT, large)
        assert process.run(SUBJECT, np.ones((1, 3, 8, 8), np.float32)).shape == (1, 4)
        server.stop()
        with pytest.raises(HwnasError, match=r"stays out of reach .* the same command goes on"):
            process.time_ms(SUBJECT, 1)
        server.start()


def test_a_link_that_falls_silent(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody closes it: ssh notices, and what still holds the device there is ended before it is measured on anew."""
    monkeypatch.setattr(ssh, "PAUSES_S", (0.1, 0.2, 0.5))
    monkeypatch.setenv(
        "HWNAS_SSH", f"{server.variables['HWNAS_SSH']} -o ServerAliveInterval=1 -o ServerAliveCountMax=1"
    )
    with MeasuringProcess(quick_profile().override(host="ssh://board")) as process:
        assert process.time_ms(SUBJECT, 2)
        former = _workers(process)
        server.freeze()
        assert len(process.time_ms(SUBJECT, 3)[1]) == 3
        assert len(former) == 1
        assert _workers(process) != former
        assert not alive(former[0])


def test_what_stands_in_the_way_is_one_line(server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(address: str, **variables: str) -> str:
        with monkeypatch.context() as patch, pytest.raises(HwnasError) as caught:  # noqa: PT012
            for name, value in variables.items():
                patch.setenv(name, value)
            with MeasuringProcess(find_profile(address)):
                pass
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "nobody knows the host" in says("ssh://no-such-host.invalid/cpu")
    assert "refused" in says("ssh://127.0.0.1:1/cpu")
    assert "no such Python" in says("ssh://board/cpu?python=/no/python")
    assert "HWNAS_SSH" in says("ssh://board/cpu", HWNAS_SSH="/no/ssh")
    known, mine = (server.folder / "known").read_text(), (server.folder / "authorized").read_text()
    (server.folder / "known").write_text("")
    assert "does not trust" in says("ssh://board/cpu")
    (server.folder / "known").write_text(known)
    (server.folder / "authorized").write_text("")
    assert "refuses the key" in says("ssh://board/cpu")
    typed = Hwnas(tmp_path)("profile", "--device", "ssh://board/cpu", "--space", "proxyless-tiny",
                          env=server.variables)  # fmt: skip
    assert (typed.code, "refuses the key" in typed.error) == (1, True)
    assert not list(tmp_path.glob("tables/*"))
    (server.folder / "authorized").write_text(mine)


def test_a_host_without_hwnas_or_with_another_one(server: Sshd, tmp_path: Path) -> None:
    hwnas = Hwnas(tmp_path)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    variables = {**server.variables, "HWNAS_REMOTE_PYTHON": str(bare / "bin" / "python")}
    absent = hwnas("devices", "--self-test", "ssh://board/cpu", env=variables).error
    assert "No module named 'hwnas'" in absent
    assert "install hwnas there: " in absent
    listed = hwnas("devices", "ssh://board", env=variables).error  # the same for every profile: said once
    assert "install hwnas there: " in listed

    # an older hwnas there: this one's files, with the version of another
    old = tmp_path / "old"
    shutil.copytree(Path(hwnas_package.__file__).parent, old / "hwnas", ignore=shutil.ignore_patterns("__pycache__"))
    init = old / "hwnas" / "__init__.py"
    init.write_text(init.read_text().replace(__version__, "0.0.1"))
    (site,) = bare.glob("lib/python3*/site-packages")
    (site / "old.pth").write_text(f"{old}\n{Path(np.__file__).parent.parent}\n")
    other = hwnas("devices", "--self-test", "ssh://board/cpu", env=variables).error
    assert f"has hwnas 0.0.1, and {__version__} is here" in other
    assert f"pip install hwnas=={__version__}" in other


def test_a_profile_survives_what_happens_to_the_connection(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "quick.toml").write_text(PROFILE)
    hwnas = Hwnas(tmp_path)
    table = tmp_path / "far.lut"
    command = ("profile", "--device", "ssh://board/./quick.toml", "--space", "proxyless-tiny", "--lut", table)
    environment = hwnas.environment(server.variables)
    log = tmp_path / "log"
    with log.open("wb") as output:
        started = subprocess.Popen(hwnas.argv(*command), cwd=tmp_path, env=environment, stderr=output, stdout=output)
        wait_until(lambda: _visits(table) >= 5 or started.poll() is not None, 120)
        server.drop()  # the connection only
        wait_until(lambda: _visits(table) >= 20 or started.poll() is not None, 120)
        server.stop()  # the server: nobody answers for a while
        wait_until(lambda: "again in 2 s" in log.read_text() or started.poll() is not None, 120)
        before = _visits(table)
        server.start()
        wait_until(lambda: _visits(table) >= before + 20 or started.poll() is not None, 120)
        assert started.poll() is None, log.read_text()
        started.kill()  # and at last the command itself
        started.wait()
    before = _visits(table)
    document = hwnas(*command, "--json", env=server.variables).document
    assert document["failed"] == 0
    assert _visits(table) > before >= 40
    with LatencyTable.open(table) as found:
        assert found.header["profile"]["host"] == "ssh://board"
        assert "python" not in found.header["profile"]
    again = hwnas(*command, "--json", env=server.variables).document
    assert again["measured"] == 0
    assert again["reused"] == again["entries"] == document["entries"]
    # complete, and nothing was measured twice for what happened
    here = hwnas("profile", "--device", "./quick.toml", "--space", "proxyless-tiny", "--lut", "near.lut", "--json",
                 env=server.variables).document  # fmt: skip
    assert here["entries"] == again["entries"]
    assert _measured(tmp_path / "near.lut") == _measured(table)


def _workers(process: MeasuringProcess) -> list[int]:
    """The far workers of this very connection."""
    (token,) = re.findall(r"[0-9a-f]{32}", process._link.command[-1])
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"--far" in words and token.encode() in words:
                found.append(int(folder.name))
    return found


def _visits(path: Path) -> int:
    if not path.is_file():
        return 0
    with LatencyTable.open(path) as table:
        return int(table.fingerprint.split("-")[1])


def _measured(path: Path) -> dict[str, int]:
    """How often each entry was visited; the reference, which every start measures anew, left out."""
    with closing(sqlite3.connect(path)) as database:
        return dict(database.execute(
            "SELECT role || ' ' || name, count(*) FROM visits JOIN entries ON entry = entries.id "
            "WHERE role <> 'reference' GROUP BY entries.id"))  # fmt: skip
