"""What TensorRT builds, without a GPU: every kind of operator, every choice of every space, every net of the zoo.

    python -m benchmarks.trt_coverage [--only NAME]... [--batch 32] [--jobs 2]

Each is written as ONNX, brought to fp32 and fp16, parsed, and built by `tensorrt_rtx` into one engine that serves SM89
and SM86; one net in int8 too. Where that engine is refused, each GPU is tried alone. What is not built is listed by
name, with why not. A cell says that the library parses the model and compiles it for that GPU, and how many layers it
made of a net. It says nothing of whether the engine runs, how fast, or what it computes: kernels are finished on the
GPU, when an engine is loaded; no GPU is needed here, and none is used. Exit code 3 where something is not built, 1
where tensorrt_rtx is not installed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import hwnas.spaces
from hwnas.errors import HwnasError
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.precision import CONVERSIONS
from hwnas.measure.runtimes import INSTALL
from hwnas.measure.runtimes.tensorrt_build import BuildError, BuildOptions, build_engine
from hwnas.measure.runtimes.tensorrt_library import use
from hwnas.network import Network
from hwnas.ops import ACTIVATIONS, KINDS, Op
from hwnas.spaces.base import Arch, Space
from hwnas.zoo import ZOO, zoo_network

CAPABILITIES = ("SM89", "SM86")
PRECISIONS = ("fp32", "fp16")
IN_INT8 = "mobilenet-v2"

NOT_OF_TENSORRT = dict.fromkeys(
    ("to_blocked", "to_plain"), "a conversion of layout that only ONNX Runtime's CPU kernels need"
)
"""Kind of operator that no network for TensorRT has -> why."""

FEW_BITS = "quantised to fewer bits than TensorRT computes with"

_IMAGE = (32, 14, 14)
OPERATORS: dict[str, tuple[Op, ...]] = {
    "conv": (
        *(Op.conv(_IMAGE, 64, kernel=1, norm=True, act=act) for act in ACTIVATIONS),
        Op.conv(_IMAGE, 32, kernel=3, norm=True, residual=True, act="relu"),
        Op.conv(_IMAGE, 32, kernel=7, stride=2, groups=32, norm=True),
        Op.conv(_IMAGE, 64, kernel=3, dilation=2, groups=2, bias=True),
        Op.conv((3, 224, 224), 32, kernel=3, stride=2, norm=True, act="relu6"),
        Op.conv(_IMAGE, 32, kernel=(1, 7), norm=True),
    ),
    "linear": (Op.linear(64, 10), Op.linear(64, 10, bias=False, act="relu")),
    "max_pool": (
        Op.pool("max_pool", _IMAGE, kernel=3, stride=2, padding=1),
        Op.pool("max_pool", _IMAGE, kernel=3, stride=2, ceil_mode=True),
    ),
    "avg_pool": (Op.pool("avg_pool", _IMAGE, kernel=2), Op.pool("avg_pool", _IMAGE, kernel=3, stride=1, padding=1)),
    "global_avg_pool": (Op.global_avg_pool(_IMAGE),),
    "add": (Op.add(_IMAGE), Op.add(_IMAGE, act="relu")),
    "mul": (Op.mul(_IMAGE, (32, 1, 1)), Op.mul(_IMAGE, _IMAGE, act="relu")),
    "concat": (Op.concat([_IMAGE, (16, 14, 14), _IMAGE]),),
    "split": (Op.split(_IMAGE, (16, 16)), Op.split(_IMAGE, (8, 16, 8))),
    "shuffle": (Op.shuffle(_IMAGE, 2), Op.shuffle(_IMAGE, 4)),
    "act": tuple(Op.activation(_IMAGE, act) for act in ACTIVATIONS if act),
    "affine": (Op.affine(_IMAGE), Op.affine(_IMAGE, act="relu")),
}
"""Kind -> operators that stand for all of it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something to build. `row` is its line of the table, `what` its name there."""

    row: str
    what: str
    model: Op | Network
    precisions: tuple[str, ...] = PRECISIONS


@dataclass(frozen=True, slots=True)
class Outcome:
    """One engine on one GPU: how many layers it has (0: the builder did not say), or why there is none."""

    target: Target
    precision: str
    capability: str
    layers: int
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is not built on purpose, and why."""

    row: str
    why: str


def operator_targets() -> Iterator[Target | Skipped | Outcome]:
    """Operators of every kind; a kind that nothing stands for was forgotten here, and is not built."""
    for kind in KINDS:
        row = f"op {kind}"
        if kind in NOT_OF_TENSORRT:
            yield Skipped(row, NOT_OF_TENSORRT[kind])
        elif kind not in OPERATORS:
            target = Target(row, kind, Op.add(_IMAGE))
            yield Outcome(target, "fp32", "SM89", 0, "no operator of this kind is in OPERATORS of this script")
        for op in OPERATORS.get(kind, ()):
            yield Target(row, op.key, op)


def space_targets() -> Iterator[Target | Skipped]:
    """Architectures of every space, which together take every choice of every slot."""
    for name in space_names():
        space, row = find(name), f"space {name}"
        networks = [space.network(arch) for arch in archs_of(space)]
        if any(network.quantised for network in networks):
            yield Skipped(row, FEW_BITS)
            continue
        yield from (Target(row, f"{name} #{index}", network) for index, network in enumerate(networks))


def space_names() -> list[str]:
    """The names of every registry of spaces."""
    registries = [value for key, value in vars(hwnas.spaces).items() if key.endswith("SPACES")]
    return list(dict.fromkeys(name for registry in registries for name in registry))


def find(name: str) -> Any:
    """The space `name`, of whatever registry."""
    return getattr(hwnas.spaces, "find_space", hwnas.spaces.get_space)(name)


def archs_of(space: Any) -> list[Any]:
    """Architectures that together have everything a space offers: as many as its largest slot has choices.

    Spaces of atoms have no slots: their largest architecture has every branch.
    """
    if not isinstance(space, Space):
        return [space.supernet_arch]
    count = max(map(len, space.slots))
    # a slot further on starts with another choice, so that neighbours are not always alike
    genes = [tuple((turn + slot) % len(names) for slot, names in enumerate(space.slots)) for turn in range(count)]
    return [Arch(space.name, chosen) for chosen in genes]


def zoo_targets() -> Iterator[Target | Skipped]:
    """Every net of the zoo; one of them in int8 too."""
    for name in ZOO:
        network, row = zoo_network(name), f"zoo {name}"
        if network.quantised:
            yield Skipped(row, FEW_BITS)
        else:
            precisions = (*PRECISIONS, "int8") if name == IN_INT8 else PRECISIONS
            yield Target(row, name, network, precisions)


def build(target: Target, precisions: Sequence[str], batch: int) -> list[Outcome]:
    """What became of one target for each of `precisions` and `CAPABILITIES`."""
    use("tensorrt_rtx")
    write = op_to_onnx if isinstance(target.model, Op) else network_to_onnx
    found = []
    try:
        written = write(target.model, batch_size=batch)  # type: ignore[operator]
    except HwnasError as error:
        return _none(target, precisions, str(error))
    for precision in precisions:
        try:
            model = CONVERSIONS[precision](written)
        except HwnasError as error:
            found += _none(target, (precision,), str(error))
        else:
            layers = _built_for(model, CAPABILITIES)
            found += [Outcome(target, precision, capability, *layers[capability]) for capability in CAPABILITIES]
    return found


def _none(target: Target, precisions: Sequence[str], why: str) -> list[Outcome]:
    return [Outcome(target, precision, capability, 0, why) for precision in precisions for capability in CAPABILITIES]


def _built_for(model: bytes, capabilities: Sequence[str]) -> dict[str, tuple[int, str]]:
    """For each GPU how many layers the engine has, or 0 and why there is none.

    One engine for all of them says the same as one for each: the builder compiles for every GPU that it is told, and
    refuses the whole where it refuses one. Then each is tried alone.
    """
    try:
        count = len(build_engine(model, BuildOptions(compute_capabilities=tuple(capabilities))).layers)
    except BuildError as error:
        if len(capabilities) == 1:
            return {capabilities[0]: (0, str(error))}
        return {name: one for capability in capabilities for name, one in _built_for(model, (capability,)).items()}
    return dict.fromkeys(capabilities, (count, ""))


def build_all(targets: Sequence[Target], batch: int, jobs: int) -> Iterator[Outcome]:
    """Builds in `jobs` processes; what takes its process down is told from what was beside it by a second try alone."""
    again: list[Target] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        # the largest first: begun last, one of them would keep a single process busy at the end
        started: dict[Future[list[Outcome]], Target] = {
            pool.submit(build, target, target.precisions, batch): target for target in sorted(targets, key=_size)
        }
        for future in as_completed(started):
            try:
                yield from future.result()
            except BrokenProcessPool:
                again.append(started[future])
    for target in again:
        for precision in target.precisions:
            with ProcessPoolExecutor(1, context) as pool:
                try:
                    yield from pool.submit(build, target, (precision,), batch).result()
                except BrokenProcessPool:
                    yield from _none(target, (precision,), "the builder took its process down")


def _size(target: Target) -> int:
    return 0 if isinstance(target.model, Op) else -len(target.model.nodes)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each row, a column for each precision and GPU: how many were built, of one network its layers."""
    columns = [(capability, precision) for capability in CAPABILITIES for precision in (*PRECISIONS, "int8")]
    rows = dict.fromkeys(outcome.target.row for outcome in outcomes)
    width = max(map(len, rows), default=0) + 2
    lines = [" " * width + "".join(f"{' '.join(column):>12s}" for column in columns)]
    for row in rows:
        cells = []
        for capability, precision in columns:
            key = (row, capability, precision)
            cells.append(_cell([one for one in outcomes if (one.target.row, one.capability, one.precision) == key]))
        lines.append(f"{row:{width}s}" + "".join(f"{cell:>12s}" for cell in cells))
    return lines


def _cell(outcomes: Sequence[Outcome]) -> str:
    built = [outcome for outcome in outcomes if not outcome.why_not]
    if not outcomes:
        return "-"
    if len(built) < len(outcomes):
        return f"{len(built)} of {len(outcomes)}" if built else "NO"
    if len(outcomes) == 1 and isinstance(built[0].target.model, Network) and built[0].layers:
        return f"{built[0].layers} layers"
    return f"all {len(built)}" if len(built) > 1 else "built"


def report(found: Iterable[Outcome], skipped: Sequence[Skipped], order: Sequence[str], seconds: float) -> int:
    """Prints the table, what is not built and why; returns the exit code."""
    outcomes = sorted(found, key=lambda one: order.index(one.target.row))
    print("\n".join(table(outcomes)))
    for one in skipped:
        print(f"not tried: {one.row}: {one.why}")
    missing: dict[tuple[str, str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.why_not:
            key = (outcome.target.row, outcome.target.what, outcome.why_not)
            missing.setdefault(key, []).append(f"{outcome.capability} {outcome.precision}")
    for (row, what, why), where in missing.items():
        print(f"NOT built: {row}: {what} ({', '.join(where)}): {why}")
    count = sum(map(len, missing.values()))
    verdict = f"{count} NOT built" if count else "all built"
    print(f"{len(outcomes)} of model, precision and GPU in {seconds:.0f} s: {verdict}")
    return 3 if count else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="rows of the table, as 'op conv', 'zoo fbnet-a'"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=2, help="processes that build at a time")
    args = parser.parse_args(arguments)
    try:
        version = use("tensorrt_rtx")
    except ImportError as error:
        print(f"tensorrt_rtx cannot be imported here ({error}): {INSTALL['tensorrt_rtx']}", file=sys.stderr)
        return 1
    everything = [*operator_targets(), *space_targets(), *zoo_targets()]
    rows = list(dict.fromkeys(map(_row, everything)))
    if unknown := [name for name in args.only or () if name not in rows]:
        parser.error(f"no row {unknown[0]!r}: {', '.join(rows)}")
    wanted = [one for one in everything if not args.only or _row(one) in args.only]
    print(f"tensorrt_rtx {version}, batch {args.batch}, no GPU used")
    started = time.monotonic()
    outcomes = [one for one in wanted if isinstance(one, Outcome)]
    targets = [one for one in wanted if isinstance(one, Target)]
    outcomes += build_all(targets, args.batch, args.jobs)
    skipped = [one for one in wanted if isinstance(one, Skipped)]
    return report(outcomes, skipped, rows, time.monotonic() - started)


def _row(one: Target | Skipped | Outcome) -> str:
    return one.target.row if isinstance(one, Outcome) else one.row


if __name__ == "__main__":
    sys.exit(main())
