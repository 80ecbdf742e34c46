"""
How precise does a network become that learns for longer, and from its own mistakes?

    .venv/bin/python -m benchmarks.metastasis.bench_metastasis_budget [--worlds "old phantom"] [--n-jobs 2]

The patients, the network without prior scans and the first training are those of the board of the
study's claims, which learns from 20 epochs of 240 segments; here from 1, 4 or 16 times as many, in
one training each. One way is cross-entropy; the other spends the last quarter, with a weight for
each lesion, on background that the network took for metastases. Precision is read where a threshold
finds .9 of the metastases. What candidates from a probability of .08 on are is then learned by a
logistic model from six of their features, in other patients of the test: where that saves many false
positives, the network has not learned what it could. Each run is a JSON of its own in
results/metastasis_budget; what has one is not repeated.
"""

import argparse
import itertools
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.claims.huang import MARGINS_FILE, WORLDS
from benchmarks.metastasis.bench_metastasis import BEGIN, MIMICS, MIN_VOXELS, SIZES, settings
from dmrifit import save_model
from dmrifit.io.components import label_components
from dmrifit.networks.training import gather_training
from metastasis import DeepMedicSegmenter, simulate_metastases
from metastasis.candidates.features import Candidates, ScanVolumes, find_candidates
from metastasis.candidates.judgment import NAMES, candidate_truth
from metastasis.segmentation.sampling import mark_mistakes
from metastasis.study.reader_scores import matched_table

RESULT = measure.RESULTS / "metastasis_budget.json"
SEEDS = tuple(tomllib.loads(MARGINS_FILE.read_text(encoding="utf-8"))["board"]["seeds"])
#: Times the epochs of the board's first training -> how many seeds there should be.
WANTED = {1: 10, 4: 3, 16: 1}
WAYS = ("cross-entropy", "own mistakes")
#: Share of the epochs that is spent on mistakes.
LATER = 0.25
#: Sensitivity at which precision is read, and false positives are counted.
AT = 0.9
#: Probability from which voxels are joined to candidates that are judged again, and by what.
CANDIDATE = 0.08
FEATURES = ("log_volume", "max_probability", "mean_probability")
FEATURES += ("max_intensity", "mean_intensity", "contrast")
FOLDS = 5
CODE = ("dmrifit", "metastasis", "benchmarks/metastasis/bench_metastasis.py", "benchmarks/metastasis/bench_metastasis_budget.py")


# One run -----------------------------------------------------------------------------------------


def run_part(world: str, way: str, times: int, seed: int, size: Any) -> dict[str, Any]:
    """Train a network, and judge what it marks in other patients."""
    origin = measure.provenance(__file__, *CODE)
    n, held = size.n_train, size.n_test
    cases = simulate_metastases(
        n + held,
        shape=size.shape,
        spacing=size.spacing,
        mimics=MIMICS[world],
        world=WORLDS[world],
        random_state=seed,
        n_jobs=1,
    )
    model, seconds = boards.timed(trained, cases[:n], way, times * size.start_epochs, seed, size)
    test = cases[n:]
    probabilities = model.predict_proba([case.image for case in test])
    truths = [np.asarray(case.label) == 1 for case in test]
    table = matched_table(
        truths,
        probabilities,
        {"all": range(len(test))},
        [{}] * len(test),
        min_voxels=MIN_VOXELS,
    )
    point = table[table["sensitivity"] == AT].iloc[0]
    network, judged = rescored(test, probabilities)
    print(world, way, times, seed, point["precision"], network, judged, f"{seconds:.0f} s", flush=True)
    return {
        **origin,
        "world": world,
        "way": way,
        "times": times,
        "seed": seed,
        "segments": times * size.start_epochs * size.segments_per_epoch,
        "n_lesions": sum(int(label_components(truth).max()) for truth in truths),
        "precision": measure.rounded(point["precision"]),
        "false_positives_per_scan": measure.rounded(point["false_positives_per_scan"]),
        "threshold": measure.rounded(point["threshold"]),
        "candidates, false positives of the network": network,
        "candidates, false positives judged again": judged,
        "training_minutes": round(seconds / 60, 2),
    }


def trained(cases: Sequence[Any], way: str, epochs: int, seed: int, size: Any) -> Any:
    """Train a network on patients, in one way."""
    images, labels = [case.image for case in cases], [np.asarray(case.label) for case in cases]
    common = settings(size, "", seed) | BEGIN
    if way == WAYS[0]:
        return fitted(common | {"epochs": epochs}, images, labels)
    common["loss"] = "lesion"
    n_later = max(1, round(LATER * epochs))
    first = fitted(common | {"epochs": max(1, epochs - n_later)}, images, labels)
    found = first.predict_proba(images)
    labels = [
        mark_mistakes((label == 1).astype(np.uint8), probability)
        for label, probability in zip(labels, found, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first.dmrifit"
        save_model(first, path)
        later = {"epochs": n_later, "warm_start_from": path, "random_state": seed + 1000}
        return fitted(common | later, images, labels)


def fitted(options: dict[str, Any], images: Sequence[Any], labels: Sequence[Any]) -> Any:
    """Fit a segmenter with fields of its training among the options."""
    return DeepMedicSegmenter(**gather_training(options)).fit(images, labels)


def rescored(
    cases: Sequence[Any], probabilities: Sequence[NDArray[Any]]
) -> tuple[float | None, float | None]:
    """Count false positives a scan by the network's largest probability, and judged again."""
    tables, truths, patients, hits = [], [], [], []
    n_candidates = 0
    for patient, (case, probability) in enumerate(zip(cases, probabilities, strict=True)):
        label = (np.asarray(case.label) == 1).astype(np.uint8)
        scan = ScanVolumes.scaled(case.image, np.asarray(case.image) != 0, np.ones(3))
        found = find_candidates(probability, scan, levels=(CANDIDATE,), min_voxels=MIN_VOXELS)
        tables.append(found.table)
        truths.append(candidate_truth(found, label))
        patients += [patient] * len(found)
        hits += [rows + n_candidates for rows in hit_by(found, label)]
        n_candidates += len(found)
    table = np.concatenate(tables)[:, [NAMES.index(name) for name in FEATURES]]
    truth = np.concatenate(truths)
    if len(set(patients)) < FOLDS:
        return None, None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = GroupKFold(FOLDS)
    judged = cross_val_predict(
        model, table, truth == 1, groups=patients, cv=folds, method="predict_proba"
    )[:, 1]
    peaks = table[:, FEATURES.index("max_probability")]
    network, again = (false_positives(one, truth, hits, len(cases)) for one in (peaks, judged))
    return network, again


def hit_by(candidates: Candidates, label: NDArray[np.uint8]) -> list[NDArray[np.intp]]:
    """List for each lesion the candidates that lie on it."""
    numbers = label_components(label > 0).reshape(-1)
    on = [set(np.unique(numbers[voxels])) for voxels in candidates.voxels]
    return [
        np.array([row for row, own in enumerate(on) if lesion in own], dtype=np.intp)
        for lesion in range(1, numbers.max(initial=0) + 1)
    ]


def false_positives(
    scores: NDArray[np.float64], is_lesion: NDArray[Any], hits: Sequence[NDArray[Any]], n_scans: int
) -> float | None:
    """Count candidates on no lesion at the highest score that finds enough of the lesions."""
    best = sorted((scores[index].max() if len(index) else -np.inf for index in hits), reverse=True)
    cut = best[int(np.ceil(AT * len(best))) - 1]
    if not np.isfinite(cut):
        return None
    return round(float(((scores >= cut) & (is_lesion == 0)).sum()) / n_scans, 4)


# The board ---------------------------------------------------------------------------------------


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run what has no file yet, and read all that have one."""
    folder, size = chosen.out.with_suffix(""), SIZES[chosen.size]
    parts = []
    for times, world, way in itertools.product(chosen.times, chosen.worlds, chosen.ways):
        for seed in chosen.seeds[: WANTED[times]]:
            name = f"{world}-{way}-{times}-{seed}"
            parts.append(runs.Part(name, {}, run_part, (world, way, times, seed, size)))
    runs.finished(parts, folder, n_jobs=chosen.n_jobs, key="settings")
    stored = [measure.stored(path) for path in sorted(folder.glob("*.json"))]
    return {"synthetic": True, "size": chosen.size, "runs": stored}


def markdown(result: dict[str, Any]) -> str:
    """Write the table."""
    groups, missing = [], []
    for keys in itertools.product(WORLDS, WAYS, WANTED):
        own = [one for one in result["runs"] if (one["world"], one["way"], one["times"]) == keys]
        wanted = WANTED[keys[2]]
        if len(own) < wanted:
            missing.append(f"{keys[0]}, {keys[1]}, {keys[2]}× ({wanted - len(own)} of {wanted})")
        pair = [
            [one[f"candidates, false positives {of}"] for one in own]
            for of in ("of the network", "judged again")
        ]
        before, after = np.array(pair, dtype=float)
        known = np.isfinite(before + after)
        saved = 1 - after[known].sum() / before[known].sum() if before[known].sum() else None
        groups.append({"runs": own, "before": pair[0], "after": pair[1], "saved": saved})
    commits = sorted({one["commit"][:10] for one in result["runs"]})
    return runs.page("metastasis_budget", result, groups=groups, missing=missing, commits=commits)


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        code=CODE,
        packages=("numpy", "scikit-learn", "torch", "skorch"),
        seeds=SEEDS,
        quick=False,
        options={
            "--size": {"choices": SIZES, "default": "full", "help": "smaller ones learn for a shorter time"},
            "--worlds": {"nargs": "+", "choices": list(WORLDS), "default": list(WORLDS)},
            "--times": {"nargs": "+", "type": int, "choices": list(WANTED), "default": list(WANTED)},
            "--ways": {"nargs": "+", "choices": WAYS, "default": list(WAYS)},
            **boards.N_JOBS,
        },
    )
