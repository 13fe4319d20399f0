"""Help, names and suggestions of the installed command, and that asking for them costs nothing."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from command import Hwnas

LUT = ("list", "show", "import", "check", "merge", "diff", "export")
COMMANDS = (
    "devices",
    "profile",
    "lut",
    *(f"lut {name}" for name in LUT),
    "predict",
    "search",
    "train",
    "verify",
    "export",
)

OPTIONS = {
    "profile": "--device --space --model --batch --precision --runtime --threads --target-error --lut --image-size "
    "--num-classes",
    "lut list": "--root",
    "lut show": "--lut --sort --limit",
    "lut import": "--format --out --batch --precision --device-name --source --licence",
    "lut check": "--lut --sample --seed",
    "lut merge": "--out",
    "lut export": "--lut --format --out",
    "predict": "--lut --measure",
    "search": "--method --space --data --lut --device --latency --macs --params --bitops --out --recipe --population "
    "--generations --allow-uncalibrated",
    "train": "--data --from --recipe",
    "verify": "--device --latency",
    "export": "--out --format",
}
"""Options that the contract names."""

COMMON = ("--json", "--quiet", "--debug", "--config", "--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(hwnas: Hwnas, command: str) -> None:
    done = hwnas(*command.split(), "--help")
    assert done.code == 0
    assert "Example:\n" in done.stdout
    assert f"hwnas {command}" in done.stdout.split("Example:\n")[1]
    wanted = OPTIONS.get(command, "").split() + ([] if command == "lut" else list(COMMON))
    assert [name for name in wanted if name not in done.stdout] == []


def test_the_help_of_all_names_every_command_and_lists_no_other(hwnas: Hwnas) -> None:
    listing = hwnas("--help").stdout.split("Commands:\n")[1]
    names = [line.split()[0] for line in listing.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    assert names == ["devices", "profile", "lut", "predict", "search", "train", "verify", "export"]


@pytest.mark.parametrize("command", ["profile", "search"])
def test_the_help_names_every_space(hwnas: Hwnas, command: str) -> None:
    from hwnas.cli.choices import ATOM_SPACES as ATOMS
    from hwnas.cli.choices import GATE_SPACES as GATES
    from hwnas.cli.choices import SPACES as NAMED

    from hwnas.spaces import ATOM_SPACES, GATE_SPACES, SPACES

    assert set(SPACES) == {f"{name}{form}" for name in NAMED for form in ("", "-tiny")}
    assert set(ATOMS) == set(ATOM_SPACES)
    assert {form for name in GATES for form in (name, f"{name}-tiny")} == set(GATE_SPACES)
    text = " ".join(hwnas(command, "--help").stdout.split()).replace("- ", "-")  # lines end at hyphens too
    assert all(name in text for name in NAMED)


def test_help_is_quick(hwnas: Hwnas) -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        hwnas("--help")
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5  # the machine may be busy with something else: the quickest says what it takes


@pytest.mark.parametrize("args", [["--help"], ["search", "--help"], ["lut", "show", "--help"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys; from hwnas.cli.main import run; code = run(sys.argv[1:]); "
        "heavy = {'torch', 'pandas', 'scipy', 'numpy', 'onnx', 'onnxruntime', 'pydantic', 'matplotlib'}; "
        "sys.exit(code or ', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(hwnas: Hwnas) -> None:
    from hwnas import __version__

    assert hwnas("--version").stdout == f"hwnas {__version__}\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["serch"], "did you mean 'search'?"),
        (["lut", "shw"], "did you mean 'show'?"),
        (["search", "--latncy", "17ms"], "'--latency'"),
        (["profile", "--batch", "0"], "--batch"),
        (["profile", "--target-error", "5"], "write it as 1% or 0.01"),
        (["lut", "show", "--sort", "colour"], "gmacs"),
        (["predict"], "MODEL"),
    ],
)
def test_misspelt_commands_and_options_exit_2_and_name_the_nearest(hwnas: Hwnas, args: list[str], says: str) -> None:
    done = hwnas(*args)
    assert done.code == 2
    assert done.stdout == ""
    assert says in done.error
