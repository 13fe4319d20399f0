"""The commands that mend a table, as a user would type them: what errors say to run."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from hwnas.devices import list_profiles
from hwnas.spaces import find_space
from hwnas.spaces.base import Space
from hwnas.spaces.widths import WidthSpace

if TYPE_CHECKING:
    from hwnas.latency.model import LatencyModel


def profile_command(space: Space | WidthSpace, model: LatencyModel) -> str:
    """The command that adds a space to the model's table."""
    default = find_space(space.name)
    profile = model.header["profile"]
    # a profile from a file of the user's is not known by its name: what ships for the device measures as well
    names = [known.name for known in list_profiles() if known.name == profile["name"]]
    names += [known.name for known in list_profiles() if known.runtime == model.header["runtime"]]
    device = names[0] if names else profile.get("device", "cpu")
    if profile.get("host"):
        device = shlex.quote(f"{profile['host']}/{device}")
    command = f"hwnas profile --device {device} --space {shlex.quote(space.name)}"
    if space.input_shape != default.input_shape:
        command += f" --image-size {space.input_shape[1]}"
    if space.num_classes != default.num_classes:
        command += f" --num-classes {space.num_classes}"
    return f"{command} {bound_options(model.header)} --lut {shlex.quote(str(model.path))}"


def bound_options(header: dict[str, object]) -> str:
    """Options that make a command measure as the table was measured."""
    precision = "" if header["precision"] == "fp32" else f" --precision {header['precision']}"
    return f"--batch {header['batch_size']} --threads {header['threads']}{precision}"
