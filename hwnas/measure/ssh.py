"""Devices that are elsewhere: ``ssh://[USER@]HOST[:PORT]``, reached through the user's own ssh.

Passwords, keys and host keys are ssh's affair: it never asks (BatchMode), and a host that it does not know is an error.
The variable HWNAS_SSH is the command, "ssh" unless it is set; HWNAS_REMOTE_PYTHON the Python there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import Any

from hwnas.errors import HwnasError, UsageError
from hwnas.measure.far import PROTOCOL

HOST = r"^(ssh://([A-Za-z0-9_][A-Za-z0-9._-]*@)?([A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?)?$"
"""A host as a profile names it; no part can be taken for an option of ssh."""

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Before each attempt to reach a host again that was lost."""

SILENCE_S = 20.0
"""ssh gives a link up that was silent for so long."""

VENV = "$HOME/.hwnas/bin/python"
"""Tried first where no Python is named, then python3."""

_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3", "LogLevel=ERROR",
            "ClearAllForwardings=yes", "ForwardAgent=no", "RemoteCommand=none", "RequestTTY=no")  # fmt: skip

_BOOT = """import json, sys
sys.path = [p for p in sys.path if p]
try:
    if sys.version_info < (3, 11): raise ImportError("Python %d.%d" % sys.version_info[:2])
    from hwnas.measure.far import main
except ImportError as error:
    print(json.dumps({"missing": str(error), "python": sys.executable}))
else:
    main(sys.argv[1])
"""


def split_address(text: str) -> tuple[str, str, str]:
    """(host, profile, Python there) of ``ssh://HOST/PROFILE?python=PATH``; what is left out is empty.

    Raises:
        UsageError: it is no such address.
    """
    from urllib.parse import unquote

    address, _, query = text.partition("?")
    head, _, profile = address.removeprefix("ssh://").partition("/")
    host = f"ssh://{head}"
    key, _, python = query.partition("=")
    if ":" in head.rpartition("@")[0]:
        raise UsageError("an ssh:// device takes no password: ssh has keys and an agent for that")
    if not head or not re.match(HOST, host) or (query and (key != "python" or not python)):
        raise UsageError(f"{text!r} is no device: write ssh://[USER@]HOST[:PORT]/PROFILE, and ?python=PATH if need be")
    return host, profile, unquote(python)


def command(host: str, python: str, token: str) -> tuple[str, ...]:
    """The local command whose stdin and stdout are those of the far end."""
    match = re.match(HOST, host)
    if not host or match is None:
        raise UsageError(f"{host!r} is no host: write ssh://[USER@]HOST[:PORT]")
    user, name, port = match[2], match[3].strip("[]"), match[4]
    try:
        ssh = shlex.split(os.environ.get("HWNAS_SSH") or "ssh")
    except ValueError as error:
        raise UsageError(f"HWNAS_SSH is no command: {error}") from None
    options = [word for option in _OPTIONS for word in ("-o", option)]
    options += ["-l", user[:-1]] if user else []
    options += ["-p", port[1:]] if port else []
    return (*ssh, "-T", *options, "--", name, _there(python or os.environ.get("HWNAS_REMOTE_PYTHON", ""), token))


def _there(python: str, token: str) -> str:
    """What the login shell there runs, whichever shell it is."""
    tail = f"-c {shlex.quote(_BOOT)} {shlex.quote(token)}"
    # ssh starts in the home folder
    pythons = shlex.quote(python.removeprefix("~/")) if python else f'"{VENV}" python3'
    script = f'for p in {pythons}; do command -v "$p" >/dev/null 2>&1 && exec "$p" {tail}; done; exit 127'
    return f"exec sh -c {shlex.quote(script)}"


def greeting(line: bytes) -> dict[str, Any] | None:
    """The far end's first line; None for what a shell's start-up files print before it."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and ("protocol" in said or "missing" in said) else None


def check_greeting(said: dict[str, Any], host: str) -> None:
    """Raises:
    HwnasError: what is there cannot measure; it says the command that mends it.
    """
    from hwnas import __version__

    python = str(said.get("python", "python"))[:200]
    if "missing" in said:
        missing = str(said["missing"])[:200]
        if missing.startswith("Python "):
            raise HwnasError(f"{host} has {missing}: hwnas needs 3.11 or newer there; name one with ?python=PATH")
        raise HwnasError(
            f"{host}: {missing}; install hwnas there: python3 -m venv ~/.hwnas && ~/.hwnas/bin/pip install "
            f"hwnas=={__version__} (or its wheel), or name the Python that has it ({python} has not) with ?python=PATH"
        )
    if said["hwnas"] != __version__ or said["protocol"] != PROTOCOL:  # it would measure otherwise
        raise HwnasError(
            f"{host} has hwnas {str(said['hwnas'])[:20]}, and {__version__} is here: there, run "
            f"{shlex.quote(python)} -m pip install hwnas=={__version__}"
        )


def why_not(host: str, code: int | None, words: str) -> str:
    """One line for an ssh that ended before anything was said there."""
    name = host.removeprefix("ssh://")
    if code == 127:
        return f"{host} has no such Python: install python3 there, or name one with ?python=PATH or HWNAS_REMOTE_PYTHON"
    hints = {
        "host key": f"ssh does not trust {name} yet: connect once with 'ssh' by hand",
        "permission denied": f"{name} refuses the key: does 'ssh -o BatchMode=yes' to it work by hand?",
        "could not resolve": f"nobody knows the host {name}: check its name, or ~/.ssh/config",
        "refused": f"no ssh server answers at {name}: is it running, is the port right?",
    }
    hint = next((hint for sign, hint in hints.items() if sign in words.lower()), f"cannot reach {name}")
    return f"{hint} ({words.strip(': ') or 'ssh said nothing'})"
