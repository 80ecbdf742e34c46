"""Entries of the corpus for the programs and functions of dmrifit, each in a folder of good files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from driver import command, entry, function

import dmrifit
from dmrifit import Protocol
from dmrifit.io.nifti import read_volume

#: Volumes of the real scan that dipy carries, with b-values from 15 to 4065 s/mm².
VOLUMES = (0, 1, 3, 6, 9, 14, 24, 41, 60, 101)
BLOCK = (slice(1, 5), slice(3, 7), slice(4, 7))


def scan(folder: Path) -> None:
    """A block of a real scan with all that belongs to it."""
    source = files("dipy") / "data" / "files"
    block = nib.load(str(source / "small_101D.nii.gz")).slicer[BLOCK]
    b = np.loadtxt(str(source / "small_101D.bval"))
    order = np.array(VOLUMES)[np.argsort(b[list(VOLUMES)], kind="stable")]
    values, b, header = np.asarray(block.dataobj)[..., order], b[order], block.header.copy()
    for name in ("dwi.nii.gz", "plain.nii"):
        nib.save(nib.Nifti1Image(values, block.affine, header), folder / name)
        np.savetxt(folder / f"{name.partition('.')[0]}.bval", b[None], fmt="%g")
    vectors = np.loadtxt(str(source / "small_101D.bvec"))
    vectors = (vectors if vectors.shape[0] == 3 else vectors.T)[:, order]
    np.savetxt(folder / "dwi.bvec", vectors, fmt="%.6f")
    (folder / "dwi.te").write_text(" ".join(["90"] * len(b)) + "\n")
    (folder / "side.json").write_text('{"EchoTime": 0.09, "RepetitionTime": 4.0}\n')
    grid = block.shape[:3]
    inside = np.ones(grid, np.uint8)
    inside[0] = 0
    write(folder / "mask.nii.gz", inside, block.affine)
    write(folder / "sigma.nii.gz", np.full(grid, 3, np.float32), block.affine)
    regions = np.zeros(grid, np.uint8)
    regions[1:, :2], regions[1:, 2:] = 1, 2
    write(folder / "labels.nii.gz", regions, block.affine)
    (folder / "names.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    for part, chosen in (("low", slice(0, 5)), ("high", slice(5, None))):
        image = nib.Nifti1Image(values[..., chosen], block.affine, header)
        nib.save(image, folder / f"{part}.nii.gz")
        np.savetxt(folder / f"{part}.bval", b[None, chosen], fmt="%g")
    (folder / "parts.tsv").write_text("image\tbval\tte\nlow.nii.gz\tlow.bval\t90\nhigh.nii.gz\thigh.bval\t90\n")


def write(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values, affine), path)


def images_in(folder: str) -> Callable[[Path], dict[str, Any]]:
    """Read all images that a program wrote."""

    def read(place: Path) -> dict[str, Any]:
        found = sorted((place / folder).glob("*.nii.gz"))
        assert found, folder
        return {path.name.partition("_")[2]: np.asarray(image.dataobj) for path in found for image in [nib.load(path)]}

    return read


def text_of(name: str) -> Callable[[Path], dict[str, Any]]:
    return lambda place: {name: (place / name).read_text(encoding="utf-8")}


FIT = "--model kurtosis --no-quicklook --out maps --threads 1"

command(
    "dmrifit fit", scan, f"fit dwi.nii.gz --te dwi.te --mask mask.nii.gz --sigma sigma.nii.gz {FIT}",
    images_in("maps"),
)
command("dmrifit fit bare", scan, f"fit dwi.nii.gz {FIT}", images_in("maps"))
command("dmrifit fit plain", scan, f"fit plain.nii --te side.json {FIT}", images_in("maps"))
command("dmrifit fit parts", scan, f"fit parts.tsv {FIT}", images_in("maps"))


def beside_hidden(prepare: Callable[[Path], None]) -> Callable[[Path], None]:
    """Good files, and a hidden folder with a list of files beside maps, as earlier versions left one when killed."""

    def made(folder: Path) -> None:
        prepare(folder)
        hidden = folder / "maps" / ".dmrifit-x.complete"
        hidden.mkdir(parents=True)
        (hidden / ".names").write_text("[[], []]")

    return made


command(
    "dmrifit fit again", beside_hidden(scan), f"fit dwi.nii.gz {FIT}",
    lambda place: images_in("maps")(place) | text_of("names.tsv")(place),
)
command("dmrifit info", scan, "info dwi.nii.gz --te dwi.te --mask mask.nii.gz", lambda place: {})


def bids(folder: Path) -> None:
    """A BIDS folder of two subjects, each with the block of the real scan."""
    scan(folder)
    for subject in ("sub-1", "sub-2"):
        place = folder / "bids" / subject / "dwi"
        place.mkdir(parents=True)
        for ending in ("nii.gz", "bval", "bvec"):
            (place / f"{subject}_dwi.{ending}").write_bytes((folder / f"dwi.{ending}").read_bytes())
        masks = folder / "bids" / "derivatives" / "masks"
        masks.mkdir(parents=True, exist_ok=True)
        (masks / f"{subject}_mask.nii.gz").write_bytes((folder / "mask.nii.gz").read_bytes())


MASKS = "--mask 'derivatives/masks/*_mask.nii.gz'"

command("dmrifit table", bids, f"table bids {MASKS}", lambda place: {})
command(
    "dmrifit fit folder", bids, f"fit bids {MASKS} {FIT}",
    lambda place: {"rows": (place / "maps" / "fits.tsv").read_text().count("\n")}, kept=("maps/*",),
)
command("dmrifit import", lambda folder: (folder / "dicom").mkdir(), "import dicom --out converted", lambda place: {})


@function("Protocol.read", scan)
def _read_protocol() -> dict[str, Any]:
    protocol = Protocol.read("dwi.bval", "dwi.te", "dwi.bvec")
    return {"b": protocol.b, "te": protocol.te, "directions": protocol.directions}


@function("Protocol.read sidecar", scan)
def _read_sidecar() -> dict[str, Any]:
    return {"te": Protocol.read("dwi.bval", "side.json").te}


@function("read_volume", scan)
def _read_volume() -> dict[str, Any]:
    return {"values": read_volume("dwi.nii.gz")}


command(
    "dmrifit preprocess", scan, "preprocess dwi.nii.gz --mask mask.nii.gz --steps denoise,gibbs --out clean",
    images_in("clean"),
)


def fitted(folder: Path) -> None:
    """Maps of the real block, with regions."""
    from dmrifit.imaging.fit_predict import fit_image

    scan(folder)
    protocol = Protocol.read(folder / "dwi.bval", folder / "dwi.te")
    fit_image(folder / "dwi.nii.gz", protocol, "adc", out=folder / "maps", n_threads=1)
    for path in (folder / "maps").iterdir():
        path.rename(path.with_name(path.name.removeprefix("dwi_model-adc_")))
    # Short names, which the sidecar follows.
    sidecar = folder / "maps" / "dwimap.json"
    sidecar.write_text(sidecar.read_text().replace("dwi_model-adc_", ""))
    sidecar.rename(folder / "maps" / "x_model-adc_dwimap.json")
    (folder / "fits.tsv").write_text("maps\tlabels\tsubject\tvisit\nmaps\tlabels.nii.gz\tA\t1\n")


ROI = "--out roi.csv"

command("dmrifit roi", fitted, f"roi maps --labels labels.nii.gz --names names.tsv {ROI}", text_of("roi.csv"))
command(
    "dmrifit roi again", beside_hidden(fitted), f"roi maps --labels labels.nii.gz --names names.tsv {ROI}",
    lambda place: text_of("roi.csv")(place) | text_of("names.tsv")(place),
)
command(
    "dmrifit roi maps", fitted, f"roi --map MD=maps/param-ADC_dwimap.nii.gz --labels labels.nii.gz {ROI}",
    text_of("roi.csv"),
)
command(
    "dmrifit view", fitted, "view --map MD=maps/param-ADC_dwimap.nii.gz --labels labels.nii.gz --out view.html",
    text_of("view.html"),
)
command("dmrifit roi table", fitted, f"roi fits.tsv {ROI}", text_of("roi.csv"))


def patients(folder: Path) -> None:
    """Synthetic patients, and a model trained on them."""
    cohort = dmrifit.simulate_cohort("cohort1", 3, shape=(12, 12, 2), random_state=0)
    rows = ["patient\tcohort\timage\tmask\tlesion\tbval\tte\tsigma\tsynthetic"]
    for number, one in enumerate(cohort, start=1):
        stem = f"p{number}"
        write(folder / f"{stem}.nii.gz", one.signal, one.affine)
        write(folder / f"{stem}-mask.nii.gz", one.mask.astype(np.uint8), one.affine)
        write(folder / f"{stem}-lesion.nii.gz", one.lesion.astype(np.uint8), one.affine)
        write(folder / f"{stem}-sigma.nii.gz", np.full(one.shape, 2, np.float32), one.affine)
        np.savetxt(folder / f"{stem}.bval", one.protocol.b[None], fmt="%g")
        np.savetxt(folder / f"{stem}.te", one.protocol.te[None], fmt="%g")
        ends = (".nii.gz", "-mask.nii.gz", "-lesion.nii.gz", ".bval", ".te", "-sigma.nii.gz")
        rows.append("\t".join([stem, "A", *(f"{stem}{end}" for end in ends), "true"]))
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    protocol = cohort.scans[0].protocol
    source = protocol.take(protocol.clinical())
    table = cohort.arrays(source, protocol, mask="body", max_voxels=40, random_state=0)
    estimator = dmrifit.SignalToSignal("LR", source=source, target=protocol, random_state=0)
    dmrifit.save_model(estimator.fit(table.X, table.Y), folder / "model.dmrifit")


def cohort_results(cohorts: dict[str, Any]) -> dict[str, Any]:
    tables = {name: cohort.arrays(mask="lesion") for name, cohort in cohorts.items()}
    return {f"{name} {key}": getattr(table, key) for name, table in tables.items() for key in ("X", "Y", "groups", "sigma")}


@function("Cohort.read", patients)
def _read_cohort() -> dict[str, Any]:
    return cohort_results(dmrifit.Cohort.read("participants.tsv"))


def predictions(path: Path) -> dict[str, Any]:
    estimator = dmrifit.load_model(path)
    X = np.linspace(0.1, 2, 3)[:, None] * np.linspace(1, 0.3, 5)
    return {"predicted": estimator.predict(X)}


@function("load_model", patients)
def _load_model() -> dict[str, Any]:
    return predictions(Path("model.dmrifit"))


command(
    "dmrifit train", patients, "train participants.tsv --out new.dmrifit --max-voxels 20",
    lambda place: predictions(place / "new.dmrifit"),
)
command(
    "dmrifit predict", patients,
    "predict model.dmrifit p1.nii.gz --mask p1-mask.nii.gz --sigma p1-sigma.nii.gz --out predicted",
    images_in("predicted"),
)


def scores_in(folder: str) -> Callable[[Path], dict[str, Any]]:
    def read(place: Path) -> dict[str, Any]:
        scores = dmrifit.Evaluation.read(place / folder).scores
        return {name: scores[name].to_numpy() for name in scores if name != "seconds"}

    return read


BENCHMARK = "--algorithms LR --strategies s2s --max-voxels 20 --no-controls --out study"

command(
    "dmrifit benchmark", patients, f"benchmark participants.tsv {BENCHMARK}", scores_in("study"),
    kept=("study/study.json", "cells/*", "predictions/*"),
)
command(
    "dmrifit simulate", lambda folder: None, "simulate --out data --patients 1 --preset cohort1 --shape 12,12,2",
    text_of("data/participants.tsv"), kept=("data/dataset_description.json", "dwi/*"),
)


def study(folder: Path) -> None:
    """A finished comparison."""
    patients(folder)
    cohorts = dmrifit.Cohort.read(folder / "participants.tsv")
    options = {"max_voxels": 20, "controls": False, "out": folder / "study", "random_state": 0}
    dmrifit.compare({"LR s2s": dmrifit.SignalToSignal("LR")}, cohorts, **options)


@function("Evaluation.read", study)
def _read_evaluation() -> dict[str, Any]:
    return scores_in("study")(Path.cwd())


command("dmrifit report", study, "report study", scores_in("study"))


# Functions and estimators of arrays, whose arguments lie in files so that mutations reach them.


def arrays(folder: Path) -> None:
    """Signals of a real block, and synthetic rows to learn from."""
    scan(folder)
    signals = np.asarray(nib.load(folder / "dwi.nii.gz").dataobj, float).reshape(-1, len(VOLUMES))[:12]
    np.save(folder / "signals.npy", signals)
    np.save(folder / "b.npy", np.loadtxt(folder / "dwi.bval"))
    np.save(folder / "te.npy", np.full(len(VOLUMES), 90.0))
    draw = np.random.default_rng(0)
    X = draw.uniform(0.5, 2, (24, 3))
    np.save(folder / "X.npy", X)
    np.save(folder / "Y.npy", X @ draw.uniform(size=(3, 4)))
    np.save(folder / "groups.npy", np.repeat(np.arange(6), 4))
    labels = np.zeros((6, 6, 4))
    labels[1:3, 1:3, 1], labels[4, 4, 2] = 1, 1
    np.save(folder / "labels.npy", labels)
    np.save(folder / "affine.npy", np.diag([2.0, 2, 3, 1]))


def load(name: str) -> np.ndarray:
    # The faulty ones of type object are pickled.
    return np.load(f"{name}.npy", allow_pickle=True)


def _fit_voxels() -> dict[str, Any]:
    result = dmrifit.fit_voxels(load("signals"), Protocol(load("b"), load("te")), "adc", n_threads=1)
    return {"parameters": result.parameters, "status": result.status}


def _map_fitter() -> dict[str, Any]:
    fitter = dmrifit.MapFitter("adc", Protocol(load("b")), n_threads=1)
    return {"maps": fitter.fit(load("signals")).transform(load("signals"))}


def _clinical_metrics() -> dict[str, Any]:
    metrics = dmrifit.ClinicalMetrics(Protocol([0, 50, 100, 400, 900, 1000, 1100, 1200, 1300, 1400]))
    return {"metrics": metrics.fit(load("signals")).transform(load("signals"))}


def _average_directions() -> dict[str, Any]:
    signals, protocol = dmrifit.average_directions(load("signals"), Protocol(load("b")))
    return {"signals": signals, "b": protocol.b}


def _fit_predict(strategy: str) -> dict[str, Any]:
    estimator = getattr(dmrifit, strategy)("LR", random_state=0).fit(load("X"), load("Y"))
    return {"predicted": estimator.predict(load("X"))}


def _predict_rows() -> dict[str, Any]:
    draw = np.random.default_rng(1)
    estimator = dmrifit.SignalToSignal("LR", random_state=0)
    estimator.fit(draw.uniform(size=(20, 3)), draw.uniform(size=(20, 4)))
    return {"predicted": estimator.predict(load("X"))}


def _conformal() -> dict[str, Any]:
    intervals = dmrifit.ConformalIntervals(dmrifit.SignalToSignal("LR", random_state=0), coverage=0.5)
    intervals.fit(load("X"), load("Y"), load("groups"))
    return {"intervals": intervals.predict_interval(load("X"))}


def _lesion_table() -> dict[str, Any]:
    return {"table": dmrifit.lesion_table(load("labels"), load("labels"), load("affine")).to_csv(index=False)}


def _roi_table() -> dict[str, Any]:
    return {"table": dmrifit.roi_table({"ADC": load("labels") * 2.0}, load("labels")).to_csv(index=False)}


def _scan() -> dict[str, Any]:
    signal = np.broadcast_to(load("b"), (6, 6, 4, len(load("b"))))
    scan = dmrifit.Scan("A", signal, Protocol(load("b"), load("te")), load("labels"), load("affine"))
    return {"mask": scan.mask, "affine": scan.affine}


#: Functions of arrays, which have no file to name in their messages.
OF_ARRAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "fit_voxels": _fit_voxels,
    "MapFitter": _map_fitter,
    "ClinicalMetrics": _clinical_metrics,
    "average_directions": _average_directions,
    "SignalToSignal": lambda: _fit_predict("SignalToSignal"),
    "MapsToMaps": lambda: _fit_predict("MapsToMaps"),
    "SignalToSignal.predict": _predict_rows,
    "ConformalIntervals": _conformal,
    "bias_index": lambda: {"index": np.asarray(dmrifit.bias_index(load("Y"), load("Y")))},
    "lesion_table": _lesion_table,
    "roi_table": _roi_table,
    "Scan": _scan,
}
for name, call in OF_ARRAYS.items():
    entry(name, arrays, call=call, names=False)
