"""
How fast do users' functions with branches fit, beside the built-in model?

Each function is fitted to the same synthetic voxels as the built-in model, in turn with it. Run
from the project's root:

    .venv/bin/python -m benchmarks.fitting.bench_branches
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.fitting._fitting_data import PARTS, RELAXATION, SEED, SNR, T2IK, Data, draw
from dmrifit import SignalModel, fit_voxels

RESULT = measure.RESULTS / "branches.json"
AIM = 1.25  # × the time of the built-in model, where the best fits are the same


def switched(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    x = b * Dt
    fast = 0.0
    if f > 0:
        fast = f * math.exp(-b * Dv - te / T2v)
    return S0 * (fast + (1 - f) * math.exp(-x + K * x**2 / 6 - te / T2t))


def returning(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    x = b * Dt
    slow = S0 * (1 - f) * math.exp(-x + K * x**2 / 6 - te / T2t)
    if f <= 0:
        return slow
    elif b == 0:
        return slow + S0 * f * math.exp(-te / T2v)
    return slow + S0 * f * math.exp(-b * Dv - te / T2v)


def summed(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    total = 0.0
    for i in range(2):
        if i == 0:
            share, rate = max(f, 0.0), abs(b * Dv + te / T2v)
        else:
            share, rate = min(1 - f, 1.0), b * Dt - K * (b * Dt) ** 2 / 6 + te / T2t
        total += share * math.exp(-rate)
    return S0 * total


def capped(b, te, S0, f, Dv, T2v, Dt, K, T2t):
    x = b * Dt
    if K * x > 3:
        exponent = -1.5 / K
    elif x > 5:
        exponent = -5.0 + K * 25 / 6
    else:
        exponent = -x + K * x**2 / 6
    return S0 * (f * math.exp(-b * Dv - te / T2v) + (1 - f) * math.exp(exponent - te / T2t))


FUNCTIONS: dict[str, tuple[Callable, str]] = {
    "if": (switched, "`if f > 0` around the vascular term"),
    "returns": (returning, "`if`, `elif` and the rest return"),
    "loop": (summed, "a loop of two rounds with `if`, `min`, `max`, `abs`"),
    "capped": (capped, "three-way `if`: a cumulant kept at its minimum"),
}


def measured(name: str, data: Data, repeats: int) -> dict[str, object]:
    """Fit a function and the built-in model in turn."""
    function, what = FUNCTIONS[name]
    model = SignalModel.from_function(function, T2IK.parameters, name=f"branches_{name}")
    if not model.expression:
        raise ValueError(f"{name} did not become a formula")
    results: dict[str, NDArray] = {}

    def fit() -> None:
        results["cost"] = fit_voxels(data.signals, RELAXATION, model, n_threads=1).cost

    start = time.process_time()
    fit_voxels(data.signals[:1], RELAXATION, model, n_threads=1)
    compiled = time.process_time() - start
    seconds = measure.processor_times({"function": fit, "built-in": data.fit}, repeats)
    times = {which: measure.summary(values, len(data)) for which, values in seconds.items()}
    ratio = times["function"]["best_us"] / times["built-in"]["best_us"]
    best = data
    if name == "capped":
        # Its cumulant is another one, and so are its best fits.
        best = Data(model, RELAXATION, data.truth, SNR["tissue"], data.seed)
        best.signals = data.signals
        best.know(results["cost"])
        best.search(parts=PARTS)
    return {
        "name": name,
        "what": what,
        "times": times,
        "ratio": round(ratio, 3),
        "first_fit_cpu_s": round(compiled, 2),
        "accuracy": best.share(results["cost"]),
        "aim": measure.goal(AIM, ratio, "× the built-in"),
    }


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Fit all functions."""
    n_voxels, repeats = (400, 1) if chosen.quick else (10000, 5)
    with threadpool_limits(1):
        data = Data(T2IK, RELAXATION, draw("tissue", n_voxels, SEED), SNR["tissue"], SEED)
        data.search(parts=PARTS)
        built_in = data.fit().cost
        data.know(built_in)
        rows = [measured(name, data, repeats) for name in FUNCTIONS]
    return {
        "n_voxels": n_voxels,
        "repeats": repeats,
        "built_in": data.share(built_in),
        "rows": rows,
        "seeds": [SEED],
    }


if __name__ == "__main__":
    runs.main(run, RESULT, packages=("numpy", "numba", "llvmlite", "sympy"))
