"""What is left of a net when channels go: which steps, what folds where, and the operators of what remains.

A group without a channel left silences the layers that make it, and a layer that is fed nothing gives a constant: its
bias, or the shift of its BatchNorm. Such layers are removed, and the constant is folded into what comes behind: a
convolution without padding takes it in its bias, or in the running mean of the BatchNorm behind it; a sum hands it on.
Where it meets an activation or a padded convolution it stays, as one shift for each channel (a BatchNorm alone).

Which steps go depends on the groups that are empty, and on nothing else: `Remains` is worked out once for each such
set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hwnas.errors import HwnasError
from hwnas.network import INPUT, Network, Ref
from hwnas.ops import Op, Shape
from hwnas.trace.channels import FIXED, Channels, Run
from hwnas.trace.fuse import fuse
from hwnas.trace.graph import RESHAPE, Graph, Step, Value

Flags = tuple[bool, ...]
"""One for each run of channels of a value."""


class Severed(HwnasError):
    """Nothing of the image would reach the output, or a constant would have nowhere to go."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a net when some groups are empty.

    Attributes:
        empty: the groups.
        live: of each value, the runs of channels that still depend on the image.
        moved: of each value, the runs to which a constant is still to be added; for runs that are not live, those that
            are a constant other than zero.
        shifts: for each step the inputs that need a shift of their own first.
    """

    empty: frozenset[int]
    live: Mapping[Ref, Flags]
    moved: Mapping[Ref, Flags]
    shifts: Mapping[int, tuple[Ref, ...]]

    def lives(self, ref: Ref) -> bool:
        """Whether anything of a value is left."""
        return any(self.live[ref])


def remains(channels: Channels, empty: frozenset[int]) -> Remains:
    """What is left of a net when the groups `empty` have no channel.

    Raises:
        Severed: there is no such net.
    """
    return _Sweep(channels, empty).run()


@dataclass(slots=True)
class _Sweep:
    channels: Channels
    empty: frozenset[int]
    live: dict[Ref, Flags] = field(default_factory=dict)
    moved: dict[Ref, Flags] = field(default_factory=dict)
    shifts: dict[int, tuple[Ref, ...]] = field(default_factory=dict)

    def run(self) -> Remains:
        runs = self.channels.runs
        self.live[INPUT] = (True,) * len(runs[INPUT])
        self.moved[INPUT] = (False,) * len(runs[INPUT])
        for step in self.channels.graph.steps:
            rule = _RULES.get(step.kind, _Sweep._other)
            rule(self, step)
        for value in self.channels.outputs:
            if not any(self.live[value.ref]):
                raise Severed("nothing of the image would reach the output")
            if any(self.moved[value.ref]):
                raise Severed("a constant would reach the output")
        return Remains(self.empty, self.live, self.moved, self.shifts)

    def give(self, step: Step, live: Flags, moved: Flags) -> None:
        self.live[step.index, 0], self.moved[step.index, 0] = live, moved

    def there(self, ref: Ref) -> Flags:
        """Of a value, the runs that have channels."""
        return tuple(run.group not in self.empty for run in self.channels.runs[ref])

    def shift(self, step: Step, ref: Ref) -> None:
        """A value gets the constants that are to be added to it, in a layer of its own."""
        live, moved = self.live[ref], self.moved[ref]
        if any(one and not other for one, other in zip(moved, live, strict=True)):
            raise Severed(f"{step.name} would need a constant that nothing makes")
        if len(self.shape(ref)) != 3:
            raise Severed(f"{step.name} would need a shift of a vector")
        self.shifts[step.index] = (*self.shifts.get(step.index, ()), ref)
        self.moved[ref] = (False,) * len(moved)

    def shape(self, ref: Ref) -> Shape:
        return self.channels.graph.input.shape if ref == INPUT else self.channels.graph.steps[ref[0]].outputs[ref[1]]

    # -- rules -------------------------------------------------------------------------------------------------------

    def _layer(self, step: Step) -> None:
        op, (entry,) = step.op, step.inputs
        assert op is not None
        self._as_it_was(step, entry)
        there, entering = self.there((step.index, 0)), any(self.live[entry])
        if op.depthwise:
            self._depthwise(step, entry)
            return
        if any(self.moved[entry]) and any(op.padding) and entering:
            self.shift(step, entry)
        elif any(self.moved[entry]) and any(op.padding):
            raise Severed(f"{step.name} would need a constant that nothing makes")
        if entering:
            moved = any(self.moved[entry]) and not op.bias
            self.give(step, there, tuple(one and moved for one in there))
        else:
            moved = any(self.moved[entry]) or op.bias
            self.give(step, (False,) * len(there), tuple(one and moved for one in there))

    def _as_it_was(self, step: Step, entry: Ref) -> None:
        """A layer that cannot be changed gets what it always got."""
        if step.index not in self.channels.strange:
            return
        if any(self.moved[entry]):
            self.shift(step, entry)
        if not all(self.live[entry]):
            raise Severed(f"{step.name} would be fed something else")

    def _depthwise(self, step: Step, entry: Ref) -> None:
        op = step.op
        assert op is not None
        if any(self.moved[entry]) and any(op.padding):
            self.shift(step, entry)
        there = self.there((step.index, 0))
        moved = tuple(
            (moved and not op.bias) if live else (one and (moved or op.bias))
            for one, live, moved in zip(there, self.live[entry], self.moved[entry], strict=True)
        )
        self.give(step, self.live[entry], moved)

    def _norm(self, step: Step) -> None:
        """Takes what is to be added in its mean; of a constant it makes another one."""
        self._as_it_was(step, step.inputs[0])
        live = self.live[step.inputs[0]]
        there = self.there((step.index, 0))
        self.give(step, live, tuple(one and not other for one, other in zip(there, live, strict=True)))

    def _act(self, step: Step) -> None:
        entry = step.inputs[0]
        live, moved = self.live[entry], self.moved[entry]
        if any(one and other for one, other in zip(live, moved, strict=True)):
            self.shift(step, entry)
        self.give(step, self.live[entry], self.moved[entry])

    def _pool(self, step: Step) -> None:
        entry = step.inputs[0]
        assert step.op is not None
        if any(self.moved[entry]) and step.kind == "avg_pool" and any(step.op.padding):
            self.shift(step, entry)
        self.give(step, self.live[entry], self.moved[entry])

    def _pass(self, step: Step) -> None:
        entry = step.inputs[0]
        live, moved = self.live[entry], self.moved[entry]
        if len(live) != len(self.channels.runs[step.index, 0]):
            raise Severed(f"{step.name} would lose what it reshapes")
        self.give(step, live, moved)

    def _pad(self, step: Step) -> None:
        if any(self.moved[step.inputs[0]]):
            self.shift(step, step.inputs[0])
        self._pass(step)

    def _add(self, step: Step) -> None:
        """Both sides have the same channels, or one of them is silent and hands its constant over."""
        first, second = step.inputs
        sides = [self.live[ref] for ref in step.inputs if any(self.live[ref])]
        if len(sides) == 2 and sides[0] != sides[1]:
            raise Severed(f"{step.name} would add channels of which one side has only some")
        live = sides[0] if sides else self.live[first]
        self.give(step, live, tuple(a or b for a, b in zip(self.moved[first], self.moved[second], strict=True)))

    def _full(self, ref: Ref) -> Flags:
        """Of the runs that have channels, whether they are live."""
        return tuple(one or not there for one, there in zip(self.live[ref], self.there(ref), strict=True))

    def _mul(self, step: Step) -> None:
        if not all(any(self.live[ref]) and all(self._full(ref)) for ref in step.inputs):
            if not any(self.live[step.inputs[0]]) and not any(self.moved[step.inputs[0]]):
                self.give(step, self.live[step.inputs[0]], self.moved[step.inputs[0]])
                return
            raise Severed(f"{step.name} would multiply by a constant")
        for ref in step.inputs:
            if any(self.moved[ref]):
                self.shift(step, ref)
        there = self.live[step.inputs[0]]
        self.give(step, there, (False,) * len(there))

    def _concat(self, step: Step) -> None:
        """Runs of neighbours may be one run now: flags are taken over channel by channel."""
        parts = [
            (run, live, moved)
            for ref in step.inputs
            for run, live, moved in zip(self.channels.runs[ref], self.live[ref], self.moved[ref], strict=True)
        ]
        live, moved = [], []
        place = 0
        for run in self.channels.runs[step.index, 0]:
            left, flags = run.count, []
            while left:
                flags.append(parts[place])
                left -= parts[place][0].count
                place += 1
            if len({(one, two) for _, one, two in flags}) > 1:
                raise Severed(f"{step.name} would have a part of {len(flags)} alike")
            live.append(flags[0][1])
            moved.append(flags[0][2])
        self.give(step, tuple(live), tuple(moved))

    def _other(self, step: Step) -> None:
        """What is not understood: everything that goes in stays as it is."""
        for ref in step.inputs:
            if not all(self.live[ref]) or any(self.moved[ref]):
                raise Severed(f"{step.name} would be fed something else")
        for port in range(len(step.outputs)):
            runs = self.channels.runs[step.index, port]
            self.live[step.index, port] = (True,) * len(runs)
            self.moved[step.index, port] = (False,) * len(runs)


_RULES: dict[str, Callable[[_Sweep, Step], None]] = {
    "conv": _Sweep._layer,
    "linear": _Sweep._layer,
    "affine": _Sweep._norm,
    "act": _Sweep._act,
    "max_pool": _Sweep._pool,
    "avg_pool": _Sweep._pool,
    "global_avg_pool": _Sweep._pool,
    "pad": _Sweep._pad,
    "scale": _Sweep._pass,
    RESHAPE: _Sweep._pass,
    "add": _Sweep._add,
    "mul": _Sweep._mul,
    "concat": _Sweep._concat,
}


# -- operators of what remains -----------------------------------------------------------------------------------------


def widths_of(runs: Sequence[Run], live: Flags, widths: Sequence[int]) -> int:
    """Channels of a value that are left."""
    total = 0
    for run, there in zip(runs, live, strict=True):
        if there:
            total += run.count if run.group == FIXED else widths[run.group] * run.times
    return total


def narrowed(channels: Channels, left: Remains, widths: Sequence[int]) -> Network:
    """The deployed operators of a net with so many channels of each group."""
    return fuse(*narrowed_steps(channels, left, widths))


def narrowed_steps(channels: Channels, left: Remains, widths: Sequence[int]) -> tuple[Graph, list[Value]]:
    """The steps of a net with so many channels of each group, before any fusion, and its outputs."""
    graph, made = Graph(channels.graph.input.shape), {INPUT: Value(INPUT, channels.graph.input.shape)}
    for step in channels.graph.steps:
        refs = [ref for ref in step.inputs if left.lives(ref)]
        if not any(left.lives((step.index, port)) for port in range(len(step.outputs))):
            continue
        for ref in left.shifts.get(step.index, ()):
            value = made[ref]
            made[ref] = graph.add(Op.affine(value.shape), [value], f"{step.name}.shift")
        arriving = [made[ref] for ref in refs]
        if step.kind in ("add", "concat") and len(arriving) == 1:
            made[step.index, 0] = arriving[0]
            continue
        shapes = tuple(
            (widths_of(channels.runs[step.index, port], left.live[step.index, port], widths), *shape[1:])
            for port, shape in enumerate(step.outputs)
        )
        op = None if step.op is None else resized(step.op, [value.shape for value in arriving], shapes[0])
        new = Step(step.kind, [value.ref for value in arriving], shapes, step.name, op, step.numbers)
        for port, value in enumerate(graph._append(new)):
            made[step.index, port] = value
    return graph, [made[value.ref] for value in channels.outputs]


def resized(op: Op, inputs: Sequence[Shape], output: Shape) -> Op:
    """An operator with other numbers of channels; the image's height and width stay."""
    if op.kind == "split" or not inputs:
        return op
    shapes = tuple(tuple(shape) for shape in inputs)
    if any(math.prod(shape) < 1 for shape in (*shapes, output)):
        raise Severed(f"{op.kind} would have no channels")
    return replace(op, inputs=shapes, output=output, groups=output[0] if op.depthwise else op.groups)
