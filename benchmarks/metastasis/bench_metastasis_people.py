"""
How well are implants found in a real brain that was not trained on, and what else is marked there?

    .venv/bin/python -m benchmarks.metastasis.bench_metastasis_people [--work FOLDER] [--ship | --unseen | --others NAME ...]

Two post-contrast scans of people with multiple sclerosis (CC BY) hold no metastases, as far as is
known. A small U-Net learns from one of them, warped, with painted vessels and implants, from
phantoms of the hard world and, from its fourth training on, from a healthy brain without contrast
agent (MIT license), warped and painted alike. Its weights are averaged over the last trainings. It is
tried in the other scan, with other implants and without any. The second stage learns from candidates
of the network of the other direction, after each of its trainings and averaged, in the scan that this
one has not seen. The cut of a direction is chosen in the other
direction. Networks are kept in FOLDER (default build/metastasis_people), a file for each direction.
Both stages are tried after the first training, too. `--ship` trains on both scans and writes the
included model. That model is tried in three brains with gliomas (BRATS 2013, for tests
alone) and five others (four gliomas of BraTS 2021, and one without a mass), of which it has seen
none: how much of the labelled enhancing tumor it covers, what it marks elsewhere, and which
implants it finds there. Its threshold is chosen in the two directions and those five brains, whose
implants of new seeds are then counted. `--unseen` tries the five, chooses anew and adds to the
stored result. `--others DeepMedic "MONAI's U-Net"` trains these networks alone, on the same
scans and as long as the first training of the small U-Net takes, and adds what they find to the
stored result. One thread is used.
"""

import argparse
import hashlib
import json
import os
import pickle
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects

from benchmarks import _boards as boards
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import load_model, save_model
from dmrifit.io.components import drop_small, label_components
from metastasis import TwoStageSegmenter, prepare_scan
from metastasis.candidates.case_candidates import comparable
from metastasis.candidates.features import LEVELS, Candidates, ScanVolumes, find_candidates
from metastasis.candidates.judgment import candidate_truth, scored_volume
from metastasis.candidates.two_stage import (
    CARD,
    load_small_model,
    small_unet,
)
from metastasis.candidates.two_stage import PATH as SHIPPED
from metastasis.segmentation.sampling import marked_evenly
from metastasis.simulate.enhancement import KINDS
from metastasis.simulate.implants import (
    TrainingScan,
    draw_implants,
    implanted_copies,
    phantom_scans,
    read_negative,
)

RESULT = measure.RESULTS / "metastasis_people.json"
WORK = Path("build") / "metastasis_people"
CODE = ("dmrifit", "metastasis")
SCANS = ("patient19", "patient26")
#: A healthy brain without contrast agent, to learn from beside either of them.
HEALTHY = "healthy brain"
GLIOMAS = ("pat0003", "pat0005", "pat0006")
#: Brains that neither network nor trees have seen: four gliomas of BraTS 2021, and one without a mass.
UNSEEN = ("BraTS2021_01478", "BraTS2021_01480", "BraTS2021_01483", "BraTS2021_01484", "mr_gd")
#: Value of the labels in enhancing tumor, mm around a tumor that count as its own, sets of implants.
ENHANCING_TUMOR, BESIDE_TUMOR, GLIOMA_SETS = 4, 4.0, 4
TRAIN_SEED, JUDGE_SEED, TEST_SEED = 1, 2, 1001
#: From the seed of the scans of a training to that of the next.
NEXT_SEED = 1000
N_COPIES, N_PHANTOMS, N_HEALTHY = 16, 6, 8
#: Epochs, how much segments vary (1: as between scanners), phantoms and copies of the healthy brain,
#: of trainings that go on from each other.
TRAININGS = (*(3 * [(20, 1.0, 6, 0)]), *(2 * [(20, 1.0, 6, 8)]), *(3 * [(15, 0.3, 2, 8)]))
#: The last trainings, after which weights are averaged (Izmailov et al., UAI 2018), as networks
#: differ much from one training to the next. Those of the shipped model are on both scans.
N_AVERAGED = 3
#: Networks in the order that they are made: one after each training, and the mean of the last.
N_NETWORKS = len(TRAININGS) + 1
SMALL, BOTH = "small U-Net", "both"
#: Segments of other networks in the time of one of the small U-Net, their batches, and settings.
OTHERS: dict[str, tuple[float, int, dict[str, Any]]] = {
    "DeepMedic": (2.5, 10, {"network": "deepmedic", "segment_size": 37}),
    "MONAI's U-Net": (2.0, 4, {"network": "unet", "widths": (16, 32, 64, 128)}),
}
N_TEST, N_IMPLANTS = 10, 11
#: From the seeds of implants that the threshold is chosen by to those that are counted.
NEW_IMPLANTS = 100
CUTS = (0.02, 0.05, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
MATCHED = (0.60, 0.75, 0.80, 0.90)
#: Sensitivity that a cut is fixed for on implants of other seeds in the same scan.
ON_OTHERS = 0.80
#: Findings, and mL of them, in a brain without implants that the cut of the other direction allows.
ALLOWED, ALLOWED_ML = 30, 2.0
#: The same in the mean of brains that were not seen, for the threshold of the shipped model.
MEAN_FINDINGS, MEAN_ML = 20, 1.5
MIN_VOXELS, COVERED, LARGE_RING = 4, 0.1, "large ring"
#: Modules whose source decides which training scans are stored, and which networks.
SCAN_SOURCES = [
    f"metastasis.simulate.{name}"
    for name in ("enhancement", "implants", "negatives", "patients")
]
NETWORK_SOURCES = [
    f"metastasis.{name}"
    for name in ("networks.architectures", "networks.losses", "segmentation.sampling")
]
CANDIDATE_SOURCES = [f"metastasis.candidates.{name}" for name in ("features", "judgment", "case_candidates")]


def tried(
    kind: str, work: Path, n_networks: int = N_NETWORKS
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Give the networks of a kind, the candidates that judge, and what they find, in each direction."""
    work.mkdir(exist_ok=True)
    networks = {name: network(name, kind, work, n_networks) for name in SCANS}
    rows_of = {name: judged_candidates(name, kind, work, n_networks) for name in SCANS}
    folder = answers_folder(work, n_networks)
    results = {name: direction(name, networks, rows_of, folder) for name in SCANS}
    fix_cuts(results)
    return networks, rows_of, results


def learning_curve(results: dict[str, Any], work: Path) -> list[dict[str, Any]]:
    """Try the networks alone after each of their trainings, and their mean, at one sensitivity."""
    rows = []
    for n in range(1, N_NETWORKS + 1):
        epochs = sum(epochs for epochs, *_ in TRAININGS[:n])
        for seen, test in (SCANS, SCANS[::-1]):
            if n == N_NETWORKS:
                found = results[test]["network, matched"]
            else:
                folder = answers_folder(work, n)
                sets, answers = test_answers(test, network(seen, SMALL, work, n), folder)
                found = [{"wanted": ON_OTHERS} | matched(ON_OTHERS, answers, sets)]
            (row,) = [row for row in found if row["wanted"] == ON_OTHERS]
            rows.append({"tested in": test, "epochs": epochs, "mean": n == N_NETWORKS} | row)
    return rows


# Stored work -------------------------------------------------------------------------------------


def answers_folder(work: Path, n_networks: int) -> Path:
    """Give the folder of what the last of so many networks answered."""
    if n_networks == N_NETWORKS:
        return work
    folder = work / f"{n_networks} trainings"
    folder.mkdir(exist_ok=True)
    return folder


def scan_state() -> str:
    """Give a digest of what makes the training scans."""
    return state_of([TRAIN_SEED, NEXT_SEED, N_COPIES, N_PHANTOMS, N_HEALTHY], SCAN_SOURCES)


def network_state() -> str:
    """Give a digest of what makes the networks."""
    settings = [scan_state(), TRAININGS, N_AVERAGED]
    return state_of(settings, NETWORK_SOURCES)


def state() -> str:
    """Give a digest of what makes candidates and tests."""
    settings = [network_state(), JUDGE_SEED, TEST_SEED, N_TEST, N_IMPLANTS, LEVELS]
    return state_of(settings, CANDIDATE_SOURCES)


def state_of(settings: Any, sources: Sequence[str]) -> str:
    """Give 8 digits that change with settings and with what modules do."""
    text = repr(settings) + boards.code_digest(*sources)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# Training ----------------------------------------------------------------------------------------


def scan_path(name: str) -> Path:
    if name == HEALTHY:
        return measure.data_folder("mrs_boxes") / "t1_brain.nii.gz"
    return measure.data_folder("ms_lesions_mni") / f"{name}_T1POST.nii.gz"


def training_scans(names: Sequence[str], number: int, work: Path) -> list[TrainingScan]:
    """
    Make the scans of a training, of some people and phantoms; kept beside the folders of networks.

    Each training has its own, so that what an earlier network takes for lesions was not learned.
    """
    seed = TRAIN_SEED + NEXT_SEED * number
    _, _, n_phantoms, n_healthy = TRAININGS[number]
    counts = {name: N_COPIES for name in names} | {"phantoms": n_phantoms, HEALTHY: n_healthy}
    scans: list[TrainingScan] = []
    for name, count in counts.items():
        path = work.parent / f"scans-{name}-{number}-{scan_state()}.pkl"
        if count and not path.exists():
            if name == "phantoms":
                made = phantom_scans(N_PHANTOMS, random_state=seed)
            else:
                n_copies = N_HEALTHY if name == HEALTHY else N_COPIES
                made = implanted_copies(
                    name, *read_negative(scan_path(name)), n_copies, random_state=seed
                )
            path.write_bytes(pickle.dumps(made))
        # The file was written above, or by an earlier run of this script.
        scans += pickle.loads(path.read_bytes())[:count] if count else []
    return scans


def network(name: str, kind: str, work: Path, number: int) -> Any:
    """Train a network on one scan and phantoms, or read it; the last is a mean of others."""
    path = network_path(name, work, number)
    if not path.exists():
        if number == N_NETWORKS:
            last = range(N_NETWORKS - N_AVERAGED, N_NETWORKS)
            made = mean_network([network(name, kind, work, n) for n in last])
        else:
            before = None
            if number > 1:
                begins_with_both = name == BOTH and number == N_NETWORKS - N_AVERAGED
                earlier = SCANS[0] if begins_with_both else name
                network(earlier, kind, work, number - 1)
                before = network_path(earlier, work, number - 1)
            names = SCANS if name == BOTH else [name]
            made = trained(names, kind, number - 1, before, work)
        save_model(made, path)
    return load_model(path)


def network_path(name: str, work: Path, number: int) -> Path:
    return work / f"network-{name}-{number}-{network_state()}.dmrifit"


def mean_network(networks: Sequence[Any]) -> Any:
    """
    Give a network whose weights are the mean of those of others; it is the first, changed.

    The means and variances of its normalization are averaged, too, and not estimated anew as by
    Izmailov et al.: all of these networks have seen scans of the same kind.
    """
    states = [network.net_.module_.state_dict() for network in networks]
    mean = dict(states[0])
    for key, values in states[0].items():
        if values.is_floating_point():
            mean[key] = sum(state[key] for state in states) / len(states)
    networks[0].net_.module_.load_state_dict(mean)
    return networks[0]


def trained(names: Sequence[str], kind: str, number: int, before: Path | None, work: Path) -> Any:
    """Train a network, after the first time from where it stood, on more of what it took for lesions."""
    epochs, appearance, _, _ = TRAININGS[number]
    scans = training_scans(names, number, work)
    volumes, brains = [scan.volume for scan in scans], [scan.brain for scan in scans]
    labels = [scan.label for scan in scans]
    if before is not None:
        found = load_model(before).predict_proba(volumes, masks=brains)
        labels = [marked_evenly(*pair, number) for pair in zip(labels, found, strict=True)]
    segmenter = small_unet(number, epochs=epochs, verbose=True)
    segmenter.set_params(warm_start_from=before, appearance=appearance)
    if kind in OTHERS:
        share, batch_size, settings = OTHERS[kind]
        n_segments = round(share * segmenter.segments_per_epoch)
        segmenter.set_params(segments_per_epoch=n_segments, **settings)
        segmenter.training = replace(segmenter.training, batch_size=batch_size)
    return segmenter.fit(volumes, labels, masks=brains)


def judged_candidates(
    unseen: str, kind: str, work: Path, n_networks: int
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """
    Find candidates in a scan that their network has not seen, and what they are.

    They are those of all its networks: an earlier one has more large false positives.
    """
    (other,) = set(SCANS) - {unseen}
    tables, truths = [], []
    for n in range(1, n_networks + 1):
        folder = answers_folder(work, n)
        path = folder / f"candidates-{unseen}-{state()}.npz"
        if not path.exists():
            pairs = judged_scans(unseen, network(other, kind, work, n), folder)
            found = [
                candidates_in(probability, scan.volume, scan.brain, scan.label > 0)
                for scan, probability in pairs
            ]
            truth = [
                candidate_truth(candidates, scan.label)
                for candidates, (scan, _) in zip(found, pairs, strict=True)
            ]
            table = np.concatenate([candidates.table for candidates in found])
            np.savez(path, table=table, truth=np.concatenate(truth))
        stored = np.load(path)
        tables.append(stored["table"])
        truths.append(stored["truth"])
    return np.concatenate(tables), np.concatenate(truths)


def judged_scans(
    unseen: str, segmenter: Any, work: Path
) -> list[tuple[TrainingScan, NDArray[np.float32]]]:
    """Give scans of a person whom a network has not seen, and its answers."""
    path = work / f"judged-{unseen}-{network_state()}-{JUDGE_SEED}.joblib"
    if not path.exists():
        volume, brain = read_negative(scan_path(unseen))
        scans = [TrainingScan(unseen, volume, brain, np.zeros(volume.shape, np.uint8))]
        for number in range(4):
            implants = draw_implants(
                volume, brain, 25, small=0.62, random_state=JUDGE_SEED + 100 * number
            )
            scans.append(TrainingScan(unseen, implants.volume, brain, implants.label, implants))
        scans += implanted_copies(unseen, volume, brain, 8, random_state=JUDGE_SEED)
        scans += phantom_scans(2, random_state=JUDGE_SEED)
        answers = segmenter.predict_proba(
            [scan.volume for scan in scans], masks=[scan.brain for scan in scans]
        )
        joblib.dump(list(zip(scans, answers, strict=True)), path, compress=1)
    pairs: list[tuple[TrainingScan, NDArray[np.float32]]] = joblib.load(path)
    return pairs


def candidates_in(
    probability: NDArray[np.float32],
    volume: NDArray[np.float32],
    brain: NDArray[np.bool_],
    lesions: NDArray[np.bool_] | None = None,
) -> Candidates:
    """Find candidates in a scan of 1 mm voxels; lesions are known in training alone."""
    relative = ScanVolumes.scaled(volume, brain, np.ones(3))
    return find_candidates(comparable(probability, brain, lesions=lesions), relative, limited=True)


def ship(rows_of: dict[str, Any], work: Path) -> None:
    """Train on both scans, from a network of the first on; judge by candidates of both."""
    table, truth = (np.concatenate([rows_of[name][i] for name in SCANS]) for i in range(2))
    model = TwoStageSegmenter(comparable=True, random_state=0).fit_candidates(
        network(BOTH, SMALL, work, N_NETWORKS), table, truth
    )
    SHIPPED.parent.mkdir(exist_ok=True)
    save_model(model, SHIPPED)


def chosen_threshold(boards: Sequence[list[dict]]) -> float:
    """Choose the lowest cut that marks little elsewhere, in the mean of brains that were not seen."""
    for cut in CUTS:
        rows = [row_at(rows, cut) for rows in boards]
        findings, volume = (np.mean([row[key] for row in rows]) for key in ("findings", "mL"))
        if findings <= MEAN_FINDINGS and volume <= MEAN_ML:
            return cut
    return CUTS[-1]


def tried_in_unseen(results: dict[str, Any], work: Path) -> dict[str, Any]:
    """Choose the threshold of the included model, and count new implants in brains it has not seen."""
    chosen = in_tumors(UNSEEN, work)
    model = load_small_model()
    cut = chosen_threshold([*(results[name]["two stages"] for name in SCANS), *chosen.values()])
    if cut != model.threshold_:
        model.threshold_ = model.threshold = cut
        save_model(model, SHIPPED)
    return {"chosen by": chosen, "new": in_tumors(UNSEEN, work, NEW_IMPLANTS), **measure.commit(*CODE)}


def write_cards(result: dict[str, Any]) -> None:
    """Write the card of the shipped model, and its figures for programs."""
    model = load_small_model()
    cut = model.threshold_
    new = {name: row_at(rows, cut) for name, rows in result["unseen"]["new"].items()}
    weights = sorted(model.feature_weights_.items(), key=lambda item: -item[1])[:6]
    trainings = [str(epochs) for epochs, *_ in TRAININGS]
    text = runs.page(
        "small_model",
        result | {"kinds": KINDS, "weights": weights, "new": new},
        directions={name: row_at(result["directions"][name]["two stages"], cut) for name in SCANS},
        healthy=result[HEALTHY],
        n_implants=GLIOMA_SETS * N_IMPLANTS,
        cut=cut,
        allowed=(MEAN_FINDINGS, MEAN_ML),
        pooled=pooled_figures(list(new.values())),
        n_candidates=model.n_candidates_,
        n_copies=N_COPIES,
        n_phantoms=N_PHANTOMS,
        n_healthy=N_HEALTHY,
        epochs=" + ".join(trainings[:-N_AVERAGED]),
        later=" + ".join(trainings[-N_AVERAGED:]),
    )
    CARD.write_text(f"{text}\n", encoding="utf-8")
    content = {"figures": pooled_figures(list(new.values())), "note": NOTE}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    CARD.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def row_at(rows: Sequence[dict[str, Any]], cut: float) -> dict[str, Any]:
    """Give the row of a threshold."""
    return next(row for row in rows if row["threshold"] == cut)


def pooled_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pool brains, at one threshold."""
    n_all = sum(sum(row["n"].values()) for row in rows)
    n_small = sum(row["n"]["small"] for row in rows)
    found = sum(round(row["sensitivity"] * sum(row["n"].values())) for row in rows)
    found_small = sum(round(row["by_kind"]["small"] * row["n"]["small"]) for row in rows)
    return {
        "sensitivity": round(found / n_all, 4),
        "sensitivity_small": round(found_small / n_small, 4),
        "n_implants": n_all,
        "false_findings": [row["findings"] for row in rows],
        "threshold": rows[0]["threshold"],
    }


#: What a program that shows the figures has to say with them.
NOTE = (
    "the model in five brains that it has not seen, four of them with gliomas, pooled, on implants of "
    "the generator that trained it, of new seeds; the threshold was chosen by what is marked without "
    "implants in the same brains and two others"
)

# Tests -------------------------------------------------------------------------------------------


def direction(
    test: str, networks: dict[str, Any], rows_of: dict[str, Any], work: Path
) -> dict[str, Any]:
    """Try the network of the other scan, alone and with its second stage, in one scan."""
    (seen,) = set(SCANS) - {test}
    stages = judging(networks, rows_of, seen)
    sets, answers = tested(test, networks[seen], work)
    scores = {
        "network": [probability for probability, _ in answers],
        "two stages": [
            scored_volume(stages.classifier_, candidates, probability.shape)
            for probability, candidates in answers
        ],
    }
    rows: dict[str, Any] = {"seen": seen, "n_candidates": stages.n_candidates_}
    for method, volumes in scores.items():
        steps = CUTS if method == "two stages" else THRESHOLDS
        rows[method] = [at_threshold(step, volumes, sets) for step in steps]
        rows[f"{method}, cut on other implants"] = on_other_implants(volumes, sets)
        rows[f"{method}, matched"] = [
            {"wanted": wanted} | matched(wanted, volumes, sets) for wanted in MATCHED
        ]
    rows["features"] = {
        name: round(weight, 4)
        for name, weight in sorted(stages.feature_weights_.items(), key=lambda item: -item[1])
    }
    return rows


def judging(
    networks: dict[str, Any], rows_of: dict[str, Any], seen: str
) -> TwoStageSegmenter:
    """Give the network of a scan what judges its candidates; another network found those."""
    stages = TwoStageSegmenter(comparable=True, random_state=0)
    return stages.fit_candidates(networks[seen], *rows_of[seen])


def tested(test: str, segmenter: Any, work: Path) -> tuple[list[Any], list[Any]]:
    """Find candidates in a scan as it is, and with each set of implants; kept in the folder."""
    path = work / f"tested-{test}-{state()}.joblib"
    sets, probabilities = test_answers(test, segmenter, work)
    if not path.exists():
        volume, brain = read_negative(scan_path(test))
        scans = [volume, *(implants.volume for implants in sets)]
        candidates = [
            candidates_in(probability, scan, brain)
            for probability, scan in zip(probabilities, scans, strict=True)
        ]
        joblib.dump(candidates, path)
    return sets, list(zip(probabilities, joblib.load(path), strict=True))


def test_answers(test: str, segmenter: Any, work: Path) -> tuple[list[Any], list[Any]]:
    """Segment a scan as it is, and with each set of implants, by a network; kept in the folder."""
    path = work / f"answers-{test}-{network_state()}-{TEST_SEED}.joblib"
    if not path.exists():
        volume, brain = read_negative(scan_path(test))
        sets = [
            draw_implants(volume, brain, N_IMPLANTS, random_state=TEST_SEED + number)
            for number in range(N_TEST)
        ]
        scans = [volume, *(implants.volume for implants in sets)]
        answers = list(segmenter.predict_proba(scans, masks=[brain] * len(scans)))
        joblib.dump((sets, answers), path)
    sets, answers = joblib.load(path)
    return sets, answers


def at_threshold(step: float, volumes: Sequence[NDArray[Any]], sets: Sequence[Any]) -> dict:
    """Count implants that are found, by kind, and what is marked without implants."""
    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    covered = []
    for scores, implants in zip(volumes[1:], sets, strict=True):
        marked = drop_small(scores >= step, MIN_VOXELS)
        for number, nodule in enumerate(implants.nodules, start=1):
            own = implants.numbers == number
            # One without voxels, which a later implant has covered, is missed.
            share = float(marked[own].mean()) if own.any() else 0.0
            found[nodule.kind].append(share >= COVERED)
            if nodule.kind == LARGE_RING:
                covered.append(share)
    pooled = [hit for hits in found.values() for hit in hits]
    false = drop_small(volumes[0] >= step, MIN_VOXELS)
    sizes = np.bincount(label_components(false).ravel())[1:]
    counts = {kind: len(hits) for kind, hits in found.items()}
    return {
        "threshold": round(step, 4),
        "sensitivity": round(float(np.mean(pooled)), 3) if pooled else None,
        "by_kind": {kind: round(float(np.mean(hits)), 3) for kind, hits in found.items() if hits},
        "n": counts,
        "half_covered": round(float(np.mean(np.array(covered) >= 0.5)), 3) if covered else None,
        "findings": len(sizes),
        "mL": round(float(sizes.sum()) * 1e-3, 3),
        "largest_mL": round(float(sizes.max(initial=0)) * 1e-3, 3),
    }


def matched(wanted: float, volumes: Sequence[NDArray[Any]], sets: Sequence[Any]) -> dict:
    """Count at the highest threshold that reaches a sensitivity."""
    peaks = []
    for scores, implants in zip(volumes[1:], sets, strict=True):
        for number in range(1, len(implants.nodules) + 1):
            own = scores[implants.numbers == number]
            # One without voxels is missed at every threshold.
            peak = 0.0
            if len(own):
                # The threshold below which a tenth of it is marked.
                peak = float(np.quantile(own, 1 - COVERED))
            peaks.append(peak)
    step = float(np.quantile(peaks, 1 - wanted, method="lower"))
    return at_threshold(max(step, 1e-4), volumes, sets)


def on_other_implants(volumes: Sequence[NDArray[Any]], sets: Sequence[Any]) -> dict:
    """
    Fix the cut by implants of other seeds in the same scan, half for half.

    Scores differ between scans and networks, and implants of one's own need no labels.
    """
    middle = len(sets) // 2
    halves = [(volumes[1 : middle + 1], sets[:middle]), (volumes[middle + 1 :], sets[middle:])]
    rows = []
    for chosen, tested_half in (halves, halves[::-1]):
        cut = matched(ON_OTHERS, [volumes[0], *chosen[0]], chosen[1])["threshold"]
        rows.append(at_threshold(cut, [volumes[0], *tested_half[0]], tested_half[1]))
    counts = {kind: sum(row["n"][kind] for row in rows) for kind in KINDS}
    hits = {
        kind: sum(row["n"][kind] * row["by_kind"].get(kind, 0) for row in rows) for kind in KINDS
    }
    # Of the two cuts that with more findings in the brain without implants counts.
    worst = max(rows, key=lambda row: row["findings"])
    return worst | {
        "thresholds": [row["threshold"] for row in rows],
        "sensitivity": round(sum(hits.values()) / sum(counts.values()), 3),
        "by_kind": {kind: round(hits[kind] / counts[kind], 3) for kind in KINDS if counts[kind]},
        "n": counts,
        "half_covered": pooled_share(rows),
    }


def pooled_share(rows: Sequence[dict]) -> float | None:
    """Give the share of large rings that are half covered in several rows; None without any."""
    counts = [row["n"][LARGE_RING] for row in rows]
    if not sum(counts):
        return None
    covered = sum(n * (row["half_covered"] or 0) for n, row in zip(counts, rows, strict=True))
    return round(covered / sum(counts), 3)


def lowest_cut(rows: Sequence[dict]) -> float:
    """Find the lowest cut that leaves little in a brain without implants."""
    few = [row for row in rows if row["findings"] <= ALLOWED and row["mL"] <= ALLOWED_ML]
    return min((row["threshold"] for row in few), default=CUTS[-1])


def glioma(name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Read the scan of a person with a glioma, its brain and its labels, cut to the brain."""
    folder = measure.data_folder("brats2013_deepmedic") / f"brats_2013_{name}_1"
    names = ("T1c_subtrMeanDivStd", "brainmask", "OTMultiClass")
    images = [nib.as_closest_canonical(nib.load(folder / f"{one}.nii.gz")) for one in names]
    values, mask, labels = (image.get_fdata(dtype=np.float32) for image in images)
    brain = mask > 0.5
    (box,) = find_objects(brain.astype(np.uint8))
    # The scan was shifted to a mean of 0; its lowest value is what had no signal.
    return ((values - values.min()) * brain)[box], brain[box], labels[box]


def unseen_brain(name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Read a post-contrast scan that no model has learned from, its brain, and its labels or zeros."""
    folder = measure.data_folder("post_contrast")
    scan, labels = (folder / f"{name}{ending}.nii.gz" for ending in ("_t1ce", "_seg"))
    paths = [scan, labels] if scan.exists() else [folder / f"{name}.nii.gz"]
    volume, *given = (nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32) for path in paths)
    return volume, volume > 0, given[0] if given else np.zeros_like(volume)


def in_tumors(names: Sequence[str], work: Path, new: int = 0) -> dict[str, list[dict]]:
    """Try the shipped model in brains with tumors, as they are and with implants elsewhere."""
    model = load_small_model()
    # Scores, which do not depend on the threshold, are kept.
    learned = [*model.segmenter_.stored()[2].values(), repr(model.feature_weights_).encode()]
    digest = hashlib.sha256(b"".join(learned)).hexdigest()[:8]
    rows: dict[str, list[dict]] = {}
    for name in names:
        volume, brain, labels = glioma(name) if name in GLIOMAS else unseen_brain(name)
        enhancing = (labels == ENHANCING_TUMOR) & brain
        elsewhere = np.ones(brain.shape, bool)
        if labels.any():
            elsewhere = distance_transform_edt(labels == 0) > BESIDE_TUMOR
        path = work / f"glioma-{name}-{digest}-{GLIOMA_SETS}-{BESIDE_TUMOR:g}-{new}-{state()}.joblib"
        if not path.exists():
            sets = [
                draw_implants(volume, brain & elsewhere, N_IMPLANTS, random_state=TEST_SEED + new + n)
                for n in range(GLIOMA_SETS)
            ]
            scans = [volume, *(implants.volume for implants in sets)]
            joblib.dump((sets, list(model.predict_proba(scans, masks=[brain] * len(scans)))), path)
        sets, scores = joblib.load(path)
        rows[name] = [
            at_threshold(cut, [scores[0] * elsewhere, *scores[1:]], sets)
            | enhancing_parts(scores[0] >= cut, enhancing)
            for cut in sorted({*CUTS, model.threshold_})
        ]
    return rows


def enhancing_parts(marked: NDArray[np.bool_], enhancing: NDArray[np.bool_]) -> dict[str, Any]:
    """Count the enhancing parts of a tumor that have a voxel marked."""
    parts = label_components(enhancing)
    return {
        "enhancing_mL": round(float(enhancing.sum()) * 1e-3, 1),
        "covered": round(float(marked[enhancing].mean()), 3) if enhancing.any() else None,
        "n_parts": int(parts.max()),
        "parts": len(np.unique(parts[enhancing & marked])),
    }


def on_healthy_brain() -> dict[str, Any]:
    """Count what the shipped model marks in a brain without contrast agent, prepared by the program."""
    model, scan = load_small_model(), prepare_scan(scan_path(HEALTHY))
    scores = model.predict_proba([scan.image], masks=[scan.brain])
    return at_threshold(model.threshold_, scores, [])


def fix_cuts(results: dict[str, Any]) -> None:
    """Take the row of the cut that was chosen in the other direction."""
    for name, (other,) in ((name, set(SCANS) - {name}) for name in SCANS):
        cut = lowest_cut(results[other]["two stages"])
        rows = results[name]["two stages"]
        results[name]["fixed beforehand"] = next(row for row in rows if row["threshold"] == cut)


def draw(networks: dict[str, Any], rows_of: dict[str, Any], work: Path, path: Path) -> None:
    """Draw what is marked in each brain: four slices with implants, and the one with most without."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 5, figsize=(15, 7), facecolor="black", layout="constrained")
    for row, test in zip(axes, SCANS, strict=True):
        (seen,) = set(SCANS) - {test}
        stages = judging(networks, rows_of, seen)
        sets, answers = tested(test, networks[seen], work)
        cut = load_small_model().threshold_
        volume, _ = read_negative(scan_path(test))
        panels = [(implants.volume, implants.label == 1, 1 + i) for i, implants in enumerate(sets)]
        panels = [*panels[:4], (volume, np.zeros(volume.shape, bool), 0)]
        for axis, (image, truth, number) in zip(row, panels, strict=True):
            probability, candidates = answers[number]
            scores = scored_volume(stages.classifier_, candidates, probability.shape)
            marked = drop_small(scores >= cut, MIN_VOXELS)
            weights = truth if truth.any() else marked
            plane = int(np.argmax(weights.sum(axis=(0, 1))))
            limits = {"vmin": 0, "vmax": float(np.quantile(image[image > 0], 0.995))}
            axis.imshow(image[:, :, plane].T, cmap="gray", origin="lower", **limits)
            for mask, color in ((truth, "#39c5ff"), (marked, "#ff5a36")):
                if mask[:, :, plane].any():
                    axis.contour(mask[:, :, plane].T, [0.5], colors=color, linewidths=0.9)
            title = f"{test}, implants" if truth.any() else f"{test} as it is"
            axis.set_title(title, color="white", fontsize=11)
            axis.axis("off")
    figure.suptitle(
        "Synthetic implants (blue) and what is marked (orange) by networks that have not seen the "
        "brain.\nScans: Lesjak et al., Neuroinformatics 16:51–63, 2018, CC BY.",
        color="white",
    )
    figure.savefig(path, dpi=80, facecolor="black")
    plt.close(figure)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Try both directions and the shipped model, or other networks for the stored result."""
    chosen.work.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    stored = measure.stored(chosen.out)
    if chosen.others:
        if not stored:
            raise SystemExit(f"{chosen.out} has no result to add to: run without --others first")
        code = measure.commit(*CODE)
        for kind in chosen.others:
            directions = tried(kind, chosen.work / kind, 1)[2]
            stored["other networks"][kind] = {"directions": directions, **code}
        return stored
    if chosen.unseen:
        stored["unseen"] = tried_in_unseen(stored["directions"], chosen.work)
        stored["gliomas_threshold"] = load_small_model().threshold_
        write_cards(stored)
        return stored
    start = time.process_time()
    own = chosen.work / SMALL
    networks, rows_of, results = tried(SMALL, own)
    curve = learning_curve(results, own)
    if chosen.ship:
        ship(rows_of, own)
    unseen = tried_in_unseen(results, chosen.work)
    draw(networks, rows_of, own, chosen.out.with_suffix(".png"))
    result = {
        "seeds": {"training": TRAIN_SEED, "judgment": JUDGE_SEED, "test": TEST_SEED},
        "trainings": TRAININGS,
        "n_implants": N_TEST * N_IMPLANTS,
        "processor_seconds_without_training": round(time.process_time() - start),
        "directions": results,
        "unseen": unseen,
        "learning curve": curve,
        "after the first training": tried(SMALL, own, 1)[2],
        "other networks": stored.get("other networks", {}),
        "gliomas": in_tumors(GLIOMAS, chosen.work),
        HEALTHY: on_healthy_brain(),
        "gliomas_threshold": load_small_model().threshold_,
    }
    write_cards(result)
    return result


def markdown(result: dict[str, Any]) -> str:
    """Write the tables."""
    others = result["other networks"]
    later = f", {TRAININGS[0][0]} epochs"
    networks = {SMALL: result["directions"], SMALL + later: result["after the first training"]}
    networks |= {kind + later: one["directions"] for kind, one in others.items()}
    counts = {"n_beside": GLIOMA_SETS * N_IMPLANTS}
    shown = {"networks": networks, "others": others, "kinds": KINDS, "nan": np.nan}
    return runs.page("metastasis_people", result, **counts, **shown)


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        markdown=markdown,
        code=CODE,
        packages=("numpy", "scipy", "scikit-learn", "torch"),
        quick=False,
        options={
            "--work": {"type": Path, "default": WORK, "help": "folder of the networks"},
            "--unseen": {"action": "store_true", "help": "try unseen brains, choose the threshold anew"},
            "--ship": {"action": "store_true", "help": "train on both scans, write the shipped model"},
            "--others": {
                "nargs": "+",
                "default": [],
                "choices": OTHERS,
                "help": "try other networks of equal time",
            },
        },
    )
