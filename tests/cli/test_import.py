"""`lut import`, tables that ship, and what `predict` and `search` say where they are not sure."""

from __future__ import annotations

import shutil
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, Hwnas
from tiny_fashion import TINY_RECIPE, write_fashion_mnist

V100 = "v100-tensorrt-fp16-b32"
IMPORT = {
    "lut", "format", "device", "runtime", "precision", "batch_size", "source", "licence", "operators", "blocks",
    "failed", "duplicates", "skipped",
}  # fmt: skip


@pytest.fixture
def rows(hwnas: Hwnas) -> Path:
    """Some rows of the published format."""
    path = hwnas.folder / "rows_fp16.txt"
    lines = [f"{{Regular,32,{cin},{side},{side},{cout},1,1,0}} {0.01 + cin * cout * side * side / 1e8:.5f}"
             for cin in (16, 32, 64) for cout in (16, 32, 64) for side in (14, 28)]  # fmt: skip
    path.write_text("\n".join([*lines, "{Depthwise,32,16,28,28,16,3,1,0} -1", "{Regular,1,16,7,7,16,1,1,0} 0.1"]))
    return path


def test_an_import_and_its_table(hwnas: Hwnas, rows: Path) -> None:
    args = ("lut", "import", rows, "--format", "alibaba-trt", "--batch", "32", "--out", "x.lut")
    document = hwnas(*args, "--json").document
    assert set(document) >= IMPORT
    assert (document["operators"], document["failed"], document["precision"]) == (18, 1, "fp16")
    human = hwnas(*args)
    assert human.code == 0
    assert "1 could not be measured by the source" in human.stdout
    shown = hwnas("lut", "show", "x.lut", "--json").document
    assert shown["imported"]["licence"] == "Apache-2.0"
    assert shown["entries"] == 19
    assert all(row["imported"] and row["samples"] == 0 for row in shown["rows"])
    text = hwnas("lut", "show", "x.lut", "--limit", "2").stdout
    assert "imported, not measured here, uncalibrated: https://github.com/alibaba/" in text
    assert "Tesla V100, tensorrt unknown, fp16, batch 32\n" in text
    (listed,) = [entry for entry in hwnas("lut", "list", "--root", ".", "--json").document if not entry["shipped"]]
    assert (listed["imported"], listed["threads"]) == (True, None)


def test_what_an_import_refuses(hwnas: Hwnas, rows: Path) -> None:
    base = ("lut", "import", rows, "--out", "x.lut")
    several = hwnas(*base, "--format", "alibaba-trt")
    assert several.code == 2
    assert "choose one of 1, 32 with --batch" in several.error
    assert hwnas(*base, "--format", "csv").code == 2
    assert hwnas("lut", "import", rows, "--format", "alibaba-trt").code == 2
    rows.write_text("{Regular,32,16,14,14,16,1,1,0} 0.1\nnonsense\n")
    bad = hwnas(*base, "--format", "alibaba-trt")
    assert bad.code == 1
    assert "rows_fp16.txt, line 2: " in bad.error
    assert not (hwnas.folder / "x.lut").exists()


def test_tables_that_ship_have_names(hwnas: Hwnas) -> None:
    done = hwnas("lut", "list", "--json")
    assert [entry["lut"] for entry in done.document] == ["v100-tensorrt-fp16-b32", "v100-tensorrt-fp32-b32"]
    assert all(entry["shipped"] and entry["imported"] for entry in done.document)
    assert "no tables in tables/" in done.stderr
    assert V100 in hwnas("lut", "list").stdout
    shown = hwnas("lut", "show", V100, "--limit", "3", "--json").document
    assert len(shown["rows"]) == 3
    misspelt = hwnas("predict", "zoo:mobilenet-v2", "--lut", "v100-tensorrt-fp16")
    assert misspelt.code == 2
    assert f"did you mean {V100!r}" in misspelt.error
    # a file of that name wins
    shutil.copy(ROOT / "lut" / "v100-tensorrt-fp32-b32.lut", hwnas.folder / V100)
    assert hwnas("lut", "show", V100, "--limit", "1", "--json").document["precision"] == "fp32"


def test_shipped_tables_are_never_written_to(hwnas: Hwnas) -> None:
    before = (ROOT / "lut" / f"{V100}.lut").read_bytes()
    done = hwnas("predict", "zoo:mobilenet-v2", "--lut", V100, "--measure")
    assert done.code == 1
    assert "was imported (Tesla V100, tensorrt)" in done.error
    assert (ROOT / "lut" / f"{V100}.lut").read_bytes() == before
    assert sorted(path.name for path in (ROOT / "lut").iterdir() if path.suffix not in (".lut", ".py", ".md")) in (
        [], ["__pycache__"],
    )  # fmt: skip


def test_predict_says_what_is_interpolated_and_estimated(hwnas: Hwnas) -> None:
    done = hwnas("predict", "zoo:mobilenet-v2", "--lut", V100, "--json")
    document = done.document
    shares = [document[key] for key in ("coverage", "interpolated", "estimated")]
    assert sum(shares) == pytest.approx(1)
    assert document["interpolated"] > 0.8
    assert 0 < document["estimated"] < 0.1
    assert document["calibrated"] is False
    assert document["missing"] == []
    assert document["low_ms"] < 0.7 * document["latency_ms"] < 1.3 * document["latency_ms"] < document["high_ms"]
    assert {entry["how"] for entry in document["ops"]} >= {"interpolated", "estimated"}
    assert "latencies are those of Tesla V100" in done.stderr
    human = hwnas("predict", "zoo:mobilenet-v2", "--lut", V100).stdout
    assert "% interpolated" in human
    assert document["guessed"] in " ".join(human.split())
    assert "% estimated from bytes and MACs; uncalibrated" in human


def test_predict_interpolates_in_a_table_of_this_machine_too(hwnas: Hwnas, measured: Any) -> None:
    """One depthwise convolution and the classifier are taken out: the first has neighbours, the second has none."""
    path = Path(shutil.copy(measured.lut, hwnas.folder / "t.lut"))
    with sqlite3.connect(path) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM entries WHERE role = 'operator'")]
        lost = next(name for name in names if " k5 " in name and " g" in name)
        for name in (lost, next(name for name in names if name.startswith("linear"))):
            connection.execute("DELETE FROM visits WHERE entry = (SELECT id FROM entries WHERE name = ?)", (name,))
            connection.execute("DELETE FROM entries WHERE name = ?", (name,))
    connection.close()
    document = hwnas("predict", "zoo:mobilenet-v2", "--lut", path, "--json").document
    assert document["latency_ms"] is None
    assert document["estimated"] == 0
    assert any(key.startswith("linear") for key in document["missing"])
    assert document["guessed"].startswith(f"{document['coverage']:.1%} of the operators measured, ")
    assert document["guessed"].endswith("interpolated between measured ones")
    human = hwnas("predict", "zoo:mobilenet-v2", "--lut", path).stdout
    assert document["guessed"] in " ".join(human.split())
    assert "--measure" in human


def test_a_search_without_a_gpu_in_sight(hwnas: Hwnas) -> None:
    (hwnas.folder / "tiny.toml").write_text(TINY_RECIPE)
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    args = ("search", "--lut", V100, "--latency", "zoo:mobilenet-v2", "--space", "proxyless-tiny",
            "--recipe", "tiny.toml", "--out", "run")  # fmt: skip
    refused = hwnas(*args, env=env)
    assert refused.code == 1
    assert "add --allow-uncalibrated" in refused.error
    assert not (hwnas.folder / "run").exists()
    done = hwnas(*args, "--allow-uncalibrated", "--json", env=env)
    (result,) = done.document["results"]
    assert result["high_ms"] <= result["budgets"][0]["limit"]
    guessed = hwnas("predict", "zoo:mobilenet-v2", "--lut", V100, "--json").document["guessed"]
    assert done.document["zoo"] == {"mobilenet-v2": guessed}
    assert f"zoo:mobilenet-v2 rests on more than measurements: {guessed}" in " ".join(done.stderr.split())
    assert result["predicted_ms"] < 0.7 * result["high_ms"]
    operators = done.document["table"]["operators"]
    assert operators["interpolated"] > 40
    assert operators["estimated"] == 2
    assert sum(operators.values()) == 56
    assert f"{operators['interpolated']} interpolated between measured ones, 2 estimated from bytes" in done.stderr
    assert "intervals are wide" in done.stderr
    notes = tomllib.loads((hwnas.folder / "run" / "run.toml").read_text())["notes"]
    assert notes["zoo"] == done.document["zoo"]
    noted = notes["table"]
    assert noted["operators"] == operators
    assert (noted["imported"], noted["calibrated"], noted["device"]) == (True, False, "Tesla V100")
    elsewhere = hwnas("verify", "run", env=env)
    assert elsewhere.code == 1
    assert "Tesla V100" in elsewhere.error
    assert "--device" in elsewhere.error


def test_no_budget_in_reach_of_a_foreign_table(hwnas: Hwnas) -> None:
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    done = hwnas("search", "--lut", V100, "--latency", "0.01ms", "--space", "proxyless-tiny", "--allow-uncalibrated",
                 env=env)  # fmt: skip
    assert done.code == 3
    assert "no architecture" in done.error
