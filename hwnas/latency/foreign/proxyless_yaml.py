"""``proxyless-yaml``: block tables of ProxylessNAS and Once-for-All (`mobile_trim.yaml` and its like).

A flat YAML mapping from the name of a layer to its statistics, of which ``mean`` is the latency in ms:

    Conv-input:224x224x3-output:112x112x32: {count: 10, mean: 3.1}
    expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:5-stride:2-idskip:0: {mean: 4.2}

(ofa/nas/efficiency_predictor/latency_lookup_table.py and search/utils of mit-han-lab/proxylessnas name the layers:
``Conv`` is the 3x3 stem, ``Conv_1`` the 1x1 head, ``Logits`` all that follows it; shapes are height x width x channels.
In Once-for-All's MobileNetV3 tables `expand` is the hidden width and ``-se:`` and ``-hs:`` follow.)

Layers of several operators become blocks of the table: operators that were timed as one, which price the slots of
spaces with the same bottlenecks as they are. Nothing is said of the operators inside, and no block is interpolated.
Blocks with squeeze-and-excitation are skipped, and counted.

YAML is read by a strict parser of this subset: PyYAML is no dependency, and nothing of its object syntax is wanted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hwnas.errors import HwnasError
from hwnas.latency.foreign.reading import MAX_SIZE, Choices, Foreign, bad, lines_of, merged, milliseconds, size
from hwnas.latency.imported import BLOCK, Imported
from hwnas.ops import Op, Shape

SOURCE = "https://github.com/mit-han-lab/proxylessnas (latency_tools)"
LICENCE = "not stated"
NOTE = "latencies of whole blocks, no whole networks: uncalibrated; the source gives no spread of its values"

_NAME = r"[A-Za-z0-9_][^\s{}'\"#]*"
_ENTRY = re.compile(rf"""(?P<quote>['"]?)(?P<name>{_NAME})(?P=quote):(?:\s+(?P<rest>\{{.*))?""")
_PAIR = re.compile(r"(\w+):\s+(\S+)")
_LAYER = re.compile(
    r"(?P<type>\w+)-input:(?P<input>[0-9x]+)-output:(?P<output>[0-9x]+)"
    r"(?:-expand:(?P<expand>\d+)-kernel:(?P<kernel>\d+)-stride:(?P<stride>\d+)-idskip:(?P<skip>[01])"
    r"(?:-se:(?P<se>[01])-hs:(?P<hs>[01]))?)?"
)


def read(path: Path, choices: Choices) -> Foreign:
    """All layers that are operators or blocks of ours.

    Raises:
        HwnasError: the file is not of this subset of YAML, or a layer has no mean; it names the line.
    """
    layers = list(_layers(path))
    hard = any("-hs:" in name for _, name, _ in layers)  # MobileNetV3: stem and head have its activation
    skipped: Counter[str] = Counter()
    rows = []
    for line, name, ms in layers:
        ops = _operators(path, line, name, "hardswish" if hard else "relu6", mid_width=hard)
        if isinstance(ops, str):
            skipped[ops] += 1
            continue
        role = "operator" if len(ops) == 1 else "block"
        failure = None if ms is not None else "the source has no latency of it"
        rows.append((line, Imported(role, BLOCK.join(op.key for op in ops), ms, failure=failure)))
    entries, duplicates = merged(path, rows)
    return Foreign(
        entries,
        device=choices.device or "unknown device",
        runtime="unknown",
        precision=choices.precision or "fp32",
        batch_size=choices.batch or 1,
        source=choices.source or SOURCE,
        licence=choices.licence or LICENCE,
        note=NOTE,
        duplicates=duplicates,
        skipped=skipped,
    )


def _layers(path: Path) -> Iterator[tuple[int, str, float | None]]:
    """Line, name and latency of each entry: ``name: {…}`` over one line or several, or an indented block."""
    name, line, pairs, flow = "", 0, "", False
    for number, text in lines_of(path):
        if not text.strip() or text.lstrip().startswith("#") or text in ("---", "..."):
            continue
        if not text[0].isspace():
            if flow:
                raise bad(path, line, f"the braces of {name[:60]!r} are never closed")
            if name:
                yield line, name, _mean_of(path, line, name, pairs)
            match = _ENTRY.fullmatch(text.rstrip())
            if match is None:
                raise bad(path, number, "not a layer like 'Conv-input:224x224x3-output:112x112x32: {mean: 3.1}'")
            name, line, pairs = match["name"], number, match["rest"] or ""
            flow = pairs.startswith("{")
        elif not name:
            raise bad(path, number, "indented, and no layer is above it")
        else:
            pairs += "\n" + text.strip()
        if flow and "}" in pairs:
            if not pairs.endswith("}") or pairs.count("}") > 1 or pairs.count("{") > 1:
                raise bad(path, number, "more than one flat mapping: this is no table of latencies")
            flow = False
    if flow:
        raise bad(path, line, f"the braces of {name[:60]!r} are never closed")
    if not name:
        raise HwnasError(f"{path} is empty: give a table")
    yield line, name, _mean_of(path, line, name, pairs)


def _mean_of(path: Path, line: int, name: str, pairs: str) -> float | None:
    """The value of ``mean`` among pairs like ``{count: 10, mean: 3.1}`` or one a line."""
    found: dict[str, str] = {}
    for part in re.split(r"[,\n]", pairs.strip().removeprefix("{").removesuffix("}")):
        if not part.strip():
            continue
        match = _PAIR.fullmatch(part.strip())
        if match is None or match[1] in found:
            raise bad(path, line, f"{name[:60]!r}: {part.strip()[:40]!r} is not one figure, like 'mean: 3.1'")
        found[match[1]] = match[2]
    if "mean" not in found:
        raise bad(path, line, f"{name[:60]!r} has no mean")
    return milliseconds(path, line, found["mean"])


def _operators(path: Path, line: int, name: str, act: str, *, mid_width: bool) -> list[Op] | str:
    """The operators that a layer's name stands for, or what kind of layer it is that we have no operators for."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name.split("-")[0][:40]
    shape = _shape(path, line, match["input"])
    output = _shape(path, line, match["output"])
    try:
        if match["type"] == "expanded_conv" and match["expand"] and len(shape) == len(output) == 3:
            if match["se"] == "1":
                return "expanded_conv with squeeze-and-excitation"
            ops = _bottleneck(shape, output, match, mid_width=mid_width)
        elif match["type"] == "Logits" and len(output) == 1:
            linear = Op.linear(shape[0], output[0])
            flat = len(shape) == 1 or shape[1:] == (1, 1)
            ops = [linear] if flat else [Op.global_avg_pool(shape), linear]
        elif match["type"] == "AvgPool2D" and len(shape) == 3:
            ops = [Op.global_avg_pool(shape)]
        elif match["type"] in ("Conv", "Conv_1", "Conv_2") and len(shape) == len(output) == 3:
            kernel, stride = (3 if match["type"] == "Conv" else 1), -(-shape[1] // output[1])
            ops = [Op.conv(shape, output[0], kernel=kernel, stride=stride, bias=True, act=act)]
        else:
            return match["type"][:40]
    except ValueError as error:
        raise bad(path, line, str(error)) from None
    if ops[-1].output != output and ops[-1].output != (output[0], 1, 1)[: len(ops[-1].output)]:
        raise bad(path, line, f"{name[:80]!r}: its output would be {ops[-1].output}, not {output}")
    return ops


def _bottleneck(shape: Shape, output: Shape, match: re.Match[str], *, mid_width: bool) -> list[Op]:
    """1x1 expand (none at the width itself), depthwise, linear 1x1 project with the residual that the name says."""
    expand, kernel, stride = (int(match[name]) for name in ("expand", "kernel", "stride"))
    hidden = expand if mid_width else expand * shape[0]
    if not (1 <= hidden <= MAX_SIZE and 1 <= kernel <= MAX_SIZE and 1 <= stride <= MAX_SIZE):
        raise ValueError("expand, kernel or stride is out of range")
    act = "hardswish" if match["hs"] == "1" else "relu" if match["hs"] == "0" else "relu6"
    ops = [] if hidden == shape[0] else [Op.conv(shape, hidden, kernel=1, bias=True, act=act)]
    wide = (hidden, *shape[1:])
    ops.append(Op.conv(wide, hidden, kernel=kernel, stride=stride, groups=hidden, bias=True, act=act))
    ops.append(Op.conv(ops[-1].output, output[0], kernel=1, bias=True, residual=match["skip"] == "1"))
    return ops


def _shape(path: Path, line: int, text: str) -> Shape:
    """Height x width x channels as channels first; or channels alone."""
    sizes = [size(path, line, part) for part in text.split("x")]
    if len(sizes) not in (1, 3):
        raise bad(path, line, f"{text[:40]!r} is no shape like 112x112x16")
    return (sizes[-1], *sizes[:-1])
