"""How networks are best visited: when they are warm, and whether many short visits or a few long ones tell more.

    python benchmarks/visits.py [--space NAME]... [--networks N] [--passes N]

Loads networks of the spaces into ONNX Runtime, on one thread, and visits them in random order, pass after pass, as
`hwnas profile` does. The first table says how much longer the first, second, … run of a visit takes than its later
ones, by what the network takes: the median over visits. The second compares visits as they are made (`visit_ms`) with
long ones of four runs after 15 ms, passes of both in turn: "error" is the standard error of a network's level, from how
far the levels of two halves of the passes are apart, one way for all networks left out; "in the same time" is what it
would be if as much time had gone into each as into the first.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from prediction import unseen_networks

from hwnas.errors import UsageError
from hwnas.latency.levels import Levels, NetworkVisit
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.runtimes.onnx_runtime import OnnxRuntime, OrtSession
from hwnas.measure.runtimes.timed import long_visit_ms, visit_ms
from hwnas.progress import RichProgress
from hwnas.spaces import find_space

SPACES = ("proxyless", "fbnet")
RUNS, LATER, SHOWN = 16, 8, 7
"""Of a visit that shows when a network is warm, those that are the level, and how many are printed."""

WARM_PASSES = 4
SIZES_MS = (0.0, 1.0, 3.0, 5.0, 8.0, np.inf)
LONG_RUNS = 4
SHORT_PASSES = 2
"""Passes of short visits for each of long ones."""

Visit = Callable[[OrtSession], list[float]]


def long_visit(session: OrtSession) -> list[float]:
    """Four runs, after as many as take 15 ms."""
    return long_visit_ms(session.run_once, LONG_RUNS)


def short_visit(session: OrtSession) -> list[float]:
    """As a profile makes them."""
    return visit_ms(session.run_once, 5)


def one_pass(sessions: list[OrtSession], visit: Visit, rng: np.random.Generator) -> tuple[list[NetworkVisit], float]:
    """Visits in random order, numbered within the pass, and the seconds that they took."""
    start = time.perf_counter()
    visits = []
    for number, index in enumerate(rng.permutation(len(sessions)).tolist()):
        samples = np.array(visit(sessions[index]))
        visits.append(NetworkVisit(number, ("network", str(index)), 0, (3, 224, 224), samples))
    return visits, time.perf_counter() - start


def levels_of(passes: list[list[NetworkVisit]]) -> np.ndarray:
    """Logarithm of each network's latency."""
    visits = [visit for one in passes for visit in one]
    numbered = [replace(visit, number=number) for number, visit in enumerate(visits)]
    found = Levels(numbered).networks("network")
    return np.log([found[str(index)].latency_ms for index in range(len(found))])


def error_of(passes: list[list[NetworkVisit]]) -> float:
    """Relative standard error of a level from all passes, root mean square over networks."""
    first, second = (levels_of(passes[half::2]) for half in (0, 1))
    apart = first - second
    # each half has twice the variance of the whole, and their difference the sum of both
    return float((apart - apart.mean()).std() / 2)


def show_warm_up(sessions: list[OrtSession], rng: np.random.Generator) -> None:
    """How much longer first runs take."""
    taken = np.empty((len(sessions), WARM_PASSES, RUNS))
    for number in range(WARM_PASSES):
        for index in rng.permutation(len(sessions)).tolist():
            for run in range(RUNS):
                start = time.perf_counter()
                sessions[index].run_once()
                taken[index, number, run] = 1e3 * (time.perf_counter() - start)
    level = np.median(taken[:, :, -LATER:], axis=2, keepdims=True)
    size = np.median(taken, axis=(1, 2))
    print("networks of        how many  run " + " ".join(f"{run + 1:6d}" for run in range(SHOWN)))
    for low, high in itertools.pairwise(SIZES_MS):
        inside = (size >= low) & (size < high)
        if inside.any():
            longer = np.median(taken[inside] / level[inside] - 1, axis=(0, 1))
            name = f"{low:g} to {high:g} ms" if np.isfinite(high) else f"{low:g} ms and more"
            print(f"{name:18s} {inside.sum():8d}      " + " ".join(f"{share:6.1%}" for share in longer[:SHOWN]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", action="append")
    parser.add_argument("--networks", type=int, default=35, help="of each space  [%(default)s]")
    parser.add_argument("--passes", type=int, default=20, help="of long visits; short ones: twice  [%(default)s]")
    args = parser.parse_args()
    if args.networks < 5 or args.passes < 2:
        parser.error("--networks is 5 or more, --passes 2 or more")
    try:
        spaces = [find_space(name) for name in args.space or SPACES]
    except UsageError as error:
        parser.error(str(error))
    runtime, rng, progress = OnnxRuntime(threads=1), np.random.default_rng(0), RichProgress()
    networks = [network for space in spaces for network in unseen_networks(space, args.networks)]
    sessions = []
    with progress.start(len(networks), "networks loaded") as task:
        for network in networks:
            sessions.append(runtime.load_network(network_to_onnx(network)))
            task.advance(1)
    show_warm_up(sessions, rng)
    kinds: dict[str, tuple[Visit, int]] = {"long": (long_visit, 1), "short": (short_visit, SHORT_PASSES)}
    passes: dict[str, list[list[NetworkVisit]]] = {kind: [] for kind in kinds}
    spent = dict.fromkeys(kinds, 0.0)
    with progress.start(args.passes * sum(times for _, times in kinds.values()), "passes") as task:
        for kind, (visit, times) in args.passes * list(kinds.items()):
            for _ in range(times):
                visits, seconds = one_pass(sessions, visit, rng)
                passes[kind].append(visits)
                spent[kind] += seconds
                task.advance(1)
    print("visits  passes   time   error  in the same time")
    for kind, made in passes.items():
        error, seconds = error_of(made), spent[kind]
        same = error * (seconds / spent["long"]) ** 0.5
        print(f"{kind:6s} {len(made):7d} {seconds:4.0f} s {error:7.2%} {same:17.2%}")


if __name__ == "__main__":
    main()
