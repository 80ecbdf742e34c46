"""
Routed starts against three starts for all: the same voxels, two commits, one run.

    .venv/bin/python -m benchmarks.fitting.bench_starts --before FOLDER [--quick] [--out FILE]

FOLDER is a worktree of the earlier commit. Each commit runs in a process of its own; the two are
asked in turn, so that both meet the same machine. Times are processor time of one thread, the
best of the repeats. Shares are those of voxels within 1e-3 or 1e-6 of the best known cost: the
least of all fits made here, of 16 starts and of a search of each of eight parts of the box.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks._measure import goal
from benchmarks.fitting._fitting_data import (
    HARD,
    PARTS,
    RELAXATION,
    SEED,
    SNR,
    T2IK,
    TISSUE,
    Data,
    draw,
)

RESULT = measure.RESULTS / "starts.json"
REPEATS = 4

# The process of a commit: fits the case that it is asked for, and answers with the seconds.
WORKER = """
import json, sys, time
import numpy as np
from dmrifit import Protocol, fit_voxels
folder, side = sys.argv[1:]
with np.load(folder + "/data.npz") as data:
    arrays = dict(data)
protocol = Protocol(arrays["b"], arrays["te"])
for line in sys.stdin:
    which, floor, options = json.loads(line)
    sigma = arrays[which + "_sigma"] if floor else None
    start = time.process_time()
    result = fit_voxels(
        arrays[which], protocol, "t2-ivim-kurtosis", sigma=sigma, n_threads=1, **options
    )
    seconds = time.process_time() - start
    np.save(f"{folder}/{side}.npy", result.cost)
    print(json.dumps(seconds), flush=True)
"""

# Name, set, noise floor, options before and now, largest ratio of time, share and its limit.
CASES = (
    ("tissue", "tissue", False, {}, {}, 0.63, "within_1e-6", 0.9992),
    ("hard", "hard", False, {}, {}, 0.68, "within_1e-3", 0.995),
    ("hard, thorough", "hard", False, {}, {"n_starts": "thorough"}, 0.92, "within_1e-3", 0.997),
    ("hard, noise floor", "hard", True, {}, {}, 1.0, "within_1e-3", 0.985),
    ("tissue, noise floor", "tissue", True, {}, {}, None, "within_1e-6", None),
    ("tissue, one start", "tissue", False, {"n_starts": 1}, {"n_starts": 1}, 0.9, "within_1e-6", None),
    ("hard, one start", "hard", False, {"n_starts": 1}, {"n_starts": 1}, None, "within_1e-3", None),
    ("hard, three starts", "hard", False, {}, {"n_starts": 3}, None, "within_1e-3", None),
)


# The first fits of a process, in seconds of processor time from the call.
FIRST_FITS = """
import json, sys, time
import numpy as np
from dmrifit import MODELS, Protocol, fit_voxels
b = np.array([0, 50, 100, 400, 900, 1200, 1600.0])
seconds = {}
for name, truth in (
    ("t2-ivim-kurtosis", [500.0, 0.2, 20.0, 200.0, 1.0, 0.8, 70.0]),
    ("ivim", [500.0, 0.2, 20.0, 1.0]),
):
    te = np.repeat([93.0, 105, 120], 7) if name == "t2-ivim-kurtosis" else None
    protocol = Protocol(b if te is None else np.tile(b, 3), te)
    clean = MODELS[name].signal([truth], protocol)
    signals = clean + np.random.default_rng(1).normal(size=(1000, len(protocol)))
    start = time.process_time()
    fit_voxels(signals, protocol, name, n_threads=1)
    seconds[name] = time.process_time() - start
print(json.dumps(seconds))
"""


class Side:
    """A process that fits with the code of one commit."""

    def __init__(self, root: Path, folder: Path, name: str) -> None:
        self.costs = folder / f"{name}.npy"
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), name],
            env={**os.environ, "PYTHONPATH": str(root)},
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fit(self, which: str, floor: bool, options: dict) -> float:
        """Fit a set once; returns seconds of processor time."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([which, floor, options]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.costs.stem} ended; its message is above")
        return json.loads(answer)

    def close(self) -> None:
        self.process.communicate()


def first_fits(roots: dict[str, Path], repeats: int) -> list[dict[str, object]]:
    """Time the first fits on a machine, those of a second model, and those of later processes."""
    kinds = ("first model", "second model", "later start")
    best = {(kind, side): np.inf for kind in kinds for side in roots}
    for _ in range(repeats):
        for side, root in roots.items():
            with tempfile.TemporaryDirectory() as cache:
                settings = {"DMRIFIT_CACHE": cache, "PYTHONPATH": str(root)}
                spent = [
                    list(json.loads(measure.run_child(FIRST_FITS, settings, root)["out"]).values())
                    for _ in range(2)
                ]
            for kind, value in zip(kinds, (*spent[0], spent[1][0]), strict=True):
                best[kind, side] = min(best[kind, side], value)
    rows = []
    for kind, limit in zip(kinds, (0.65, 0.4, 0.5), strict=True):
        before, now = (best[kind, side] for side in roots)
        value, unit = (now, "s") if kind == "later start" else (now / before, "of the time before")
        rows.append(
            {
                "name": kind,
                "before_s": round(before, 3),
                "now_s": round(now, 3),
                "ratio": round(now / before, 3),
                "goals": [goal(limit, value, unit)],
            }
        )
    return rows


def known_best(data: Data, which: str, *, floor: bool) -> None:
    """Search for the best known costs."""
    data.search(floor=floor, parts=PARTS)
    for n_starts in (2, 3, 6, 12):
        data.know(data.fit(floor=floor, n_starts=n_starts).cost, floor=floor)
    print(f"best known costs of {which}{', noise floor' if floor else ''}", flush=True)


def timed(before: Path, *, quick: bool, only: str | None) -> dict[str, object]:
    """Time all cases on both sides, then judge the costs."""
    n_tissue, n_hard = (300, 200) if quick else (50_000, 20_000)
    sets = {
        "tissue": Data(T2IK, RELAXATION, draw("tissue", n_tissue, SEED), SNR["tissue"], SEED),
        "hard": Data(T2IK, RELAXATION, draw("hard", n_hard, SEED + 1), SNR["hard"], SEED + 1),
    }
    cases = [case for case in CASES if only is None or case[0].startswith(only)]
    seconds: dict[tuple[str, str], list[float]] = {}
    costs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(
            folder / "data.npz",
            b=RELAXATION.b,
            te=RELAXATION.te,
            **{which: data.signals for which, data in sets.items()},
            **{f"{which}_sigma": data.sigma for which, data in sets.items()},
        )
        sides = {
            "before": Side(before, folder, "before"),
            "now": Side(measure.ROOT, folder, "now"),
        }
        for repeat in range(1 + (2 if quick else REPEATS)):
            for case, which, floor, *options, _, _, _ in cases:
                for (side, worker), chosen in zip(sides.items(), options, strict=True):
                    spent = worker.fit(which, floor, chosen)
                    # The first round compiles.
                    if repeat > 0:
                        seconds.setdefault((case, side), []).append(spent)
                    costs[case, side] = np.load(worker.costs)
        for worker in sides.values():
            worker.close()
    for which, floor in {case[1:3] for case in cases}:
        known_best(sets[which], which, floor=floor)
    for (case, _), cost in costs.items():
        _, which, floor, *_ = next(entry for entry in cases if entry[0] == case)
        sets[which].know(cost, floor=floor)
    rows = []
    for case, which, floor, _, options, limit, share_name, least in cases:
        data = sets[which]
        times = {side: measure.summary(seconds[case, side], len(data)) for side in sides}
        shares = {side: data.share(costs[case, side], floor=floor) for side in sides}
        ratio = times["now"]["best_us"] / times["before"]["best_us"]
        goals = []
        if limit is not None:
            goals.append(goal(limit, ratio, "of the time before"))
        if least is not None:
            goals.append(goal(least, shares["now"][share_name], share_name, at_least=True))
        rows.append(
            {
                "name": case,
                "options": options,
                "times": times,
                "ratio": round(ratio, 4),
                "shares": shares,
                "goals": goals,
            }
        )
    roots = {"before": before, "now": measure.ROOT}
    return {"rows": rows, "first_fits": first_fits(roots, 1 if quick else 2)}


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare both commits."""
    machine = measure.machine()
    vectors = "AVX-512" if machine["avx512f"] else "AVX2" if machine["avx2"] else "SSE"
    head = ["git", "-C", str(chosen.before), "rev-parse", "HEAD"]
    return {
        "before": subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip(),
        "machine": machine | {"vectors": vectors},
        "data": {"tissue": TISSUE, "hard": HARD, "snr": SNR, "seeds": [SEED, SEED + 1]},
        **timed(chosen.before.resolve(), quick=chosen.quick, only=chosen.only),
    }


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        packages=("numpy", "numba", "llvmlite", "scipy"),
        options={
            "--before": {"type": Path, "required": True, "help": "worktree of the earlier commit"},
            "--only": {"help": "cases whose names start so"},
        },
    )
