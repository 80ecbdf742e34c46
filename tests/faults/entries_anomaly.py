"""Entries of the corpus for the program and the functions of anomaly, each in a folder of good files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from driver import after, command, entry, expressions, function
from safetensors.numpy import load, save

import anomaly
import dmrifit
from anomaly.scans.cases import Case, read_cases, write_cases
from anomaly.scans.directions import resample_directions
from anomaly.scans.preparation import prepare_scan
from anomaly.simulate.persons import spread_directions
from anomaly.study.evaluation import evaluate_detectors
from dmrifit import load_model, save_model


def persons(folder: Path) -> None:
    """Three synthetic healthy persons and two with gliomas, on a small grid with few directions."""
    healthy, lesions = anomaly.simulate_dmri(3, 2, n_directions=6, shape=(12, 14, 12), spacing=12.0, random_state=0)
    for name, cases in (("healthy", healthy), ("gliomas", lesions)):
        write_cases(cases, folder / name)
        (folder / name / "cases.tsv").rename(folder / f"{name}.tsv")
        text = (folder / f"{name}.tsv").read_text(encoding="utf-8")
        for path in sorted((folder / name).iterdir()):
            # Short names in one folder, which messages are searched for.
            text = text.replace(path.name, path.name.removeprefix("synthetic-"))
            if path.suffix != ".json":
                path.rename(folder / path.name.removeprefix("synthetic-"))
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")


def learned(folder: Path) -> None:
    """The same with a model."""
    from anomaly.scans.series import SeriesDetector, read_series

    persons(folder)
    detector = anomaly.VoxelwiseGaussian(threshold=anomaly.HealthyRateThreshold(0.05), calibration=3)
    save_model(SeriesDetector(detector).fit(read_series(folder / "healthy.tsv")), folder / "model.dmrifit")


def found(name: str) -> Callable[[Path], dict[str, Any]]:
    """Read what detect wrote."""

    def read(place: Path) -> dict[str, Any]:
        paths = sorted((place / name).glob("*/*.nii.gz"))
        maps = {str(path.relative_to(place)): np.asarray(nib.load(path).dataobj) for path in paths}
        return maps | {"text": (place / name / "detections.tsv").read_text(encoding="utf-8")}

    return read


DETECT = "--no-figure --opening 1 --out found"
command(
    "dmrifit-anomaly detect", learned,
    "detect model.dmrifit glioma-001_dwi.nii.gz --mask glioma-001_brain.nii.gz --tissue "
    f"glioma-001_tissue.nii.gz {DETECT}",
    found("found"), kept=("found/settings.json", "found/failed.tsv"),
)


detected = after(learned, f"dmrifit-anomaly detect model.dmrifit gliomas.tsv {DETECT}")
command(
    "dmrifit-anomaly detect again", detected, f"detect model.dmrifit gliomas.tsv {DETECT}", found("found"),
    kept=("found/*", "found/*/*"),
)
command(
    "dmrifit-anomaly train", persons, "train healthy.tsv --out new.dmrifit --detector mean",
    lambda place: scores(place / "new.dmrifit"),
)
command(
    "dmrifit-anomaly evaluate", detected,
    "evaluate gliomas.tsv --detections z=found/detections.tsv --figures 0 --out tables",
    lambda place: {"text": (place / "tables" / "scans.csv").read_text(encoding="utf-8")},
)
command(
    "dmrifit-anomaly simulate", lambda folder: None,
    "simulate 1 0 --directions 2 --shape 12,14,12 --spacing 12 --out data",
    lambda place: {"text": (place / "data" / "healthy.tsv").read_text(encoding="utf-8")},
    kept=("data/settings.json",),
)


def scores(path: Path) -> dict[str, Any]:
    """Score a scan by a model file."""
    from anomaly.scans.series import SeriesFiles

    return {"map": load_model(path).detect(SeriesFiles(Path("glioma-001_dwi.nii.gz")), opening=1, mask=False).map}


@function("anomaly.read_cases", persons)
def _read_cases() -> dict[str, Any]:
    cases = read_cases("gliomas.tsv")
    return {f"{case.name} {key}": getattr(case, key) for case in cases for key in ("signal", "lesion", "tissue", "age")}


@function("anomaly.read_series", persons)
def _read_series() -> dict[str, Any]:
    from anomaly.scans.series import read_series

    return {"names": [(one.label, dict(one.known)) for one in read_series("gliomas.tsv")]}


@function("anomaly.prepare_scan", persons)
def _prepare() -> dict[str, Any]:
    stem = "glioma-001"
    files = {key: f"{stem}_{name}.nii.gz" for key, name in (("mask", "brain"), ("tissue", "tissue"), ("lesion", "lesion"))}
    scan = prepare_scan(f"{stem}_dwi.nii.gz", **files)
    return {"signal": scan.case.signal, "lesion": scan.case.lesion, "directions": scan.case.directions}


def arrays(folder: Path) -> None:
    """Arrays for estimators: signals of four scans, masks, and a fifth to look at."""
    rng = np.random.default_rng(0)
    np.save(folder / "X.npy", rng.uniform(0.2, 0.8, (4, 6, 6, 5, 4)).astype(np.float32))
    np.save(folder / "masks.npy", np.ones((4, 6, 6, 5), dtype=np.uint8))
    np.save(folder / "other.npy", rng.uniform(0.2, 0.8, (1, 6, 6, 5, 4)).astype(np.float32))


#: Detectors whose options are a file, too, in the smallest of sizes.
SMALL: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "mean": {},
    "aligned": {},
    "pca": {"n_components": 2},
    "forest": {"n_estimators": 3, "random_state": 0},
    "implants": {"n_implants": 1, "n_trees": 3, "smoothness": None, "calibration": None, "random_state": 0},
    "dae": {"latent_dim": 2, "widths": [2, 2], "dense": 2, "epochs": 1, "device": "cpu", "random_state": 0,
            "aligned": False},
    "recdisc": {"reconstruction_width": 2, "discrimination_width": 2, "levels": 2, "stem": None, "repeats": 1,
                "epochs": 1, "device": "cpu", "random_state": 0},
}  # fmt: skip


def arrays_and_options(name: str, folder: Path) -> None:
    """The same with the persons that scans are of, and the options of a detector."""
    arrays(folder)
    np.save(folder / "groups.npy", np.array(["a", "b", "c", "d"]))
    (folder / "options.json").write_text(json.dumps(SMALL[name]), encoding="utf-8")


def detected_by(name: str) -> dict[str, Any]:
    from anomaly.cli.study_commands import make_detector

    options: dict[str, Any] = {"threshold": anomaly.HealthyRateThreshold(0.05), "calibration": 2}
    X, masks, other, groups = (np.load(f"{one}.npy", allow_pickle=True) for one in ("X", "masks", "other", "groups"))
    detector = make_detector(name, options | json.loads(Path("options.json").read_text(encoding="utf-8")))
    detector.fit(X, masks, groups=groups)
    found = {"map": detector.anomaly_map(other)}
    return found if detector.calibration is None else found | {"binary": detector.predict(other)}


for detector_name in SMALL:
    good = partial(arrays_and_options, detector_name)
    entry(f"fit and predict of {detector_name}", good, call=partial(detected_by, detector_name), names=False)


def thresholds(folder: Path) -> None:
    rng = np.random.default_rng(0)
    maps = rng.uniform(0, 1, (2, 5, 5, 4))
    np.save(folder / "maps.npy", maps)
    np.save(folder / "truths.npy", (maps > 0.8).astype(float))


@function("YoudenThreshold.fit and apply", thresholds, names=False)
def _threshold() -> dict[str, Any]:
    maps, truths = np.load("maps.npy", allow_pickle=True), np.load("truths.npy", allow_pickle=True)
    return {"binary": anomaly.YoudenThreshold().fit(maps, truths=truths).apply(maps)}


# Functions whose arguments a row writes: arrays, scans, contents of model files.

X = np.random.default_rng(0).uniform(0.2, 0.8, (16, 9, 10, 8, 6)).astype(np.float32)
INSIDE = np.ones((16, 9, 10, 8), bool)
SOUND, HALF = np.zeros((3, 4, 2)), np.indices((3, 4, 2))[0] == 0
EARLIER, AHEAD, LATER = (np.indices((6, 6, 6))[0] == place for place in (1, 3, 4))
BRAIN = np.ones((6, 7, 8), bool)
CASE = {"patient": "p01", "name": "p01", "brain": BRAIN, "b0": np.full(BRAIN.shape, 9.0),
        "signal": np.full((*BRAIN.shape, 12), 0.5), "directions": spread_directions(12)}  # fmt: skip
PATCHED = np.full((22, 24, 20, 6), 0.5, np.float32), np.ones((22, 24, 20), bool)


def case(**changes: Any) -> Case:
    return Case(**CASE | changes)


class Unhurried(anomaly.OneMinusMean):
    """A detector that must refuse before it learns."""

    def _fit_scans(self, scans: Any) -> None:
        raise RuntimeError


def aligned(n: int, groups: Any = None, calibration: Any = None) -> None:
    anomaly.AlignedMahalanobis(calibration=calibration).fit(X[:n], INSIDE[:n], groups=groups and list(groups))


def corrupted(**options: Any) -> None:
    options = {"volume": np.full((12, 12, 12, 2), 0.5, np.float32), "mask": np.ones((12, 12, 12), bool)} | options
    anomaly.corrupt(options.pop("volume"), options.pop("mask"), **options)


def resampled(n: int = 12, there: Any = CASE["directions"], wanted: Any = CASE["directions"], **options: Any) -> None:
    resample_directions(np.ones((2, n)), there, wanted, **options)


def overlap(**masks: Any) -> None:
    anomaly.overlap_with_followup(**{"anomaly": AHEAD, "structural": EARLIER, "followup": EARLIER | LATER} | masks)


# A head of one shell: a ball of tissue in air.
B = np.array([0.0, *[1000.0] * 20, 5.0])
HEAD = np.linalg.norm(np.indices((22, 26, 20)) - np.reshape((10.5, 12.5, 9.5), (3, 1, 1, 1)), axis=0) < 8
SERIES = np.where(HEAD[..., None], np.where(B > 10, 300, 700), 5).astype(np.float32)
VECTORS = np.concatenate([np.zeros((1, 3)), spread_directions(20), np.zeros((1, 3))])
GRADIENTS = dmrifit.Protocol(B, directions=VECTORS)


def image(values: Any) -> nib.Nifti1Image:
    return nib.Nifti1Image(values.astype(np.float32), np.diag([4.0, 4, 4, 1]))


def prepared(series: Any = SERIES, protocol: Any = GRADIENTS, **options: Any) -> Any:
    return prepare_scan(image(series), protocol, **({"mask": image(HEAD)} | options))


@cache
def fitted() -> dmrifit.Protocol:
    return prepared().protocol


# Scans of a comparison: white matter, with a cube of lesion or without.
CUBE = np.pad(np.ones((3, 3, 3), bool), 3)


def person(name: str, **changes: Any) -> Case:
    brain = np.ones(CUBE.shape, bool)
    signal = np.full((*CUBE.shape, 3), 0.5, np.float32)
    affine = np.diag([4.0, 4, 4, 1])
    return replace(Case(name, signal, brain, tissue=1 * brain, affine=affine, synthetic=True), **changes)


ILL = [person(f"lesion {number}", lesion=CUBE) for number in range(5)]
WELL = [person(f"healthy {number}") for number in range(4)]
SCORES = np.random.default_rng(0).normal(size=CUBE.shape)
MAPS, FREE = ({"weak": [SCORES] * n, "strong": [SCORES + CUBE] * n} for n in (5, 4))


def compared(cases: Any = ILL, maps: Any = MAPS, healthy: Any = WELL, healthy_maps: Any = FREE, **options: Any) -> None:
    evaluate_detectors(cases, maps, healthy=healthy, healthy_maps=healthy_maps, **options)


# Contents of model files


@cache
def stored() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What a model file holds of a detector: parameters, attributes, files."""
    return anomaly.VoxelwiseGaussian(threshold=anomaly.HealthyRateThreshold(0.1), calibration=0.34).fit(X[:6]).stored()


def changed(content: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Change what a file holds; of None, there is none."""
    return {name: value for name, value in (content | change).items() if value is not None}


def restored(parameters: Any = {}, attributes: Any = {}, arrays: Any = {}, files: Any = {}) -> None:  # noqa: B006
    good_parameters, good_attributes, good_files = stored()
    packed = {name: save(changed(load(content), arrays)) for name, content in good_files.items()}
    detector = anomaly.VoxelwiseGaussian(**good_parameters | parameters)
    detector.restore(changed(good_attributes, attributes), changed(packed, files))


def rule(name: str, parameters: Any, **fitted: Any) -> dict[str, Any]:
    return {"rule": name, "parameters": parameters, "fitted": fitted}


def fixed(**changes: Any) -> dict[str, Any]:
    return rule("FixedThreshold", {"value": 2.5}, threshold_=2.5) | changes


def pool(size: Any, spacing: Any) -> dict[str, Any]:
    return rule("MeanPoolThreshold", {"size_mm": size, "spacing": spacing, "scope": "image"})


OF_ANOMALY = ("detectors.gaussian", "detectors.thresholds", "scans.preparation", "study.evaluation")
expressions("calls of anomaly", globals(), [f"anomaly.{name}" for name in OF_ANOMALY])
expressions("contents of detectors", globals(), ["anomaly.detectors.thresholds"], error=ValueError)
