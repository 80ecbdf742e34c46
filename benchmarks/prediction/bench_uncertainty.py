"""
Do the intervals of predicted maps hold what they promise, and do they know where they cannot?

Synthetic cohorts: intervals learned from 16 patients are tested on 16 new ones of another seed, in
the body and in tumors, with signals from the formula that is fitted and from random walks. Then
tissues are left out of the training, or the patients come from another field strength or with
more noise, at the same protocol. Run from the project's root:

    .venv/bin/python -m benchmarks.prediction.bench_uncertainty [--quick --out FILE]
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import (
    MODELS,
    Cohort,
    ConformalIntervals,
    MapsToMaps,
    Protocol,
    SignalToSignal,
    fit_voxels,
    simulate_cohort,
)
from dmrifit.predict.intervals import coverage_table, ranking_table, width_table
from dmrifit.predict.novelty import NOVEL
from dmrifit.simulate.tissues import tissue_table

RESULT = measure.RESULTS / "uncertainty.json"
MODEL = MODELS["t2-ivim-kurtosis"]
NAMES = MODEL.names
STRATEGIES = {"s2s": SignalToSignal, "m2m": MapsToMaps}
COHORTS = ("cohort1", "cohort2")
TRUTHS = ("formula", "walk")
#: Where voxels are trained on, calibrated and tested, and how many of each patient.
REGIONS = {"body": 250, "lesion": 150}
SEEDS = (20261121, 20261122, 20261123)
TEST_SEED = 1000  # added for the patients of the test
N_PATIENTS = 16
COVERAGE = 0.9
TISSUES_LEFT_OUT = ("bladder", "kidney", "liver", "spleen", "bone", "muscle")
#: T2v sits at a bound in most references, so its interval is the whole box.
TISSUE_PARAMETERS = tuple(name for name in NAMES if name not in ("S0", "T2v"))
MOST_OFF = 0.05
LEAST_RATIO = 0.8
_DIGITS = 4


@dataclass(frozen=True)
class Sample:
    """Voxels of a cohort with the reference fit, a second reference and the true parameters."""

    X: np.ndarray
    Y: np.ndarray
    patients: np.ndarray
    maps: np.ndarray
    repeated: np.ndarray
    truth: np.ndarray
    source: Protocol
    target: Protocol


def drawn(cohort: Cohort, region: str, seed: int) -> Sample:
    """Draw voxels of a cohort and fit them, and a second draw of their noise."""
    voxels = cohort.arrays(mask=region, max_voxels=REGIONS[region], random_state=seed)
    rng = np.random.default_rng(seed)
    truth = np.empty((len(voxels), len(NAMES)))
    repeated = np.empty_like(voxels.Y)
    for k, scan in enumerate(cohort.scans):
        rows = voxels.index[:, 0] == k
        where = tuple(voxels.index[rows, 1:].T)
        unit = np.median(scan.signal[where][:, 0] / voxels.Y[rows, 0])
        clean = scan.noise_free[where]
        real = clean + scan.sigma * rng.standard_normal(clean.shape)
        repeated[rows] = np.hypot(real, scan.sigma * rng.standard_normal(clean.shape)) / unit
        truth[rows] = np.column_stack([scan.truth[name][where] for name in NAMES])
        truth[rows, 0] /= unit
    fits = [fit_voxels(Y, voxels.target, MODEL).parameters for Y in (voxels.Y, repeated)]
    return Sample(
        voxels.X, voxels.Y, voxels.groups, *fits, truth, voxels.source, voxels.target
    )


def learned(strategy: str, sample: Sample, rows: np.ndarray | None = None) -> ConformalIntervals:
    """Learn intervals around linear regression from all voxels, or from some."""
    if rows is None:
        rows = np.ones(len(sample.X), bool)
    estimator = STRATEGIES[strategy]("LR", source=sample.source, target=sample.target)
    intervals = ConformalIntervals(estimator, coverage=COVERAGE, random_state=0)
    return intervals.fit(
        sample.X[rows], sample.Y[rows], sample.patients[rows], reference_maps=sample.maps[rows]
    )


def calibration_rows(
    n_patients: int, shape: tuple[int, int, int], seeds: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Test intervals on new patients of the same kind."""
    for truth in TRUTHS:
        for name in COHORTS:
            cohorts = {
                seed: simulate_cohort(
                    name, n_patients, shape=shape, truth=truth, random_state=seed
                )
                for first in seeds
                for seed in (first, first + TEST_SEED)
            }
            for region in REGIONS:
                samples = {
                    seed: drawn(cohort, region, seed) for seed, cohort in cohorts.items()
                }
                for strategy in STRATEGIES:
                    tests = [
                        tested(strategy, samples[seed], samples[seed + TEST_SEED], f"{seed} ")
                        for seed in seeds
                    ]
                    where = {
                        "truth": truth,
                        "cohort": name,
                        "region": region,
                        "strategy": strategy,
                    }
                    yield from scored(pd.concat(tests, ignore_index=True), where)


def tested(strategy: str, train: Sample, test: Sample, prefix: str) -> pd.DataFrame:
    """Predict new patients: one row for each voxel and parameter."""
    intervals = learned(strategy, train)
    predicted = intervals.predict_maps(test.X)
    ends = intervals.intervals_of(test.X, predicted)
    tables = []
    for i, name in enumerate(NAMES):
        columns = {
            "parameter": name,
            "patient": np.char.add(prefix, test.patients.astype(str)),
            "low": ends[:, i, 0],
            "high": ends[:, i, 1],
            "predicted": predicted[:, i],
            "reference": test.maps[:, i],
            "repeated": test.repeated[:, i],
            "truth": test.truth[:, i],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True).dropna()


def scored(voxels: pd.DataFrame, where: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Score the intervals of each parameter over all test patients."""
    for name, table in voxels.groupby("parameter", sort=False):
        ends = table[["low", "high"]].to_numpy()[:, None]
        reference = table[["reference"]].to_numpy()
        by_patient = coverage_table(ends, reference, table["patient"])
        widths = width_table(ends, reference)
        ranking = ranking_table(ends, table[["predicted"]].to_numpy(), reference).iloc[0]
        row: dict[str, Any] = where | {
            "parameter": name,
            "n_patients": int(table["patient"].nunique()),
            "coverage": by_patient["coverage"].mean(),
            "worst_patient": by_patient["coverage"].min(),
            "tenth_patient": by_patient["coverage"].quantile(0.1),
            "quintiles": widths["coverage"].round(_DIGITS).tolist(),
            "width": by_patient["width"].mean(),
            **ranking[["spearman", "expected", "ratio"]].to_dict(),
        }
        for other in ("repeated", "truth"):
            values = table[[other]].to_numpy()
            others = coverage_table(ends, values, table["patient"])
            row[f"coverage_{other}"] = others["coverage"].mean()
        yield {key: rounded(value) for key, value in row.items()}


def rounded(value: Any) -> Any:
    """Round numbers; None for those that are not known."""
    return measure.rounded(value) if isinstance(value, float | np.floating) else value


def tissues_of(truth: np.ndarray) -> np.ndarray:
    """Name the organ whose typical parameters are nearest to the true ones of each voxel."""
    table = tissue_table()
    columns = [NAMES.index(name) for name in ("f", "Dv", "Dt", "K", "T2t")]
    organs = [name for name in table["tissue"] if name not in ("tumor", "necrosis")]
    means = np.log([table["tissue"][name][columns] for name in organs])
    spread = np.hypot(*(table["variation"][level][columns] for level in ("voxel", "patient")))
    distance = (np.log(np.maximum(truth[:, None, columns], 1e-3)) - means) / spread
    return np.array(organs)[np.argmin((distance**2).sum(axis=2), axis=1)]


def novelty_rows(
    n_patients: int, shape: tuple[int, int, int], seeds: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Count voxels flagged as unlike those of training, at the protocol of cohort 1."""
    protocol = Protocol.preset("cohort1")
    options: dict[str, Any] = {"shape": shape, "name": "cohort1"}
    settings = {
        "new patients": {},
        "new patients at 3 T": {"field": 3.0},
        "new patients at SNR 15": {"snr": 15.0},
        "new patients, walks": {"truth": "walk"},
    }
    rows = []
    for seed in seeds:
        train = drawn(
            simulate_cohort(protocol, n_patients, random_state=seed, **options), "body", seed
        )
        intervals = learned("s2s", train)
        news = {}
        for what, setting in settings.items():
            cohort = simulate_cohort(
                protocol, n_patients, random_state=seed + TEST_SEED, **options, **setting
            )
            news[what] = drawn(cohort, "body", seed)
            everywhere = np.ones(len(news[what].X), bool)
            rows.append(flagged(what, intervals, news[what], everywhere))
        test = news["new patients"]
        trained_tissues, tissues = tissues_of(train.truth), tissues_of(test.truth)
        for tissue in TISSUES_LEFT_OUT:
            without = learned("s2s", train, trained_tissues != tissue)
            here = tissues == tissue
            if here.any():
                rows.append(flagged(f"{tissue}, left out", without, test, here))
    table = pd.DataFrame(rows).groupby("what", sort=False)
    counts = table[["n_voxels", "n_flagged", "n_patients", "n_unusual"]].sum()
    sums = table[["held", "held_flagged"]].sum()
    out = []
    for what, count in counts.iterrows():
        n_others = count["n_voxels"] - count["n_flagged"]
        held, held_flagged = sums.loc[what]
        row = {
            "what": what,
            "n_voxels": int(count["n_voxels"]),
            "flagged": count["n_flagged"] / count["n_voxels"],
            "unusual_patients": int(count["n_unusual"]),
            "n_patients": int(count["n_patients"]),
            "coverage": held / count["n_voxels"],
            "coverage_flagged": held_flagged / max(count["n_flagged"], 1),
            "coverage_others": (held - held_flagged) / max(n_others, 1),
        }
        out.append({key: rounded(value) for key, value in row.items()})
    return out


def flagged(
    what: str, intervals: ConformalIntervals, test: Sample, rows: np.ndarray
) -> dict[str, Any]:
    """Count flagged voxels, and references that are held, averaged over parameters of tissue."""
    is_novel = intervals.typicality(test.X) < NOVEL
    ends = intervals.predict_interval(test.X)
    columns = [NAMES.index(name) for name in TISSUE_PARAMETERS]
    low, high = np.moveaxis(ends[:, columns], 2, 0)
    held = ((low <= test.maps[:, columns]) & (test.maps[:, columns] <= high)).mean(axis=1)
    patients = np.unique(test.patients[rows])
    most = intervals.novelty_.shares.max()
    shares = [is_novel[test.patients == patient].mean() for patient in patients]
    return {
        "what": what,
        "n_voxels": int(rows.sum()),
        "n_flagged": int(is_novel[rows].sum()),
        "n_patients": len(patients),
        "n_unusual": int(np.sum(np.array(shares) > most)),
        "held": held[rows].sum(),
        "held_flagged": held[rows & is_novel].sum(),
    }


def verdict(tissue: pd.DataFrame) -> str:
    """Say how many cells reach the goals; T2v, whose interval is the whole box, does not count."""
    sentences = []
    for region, table in tissue.groupby("region", sort=False):
        off = [max(abs(c - COVERAGE) for c in quintiles) for quintiles in table["quintiles"]]
        n_flat = int(np.sum(np.array(off) <= MOST_OFF))
        n_ranked = int((table["ratio"] >= LEAST_RATIO).sum())
        sentences.append(
            f"In the {region} all quintiles are within {100 * MOST_OFF:.0f} points in {n_flat} of "
            f"{len(table)} cells of one cohort and parameter (largest difference "
            f"{100 * max(off):.1f}), and the ratio is {LEAST_RATIO} or more in {n_ranked}."
        )
    return " ".join(sentences)


def calibration_cell(part: pd.DataFrame) -> str:
    """Write coverage, extremes of the quintiles, and the ratio of one parameter."""
    quintiles = [c for row in part["quintiles"] for c in row]
    low, high = (f"{100 * end:.0f}" for end in (min(quintiles), max(quintiles)))
    ratio = part["ratio"].mean()
    text = f"{100 * part['coverage'].mean():.0f} [{low}, {high}]"
    return text if np.isnan(ratio) else f"{text}, {ratio:.2f}"


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Test intervals on new patients, and on tissues and scans unlike those learned from."""
    start, processor_start = time.perf_counter(), time.process_time()
    sizes: tuple[Any, ...] = N_PATIENTS, (32, 32, 6), SEEDS
    if chosen.quick:
        sizes = 6, (16, 16, 3), SEEDS[:1]
    return {
        "synthetic": True,
        "n_patients": sizes[0],
        "shape": sizes[1],
        "seeds": sizes[2],
        "level": COVERAGE,
        "rows": list(calibration_rows(*sizes)),
        "novelty": novelty_rows(*sizes),
        "seconds": round(time.perf_counter() - start),
        "processor_seconds": round(time.process_time() - processor_start),
    }


def markdown(result: dict[str, Any]) -> str:
    """Write the tables of calibration and of unlike voxels."""
    table = pd.DataFrame(result["rows"])
    tissue = table[table["parameter"] != "T2v"]
    rows = []
    for key, cell in table.groupby(["region", "truth", "strategy"], sort=False):
        worst = cell.loc[cell["parameter"] != "T2v", "worst_patient"].min()
        texts = [calibration_cell(part) for _, part in cell.groupby("parameter", sort=False)]
        rows.append([*key, *texts, f"{100 * worst:.0f} %"])
    rows.sort(key=lambda row: row[0])
    others = tissue.groupby("region", sort=False)[["coverage_repeated", "coverage_truth"]].mean()
    shown = {"verdict": verdict(tissue), "names": NAMES, "calibration": rows, "others": others}
    return runs.page("uncertainty", result, **shown)


if __name__ == "__main__":
    packages = ("numpy", "scipy", "scikit-learn", "numba")
    runs.main(run, RESULT, markdown=markdown, packages=packages)
