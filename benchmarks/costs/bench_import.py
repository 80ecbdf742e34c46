"""
How long does it take to import the four packages, and what does numpy alone cost?

Each repeat starts a new interpreter with warm file caches; the time of an interpreter that imports
nothing is measured in turn with the others and subtracted as a median. Run from the project's
root:

    .venv/bin/python -m benchmarks.costs.bench_import
"""

import argparse
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import _measure as measure
from benchmarks import _runs as runs

REPEATS = 21
RESULT = measure.RESULTS / "import.json"
CASES = {
    "nothing": "pass",
    "packages": "import dmrifit, placement, anomaly, metastasis",
    "numpy": "import numpy",
    "fit_voxels": "from dmrifit import fit_voxels",
}


def seconds(code: str) -> float:
    """Time a new interpreter that runs the code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def run(_: argparse.Namespace) -> dict[str, Any]:
    """Time all cases in turn."""
    for code in CASES.values():
        seconds(code)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(REPEATS):
        for name, code in CASES.items():
            times[name].append(seconds(code))
    start = statistics.median(times.pop("nothing"))
    rows = {"nothing": {"median_s": round(start, 4)}}
    for name, values in times.items():
        quartiles = statistics.quantiles([value - start for value in values], n=4)
        rows[name] = {
            f"{key}_s": round(value, 4)
            for key, value in zip(("q25", "median", "q75"), quartiles, strict=True)
        }
    return {"code": CASES, "repeats": REPEATS, "seconds": rows}


if __name__ == "__main__":
    code = ("dmrifit", "placement", "anomaly", "metastasis")
    runs.main(run, RESULT, code=code, packages=("numpy", "numba"), quick=False)
