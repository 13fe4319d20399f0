"""``alibaba-trt``: convolutions timed with TensorRT, of alibaba/lightweight-neural-architecture-search (Apache-2.0).

A row is ``{Regular,batch,Cin,H,W,Cout,kernel,stride,fused} milliseconds`` or ``{Depthwise,...}``; -1 is a measurement
that failed. `fused` says "whether the elementwise sum operation of the relink structure is included"
(latency/op_profiler/README.md there): 1 is a convolution with its residual add, which the bandwidth of its 1x1
convolutions confirms. Neither bias nor activation is mentioned; in TensorRT's fused kernels they cost nothing that
shows, and rows stand for convolutions with a bias. Paddings are kernel // 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hwnas.errors import UsageError
from hwnas.latency.foreign.reading import (
    PRECISIONS,
    Choices,
    Foreign,
    bad,
    chosen,
    lines_of,
    merged,
    milliseconds,
    size,
)
from hwnas.latency.imported import Imported
from hwnas.ops import Op

SOURCE = "https://github.com/alibaba/lightweight-neural-architecture-search"
LICENCE = "Apache-2.0"
DEVICE = "Tesla V100"

NOTE = (
    "convolutions only, no whole networks: uncalibrated; the source gives no spread of its values and no version of "
    "TensorRT; resolutions lie on a grid"
)

_ROW = re.compile(r"\{(Regular|Depthwise),([0-9,]+)\} (\S{1,40})")
_FAILED = "the source could not measure it (-1)"


def read(path: Path, choices: Choices) -> Foreign:
    """The rows of one batch.

    Raises:
        UsageError: the batch or the precision is not said.
        HwnasError: a row is none of this format; it names the line.
    """
    rows = list(_rows(path))
    wanted = None if choices.batch is None else str(choices.batch)
    batch = chosen(path, "batch", "--batch", (str(batch) for _, batch, _ in rows), wanted)
    entries, duplicates = merged(path, ((line, row) for line, size_, row in rows if str(size_) == batch))
    return Foreign(
        entries,
        device=choices.device or DEVICE,
        runtime="tensorrt",
        precision=_precision(path, choices),
        batch_size=int(batch),
        source=choices.source or SOURCE,
        licence=choices.licence or LICENCE,
        note=NOTE,
        duplicates=duplicates,
    )


def _precision(path: Path, choices: Choices) -> str:
    """As said, or as the file's name says."""
    named = [precision for precision in PRECISIONS if precision in path.name.lower()]
    if choices.precision is None and len(named) != 1:
        raise UsageError(f"{path}: the file does not say its precision: add --precision {'/'.join(PRECISIONS)}")
    return choices.precision or named[0]


def _rows(path: Path) -> Iterator[tuple[int, int, Imported]]:
    """Line number, batch and entry of each row."""
    for line, text in lines_of(path):
        if not text.strip():
            continue
        match = _ROW.fullmatch(text.strip())
        numbers = match[2].split(",") if match else []
        if match is None or len(numbers) != 8:
            raise bad(path, line, "not a row like {Regular,32,64,56,56,128,3,1,0} 0.123")
        batch, cin, height, width, cout, kernel, stride = (size(path, line, text) for text in numbers[:7])
        if numbers[7] not in ("0", "1"):
            raise bad(path, line, f"fused is 0 or 1, not {numbers[7][:40]!r}")
        depthwise = match[1] == "Depthwise"
        if depthwise and cin != cout:
            raise bad(path, line, f"a depthwise convolution has as many channels out as in, not {cin} and {cout}")
        try:
            op = Op.conv(
                (cin, height, width),
                cout,
                kernel=kernel,
                stride=stride,
                groups=cin if depthwise else 1,
                bias=True,
                residual=numbers[7] == "1",
            )
        except ValueError as error:
            raise bad(path, line, str(error)) from None
        ms = milliseconds(path, line, match[3])
        yield line, batch, Imported("operator", op.key, ms, failure=_FAILED if ms is None else None)
