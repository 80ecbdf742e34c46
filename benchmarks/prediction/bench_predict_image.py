"""
How long does it take to predict the advanced maps of a whole scan, reading and writing included?

The scan is synthetic: 256 × 256 × 40 voxels of five clinical images, 59 % of them body, with the
signals of a simulated cohort in random order (for the compression of files, the hardest one). The
model is linear regression on signals, trained on another simulated cohort; the seven maps of
T2-IVIM-Kurtosis are fitted to what it predicts and written as .nii.gz. Each repeat is a process of
its own that loads the model from its file; code was compiled before. Run from the project's root:

    .venv/bin/python -m benchmarks.prediction.bench_predict_image
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit import SignalToSignal, save_model, simulate_cohort

RESULT = measure.RESULTS / "predict_image.json"
SHAPE = (256, 256, 40)
GOAL_WALL_S = 15

# Where the time goes: seconds of processor time in the fits, the regression, packing and
# unpacking; all threads.
CHILD = """
import json, sys, time
from dmrifit import load_model, predict_image
from dmrifit.imaging import image_maps
from dmrifit.predict import strategies as prediction
from dmrifit.io.series import Part, Series
spent = {{}}
def timed(owner, name, label):
    function = getattr(owner, name)
    def wrapper(*args, **options):
        start = time.process_time()
        try:
            return function(*args, **options)
        finally:
            spent[label] = spent.get(label, 0.0) + time.process_time() - start
    setattr(owner, name, wrapper)
timed(prediction, "fit_voxels", "fits")
timed(prediction.SignalToSignal, "predict", "regression")
timed(image_maps, "save_image", "packing and writing")
timed(Series, "read", "reading")
estimator = load_model({model!r})
wall, cpu = time.perf_counter(), time.process_time()
predict_image(estimator, {image!r}, mask={mask!r}, out={out!r}, overwrite=True)
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
spent["rest"] = cpu - sum(spent.values())
print(json.dumps({{"wall_s": wall, "cpu_s": cpu, "parts_cpu_s": spent}}))
"""


def write_inputs(folder: Path, shape: tuple[int, int, int]) -> tuple[dict[str, Path], float]:
    """Write model, mask and images; return their paths and the share of the body."""
    cohort = simulate_cohort("cohort1", 4, random_state=11)
    table = cohort.arrays(mask="body", max_voxels=250, random_state=0)
    estimator = SignalToSignal("LR", source=table.source, target=table.target).fit(
        table.X, table.Y
    )
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    body = np.repeat(((x / 0.93) ** 2 + (y / 0.82) ** 2 < 1)[..., None], shape[2], axis=2)
    measured = cohort.arrays(mask="body", scale=None).X
    signals = np.zeros((*shape, measured.shape[1]), np.float32)
    signals[body] = measured[np.random.default_rng(0).integers(0, len(measured), body.sum())]
    signals *= 1000 / np.percentile(signals[body][:, 0], 95)
    affine = np.diag([1.5, 1.5, 5, 1])
    paths = {name: folder / file for name, file in (
        ("model", "lr.dmrifit"), ("mask", "mask.nii.gz"),
        ("int16, .nii.gz", "i16.nii.gz"), ("float32, .nii", "f32.nii"),
    )}  # fmt: skip
    save_model(estimator, paths["model"])
    nib.save(nib.Nifti1Image(body.astype(np.uint8), affine), paths["mask"])
    nib.save(nib.Nifti1Image(signals.round().astype(np.int16), affine), paths["int16, .nii.gz"])
    nib.save(nib.Nifti1Image(signals, affine), paths["float32, .nii"])
    return paths, float(body.mean())


def timed(shape: tuple[int, int, int], repeats: int) -> dict[str, object]:
    """Predict the maps of a synthetic scan, several times for each kind of file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, share = write_inputs(folder, shape)
        runs: dict[str, list[dict]] = {"int16, .nii.gz": [], "float32, .nii": []}
        for _ in range(repeats):
            for kind, found in runs.items():
                values = {
                    "model": paths["model"],
                    "image": paths[kind],
                    "mask": paths["mask"],
                    "out": folder / "out",
                }
                code = CHILD.format(**{key: str(value) for key, value in values.items()})
                found.append(json.loads(str(measure.run_child(code)["out"])))
    cases = {}
    for kind, found in runs.items():
        case: dict[str, object] = {"repeats": repeats}
        for key in ("wall_s", "cpu_s"):
            times = [run[key] for run in found]
            low, middle, high = (
                statistics.quantiles(times, n=4, method="inclusive") if repeats > 1 else times * 3
            )
            case[key] = {k: round(v, 2) for k, v in
                         (("best", min(times)), ("q25", low), ("median", middle), ("q75", high))}  # fmt: skip
        parts = [run["parts_cpu_s"] for run in found]
        case["parts_cpu_s"] = {
            key: round(statistics.median([p[key] for p in parts]), 2) for key in parts[0]
        }
        cases[kind] = case
    return {"shape": shape, "share_of_body": round(share, 3), "cases": cases}


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Predict a scan of full size, or a tiny one."""
    shape, repeats = ((32, 32, 8), 2) if chosen.quick else (SHAPE, chosen.repeats)
    goal = {"wall_s": GOAL_WALL_S, "processors": 2}
    return {"data": "synthetic", "goal": goal, **timed(shape, repeats)}


if __name__ == "__main__":
    runs.main(
        run,
        RESULT,
        packages=("dmrifit", "numpy", "numba", "scikit-learn", "nibabel"),
        options={"--repeats": {"type": int, "default": 5}},
    )
