"""How well a fresh table predicts networks that took no part in its calibration.

    python benchmarks/prediction.py [--space proxyless --space proxyless-tiny] [--threads 1] [--networks 40]

For each space: profiles it into a temporary table, draws networks from the cheapest to the most expensive with another
seed than the calibration's, measures them, and prints one line of out-of-sample figures.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from hwnas.devices import find_profile
from hwnas.latency.build import build_table, calibration_archs
from hwnas.latency.table import LatencyTable
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.progress import RichProgress
from hwnas.spaces import get_space
from hwnas.verify import Candidate, verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", type=int, default=40)
    args = parser.parse_args()
    profile = find_profile("cpu").override(threads=args.threads)
    progress = RichProgress(quiet=True)
    print("space            threads  profiled  networks    ms range       mean error  within 5%  worst  interval holds")
    for name in args.space or ["proxyless", "proxyless-tiny"]:
        space = get_space(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "benchmark.lut"
            began = time.monotonic()
            build_table(profile, path, spaces=[space], progress=progress)
            seconds = time.monotonic() - began
            networks = [space.network(arch) for arch in calibration_archs(space, args.networks, seed=1)]
            candidates = [Candidate(f"#{i}", net, network_to_onnx(net)) for i, net in enumerate(networks)]
            with LatencyTable.open(path) as table:
                reports = verify(candidates, profile, table=table, progress=progress)
        errors = np.abs([report.relative_error or 0.0 for report in reports])
        times = [report.measured_ms for report in reports]
        holds = [(r.predicted_low_ms or 0) <= r.measured_ms <= (r.predicted_high_ms or 0) for r in reports]
        print(
            f"{name:15s}  {args.threads:7d}  {seconds:6.0f} s  {len(reports):8d}  {min(times):6.3f}-{max(times):6.3f}"
            f"  {errors.mean():10.1%}  {(errors <= 0.05).mean():9.0%}  {errors.max():5.1%}  {np.mean(holds):14.0%}"
        )


if __name__ == "__main__":
    main()
