"""A real sshd on loopback, with keys and a configuration of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from quick import wait_until

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Sshd:
    """The server; its folder holds keys, and ``ssh -F config`` reaches it as ``board``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        host_key = (folder / "host.pub").read_text()
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "tmp").mkdir()
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPasswordAuthentication no\n"
            f"SetEnv TMPDIR={folder}/tmp\n"  # a lock of the device for this server: other tests measure it too
        )
        (folder / "config").write_text(
            f"Host board\n HostName 127.0.0.1\n Port {self.port}\nHost *\n IdentityFile {folder}/user\n"
            f" IdentitiesOnly yes\n IdentityAgent none\n UserKnownHostsFile {folder}/known\n"
            " GlobalKnownHostsFile /dev/null\n"
        )
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What hwnas needs to reach it, and to find this very Python there."""
        return {
            "HWNAS_SSH": f"ssh -F {self.folder}/config",
            "HWNAS_REMOTE_PYTHON": sys.executable,
            "TMPDIR": str(self.folder / "tmp"),
        }

    def start(self) -> None:
        assert SSHD is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        log = str(self.folder / "log")
        self._server = subprocess.Popen([SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", log],
                                        start_new_session=True)  # fmt: skip
        wait_until(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def sessions(self) -> list[int]:
        """Processes of the server that hold a connection."""
        assert self._server is not None
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text().split()
        return [int(child) for child in children]

    def drop(self) -> None:
        """Cuts every connection; the server goes on."""
        for pid in self.sessions():
            os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Lets every connection stand there in silence; the server goes on."""
        for pid in self.sessions():
            os.kill(pid, signal.SIGSTOP)

    def stop(self) -> None:
        """Ends the server and every connection."""
        if self._server is not None:
            self.drop()
            self._server.kill()
            self._server.wait()
            self._server = None


@contextmanager
def running(folder: Path) -> Iterator[Sshd]:
    if SSHD is None:
        pytest.skip("no sshd: apt-get install openssh-server")
    server = Sshd(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
