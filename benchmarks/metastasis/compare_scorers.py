"""
Score seeded pairs of masks by other programs, for comparison with `dmrifit.lesion_table` and `metastasis.mets_scores`.

panoptica and the official scorer of BraTS-METS (`brats-evaluation`, AGPL) ask for older packages than the project has,
so each is installed into an environment of its own, in a temporary folder that is removed afterwards:

    .venv/bin/python -m benchmarks.metastasis.compare_scorers panoptica
    .venv/bin/python -m benchmarks.metastasis.compare_scorers mets

The results, `tests/dmrifit/data/panoptica.json` and `tests/metastasis/data/mets_scorer.json`, are what the tests compare
with; the second also holds how long both took for a pair as large as a head, and who computed what in that time. Pairs
are made anew from their seeds by both sides; their digests are in the files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[2] / "tests"
N_BOXES, BOXES_SHAPE = 80, (24, 22, 20)
N_BALLS, BALLS_SHAPE = 100, (36, 34, 30)
EDGES = ((1.0, 1.0, 1.0), (0.9, 0.9, 3.0), (1.0, 1.0, 1.2), (0.7, 0.8, 0.7))  # mm, in turn
HEAD, HEAD_LESIONS, HEAD_SEED, REPEATS = (182, 218, 182), 40, 5, 3
ENHANCING = 3
_COUNTS = tuple(
    f"{part}_instance_{key}"
    for part in ("all", "large", "small")
    for key in ("tp", "fp", "fn", "prec", "rec", "f1")
)


def digest(reference: np.ndarray, prediction: np.ndarray) -> str:
    return hashlib.sha256(reference.tobytes() + prediction.tobytes()).hexdigest()[:16]


def versions(*names: str) -> dict[str, str]:
    return {name: version(name) for name in names} | {"python": sys.version.split()[0]}


# panoptica ---------------------------------------------------------------------------------------


def boxes_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes as lesions, and as predictions some of them shifted, joined, cut apart, missed, and some invented."""
    rng = np.random.default_rng(seed)
    reference, prediction = np.zeros(BOXES_SHAPE, np.uint8), np.zeros(BOXES_SHAPE, np.uint8)
    for _ in range(rng.integers(0, 8)):
        corner, size = rng.integers(0, 15, 3), rng.integers(1, 6, 3)
        fill(reference, corner, size)
        fate = rng.integers(0, 6)
        if fate < 3:
            fill(prediction, corner + rng.integers(0, 2, 3), size)
        elif fate == 3:  # in two parts
            fill(prediction, corner, (1, 1, 1))
            fill(prediction, corner + size - 1, (1, 1, 1))
        elif fate == 4:  # large enough to join neighbors
            fill(prediction, corner, size + 3)
    for _ in range(rng.integers(0, 4)):
        fill(prediction, rng.integers(0, 18, 3), rng.integers(1, 4, 3))
    return reference, prediction


def fill(volume: np.ndarray, corner: np.ndarray, size: np.ndarray | tuple[int, int, int]) -> None:
    x, y, z = (
        slice(int(start), int(start + side)) for start, side in zip(corner, size, strict=True)
    )
    volume[x, y, z] = 1


def of_panoptica() -> dict:
    """Score all pairs of boxes."""
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
    )
    from panoptica.metrics import Metric

    # Any overlap matches, and several components may match one lesion; but a component matches one
    # lesion only.
    matcher = NaiveThresholdMatching(
        matching_metric=Metric.IOU,
        matching_threshold=0.0,
        allow_many_to_one=True,
        strict_threshold=True,
    )
    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=matcher,
        instance_metrics=[Metric.DSC, Metric.IOU],
    )
    rows = []
    for seed in range(N_BOXES):
        reference, prediction = boxes_pair(seed)
        found = evaluator.evaluate(prediction, reference)["ungrouped"]
        row = {
            "seed": seed,
            "digest": digest(reference, prediction),
            "n_reference": int(found.n_ref_instances),
            "n_predicted": int(found.n_pred_instances),
        }
        row |= {key: int(getattr(found, key)) for key in ("tp", "fp", "fn")}
        rows.append(row | {"mean_dice": float(found.sq_dsc) if found.tp else None})
    return {
        "rule": "NaiveThresholdMatching, IOU > 0, many to one",
        "versions": versions("panoptica", "connected-components-3d", "numpy", "scipy"),
        "pairs": rows,
    }


# BraTS-METS --------------------------------------------------------------------------------------


def balls_pair(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Draw a reference and a prediction (x, y, z) of 0 and 1, and the edges of their voxels in mm."""
    rng = np.random.default_rng(seed)
    n_lesions = 0 if seed % 10 == 0 else int(rng.integers(1, 10))
    reference, prediction = draw_labels(rng, BALLS_SHAPE, n_lesions, 0 if seed % 20 in (0, 5) else 4)
    if seed % 20 == 5:
        prediction[:] = 0
    return reference, prediction, EDGES[seed % len(EDGES)]


def draw_labels(
    rng: np.random.Generator, shape: tuple[int, int, int], n_lesions: int, n_false: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw balls as lesions, and as predictions some of them shifted, grown, joined, cut apart and missed."""
    reference, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for _ in range(n_lesions):
        center, radius = rng.uniform(3, np.array(shape) - 3), rng.uniform(0.5, 4.5)
        add_ball(reference, center, radius)
        fate = rng.integers(0, 7)
        if fate < 3:
            add_ball(prediction, center + rng.normal(0, 1, 3), radius * rng.uniform(0.6, 1.2))
        elif fate == 3:  # in two parts
            add_ball(prediction, center + np.array([radius, 0, 0]), radius / 3)
            add_ball(prediction, center - np.array([radius, 0, 0]), radius / 3)
        elif fate == 4:  # large enough to join neighbors
            add_ball(prediction, center, radius + 3)
    for _ in range(int(rng.integers(0, n_false + 1))):
        add_ball(prediction, rng.uniform(3, np.array(shape) - 3), rng.uniform(0.5, 2.5))
    return reference, prediction


def add_ball(volume: np.ndarray, center: np.ndarray, radius: float) -> None:
    low = np.maximum(np.floor(center - radius).astype(int), 0)
    high = np.minimum(np.ceil(center + radius).astype(int) + 1, volume.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    grid = np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij")
    distance = sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True))
    volume[box][distance <= radius**2] = 1
    # The smallest balls hold no center of a voxel.
    volume[tuple(np.clip(np.rint(center).astype(int), 0, np.array(volume.shape) - 1))] = 1


def head_pair() -> tuple[np.ndarray, np.ndarray]:
    """Draw a pair as large as a head."""
    return draw_labels(np.random.default_rng(HEAD_SEED), HEAD, HEAD_LESIONS, 10)


def save(values: np.ndarray, edges: tuple[float, ...], path: Path) -> None:
    import nibabel as nib

    image = nib.Nifti1Image((values * ENHANCING).astype(np.uint8), np.diag([*edges, 1.0]))
    nib.save(image, path)


def official_scores(folder: Path) -> list[dict]:
    """Score all pairs by the scorer's two commands; the environment has to have it."""
    import pandas as pd

    for name in ("reference", "prediction"):
        (folder / name).mkdir()
    for seed in range(N_BALLS):
        reference, prediction, edges = balls_pair(seed)
        file = f"pair-{seed:05d}-000.nii.gz"
        save(reference, edges, folder / "reference" / file)
        save(prediction, edges, folder / "prediction" / file)
    summary, table = folder / "summary.json", folder / "scores.csv"
    words = ["--ref_path", folder / "reference", "--pred_path", folder / "prediction"]
    words += ["--config", "mets", "--summary_json", summary]
    run("brats_evaluation.evaluation", *words)
    run("brats_evaluation.metrics_parser", "mets", "--json_path", summary, "--output_csv_path", table)
    scores = pd.read_csv(table).set_index("subject_id")
    rows = []
    for seed in range(N_BALLS):
        reference, prediction, edges = balls_pair(seed)
        found = scores.loc[f"pair-{seed:05d}-000.nii.gz"]
        row = {"seed": seed, "digest": digest(reference, prediction), "edges_mm": edges}
        for key in (*_COUNTS, "lesionwise_dsc_mean"):
            value = float(found[f"{key}_et"])
            row[key] = None if np.isnan(value) else value
        rows.append(row)
    return rows


def run(module: str, *words: object) -> None:
    subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], check=True, stdout=subprocess.DEVNULL
    )


def official_seconds() -> dict[str, float]:
    """Time the scorer on a pair as large as a head: as configured, and with Dice alone for the enhancing label."""
    from importlib.resources import files

    from panoptica import Panoptica_Evaluator
    from panoptica.metrics import Metric
    from panoptica.utils.label_group import LabelGroup
    from panoptica.utils.segmentation_class import SegmentationClassGroups

    path = str(files("brats_evaluation").joinpath("configs", "config_mets.yaml"))
    reference, prediction = (ENHANCING * values for values in head_pair())
    full = Panoptica_Evaluator.load_from_config(path)
    config = Panoptica_Evaluator.load_from_config(path)
    lean = Panoptica_Evaluator(
        expected_input=config._Panoptica_Evaluator__expected_input,
        instance_approximator=config._Panoptica_Evaluator__instance_approximator,
        instance_matcher=config._Panoptica_Evaluator__instance_matcher,
        instance_metrics=[Metric.DSC],
        global_metrics=[],
        segmentation_class_groups=SegmentationClassGroups({"et": LabelGroup([ENHANCING])}),
    )

    def evaluate(evaluator: Panoptica_Evaluator) -> None:
        for result in evaluator.evaluate(prediction, reference).values():
            result.to_dict(True)

    evaluators = {"as configured": full, "enhancing label, Dice only": lean}
    return {name: median_seconds(evaluate, one) for name, one in evaluators.items()}


def median_seconds(function: Callable[..., object], *arguments: object) -> float:
    """Time a function some times."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def of_mets() -> dict:
    """Score all pairs of balls, and time a pair as large as a head."""
    with tempfile.TemporaryDirectory() as folder:
        rows = official_scores(Path(folder))
    return {
        "command": "python -m benchmarks.metastasis.compare_scorers mets",
        "rule": "brats-evaluation, configuration mets, group et (label 3); large from 20 mm³, Dice from .1",
        "versions": versions("brats-evaluation", "panoptica", "connected-components-3d", "numpy", "scipy", "pandas"),
        "seconds": {"shape": HEAD, "repeats": REPEATS, **official_seconds()},
        "pairs": rows,
    }


def with_own_seconds(result: dict) -> dict:
    """Add how long `metastasis.mets_scores` takes for a pair as large as a head, and the ratios to it."""
    from metastasis import mets_scores

    seconds = result["seconds"]
    own = seconds["metastasis.mets_scores"] = median_seconds(mets_scores, *head_pair())
    for name in ("as configured", "enhancing label, Dice only"):
        seconds[f"ratio, {name}"] = round(seconds[name] / own, 1)
    return result


#: By name: what is installed, what scores there, what is added here, and the result.
SCORERS = {
    "panoptica": ("panoptica==2.1.7", of_panoptica, dict, TESTS / "dmrifit" / "data" / "panoptica.json"),
    "mets": (
        "brats-evaluation==0.0.10",
        of_mets,
        with_own_seconds,
        TESTS / "metastasis" / "data" / "mets_scorer.json",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Score seeded pairs of masks by another program.")
    parser.add_argument("scorer", choices=SCORERS)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--package", help="what to install, with its version (default: as the tests ask for)")
    parser.add_argument("--python", help="interpreter of an environment that has it; by default one is made")
    parser.add_argument("--out", type=Path, help="file to write (default: that of the tests)")
    options = parser.parse_args()
    package, score, added, result = SCORERS[options.scorer]
    if options.inside:
        options.inside.write_text(json.dumps(score()), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        python = options.python
        if python is None:
            venv.create(Path(folder) / "venv", with_pip=True)
            python = str(Path(folder) / "venv" / "bin" / "python")
            install = [python, "-m", "pip", "install", "--quiet", options.package or package]
            subprocess.run(install, check=True)
        path = Path(folder) / "answers.json"
        subprocess.run([python, __file__, options.scorer, "--inside", str(path)], check=True)
        found = added(json.loads(path.read_text(encoding="utf-8")))
    out = options.out or result
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{out}: {len(found['pairs'])} pairs, {package}")


if __name__ == "__main__":
    main()
