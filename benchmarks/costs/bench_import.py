"""
How long does it take to import the four packages, and what does numpy alone cost?

Each repeat starts a new interpreter with warm file caches; the time of an interpreter that imports
nothing is measured in turn with the others and subtracted as a median. Run from the project's
root:

    .venv/bin/python -m benchmarks.costs.bench_import
"""

import statistics
import subprocess
import sys
import time

from benchmarks import _measure as measure

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


def markdown(result: dict) -> str:
    """Write the table."""
    rows = [
        [
            f"`{code}`",
            *(
                f"{1000 * result['seconds'][name][key]:.1f}"
                for key in ("q25_s", "median_s", "q75_s")
            ),
        ]
        for name, code in result["code"].items()
        if name != "nothing"
    ]
    start = 1000 * result["seconds"]["nothing"]["median_s"]
    head = (
        f"Milliseconds above the start of the interpreter ({start:.1f}), {result['repeats']} "
        "repeats, other programs "
        f"beside it as they come; {result['machine']['processor']}, Python "
        f"{result['versions']['python']}; "
        f"{result['date']}."
    )
    return f"{head}\n\n{measure.table(['in a new interpreter', 'lower quartile', 'median', 'upper quartile'], rows)}"


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
        rows[name] = {
            "q25_s": round(low, 4),
            "median_s": round(middle, 4),
            "q75_s": round(high, 4),
        }
    result = {
        "question": "seconds to import, above the start of the interpreter",
        "code": CASES,
        "repeats": REPEATS,
        "seconds": rows,
        **measure.provenance(
            __file__, "dmrifit", "placement", "anomaly", "metastasis", packages=("numpy", "numba")
        ),
    }
    measure.write(result, RESULT)
    print(markdown(result))


if __name__ == "__main__":
    main()
