"""
Does a predicted K or T2t order lesions otherwise than ADC alone, and rightly?

Synthetic patients of both protocols, one lesion each; signals from the formula that is fitted, and
from random walks that know nothing of it. Run from the project's root:

    .venv/bin/python -m benchmarks.prediction.bench_lesion_order [--quick --out FILE]
"""

import argparse
import time
from typing import Any

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import leave_one_patient_out, simulate_cohort
from dmrifit.study.report.sections.patients import lesion_ranking

RESULT = measure.RESULTS / "lesion_order.json"
SEED = 20261121
COHORTS = ("cohort1", "cohort2")
TRUTHS = ("formula", "walk")
ALGORITHMS = ("LR",)
N_PATIENTS = 48
_DIGITS = 4


def ranked(truth: str, n_patients: int, quick: bool) -> list[dict[str, Any]]:
    """Rank the lesions of cohorts whose signals have this origin."""
    shape = (16, 16, 3) if quick else (48, 48, 8)
    cohorts = {}
    for name in COHORTS:
        cohorts[name] = simulate_cohort(
            name, n_patients, shape=shape, truth=truth, random_state=SEED
        )
    evaluation = leave_one_patient_out(
        cohorts, algorithms=ALGORITHMS, controls=False, random_state=SEED
    )
    rows = []
    for row in lesion_ranking(evaluation).to_dict("records"):
        numbers = {
            name: round(value, _DIGITS) for name, value in row.items() if isinstance(value, float)
        }
        rows.append({"truth": truth} | row | numbers)
    return rows


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Rank the lesions of cohorts of both origins."""
    start = time.perf_counter()
    n_patients = 6 if chosen.quick else N_PATIENTS
    rows = []
    for truth in TRUTHS:
        rows += ranked(truth, n_patients, chosen.quick)
    return {
        "synthetic": True,
        "n_patients": n_patients,
        "seed": SEED,
        "seconds": round(time.perf_counter() - start),
        "rows": rows,
    }


if __name__ == "__main__":
    runs.main(run, RESULT, packages=("numpy", "scipy", "scikit-learn", "numba"))
