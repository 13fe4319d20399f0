"""Times ONNX files with onnxruntime alone; imports nothing of hwnas, so that its figures stand on their own.

    python benchmarks/independent_timing.py FILE.onnx... [--threads 1] [--seconds 10]

The files take turns in short bursts. For each, in ms of one run: the mean of the fastest runs of the three fastest
bursts (undisturbed, what hwnas predicts and measures), and 10th percentile and median of all (as busy as it is now).
"""

import argparse
import json
import time

import numpy as np
import onnxruntime as ort

parser = argparse.ArgumentParser()
parser.add_argument("files", nargs="+")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--seconds", type=float, default=10.0, help="about how long to time each file")
args = parser.parse_args()
options = ort.SessionOptions()
options.intra_op_num_threads = args.threads
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
loaded, samples = [], {path: [] for path in args.files}
for path in args.files:
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding, node = session.io_binding(), session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in node.shape]
    binding.bind_cpu_input(node.name, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    binding.bind_output(session.get_outputs()[0].name)
    loaded.append((path, session, binding))
end = time.perf_counter() + args.seconds * len(args.files)
while time.perf_counter() < end:
    for path, session, binding in loaded:
        session.run_with_iobinding(binding)
        burst = []
        for _ in range(5):
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            burst.append(1e3 * (time.perf_counter() - start))
        samples[path].append(burst)
for path, bursts in samples.items():
    fastest = np.sort([min(burst) for burst in bursts])[:3].mean()
    p10, median = np.quantile(bursts, [0.1, 0.5])
    figures = {"fastest_ms": fastest, "p10_ms": p10, "median_ms": median}
    print(json.dumps({"file": path, **{name: round(float(value), 4) for name, value in figures.items()}}))
