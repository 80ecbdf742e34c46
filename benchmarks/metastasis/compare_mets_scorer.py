"""
Score seeded pairs of labels by the official scorer of BraTS-METS, for comparison with `metastasis.mets_scores`.

The scorer (`brats-evaluation`, AGPL) asks for an older pandas than the project has, so it is installed into an
environment of its own, in a temporary folder that is removed afterwards:

    .venv/bin/python -m benchmarks.metastasis.compare_mets_scorer

The result, `tests/metastasis/data/mets_scorer.json`, is what the tests compare with; it also holds how long both took
for a pair as large as a head, and who computed what in that time. Pairs are made anew from their seeds by both sides;
their digests are in the file.
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
from pathlib import Path

import numpy as np

RESULT = Path(__file__).parents[2] / "tests" / "metastasis" / "data" / "mets_scorer.json"
COMMAND = "python -m benchmarks.metastasis.compare_mets_scorer"
N_PAIRS = 100
SHAPE = (36, 34, 30)
EDGES = ((1.0, 1.0, 1.0), (0.9, 0.9, 3.0), (1.0, 1.0, 1.2), (0.7, 0.8, 0.7))  # mm, in turn
HEAD, HEAD_LESIONS, HEAD_SEED, REPEATS = (182, 218, 182), 40, 5, 3
ENHANCING = 3
_COUNTS = tuple(
    f"{part}_instance_{key}"
    for part in ("all", "large", "small")
    for key in ("tp", "fp", "fn", "prec", "rec", "f1")
)


def make_pair(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Draw a reference and a prediction (x, y, z) of 0 and 1, and the edges of their voxels in mm."""
    rng = np.random.default_rng(seed)
    n_lesions = 0 if seed % 10 == 0 else int(rng.integers(1, 10))
    reference, prediction = draw_labels(rng, SHAPE, n_lesions, 0 if seed % 20 in (0, 5) else 4)
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


def digest(reference: np.ndarray, prediction: np.ndarray) -> str:
    return hashlib.sha256(reference.tobytes() + prediction.tobytes()).hexdigest()[:16]


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
    for seed in range(N_PAIRS):
        reference, prediction, edges = make_pair(seed)
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
    for seed in range(N_PAIRS):
        reference, prediction, edges = make_pair(seed)
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
    seconds = {}
    for name, evaluator in (("as configured", full), ("enhancing label, Dice only", lean)):
        times = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            for result in evaluator.evaluate(prediction, reference).values():
                result.to_dict(True)
            times.append(time.perf_counter() - begin)
        seconds[name] = float(np.median(times))
    return seconds


def own_seconds() -> float:
    """Time `metastasis.mets_scores` on the same pair."""
    from metastasis import mets_scores

    reference, prediction = head_pair()
    times = []
    for _ in range(2 * REPEATS + 1):
        begin = time.perf_counter()
        mets_scores(reference, prediction)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def answers() -> dict:
    """Everything that the scorer's environment gives."""
    from importlib.metadata import version

    with tempfile.TemporaryDirectory() as folder:
        rows = official_scores(Path(folder))
    names = ("brats-evaluation", "panoptica", "connected-components-3d", "numpy", "scipy", "pandas")
    versions = {name: version(name) for name in names} | {"python": sys.version.split()[0]}
    return {
        "command": COMMAND,
        "rule": "brats-evaluation, configuration mets, group et (label 3); large from 20 mm³, Dice from .1",
        "versions": versions,
        "seconds": {"shape": HEAD, "repeats": REPEATS, **official_seconds()},
        "pairs": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Score seeded pairs of labels by BraTS-METS.")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--version", default="0.0.10", help="of brats-evaluation (default: %(default)s)")
    parser.add_argument("--python", help="interpreter of an environment that has it; by default one is made")
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write (default: %(default)s)")
    options = parser.parse_args()
    if options.inside:
        options.inside.write_text(json.dumps(answers()), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        python = options.python
        if python is None:
            venv.create(Path(folder) / "venv", with_pip=True)
            python = str(Path(folder) / "venv" / "bin" / "python")
            package = f"brats-evaluation=={options.version}"
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
        path = Path(folder) / "answers.json"
        subprocess.run([python, __file__, "--inside", str(path)], check=True)
        result = json.loads(path.read_text(encoding="utf-8"))
    own = own_seconds()
    seconds = result["seconds"]
    seconds["metastasis.mets_scores"] = own
    for name in ("as configured", "enhancing label, Dice only"):
        seconds[f"ratio, {name}"] = round(seconds[name] / own, 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pairs = ",\n  ".join(json.dumps(row) for row in result.pop("pairs"))
    head = json.dumps(result, indent=1, ensure_ascii=False)[:-2]
    options.out.write_text(f'{head},\n "pairs": [\n  {pairs}\n ]\n}}\n', encoding="utf-8")
    print(f"{options.out}: {N_PAIRS} pairs; seconds {seconds}")


if __name__ == "__main__":
    main()
