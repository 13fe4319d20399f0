"""``fbnet-jsonl``: operators of Caffe2 timed on a phone, of facebookresearch/mobile-vision (runtime_lut).

One JSON object a line (runtime_lut/code/lut_schema.py there): ``op_type``, ``op_args`` (protobuf text of each),
``input_shapes`` (activation, weights, bias; channels last for the ``Int8`` types), ``device`` and the 0th, 10th, 50th,
90th and 100th percentiles of its runs in microseconds. The 50th is taken as the latency, the 10th and the 90th as its
ends: they bound single runs, so that the interval is wider than that of the median.

Types that are no operators of ours (``NCHW2NHWC``, ``Int8Quantize`` and the like) are skipped, and counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hwnas.latency.foreign.reading import MAX_SIZE, Choices, Foreign, bad, chosen, lines_of, merged, milliseconds
from hwnas.latency.imported import Imported
from hwnas.ops import Op

SOURCE = "https://github.com/facebookresearch/mobile-vision (runtime_lut)"
LICENCE = "CC BY-NC"
NOTE = "single operators, no whole networks: uncalibrated; ends are the 10th and 90th percentiles of single runs"

_ARGUMENT = re.compile(r'\s*name:\s*"(\w+)"\s+(?:i:\s*(-?\d+)|s:\s*"(\w*)"|f:\s*\S+)\s*')

Shapes = list[list[int]]
Arguments = dict[str, int]


def read(path: Path, choices: Choices) -> Foreign:
    """The operators of one device and batch.

    Raises:
        UsageError: there are several devices or batches and none is chosen.
        HwnasError: a line is none of this format.
    """
    skipped: Counter[str] = Counter()
    rows = list(_rows(path, skipped))
    device = chosen(path, "device", "--device-name", (row[1] for row in rows), choices.device)
    of_device = [row for row in rows if row[1] == device]
    wanted = None if choices.batch is None else str(choices.batch)
    batch = chosen(path, "batch", "--batch", (str(row[2]) for row in of_device), wanted)
    entries, duplicates = merged(path, ((row[0], row[3]) for row in of_device if str(row[2]) == batch))
    return Foreign(
        entries,
        device=device,
        runtime="caffe2-qnnpack",
        precision=choices.precision or "int8",
        batch_size=int(batch),
        source=choices.source or SOURCE,
        licence=choices.licence or LICENCE,
        note=NOTE,
        duplicates=duplicates,
        skipped=skipped,
    )


def _rows(path: Path, skipped: Counter[str]) -> Iterator[tuple[int, str, int, Imported]]:
    """Line, device, batch and entry of every row that is an operator of ours."""
    for line, text in lines_of(path):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            raise bad(path, line, "not a JSON object: give the file unzipped, one object a line") from None
        kind, shapes, device = _checked(path, line, record)
        if kind not in _OPERATORS:
            skipped[kind[:40]] += 1
            continue
        try:
            op = _OPERATORS[kind](shapes, _arguments(path, line, record.get("op_args")))
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise bad(path, line, f"{kind} of {str(shapes)[:80]}: {error}") from None
        yield line, device, shapes[0][0], _entry(path, line, op, record)


def _checked(path: Path, line: int, record: Any) -> tuple[str, Shapes, str]:
    """Type, shapes and device of a record, of the right types and sizes."""
    if not isinstance(record, dict):
        raise bad(path, line, "not a JSON object")
    kind, shapes, device = record.get("op_type"), record.get("input_shapes"), record.get("device")
    if not isinstance(kind, str) or not isinstance(device, str) or not device or len(device) > 200:
        raise bad(path, line, "op_type and device must be texts")
    whole = isinstance(shapes, list) and all(
        isinstance(shape, list) and all(type(n) is int and 1 <= n <= MAX_SIZE for n in shape) for shape in shapes
    )
    if not whole or not shapes or not shapes[0]:
        raise bad(path, line, f"input_shapes must be lists of whole numbers from 1 to {MAX_SIZE}")
    return kind, shapes, device


def _arguments(path: Path, line: int, texts: Any) -> Arguments:
    """Whole-number arguments by name; those that are texts must agree with channels last."""
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise bad(path, line, "op_args must be a list of texts")
    found: Arguments = {}
    for text in texts:
        match = _ARGUMENT.fullmatch(text)
        if match is None:
            raise bad(path, line, f"{text[:60]!r} is no argument like 'name: \"kernel\" i: 3'")
        if match[2] is not None:
            if not -MAX_SIZE <= int(match[2][:12]) <= MAX_SIZE:
                raise bad(path, line, f"{match[1][:40]} {match[2][:20]} is out of range")
            found[match[1]] = int(match[2])
        elif match[1] == "order" and match[3] != "NHWC":
            raise bad(path, line, f"the order {match[3][:20]} of an Int8 operator is not known, only NHWC")
    return found


def _entry(path: Path, line: int, op: Op, record: dict[str, Any]) -> Imported:
    low, middle, high = (milliseconds(path, line, record.get(f"runtime_us_p{p}"), 1e-3) for p in (10, 50, 90))
    if middle is None:
        return Imported("operator", op.key, None, failure="the source has no latency of it")
    if low is None or high is None or not low <= middle <= high:
        raise bad(path, line, "runtime_us_p10, p50 and p90 are not in order")
    return Imported("operator", op.key, middle, low, high)


# -- operators -------------------------------------------------------------------------------------------------------


def _pair(arguments: Arguments, name: str, default: int) -> tuple[int, int]:
    both = arguments.get(name, default)
    return arguments.get(f"{name}_h", both), arguments.get(f"{name}_w", both)


def _pads(arguments: Arguments) -> tuple[int, int, int, int]:
    both = arguments.get("pad", 0)
    top, left, bottom, right = (arguments.get(f"pad_{side}", both) for side in "tlbr")
    if min(top, left, bottom, right) < 0:
        raise ValueError("a padding is negative")
    return top, left, bottom, right


def _image(shape: list[int]) -> tuple[int, int, int]:
    if len(shape) != 4:
        raise ValueError("not an image")
    return shape[3], shape[1], shape[2]


def _conv(act: str) -> Callable[[Shapes, Arguments], Op]:
    def make(shapes: Shapes, arguments: Arguments) -> Op:
        image = _image(shapes[0])
        cout, height, width, cin = shapes[1]
        groups = arguments.get("group", 1)
        if cin * groups != image[0] or _pair(arguments, "kernel", height) != (height, width):
            raise ValueError("the weights do not fit the image, the groups and the kernel")
        return Op.conv(
            image,
            cout,
            kernel=(height, width),
            stride=_pair(arguments, "stride", 1),
            padding=_pads(arguments),
            dilation=_pair(arguments, "dilation", 1),
            groups=groups,
            bias=len(shapes) > 2,
            act=act,
        )

    return make


def _linear(shapes: Shapes, _: Arguments) -> Op:
    (features_out, features_in), batch = shapes[1], shapes[0][0]
    total = 1
    for number in shapes[0]:
        total *= number
    if total != features_in * batch:
        raise ValueError("the weights do not fit the input")
    return Op.linear(features_in, features_out, bias=len(shapes) > 2)


def _pool(kind: str) -> Callable[[Shapes, Arguments], Op]:
    def make(shapes: Shapes, arguments: Arguments) -> Op:
        image = _image(shapes[0])
        kernel = image[1:] if arguments.get("global_pooling") else _pair(arguments, "kernel", 1)
        if kind == "avg_pool" and kernel == image[1:]:
            return Op.global_avg_pool(image)
        return Op.pool(kind, image, kernel=kernel, stride=_pair(arguments, "stride", 1), padding=_pads(arguments))

    return make


def _add(act: str) -> Callable[[Shapes, Arguments], Op]:
    def make(shapes: Shapes, _: Arguments) -> Op:
        if len(shapes) != 2 or shapes[0] != shapes[1]:
            raise ValueError("not a sum of two tensors of one shape")
        return Op.add(_image(shapes[0]), act=act)

    return make


_OPERATORS: dict[str, Callable[[Shapes, Arguments], Op]] = {
    "Int8Conv": _conv(""),
    "Int8ConvRelu": _conv("relu"),
    "Int8FC": _linear,
    "Int8AveragePool": _pool("avg_pool"),
    "Int8MaxPool": _pool("max_pool"),
    "Int8Add": _add(""),
    "Int8Sum": _add(""),
    "Int8AddRelu": _add("relu"),
    "Int8SumRelu": _add("relu"),
}
"""Types of Caffe2 that are operators of ours."""
