"""
How many false positives does a prior scan save at the same sensitivity, in a phantom as hard as people?

    .venv/bin/python -m benchmarks.metastasis.bench_metastasis_prior [--patients 40] [--work FOLDER]

Ten seeds of synthetic patients of the hard world, each with a prior. Candidates of the network of the
included model are judged by trees and by a linear model, with features of the prior and without,
trained with the patients of the other nine seeds. In the control row every patient has the prior of
another one. A two-stage segmenter judges patients who have no prior by trees of their own: those of
the row without one. The ceiling is an oracle that judges as without a prior, and knows which
candidates have changed since. What is found in a patient is kept in FOLDER and not repeated.
"""

import argparse
import functools
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import load_model
from metastasis import simulate_metastases
from metastasis.candidates.case_candidates import case_candidates
from metastasis.candidates.features import Candidates
from metastasis.candidates.judgment import (
    NAMES,
    candidate_truth,
    classifier_columns,
    make_classifier,
    shuffled_losses,
    without_prior,
)
from metastasis.candidates.two_stage import PATH

RESULT = measure.RESULTS / "metastasis_prior.json"
WORK = Path("build") / "metastasis_prior"
SEEDS = tuple(range(20261160, 20261170))
N_PATIENTS = 40  # of each seed
WORLD: dict[str, Any] = {
    "prior": 1.0,
    "shape": (72, 72, 72),
    "spacing": 1.0,
    "metastases": (2, 8),
    "mimics": (3, 10),
    "world": "hard",
}
SENSITIVITIES = (0.75, 0.80, 0.85, 0.90, 0.95)
AIM_AT = 0.90
CLASSIFIERS = ("trees", "linear")
STATUSES = ("new", "grown", "stable", "shrunk")
#: What a row is judged with: whether the classifier has learned priors, and which one it sees.
ROWS = {
    "no prior": (False, "none"),
    "prior": (True, "own"),
    "prior of another patient": (True, "exchanged"),
}
CEILING = "ceiling: knows what has changed"
#: Low ones, as metastases that are no candidates are never found.
LEVELS = (0.0003, 0.002, 0.01, 0.05, 0.2, 0.5)
MIN_VOXELS, N_BOOTSTRAP = 4, 2000
#: Share of a lesion's voxels that are marked where it counts as found.
COVERED = 0.1
#: A false candidate was there before if the network gives it this share of its probability then.
PERSISTENT = 0.5
#: What candidates depend on: the network, rooms, and the settings of this module.
CODE = hashlib.sha256(PATH.read_bytes()).hexdigest()[:10] + boards.code_digest(
    "benchmarks.metastasis.bench_metastasis_prior",
    *("metastasis.candidates.features", "metastasis.candidates.case_candidates"),
    "metastasis.scans.local_level",
    *("metastasis.simulate.patients", "metastasis.simulate.enhancement"),
)


@dataclass(frozen=True)
class Lesion:
    """A metastasis: its status, and for each voxel the candidates that hold it (-1 for none)."""

    status: str
    members: NDArray[np.int64]  # (n_voxels, n_levels)


@dataclass(frozen=True)
class Patient:
    """Candidates of a patient by the prior that they are compared with, and what they are."""

    tables: dict[str, NDArray[np.float64]]
    truth: NDArray[np.int8]
    is_false: NDArray[np.bool_]  # touches no metastasis
    is_changed: NDArray[np.bool_]  # of a metastasis that is not stable
    is_mimic: NDArray[np.bool_]
    parents: NDArray[np.int64]  # the candidate of a lower level that it lies in, -1 for none
    lesions: list[Lesion]


# Candidates of a patient -------------------------------------------------------------------------


def stored_patients(n_patients: int, work: Path) -> list[list[Patient]]:
    """Find the candidates of each seed's patients, or read them."""
    found = boards.kept(work, CODE, patient_of)
    cohorts: list[list[Patient]] = [[] for _ in SEEDS]
    # All seeds grow together, so that a run that ends early leaves as many of each.
    for number in range(n_patients):
        for position, cohort in enumerate(cohorts):
            cohort.append(found(SEEDS[position], SEEDS[position - 1], number))
    return cohorts


def patient_of(seed: int, other_seed: int, number: int) -> Patient:
    """Find the candidates of a patient of a seed; the other patient is one of another seed."""
    other = simulated(other_seed, number)
    print(seed, number, round(time.process_time()), flush=True)
    return found_in(simulated(seed, number), other.prior)


@functools.lru_cache(maxsize=2)
def simulated(seed: int, number: int) -> Any:
    (case,) = simulate_metastases(1, skip=number, random_state=seed, **WORLD)
    return case


@functools.cache
def network() -> Any:
    return load_model(PATH).segmenter_


class ScanNetwork:
    """The included network; it segments a scan once, whatever prior it is compared with."""

    def __init__(self, image: NDArray[Any], brain: NDArray[np.bool_]) -> None:
        self.image = image
        self.found = network().predict_proba([image], masks=[brain])

    def predict_proba(self, volumes: list[Any], *, masks: list[Any]) -> Any:
        if volumes[0] is self.image:
            return self.found
        return network().predict_proba(volumes, masks=masks)


def found_in(case: Any, other_prior: NDArray[Any]) -> Patient:
    brain = np.asarray(case.brain) > 0
    segmenter = ScanNetwork(case.image, brain)
    candidates = {
        name: case_candidates(
            segmenter, (case.image, prior, brain), levels=LEVELS, min_voxels=MIN_VOXELS
        )
        for name, prior in (("own", case.prior), ("exchanged", other_prior))
    }
    own = candidates["own"]
    label = np.asarray(case.label)
    numbers, n_numbers = ndimage.label(label, structure=np.ones((3, 3, 3)))
    statuses = {row["number"]: row["status"] for row in case.lesions.to_dict("records")}
    touched = [set(numbers.flat[voxels].tolist()) - {0} for voxels in own.voxels]
    mimics = np.asarray(case.mimics).reshape(-1) > 0
    holding, parents = holding_candidates(own, label.size)
    lesions = [
        Lesion(statuses[number], holding[numbers.ravel() == number])
        for number in range(1, n_numbers + 1)
        if number in statuses
    ]
    return Patient(
        {name: found.table for name, found in candidates.items()},
        candidate_truth(own, label),
        np.array([not lesions for lesions in touched], dtype=bool),
        np.array([any(statuses.get(n) != "stable" for n in hit) for hit in touched], dtype=bool),
        np.array([mimics[voxels].any() for voxels in own.voxels], dtype=bool),
        parents,
        lesions,
    )


def holding_candidates(
    candidates: Candidates, n_voxels: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the candidates that hold each voxel (n_voxels, n_levels), and each one's parent."""
    holding = np.full((n_voxels, len(LEVELS)), -1)
    parents = np.full(len(candidates), -1)
    levels = candidates.table[:, NAMES.index("level")]
    for row, voxels in enumerate(candidates.voxels):
        # Components of a higher level lie within those of lower ones.
        lower = holding[voxels[0], : LEVELS.index(levels[row])]
        parents[row] = lower.max(initial=-1)
        holding[voxels, LEVELS.index(levels[row])] = row
    return holding, parents


# Judgment ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Scores of patients: of lesions, and between which thresholds each false one counts."""

    peaks: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    is_mimic: NDArray[np.bool_]
    is_persistent: NDArray[np.bool_]
    n_patients: int = 1

    @classmethod
    def joined(cls, parts: Sequence["Judged"]) -> "Judged":
        names = ("peaks", "high", "low", "is_mimic", "is_persistent")
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return cls(*columns, sum(part.n_patients for part in parts))

    @classmethod
    def of(cls, patient: Patient, scores: NDArray[np.float64]) -> "Judged":
        # One that lies in another one with a higher score is a part of that one; components that
        # are too large to be judged are left out.
        covered = np.zeros(len(scores))
        for row, parent in enumerate(patient.parents):
            if parent >= 0:
                covered[row] = max(covered[parent], scores[parent])
        false = patient.is_false & (scores > covered)
        table = patient.tables["own"]
        earlier, now = (
            table[false, NAMES.index(name)] for name in ("prior_probability", "max_probability")
        )
        with_none = np.append(scores, 0.0)  # of voxels that no candidate holds
        peaks = [
            np.quantile(with_none[lesion.members].max(axis=1), 1 - COVERED)
            for lesion in patient.lesions
        ]
        return cls(
            np.array(peaks),
            scores[false],
            covered[false],
            patient.is_mimic[false],
            earlier >= PERSISTENT * now,
        )

    def counts_at(self, threshold: float) -> NDArray[np.bool_]:
        return (self.high >= threshold) & (self.low < threshold)


def judged_rows(
    name: str, cohorts: Sequence[Sequence[Patient]]
) -> tuple[dict[str, list[Judged]], dict[str, float]]:
    """Judge the patients of each seed with a classifier of the other seeds; weights of features."""
    rows: dict[str, list[Judged]] = {row: [] for row in (*ROWS, CEILING)}
    weights = np.zeros(len(NAMES))
    for number, cohort in enumerate(cohorts):
        others = [p for k, other in enumerate(cohorts) if k != number for p in other]
        classifiers = {uses: learned(name, number, others, uses) for uses in (False, True)}
        for row, (uses, prior) in ROWS.items():
            judged = [
                Judged.of(patient, scores_of(classifiers[uses], patient, prior))
                for patient in cohort
            ]
            rows[row].append(Judged.joined(judged))
        oracle = [scores_of(classifiers[False], patient, "none") for patient in cohort]
        judged = [
            Judged.of(patient, (scores + patient.is_changed) / 2)
            for patient, scores in zip(cohort, oracle, strict=True)
        ]
        rows[CEILING].append(Judged.joined(judged))
        weights += feature_weights(classifiers[True], cohort)
    return rows, dict(zip(NAMES, (weights / len(cohorts)).round(4).tolist(), strict=True))


def learned(name: str, seed: int, patients: Sequence[Patient], uses_priors: bool) -> Any:
    table = np.concatenate([table_of(p, "own" if uses_priors else "none") for p in patients])
    truth = np.concatenate([patient.truth for patient in patients])
    columns = classifier_columns(table[truth >= 0])
    return make_classifier(name, seed).fit(columns, truth[truth >= 0].astype(float))


def table_of(patient: Patient, prior: str) -> NDArray[np.float64]:
    """Give the features with the own prior, that of another patient, or none."""
    return without_prior(patient.tables["own"]) if prior == "none" else patient.tables[prior]


def scores_of(classifier: Any, patient: Patient, prior: str) -> NDArray[np.float64]:
    if not len(patient.truth):
        return np.zeros(0)
    scores = classifier.predict(classifier_columns(table_of(patient, prior)))
    # Above 0, so that what is a candidate can be found.
    return np.clip(scores, 1e-6, 1)


def feature_weights(classifier: Any, cohort: Sequence[Patient]) -> NDArray[np.float64]:
    """Give what shuffling of each feature costs in patients that were not learned from."""
    table = np.concatenate([patient.tables["own"] for patient in cohort])
    truth = np.concatenate([patient.truth for patient in cohort])
    table, truth = classifier_columns(table[truth >= 0]), truth[truth >= 0]
    losses = shuffled_losses(classifier, table, truth, 0)
    return np.array(list(losses.values()))


# Figures -----------------------------------------------------------------------------------------


def step_of(judged: Judged, wanted: float) -> float:
    """Give the highest threshold that reaches a sensitivity; NaN where none does."""
    peaks = np.sort(judged.peaks)[::-1]
    step = float(peaks[int(np.ceil(wanted * len(peaks))) - 1])
    return step if step > 0 else np.nan


def false_positives(judged: Judged) -> NDArray[np.float64]:
    """Give the false positives of a patient at each sensitivity."""
    steps = [step_of(judged, wanted) for wanted in SENSITIVITIES]
    counts = [
        judged.counts_at(step).sum() / judged.n_patients if np.isfinite(step) else np.nan
        for step in steps
    ]
    return np.array(counts)


def figures_of(rows: dict[str, list[Judged]], statuses: NDArray[np.str_]) -> dict[str, Any]:
    """Summarize rows: false positives at sensitivities, what is saved, sensitivity by status."""
    rng = np.random.default_rng(SEEDS[0])
    draws = rng.integers(len(SEEDS), size=(N_BOOTSTRAP, len(SEEDS)))
    resampled = {
        row: np.array([false_positives(Judged.joined([seeds[k] for k in draw])) for draw in draws])
        for row, seeds in rows.items()
    }
    base = false_positives(Judged.joined(rows["no prior"]))
    figures: dict[str, Any] = {}
    for row, seeds in rows.items():
        judged = Judged.joined(seeds)
        counts = false_positives(judged)
        shares = 1 - resampled[row] / resampled["no prior"]
        step = step_of(judged, AIM_AT)
        marked = judged.counts_at(step)
        figures[row] = {
            "false_positives": rounded(counts),
            "fewer": [
                rounded([1 - counts[k] / base[k], *interval(shares[:, k])])
                for k in range(len(SENSITIVITIES))
            ],
            "of_seeds": rounded(
                [false_positives(seed)[SENSITIVITIES.index(AIM_AT)] for seed in seeds]
            ),
            "sensitivity_by_status": {
                status: share(judged.peaks[statuses == status] >= step) for status in STATUSES
            },
            "highest_sensitivity": share(judged.peaks > 0),
            "share_of_mimics": share(judged.is_mimic[marked]),
            "share_there_before": share(judged.is_persistent[marked]),
        }
    return figures


def interval(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give 95 % of draws; NaN where one in twenty does not reach the sensitivity."""
    if np.isfinite(values).mean() < 0.95:
        return np.array([np.nan, np.nan])
    return np.nanquantile(values, (0.025, 0.975))


def share(flags: NDArray[np.bool_]) -> float | None:
    """Give how many of some are true; None of none."""
    return round(float(flags.mean()), 3) if len(flags) else None


def rounded(values: Any) -> list[float | None]:
    return [measure.rounded(value, 3) for value in values]


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Find candidates, and judge them by each kind of classifier."""
    start = time.process_time()
    cohorts = stored_patients(chosen.patients, chosen.work)
    patients = [patient for cohort in cohorts for patient in cohort]
    statuses = [lesion.status for patient in patients for lesion in patient.lesions]
    tables = {}
    for name in CLASSIFIERS:
        rows, weights = judged_rows(name, cohorts)
        tables[name] = {"rows": figures_of(rows, np.array(statuses)), "weights": weights}
    return {
        "synthetic": True,
        "seeds": list(SEEDS),
        "n_patients": chosen.patients * len(SEEDS),
        "n_lesions": {status: statuses.count(status) for status in STATUSES},
        "levels": list(LEVELS),
        "sensitivities": list(SENSITIVITIES),
        "processor_seconds_without_stored": round(time.process_time() - start),
        "classifiers": tables,
    }


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        code=("dmrifit", "metastasis"),
        packages=("numpy", "scipy", "scikit-learn", "torch"),
        quick=False,
        options={
            "--work": {"type": Path, "default": WORK, "help": "folder of candidates"},
            "--patients": {"type": int, "default": N_PATIENTS, "help": "patients of each seed"},
        },
    )
