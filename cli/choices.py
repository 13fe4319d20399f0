"""Choices a user may leave to hwnas: the device, the table, the run. What was chosen is said on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import HwnasError, UsageError

from .options import Function, file_path, option
from .terminal import Terminal

if TYPE_CHECKING:
    from hwnas.devices import DeviceProfile
    from hwnas.network import Network
    from hwnas.spaces import Space, WidthSpace

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
    f"{', '.join(GATE_SPACES)}, each with a NAME-tiny, torchvision:NAME, "
    "or FILE.py:NAME, where NAME(num_classes=N) makes a net of your own"
)


def device_options(function: Function) -> Function:
    """The options that say on what, and how, is measured."""
    decorators = (
        option("--device", metavar="DEVICE", help="A profile's name or path, or ssh://HOST/PROFILE  [default: cpu]"),
        option("--batch", type=click.IntRange(1), metavar="N", help="Images in one run  [default: the profile's]"),
        option("--precision", metavar="NAME", help="fp32; with TensorRT fp16 or int8 too  [default: the profile's]"),
        option("--runtime", metavar="NAME", help="As in 'hwnas devices': tensorrt, …  [default: the profile's]"),
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
    from hwnas.devices import default_device, find_profile, with_runtime

    if device is None:
        device = default_device(runtime)
        terminal.default("--device", device)
    profile = find_profile(device)
    if runtime is not None:
        profile = with_runtime(profile, runtime)
    return profile.override(batch_size=batch, precision=precision, threads=threads, target_error=target_error)


def table_path(terminal: Terminal, lut: Path | None, profile: DeviceProfile) -> Path:
    """Where the table of `profile` is, or will be."""
    from hwnas.latency.listing import default_path

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
    from hwnas.latency.listing import list_tables
    from hwnas.latency.lowering import lowering
    from hwnas.latency.shipped import table_file
    from hwnas.latency.slots import SpaceKernels
    from hwnas.latency.table import LatencyTable
    from hwnas.measure.hardware import device_name
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
        if profile is not None and not profile.host and device_name(profile.device) is None:
            terminal.note(f"there is no such device here: latencies are those of {info.header['device']}")
        return info.path
    return None


def table_to_read(function: Function) -> Function:
    """A table as an argument or by ``--lut``: both are in many users' fingers. `the_table` says which it is."""
    given = click.argument("table", type=file_path, required=False, metavar="[TABLE]")
    return given(
        option("--lut", type=file_path, metavar="FILE", help="The table  [default: the newest under tables/]")(function)
    )


def the_table(terminal: Terminal, table: Path | None, lut: Path | None) -> Path:
    """The table that was named, in one way or the other, else the newest under ``tables/``.

    Raises:
        UsageError: two different ones were named.
        HwnasError: none was named and there is none.
    """
    typed = click.get_current_context().get_parameter_source("lut") is click.core.ParameterSource.COMMANDLINE
    if typed and None not in (table, lut) and table != lut:  # one of a variable or a file gives way to an argument
        raise UsageError(f"two tables are named, {table} and --lut {lut}: leave one of them out")
    path = chosen_table(terminal, table or lut)
    if path is None:
        raise HwnasError("no table under tables/: make one with 'hwnas profile --device cpu', or name a file")
    return path


def _fits(header: Mapping[str, Any], profile: DeviceProfile, given: Mapping[str, Any]) -> bool:
    from hwnas.measure.hardware import device_name

    wanted = {key: value for key, value in given.items() if value is not None}
    if "threads" in wanted:  # a table says how many there were, never 0 for all cores
        wanted["threads"] = profile.override(threads=wanted["threads"]).thread_count
    mine = header["profile"]["name"] == profile.name and header["runtime"] == profile.runtime
    mine = mine and header["profile"].get("host", "") == profile.host
    if not profile.host:  # what is elsewhere is known by its host; measuring there compares the device itself
        # where there is no such device, as with a GPU's table on a laptop, whatever it was measured on is meant
        mine = mine and device_name(profile.device) in (None, header["device"])
    return mine and all(header[key] == value for key, value in wanted.items())


def named_table(terminal: Terminal, lut: Path, device: str | None) -> Path:
    """The table that was named, by its path or as one that ships; of another device it is used only knowingly.

    There need not be one yet.

    Raises:
        HwnasError: `device` was named too, and the table is of another one or of another runtime.
    """
    from hwnas.devices import GPU_RUNTIMES, find_profile
    from hwnas.latency.shipped import table_file
    from hwnas.latency.table import LatencyTable
    from hwnas.measure.hardware import device_name

    lut = table_file(lut)
    profile = find_profile(device) if device is not None else None  # a misspelt one is an error with a table too
    if lut.exists():
        with LatencyTable.open(lut) as table:
            measured, runtime = table.header["device"], table.header["runtime"]
        here = device_name(profile.device if profile else "cuda" if runtime in GPU_RUNTIMES else "cpu")
        elsewhere = profile is not None and profile.host
        if here is not None and measured != here and device is not None and not elsewhere:
            raise HwnasError(f"{lut} was measured on {measured}, --device {device} is {here}: leave one of them out")
        if profile is not None and runtime != profile.runtime:
            raise HwnasError(f"{lut} was measured with {runtime}, --device {device} is {profile.runtime}: "
                             "leave one of them out")  # fmt: skip
        if measured != here:
            terminal.note(f"latencies are those of {measured}, where {lut} was measured; this machine "
                          f"{'is ' + here if here else 'has no such device'}")  # fmt: skip
    return lut


def table_profile(path: Path, device: str | None = None) -> DeviceProfile:
    """The profile that a table was made with: what is compared with the table has to be measured in the same way.

    It is measured where the table was, unless `device` says where.

    Raises:
        HwnasError: this hwnas does not know such a profile.
    """
    from pydantic import ValidationError

    from hwnas.devices import DeviceProfile, find_profile
    from hwnas.latency.table import LatencyTable

    where = {}
    if device is not None:
        typed = find_profile(device)
        where = {"host": typed.host, "python": typed.python}
    with LatencyTable.open(path) as table:
        if table.header.get("imported"):
            raise HwnasError(
                f"{path} was imported ({table.header['device']}, {table.header['runtime']}): nothing can be measured "
                "as it was; give the --lut of a table made with 'hwnas profile'"
            )
        try:
            return DeviceProfile.model_validate({**table.header["profile"], "python": "", **where})
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

    One for each image size: a calibration is of one input shape (`hwnas.latency.groups`).
    """
    from hwnas.latency.groups import MIN_GROUP
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
