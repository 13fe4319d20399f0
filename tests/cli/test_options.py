"""Where option values come from: flag, then variable, then configuration file, then default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import Hwnas


def own(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the tables that ship."""
    return [entry for entry in listed if not entry["shipped"]]


def table_root(hwnas: Hwnas, *args: str, env: dict[str, str] | None = None) -> str:
    """The folder that `lut list` looked into, as it says itself."""
    done = hwnas("lut", "list", *args, env=env)
    assert done.code == 0, done.stderr
    return done.stderr.split("/:")[0].removeprefix("no tables in ")


def test_flag_wins_over_variable_over_file_over_default(hwnas: Hwnas) -> None:
    (hwnas.folder / "c.toml").write_text('root = "from-file"\n')
    variable = {"HWNAS_ROOT": "from-variable"}
    assert table_root(hwnas) == "tables"
    assert table_root(hwnas, "--config", "c.toml") == "from-file"
    assert table_root(hwnas, "--config", "c.toml", env=variable) == "from-variable"
    assert table_root(hwnas, "--config", "c.toml", "--root", "from-flag", env=variable) == "from-flag"


def test_a_section_is_for_one_command_and_wins_over_the_top(hwnas: Hwnas) -> None:
    (hwnas.folder / "c.toml").write_text('root = "top"\nlatency = "17ms"\n["lut list"]\nroot = "mine"\n')
    assert table_root(hwnas, "--config", "c.toml") == "mine"


def test_flags_come_from_files_and_variables_too(hwnas: Hwnas) -> None:
    (hwnas.folder / "c.toml").write_text("json = true\n")
    assert own(hwnas("lut", "list", "--config", "c.toml").document) == []
    assert own(hwnas("lut", "list", env={"HWNAS_JSON": "1"}).document) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('rot = "x"', "unknown key 'rot': did you mean 'root'?"),
        ('["lut list"]\nlatency = "17ms"', "[lut list] unknown key 'latency'"),
        ('[serch]\nlatency = "17ms"', "did you mean 'search'?"),
        ("root = ", "not a TOML file"),
        ("json = 1", "json must be true or false"),
        ("root = true", "root must be a value"),
        (b"\xff\xfe", "not a TOML file"),
    ],
)
def test_bad_configuration_files_exit_2(hwnas: Hwnas, content: str | bytes, says: str) -> None:
    path = hwnas.folder / "c.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = hwnas("lut", "list", "--config", "c.toml")
    assert done.code == 2
    assert says in done.error


def test_a_configuration_file_that_is_not_there(hwnas: Hwnas) -> None:
    done = hwnas("lut", "list", "--config", "no.toml")
    assert done.code == 1
    assert "no.toml" in done.error


def test_a_misspelt_variable_is_an_error(hwnas: Hwnas) -> None:
    done = hwnas("lut", "list", env={"HWNAS_LATENCI": "17ms"})
    assert done.code == 2
    assert "HWNAS_LATENCY" in done.error
    assert hwnas("lut", "list", env={"HWNAS_LATENCY": "17ms"}).code == 0  # another command's option


def test_quiet_says_nothing_on_stderr(hwnas: Hwnas, tmp_path: Path) -> None:
    assert hwnas("lut", "list", "--quiet").stderr == ""
