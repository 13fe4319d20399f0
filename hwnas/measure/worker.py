"""The measuring process: owns the runtime, reads requests and answers them, one JSON document a line.

Run as ``python -m hwnas.measure.worker``. It imports no torch. Requests carry ``do`` and what it needs; a request with
``payload`` is followed by so many bytes, as they are: a model of 20 MB as text takes longer than loading it.

=========  ==============================================  =====================================
do         with                                            answers
=========  ==============================================  =====================================
open       runtime, options, lock (a device, or none)      describe: what a table is bound to
load       name, role, min_run_ms; payload: the model,     repeats, memory_bytes
           or its outline (`hwnas.measure.outlines`)
time       name, runs                                      samples_ms; state: of the device
kernels    name, runs                                      kernels: node, kind, shapes and samples_ms of each;
                                                           state
run        name, shape; payload: the image, float32        shape, output (base64 float32)
unload     name
=========  ==============================================  =====================================

Roles are operator, network and kernels.

An answer is ``{"ok": true, …}`` or ``{"ok": false, "error": "…"}``; that to ``open`` has ``fix`` too, a command, where
the runtime is not installed, and ``busy`` where another process holds the lock. With ``full`` true it is the disk for
temporary files that is at fault, not the model. Far from the one who asks (``--far``), ``{"got": true}`` comes before
each answer: from there on a time is the model's, not the wire's. An option ``threads`` of 0 is all cores. The process
ends when its input does, even while a model that hangs is being run, so that it never outlives the one who asked.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import select
import sys
import threading
import time
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from hwnas.measure.outlines import filled
from hwnas.measure.runtimes import INSTALL, RUNTIMES
from hwnas.measure.runtimes.base import KernelClock, Runtime, Session
from hwnas.measure.runtimes.scratch import FULL

PRIORITY = -10
GRACE_S = 2.0
"""How long after its input was closed the process may still be busy."""


class Worker:
    """Answers requests with one runtime and the sessions that were loaded into it."""

    def __init__(self) -> None:
        self.runtime: Runtime | None = None
        self.sessions: dict[str, Session] = {}
        self.clocks: dict[str, KernelClock] = {}
        self.lock: object | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; a failure of the runtime is an answer too."""
        try:
            return {"ok": True, **getattr(self, f"do_{request['do']}")(request)}
        except OSError as error:
            return {"ok": False, "error": " ".join(str(error).split())[:500], "full": error.errno in FULL}
        except Exception as error:  # the runtime's errors have no common type, and each is that operator's failure
            if self.runtime is not None and (why := self.runtime.broken()):  # else all that follow would fail too
                print(f"{error}; {why}", file=sys.stderr, flush=True)  # noqa: T201 (the last words)
                os._exit(1)
            return {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}

    def do_open(self, request: dict[str, Any]) -> dict[str, Any]:
        name, options = request["runtime"], dict(request["options"])
        if request.get("lock") and not self._hold(request["lock"]):
            return {"ok": False, "busy": True, "error": f"another hwnas process is measuring on {request['lock']}"}
        options["threads"] = options["threads"] or len(os.sched_getaffinity(0))
        if name not in RUNTIMES:
            return {"ok": False, "error": f"the hwnas there knows no runtime {name}", "fix": "pip install -U hwnas"}
        try:
            self.runtime = RUNTIMES[name](options)
        except ImportError as error:
            return {"ok": False, **_missing(name, error)}
        return {"describe": self.runtime.describe()}

    def _hold(self, device: str) -> bool:
        """Takes the device's lock, which ends with this process; False where another has it."""
        from filelock import Timeout

        from hwnas.measure.lock import lock_of

        if self.lock is None:
            lock = lock_of(device)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
            self.lock = lock
        return True

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.runtime is None:
            raise RuntimeError("load before open")
        former = self._taken(request["name"])  # it goes last, so that what is loaded anew lies elsewhere
        try:
            model = request["payload"]
            if request["role"] != "network" or not self.runtime.takes_outlines:
                model = filled(model)
            if request["role"] == "kernels":
                clock = self.clocks[request["name"]] = self.runtime.load_kernels(model)
                return {"repeats": 1, "memory_bytes": clock.memory_bytes}
            if request["role"] == "operator":
                session = self.runtime.load_operator(model, float(request["min_run_ms"]))
            else:
                session = self.runtime.load_network(model)
            self.sessions[request["name"]] = session
            return {"repeats": session.repeats, "memory_bytes": session.memory_bytes}
        finally:
            for loaded in former:
                loaded.close()

    def do_time(self, request: dict[str, Any]) -> dict[str, Any]:
        session = self.sessions[request["name"]]
        return {"samples_ms": session.time_ms(int(request["runs"])), "state": dict(session.state)}

    def do_kernels(self, request: dict[str, Any]) -> dict[str, Any]:
        clock = self.clocks[request["name"]]
        kernels = [asdict(time) for time in clock.time_kernels(int(request["runs"]))]
        return {"kernels": kernels, "state": dict(clock.state)}

    def do_run(self, request: dict[str, Any]) -> dict[str, Any]:
        image = np.frombuffer(request["payload"], np.float32).reshape(request["shape"])
        output = self.sessions[request["name"]].run(image)
        return {"shape": list(output.shape), "output": base64.b64encode(output.tobytes()).decode()}

    def do_unload(self, request: dict[str, Any]) -> dict[str, Any]:
        for loaded in self._taken(request["name"]):
            loaded.close()
        return {}

    def _taken(self, name: str) -> list[Session | KernelClock]:
        """What is loaded under a name, which is free then."""
        found: list[Session | KernelClock | None] = [self.sessions.pop(name, None), self.clocks.pop(name, None)]
        return [loaded for loaded in found if loaded is not None]

    def close(self) -> None:
        """Gives everything back, the device last."""
        for name in (*self.sessions, *self.clocks):
            self.do_unload({"name": name})
        if self.runtime is not None:
            self.runtime.close()


def _missing(name: str, error: ImportError) -> dict[str, str]:
    """Why a runtime cannot be used here, and what mends it: packages, the driver, or neither where there is no GPU."""
    from hwnas.measure.runtimes.cuda import DRIVER, NO_DRIVER, OLD_DRIVER, NoGpu

    if not isinstance(error, NoGpu):
        return {"error": f"{name} cannot be used here ({error})", "fix": INSTALL[name]}
    driver = str(error).startswith((NO_DRIVER, OLD_DRIVER))
    package = [] if importlib.util.find_spec(name) else [INSTALL[name]]
    return {"error": f"{name} cannot be used here ({error})", "fix": " && ".join([DRIVER] * driver + package)}


def serve(requests: IO[bytes], answers: IO[str], *, far: bool = False) -> None:
    """Answers until the requests end; says of each that all of it has arrived where the one who asks is far."""
    worker = Worker()
    try:
        for line in requests:
            request = json.loads(line)
            if "payload" in request:
                request["payload"] = _exactly(requests, int(request["payload"]))
            if far:
                answers.write('{"got": true}\n')
                answers.flush()
            answers.write(json.dumps(worker.answer(request)) + "\n")
            answers.flush()
    finally:
        worker.close()


def _exactly(requests: IO[bytes], count: int) -> bytes:
    payload = requests.read(count)
    if len(payload) < count:  # whoever asked is gone
        raise SystemExit(1)
    return payload


def _end_with_the_input() -> None:
    closed = select.poll()
    # that the other end is closed is always reported; of a socket (sshd's), that it will send no more only if asked for
    closed.register(sys.stdin.fileno(), select.POLLRDHUP if hasattr(select, "POLLRDHUP") else 0)
    closed.poll()
    time.sleep(GRACE_S)  # for what was asked before
    os._exit(1)


def main() -> None:
    """Speaks on the real stdout and sends whatever libraries print there to stderr, so that no answer is garbled."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)  # where it is allowed, other work waits while a run is timed
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        threading.Thread(target=_end_with_the_input, daemon=True).start()
        serve(sys.stdin.buffer, answers, far="--far" in sys.argv)


if __name__ == "__main__":
    main()
