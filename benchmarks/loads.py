"""How much a network that is loaded anew differs from what it took before: where its weights lie in memory.

    python benchmarks/loads.py [--space fbnet] [--networks 4] [--loads 8] [--visits 40] [--seed 1]

Loads each network several times side by side and times all of them in interleaved passes, with others of the space for
company, regimes of the machine taken off. For each network it prints the levels of its loads in ms, their spread
(standard deviation), and the standard error that the visits of one load say: where the spread is larger, a load is not
the network, however often it is visited.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from prediction import unseen_networks

from hwnas.devices import find_profile
from hwnas.errors import UsageError
from hwnas.latency.levels import level_of, weights_of
from hwnas.latency.widths import NORMAL_90
from hwnas.measure.lock import device_lock
from hwnas.measure.onnx_models import network_outline
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.measure.regimes import regimes
from hwnas.progress import RichProgress
from hwnas.spaces import find_space

COMPANY = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="fbnet")
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--loads", type=int, default=8)
    parser.add_argument("--visits", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if min(args.networks, args.loads - 1, args.visits) < 1:
        parser.error("--networks and --visits are 1 or more, --loads 2 or more")
    rng = np.random.default_rng(args.seed)
    try:
        drawn = unseen_networks(find_space(args.space), args.networks + COMPANY)
    except UsageError as error:
        parser.error(str(error))
    order = rng.permutation(len(drawn)).tolist()
    chosen, company = order[: args.networks], order[args.networks :]
    entries = [(net, load) for load in range(args.loads) for net in chosen] + [(net, 0) for net in company]
    # of no memory: one that made room for another would be loaded anew
    subjects = [Subject(f"{net} {load}", "network", partial(network_outline, drawn[net]), 0) for net, load in entries]
    visited, log_ms = [], []
    profile, progress = find_profile("cpu").override(threads=1), RichProgress()
    with (
        device_lock(profile.device, progress),
        MeasuringProcess(profile) as process,
        progress.start(args.visits * len(entries), "visits") as task,
    ):
        for _ in range(args.visits):
            for place in rng.permutation(len(entries)).tolist():
                visited.append(place)
                log_ms.append(np.log(min(process.time_ms(subjects[place], profile.timing.runs)[1])))
                task.advance(1)
    places, logs = np.array(visited), np.array(log_ms)
    regime = regimes(places, logs)
    print("network  spread  visits say  levels of its loads in ms")
    for net in sorted(chosen):
        found = [places == entries.index((net, load)) for load in range(args.loads)]
        levels = [level_of((logs - regime)[own], args.visits, weights=weights_of(regime[own])) for own in found]
        taken = np.array([level.latency_ms for level in levels])
        said = float(np.sqrt(np.mean([(level.relative_error / NORMAL_90) ** 2 for level in levels])))
        listed = " ".join(f"{ms:.3f}" for ms in taken)
        print(f"{net:7d} {taken.std(ddof=1) / taken.mean():7.2%} {said:11.2%}  {listed}")


if __name__ == "__main__":
    main()
