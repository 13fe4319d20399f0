"""Kernels timed inside a network, by ONNX Runtime's own profiler.

An operator that is timed alone finds its weights in the cache and its input where it left it; inside a network the rest
of the net was there in between. Depthwise convolutions of large images take up to 1.6 times as long there, convolutions
with many weights 1.1 times. The profiler costs some microseconds between the kernels, so that the sum of kernels is no
latency of a network; the kernels' own durations are what they are without it.
"""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from hwnas.measure.runtimes.base import KernelClock, KernelTime
from hwnas.measure.runtimes.scratch import scratch_folder
from hwnas.measure.runtimes.timed import warm_up
from hwnas.measure.statistics import fastest_mean, steady_mean

LEAST_S, LEAST_RUNS = 0.02, 3
"""A network is run for about so long, and so often unless fewer are asked for: the profiler's clock has whole
microseconds. What disturbs a run disturbs the next one too, so that more runs of a long network would tell little."""

MOST_RUNS = 200

LEAST_KERNELS = 16
"""Of fewer, the time that the profiler takes between two cannot be told from what its clock cuts off."""

_KERNEL = "_kernel_time"


class OrtKernelClock(KernelClock):
    """A network that the runtime has optimised; it is loaded anew for each call, since the profiler stops only once.

    Args:
        model: the optimised model's bytes.
        options: makes options of a session that changes nothing of it.
        bind: makes what runs a session, its tensors bound.
    """

    def __init__(
        self,
        model: bytes,
        options: Callable[[], ort.SessionOptions],
        bind: Callable[[ort.InferenceSession], Callable[[], object]],
    ) -> None:
        self._model, self._options, self._bind = model, options, bind

    def time_kernels(self, runs: int) -> list[KernelTime]:
        with scratch_folder() as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "kernels")
            session = ort.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
            run = self._bind(session)
            taken_s = warm_up(run)
            runs = min(MOST_RUNS, max(min(runs, LEAST_RUNS), math.ceil(LEAST_S / taken_s)))
            undisturbed = []
            for _ in range(runs):
                switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
                run()
                undisturbed.append(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == switches)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        kept = undisturbed if 2 * sum(undisturbed) >= runs else [True] * runs
        return _kernel_times(events, np.array(kept))


def _kernel_times(events: list[dict[str, Any]], kept: np.ndarray) -> list[KernelTime]:
    """The durations of each node in the last runs; of those that are kept."""
    durations: dict[str, list[float]] = {}
    starts: dict[str, list[float]] = {}
    first: dict[str, dict[str, Any]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            durations.setdefault(name, []).append(event["dur"])
            starts.setdefault(name, []).append(event["ts"])
            first.setdefault(name, event["args"])
    names = [name for name, times in durations.items() if len(times) >= len(kept)]
    if not names:
        return []
    taken_us, at_us = (
        np.array([times[name][-len(kept) :] for name in names], float)[:, kept] for times in (durations, starts)
    )
    samples_ms = np.maximum(0.0, taken_us + lost_us(taken_us, at_us)[:, None]) / 1e3
    return [
        KernelTime(
            name.removesuffix(_KERNEL),
            str(first[name]["op_name"]),
            _shape(first[name]["input_type_shape"]),
            _shape(first[name]["output_type_shape"]),
            tuple(samples.tolist()),
        )
        for name, samples in zip(names, samples_ms, strict=True)
    ]


def lost_us(taken_us: np.ndarray, at_us: np.ndarray) -> np.ndarray:
    """What the clock of whole microseconds takes from each kernel more (or less: negative) than from the others.

    The profiler cuts each duration down to whole microseconds. A kernel that takes 2.9 us whenever it runs is shown as
    2 in every run, and no mean of runs tells it from one of 2.1. The moments at which kernels start are cut as well,
    but they fall anywhere between two ticks, so that the mean time from one start to the next is true: the kernel, and
    what the profiler does after it, which is about the same after each.

    Args:
        taken_us: durations as they are shown [kernels, runs].
        at_us: when each began [kernels, runs].

    Returns:
        [kernels], at most half a microsecond either way; zeros where kernels are too few or do not run one by one.
    """
    count = len(taken_us)
    lost = np.zeros(count)
    order = np.argsort(at_us[:, 0], kind="stable")
    steps = np.diff(at_us[order], axis=0)
    if count < LEAST_KERNELS or (steps < taken_us[order[:-1]]).any():
        return lost
    between = steady_mean(steps, within=2.0) - fastest_mean(taken_us[order[:-1]])
    lost[order[:-1]] = np.clip(between - steady_mean(between, within=1.0), -0.5, 0.5)
    return lost


def _shape(tensors: list[dict[str, list[int]]]) -> tuple[int, ...]:
    """Of the first tensor, without the batch."""
    return tuple(next(iter(tensors[0].values()))[1:]) if tensors else ()
