"""Entries of the corpus for the program and the functions of metastasis, each in a folder of good files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from driver import after, command, expressions, function
from entries_options import BALLS, NETWORK, image

import metastasis
from dmrifit import save_model
from dmrifit.networks.training import Training, gather_training

TINY = {"widths": (2, 2), "dense": (2,), "segments_per_epoch": 4, "device": "cpu"}


def patients(folder: Path) -> None:
    """Two synthetic patients, one of them with a prior scan, on a small grid."""
    size = {"shape": (36, 36, 36), "spacing": 2.5, "metastases": (1, 2)}
    metastasis.write_cases(metastasis.simulate_metastases(2, prior=1, random_state=0, **size), folder)
    text = (folder / "cases.tsv").read_text(encoding="utf-8")
    for path in sorted(folder.iterdir()):
        text = text.replace(path.name, path.name.removeprefix("synthetic-"))
        path.rename(folder / path.name.removeprefix("synthetic-"))
    (folder / "cases.tsv").write_text(text, encoding="utf-8")


def trained(folder: Path) -> None:
    """The same with a model, and another that differs in its seed alone."""
    from metastasis.cli.case_runs import scans_of

    patients(folder)
    cases = metastasis.read_cases(folder / "cases.tsv")
    labels = [nib.Nifti1Image(case.label, case.affine) for case in cases]
    segmenter = metastasis.DeepMedicSegmenter(**TINY, training=Training(epochs=1, batch_size=2), random_state=0)
    segmenter.fit(labels=labels, **scans_of(cases))
    save_model(segmenter, folder / "model.dmrifit")
    save_model(segmenter.set_params(random_state=1), folder / "other.dmrifit")


SEGMENT = "--no-figure --device cpu --out found"


segmented = after(trained, f"dmrifit-metastasis segment model.dmrifit cases.tsv {SEGMENT}")


def found(place: Path) -> dict[str, Any]:
    paths = sorted((place / "found").glob("*/*.nii.gz"))
    maps = {str(path.relative_to(place)): np.asarray(nib.load(path).dataobj) for path in paths}
    return maps | {"text": (place / "found" / "segmentations.tsv").read_text(encoding="utf-8")}


command(
    "dmrifit-metastasis segment", trained,
    f"segment model.dmrifit 001_image.nii.gz --prior 001_prior.nii.gz --mask 001_brain.nii.gz {SEGMENT}", found,
    kept=("found/settings.json", "found/failed.tsv"),
)
command(
    "dmrifit-metastasis ensemble", trained, f"ensemble model.dmrifit other.dmrifit 001_image.nii.gz {SEGMENT}",
    found, kept=("found/settings.json", "found/failed.tsv"),
)
command(
    "dmrifit-metastasis segment again", segmented, f"segment model.dmrifit cases.tsv {SEGMENT}", found,
    kept=("found/*", "found/*/*"),
)
command(
    "dmrifit-metastasis evaluate", segmented,
    "evaluate cases.tsv --segmentations m=found/segmentations.tsv --figures 0 --out tables",
    lambda place: {"text": (place / "tables" / "scans.csv").read_text(encoding="utf-8")},
)
command(
    "dmrifit-metastasis train", trained,
    "train cases.tsv --out new.dmrifit --widths 2,2 --epochs 1 --segments-per-epoch 2 --batch-size 2 --device cpu",
    lambda place: {"whole": (place / "new.dmrifit").stat().st_size > 0},
)
command(
    "dmrifit-metastasis simulate", lambda folder: None, "simulate 1 --shape 24,24,24 --spacing 3.5 --out data",
    lambda place: {"text": (place / "data" / "cases.tsv").read_text(encoding="utf-8")},
    kept=("data/settings.json",),
)


@function("metastasis.read_cases", patients)
def _read_cases() -> dict[str, Any]:
    keys, cases = ("image", "label", "prior", "brain"), metastasis.read_cases("cases.tsv")
    places = {case.name: nib.affines.apply_affine(case.affine, np.argwhere(case.label)) for case in cases}
    return places | {f"{case.name} {key}": getattr(case, key) for case in cases for key in keys}


def arrays(folder: Path) -> None:
    """Arrays for the segmenter: two volumes with labels and a prior scan."""
    rng = np.random.default_rng(0)
    volumes = rng.normal(1, 0.1, (2, 24, 24, 24)).astype(np.float32)
    labels = np.zeros(volumes.shape, np.uint8)
    labels[:, 10:13, 10:13, 10:13] = 1
    np.save(folder / "volumes.npy", volumes + labels)
    np.save(folder / "labels.npy", labels)


@function("DeepMedicSegmenter.fit and predict", arrays, names=False)
def _segment() -> dict[str, Any]:
    volumes, labels = np.load("volumes.npy", allow_pickle=True), np.load("labels.npy", allow_pickle=True)
    options = {"segment_size": 25, "prior": None, "training": Training(epochs=1, batch_size=2), "random_state": 0}
    segmenter = metastasis.DeepMedicSegmenter(**TINY, **options)
    return {"map": segmenter.fit(volumes, labels).predict_proba(volumes[:1])[0]}


# Calls in Python.

LABELS = (BALLS > 105).astype(np.uint8)
GRID = np.zeros((6, 7, 8))
HEAD = np.linalg.norm(np.indices((32, 32, 32)) - np.full((3, 1, 1, 1), 15.5), axis=0) < 14
CASES = [metastasis.Case(f"p{n}", BALLS[n], label=LABELS[n], name=f"case {n}", synthetic=True) for n in range(6)]
SURE = [np.where(label, 0.9, 0.05) for label in LABELS]


class Unhurried(metastasis.DeepMedicSegmenter):
    """A segmenter that must refuse before it makes a network."""

    def _module(self) -> Any:
        raise RuntimeError


def learn(volumes: Any = BALLS, labels: Any = LABELS, priors: Any = BALLS, groups: Any = None, **options: Any) -> None:
    segmenter = Unhurried(**gather_training({"loss": "bce"} | NETWORK | options))
    segmenter.fit(volumes, labels, priors=priors, groups=groups)


def instead(values: Any, place: int, value: Any) -> list[Any]:
    return [*values[:place], value, *values[place + 1 :]]


def infinite(volume: np.ndarray) -> np.ndarray:
    return np.where(np.arange(volume.size).reshape(volume.shape) == 999, np.inf, volume)


def prepare(values: Any = 100.0 * HEAD, brain: Any = None, **options: Any) -> None:
    edges = np.diag([5, 5, 5, 1])
    brain = image(HEAD if brain is None else brain, edges)
    metastasis.prepare_scan(image(values, edges), **{"brain": brain} | options)


def case(**changes: Any) -> metastasis.Case:
    return metastasis.Case(**{"patient": "p01", "image": GRID, "label": GRID, "affine": np.eye(4)} | changes)


OF_METASTASIS = (
    "networks.losses", "scans.local_level", "segmentation.ensemble", "segmentation.operating_points", "simulate.implants",
    "study.evaluation", "study.followup",
)  # fmt: skip
expressions("calls of metastasis", globals(), ["entries_options", *(f"metastasis.{name}" for name in OF_METASTASIS)])
