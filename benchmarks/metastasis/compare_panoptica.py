"""
Score seeded pairs of masks by panoptica, for comparison with `dmrifit.lesion_table`.

panoptica asks for an older numpy than the project has, so it is installed into an environment of
its own, in a temporary folder that is removed afterwards:

    .venv/bin/python -m benchmarks.metastasis.compare_panoptica

The result, `tests/dmrifit/data/panoptica.json`, is what the tests compare with. Pairs are made
anew from their seeds by both sides; their digests are in the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

RESULT = Path(__file__).parents[2] / "tests" / "dmrifit" / "data" / "panoptica.json"
N_PAIRS = 80
SHAPE = (24, 22, 20)


def make_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes as lesions, and as predictions some of them shifted, joined, cut apart, missed, and some invented."""
    rng = np.random.default_rng(seed)
    reference, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
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


def digest(reference: np.ndarray, prediction: np.ndarray) -> str:
    return hashlib.sha256(reference.tobytes() + prediction.tobytes()).hexdigest()[:16]


def score() -> dict:
    """Score all pairs; runs in the environment that has panoptica."""
    from importlib.metadata import version

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
    for seed in range(N_PAIRS):
        reference, prediction = make_pair(seed)
        found = evaluator.evaluate(prediction, reference)["ungrouped"]
        row = {"seed": seed, "digest": digest(reference, prediction)}
        row |= {
            "n_reference": int(found.n_ref_instances),
            "n_predicted": int(found.n_pred_instances),
        }
        row |= {"tp": int(found.tp), "fp": int(found.fp), "fn": int(found.fn)}
        row["mean_dice"] = float(found.sq_dsc) if found.tp else None
        rows.append(row)
    names = ("panoptica", "connected-components-3d", "numpy", "scipy")
    versions = {name: version(name) for name in names} | {"python": sys.version.split()[0]}
    return {
        "rule": "NaiveThresholdMatching, IOU > 0, many to one",
        "versions": versions,
        "pairs": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Score seeded pairs of masks by panoptica.")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--version", default="2.1.7", help="of panoptica (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=RESULT, help="file to write (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.inside:
        options.inside.write_text(json.dumps(score(), indent=1) + "\n", encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", f"panoptica=={options.version}"],
            check=True,
        )
        whole = Path(folder) / "panoptica.json"
        subprocess.run([python, __file__, "--inside", str(whole)], check=True)
        text = whole.read_text(encoding="utf-8")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    found = json.loads(text)
    print(
        f"{options.out}: {len(found['pairs'])} pairs, panoptica {found['versions']['panoptica']}"
    )


if __name__ == "__main__":
    main()
