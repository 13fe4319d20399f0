"""Times ONNX files with onnxruntime alone; imports nothing of hwnas, so that its figures stand on their own.

    python benchmarks/independent_timing.py FILE.onnx... [--threads 1] [--seconds 10]
    python benchmarks/independent_timing.py FILE.onnx... --beside KNOWN.onnx --group 20 --rounds 3

The files take turns in short bursts, in another order each turn. For each, in ms of one run: the mean of the fastest
runs of the three fastest bursts (undisturbed, what hwnas predicts and measures), and 10th percentile and median of all
(as busy as it is now).

Many files are timed in groups, so that few sessions are loaded at a time; each round visits every group, so that every
file meets several moods of the machine. The files of `--beside` are timed in every group, with figures of their own for
each: whoever knows their times of another day can tell how fast the machine was for that group.
"""

import argparse
import json
import time

import numpy as np
import onnxruntime as ort

WARM_RUNS = 10  # of a burst, not timed: whatever ran before has taken the weights out of the cache
RUNS = 5  # timed runs of a burst


def load(path, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding, node = session.io_binding(), session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in node.shape]
    binding.bind_cpu_input(node.name, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    binding.bind_output(session.get_outputs()[0].name)
    return session, binding


def take_turns(paths, seconds, threads, rng, samples):
    """Adds bursts of all `paths` to `samples` for so many seconds."""
    loaded = {path: load(path, threads) for path in paths}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for index in rng.permutation(len(paths)):
            session, binding = loaded[paths[index]]
            for _ in range(WARM_RUNS):
                session.run_with_iobinding(binding)
            burst = []
            for _ in range(RUNS):
                start = time.perf_counter()
                session.run_with_iobinding(binding)
                burst.append(1e3 * (time.perf_counter() - start))
            samples.setdefault(paths[index], []).append(burst)


def figures(bursts):
    fastest = np.sort([min(burst) for burst in bursts])[:3].mean()
    p10, median = np.quantile(bursts, [0.1, 0.5])
    found = {"fastest_ms": fastest, "p10_ms": p10, "median_ms": median}
    return {name: round(float(value), 5) for name, value in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--beside", action="append", default=[], metavar="FILE", help="time it in every group too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to time each file")
    parser.add_argument("--group", type=int, default=0, help="files loaded at a time, without those beside  [all]")
    parser.add_argument("--rounds", type=int, default=1, help="how often each group has its turn")
    args = parser.parse_args()
    files = list(dict.fromkeys(args.files))
    size = args.group or len(files)
    groups = [files[start : start + size] + args.beside for start in range(0, len(files), size)]
    samples, rng = [{} for _ in groups], np.random.default_rng(0)
    for _ in range(args.rounds):
        for group, found in zip(groups, samples, strict=True):
            take_turns(group, args.seconds * len(group) / args.rounds, args.threads, rng, found)
    for number, (group, found) in enumerate(zip(groups, samples, strict=True)):
        for path in group:
            print(json.dumps({"file": path, "group": number, **figures(found[path])}))


if __name__ == "__main__":
    main()
