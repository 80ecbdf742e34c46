"""
What does the included model find in seven post-contrast brains, each left out of all that it learns from?

    .venv/bin/python -m benchmarks.metastasis.bench_metastasis_left_out [--n-jobs 2] [--work FOLDER] [--ship]

Four gliomas of BraTS 2021 (CC BY; as they are, for what enhances there, and with implants elsewhere),
two people with multiple sclerosis (CC BY) and one brain without a mass, which nothing learns from.
For each brain a network learns from warped copies of the other six but the last, with implants, and
from what `bench_metastasis_people` learns from besides. Where that brain is a glioma, the training goes
on from the network of both people with multiple sclerosis; without one of those it begins anew. The
trees learn from candidates of the other brains, each found by the network that has not seen it. The
model of the last brain, which has learned from all six others, is the included one with `--ship`.
Everything is kept in FOLDER. The threshold is chosen on one set of implants by what is marked elsewhere,
and counted on implants of new seeds.
"""

import argparse
import pickle
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from benchmarks.metastasis import bench_metastasis_people as people
from dmrifit import load_model, save_model
from dmrifit._utils.randomness import seed_for
from metastasis import TwoStageSegmenter
from metastasis.candidates.judgment import candidate_truth
from metastasis.candidates.two_stage import small_unet
from metastasis.segmentation.sampling import marked_evenly
from metastasis.simulate.implants import (
    ENHANCING,
    TrainingScan,
    draw_implants,
    implanted_copies,
    phantom_scans,
    read_negative,
)
from metastasis.simulate.negatives import warp_scan

RESULT = measure.RESULTS / "metastasis_left_out.json"
WORK = Path("build") / "metastasis_left_out"
BRAINS = (*people.SCANS, *people.UNSEEN)
#: All but the brain whose license is not known to allow it.
LEARNED_FROM = BRAINS[:-1]
#: Epochs of a network that begins anew, of one that goes on, and how much segments vary.
TRAININGS = ((18, 0, 1.0), (14, 7, 1.0), (10, 7, 0.3))
#: Copies of each brain, of the healthy one, and phantoms, of each training.
N_COPIES, N_HEALTHY, N_PHANTOMS = 4, 4, 4
SEED, MARGIN = 20261128, 12
N_SETS, N_JUDGED_COPIES = 4, 4


class Brain:
    """A scan, its brain, what enhances in its tumor, and what is more than 4 mm from it."""

    def __init__(self, name: str) -> None:
        if name not in people.UNSEEN:
            self.volume, self.brain = read_negative(people.scan_path(name))
            self.enhancing, self.elsewhere = np.zeros_like(self.brain), np.ones_like(self.brain)
            return
        volume, brain, labels = people.unseen_brain(name)
        (extents,) = find_objects(brain.astype(np.uint8))
        box = tuple(slice(max(0, side.start - MARGIN), side.stop + MARGIN) for side in extents)
        self.volume, self.brain, labels = volume[box], brain[box], labels[box]
        self.enhancing = (labels == people.ENHANCING_TUMOR) & self.brain
        self.elsewhere = np.ones_like(self.brain)
        if labels.any():
            self.elsewhere = distance_transform_edt(labels == 0) > people.BESIDE_TUMOR

    def implanted(self, n: int, seed: int, **shares: float) -> Any:
        """Put implants where no tumor is."""
        return draw_implants(self.volume, self.brain & self.elsewhere, n, random_state=seed, **shares)


def copies(name: str, number: int, work: Path) -> Path:
    """Make the copies of a brain for a training, or phantoms; kept in the folder."""
    path = work / f"copies-{name}-{number}.pkl"
    seed = SEED + people.NEXT_SEED * number
    if path.exists():
        return path
    if name == "phantoms":
        made = phantom_scans(N_PHANTOMS, random_state=seed)
    elif name == people.HEALTHY:
        healthy = read_negative(people.scan_path(name))
        made = implanted_copies(name, *healthy, N_HEALTHY, random_state=seed)
    else:
        made = with_enhancing(name, N_COPIES, seed)
    path.write_bytes(pickle.dumps(made))
    return path


def with_enhancing(name: str, n_copies: int, seed: int) -> list[TrainingScan]:
    """Make copies of a brain with implants, and mark what enhances in its tumor, warped alike."""
    scan = Brain(name)
    made = implanted_copies(name, scan.volume, scan.brain, n_copies, random_state=seed)
    if scan.enhancing.any():
        for number, copy in enumerate(made):
            # The generator of the copy: its first draws are those of the warp.
            rng = np.random.default_rng(seed_for(seed, "implanted", name, number))
            copy.label[warp_scan(scan.volume, scan.enhancing, rng)[1] & (copy.label == 0)] = ENHANCING
    return made


def network_path(left_out: str, number: int | str, work: Path) -> Path:
    return work / f"network-{left_out}-{number}.dmrifit"


def train(left_out: str, before: Path, work: Path) -> None:
    """Train the networks of a brain that is left out, and average the last two; kept in the folder."""
    begins_anew = left_out in people.SCANS
    previous = None if begins_anew else before
    for number, (anew, on, appearance) in enumerate(TRAININGS):
        epochs, path = anew if begins_anew else on, network_path(left_out, number, work)
        if epochs and not path.exists():
            names = [name for name in LEARNED_FROM if name != left_out]
            files = [copies(name, number, work) for name in (*names, people.HEALTHY, "phantoms")]
            scans = [scan for file in files for scan in pickle.loads(file.read_bytes())]
            inputs = [scan.volume for scan in scans], [scan.label for scan in scans]
            masks = [scan.brain for scan in scans]
            if previous:
                found = load_model(previous).predict_proba(inputs[0], masks=masks)
                inputs[1][:] = [marked_evenly(*one, number) for one in zip(inputs[1], found, strict=True)]
            segmenter = small_unet(SEED + number, epochs=epochs, verbose=True)
            segmenter.set_params(warm_start_from=previous, appearance=appearance)
            save_model(segmenter.fit(*inputs, masks=masks), path)
        previous = path if epochs else previous
    last = [load_model(network_path(left_out, number, work)) for number in (1, 2)]
    save_model(people.mean_network(last), network_path(left_out, "mean", work))


def candidates(name: str, work: Path) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Find candidates in a brain by networks that have not seen it, and what they are."""
    path = work / f"candidates-{name}.npz"
    if not path.exists():
        brain, scans = Brain(name), with_enhancing(name, N_JUDGED_COPIES, SEED + people.JUDGE_SEED)
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
                found = people.candidates_in(answer, scan.volume, scan.brain, scan.label > 0)
                tables.append(found.table)
                truths.append(candidate_truth(found, scan.label))
        np.savez(path, table=np.concatenate(tables), truth=np.concatenate(truths))
    stored = np.load(path)
    return stored["table"], stored["truth"]


def model_without(left_out: str, work: Path) -> TwoStageSegmenter:
    """Join the network of a brain that is left out to trees of the other brains."""
    path = work / f"model-{left_out}.dmrifit"
    if not path.exists():
        rows = [candidates(name, work) for name in LEARNED_FROM if name != left_out]
        table, truth = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        model = TwoStageSegmenter(comparable=True, random_state=0)
        save_model(model.fit_candidates(load_model(network_path(left_out, "mean", work)), table, truth), path)
    return load_model(path)


def tried(name: str, work: Path) -> dict[str, list[dict[str, Any]]]:
    """Count what the model without a brain finds there, on implants to choose by and on new ones."""
    path = work / f"tried-{name}.joblib"
    brain = Brain(name)
    if not path.exists():
        seeds = [people.TEST_SEED + number for number in range(N_SETS)]
        seeds += [seed + people.NEW_IMPLANTS for seed in seeds]
        sets = [brain.implanted(people.N_IMPLANTS, seed) for seed in seeds]
        volumes = [brain.volume, *(implants.volume for implants in sets)]
        scores = model_without(name, work).predict_proba(volumes, masks=[brain.brain] * len(volumes))
        joblib.dump((sets, list(scores)), path, compress=1)
    sets, (plain, *scores) = joblib.load(path)
    found = {}
    for what, part in (("chosen by", slice(0, N_SETS)), ("new", slice(N_SETS, None))):
        volumes = [plain * brain.elsewhere, *scores[part]]
        found[what] = [
            people.at_threshold(cut, volumes, sets[part]) | people.enhancing_parts(plain >= cut, brain.enhancing)
            for cut in people.CUTS
        ]
    return found


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Train, try and average over the brains that were left out."""
    work = chosen.work
    work.mkdir(parents=True, exist_ok=True)
    start = time.time()
    before = work / "before.dmrifit"
    if not before.exists():
        own = work / people.SMALL
        own.mkdir(exist_ok=True)
        save_model(people.network(people.BOTH, people.SMALL, own, people.N_NETWORKS), before)

    def each(function: Any, names: Any, *settings: Any) -> list[Any]:
        jobs = (joblib.delayed(function)(name, *settings, work) for name in names)
        return list(joblib.Parallel(chosen.n_jobs, inner_max_num_threads=1)(jobs))

    for number in range(len(TRAININGS)):
        each(copies, (*LEARNED_FROM, people.HEALTHY, "phantoms"), number)
    each(train, BRAINS[::-1], before)
    each(candidates, LEARNED_FROM)
    each(model_without, BRAINS)
    rows = dict(zip(BRAINS, each(tried, BRAINS), strict=True))
    cut = people.chosen_threshold([one["chosen by"] for one in rows.values()])
    new = {name: people.row_at(one["new"], cut) for name, one in rows.items()}
    names = ("sensitivity", "findings", "mL", "largest_mL")
    if chosen.ship:
        model = model_without(BRAINS[-1], work)
        model.threshold_ = model.threshold = cut
        save_model(model, people.SHIPPED)
    return {
        "seed": SEED,
        "trainings": TRAININGS,
        "threshold": cut,
        "brains": rows,
        "new": new,
        "mean": {key: round(float(np.mean([row[key] for row in new.values()])), 3) for key in names},
        "seconds": round(time.time() - start),
    }


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        code=people.CODE,
        packages=("numpy", "scipy", "scikit-learn", "torch"),
        quick=False,
        options={
            "--work": {"type": Path, "default": WORK, "help": "folder of the networks"},
            "--n-jobs": {"type": int, "default": 1, "help": "processes"},
            "--ship": {"action": "store_true", "help": "write the included model"},
        },
    )
