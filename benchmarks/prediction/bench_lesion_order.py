"""
Does a predicted K or T2t order lesions otherwise than ADC alone, and rightly?

Synthetic patients of both protocols, one lesion each; signals from the formula that is fitted, and
from random walks that know nothing of it. Run from the project's root:

    .venv/bin/python -m benchmarks.prediction.bench_lesion_order [--quick --out FILE]
"""

import time
from typing import Any

from benchmarks import _measure as measure
from dmrifit import leave_one_patient_out, simulate_cohort
from dmrifit.study.lesion_ranking import lesion_ranking

RESULT = measure.RESULTS / "lesion_order.json"
SEED = 20261121
COHORTS = ("cohort1", "cohort2")
TRUTHS = ("formula", "walk")
ALGORITHMS = ("LR",)
N_PATIENTS = 48
_DIGITS = 4


def main(arguments: list[str] | None = None) -> None:
    parser = measure.options(__doc__.strip().splitlines()[0], RESULT)
    chosen = measure.chosen(parser, arguments, RESULT)
    start = time.perf_counter()
    n_patients = 6 if chosen.quick else N_PATIENTS
    rows = []
    for truth in TRUTHS:
        rows += ranked(truth, n_patients, chosen.quick)
    result = {
        "question": __doc__.strip().splitlines()[0],
        "synthetic": True,
        **measure.provenance(
            __file__, "dmrifit", packages=("numpy", "scipy", "scikit-learn", "numba"), quick=chosen.quick
        ),
        "n_patients": n_patients,
        "seed": SEED,
        "seconds": round(time.perf_counter() - start),
        "rows": rows,
    }
    measure.write(result, chosen.out)
    print(markdown(result))


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


def markdown(result: dict[str, Any]) -> str:
    """Write the table."""
    header = ["truth", "cohort", "parameter", "prediction", "ρ of the prediction", "ρ of ADC"]
    header += ["gain [95 %]", "pairs ordered otherwise", "of these rightly"]
    rows = []
    for row in result["rows"]:
        gain = f"{row['gain']:+.2f} [{row['gain_low']:+.2f}, {row['gain_high']:+.2f}]"
        shares = [f"{100 * row[name]:.0f} %" for name in ("reordered", "reordered_rightly")]
        names = [row[name] for name in ("truth", "cohort", "parameter", "estimator")]
        correlations = [f"{row[name]:.2f}" for name in ("rho_predicted", "rho_adc")]
        rows.append([*names, *correlations, gain, *shares])
    n = result["n_patients"]
    note = (
        f"Synthetic patients, {n} in each cohort, each left out once, seed {result['seed']}; one "
        "lesion each, ranked by its median; ρ: Spearman's correlation with the true order, ADC in "
        "the direction that suits it better; interval over patients. "
        f"{result['date']}, commit {str(result['commit'])[:10]}."
    )
    return f"{note}\n\n{measure.table(header, rows)}"


if __name__ == "__main__":
    main()
