"""Networks that a table never saw: are they predicted within 5% once what it lacks of them is measured?

    python benchmarks/torchvision_nets.py [--lut FILE] [--threads 1] [--model NAME]...

Profiles the space `proxyless` (or takes `--lut`), measures what each network lacks as `hwnas predict --measure`
does, and verifies all of them interleaved, as `hwnas verify` does. Exit code 3 where one is off by more than 5%.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from hwnas.devices import DeviceProfile, find_profile
from hwnas.latency.build import build_table, measure_missing
from hwnas.latency.table import LatencyTable
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.models import load_model
from hwnas.progress import RichProgress
from hwnas.spaces import get_space
from hwnas.verify import Candidate, verify

MODELS = (
    "mobilenet_v2",
    "mobilenet_v3_large",
    "shufflenet_v2_x1_0",
    "mnasnet1_0",
    "efficientnet_b0",
    "resnet18",
    "resnet50",
    "densenet121",
    "squeezenet1_0",
    "googlenet",
    "regnet_y_400mf",
)
BOUND = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lut", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", action="append")
    args = parser.parse_args()
    profile = find_profile("cpu").override(threads=args.threads)
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        path = args.lut or Path(folder) / "nets.lut"
        sys.exit(run(profile, path, args.model or MODELS))


def run(profile: DeviceProfile, path: Path, names: tuple[str, ...]) -> int:
    """Measures into the table at `path` and prints a line for each network; returns the exit code."""
    progress = RichProgress(quiet=True)
    build_table(profile, path, spaces=[get_space("proxyless")], progress=progress)
    networks = {name: load_model(f"torchvision:{name}").network for name in names}
    for network in networks.values():
        measure_missing(profile, path, network, progress)
    candidates = [
        Candidate(name, network, network_to_onnx(network, batch_size=profile.batch_size))
        for name, network in networks.items()
    ]
    with LatencyTable.open(path) as table:
        reports = verify(candidates, profile, table=table, progress=progress)
    print("network               predicted ms          interval   measured ms    error")
    worst = 0.0
    for report in reports:
        error = report.relative_error
        assert error is not None
        worst = max(worst, abs(error))
        interval = f"{report.predicted_low_ms:.2f} to {report.predicted_high_ms:.2f}"
        print(f"{report.net:20s} {report.predicted_ms:13.3f} {interval:>17s} {report.measured_ms:13.3f} {error:+8.1%}")
    print(f"worst {worst:.1%}: {'within' if worst <= BOUND else 'NOT within'} {BOUND:.0%}")
    return 0 if worst <= BOUND else 3


if __name__ == "__main__":
    main()
