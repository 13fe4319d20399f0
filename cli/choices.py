"""Choices a user may leave to hwnas: the device, the table, the run. What was chosen is said on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import HwnasError

from .options import Function, option
from .terminal import Terminal

if TYPE_CHECKING:
    from hwnas.devices import DeviceProfile
    from hwnas.network import Network
    from hwnas.spaces import Space, WidthSpace

DEVICE = "cpu"

DEFAULT_SPACES = ("proxyless", "proxyless-tiny")
"""What is profiled and searched where no space is named, for large images and for small ones."""

SPACES = ("proxyless", "proxyless-gpu", "fbnet", "spos-shufflenet", "spos-channels", "spos-joint",
          "resnet18-quant", "resnet34-quant")  # fmt: skip
"""The search spaces that help texts name, here so that help need not import them."""

ATOM_SPACES = ("atomnas-a", "atomnas-b", "atomnas-c", "atomnas-tiny")
"""The spaces of atoms, for the methods atomnas, atomnas-equal and width."""

GATE_SPACES = ("figs-oneshot", "figs-fbnet", "figs-resnet50", "figs-resnet152")
"""The spaces of gated channels, for the methods figs, morphnet, width and random."""

SPACE_NAMES = (
    f"{', '.join(SPACES)}, each has a NAME-tiny for images up to 64 pixels; "
    "spos-channels@BLOCKS, @zoo:NAME or @RUN searches channels on those blocks instead of choice_3; "
    "atomnas-a/-b/-c or atomnas-tiny; "
    f"{', '.join(GATE_SPACES)}, each with a NAME-tiny, or torchvision:NAME"
)


def device_options(function: Function) -> Function:
    """The options that say on what, and how, is measured."""
    decorators = (
        option("--device", metavar="DEVICE", help="A profile's name or a path to one  [default: cpu]"),
        option("--batch", type=click.IntRange(1), metavar="N", help="Images in one run  [default: the profile's]"),
        option("--precision", metavar="NAME", help="fp32 (the only one in this version)"),
        option("--runtime", metavar="NAME", help="onnxruntime or openvino  [default: the profile's]"),
        option("--threads", type=click.IntRange(0), metavar="N", help="0 is all cores  [default: the profile's]"),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def device_profile(
    terminal: Terminal,
    device: str | None,
    batch: int | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    target_error: float | None = None,
) -> DeviceProfile:
    """The profile that the device options name, with what they change."""
    from hwnas.devices import find_profile, with_runtime

    if device is None:
        device = DEVICE
        terminal.default("--device", device)
    profile = find_profile(device)
    if runtime is not None:
        profile = with_runtime(profile, runtime)
    return profile.override(batch_size=batch, precision=precision, threads=threads, target_error=target_error)


def table_path(terminal: Terminal, lut: Path | None, profile: DeviceProfile) -> Path:
    """Where the table of `profile` is, or will be."""
    from hwnas.latency.table import default_path

    if lut is not None:
        return lut
    path = default_path(profile)
    terminal.default("--lut", path)
    return path


def chosen_table(
    terminal: Terminal,
    lut: Path | None,
    profile: DeviceProfile | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    space: Space | WidthSpace | None = None,
) -> Path | None:
    """The table that was named, else the newest under ``tables/`` that fits; None where there is none.

    Args:
        lut: as typed.
        profile: only tables of this profile on this very device fit.
        given: header keys that options fixed (batch_size, threads, precision), None and others are the table's to say.
        space: whose operators a table must hold.
    """
    from hwnas.latency.atoms import kernels
    from hwnas.latency.lowering import lowering
    from hwnas.latency.shipped import table_file
    from hwnas.latency.slots import SpaceKernels
    from hwnas.latency.table import LatencyTable, list_tables
    from hwnas.spaces import WidthSpace

    if lut is not None:
        return table_file(lut)
    for info in list_tables():
        if profile is not None and not _fits(info.header, profile, given or {}):
            continue
        if space is not None:
            with LatencyTable.open(info.path) as table:
                lower = lowering(table.header)
                if isinstance(space, WidthSpace):
                    wanted = kernels(space, lower)
                else:
                    wanted = SpaceKernels.of(space, lower).every()
                if not {op.key for op in wanted} <= set(table.names("operator")):
                    continue
        terminal.default("--lut", info.path, "the newest that fits")
        return info.path
    return None


def _fits(header: Mapping[str, Any], profile: DeviceProfile, given: Mapping[str, Any]) -> bool:
    from hwnas.measure.hardware import cpu_name

    wanted = {key: value for key, value in given.items() if value is not None}
    if "threads" in wanted:  # a table says how many there were, never 0 for all cores
        wanted["threads"] = profile.override(threads=wanted["threads"]).thread_count
    mine = header["profile"]["name"] == profile.name and header["runtime"] == profile.runtime
    return mine and header["device"] == cpu_name() and all(header[key] == value for key, value in wanted.items())


def named_table(terminal: Terminal, lut: Path, device: str | None) -> Path:
    """The table that was named, by its path or as one that ships; of another device it is used only knowingly.

    There need not be one yet.

    Raises:
        HwnasError: `device` was named too, and the table is of another one or of another runtime.
    """
    from hwnas.devices import find_profile
    from hwnas.latency.shipped import table_file
    from hwnas.latency.table import LatencyTable
    from hwnas.measure.hardware import cpu_name

    lut = table_file(lut)
    here = cpu_name()  # every profile of this version measures this machine's CPU
    profile = find_profile(device) if device is not None else None  # a misspelt one is an error with a table too
    if lut.exists():
        with LatencyTable.open(lut) as table:
            measured, runtime = table.header["device"], table.header["runtime"]
        if measured != here and device is not None:
            raise HwnasError(f"{lut} was measured on {measured}, --device {device} is {here}: leave one of them out")
        if profile is not None and runtime != profile.runtime:
            raise HwnasError(f"{lut} was measured with {runtime}, --device {device} is {profile.runtime}: "
                             "leave one of them out")  # fmt: skip
        if measured != here:
            terminal.note(f"latencies are those of {measured}, where {lut} was measured; this machine is {here}")
    return lut


def table_profile(path: Path) -> DeviceProfile:
    """The profile that a table was made with: what is compared with the table has to be measured in the same way.

    Raises:
        HwnasError: this hwnas does not know such a profile.
    """
    from pydantic import ValidationError

    from hwnas.devices import DeviceProfile
    from hwnas.latency.table import LatencyTable

    with LatencyTable.open(path) as table:
        if table.header.get("imported"):
            raise HwnasError(
                f"{path} was imported ({table.header['device']}, {table.header['runtime']}): nothing can be measured "
                "as it was; give the --lut of a table made with 'hwnas profile'"
            )
        try:
            return DeviceProfile.model_validate(table.header["profile"])
        except ValidationError:
            raise HwnasError(
                f"{path} was made by another hwnas, with a profile unknown to this one: profile anew, to another --lut"
            ) from None


MOST_PIXELS = 320
"""Networks of larger images take long, and tell no more of how far a sum of operators is off."""


def default_space(image_size: int) -> str | None:
    """The one of `DEFAULT_SPACES` that is meant for images of so many pixels, rather the small one; None: none is."""
    from hwnas.spaces import SPACES as FAMILIES

    fitting = [n for n in DEFAULT_SPACES if FAMILIES[n].image_sizes[0] <= image_size <= FAMILIES[n].image_sizes[1]]
    return fitting[-1] if fitting else None


def calibration_spaces(terminal: Terminal, networks: Mapping[str, Network], path: Path) -> list[Space]:
    """Spaces whose networks tell how far predictions of `networks` are off, where the table at `path` cannot yet.

    One for each image size: a calibration is of one input shape (`hwnas.latency.model`).
    """
    from hwnas.latency.model import MIN_GROUP
    from hwnas.latency.table import LatencyTable
    from hwnas.spaces import get_space

    shapes = []
    if path.exists():
        with LatencyTable.open(path) as table:
            shapes = [network.input_shape for network in table.networks()]
    found: dict[tuple[str, int], Space] = {}
    for shape in dict.fromkeys(network.input_shape for network in networks.values()):
        if shapes.count(shape) >= MIN_GROUP or len(shape) != 3:
            continue
        size = min(MOST_PIXELS, max(shape[1:]))
        name = default_space(size)
        if name is not None:
            found[name, size] = get_space(name, image_size=size)
    if found:
        sizes = " and ".join(f"{name} at {size} pixels" for name, size in found)
        terminal.default("--space", f"{sizes}, to calibrate on ('none' leaves it out)")
    return list(found.values())
