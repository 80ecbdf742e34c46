"""What fits take in processes of their own: the first ones, a whole scan, code for older processors."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _measure as measure
from benchmarks.fitting._fitting_data import SEED, T2IK
from dmrifit import MODELS

START = """
import json, time
begin = time.process_time()
import numpy as np
from dmrifit import MODELS, Protocol, fit_voxels
model = MODELS["{model}"]
b = np.array([0, 50, 100, 400, 900, 1200, 1600.0]) * ("{model}" != "t2")
protocol = Protocol(np.tile(b, 3), np.repeat([93, 105, 120], 7)) if model.needs_te else Protocol(b)
truth = {{"S0": 500.0, "f": 0.2, "Dv": 20.0, "T2v": 200.0, "Dt": 1.0, "K": 0.8, "T2t": 70.0,
         "D": 1.0, "ADC": 1.0, "T2": 80.0, "dR2": -0.0075}}
clean = model.signal([[truth[name] for name in model.names]], protocol)
signals = clean + np.random.default_rng(1).normal(size=(1000, len(protocol)))
start = time.process_time()
fit_voxels(signals, protocol, model)
print(json.dumps({{"cpu_s": time.process_time() - start}}))
"""

MEMORY = """
import json, resource
from pathlib import Path
import numpy as np
from dmrifit import MODELS, Protocol, fit_voxels
protocol = Protocol(np.tile([0, 50, 100, 400, 900, 1200, 1600], 3), np.repeat([93, 105, 120], 7))
model = MODELS["t2-ivim-kurtosis"]
signals = np.empty(({n}, 21), np.float32)
rng = np.random.default_rng({seed})
clean = model.signal([[500.0, 0.2, 20.0, 200.0, 1.0, 0.8, 70.0]], protocol).astype(np.float32)
for start in range(0, {n}, 65536):
    part = signals[start : start + 65536]
    part[:] = np.abs(clean + 3 * rng.standard_normal(part.shape, dtype=np.float32))
result = fit_voxels(signals, protocol, model)
output = sum(value.nbytes for value in vars(result).values() if isinstance(value, np.ndarray))
status = Path("/proc/self/status")
if status.exists():  # a child's ru_maxrss begins with its parent's size
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"input_mb": signals.nbytes / 1e6, "output_mb": output / 1e6, "peak_mb": peak / 1e6}}))
"""

NARROW = """
import json
import numpy as np
from benchmarks import _measure as measure
from benchmarks.fitting._fitting_data import RELAXATION, SEED, SNR, T2IK, Data, draw
data = Data(T2IK, RELAXATION, draw("tissue", 50_000, SEED), SNR["tissue"], SEED)
np.save({where!r}, data.fit().cost)
times = measure.processor_times({{"default": data.fit, "one start": lambda: data.fit(n_starts=1)}}, {repeats})
print(json.dumps(times))
"""


def start(bench: Any) -> None:
    """Time a new process to its first fits, and the first compilation of each model."""
    with tempfile.TemporaryDirectory() as folder:
        cold = {}
        for name in () if bench.quick else MODELS:
            environment = {"DMRIFIT_CACHE": str(Path(folder) / name)}
            child = measure.run_child(START.format(model=name), environment)
            spent = json.loads(child["out"])
            cold[name] = {
                "cpu_s": round(spent["cpu_s"], 2),
                "said_so": "compiling" in child["err"],
            }
        name = T2IK.name
        environment = {} if bench.quick else {"DMRIFIT_CACHE": str(Path(folder) / name)}
        runs = [
            measure.run_child(START.format(model=name), environment)
            for _ in range(2 if bench.quick else 7)
        ]
    warm, cpu = min(run["wall_s"] for run in runs), min(run["cpu_s"] for run in runs)
    bench.add(
        "start",
        f"start of Python to the first 1,000 voxels fitted ({name}, compiled before)",
        {"s": warm},
        ours={
            "wall_s": round(warm, 3),
            "cpu_s": round(cpu, 3),
            "median_wall_s": round(float(np.median([r["wall_s"] for r in runs])), 3),
        },
    )
    if not cold:
        return
    longest = max(entry["cpu_s"] for entry in cold.values())
    bench.add(
        "compile",
        "first fit of a model on a machine (compilation, longest of the models)",
        {"s": longest},
        ours=cold,
    )


def memory(bench: Any) -> None:
    """Measure the peak memory of a whole scan in a process of its own."""
    shape = (16, 16, 4) if bench.quick else (256, 256, 64)
    child = measure.run_child(MEMORY.format(n=int(np.prod(shape)), seed=SEED + 6))
    found = json.loads(child["out"])
    over = found["peak_mb"] - found["input_mb"] - found["output_mb"]
    bench.add(
        "memory",
        f"peak memory of {'×'.join(map(str, shape))}×21 float32 above input and output",
        {"MB": over},
        ours={key: round(value, 1) for key, value in found.items()} | {"above_mb": round(over, 1)},
    )


def narrow(bench: Any) -> None:
    """Time code for AVX2 on this machine, and compare its bits."""
    if not bench.wide or bench.quick:
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "NUMBA_CPU_NAME": "haswell",
            "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+sse4.2,+ssse3,+popcnt,+cmov,+lzcnt,+f16c",
            "DMRIFIT_CACHE": folder,
        }
        where = Path(folder) / "cost.npy"
        code = NARROW.format(repeats=bench.repeats, where=str(where))
        child = measure.run_child(code, environment)
        found = json.loads(child["out"])
        cost = np.load(where)
    times = {name: measure.summary(values, len(bench.tissue)) for name, values in found.items()}
    bench.add(
        "avx2",
        "t2-ivim-kurtosis, tissue set, code for AVX2",
        {"µs (AVX2)": times["default"]["best_us"]},
        ours=times,
        accuracy=bench.tissue.share(cost)
        | {"same_bits": bool((cost == bench.found["tissue"].cost).all())},
    )
