"""The self-test of a device: everything hwnas does with it, once, on a small space, to one verdict.

A network is built and run, its output compared with ONNX Runtime's on the CPU; a small space is profiled into a table
of its own, one of its architectures predicted and verified. It says whether the whole chain works on a device that
nobody has tried yet, and about how well; the profile is a short one.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError
from hwnas.latency.build import build_table
from hwnas.latency.plan import reference_network
from hwnas.latency.table import LatencyTable
from hwnas.measure.link import MeasurementError
from hwnas.measure.lock import device_lock
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.precision import CONVERSIONS
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.progress import Progress
from hwnas.spaces import get_space
from hwnas.spaces.base import Space
from hwnas.verify import Candidate, verify

SPACE = "proxyless-tiny"
"""The small space."""

RUNS = 20
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}
"""Precision -> largest difference of an output, as a share of the largest output, from ONNX Runtime's for the same
file. A device sums in another order, and rounds then."""

MOST_ERROR = 0.15
"""By how much a prediction may miss after so short a profile, where its interval does not hold the measurement."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What was found; latencies in ms of one batch.

    Attributes:
        runtime: with its version.
        device: as the runtime calls it.
        reference_ms: fastest run of the reference network.
        output_rel_diff: largest difference of an output from ONNX Runtime's, as a share of the largest output.
        entries, failed: operators in the table, and those that could not be measured.
        predicted_ms, low_ms, high_ms: of one architecture of the small space.
        measured_ms: of the same.
        problems: why the device does not pass; empty where it does.
    """

    runtime: str
    device: str
    cores: int
    reference_ms: float
    output_rel_diff: float
    entries: int
    failed: int
    predicted_ms: float | None
    low_ms: float | None
    high_ms: float | None
    measured_ms: float
    seconds: float
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything works."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """As ``hwnas devices --self-test --json`` prints it."""
        return {**asdict(self), "passed": self.passed}


def self_test(profile: DeviceProfile, progress: Progress, *, space: Space | None = None) -> SelfTest:
    """Builds, runs, compares, profiles, predicts and verifies.

    Args:
        profile: of the device; its timing is shortened.
        progress: is told.
        space: the small space; None is `SPACE`.

    Raises:
        HwnasError: the device cannot be used at all; it says why.
    """
    started = time.monotonic()
    space = space or get_space(SPACE)
    short = profile.timing.model_copy(update={"min_passes": 3, "max_passes": 4, "runs": min(5, profile.timing.runs)})
    profile = profile.model_copy(update={"timing": short})
    arch = space.sample(np.random.default_rng(7))
    model = network_to_onnx(space.network(arch), batch_size=profile.batch_size)
    with device_lock(profile.lock_name, progress), MeasuringProcess(profile, progress=progress) as process:
        describe = process.describe
        reference_ms, difference = _run(process, profile, model, space)
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        path = Path(folder) / "selftest.lut"
        built = build_table(profile, path, spaces=[space], progress=progress)
        candidate = Candidate("self-test", space.network(arch), model)
        with LatencyTable.open(path) as table:
            (report,) = verify([candidate], profile, table=table, progress=progress)
    problems = []
    if not difference <= TOLERANCE[profile.precision]:  # what is no number fails too
        problems.append(f"its outputs differ from ONNX Runtime's by {difference:.1g} of the largest")
    if built.failed:
        problems.append(f"{len(built.failed)} operators cannot be measured, such as {next(iter(built.failed))}")
    if report.predicted_ms is None:
        problems.append(f"nothing is predicted: {len(report.missing)} operators are missing")
    elif not _agree(report.predicted_low_ms, report.predicted_ms, report.predicted_high_ms, report.measured_ms):
        problems.append(f"{report.predicted_ms:.3g} ms were predicted, {report.measured_ms:.3g} ms measured")
    return SelfTest(
        f"{describe['runtime']} {describe['runtime_version']}",
        str(describe["device"]),
        int(describe["cores"]),
        reference_ms,
        difference,
        built.entries,
        len(built.failed),
        report.predicted_ms,
        report.predicted_low_ms,
        report.predicted_high_ms,
        report.measured_ms,
        time.monotonic() - started,
        tuple(problems),
    )


def _agree(low: float | None, predicted: float, high: float | None, measured: float) -> bool:
    if low is not None and high is not None and low <= measured <= high:
        return True
    return abs(predicted / measured - 1) <= MOST_ERROR


def _run(process: MeasuringProcess, profile: DeviceProfile, model: bytes, space: Space) -> tuple[float, float]:
    """The reference network's fastest run, and by how much the output of `model` differs from ONNX Runtime's."""
    reference = network_to_onnx(reference_network(), batch_size=profile.batch_size)
    images = np.random.default_rng(8).standard_normal((profile.batch_size, *space.input_shape)).astype(np.float32)
    try:
        _, samples_ms = process.time_ms(Subject("reference", "network", lambda: reference), RUNS)
        found = process.run(Subject("numerics", "network", lambda: model), images)
    except MeasurementError as error:
        raise HwnasError(f"{profile.address} cannot run a small network: {error}") from None
    expected = _expected(CONVERSIONS[profile.precision](model), images)
    largest = max(float(np.abs(expected).max()), 1e-30)
    return min(samples_ms), float(np.abs(found.reshape(expected.shape) - expected).max()) / largest


def _expected(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime computes on the CPU for the very file that the device is given."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    kind = np.float16 if "float16" in given.type else np.float32
    return np.asarray(session.run(None, {given.name: images.astype(kind)})[0], np.float32)
