"""
What does the demo say, how long does a first `make demo` take, and how large do its environments
get?

    .venv/bin/python -m benchmarks.costs.bench_demo [--folder build/first-use]

A fresh clone of this folder's last commit, with an environment of its own, as a new user makes it;
`PIP_ARGS` and `PYTHON` reach make as always.
"""

import argparse
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit.study.comparison import Evaluation

RESULT = measure.RESULTS / "demo.json"
#: Rows of the table: way of training, tested cohort, algorithm, strategy.
ROWS = (
    *(("same", "cohort1", name, form) for name in ("LR", "RFR") for form in ("s2s", "m2m")),
    *(
        ("same", "cohort1", name, "s2s")
        for name in ("constant", "copy", "truth", "repeat", "perfect")
    ),
    *(("other", "cohort2", "LR", form) for form in ("s2s", "m2m")),
    ("other", "cohort2", "constant", "s2s"),
)
#: Columns of the head of the summary.
COLUMNS = (
    "signal skill",
    "map skill",
    "map skill, independent",
    "shared noise",
    "|BI| (%)",
    "DI (%)",
    "r",
    "r, independent",
)


def measured(folder: Path) -> dict[str, Any]:
    """Run the demo in a fresh clone."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(measure.ROOT), str(folder)], check=True)
    # Of the clone: work may go on beside it.
    head = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    cloned = subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    # What compiled models are kept in is new, too.
    environment = {**os.environ, "DMRIFIT_CACHE": str(folder / "build" / "cache")}
    environment.pop("VIRTUAL_ENV", None)
    load, begun = round(os.getloadavg()[0], 2), time.perf_counter()
    subprocess.run(["make", "demo"], cwd=folder, env=environment, check=True)
    seconds = time.perf_counter() - begun
    sizes = {"demo": gigabytes(folder / ".venv")}
    subprocess.run(["make", "environment-test"], cwd=folder, env=environment, check=True)
    sizes["test"] = gigabytes(folder / ".venv")
    return {
        "synthetic": True,
        "commit": cloned,
        "machine": measure.machine() | {"load_at_start": load},
        "make_demo_s": round(seconds),
        "environment_gb": sizes,
        "rows": rows_of(Evaluation.read(folder / "build" / "demo" / "study")),
    }


def gigabytes(folder: Path) -> float:
    """Add up what the files below a folder take."""
    return round(
        sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9, 2
    )


def rows_of(evaluation: Evaluation) -> list[dict[str, str]]:
    """Choose rows of the head of the summary, as the demo prints it."""
    table = evaluation.headline()
    keys = table[["trained on", "cohort", "algorithm", "strategy"]].apply(tuple, axis=1)
    rows = []
    for train_on, cohort, algorithm, strategy in ROWS:
        (row,) = table[keys == (train_on, cohort, algorithm, strategy)].to_dict("records")
        trained = cohort if train_on == "same" else "cohort1"
        names = {"trained": trained, "tested": cohort, "predictor": f"{algorithm} {strategy}"}
        rows.append(names | {column: row[column] for column in COLUMNS})
    return rows


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run the demo in a fresh clone."""
    return measured(chosen.folder.resolve())


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        code=(),
        quick=False,
        options={
            "--folder": {"type": Path, "default": Path("build/first-use"), "help": "where the clone goes"}
        },
    )
