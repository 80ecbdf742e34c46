"""
How well are implants found in a real brain that was not trained on, and what else is marked there?

    .venv/bin/python -m benchmarks.metastasis.bench_metastasis_people [--work FOLDER] [--n-jobs 2] [--ship]

Seven post-contrast brains: four gliomas of BraTS 2021 (CC BY; as they are, for what enhances there,
and with implants elsewhere), two people with multiple sclerosis (CC BY), and one without a mass,
which nothing learns from. For each of them a network learns from warped copies of the other six but
the last, with implants, from a healthy brain without contrast agent (MIT license), and from phantoms
of the hard world. The training of a glioma's goes on from the network of the included model before,
which had learned from both people with multiple sclerosis; without one of those it begins anew. What
a network takes for lesions is marked in the copies of its next training. The trees of the included model before, which have learned from candidates in both
people with multiple sclerosis, judge in all other brains; in those two it is trees that learn from
candidates of the other brains, each found by networks that have not seen it. Networks and candidates are kept in FOLDER. The threshold is chosen on one set of
implants by what is marked elsewhere, and counted on implants of new seeds. The model of the last
brain, which has learned from the six others, is written as the included one with `--ship`, and tried
in three more brains with gliomas (BRATS 2013, for tests alone) and the healthy brain. One thread is
used by each process.
"""

import argparse
import json
import pickle
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import load_model, save_model
from dmrifit._utils.randomness import Seed
from dmrifit.io.components import drop_small, label_components
from metastasis import TwoStageSegmenter, prepare_scan
from metastasis.candidates.case_candidates import comparable_probability
from metastasis.candidates.features import Candidates, ScanVolumes, find_candidates
from metastasis.candidates.judgment import candidate_truth
from metastasis.candidates.two_stage import PATH as SHIPPED
from metastasis.candidates.two_stage import small_unet
from metastasis.segmentation.sampling import marked_evenly
from metastasis.simulate.enhancement import KINDS
from metastasis.simulate.implants import (
    ENHANCING,
    TrainingScan,
    draw_implants,
    implanted_copies,
    phantom_scans,
    read_negative,
)
from metastasis.simulate.negatives import warp_scan

RESULT = measure.RESULTS / "metastasis_people.json"
WORK = Path("build") / "metastasis_people"
CODE = ("dmrifit", "metastasis")
SCANS = ("patient19", "patient26")
#: Four gliomas of BraTS 2021, and a brain without a mass, which nothing learns from.
OTHERS = ("BraTS2021_01478", "BraTS2021_01480", "BraTS2021_01483", "BraTS2021_01484", "mr_gd")
BRAINS = (*SCANS, *OTHERS)
LEARNED_FROM = BRAINS[:-1]
#: A healthy brain without contrast agent, to learn from beside them.
HEALTHY = "healthy brain"
#: Brains with gliomas of BRATS 2013, for tests alone.
GLIOMAS = ("pat0003", "pat0005", "pat0006")
#: The included model before: commit and file.
BEFORE = "b9f90017:metastasis/candidates/data/small.dmrifit"
#: Value of the labels in enhancing tumor, mm around a tumor that count as its own.
ENHANCING_TUMOR, BESIDE_TUMOR = 4, 4.0
#: Epochs of a network that begins anew, of one that goes on, and how much segments vary.
TRAININGS = ((60, 0, 1.0), (14, 7, 1.0), (10, 7, 0.3))
#: The network that is used is that of this training: what the next and their mean mark is in README.
LAST = 1
#: Copies of each brain, of the healthy one, and phantoms, of each training.
N_COPIES, N_HEALTHY, N_PHANTOMS = 4, 4, 4
SEED, JUDGE_SEED, TEST_SEED, MARGIN = 20261128, 2, 1001, 12
#: From the seed of the scans of a training to that of the next.
NEXT_SEED = 1000
#: Sets of implants to learn to judge by, copies for the same; implants of a set to test by.
N_SETS, N_JUDGED_COPIES, N_IMPLANTS = 4, 4, 11
#: From the seeds of implants that the threshold is chosen by to those that are counted.
NEW_IMPLANTS = 100
CUTS = (0.02, 0.05, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
#: What the threshold allows without implants: findings and mL in the mean of brains that were not
#: seen, mL of any finding, findings and mL in each glioma that does not enhance.
MEAN_FINDINGS, MEAN_ML, LARGEST_ML, GLIOMA_FINDINGS, GLIOMA_ML = 20, 1.5, 0.5, 10, 1.0
MIN_VOXELS, COVERED, LARGE_RING = 4, 0.1, "large ring"


# Brains ------------------------------------------------------------------------------------------


class Brain:
    """A scan, its brain, what enhances in its tumor, and what is more than 4 mm from it."""

    def __init__(self, name: str) -> None:
        if name in (*SCANS, HEALTHY):
            folder, file = "ms_lesions_mni", f"{name}_T1POST.nii.gz"
            if name == HEALTHY:
                folder, file = "mrs_boxes", "t1_brain.nii.gz"
            self.volume, self.brain = read_negative(measure.data_folder(folder) / file)
            labels = np.zeros(self.brain.shape, np.float32)
        else:
            volume, brain, labels = glioma(name) if name in GLIOMAS else other_brain(name)
            (extents,) = find_objects(brain.astype(np.uint8))
            box = tuple(slice(max(0, side.start - MARGIN), side.stop + MARGIN) for side in extents)
            self.volume, self.brain, labels = volume[box], brain[box], labels[box]
        self.enhancing = (labels == ENHANCING_TUMOR) & self.brain
        self.elsewhere = np.ones_like(self.brain)
        if labels.any():
            self.elsewhere = distance_transform_edt(labels == 0) > BESIDE_TUMOR

    def implanted(self, n: int, seed: int, **shares: float) -> Any:
        """Put implants where no tumor is."""
        return draw_implants(self.volume, self.brain & self.elsewhere, n, random_state=seed, **shares)


def glioma(name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Read the scan of a person with a glioma, its brain and its labels."""
    folder = measure.data_folder("brats2013_deepmedic") / f"brats_2013_{name}_1"
    names = ("T1c_subtrMeanDivStd", "brainmask", "OTMultiClass")
    images = [nib.as_closest_canonical(nib.load(folder / f"{one}.nii.gz")) for one in names]
    values, mask, labels = (image.get_fdata(dtype=np.float32) for image in images)
    # The scan was shifted to a mean of 0; its lowest value is what had no signal.
    return (values - values.min()) * (mask > 0.5), mask > 0.5, labels


def other_brain(name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Read a stripped scan, its brain, and its labels or zeros."""
    folder = measure.data_folder("post_contrast")
    scan, labels = (folder / f"{name}{ending}.nii.gz" for ending in ("_t1ce", "_seg"))
    paths = [scan, labels] if scan.exists() else [folder / f"{name}.nii.gz"]
    volume, *given = (nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32) for path in paths)
    return volume, volume > 0, given[0] if given else np.zeros_like(volume)


# Training ----------------------------------------------------------------------------------------


def copies(name: str, number: int, work: Path) -> Path:
    """Make the copies of a brain for a training, or phantoms; kept in the folder."""
    path = work / f"copies-{name}-{number}.pkl"
    seed = SEED + NEXT_SEED * number
    if path.exists():
        return path
    if name == "phantoms":
        made = phantom_scans(N_PHANTOMS, random_state=seed)
    else:
        made = with_enhancing(name, N_HEALTHY if name == HEALTHY else N_COPIES, seed)
    path.write_bytes(pickle.dumps(made))
    return path


def with_enhancing(name: str, n_copies: int, seed: int) -> list[TrainingScan]:
    """Make copies of a brain with implants, and mark what enhances in its tumor, warped alike."""
    scan = Brain(name)
    made = implanted_copies(name, scan.volume, scan.brain, n_copies, random_state=seed)
    if scan.enhancing.any():
        for number, copy in enumerate(made):
            # The generator of the copy: its first draws are those of the warp.
            rng = Seed(seed).rng("implanted", name, number)
            copy.label[warp_scan(scan.volume, scan.enhancing, rng)[1] & (copy.label == 0)] = ENHANCING
    return made


def included_before(work: Path) -> Path:
    """Give the included model before; kept in the folder."""
    path = work / "included-before.dmrifit"
    if not path.exists():
        path.write_bytes(subprocess.check_output(["git", "show", BEFORE], cwd=measure.ROOT))
    return path


def network_before(work: Path) -> Path:
    """Give the network of the included model before; kept in the folder."""
    path = work / "before.dmrifit"
    if not path.exists():
        save_model(load_model(included_before(work)).segmenter_, path)
    return path


def network_path(left_out: str, number: int | str, work: Path) -> Path:
    return work / f"network-{left_out}-{number}.dmrifit"


def train(left_out: str, work: Path) -> None:
    """Train the networks of a brain that is left out, and average the last two; kept in the folder."""
    begins_anew = left_out in SCANS
    previous = None if begins_anew else network_before(work)
    for number, (anew, on, appearance) in enumerate(TRAININGS):
        epochs, path = anew if begins_anew else on, network_path(left_out, number, work)
        if epochs and not path.exists():
            names = [name for name in LEARNED_FROM if name != left_out]
            files = [copies(name, number, work) for name in (*names, HEALTHY, "phantoms")]
            scans = [scan for file in files for scan in pickle.loads(file.read_bytes())]
            volumes, labels = [scan.volume for scan in scans], [scan.label for scan in scans]
            masks = [scan.brain for scan in scans]
            if previous:
                found = load_model(previous).predict_proba(volumes, masks=masks)
                labels = [marked_evenly(*one, number) for one in zip(labels, found, strict=True)]
            segmenter = small_unet(SEED + number, epochs=epochs, verbose=True)
            segmenter.set_params(warm_start_from=previous, appearance=appearance)
            save_model(segmenter.fit(volumes, labels, masks=masks), path)
        previous = path if epochs else previous
    last = [load_model(network_path(left_out, number, work)) for number in (1, 2)]
    save_model(mean_network(last), network_path(left_out, "mean", work))


def mean_network(networks: Sequence[Any]) -> Any:
    """
    Give a network whose weights are the mean of those of others; it is the first, changed.

    The means and variances of its normalization are averaged, too, and not estimated anew as by
    Izmailov et al. (UAI 2018): all of these networks have seen scans of the same kind.
    """
    states = [network.net_.module_.state_dict() for network in networks]
    mean = dict(states[0])
    for key, values in states[0].items():
        if values.is_floating_point():
            mean[key] = sum(state[key] for state in states) / len(states)
    networks[0].net_.module_.load_state_dict(mean)
    return networks[0]


def candidates(name: str, work: Path) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Find candidates in a brain by networks that have not seen it, and what they are."""
    path = work / f"candidates-{name}.npz"
    if not path.exists():
        brain, scans = Brain(name), with_enhancing(name, N_JUDGED_COPIES, SEED + JUDGE_SEED)
        for number in range(N_SETS):
            implants = brain.implanted(25, SEED + 100 * number, small=0.62)
            scans.append(TrainingScan(name, implants.volume, brain.brain, implants.label))
        scans.append(TrainingScan(name, brain.volume, brain.brain, np.zeros(brain.brain.shape, np.uint8)))
        for scan in scans[N_JUDGED_COPIES:]:
            scan.label[brain.enhancing & (scan.label == 0)] = ENHANCING
        tables, truths = [], []
        for number in (1, "mean"):
            segmenter = load_model(network_path(name, number, work))
            for scan in scans:
                (answer,) = segmenter.predict_proba([scan.volume], masks=[scan.brain])
                found = candidates_in(answer, scan)
                tables.append(found.table)
                truths.append(candidate_truth(found, scan.label))
        np.savez(path, table=np.concatenate(tables), truth=np.concatenate(truths))
    stored = np.load(path)
    return stored["table"], stored["truth"]


def candidates_in(probability: NDArray[np.float32], scan: TrainingScan) -> Candidates:
    """Find candidates in a scan of 1 mm voxels with known lesions."""
    relative = ScanVolumes.scaled(scan.volume, scan.brain, np.ones(3))
    scaled = comparable_probability(probability, scan.brain, lesions=scan.label > 0)
    return find_candidates(scaled, relative, limited=True)


def model_without(left_out: str, work: Path) -> TwoStageSegmenter:
    """Join the network of a brain that is left out to trees that have not seen this brain either."""
    path = work / f"model-{left_out}.dmrifit"
    if not path.exists():
        network = load_model(network_path(left_out, LAST, work))
        if left_out in SCANS:
            rows = [candidates(name, work) for name in LEARNED_FROM if name != left_out]
            table, truth = (np.concatenate(parts) for parts in zip(*rows, strict=True))
            model = TwoStageSegmenter(comparable=True, random_state=0).fit_candidates(network, table, truth)
        else:
            model = load_model(included_before(work))
            model.segmenter_ = network
        save_model(model, path)
    return load_model(path)


# Tests -------------------------------------------------------------------------------------------


def tried(name: str, model: Path, work: Path) -> dict[str, list[dict[str, Any]]]:
    """Count what a model finds in a brain, on implants to choose by and on new ones; scores are kept."""
    path = work / f"tried-{name}.joblib"
    brain = Brain(name)
    if not path.exists():
        seeds = [TEST_SEED + number for number in range(N_SETS)]
        seeds += [seed + NEW_IMPLANTS for seed in seeds]
        sets = [brain.implanted(N_IMPLANTS, seed) for seed in seeds]
        volumes = [brain.volume, *(implants.volume for implants in sets)]
        scores = load_model(model).predict_proba(volumes, masks=[brain.brain] * len(volumes))
        joblib.dump((sets, list(scores)), path, compress=1)
    sets, (plain, *scores) = joblib.load(path)
    found = {}
    for what, part in (("chosen by", slice(0, N_SETS)), ("new", slice(N_SETS, None))):
        volumes = [plain * brain.elsewhere, *scores[part]]
        found[what] = [
            at_threshold(cut, volumes, sets[part]) | enhancing_parts(plain >= cut, brain.enhancing)
            for cut in CUTS
        ]
    return found


def at_threshold(step: float, volumes: Sequence[NDArray[Any]], sets: Sequence[Any]) -> dict[str, Any]:
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


def enhancing_parts(marked: NDArray[np.bool_], enhancing: NDArray[np.bool_]) -> dict[str, Any]:
    """Count the enhancing parts of a tumor that have a voxel marked."""
    parts = label_components(enhancing)
    return {
        "enhancing_mL": round(float(enhancing.sum()) * 1e-3, 1),
        "covered": round(float(marked[enhancing].mean()), 3) if enhancing.any() else None,
        "n_parts": int(parts.max()),
        "parts": len(np.unique(parts[enhancing & marked])),
    }


def chosen_threshold(boards: Mapping[str, list[dict[str, Any]]]) -> float:
    """Choose the lowest cut that marks little elsewhere in brains that were not seen."""
    for i, cut in enumerate(CUTS):
        rows = {name: board[i] for name, board in boards.items()}
        findings, volume = (np.mean([row[key] for row in rows.values()]) for key in ("findings", "mL"))
        largest = max(row["largest_mL"] for row in rows.values())
        plain = [row for name, row in rows.items() if name in OTHERS[:-1] and not row["n_parts"]]
        is_little = findings <= MEAN_FINDINGS and volume <= MEAN_ML and largest <= LARGEST_ML
        if is_little and all(row["findings"] <= GLIOMA_FINDINGS and row["mL"] <= GLIOMA_ML for row in plain):
            return cut
    return CUTS[-1]


def on_healthy_brain(model: Path, cut: float) -> dict[str, Any]:
    """Count what a model marks in a brain without contrast agent, prepared by the program."""
    scan = prepare_scan(measure.data_folder("mrs_boxes") / "t1_brain.nii.gz")
    return at_threshold(cut, load_model(model).predict_proba([scan.image], masks=[scan.brain]), [])


def on_prepared(name: str, model: Path, cut: float) -> dict[str, Any]:
    """Count what a model marks in a scan as the commands segment it, in all and away from the tumor."""
    folder = measure.data_folder("post_contrast")
    file, labels = (folder / f"{name}{ending}.nii.gz" for ending in ("_t1ce", "_seg"))
    scan = prepare_scan(file if file.exists() else folder / f"{name}.nii.gz")
    (scores,) = load_model(model).predict_proba([scan.image], masks=[scan.brain])
    tumor = np.zeros(scores.shape)
    if labels.exists():
        tumor = resample_from_to(nib.load(labels), scan.image, order=0).get_fdata()
    elsewhere = distance_transform_edt(tumor == 0) > BESIDE_TUMOR if tumor.any() else np.ones_like(tumor)
    keys = ("findings", "mL", "largest_mL")
    everywhere, outside = (at_threshold(cut, [part], []) for part in (scores, scores * elsewhere))
    row = {key: everywhere[key] for key in keys} | {"elsewhere": {key: outside[key] for key in keys}}
    return row | enhancing_parts(drop_small(scores >= cut, MIN_VOXELS), tumor == ENHANCING_TUMOR)


# Results -----------------------------------------------------------------------------------------

#: What a program that shows the figures has to say with them.
NOTE = (
    "the same training with each of seven brains left out, four of them with gliomas, pooled, on implants of "
    "the generator that trained it, of new seeds; the threshold was chosen by what is marked without "
    "implants in the same brains; what is marked in brains without metastases is told of these trainings, then of "
    "the included model in five of the scans after prepare"
)
#: Volume in mL of the metastases that the model is meant for: spheres of 15 mm.
MEANT_ML = 1.77


def write_cards(result: dict[str, Any]) -> None:
    """Write the card of the included model, and its figures for programs."""
    model = load_model(SHIPPED)
    weights = sorted(model.feature_weights_.items(), key=lambda item: -item[1])[:6]
    rows = list(result["new"].values())
    elsewhere = [row["elsewhere"] for row in result["included"].values()]
    n_all, n_small = (sum(sum(row["n"][kind] for kind in kinds) for row in rows) for kinds in (KINDS, ["small"]))
    pooled = {
        "sensitivity": round(sum(row["sensitivity"] * sum(row["n"].values()) for row in rows) / n_all, 4),
        "sensitivity_small": round(sum(row["by_kind"]["small"] * row["n"]["small"] for row in rows) / n_small, 4),
        "n_implants": n_all,
        "false_findings": [row["findings"] for row in (*rows, *elsewhere)],
        "false_mL": [row["mL"] for row in (*rows, *elsewhere)],
        "largest_mL": MEANT_ML,
        "threshold": result["threshold"],
    }
    shown = {"weights": weights, "pooled": pooled, "n_candidates": model.n_candidates_}
    SHIPPED.with_suffix(".md").write_text(f"{runs.page('small_model', result | shown)}\n", encoding="utf-8")
    text = json.dumps({"figures": pooled, "note": NOTE}, indent=2, ensure_ascii=False)
    SHIPPED.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def draw(names: Sequence[str], cut: float, work: Path, path: Path) -> None:
    """Draw what is marked in brains: four slices with implants, and the one with most without."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 5, figsize=(15, 7), facecolor="black", layout="constrained")
    for row, test in zip(axes, names, strict=True):
        sets, (plain, *scores) = joblib.load(work / f"tried-{test}.joblib")
        volume = Brain(test).volume
        panels = [(one.volume, one.label == 1, found) for one, found in zip(sets, scores, strict=True)]
        panels = [*panels[:4], (volume, np.zeros(volume.shape, bool), plain)]
        for axis, (image, truth, found) in zip(row, panels, strict=True):
            marked = drop_small(found >= cut, MIN_VOXELS)
            weights = truth if truth.any() else marked if marked.any() else image > 0
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
        "Synthetic implants (blue) and what is marked (orange) by models that have not seen the "
        "brain.\nScans: Lesjak et al., Neuroinformatics 16:51–63, 2018, CC BY.",
        color="white",
    )
    figure.savefig(path, dpi=80, facecolor="black")
    plt.close(figure)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Train, try, choose the threshold; with `--ship` write the included model and its card."""
    work = chosen.work
    work.mkdir(parents=True, exist_ok=True)
    start = time.time()
    network_before(work)

    def each(function: Callable[..., Any], names: Sequence[str], *settings: Any) -> list[Any]:
        jobs = (joblib.delayed(function)(name, *settings, work) for name in names)
        return list(joblib.Parallel(chosen.n_jobs, inner_max_num_threads=1)(jobs))

    for number in range(len(TRAININGS)):
        each(copies, (*LEARNED_FROM, HEALTHY, "phantoms"), number)
    each(train, BRAINS[::-1])
    each(candidates, LEARNED_FROM)
    each(model_without, BRAINS)
    included = work / f"model-{BRAINS[-1]}.dmrifit"
    models = {name: work / f"model-{name}.dmrifit" for name in BRAINS} | dict.fromkeys(GLIOMAS, included)
    jobs = (joblib.delayed(tried)(name, model, work) for name, model in models.items())
    all_boards = dict(zip(models, joblib.Parallel(chosen.n_jobs, inner_max_num_threads=1)(jobs), strict=True))
    boards = {name: all_boards[name] for name in BRAINS}
    cut = chosen_threshold({name: board["chosen by"] for name, board in boards.items()})
    at_cut = CUTS.index(cut)
    new = {name: board["new"][at_cut] for name, board in boards.items()}
    draw(SCANS, cut, work, chosen.out.with_suffix(".png"))
    names = ("sensitivity", "findings", "mL", "largest_mL")
    result = {
        "seeds": {"training": SEED, "judgment": JUDGE_SEED, "test": TEST_SEED},
        "trainings": TRAININGS,
        "threshold": cut,
        "boards": boards,
        "new": new,
        "mean": {key: round(float(np.mean([row[key] for row in new.values()])), 3) for key in names},
        "gliomas": {name: all_boards[name] for name in GLIOMAS},
        "included": {name: on_prepared(name, included, cut) for name in OTHERS},
        HEALTHY: on_healthy_brain(included, cut),
        "seconds": round(time.time() - start),
    }
    if chosen.ship:
        model = load_model(included)
        model.threshold_ = model.threshold = cut
        save_model(model, SHIPPED)
        write_cards(result)
    return result


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        code=CODE,
        packages=("numpy", "scipy", "scikit-learn", "torch"),
        quick=False,
        options={
            "--work": {"type": Path, "default": WORK, "help": "folder of the networks"},
            "--n-jobs": {"type": int, "default": 1, "help": "processes"},
            "--ship": {"action": "store_true", "help": "write the included model"},
        },
    )
