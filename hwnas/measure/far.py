"""The far end of an ssh pipe: starts the worker, and says how it ended.

ssh itself says only that a connection is over. So a worker that died is reported in a last line of its own: an end
without that line is the link's, and never the fault of what was being measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PROTOCOL = 2
"""Changes when a far end of the same version would misunderstand what it is asked: between two checkouts."""


def main(token: str) -> None:
    """Greets, ends what an earlier connection with the same token left behind, and serves."""
    from hwnas import __version__
    from hwnas.measure.child import how_it_ended
    from hwnas.measure.hardware import quiet_environment
    from hwnas.memory import all_memory_bytes, free_memory_bytes

    end_former(token)
    greeting = {
        "hwnas": __version__,
        "protocol": PROTOCOL,
        "python": sys.executable,
        "memory": all_memory_bytes(),
        "free_memory": free_memory_bytes(),
        "load": list(os.getloadavg()),
    }
    print(json.dumps(greeting), flush=True)  # noqa: T201 (stdout is the pipe)
    command = [sys.executable, "-m", "hwnas.measure.worker", "--far", token]
    code = subprocess.Popen(command, env=quiet_environment()).wait()
    if code:
        with contextlib.suppress(OSError):
            print("\n" + json.dumps({"died": how_it_ended(code)}), flush=True)  # noqa: T201


def end_former(token: str) -> None:
    """Ends this user's processes of an earlier connection that the network lost without telling this machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if folder.stat().st_uid == os.getuid() and token.encode() in words:
                os.kill(pid, signal.SIGKILL)
