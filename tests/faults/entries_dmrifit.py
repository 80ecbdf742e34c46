"""Entries of the corpus for the programs and functions of dmrifit, each in a folder of good files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from driver import command, function

from dmrifit.engine.protocol import Protocol

#: Volumes of the real scan that dipy carries, with b-values from 15 to 4065 s/mm².
VOLUMES = (0, 1, 3, 6, 9, 14, 24, 41, 60, 101)
BLOCK = (slice(1, 5), slice(3, 7), slice(4, 7))


def scan(folder: Path) -> None:
    """A block of a real scan with all that belongs to it."""
    source = files("dipy") / "data" / "files"
    loaded = nib.load(str(source / "small_101D.nii.gz"))
    block = loaded.slicer[BLOCK[0], BLOCK[1], BLOCK[2]]
    values = np.asarray(block.dataobj)[..., VOLUMES]
    order = np.argsort(np.loadtxt(str(source / "small_101D.bval"))[list(VOLUMES)], kind="stable")
    header = block.header.copy()
    nib.save(nib.Nifti1Image(values[..., order], block.affine, header), folder / "dwi.nii.gz")
    nib.save(nib.Nifti1Image(values[..., order], block.affine, header), folder / "plain.nii")
    b = np.loadtxt(str(source / "small_101D.bval"))[list(VOLUMES)][order]
    vectors = np.loadtxt(str(source / "small_101D.bvec"))
    vectors = (vectors if vectors.shape[0] == 3 else vectors.T)[:, list(VOLUMES)][:, order]
    for name in ("dwi", "plain"):
        np.savetxt(folder / f"{name}.bval", b[None], fmt="%g")
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
        image = nib.Nifti1Image(values[..., order][..., chosen], block.affine, header)
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


def interrupted(folder: Path) -> None:
    """A scan, and a hidden folder with a list of files beside its maps, as earlier versions left one when killed."""
    scan(folder)
    hidden = folder / "maps" / ".dmrifit-x.complete"
    hidden.mkdir(parents=True)
    (hidden / ".names").write_text("[[], []]")


command(
    "dmrifit fit again", interrupted, f"fit dwi.nii.gz {FIT}",
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
command(
    "dmrifit import", lambda folder: (folder / "dicom").mkdir(), "import dicom --out converted",
    lambda place: {},
)


@function("Protocol.read", scan)
def _read_protocol() -> dict[str, Any]:
    protocol = Protocol.read("dwi.bval", "dwi.te", "dwi.bvec")
    return {"b": protocol.b, "te": protocol.te, "directions": protocol.directions}


@function("Protocol.read sidecar", scan)
def _read_sidecar() -> dict[str, Any]:
    return {"te": Protocol.read("dwi.bval", "side.json").te}


@function("read_volume", scan)
def _read_volume() -> dict[str, Any]:
    from dmrifit.io.nifti import read_volume

    return {"values": read_volume("dwi.nii.gz")}


command(
    "dmrifit preprocess", scan, "preprocess dwi.nii.gz --mask mask.nii.gz --steps denoise,gibbs --out clean",
    images_in("clean"),
)


def fitted(folder: Path) -> None:
    """Maps of the real block, with regions."""
    from dmrifit.imaging.fit_predict import fit_image

    scan(folder)
    protocol = Protocol.read(folder / "dwi.bval")
    fit_image(folder / "dwi.nii.gz", protocol, "adc", out=folder / "maps", n_threads=1)
    for path in (folder / "maps").iterdir():
        path.rename(path.with_name(path.name.removeprefix("dwi_model-adc_")))
    # Short names, which the sidecar follows.
    sidecar = folder / "maps" / "dwimap.json"
    sidecar.write_text(sidecar.read_text().replace("dwi_model-adc_", ""))
    sidecar.rename(folder / "maps" / "x_model-adc_dwimap.json")
    (folder / "fits.tsv").write_text("maps\tlabels\tsubject\tvisit\nmaps\tlabels.nii.gz\tA\t1\n")


def fitted_twice(folder: Path) -> None:
    """Maps of the real block, and a hidden folder with a list of files beside them."""
    fitted(folder)
    hidden = folder / "maps" / ".dmrifit-x.complete"
    hidden.mkdir()
    (hidden / ".names").write_text("[[], []]")


ROI = "--out roi.csv"

command("dmrifit roi", fitted, f"roi maps --labels labels.nii.gz --names names.tsv {ROI}", text_of("roi.csv"))
command(
    "dmrifit roi again", fitted_twice, f"roi maps --labels labels.nii.gz --names names.tsv {ROI}",
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
    from dmrifit import SignalToSignal, save_model, simulate_cohort

    cohort = simulate_cohort("cohort1", 3, shape=(12, 12, 2), random_state=0)
    rows = ["patient\tcohort\timage\tmask\tlesion\tbval\tte\tsigma\tsynthetic"]
    for number, one in enumerate(cohort, start=1):
        stem = f"p{number}"
        write(folder / f"{stem}.nii.gz", one.signal, one.affine)
        write(folder / f"{stem}-mask.nii.gz", one.mask.astype(np.uint8), one.affine)
        write(folder / f"{stem}-lesion.nii.gz", one.lesion.astype(np.uint8), one.affine)
        write(folder / f"{stem}-sigma.nii.gz", np.full(one.shape, 2, np.float32), one.affine)
        np.savetxt(folder / f"{stem}.bval", one.protocol.b[None], fmt="%g")
        np.savetxt(folder / f"{stem}.te", one.protocol.te[None], fmt="%g")
        named = [
            f"{stem}{end}" for end in (".nii.gz", "-mask.nii.gz", "-lesion.nii.gz", ".bval", ".te", "-sigma.nii.gz")
        ]
        rows.append("\t".join([stem, "A", *named, "true"]))
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    protocol = cohort.scans[0].protocol
    source = protocol.take(protocol.clinical())
    table = cohort.arrays(source, protocol, mask="body", max_voxels=40, random_state=0)
    estimator = SignalToSignal("LR", source=source, target=protocol, random_state=0).fit(table.X, table.Y)
    save_model(estimator, folder / "model.dmrifit")


def cohort_results(cohorts: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, cohort in cohorts.items():
        table = cohort.arrays(mask="lesion")
        found |= {
            f"{name} X": table.X,
            f"{name} Y": table.Y,
            f"{name} groups": table.groups,
            f"{name} noise": table.sigma,
        }
    return found


@function("Cohort.read", patients)
def _read_cohort() -> dict[str, Any]:
    from dmrifit import Cohort

    return cohort_results(Cohort.read("participants.tsv"))


def predictions(path: Path) -> dict[str, Any]:
    from dmrifit import load_model

    estimator = load_model(path)
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
        from dmrifit import Evaluation

        scores = Evaluation.read(place / folder).scores
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
    from dmrifit import Cohort, SignalToSignal, compare

    patients(folder)
    cohorts = Cohort.read(folder / "participants.tsv")
    compare(
        {"LR s2s": SignalToSignal("LR")}, cohorts, max_voxels=20, controls=False, out=folder / "study", random_state=0
    )


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


def of_arrays(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Declare a function of arrays, which has no file to name in its messages."""
    return function(name, arrays, names=False)


@of_arrays("fit_voxels")
def _fit_voxels() -> dict[str, Any]:
    from dmrifit import fit_voxels

    result = fit_voxels(load("signals"), Protocol(load("b"), load("te")), "adc", n_threads=1)
    return {"parameters": result.parameters, "status": result.status}


@of_arrays("MapFitter")
def _map_fitter() -> dict[str, Any]:
    from dmrifit import MapFitter

    fitter = MapFitter("adc", Protocol(load("b")), n_threads=1)
    return {"maps": fitter.fit(load("signals")).transform(load("signals"))}


@of_arrays("ClinicalMetrics")
def _clinical_metrics() -> dict[str, Any]:
    from dmrifit import ClinicalMetrics

    protocol = Protocol([0, 50, 100, 400, 900, 1000, 1100, 1200, 1300, 1400])
    return {"metrics": ClinicalMetrics(protocol).fit(load("signals")).transform(load("signals"))}


@of_arrays("average_directions")
def _average_directions() -> dict[str, Any]:
    from dmrifit import average_directions

    signals, protocol = average_directions(load("signals"), Protocol(load("b")))
    return {"signals": signals, "b": protocol.b}


@of_arrays("SignalToSignal")
def _signal_to_signal() -> dict[str, Any]:
    from dmrifit import SignalToSignal

    return {"predicted": SignalToSignal("LR", random_state=0).fit(load("X"), load("Y")).predict(load("X"))}


@of_arrays("MapsToMaps")
def _maps_to_maps() -> dict[str, Any]:
    from dmrifit import MapsToMaps

    return {"predicted": MapsToMaps("LR", random_state=0).fit(load("X"), load("Y")).predict(load("X"))}


@of_arrays("SignalToSignal.predict")
def _predict_rows() -> dict[str, Any]:
    from dmrifit import SignalToSignal

    draw = np.random.default_rng(1)
    estimator = SignalToSignal("LR", random_state=0).fit(draw.uniform(size=(20, 3)), draw.uniform(size=(20, 4)))
    return {"predicted": estimator.predict(load("X"))}


@of_arrays("ConformalIntervals")
def _conformal() -> dict[str, Any]:
    from dmrifit import ConformalIntervals, SignalToSignal

    intervals = ConformalIntervals(SignalToSignal("LR", random_state=0), coverage=0.5)
    intervals.fit(load("X"), load("Y"), load("groups"))
    return {"intervals": intervals.predict_interval(load("X"))}


@of_arrays("bias_index")
def _bias_index() -> dict[str, Any]:
    from dmrifit import bias_index

    return {"index": np.asarray(bias_index(load("Y"), load("Y")))}


@of_arrays("lesion_table")
def _lesion_table() -> dict[str, Any]:
    from dmrifit import lesion_table

    table = lesion_table(load("labels"), load("labels"), load("affine"))
    return {"table": table.to_csv(index=False)}


@of_arrays("roi_table")
def _roi_table() -> dict[str, Any]:
    from dmrifit import roi_table

    return {"table": roi_table({"ADC": load("labels") * 2.0}, load("labels")).to_csv(index=False)}


@of_arrays("Scan")
def _scan() -> dict[str, Any]:
    from dmrifit import Scan

    signal = np.broadcast_to(load("b"), (6, 6, 4, len(load("b"))))
    one = Scan("A", signal, Protocol(load("b"), load("te")), load("labels"), load("affine"))
    return {"mask": one.mask, "affine": one.affine}
