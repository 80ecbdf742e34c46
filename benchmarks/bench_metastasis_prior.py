"""
How many false positives does a prior scan save at the same sensitivity, in a phantom as hard as people?

    .venv/bin/python benchmarks/bench_metastasis_prior.py [--work FOLDER]

Synthetic patients of the hard world; candidates of the small network that comes along, or of the
one in FOLDER, are judged by trees and by a linear model, with features of the prior and without, in
splits of the patients. In the control row every patient has the prior of another one.
"""

import time
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import _measure as measure
import joblib
import numpy as np
from bench_metastasis_people import network_state, source_digest, state
from numpy.typing import NDArray
from scipy import ndimage

from dmrifit import load_model
from dmrifit.io.components import drop_small, label_components
from metastasis import simulate_metastases
from metastasis.candidates.features import FEATURES, Candidates, ScanVolumes, find_candidates
from metastasis.candidates.judgment import (
    candidate_truth,
    classifier_columns,
    make_classifier,
    scored_volume,
    with_and_without_priors,
)

RESULT = Path(__file__).parent / "results" / "metastasis_prior.json"
WORK = Path("build") / "metastasis_people"
SEED, N_PATIENTS, N_SPLITS = 20261140, 40, 10
SHAPE = (80, 80, 80)
SENSITIVITIES = (0.75, 0.80, 0.85, 0.90, 0.95)
STATUS_AT = 0.80
CLASSIFIERS = ("trees", "linear")
#: What a row is judged with: whether the classifier has learned priors, and which one it sees.
ROWS = {
    "no prior": (False, "none"),
    "prior": (True, "own"),
    "prior of another patient": (True, "exchanged"),
    "learned with priors, has none": (True, "none"),
}
#: Low ones, as metastases that are no candidates are never found.
LEVELS = (0.01, 0.05, 0.2, 0.5)
MIN_VOXELS, N_BOOTSTRAP = 4, 2000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = measure.options(__doc__.strip().splitlines()[0], RESULT, quick=False)
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the network")
    chosen = measure.chosen(parser, arguments, RESULT)
    # A mean over no split that reaches a sensitivity is no number.
    warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
    start = time.process_time()
    # The network of one direction of bench_metastasis_people.py, of the same state.
    network = load_model(chosen.work / f"network-patient19-{network_state()}.dmrifit")
    cases = simulate_metastases(
        N_PATIENTS,
        prior=1.0,
        shape=SHAPE,
        spacing=1.0,
        metastases=(2, 8),
        mimics=(3, 10),
        world="hard",
        random_state=SEED,
    )
    settings = [SEED, N_PATIENTS, SHAPE, LEVELS, state()]
    path = chosen.work / f"prior-candidates-{source_digest(settings, [])}.joblib"
    if not path.exists():
        joblib.dump([candidates_of(i, cases, network) for i in range(N_PATIENTS)], path)
    patients = joblib.load(path)
    tables = {name: judged(name, cases, patients) for name in CLASSIFIERS}
    measure.write(
        {
            "question": __doc__.strip().splitlines()[0],
            "synthetic": True,
            "command": "python benchmarks/bench_metastasis_prior.py",
            "date": date.today().isoformat(),
            "machine": measure.machine(),
            "seed": SEED,
            "n_patients": N_PATIENTS,
            "n_lesions": int(sum(len(case.lesions) for case in cases)),
            "n_splits": N_SPLITS,
            "processor_seconds": round(time.process_time() - start),
            "classifiers": tables,
            "versions": measure.versions("numpy", "scipy", "scikit-learn", "torch"),
            **measure.commit("dmrifit", "metastasis", "benchmarks/bench_metastasis_prior.py"),
        },
        chosen.out,
    )


def candidates_of(number: int, cases: Sequence[Any], network: Any) -> dict[str, Candidates]:
    """Find the candidates of a patient, with the own prior and with that of another one."""
    case, other = cases[number], cases[(number + 1) % len(cases)]
    (probability,) = network.predict_proba([case.image], masks=[case.brain])
    brain = np.asarray(case.brain) > 0
    return {
        name: find_candidates(
            probability, ScanVolumes.scaled(case.image, brain, np.ones(3), prior), levels=LEVELS
        )
        for name, prior in (("own", case.prior), ("exchanged", other.prior))
    }


def without_prior(candidates: Candidates) -> Candidates:
    table = candidates.table.copy()
    table[:, len(FEATURES) :] = np.nan
    return Candidates(table, candidates.voxels)


def judged(name: str, cases: Sequence[Any], patients: Sequence[Any]) -> dict[str, Any]:
    """Judge candidates in splits; false positives of each patient at matched sensitivities."""
    truths = [
        candidate_truth(found["own"], np.asarray(case.label))
        for case, found in zip(cases, patients, strict=True)
    ]
    false: dict[str, list[Any]] = {row: [] for row in ROWS}
    statuses: dict[str, list[Any]] = {row: [] for row in ROWS}
    reached: dict[str, list[Any]] = {row: [] for row in ROWS}
    for split in range(N_SPLITS):
        order = np.random.default_rng([SEED, split]).permutation(len(cases))
        train, test = order[: len(order) // 2], order[len(order) // 2 :]
        classifiers = {
            uses: learned(name, split, [patients[i]["own"] for i in train], truths, train, uses)
            for uses in (False, True)
        }
        for row, (uses, prior) in ROWS.items():
            volumes = []
            for i in test:
                seen = patients[i]["exchanged" if prior == "exchanged" else "own"]
                if prior == "none":
                    seen = without_prior(seen)
                volumes.append(scored_volume(classifiers[uses], seen, cases[i].image.shape))
            counts, found, best = counted([cases[i] for i in test], volumes)
            per_patient = np.full((len(cases), len(SENSITIVITIES)), np.nan)
            per_patient[test] = counts
            false[row].append(per_patient)
            statuses[row].append(found)
            reached[row].append(best)
    result: dict[str, Any] = {}
    # A sensitivity counts in the splits in which every row reaches it.
    stacked = np.array([false[row] for row in ROWS])
    is_reached = np.isfinite(stacked).any(axis=2).all(axis=0)
    stacked = np.where(is_reached[None, :, None, :], stacked, np.nan)
    means = dict(zip(ROWS, np.nanmean(stacked, axis=1), strict=True))
    base = means["no prior"]
    result["splits"] = is_reached.sum(axis=0).tolist()
    for row, mean in means.items():
        result[row] = {
            "false_positives": [
                round(float(np.nanmean(column)), 3) if np.isfinite(column).any() else None
                for column in mean.T
            ],
            "fewer": [fewer(base[:, k], mean[:, k]) for k in range(len(SENSITIVITIES))],
            f"sensitivity_by_status_at_{STATUS_AT:.2f}": {
                status: round(
                    float(np.nanmean([found.get(status, np.nan) for found in statuses[row]])), 3
                )
                for status in ("new", "grown", "stable", "shrunk")
            },
            "highest_sensitivity": round(float(np.mean(reached[row])), 3),
        }
    return result


def learned(
    name: str,
    seed: int,
    candidates: Sequence[Candidates],
    truths: Sequence[NDArray[np.int8]],
    train: NDArray[np.intp],
    uses_priors: bool,
) -> Any:
    """Train a classifier with the candidates of some patients."""
    if not uses_priors:
        candidates = [without_prior(found) for found in candidates]
    table = np.concatenate([found.table for found in candidates])
    truth = np.concatenate([truths[i] for i in train])
    table, truth = with_and_without_priors(table[truth >= 0], truth[truth >= 0])
    return make_classifier(name, seed).fit(classifier_columns(table), truth.astype(float))


def counted(
    cases: Sequence[Any], volumes: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float64], dict[str, float], float]:
    """Count false positives at thresholds that reach each sensitivity; found ones by status."""
    peaks, status = [], []
    for case, scores in zip(cases, volumes, strict=True):
        numbers, _ = ndimage.label(np.asarray(case.label), structure=np.ones((3, 3, 3)))
        for lesion in case.lesions.to_dict("records"):
            peaks.append(float(np.quantile(scores[numbers == lesion["number"]], 0.9)))
            status.append(lesion["status"])
    ordered = np.sort(peaks)[::-1]
    counts = np.empty((len(cases), len(SENSITIVITIES)))
    found: dict[str, float] = {}
    for column, wanted in enumerate(SENSITIVITIES):
        # A lesion that is no candidate is never found, so that this sensitivity is not reached.
        step = float(ordered[int(np.ceil(wanted * len(ordered))) - 1])
        if not step > 0:
            counts[:, column] = np.nan
            continue
        for row, (case, scores) in enumerate(zip(cases, volumes, strict=True)):
            components = label_components(drop_small(scores >= step, MIN_VOXELS))
            touching = np.unique(components[np.asarray(case.label) > 0])
            counts[row, column] = components.max() - np.count_nonzero(touching)
        if wanted == STATUS_AT:
            hits = np.array(peaks) >= step
            found = {name: float(hits[np.array(status) == name].mean()) for name in set(status)}
    return counts, found, float(np.mean(np.array(peaks) > 0))


def fewer(base: NDArray[np.float64], counts: NDArray[np.float64]) -> list[float | None]:
    """Give the share of false positives that are saved, with an interval over patients."""
    usable = np.isfinite(base) & np.isfinite(counts)
    if not usable.any():
        return [None, None, None]
    base, counts = base[usable], counts[usable]
    rng = np.random.default_rng(SEED)
    draws = rng.integers(len(base), size=(N_BOOTSTRAP, len(base)))
    shares = 1 - counts[draws].sum(axis=1) / np.maximum(base[draws].sum(axis=1), 1e-9)
    low, high = np.quantile(shares, (0.025, 0.975))
    share = 1 - counts.sum() / max(base.sum(), 1e-9)
    return [round(float(value), 3) for value in (share, low, high)]


def markdown(result: dict[str, Any]) -> str:
    """Write the table."""
    header = ["second stage", "judged with"]
    header += [f"FP a scan at {wanted:.2f}" for wanted in SENSITIVITIES]
    header += [f"fewer at {STATUS_AT:.2f} [95 %]", "new", "grown", "stable", "shrunk"]
    rows = []
    for name, table in result["classifiers"].items():
        for row in ROWS:
            content = table[row]
            share, low, high = content["fewer"][SENSITIVITIES.index(STATUS_AT)]
            found = content[f"sensitivity_by_status_at_{STATUS_AT:.2f}"].values()
            counts = ["–" if n is None else f"{n:.2f}" for n in content["false_positives"]]
            gain = f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
            rows.append([name, row, *counts, gain, *(f"{value:.2f}" for value in found)])
    note = (
        f"Synthetic patients of the hard world, {result['n_patients']} with "
        f"{result['n_lesions']} metastases and a prior each, {result['n_splits']} splits in two "
        "halves; false positives of 4 voxels or more at thresholds that reach the sensitivity in "
        "the tested half; interval over patients; the right columns are sensitivities by status "
        f"at {STATUS_AT:.2f}; a dash where candidates do not reach it. "
        f"{result['date']}, commit {str(result['commit'])[:10]}."
    )
    return f"{note}\n\n{measure.table(header, rows)}"


if __name__ == "__main__":
    main()
