"""
How long does it take to import the four packages, and what does numpy alone cost?

Each repeat starts a new interpreter with warm file caches; the time of an interpreter that imports
nothing is measured in turn with the others and subtracted as a median. Run from the project's root:

    .venv/bin/python benchmarks/bench_import.py
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

REPEATS = 21
RESULT = Path(__file__).parent / "results" / "import.json"
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


def processor() -> str:
    """Name the processor as the system does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def main() -> None:
    for code in CASES.values():
        seconds(code)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(REPEATS):
        for name, code in CASES.items():
            times[name].append(seconds(code))
    start = statistics.median(times.pop("nothing"))
    rows = {"nothing": {"median_s": round(start, 4)}}
    for name, values in times.items():
        low, middle, high = statistics.quantiles([value - start for value in values], n=4)
        rows[name] = {"q25_s": round(low, 4), "median_s": round(middle, 4), "q75_s": round(high, 4)}
    result = {
        "question": "seconds to import, above the start of the interpreter",
        "code": CASES,
        "repeats": REPEATS,
        "seconds": rows,
        "machine": {"processor": processor(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "numba": version("numba"),
        },
        "date": date.today().isoformat(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
