"""Importing: every row becomes what it says, every file that is none is refused in one line that names the place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import ROOT
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import HwnasError, UsageError
from hwnas.latency.foreign import FORMATS, import_table
from hwnas.latency.foreign.reading import Choices
from hwnas.latency.imported import BLOCK, UNSTATED_ERROR
from hwnas.latency.model import LatencyModel
from hwnas.latency.shipped import shipped_tables
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import TableWriter
from hwnas.ops import Op
from hwnas.spaces import get_space
from hwnas.spaces.base import Arch

SHARED = ROOT.parent / "shared" / "data"

ROWS = """\
{Regular,32,64,56,56,128,3,2,0} 0.25
{Regular,32,64,56,56,64,1,1,1} 0.5
{Depthwise,32,96,28,28,96,5,1,0} 0.125

{Regular,32,3,224,224,64,7,2,1} -1
{Regular,1,64,56,56,128,3,2,0} 0.03
"""
CONV = Op.conv((64, 56, 56), 128, kernel=3, stride=2, bias=True)
FUSED = Op.conv((64, 56, 56), 64, kernel=1, bias=True, residual=True)
DEPTHWISE = Op.conv((96, 28, 28), 96, kernel=5, groups=96, bias=True)
FAILED = Op.conv((3, 224, 224), 64, kernel=7, stride=2, bias=True, residual=True)


def written(tmp_path: Path, text: str | bytes, name: str = "table_fp16.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def imported(path: Path, form: str, choices: Choices | None = None) -> LatencyTable:
    """The imported table, opened."""
    out = path.with_name("out.lut")
    import_table(path, form, out, choices or Choices())
    return LatencyTable.open(out)


def refused(path: Path, form: str, choices: Choices | None = None) -> str:
    with pytest.raises(HwnasError) as caught:
        import_table(path, form, path.with_name("out.lut"), choices or Choices())
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
    assert not path.with_name("out.lut").exists()
    return str(caught.value)


# -- alibaba-trt -----------------------------------------------------------------------------------------------------


def test_every_row_of_the_batch_is_an_operator(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    report = import_table(path, "alibaba-trt", tmp_path / "out.lut", Choices(batch=32))
    assert (report.operators, report.blocks, report.failed, report.duplicates) == (3, 0, 1, 0)
    assert (report.device, report.runtime, report.precision, report.batch_size) == (
        "Tesla V100", "tensorrt", "fp16", 32,
    )  # fmt: skip
    with LatencyTable.open(tmp_path / "out.lut") as table:
        found = table.operators()
        assert {key: estimate.latency_ms for key, estimate in found.items()} == {
            CONV.key: 0.25, FUSED.key: 0.5, DEPTHWISE.key: 0.125,
        }  # fmt: skip
        assert table.failures() == {FAILED.key: "the source could not measure it (-1)"}
        assert table.networks() == []
        assert table.reference() is None
        rows = {row.key: row for row in table.rows()}
        header = table.header
        assert table.visits("operator", CONV.key) == []  # no samples are made up
    row = rows[CONV.key]
    assert (row.samples, row.imported) == (0, True)
    assert (row.low_ms, row.high_ms) == (0.25 * (1 - UNSTATED_ERROR), 0.25 * (1 + UNSTATED_ERROR))
    assert row.size_bytes == CONV.traffic_bytes(2, 32)
    assert row.gmacs_per_s == pytest.approx(32 * CONV.macs / 0.25e-3 / 1e9)
    assert rows[FAILED.key].failure
    assert header["runtime_version"] == "unknown"
    assert (header["cores"], header["threads"]) == (None, None)
    assert header["imported"]["licence"] == "Apache-2.0"
    assert "alibaba/lightweight-neural-architecture-search" in header["imported"]["source"]
    assert header["imported"]["calibrated"] is False


def test_the_same_file_gzipped_and_what_is_said_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(ROWS.encode()), "rows.gz")
    choices = Choices(batch=1, precision="fp32", device="Tesla T4", source="ours", licence="MIT")
    with imported(path, "alibaba-trt", choices) as table:
        assert list(table.operators()) == [CONV.key]
        header = table.header
    assert (header["device"], header["precision"], header["batch_size"]) == ("Tesla T4", "fp32", 1)
    assert (header["imported"]["source"], header["imported"]["licence"]) == ("ours", "MIT")


def test_duplicates_are_averaged_and_counted_and_beat_a_failure(tmp_path: Path) -> None:
    text = "{Regular,1,8,4,4,8,3,1,0} 1.0\n{Regular,1,8,4,4,8,3,1,0} 2.0\n"
    text += "{Regular,1,8,4,4,8,1,1,0} -1\n{Regular,1,8,4,4,8,1,1,0} 4.0\n"
    path = written(tmp_path, text)
    report = import_table(path, "alibaba-trt", tmp_path / "out.lut", Choices())
    assert (report.operators, report.failed, report.duplicates) == (2, 0, 2)
    with LatencyTable.open(tmp_path / "out.lut") as table:
        assert sorted(found.latency_ms for found in table.operators().values()) == [1.5, 4.0]


def test_the_batch_has_to_be_one_of_the_files(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    for batch, says in ((None, "several batchs"), (64, "no batch 64")):
        with pytest.raises(UsageError, match=r"choose one of 1, 32 with --batch") as caught:
            import_table(path, "alibaba-trt", tmp_path / "out.lut", Choices(batch=batch))
        assert says.replace("batchs", "batches") in str(caught.value)
    unnamed = written(tmp_path, ROWS, "rows.txt")
    with pytest.raises(UsageError, match="--precision fp32/fp16/int8"):
        import_table(unnamed, "alibaba-trt", tmp_path / "out.lut", Choices(batch=32))
    with pytest.raises(UsageError, match="no format is called 'csv'"):
        import_table(path, "csv", tmp_path / "out.lut", Choices())


GOOD = "{Regular,1,8,4,4,8,3,1,0} 1.0\n"
BAD_ROWS = {
    "words": "hello world",
    "seven numbers": "{Regular,1,8,4,4,8,3,1} 1.0",
    "ten numbers": "{Regular,1,8,4,4,8,3,1,0,0} 1.0",
    "another kind": "{Grouped,1,8,4,4,8,3,1,0} 1.0",
    "a negative size": "{Regular,1,-8,4,4,8,3,1,0} 1.0",
    "a zero": "{Regular,1,0,4,4,8,3,1,0} 1.0",
    "no stride": "{Regular,1,8,4,4,8,3,0,0} 1.0",
    "a giant": "{Regular,1,99999999999999999999,4,4,8,3,1,0} 1.0",
    "digits of another script": "{Regular,1,٣,4,4,8,3,1,0} 1.0",
    "a flag of 2": "{Regular,1,8,4,4,8,3,1,2} 1.0",
    "depthwise with other channels": "{Depthwise,1,8,4,4,16,3,1,0} 1.0",
    "no number": "{Regular,1,8,4,4,8,3,1,0} fast",
    "nan": "{Regular,1,8,4,4,8,3,1,0} nan",
    "inf": "{Regular,1,8,4,4,8,3,1,0} inf",
    "no latency": "{Regular,1,8,4,4,8,3,1,0}",
    "more after it": "{Regular,1,8,4,4,8,3,1,0} 1.0 ms",
    "a kernel that does not fit": "{Regular,1,8,1,1,8,4,9,0} 1.0\n{Regular,1,8,1,1,8,1000000,1,0} 1.0 x",
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: str) -> None:
    says = refused(written(tmp_path, GOOD * 2 + row + "\n"), "alibaba-trt")
    assert "line 3" in says or "line 4" in says


@pytest.mark.parametrize("form", FORMATS)
def test_files_that_are_none(tmp_path: Path, form: str) -> None:
    choices = Choices(precision="fp32")
    for content in (
        b"",
        b"\xff\xfe\x00binary",
        b"\x1f\x8b\x08not gzip",
        b"\n\n",
        b"x" * 200_000,
        b"\x80\x04\x95pickle.",
    ):
        refused(written(tmp_path, content, "file.txt"), form, choices)
    refused(written(tmp_path, b"\x1f\x8b\x08\x00 torn", "file.gz"), form, choices)
    refused(written(tmp_path, gzip.compress(GOOD.encode() * 100)[:-9], "torn.gz"), form, choices)
    refused(tmp_path / "absent.txt", form, choices)
    refused(tmp_path, form, choices)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.latency.foreign.reading.MAX_BYTES", 100_000)
    bomb = written(tmp_path, gzip.compress((GOOD * 10_000).encode()), "bomb.gz")
    assert "MiB" in refused(bomb, "alibaba-trt", Choices(precision="fp32"))


@given(st.text(max_size=200))
def test_no_text_is_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = written(folder, text.encode("utf-8", "surrogatepass"))
    for form in FORMATS:
        with pytest.raises(HwnasError):
            import_table(path, form, folder / "out.lut", Choices(precision="fp32"))


def test_measurements_are_never_replaced_by_an_import(tmp_path: Path) -> None:
    from quick import quick_profile

    out = tmp_path / "mine.lut"
    describe = {"runtime": "onnxruntime", "runtime_version": "1", "device": "A CPU", "cores": 2, "threads": 1}
    TableWriter.create(out, quick_profile(), describe).close()
    before = out.read_bytes()
    path = written(tmp_path, GOOD)
    with pytest.raises(HwnasError, match="holds measurements"):
        import_table(path, "alibaba-trt", out, Choices())
    assert out.read_bytes() == before
    for _ in range(2):  # an import is replaced by the next
        import_table(path, "alibaba-trt", tmp_path / "again.lut", Choices())
    with pytest.raises(HwnasError, match="runtime tensorrt, this is onnxruntime"):
        TableWriter.open_or_create(tmp_path / "again.lut", quick_profile(), describe)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published tables are not here")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_shipped_tables_are_what_the_published_files_say(tmp_path: Path, precision: str) -> None:
    path = SHARED / f"v100_tensorrt_{precision}.txt.gz"
    import_table(path, "alibaba-trt", tmp_path / "new.lut", Choices(batch=32))
    shipped = shipped_tables()[f"v100-tensorrt-{precision}-b32"]
    with LatencyTable.open(tmp_path / "new.lut") as new, LatencyTable.open(shipped) as old:
        assert new.operators() == old.operators()
        assert new.failures() == old.failures()


@pytest.mark.parametrize(("name", "operators", "failed"), [
    ("v100-tensorrt-fp32-b32", 23_634, 1_460), ("v100-tensorrt-fp16-b32", 22_165, 259),
])  # fmt: skip
def test_tables_that_ship(name: str, operators: int, failed: int) -> None:
    """Counts of rows with batch 32 in the published files, with and without a latency."""
    path = shipped_tables()[name]
    assert path.stat().st_size < 2 * 2**20
    with LatencyTable.open(path) as table:
        assert len(table.operators()) == operators
        assert len(table.failures()) == failed
        assert table.header["imported"]["licence"] == "Apache-2.0"
        assert table.header["device"] == "Tesla V100"


def test_a_whole_network_of_a_shipped_table_is_of_the_right_order() -> None:
    """ResNet-50, 32 images: 131 G MACs. The V100's data sheet says 125 TFLOPS (62.5 T MACs/s) in fp16, so 2.1 ms at
    least; convolutions that reach a fifth of that take 10 ms."""
    from hwnas.trace import ops_of

    torchvision = pytest.importorskip("torchvision.models")
    network = ops_of(torchvision.resnet50(weights=None), (3, 224, 224))
    with LatencyTable.open(shipped_tables()["v100-tensorrt-fp16-b32"]) as table:
        found = LatencyModel(table).predict(network)
    assert found.latency_ms is not None
    assert found.low_ms is not None
    assert found.high_ms is not None
    assert 2.1 < found.latency_ms < 10
    assert found.low_ms < 0.75 * found.latency_ms
    assert found.high_ms > 1.25 * found.latency_ms
    assert not found.calibrated
    assert found.coverage + found.interpolated + found.estimated == pytest.approx(1)
    assert found.interpolated > 0.8
    assert {op.op.kind for op in found.ops if op.how == "estimated"} == {"max_pool", "global_avg_pool", "linear"}


# -- proxyless-yaml --------------------------------------------------------------------------------------------------

YAML = """\
# a comment
Conv-input:224x224x3-output:112x112x32: {count: 10, mean: 3.0}
expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0: {
  count: 10,
  mean: 2.0}
'expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:5-stride:2-idskip:0':
  mean: 4.0
  count: 3
expanded_conv-input:56x56x24-output:56x56x24-expand:6-kernel:7-stride:1-idskip:1: {mean: 5.0}
Conv_1-input:7x7x320-output:7x7x1280: {mean: 1.5e0}
Logits-input:7x7x1280-output:1000: {mean: 0.5}
SomethingElse-input:7x7x1280-output:1000: {mean: 0.5}
"""


def bottleneck(shape: tuple[int, int, int], cout: int, expand: int, kernel: int, stride: int) -> list[Op]:
    """As the proxyless space builds it."""
    from hwnas.spaces.mobile import MBConv

    return [op.deployed() for op in MBConv(kernel, expand, shape[0], cout, stride).ops(shape)]


def block(ops: list[Op]) -> str:
    return BLOCK.join(op.key for op in ops)


def test_blocks_are_the_bottlenecks_of_the_space(tmp_path: Path) -> None:
    path = written(tmp_path, YAML)
    report = import_table(path, "proxyless-yaml", tmp_path / "out.lut", Choices(device="Pixel 1"))
    assert (report.operators, report.blocks, report.skipped) == (2, 4, {"SomethingElse": 1})
    with LatencyTable.open(tmp_path / "out.lut") as table:
        assert {name: found.latency_ms for name, found in table.blocks().items()} == {
            block(bottleneck((32, 112, 112), 16, 1, 3, 1)): 2.0,
            block(bottleneck((16, 112, 112), 24, 3, 5, 2)): 4.0,
            block(bottleneck((24, 56, 56), 24, 6, 7, 1)): 5.0,
            block([Op.global_avg_pool((1280, 7, 7)), Op.linear(1280, 1000)]): 0.5,
        }
        assert {key: found.latency_ms for key, found in table.operators().items()} == {
            Op.conv((3, 224, 224), 32, kernel=3, stride=2, bias=True, act="relu6").key: 3.0,
            Op.conv((320, 7, 7), 1280, kernel=1, bias=True, act="relu6").key: 1.5,
        }
        rows = {row.key: row for row in table.rows()}
        assert table.header["device"] == "Pixel 1"
    ops = bottleneck((24, 56, 56), 24, 6, 7, 1)
    assert rows[block(ops)].kind == "block"
    assert rows[block(ops)].macs == sum(op.macs for op in ops)


def proxyless_file(tmp_path: Path, *, without: str = "\0") -> tuple[Path, dict[str, float]]:
    """A block table of all that the proxyless space can be, as mit-han-lab names it, with latencies made up."""
    space = get_space("proxyless")
    rng = np.random.default_rng(0)
    means: dict[str, float] = {}

    def name(ops: tuple[Op, ...]) -> str:
        def shape(dims: tuple[int, ...]) -> str:
            return "x".join(map(str, (*dims[1:], dims[0])))

        depthwise = next(op for op in ops if op.depthwise)
        expand = depthwise.inputs[0][0] // ops[0].inputs[0][0]
        ends = f"input:{shape(ops[0].inputs[0])}-output:{shape(ops[-1].output)}"
        return (
            f"expanded_conv-{ends}-expand:{expand}-kernel:{depthwise.kernel[0]}-stride:{depthwise.stride[0]}"
            f"-idskip:{int(ops[-1].residual)}"
        )

    stem, *middle, head, _pool, _linear = space.fixed_ops()
    means["Conv-input:224x224x3-output:112x112x32"] = 3.0
    means["Conv_1-input:7x7x320-output:7x7x1280"] = 1.5
    means["Logits-input:7x7x1280-output:1000"] = 0.5
    assert (stem.output, head.output) == ((32, 112, 112), (1280, 7, 7))
    chains = [tuple(middle)]
    chains += [space.slot_ops(slot, c) for slot, choices in enumerate(space.slots) for c in range(len(choices))]
    for ops in chains:
        if ops:
            means.setdefault(name(ops), round(float(rng.uniform(1, 9)), 4))
    text = "".join(f"{key}: {{mean: {ms}}}\n" for key, ms in means.items() if without not in key)
    return written(tmp_path, text, "mobile.yaml"), means


def test_a_block_table_prices_the_slots_of_the_proxyless_space(tmp_path: Path) -> None:
    path, means = proxyless_file(tmp_path)
    space = get_space("proxyless")
    with imported(path, "proxyless-yaml") as table:
        model = LatencyModel(table)
    cost = model.cost(space)
    counts = model.priced(space)
    assert counts == {"measured": len(means), "interpolated": 0, "estimated": 0}
    # the fixed part is stem, first block, head and logits; every slot is its block's own mean
    first = next(ms for key, ms in means.items() if "expand:1-" in key)
    assert cost.prices.fixed == pytest.approx(3.0 + first + 1.5 + 0.5)
    expected = means["expanded_conv-input:56x56x24-output:56x56x24-expand:6-kernel:7-stride:1-idskip:1"]
    assert cost.prices.choices[1, list(space.slots[1]).index("k7e6")] == pytest.approx(expected)
    assert cost.prices.choices[1, list(space.slots[1]).index("skip")] == 0
    rng = np.random.default_rng(3)
    for _ in range(10):
        arch = space.sample(rng)
        found = model.predict(space.network(arch))
        assert found.latency_ms == pytest.approx(cost.prices.total_of(arch.genes))
        assert found.coverage == 1
    assert not model.calibrated


def test_a_block_that_is_missing_is_estimated_and_said(tmp_path: Path) -> None:
    gone = "expanded_conv-input:56x56x24-output:56x56x24-expand:6-kernel:7-stride:1-idskip:1"
    path, means = proxyless_file(tmp_path, without=gone)
    space = get_space("proxyless")
    with imported(path, "proxyless-yaml") as table:
        model = LatencyModel(table)
    counts = model.priced(space)
    assert counts["measured"] == len(means) - 1
    assert counts["estimated"] == 3  # expand, depthwise and project of the block
    cost = model.cost(space)
    slot, choice = 1, list(space.slots[1]).index("k7e6")
    price, upper = cost.prices.choices[slot, choice], cost.upper.choices[slot, choice]
    other = list(space.slots[1]).index("k7e3")
    assert upper / price > 1.5 * cost.upper.choices[slot, other] / cost.prices.choices[slot, other]


def test_mobilenet_v3_tables_of_once_for_all(tmp_path: Path) -> None:
    text = (
        "Conv-input:160x160x3-output:80x80x16: {mean: 1.0}\n"
        "expanded_conv-input:80x80x16-output:40x40x24-expand:64-kernel:5-stride:2-idskip:0-se:0-hs:0: {mean: 2.0}\n"
        "expanded_conv-input:40x40x24-output:40x40x24-expand:96-kernel:3-stride:1-idskip:1-se:1-hs:1: {mean: 2.5}\n"
        "AvgPool2D-input:5x5x960-output:1x1x960: {mean: 0.1}\n"
        "Conv_2-input:1x1x960-output:1x1x1280: {mean: 0.2}\n"
        "Logits-input:1x1x1280-output:1000: {mean: 0.3}\n"
    )
    path = written(tmp_path, text)
    report = import_table(path, "proxyless-yaml", tmp_path / "out.lut", Choices())
    assert report.skipped == {"expanded_conv with squeeze-and-excitation": 1}
    with LatencyTable.open(tmp_path / "out.lut") as table:
        assert list(table.blocks()) == [
            block([
                Op.conv((16, 80, 80), 64, kernel=1, bias=True, act="relu"),
                Op.conv((64, 80, 80), 64, kernel=5, stride=2, groups=64, bias=True, act="relu"),
                Op.conv((64, 40, 40), 24, kernel=1, bias=True),
            ])
        ]  # fmt: skip
        assert set(table.operators()) == {
            Op.conv((3, 160, 160), 16, kernel=3, stride=2, bias=True, act="hardswish").key,
            Op.global_avg_pool((960, 5, 5)).key,
            Op.conv((960, 1, 1), 1280, kernel=1, bias=True, act="hardswish").key,
            Op.linear(1280, 1000).key,
        }


FINE = "Conv-input:224x224x3-output:112x112x32: {mean: 3.0}\n"
BAD_YAML = {
    "no mean": "Conv-input:8x8x3-output:4x4x8: {count: 3}",
    "a list": "- 1",
    "an object": "Conv-input:8x8x3-output:4x4x8: !!python/object/apply:os.system ['true']",
    "an anchor": "Conv-input:8x8x3-output:4x4x8: &a {mean: 1}",
    "braces in braces": "Conv-input:8x8x3-output:4x4x8: {mean: {mean: 1}}",
    "never closed": "Conv-input:8x8x3-output:4x4x8: {mean: 1",
    "a word": "Conv-input:8x8x3-output:4x4x8: {mean: fast}",
    "twice": "Conv-input:8x8x3-output:4x4x8: {mean: 1, mean: 2}",
    "an output that cannot be": "Conv-input:8x8x3-output:5x5x8: {mean: 1}",
    "a giant": "Conv-input:8x8x3-output:4x4x99999999: {mean: 1}",
    "a residual that cannot be": (
        "expanded_conv-input:8x8x8-output:4x4x8-expand:3-kernel:3-stride:1-idskip:1: {mean: 1}"
    ),
    "no stride": "expanded_conv-input:8x8x8-output:8x8x8-expand:3-kernel:3-stride:0-idskip:1: {mean: 1}",
}


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_yaml_beyond_the_subset_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    assert "line 2" in refused(written(tmp_path, FINE + text + "\n"), "proxyless-yaml")


# -- fbnet-jsonl -----------------------------------------------------------------------------------------------------


def record(**changes: Any) -> dict[str, Any]:
    """The second depthwise convolution of the README's example."""
    return {
        "op_type": "Int8ConvRelu",
        "op_args": [
            'name: "group"\ni: 32\n', 'name: "kernel"\ni: 3\n', 'name: "order"\ns: "NHWC"\n', 'name: "pad"\ni: 1\n',
            'name: "stride"\ni: 1\n',
        ],
        "input_shapes": [[1, 112, 112, 32], [32, 3, 3, 1], [32]],
        "input_dtypes": [3, 3, 2],
        "runtime_us_p0": 340.0, "runtime_us_p10": 350.0, "runtime_us_p50": 363.0, "runtime_us_p90": 400.0,
        "runtime_us_p100": 900.0,
        "device": "SM-G950U-7.0-24",
    } | changes  # fmt: skip


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in records)


def test_operators_of_a_phone(tmp_path: Path) -> None:
    order = ['name: "order"\ns: "NHWC"\n']
    path = written(tmp_path, jsonl(
        record(),
        record(op_type="Int8Conv", op_args=order, input_shapes=[[1, 56, 56, 64], [24, 1, 1, 64], [24]]),
        record(op_type="Int8FC", op_args=[], input_shapes=[[1, 1, 1, 1280], [1000, 1280], [1000]]),
        record(op_type="Int8AveragePool", op_args=['name: "kernel"\ni: 7\n'], input_shapes=[[1, 7, 7, 1280]]),
        record(op_type="Int8Add", op_args=[], input_shapes=[[1, 56, 56, 24]] * 2),
        record(op_type="NCHW2NHWC", op_args=[], input_shapes=[[1, 3, 224, 224]]),
        record(op_type="Int8Quantize", op_args=[], input_shapes=[[1, 224, 224, 3]]),
        record(op_type="Int8Quantize", op_args=[], input_shapes=[[1, 112, 112, 3]]),
    ))  # fmt: skip
    report = import_table(path, "fbnet-jsonl", tmp_path / "out.lut", Choices())
    assert (report.operators, report.precision, report.batch_size) == (5, "int8", 1)
    assert report.skipped == {"NCHW2NHWC": 1, "Int8Quantize": 2}
    with LatencyTable.open(tmp_path / "out.lut") as table:
        found = table.operators()
        assert set(found) == {
            Op.conv((32, 112, 112), 32, kernel=3, groups=32, bias=True, act="relu").key,
            Op.conv((64, 56, 56), 24, kernel=1, bias=True).key,
            Op.linear(1280, 1000).key,
            Op.global_avg_pool((1280, 7, 7)).key,
            Op.add((24, 56, 56)).key,
        }
        estimate = next(iter(found.values()))
        assert (estimate.low_ms, estimate.latency_ms, estimate.high_ms) == pytest.approx((0.35, 0.363, 0.4))
        assert table.header["device"] == "SM-G950U-7.0-24"
        row = next(row for row in table.rows() if row.kind == "linear")
        assert row.size_bytes == Op.linear(1280, 1000).traffic_bytes(1)


def test_one_device_and_one_batch(tmp_path: Path) -> None:
    other = record(device="Another", input_shapes=[[2, 112, 112, 32], [32, 3, 3, 1], [32]])
    path = written(tmp_path, jsonl(record(), other))
    with pytest.raises(UsageError, match="--device-name"):
        import_table(path, "fbnet-jsonl", tmp_path / "out.lut", Choices())
    with imported(path, "fbnet-jsonl", Choices(device="Another")) as table:
        assert (table.header["device"], table.header["batch_size"]) == ("Another", 2)


BAD_RECORDS: dict[str, Any] = {
    "a list": [1, 2],
    "no type": record(op_type=None),
    "no device": record(device=""),
    "shapes of texts": record(input_shapes=[["1", 2]]),
    "a negative dimension": record(input_shapes=[[1, -112, 112, 32], [32, 3, 3, 1], [32]]),
    "true as a dimension": record(input_shapes=[[True, 112, 112, 32], [32, 3, 3, 1], [32]]),
    "weights that do not fit": record(input_shapes=[[1, 112, 112, 32], [32, 3, 3, 2], [32]]),
    "no weights": record(input_shapes=[[1, 112, 112, 32]]),
    "channels first": record(op_args=['name: "order"\ns: "NCHW"\n']),
    "arguments that are none": record(op_args=["kernel=3"]),
    "a stride of zero": record(op_args=['name: "group"\ni: 32\n', 'name: "stride"\ni: 0\n']),
    "percentiles out of order": record(runtime_us_p10=500.0),
    "nan": record(runtime_us_p50=float("nan")),
    "a latency as a list": record(runtime_us_p50=[1]),
}


@pytest.mark.parametrize("bad", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_is_refused_with_its_line(tmp_path: Path, bad: Any) -> None:
    assert "line 2" in refused(written(tmp_path, jsonl(record(), bad)), "fbnet-jsonl")


def test_an_arch_of_the_space_is_what_the_tests_think() -> None:
    """`proxyless_file` names blocks by the space's own operators: they are bottlenecks in order."""
    space = get_space("proxyless")
    ops = space.network(Arch("proxyless", tuple(0 for _ in space.slots))).ops
    assert ops[3].deployed().key == bottleneck((16, 112, 112), 24, 3, 3, 2)[0].key
