"""Spaces that are nets of a file of the user's own."""

from __future__ import annotations

import hashlib
import os
import py_compile
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.errors import HwnasError, UsageError
from hwnas.latency.check import _unusual
from hwnas.latency.groups import space_of
from hwnas.latency.table import MeasuredNetwork
from hwnas.measure.statistics import Estimate
from hwnas.spaces import GateSpace, atoms_from_json, find_space, own, user_code
from hwnas.spaces.widths import AtomArch

NETS = """
import torch
from torch import nn
from parts_of_own import Block

MEAN = torch.zeros(3)


class Tiny(nn.Module):
    def __init__(self, num_classes=10, width=8):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.2, 2)]  # as timm's nets do
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, num_classes)
        assert MEAN.tolist() == [0, 0, 0]

    def forward(self, x):
        return self.head(self.drop(self.blocks(self.stem(x)).mean((2, 3))))


def shaped(num_classes, input_shape):
    return Tiny(num_classes, input_shape[1])


def anything(**options):
    return Tiny(**options)


def wrong(num_classes):
    return Tiny(7)


def two(num_classes):
    class Two(Tiny):
        def forward(self, x):
            y = super().forward(x)
            return y, y
    return Two(num_classes)


def broken(num_classes):
    return Tiny(num_classes).nothing


def bare(classes):
    return Tiny(classes)


number = 3
made = Tiny(3)


class Changed(Tiny):
    def forward(self, x):
        return self.change(super().forward(x))


def chance(num_classes):
    net = Changed(num_classes)
    net.stem.append(nn.Dropout2d(0.1))
    net.change = lambda y: y
    return net


def called(num_classes):
    net = Changed(num_classes)
    net.change = lambda y: torch.nn.functional.dropout(y, 0.1, net.training)
    return net


def noisy(num_classes):
    net = Changed(num_classes)
    net.change = lambda y: y + 0.1 * torch.randn_like(y)
    return net


def deep(num_classes):
    return Block(0)


def transposed(num_classes):
    net = Tiny(num_classes)
    net.stem.append(nn.ConvTranspose2d(8, 8, 2))
    return net


def leaves(num_classes):
    raise SystemExit(3)


def three(num_classes):
    return 3
"""

PARTS = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        1 / width
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, width, 1))

    def forward(self, x):
        return x + self.body(x)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, in a folder with a space in its name, and a place of its own for what is remembered."""
    folder = tmp_path / "my nets"
    folder.mkdir()
    (folder / "nets.py").write_text(NETS)
    (folder / "parts_of_own.py").write_text(PARTS)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(own, "_known", {})
    monkeypatch.setattr(user_code, "_loaded", {})
    return folder / "nets.py"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process."""
    monkeypatch.setattr(own, "_known", {})
    monkeypatch.setattr(user_code, "_loaded", {})


def gates(name: object, size: int = 16, classes: int = 4) -> GateSpace:
    space = find_space(own.typed(str(name)), image_size=size, num_classes=classes)
    assert isinstance(space, GateSpace)
    return space


@pytest.mark.parametrize(("name", "width"), [("Tiny", 8), ("shaped", 16), ("anything", 8)])
def test_a_net_of_ones_own_is_a_space(nets: Path, name: str, width: int) -> None:
    space = gates(f"{nets}:{name}")
    assert space.name.startswith(f"nets.py:{name}@")
    assert [group.size for group in space.groups] == [width, 16, 16]
    arch = AtomArch(space.name, ((8,), (5,), (0,)))
    net = space.build(arch, generator=torch.Generator().manual_seed(0)).eval()
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
    assert space_of(f"{space.name} #3 0a1b2c") == space.name


def test_the_command_that_profiles_it_anew_has_its_sizes(nets: Path) -> None:
    space = gates(f"{nets}:Tiny")
    network = space.network(space.supernet_arch)
    net = MeasuredNetwork(f"{space.name} #0", (3, 16, 16), (), Estimate(1.0, 1.0, 1.0, 1), network)
    assert _unusual({space.name: net}) == ["--image-size", "16", "--num-classes", "4"]


def test_the_same_seed_gives_the_same_net_whatever_it_draws_itself(nets: Path) -> None:
    def weights() -> dict[str, torch.Tensor]:
        torch.manual_seed(int(np.random.default_rng().integers(1000)))
        before = torch.get_rng_state()
        net = gates(f"{nets}:Tiny").supernet(generator=torch.Generator().manual_seed(3))
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(type(part) is nn.Dropout for part in net.modules())  # its chance is seeded
        return net.state_dict()

    first, second = weights(), weights()
    assert first["scale"].abs().sum() > 0
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_found_nets_are_read_wherever_the_file_that_was_typed_is(
    nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nets.parent)
    space = gates("nets.py:Tiny")
    data = space.to_json(AtomArch(space.name, ((8,), (8,), (16,))))
    assert str(nets.parent) not in str(data)
    monkeypatch.chdir(tmp_path)
    forget(monkeypatch)
    again, arch = atoms_from_json(data)
    assert (again.name, arch.widths) == (space.name, ((8,), (8,), (16,)))
    assert own.source_of(space.name) == {"nets.py": NETS.encode(), "parts_of_own.py": PARTS.encode()}
    nets.rename(nets.with_name("others.py"))
    forget(monkeypatch)
    with pytest.raises(HwnasError, match=r"cannot be read .* name a file with that content"):
        atoms_from_json(data)
    assert gates(f"{nets.with_name('others.py')}:Tiny").name == space.name.replace("nets", "others")
    forget(monkeypatch)
    assert atoms_from_json(data)[0].name == space.name


def test_a_file_that_has_changed_is_another_space_and_nothing_else_is_run(
    nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = gates(f"{nets}:Tiny")
    data = space.to_json(AtomArch(space.name, ((8,), (8,), (16,))))
    nets.write_text(NETS.replace("width=8", "width=16"))
    forget(monkeypatch)
    with pytest.raises(HwnasError, match="has changed since: restore it"):
        atoms_from_json(data)
    changed = gates(f"{nets}:Tiny")
    assert changed.name != space.name
    assert changed.groups[0].size == 16


def test_what_a_document_names_is_not_run_unless_it_was_typed(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = gates(f"{nets}:Tiny")
    data = space.to_json(AtomArch(space.name, ((8,), (8,), (16,))))
    evil = nets.with_name("evil.py")
    evil.write_text("from pathlib import Path\nPath('was run').touch()\n" + NETS)
    digest = hashlib.sha256(evil.read_bytes()).hexdigest()[: own.DIGITS]
    monkeypatch.chdir(nets.parent)
    known = space.name.partition("@")[2]
    for name in (
        *(f"{path}:Tiny{at}" for path in ("evil.py", evil, "./evil.py") for at in ("", f"@{digest}")),
        f"nets.py:clean@{known}", f"{nets}:Tiny@{known}", "a\0.py:m", "\ud800.py:m",
        f"\x1b[31m.py:m@{known}", "~nobody/x.py:m",
    ):  # fmt: skip
        with pytest.raises(HwnasError, match=r"no such file was used on this machine|is no space|no space is called"):
            atoms_from_json({**data, "space": name})
        assert _unusual({name: MeasuredNetwork(name, (3, 8, 8), (), Estimate(1.0, 1.0, 1.0, 1))}) == []
    assert not (nets.parent / "was run").exists()
    assert len(list((nets.parent.parent / "state" / "hwnas" / "sources").iterdir())) == 1


def test_what_was_digested_is_what_is_run(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is cached beside the file, and however soon it is changed."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    old = nets.stat()
    first = gates(f"{nets}:Tiny")
    parts = nets.with_name("parts_of_own.py")
    parts.write_text(PARTS.replace("16", "4"))
    py_compile.compile(str(parts), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    parts.write_text(PARTS)
    changed = NETS.replace("width=8", "width=9")
    py_compile.compile(str(nets), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    nets.write_text(changed)
    os.utime(nets, ns=(old.st_atime_ns, old.st_mtime_ns))
    second = gates(f"{nets}:Tiny")
    assert (first.full[0], second.full[0]) == ((8,), (9,))  # read after the file was changed
    assert second.full[1] == (16,)  # as the helper's file says, not what is cached beside it
    assert own.source_of(first.name)["nets.py"] == NETS.encode()
    assert own.source_of(second.name)["nets.py"] == changed.encode()
    assert find_space(first.name).name == first.name  # while a search goes on, an edit changes nothing


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny", "has no function or class 'tiny': did you mean 'Tiny'"),
        ("zzz", "has no function or class 'zzz'; it has"),
        ("chance", r"stem.3 \(Dropout2d\) draws from torch's own generator"),
        ("called", "dropout draws from torch's own generator"),
        ("noisy", "randn_like draws from torch's own generator"),
        ("made", "is a net: a function or class that makes one was expected"),
        ("deep", r"made no net of 4 classes: ZeroDivisionError: .* \(parts_of_own.py line \d+\)"),
        ("number", "has no function or class 'number'"),
        ("broken", r"made no net of 4 classes: AttributeError: .*nothing.* \(line \d+\)"),
        ("bare", r"it takes no num_classes: write def bare\(num_classes: int\)"),
        ("leaves", "made no net of 4 classes: SystemExit: 3"),
        ("three", "gave int: a torch.nn.Module was expected"),
        ("wrong", "gives 7 for an image: 4 numbers, one for each class, were expected"),
        ("two", "gives 4 and 4 for an image"),
    ],
)
def test_what_makes_no_net_is_said_in_a_line(nets: Path, name: str, message: str) -> None:
    with pytest.raises(HwnasError, match=message) as refused:
        _ = gates(f"{nets}:{name}").groups
    assert "\n" not in str(refused.value)


def test_what_has_no_cost_is_refused_before_anything_is_trained(nets: Path) -> None:
    space = gates(f"{nets}:transposed")
    with pytest.raises(HwnasError, match=r"nobody here knows what stem.3 \(ConvTranspose2d\) costs"):
        space.network(space.supernet_arch)


def test_what_is_imported_when_the_net_is_made_belongs_to_it_too(nets: Path) -> None:
    nets.write_text("def net(num_classes):\n    from lib.more import Tiny\n    return Tiny(num_classes)\n")
    (nets.parent / "lib").mkdir()
    (nets.parent / "lib" / "more.py").write_text(NETS)
    space = gates(f"{nets}:net")
    assert list(own.source_of(space.name)) == ["nets.py", "lib/more.py", "parts_of_own.py"]
    assert space.full == ((8,), (16,), (16,))
    assert not any(name == "lib" or name.startswith("lib.") for name in sys.modules)


def test_files_that_have_helpers_of_one_name_do_not_share_them(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = nets.parent.parent / "others"
    other.mkdir()
    (other / "nets.py").write_text(NETS)
    (other / "parts_of_own.py").write_text(PARTS.replace("16", "24"))
    first, second = gates(f"{nets}:Tiny"), gates(f"{other / 'nets.py'}:Tiny")
    assert first.name != second.name
    assert (first.full[1], second.full[1]) == ((16,), (24,))
    assert "parts_of_own" not in sys.modules
    assert str(nets.parent) not in sys.path
    # a helper that was changed since is one more reason not to read a found net
    data = first.to_json(AtomArch(first.name, ((8,), (8,), (16,))))
    (nets.parent / "parts_of_own.py").write_text(PARTS.replace("ReLU", "SiLU"))
    forget(monkeypatch)
    with pytest.raises(HwnasError, match="and what it imports, which has changed since"):
        atoms_from_json(data)
    copy = nets.parent / "run" / own.COPY
    copy.mkdir(parents=True)
    (copy / "nets.py").write_text(NETS)
    (copy / "parts_of_own.py").write_text(PARTS)
    assert gates(f"{copy / 'nets.py'}:Tiny").name == first.name
    assert atoms_from_json(data)[0].name == first.name


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def Tiny(:\n", r"does not run: SyntaxError: .* \(line 1\)"),
        ("\nimport nothing_of_this_name\n", r"does not run: ModuleNotFoundError: .* \(line 2\)"),
        ("import sys\nsys.exit(3)\n", "does not run: SystemExit"),
    ],
)
def test_a_file_that_does_not_run_is_said_in_a_line(nets: Path, source: str, message: str) -> None:
    nets.write_text(source)
    for _ in range(2):
        with pytest.raises(UsageError, match=message):
            _ = gates(f"{nets}:Tiny").groups
    loop = nets.with_name("loop.py")
    loop.symlink_to(loop)
    folder, pipe, large = (nets.with_name(f"{name}.py") for name in ("folder", "pipe", "large"))
    folder.mkdir()
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(own.MOST_BYTES + 1)
    for path in (
        folder,
        pipe,
        large,
        nets.with_name("none.py"),
        loop,
        "~nobody_of_this_name/x.py",
        "a\0.py",
        nets.parent,
    ):
        with pytest.raises(UsageError, match=r"cannot be read|no space is called"):
            gates(f"{path}:Tiny")
    nets.rename(nets.with_name("my nets.py"))
    with pytest.raises(UsageError, match="give the file a name without blanks"):
        gates(f"{nets.with_name('my nets.py')}:Tiny")


def test_without_a_place_to_remember_it_is_known_in_the_process(
    nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    space = gates(f"{nets}:Tiny")
    data = space.to_json(AtomArch(space.name, ((8,), (8,), (16,))))
    assert atoms_from_json(data)[0].name == space.name
    forget(monkeypatch)
    with pytest.raises(HwnasError, match="no such file was used"):
        atoms_from_json(data)


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("figs-fbnet-tiny@full", "figs-fbnet-tiny-full"),
        ("torchvision:resnet18", "torchvision-resnet18"),
        ("ab.py:Tiny@0123456789abcdef", "ab-Tiny-012345"),
    ],
)
def test_names_of_folders(text: str, folder: str) -> None:
    assert own.short_name(text) == folder
