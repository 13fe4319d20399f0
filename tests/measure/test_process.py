"""The measuring process: whatever the child does, the parent names it and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quick import alive, quick_profile, tiny_network, wait_until

from hwnas.errors import HwnasError
from hwnas.measure.link import MeasurementError
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.passes import Entry, measure_in_passes
from hwnas.measure.process import WORKER, MeasuringProcess, Subject
from hwnas.ops import Op

SKELETON = """
import json, os, sys, time
state = os.path.join({folder!r}, "state")
count = len(open(state).read()) if os.path.exists(state) else 0   # how many such children were started before
open(state, "a").write(".")
loaded = []
def log(text):
    open(os.path.join({folder!r}, "log"), "a").write(text + chr(10))
def say(**answer):
    print(json.dumps(answer), flush=True)
for line in sys.stdin.buffer:
    request = json.loads(line)
    sys.stdin.buffer.read(request.get("payload", 0))
    do, name = request["do"], request.get("name", "")
    log(do + " " + name)
    if do == "open":
        say(ok=True, describe={{"runtime": "onnxruntime", "device": "stand-in", "pid": os.getpid()}})
        continue
    {body}
    if do == "load":
        say(ok=True, repeats=2)
    elif do == "time":
        say(ok=True, samples_ms=[1.0] * request["runs"])
    else:
        say(ok=True)
"""
"""A child that speaks the protocol and measures nothing: what is tested is its parent."""


class StandIn:
    """Starts measuring processes whose child runs `body` before it answers anything but `open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, body: str, *, timeout_s: float = 30.0, memory_limit_bytes: int | None = None
    ) -> MeasuringProcess:
        script = self.folder / "worker.py"
        script.write_text(SKELETON.format(folder=str(self.folder), body=body.replace("\n", "\n    ")))
        profile = quick_profile(timeout_s=timeout_s)
        return MeasuringProcess(profile, memory_limit_bytes=memory_limit_bytes, command=(sys.executable, str(script)))

    @property
    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path)


def subject(name: str = "one", size: int = 10, memory_bytes: int = 0) -> Subject:
    return Subject(name, "network", lambda: b"m" * size, memory_bytes)


# -- what a child can do wrong ---------------------------------------------------------------------------------------

WRONG = {
    "exits": ("sys.exit(3)", r"exit 3"),
    "raises": ("raise RuntimeError('the driver is gone')", r"exit 1: RuntimeError: the driver is gone"),
    "crashes": ("os.abort()", "SIGABRT"),
    "is killed": ("os.kill(os.getpid(), 9)", "SIGKILL, out of memory"),
    "closes its output": ("os.close(1); time.sleep(60)", "closed its output"),
    "says nonsense": ("print('hello', flush=True)", "nonsense"),
    "says no object": ("print('[1]', flush=True); continue", "nonsense"),
    "says bytes": ("os.write(1, bytes(range(128, 256)) + b'\\n')", "nonsense"),
    "says half a line": ("os.write(1, b'{\"ok\"'); os._exit(0)", "exit 0"),
    "says too much": ('os.write(1, b\'{"ok": true, "repeats": 1}\\n\' * 2); continue', "nonsense"),
}


@pytest.mark.parametrize(("body", "says"), WRONG.values(), ids=WRONG)
def test_the_failure_is_named_and_the_next_subject_gets_a_fresh_child(stand_in: StandIn, body: str, says: str) -> None:
    body = f"if name == 'bad':\n    {body}"
    with stand_in(body) as process:
        first = process.describe["pid"]
        with pytest.raises(MeasurementError, match=says) as caught:
            process.time_ms(subject("bad"), 2)
        assert caught.value.process_died
        assert len(str(caught.value).splitlines()) == 1
        assert process.time_ms(subject("good"), 2) == (2, [1.0, 1.0])
        assert process.describe["pid"] != first
        assert not alive(first)
        last = process.describe["pid"]
    assert not alive(last)


def test_a_hang_is_ended_by_the_time_out(stand_in: StandIn) -> None:
    with stand_in("if name == 'bad' and do == 'time': time.sleep(60)", timeout_s=0.4) as process:
        began = time.monotonic()
        with pytest.raises(MeasurementError, match=r"timed out after 0\.4 s") as caught:
            process.time_ms(subject("bad"), 2)
        assert caught.value.process_died
        assert time.monotonic() - began < 5
        assert process.time_ms(subject("good"), 1) == (2, [1.0])


def test_a_child_that_does_not_even_read_is_ended_by_the_time_out(stand_in: StandIn) -> None:
    """A model is larger than a pipe holds: who writes it must not wait for ever."""
    with stand_in("", timeout_s=0.4) as process:
        os.kill(process.describe["pid"], signal.SIGSTOP)
        with pytest.raises(MeasurementError, match="timed out"):
            process.time_ms(subject("large", size=3_000_000), 1)
        assert process.time_ms(subject("large", size=3_000_000), 1) == (2, [1.0])


def test_a_slow_answer_in_pieces_is_put_together(stand_in: StandIn) -> None:
    body = """if do == 'time':
    text = json.dumps({'ok': True, 'samples_ms': [0.5] * request['runs']}) + chr(10)
    for start in range(0, len(text), 5):
        os.write(1, text[start:start + 5].encode())
        time.sleep(.001)
    continue"""
    with stand_in(body) as process:
        assert process.time_ms(subject(), 50) == (2, [0.5] * 50)


TIMES = {
    "not a number": "[float('nan'), 1.0]",
    "infinite": "[1.0, float('inf')]",
    "negative": "[1.0, -1.0]",
    "zero": "[0.0, 1.0]",
    "none": "[]",
    "too many": "[1.0, 1.0, 1.0]",
    "text": "['fast', 'fast']",
    "one number": "1.0",
    "nothing": "None",
    "yes": "[True, True]",
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_impossible_times_are_a_failure(stand_in: StandIn, times: str) -> None:
    with stand_in(f"if do == 'time': say(ok=True, samples_ms={times}); continue") as process:
        with pytest.raises(MeasurementError, match="impossible times") as caught:
            process.time_ms(subject(), 2)
        assert len(str(caught.value)) < 200


KERNEL = {"node": "n", "kind": "Conv", "input_shape": [1], "output_shape": [1], "samples_ms": [0.0, 1.0]}
KERNELS = {
    "not a list": 3,
    "none": [],
    "no objects": [1, 2],
    "without times": [{key: value for key, value in KERNEL.items() if key != "samples_ms"}],
    "without a node": [{key: value for key, value in KERNEL.items() if key != "node"}],
    "no shape": [KERNEL | {"input_shape": 3}],
    "odd shape": [KERNEL | {"output_shape": ["wide"]}],
    "no run": [KERNEL | {"samples_ms": []}],
    "text": [KERNEL | {"samples_ms": "fast"}],
    "negative": [KERNEL | {"samples_ms": [-1.0]}],
    "as many as they like": [KERNEL, KERNEL | {"samples_ms": [1.0]}],
    "nothing": None,
}


@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
def test_impossible_kernels_are_a_failure(stand_in: StandIn, kernels: object) -> None:
    with stand_in(f"if do == 'kernels': say(ok=True, kernels={kernels!r}); continue") as process:
        with pytest.raises(MeasurementError, match="the runtime returned") as caught:
            process.time_kernels(subject(), 2)
        assert len(str(caught.value)) < 200
    for state, told in (({"sm_mhz": 1500}, {"sm_mhz": 1500}), ("hot", {}), (None, {})):
        with stand_in(f"if do == 'kernels': say(ok=True, kernels={[KERNEL]!r}, state={state!r}); continue") as process:
            assert process.time_kernels(subject(), 2)[0].samples_ms == (0.0, 1.0)
            assert process.state == told


@pytest.mark.parametrize("repeats", ["0", "-1", "'many'", "None", "1.5"])
def test_an_impossible_number_of_copies_is_a_failure(stand_in: StandIn, repeats: str) -> None:
    with (
        stand_in(f"if do == 'load': say(ok=True, repeats={repeats}); continue") as process,
        pytest.raises(MeasurementError, match="copies"),
    ):
        process.time_ms(subject(), 2)


def test_an_answer_without_what_was_asked_is_a_failure(stand_in: StandIn) -> None:
    with stand_in("say(ok=True); continue") as process:
        with pytest.raises(MeasurementError):
            process.time_ms(subject(), 2)
        with pytest.raises(MeasurementError):
            process.run(subject(), np.zeros((1, 3, 4, 4), np.float32))
    with stand_in("say(ok=False); continue") as process, pytest.raises(MeasurementError):
        process.time_ms(subject(), 2)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("/no/such/python",), "No such file"),
        ((sys.executable, "-c", "import no_such_runtime"), "No module named 'no_such_runtime'"),
        ((sys.executable, "-c", "print('{\"ok\": true}', flush=True); input(); input()"), "did not start"),
        ((sys.executable, "-c", "input(); print('{\"ok\": true}', flush=True); input()"), "does not say what"),
        ((sys.executable, "-c", 'input(); print(\'{"ok": false, "error": "no driver"}\')'), "no driver"),
    ],
)
def test_a_child_that_does_not_start_is_one_line(command: tuple[str, ...], says: str) -> None:
    with pytest.raises(HwnasError, match=says) as caught, MeasuringProcess(quick_profile(), command=command):
        pass
    assert "measuring process did not start" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# -- restart, one more try, memory -----------------------------------------------------------------------------------


def test_what_was_loaded_is_loaded_again_after_a_restart(stand_in: StandIn) -> None:
    with stand_in("if name == 'bad': os.abort()") as process:
        process.time_ms(subject("a"), 1)
        process.time_ms(subject("a"), 1)
        with pytest.raises(MeasurementError):
            process.time_ms(subject("bad"), 1)
        process.time_ms(subject("a"), 1)
    assert stand_in.log == ["open ", "load a", "time a", "time a", "load bad", "open ", "load a", "time a"]


def test_one_more_try_after_a_death(stand_in: StandIn) -> None:
    with stand_in("if count == 0 and do == 'time': os.kill(os.getpid(), 9)") as process:
        entry = Entry(subject())
        visits = list(measure_in_passes(process, [entry]))
    assert entry.failure is None
    assert [visit.samples_ms for visit in visits] == [(1.0,), (1.0,)]


def test_two_deaths_are_a_failure_and_the_others_are_measured(stand_in: StandIn) -> None:
    with stand_in("if name == 'bad' and do == 'time': os.abort()") as process:
        bad, good = Entry(subject("bad")), Entry(subject("good"))
        visits = list(measure_in_passes(process, [bad, good]))
    assert bad.failure is not None
    assert "SIGABRT" in bad.failure
    assert [visit.samples_ms for visit in visits if visit.entry is bad] == [()]
    assert stand_in.log.count("time bad") == 2
    assert len(good.visits) == 2


def test_a_refusal_is_not_tried_again(stand_in: StandIn) -> None:
    body = "if name == 'bad': say(ok=False, error='cannot be built'); continue"
    with stand_in(body) as process:
        entry = Entry(subject("bad"))
        list(measure_in_passes(process, [entry]))
    assert entry.failure == "cannot be built"
    assert stand_in.log == ["open ", "load bad"]


def test_the_longest_unused_is_unloaded_when_memory_is_short(stand_in: StandIn) -> None:
    with stand_in("", memory_limit_bytes=1000) as process:
        for name in ("a", "b", "a", "c", "a", "b"):
            process.time_ms(subject(name, memory_bytes=400), 1)
    used = [line for line in stand_in.log if not line.startswith(("open", "time"))]
    assert used == ["load a", "load b", "unload b", "load c", "unload c", "load b"]


def test_what_the_device_says_is_held_counts(stand_in: StandIn) -> None:
    """A network on a GPU holds what nobody can know before it is built."""
    body = "if do == 'load': say(ok=True, repeats=1, memory_bytes=600 if name == 'a' else 'much'); continue"
    with stand_in(body, memory_limit_bytes=1000) as process:
        for name in ("a", "b", "a"):
            process.time_ms(subject(name, memory_bytes=450), 1)
    used = [line for line in stand_in.log if not line.startswith(("open", "time"))]
    assert used == ["load a", "unload a", "load b", "load a", "unload b"]


def test_what_is_larger_than_the_limit_is_loaded_alone(stand_in: StandIn) -> None:
    with stand_in("", memory_limit_bytes=1000) as process:
        process.time_ms(subject("a", memory_bytes=400), 1)
        process.time_ms(subject("large", memory_bytes=4000), 1)
        process.time_ms(subject("a", memory_bytes=400), 1)
    used = [line for line in stand_in.log if not line.startswith(("open", "time"))]
    assert used == ["load a", "unload a", "load large", "unload large", "load a"]


def test_what_is_loaded_anew_makes_room_for_itself_where_there_is_none_for_both(stand_in: StandIn) -> None:
    with stand_in("", memory_limit_bytes=1000) as process:
        for size in (300, 600):
            name = f"of {size}"
            process.time_ms(subject(name, memory_bytes=size), 1)
            process.forget(subject(name))
            process.time_ms(subject(name, memory_bytes=size), 1)
            process.time_ms(subject(name, memory_bytes=size), 1)
        process.forget(subject("unknown"))
    used = [line for line in stand_in.log if not line.startswith(("open", "time"))]
    assert used == ["load of 300", "load of 300", "load of 600", "unload of 600", "load of 600"]


def test_what_cannot_be_loaded_anew_can_still_be_unloaded(stand_in: StandIn) -> None:
    made = iter([b"model"])

    def once() -> bytes:
        for model in made:
            return model
        raise ValueError("no second time")

    with stand_in("", memory_limit_bytes=1000) as process:
        process.time_ms(Subject("a", "network", once, 600), 1)
        process.forget(subject("a"))
        with pytest.raises(MeasurementError, match="no second time"):
            process.time_ms(Subject("a", "network", once, 600), 1)
        process.time_ms(subject("b", memory_bytes=600), 1)
    used = [line for line in stand_in.log if not line.startswith(("open", "time"))]
    assert used == ["load a", "unload a", "load b"]


# -- the real child --------------------------------------------------------------------------------------------------


def endless_model() -> bytes:
    """A network that runs for ever: a loop with as many turns as an int64 counts."""
    turn = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["goes_on"]),
            helper.make_node("Mul", ["state", "state"], ["next"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, 4]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["turns", "yes", "input"], ["output"], body=turn)],
        "endless",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4])],
        [
            helper.make_tensor("turns", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def good() -> Subject:
    return Subject("good", "network", lambda: network_to_onnx(tiny_network()))


def test_the_real_child_survives_models_that_are_none() -> None:
    def unsuitable() -> bytes:
        value = helper.make_tensor_value_info("x", TensorProto.DOUBLE, [1, 3])
        other = helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, 3])
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [value], [other])
        opset = [helper.make_opsetid("", 20)]
        return bytes(helper.make_model(graph, ir_version=10, opset_imports=opset).SerializeToString())

    bad: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: b"\x00garbage" * 1000,
        lambda: network_to_onnx(tiny_network())[:-100],
        unsuitable,
    ]
    with MeasuringProcess(quick_profile()) as process:
        child = process._link.child
        for number, model in enumerate(bad):
            for role in ("network", "operator"):
                with pytest.raises(MeasurementError) as caught:
                    process.time_ms(Subject(f"bad {number} {role}", role, model), 2)
                assert len(str(caught.value).splitlines()) == 1
                assert not caught.value.process_died
        assert process.time_ms(good(), 2)[0] == 1
        assert process._link.child is child  # none of them took it down


def test_the_real_child_is_killed_when_a_model_hangs() -> None:
    with MeasuringProcess(quick_profile(timeout_s=1.5)) as process:
        child = process._link.child
        assert child is not None
        with pytest.raises(MeasurementError, match="timed out"):
            process.time_ms(Subject("endless", "network", endless_model), 1)
        assert child.poll() is not None
        assert len(process.time_ms(good(), 3)[1]) == 3


def test_the_real_child_computes_operators_and_networks() -> None:
    op = Op.conv((16, 8, 8), 16, kernel=3, norm=True, act="relu")
    with MeasuringProcess(quick_profile(min_run_ms=0.3)) as process:
        repeats, samples = process.time_ms(Subject("op", "operator", lambda: op_to_onnx(op)), 4)
        assert repeats > 1
        assert len(samples) == 4
        assert process.describe["threads"] == 1
        image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
        output = process.run(good(), image)
    import onnxruntime

    session = onnxruntime.InferenceSession(good().model(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(output, session.run(None, {"input": image})[0], rtol=1e-4, atol=1e-5)


def test_garbage_that_libraries_print_does_not_garble_answers(tmp_path: Path) -> None:
    """`site` of the child prints to its stdout, by Python and below it, whenever a session is opened."""
    (tmp_path / "noisy.py").write_text(
        "import os, runpy, onnxruntime\n"
        "quiet = onnxruntime.InferenceSession\n"
        "def noisy(*args, **kwargs):\n"
        "    print('LOADING', flush=True)\n"
        "    os.write(1, b'{\"ok\": true}\\n')\n"
        "    return quiet(*args, **kwargs)\n"
        "onnxruntime.InferenceSession = noisy\n"
        "runpy.run_module('hwnas.measure.worker', run_name='__main__')\n"
    )
    command = (sys.executable, str(tmp_path / "noisy.py"))
    with MeasuringProcess(quick_profile(), command=command) as process:
        assert len(process.time_ms(good(), 3)[1]) == 3
        assert len(process.time_ms(good(), 3)[1]) == 3


BROKEN = """
import hwnas.measure.worker as worker
from hwnas.measure.runtimes.onnx_runtime import OnnxRuntime

class Broken(OnnxRuntime):
    why = ""

    def load_network(self, model):
        self.why = "the GPU cannot be used any more: illegal address" if model == b"harmful" else ""
        return super().load_network(model)

    def broken(self):
        return self.why

worker.RUNTIMES["onnxruntime"] = lambda options: Broken(1)
worker.main()
"""


def test_a_device_that_an_operator_broke_is_opened_anew(tmp_path: Path) -> None:
    """Else everything that is measured after it would fail for it."""
    (tmp_path / "broken.py").write_text(BROKEN)
    with MeasuringProcess(quick_profile(), command=(sys.executable, str(tmp_path / "broken.py"))) as process:
        with pytest.raises(
            MeasurementError, match=r"took the measuring process down .*the GPU cannot be used any more"
        ):
            process.time_ms(Subject("harmful", "network", lambda: b"harmful"), 1)
        with pytest.raises(MeasurementError, match="INVALID_PROTOBUF") as caught:  # the operator's own failure
            process.time_ms(Subject("none", "network", lambda: b"no model"), 1)
        assert not caught.value.process_died
        assert len(process.time_ms(good(), 3)[1]) == 3


FAR = """
import json, sys
from hwnas import __version__
from hwnas.measure.far import PROTOCOL
print(json.dumps({"hwnas": __version__, "protocol": PROTOCOL, "python": "p", "memory": 10**9, "free_memory": 10**9,
                  "load": [0, 0, 0]}), flush=True)
for line in sys.stdin:
    print('{"got": true}\\n' + json.dumps({"ok": True, "describe": json.loads(line)["options"]}), flush=True)
"""


@pytest.mark.parametrize(("cache", "named"), [(True, "quick"), (False, None)])
def test_engines_are_kept_where_they_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool, named: str | None
) -> None:
    """A folder of this machine is none of the other one, which is only told what to call its own."""
    (tmp_path / "far.py").write_text(FAR)
    monkeypatch.setenv("HWNAS_SSH", f"{sys.executable} {tmp_path / 'far.py'}")
    profile = quick_profile().override(host="ssh://board", name="quick")
    with MeasuringProcess(profile, cache=tmp_path / "cache" if cache else None) as process:
        assert process.describe.get("cache_name") == named
        assert "cache" not in process.describe


def test_the_child_imports_no_torch() -> None:
    code = (
        "import sys, io, json\n"
        "from hwnas.measure import worker\n"
        "opened = json.dumps({'do': 'open', 'runtime': 'onnxruntime', 'options': {'threads': 1}})\n"
        "worker.serve(io.BytesIO(opened.encode()), sys.stdout)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'torchvision', 'pandas', 'scipy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer, modules = done.stdout.splitlines()
    assert json.loads(answer)["ok"] is True
    assert modules == "[]"


PARENT = """
import sys
from pathlib import Path
from quick import quick_profile
from hwnas.measure.link import MeasurementError
from hwnas.measure.process import MeasuringProcess, Subject
with MeasuringProcess(quick_profile(timeout_s=600.0)) as process:
    print(process._link.child.pid, flush=True)
    if sys.argv[1] == "idle":
        input()
    model = Path(sys.argv[1]).read_bytes()
    process.time_ms(Subject("endless", "network", lambda: model), 1)
"""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_no_child_outlives_a_killed_parent(tmp_path: Path, busy: bool) -> None:
    model = tmp_path / "endless.onnx"
    model.write_bytes(endless_model())
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model) if busy else "idle"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        if busy:
            wait_until(lambda: _cpu_seconds(child) > 1.5)  # in the middle of a run that never ends
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        wait_until(lambda: not alive(child), 15)
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_leaving_ends_the_child_even_if_it_hangs(stand_in: StandIn) -> None:
    with stand_in("time.sleep(60)", timeout_s=0.2) as process:
        child = process.describe["pid"]
        os.kill(child, signal.SIGSTOP)
    assert not alive(child)


def test_the_real_child_is_started_as_this_python() -> None:
    assert (sys.executable, "-m", "hwnas.measure.worker") == WORKER
