"""The spaces that can be searched, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from hwnas.errors import HwnasError, UsageError
from hwnas.spaces import atoms, channels, fbnet, figs, own, proxyless, resnet, shufflenet
from hwnas.spaces.atoms import AtomFamily, AtomSpace
from hwnas.spaces.base import Arch, Family, Space
from hwnas.spaces.gated import GateFamily, GateSpace
from hwnas.spaces.widths import AtomArch, WidthSpace

__all__ = [
    "ATOM_SPACES", "GATE_SPACES", "SPACES", "Arch", "AtomArch", "AtomSpace", "Family", "GateSpace", "Space",
    "WidthSpace", "arch_from_json", "atoms_from_json", "find_space", "get_space",
]  # fmt: skip

SPACES: dict[str, Family] = {**proxyless.FAMILIES, **fbnet.FAMILIES, **shufflenet.FAMILIES, **channels.FAMILIES,
                             **resnet.FAMILIES}  # fmt: skip
"""Every space of slots and choices by the name that is typed for it."""

ATOM_SPACES: dict[str, AtomFamily] = atoms.FAMILIES
"""Every space of atoms (`--method atomnas`) by the name that is typed for it."""

GATE_SPACES: dict[str, GateFamily] = figs.FAMILIES
"""Every space of gates (`--method figs`) by the name that is typed for it; ``torchvision:NAME`` is one too, and so is a
net of a file of one's own, ``FILE.py:NAME`` (`hwnas.spaces.own`)."""

MAX_CLASSES = 1_000_000


def get_space(name: str, *, image_size: int | None = None, num_classes: int | None = None) -> Space:
    """The space of slots `name`, for square RGB images; see `find_space`.

    Raises:
        UsageError: there is no such space, or it is not meant for such images or so many classes, or it is one of
            atoms or gates.
    """
    space = find_space(name, image_size=image_size, num_classes=num_classes)
    if isinstance(space, AtomSpace):
        raise UsageError(f"{name} is a space of atoms: it is for --method atomnas, atomnas-equal and width")
    if isinstance(space, WidthSpace):
        raise UsageError(f"{name} is a space of gates: it is for --method figs, morphnet, width and random")
    return space


def find_space(name: str, *, image_size: int | None = None, num_classes: int | None = None) -> Space | WidthSpace:
    """The space `name`, of slots, atoms or gates, for square RGB images.

    Args:
        name: one of `SPACES`, `ATOM_SPACES` or `GATE_SPACES`, and where its family has variants ``@`` and the
            variant; or ``torchvision:NAME``, or the full name of a file of one's own (`hwnas.spaces.own.typed`).
        image_size: height and width in pixels; None is the space's own.
        num_classes: outputs of the classifier; None is the space's own.

    Raises:
        UsageError: there is no such space, or it is not meant for such images or so many classes.
    """
    if own.is_own(name):
        return _made(name, {name: own.own_family(name)}, image_size, num_classes)
    base, variant = name.partition("@")[::2]
    kind: dict[str, Family] | dict[str, AtomFamily] | dict[str, GateFamily] = SPACES
    if base in ATOM_SPACES:
        kind = ATOM_SPACES
    elif base in GATE_SPACES:
        kind = GATE_SPACES
    elif base.startswith(figs.TORCHVISION):
        kind = {base: figs.torchvision_family(base)}
    family = kind.get(base)
    if family is None:
        names = [*SPACES, *ATOM_SPACES, *GATE_SPACES]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        if ".py" in name:
            raise UsageError(f"{name[:200]!r} is no space: write {own.FORM}, NAME is what makes a net in that file")
        names += ["torchvision:NAME", own.FORM]
        raise UsageError(f"no space is called {name[:80]!r}: {hint}Spaces: {', '.join(names)}")
    variants = "" if isinstance(family, AtomFamily) else family.variants
    if "@" in name and (not (variant and variants) or (isinstance(family, GateFamily) and variant != variants)):
        raise UsageError(f"{name[:80]!r} is no space: write {base}{f'@{variants}' if variants else ''}")
    return _made(name, kind, image_size, num_classes)


def _made(
    name: str,
    kind: Mapping[str, Family] | Mapping[str, AtomFamily] | Mapping[str, GateFamily],
    image_size: int | None,
    num_classes: int | None,
) -> Space | WidthSpace:
    """The space `name`, with a variant behind an ``@`` where it has one, of a family of `kind`."""
    family = kind[name] if name in kind else kind[name.partition("@")[0]]
    size = family.image_size if image_size is None else image_size
    smallest, largest = family.image_sizes
    if not smallest <= size <= largest:
        others = [other for other, entry in kind.items() if entry.image_sizes[0] <= size <= entry.image_sizes[1]]
        hint = f"; {', '.join(others)} would do" if others else ""
        raise UsageError(f"{name} is for images of {smallest} to {largest} pixels, not {size}{hint}")
    classes = family.num_classes if num_classes is None else num_classes
    if not 2 <= classes <= MAX_CLASSES:
        raise UsageError(f"a classifier needs 2 to {MAX_CLASSES} classes, not {classes}")
    return family.make(name, (3, size, size), classes)


def arch_from_json(data: Any) -> tuple[Space, Arch]:
    """The architecture, and its space, from what `Space.to_json` gives; nothing in `data` is trusted.

    Raises:
        HwnasError: it is not such a document, or its parts do not fit each other.
    """
    space = _space_of(data)
    if isinstance(space, WidthSpace):
        raise HwnasError(f"architecture: {space.name} has no genes")
    arch = Arch(space.name, tuple(_integers(data, "genes")))
    space.check(arch)
    _check_layers(data, space.describe(arch), "genes")
    return space, arch


def atoms_from_json(data: Any) -> tuple[WidthSpace, AtomArch]:
    """The architecture, and its space, from what `WidthSpace.to_json` gives; nothing in `data` is trusted.

    Raises:
        HwnasError: it is not such a document, or its parts do not fit each other.
    """
    space = _space_of(data)
    if not isinstance(space, WidthSpace):
        raise HwnasError(f"architecture: {space.name} has no widths")
    if tuple(_integers(data, "kernels")) != space.kernels:
        raise HwnasError(f"architecture: the kernels of {space.name} are {', '.join(map(str, space.kernels))}")
    rows = data.get("widths")
    if not isinstance(rows, list):
        raise HwnasError(f"architecture: widths must be lists of whole numbers, not {_short(rows)}")
    arch = AtomArch(space.name, tuple(tuple(_integers({"widths": row}, "widths")) for row in rows))
    space.check(arch)
    _check_layers(data, space.describe(arch), "widths")
    return space, arch


def _space_of(data: Any) -> Space | WidthSpace:
    """The space that a document of an architecture names."""
    if not isinstance(data, dict):
        raise HwnasError("not an architecture: a JSON object with space and genes was expected")
    if data.get("format") != 1 or isinstance(data["format"], bool):
        raise HwnasError(f"architecture format {_short(data.get('format'))} is not known here: only format 1 is")
    name = data.get("space")
    if not isinstance(name, str):
        raise HwnasError("not an architecture: it names no space")
    shape = _integers(data, "input_shape")
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise HwnasError(f"architecture: input_shape must be [3, size, size], not {_short(shape)}")
    classes = _integers({"num_classes": [data.get("num_classes")]}, "num_classes")[0]
    try:
        return find_space(name, image_size=shape[1], num_classes=classes)
    except UsageError as error:  # a bad file is no mistake of the command line
        raise HwnasError(f"architecture: {error}") from None


def _check_layers(data: dict[str, Any], layers: list[str], what: str) -> None:
    """Layers in words are for people; where they are there they must fit."""
    if data.get("layers") is not None and data["layers"] != layers:
        raise HwnasError(f"architecture: layers and {what} disagree; remove layers, or make them fit the {what}")


def _integers(data: dict[str, Any], key: str) -> list[int]:
    values = data.get(key)
    # bool is an int to Python, and JSON may hold integers of any length
    if not isinstance(values, list) or not all(type(value) is int and abs(value) < 2**31 for value in values):
        raise HwnasError(f"architecture: {key} must be whole numbers, not {_short(values)}")
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
