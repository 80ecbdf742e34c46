"""
At what change of a healthy scan does the rate of a detector's threshold break, and what repairs it?

Synthetic healthy persons; noise, number of directions, resolution and susceptibility distortion are changed one by
one, and scans go through files as a user's do. Run from the project's root:

    .venv/bin/python -m benchmarks.anomaly.bench_scan_changes [--quick --out FILE]
"""

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from anomaly.detectors.gaussian import VoxelwiseGaussian
from anomaly.scans.cases import Case, write_cases
from anomaly.scans.detection import mean_over_scans
from anomaly.scans.series import SeriesDetector, SeriesFiles, read_series
from anomaly.simulate.persons import simulate_dmri
from benchmarks import _measure as measure
from benchmarks import _runs as runs
from dmrifit.io.tables import TABLE

RESULT = measure.RESULTS / "scan_changes.json"
SEED = 20261122
N_TRAINING = 16
N_CALIBRATION, N_TEST = 3, 5
FIELD = (160, 190, 130)  # mm
SPACING, SNR, N_DIRECTIONS = 5.0, 22.0, 16
#: Levels of what is changed, one by one.
CHANGES: dict[str, tuple[float, ...]] = {
    "SNR": (11.0, 7.3, 5.5),
    "directions": (6, 8, 32),
    "voxels, mm": (4.0, 6.0, 8.0),
    "distortion, mm": (4.0, 8.0, 12.0),
}
DETECTORS: dict[str, dict[str, Any]] = {
    "z, both sides": {"features": "mean", "side": "both", "distance": "z"},
    "Mahalanobis": {"features": ("mean", "spread"), "distance": "mahalanobis"},
}
#: Share above the 1 % threshold from which on the rate is said to be broken.
BROKEN = 0.02
_FRONT, _LOW, _REACH = 45.0, -20.0, 25.0  # mm from the middle of the brain, and of the field


def conditions(quick: bool) -> Iterator[tuple[str, float]]:
    """List what is changed, and how much; unchanged scans come first."""
    yield "none", 0.0
    for change, levels in CHANGES.items():
        for level in levels[-1:] if quick else levels:
            yield change, level


def persons(
    n: int,
    skip: int,
    *,
    snr: float = SNR,
    directions: int = N_DIRECTIONS,
    spacing: float = SPACING,
) -> list[Case]:
    """Simulate healthy persons in one field of view."""
    shape = tuple(round(length / spacing) for length in FIELD)
    return simulate_dmri(
        n,
        0,
        n_directions=directions,
        shape=shape,
        spacing=spacing,
        snr=snr,
        skip=skip,
        random_state=SEED,
    )[0]


def changed_persons(change: str, level: float, skip: int) -> list[Case]:
    """Simulate persons that were not learned from, the same for each change."""
    n = N_CALIBRATION + N_TEST
    if change == "SNR":
        return persons(n, skip, snr=level)
    if change == "directions":
        return persons(n, skip, directions=int(level))
    if change == "voxels, mm":
        return persons(n, skip, spacing=level)
    if change == "distortion, mm":
        return [distorted(case, level) for case in persons(n, skip)]
    return persons(n, skip)


def distorted(case: Case, largest: float) -> Case:
    """
    Shift a scan along y around the low frontal brain, by up to so many mm, as air there does.

    The masks stay, as they come from another image; quotients by the signal at b = 0 have no change of intensity.
    """
    places = np.argwhere(case.brain) @ case.affine[:3, :3].T + case.affine[:3, 3]
    middle = (places.min(axis=0) + places.max(axis=0)) / 2
    indices = np.indices(case.shape).reshape(3, -1)
    world = (indices.T @ case.affine[:3, :3].T + case.affine[:3, 3]) - middle
    distance = ((world - (0.0, _FRONT, _LOW)) ** 2).sum(axis=1) / _REACH**2
    source = indices.astype(float)
    source[1] += largest * np.exp(-distance / 2) / case.spacing[1]

    def moved(values: np.ndarray) -> np.ndarray:
        return map_coordinates(values, source, order=1).reshape(case.shape)

    signal = np.stack([moved(values) for values in np.moveaxis(case.signal, -1, 0)], axis=-1)
    dark = 0.001 * float(np.median(case.b0[case.brain]))
    b0 = np.where(case.brain, np.maximum(moved(case.b0), dark), 0)
    return replace(case, signal=signal, b0=b0)


def written(cases: list[Case], folder: Path) -> list[SeriesFiles]:
    """Write scans as files."""
    write_cases(cases, folder)
    return read_series(folder / TABLE)


def rates(model: SeriesDetector, scans: list[SeriesFiles]) -> dict[str, Any]:
    """Count what is above the threshold in test scans, before and after a calibration on others."""
    adjusted = copy.deepcopy(model).calibrate(scans[:N_CALIBRATION])
    row: dict[str, Any] = {}
    for name, detector in (("stored", model), ("calibrated", adjusted)):
        detections = [detector.detect(scan) for scan in scans[N_CALIBRATION:]]
        shares = [detection.figures.share for detection in detections]
        row[name] = {
            "shares": [round(share, 5) for share in shares],
            "n_components": [detection.figures.n_components for detection in detections],
            "n_differs": sum(detection.differs is True for detection in detections),
        }
    return row


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Learn from healthy persons, and detect in others whose scans are changed."""
    start = time.perf_counter()
    n_training = 4 if chosen.quick else N_TRAINING
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        # Voxels of another size may shift the field of view by more than a voxel.
        warnings.simplefilter("ignore", UserWarning)
        folder = Path(name)
        training = written(persons(n_training, 0), folder / "training")
        models = {}
        for title, options in DETECTORS.items():
            models[title] = SeriesDetector(VoxelwiseGaussian(**options)).fit(training)
        rows = []
        for change, level in conditions(chosen.quick):
            cases = changed_persons(change, level, n_training)
            scans = written(cases, folder / f"{change} {level}")
            for title, model in models.items():
                names = {"change": change, "level": level, "detector": title}
                rows.append(names | rates(model, scans))
            print(rows[-1], flush=True)
    left_out = {}
    for title, model in models.items():
        division = getattr(model.detector_, "largest_division_", 1.0)
        left_out[title] = model.healthy_.verdicts(division).count(True)
    return {
        "synthetic": True,
        "seed": SEED,
        "n_training": n_training,
        "n_calibration": N_CALIBRATION,
        "n_test": N_TEST,
        "base": {"SNR": SNR, "directions": N_DIRECTIONS, "voxels, mm": SPACING, "distortion, mm": 0},
        "left_out": left_out,
        "seconds": round(time.perf_counter() - start),
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    """Write the table."""
    intervals = [mean_over_scans(row["stored"]["shares"]) for row in result["rows"]]
    return runs.page("scan_changes", result, intervals=intervals, broken=100 * BROKEN)


if __name__ == "__main__":
    runs.main(run, RESULT, markdown=markdown, code=("dmrifit", "anomaly"), packages=("numpy", "scipy"))
