"""What is installed: every package of the tree, the data files, and nothing under a name of another project."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import ROOT
from tiny_fashion import TINY_RECIPE, write_fashion_mnist

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def installed_name(folder: Path) -> str:
    """The package that `folder` of the repository is installed as."""
    for package, source in sorted(SETUPTOOLS["package-dir"].items(), key=lambda item: -len(item[1])):
        if folder == ROOT / source or (ROOT / source) in folder.parents:
            return ".".join([package, *folder.relative_to(ROOT / source).parts])
    raise AssertionError(f"{folder} is in no package")


def test_every_package_of_the_tree_is_listed() -> None:
    sources = ("hwnas", "cli", "profiles", "lut")
    folders = {path.parent for source in sources for path in (ROOT / source).rglob("*.py")}
    assert sorted(installed_name(folder) for folder in folders) == sorted(SETUPTOOLS["packages"])
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_the_version_is_said_once() -> None:
    from hwnas import __version__

    assert PYPROJECT["project"]["version"] == __version__


def tracked(pattern: str) -> set[str]:
    return {path.name for path in ROOT.glob(pattern)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel that is built from it, of a copy of the tree."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "tree"
    names = ["hwnas", "cli", "profiles", "lut", "tests", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"]
    copy.mkdir()
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in names), str(copy)], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_the_wheel_holds_code_and_data_and_no_module_of_another_name(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names} == {"hwnas", f"hwnas-{PYPROJECT['project']['version']}.dist-info"}
    assert "hwnas/py.typed" in names
    assert {f"hwnas/_data/profiles/{name}" for name in tracked("profiles/*.toml")} <= names
    assert len(tracked("lut/*.lut")) >= 2
    assert {f"hwnas/_data/lut/{name}" for name in tracked("lut/*.lut") | {"README.md"}} <= names
    assert {f"hwnas/train/recipes/{name}" for name in tracked("hwnas/train/recipes/*.toml")} <= names
    assert {f"hwnas/cli/{name}" for name in tracked("cli/*.py")} <= names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "hwnas").rglob("*.py")}
    assert modules <= names


@pytest.mark.slow
def test_the_source_archive_can_be_built_and_read(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "hwnas/py.typed", "cli/main.py"} <= names
    assert {f"profiles/{name}" for name in tracked("profiles/*.toml")} <= names
    assert {f"lut/{name}" for name in tracked("lut/*.lut")} <= names
    assert {f"hwnas/train/recipes/{name}" for name in tracked("hwnas/train/recipes/*.toml")} <= names


@dataclass(frozen=True)
class Installed:
    """The wheel in a folder of its own, ahead of the repository's own installation; commands run in `folder`."""

    site: Path
    folder: Path

    def __call__(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.site / "bin" / "hwnas"), *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env={**self.env, **env})

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.site), "PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def installed(built: Path) -> Installed:
    site, folder = built / "site", built / "work"
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(next(built.glob("*.whl")))], check=True)
    found = Installed(site, folder)
    where = f"import hwnas, hwnas.cli as c; assert hwnas.__file__.startswith({str(site)!r}) and 'site' in c.__file__"
    subprocess.run([sys.executable, "-c", where], check=True, cwd=folder, env=found.env)
    return found


@pytest.mark.slow
def test_the_installed_wheel_runs_outside_the_repository(installed: Installed) -> None:
    helped = installed("--help")
    assert helped.returncode == 0, helped.stderr
    assert "hwnas search --latency 17ms" in helped.stdout
    devices = installed("devices", "--json")
    assert devices.returncode == 0, devices.stderr
    assert '"name": "cpu"' in devices.stdout


@pytest.mark.slow
def test_the_three_headline_commands_as_typed(installed: Installed) -> None:
    (installed.folder / "tiny.toml").write_text(TINY_RECIPE)
    fashion = write_fashion_mnist(installed.folder / "fashion")
    profiled = installed("profile", "--device", "cpu")
    assert profiled.returncode == 0, profiled.stderr
    assert "using --space proxyless and proxyless-tiny (default)" in profiled.stderr
    # the recipe comes from its variable, because the default one trains for a quarter of an hour
    searched = installed("search", "--latency", "17ms", HWNAS_RECIPE="tiny.toml", HWNAS_FASHION_MNIST=str(fashion))
    assert searched.returncode == 0, searched.stderr
    assert "does not bind" in searched.stderr
    verified = installed("verify", HWNAS_FASHION_MNIST=str(fashion))
    assert verified.returncode == 0, verified.stderr
    assert "within budget" in verified.stdout
