"""What an installed dmrifit has to do, alone and with each extra; run by a Python that has no other copy of it."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis")
PROGRAMS = {"dmrifit": "dmrifit", **{f"dmrifit-{name}": name for name in PACKAGES[1:]}}
B = np.array([0, 100, 300, 600, 900, 1200, 1600])  # s/mm²
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def base(folder: Path) -> str:
    """Import, fit voxels and an image, save and load, show every help."""
    import dmrifit

    for package in PACKAGES:
        imported = importlib.import_module(package)
        assert (Path(imported.__file__).parent / "py.typed").is_file(), f"{package} lacks py.typed"
        for name in imported.__all__:
            said = refusal(getattr, imported, name)  # by classes of networks
            assert said == "nothing was missing" or re.search(r'pip install "dmrifit\[\w+\]"', said), said
    model = dmrifit.MODELS["kurtosis"]
    truth = np.array([[1000.0, 1.2, 0.8], [500.0, 0.7, 1.1]])
    protocol = dmrifit.Protocol(B)
    fitted = dmrifit.fit_voxels(model.signal(truth, protocol), protocol, model)
    np.testing.assert_allclose(fitted.parameters, truth, rtol=1e-3)

    image = synthetic_scan(folder)
    says("dmrifit", "fit", image, "--model", "kurtosis", "--no-quicklook", "--out", folder / "maps")
    values = np.asarray(nib.load(folder / "maps" / "scan_model-kurtosis_param-D_dwimap.nii.gz").dataobj)
    np.testing.assert_allclose(values, 1.0, rtol=1e-3)

    rng = np.random.default_rng(0)
    X = rng.random((60, 4))
    regressor = dmrifit.SignalToSignal("LR").fit(X, X[:, :2])
    dmrifit.save_model(regressor, folder / "LR.dmrifit")
    np.testing.assert_allclose(dmrifit.load_model(folder / "LR.dmrifit").predict(X), X[:, :2], atol=1e-6)

    n = 0
    for program in PROGRAMS:
        listed = says(program, "--help")
        assert says(program, "--version").split() == [program, dmrifit.__version__]
        for command in re.findall(r"^  ([a-z][a-z-]*)  ", listed.partition("Commands:")[2], re.MULTILINE):
            assert "Example" in says(program, command, "--help"), f"{program} {command} --help shows no example"
            n += 1
    return f"{n} commands show their help"


def missing(folder: Path) -> str:
    """Ask for what extras bring where they are not installed."""
    from dmrifit._optional import EXTRAS, import_optional

    absent = sorted(library for library in EXTRAS if importlib.util.find_spec(library) is None)
    for library in absent:
        assert f'pip install "dmrifit[{EXTRAS[library]}]"' in refusal(import_optional, library)
    image = synthetic_scan(folder)
    labels = folder / "labels.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 3, 2), np.uint8), AFFINE), labels)
    asked: dict[str, tuple[Any, ...]] = {
        "dipy": ("preprocess", image, "--te", "60", "--out", folder / "clean"),
        "highdicom": ("dicom-seg", labels, "--source", folder, "--out", folder / "seg.dcm"),
    }
    for library, words in asked.items():
        if library in absent:
            code, out, err = command("dmrifit", *words)
            assert code == 2, (code, out, err)
            assert f'pip install "dmrifit[{EXTRAS[library]}]"' in err, err
            assert "Traceback" not in err, err
    if "xgboost" in absent:
        from dmrifit import make_regressor

        assert 'pip install "dmrifit[boost]"' in refusal(lambda: make_regressor("GBR").fit(np.eye(4), np.eye(4)))
    return f"asked for {', '.join(absent) or 'nothing'}"


def report(folder: Path) -> str:
    """Fit with a page."""
    says("dmrifit", "fit", synthetic_scan(folder), "--model", "adc", "--out", folder / "maps")
    page = next((folder / "maps").glob("*_quicklook.html")).read_text(encoding="utf-8")
    assert "<img" in page
    return f"a page of {len(page) // 1000} kB"


def preprocess(folder: Path) -> str:
    """Denoise a noisy scan."""
    rng = np.random.default_rng(0)
    image = synthetic_scan(folder, shape=(10, 10, 6), noise=rng)
    says("dmrifit", "preprocess", image, "--te", "60", "--steps", "denoise", "--out", folder / "clean")
    described = json.loads((folder / "clean" / "scan_desc-preproc_dwi.json").read_text(encoding="utf-8"))
    found = described["Sigma"]["Median"]
    assert 5 < found < 20, f"noise of 10 was found to be {found:g}"
    return f"noise of 10 found as {found:.2f}"


def boost(folder: Path) -> str:
    """Fit gradient boosting, save and load it."""
    import dmrifit

    rng = np.random.default_rng(0)
    X = rng.random((200, 3))
    y = np.column_stack([X[:, 0] + X[:, 1], X[:, 2]])
    regressor = dmrifit.SignalToSignal("GBR", random_state=0).fit(X, y)
    r = np.corrcoef(regressor.predict(X)[:, 0], y[:, 0])[0, 1]
    assert r > 0.9, r
    dmrifit.save_model(regressor, folder / "GBR.dmrifit")
    np.testing.assert_array_equal(dmrifit.load_model(folder / "GBR.dmrifit").predict(X), regressor.predict(X))
    return f"GBR fits with r = {r:.3f}"


def stats(folder: Path) -> str:
    """Test algorithms against each other."""
    from dmrifit import leave_one_patient_out, simulate_cohort

    cohort = simulate_cohort("cohort1", 5, difficulty="easy", shape=(12, 12, 2), random_state=0)
    board = leave_one_patient_out(
        cohort, strategies=("m2m",), algorithms=("LR", "ETR"), max_voxels=40, n_jobs=1, random_state=0
    )
    tests = board.statistics()
    assert len(tests), "no tests were made"
    return f"{len(tests)} rows of tests"


def deep(folder: Path) -> str:
    """Train a small network on images and apply it."""
    import dmrifit

    import_all = [importlib.import_module(f"{name}.networks") for name in PACKAGES[1:]]
    assert len(import_all) == 3
    rng = np.random.default_rng(0)
    X = rng.random((60, 9 * 2))
    network = dmrifit.SignalToSignal("CNN", patch_shape=(3, 3, 1), random_state=0).fit(X, X[:, :2])
    assert np.isfinite(network.predict(X)).all()
    dmrifit.save_model(network, folder / "CNN.dmrifit")
    np.testing.assert_allclose(
        dmrifit.load_model(folder / "CNN.dmrifit").predict(X), network.predict(X), rtol=1e-5, atol=1e-6
    )
    return f"torch {importlib.metadata.version('torch')}"


def cluster(folder: Path) -> str:
    """Spread a study over workers, and fit an array whose blocks they load."""
    import dask.array
    import joblib
    from distributed import Client

    import dmrifit

    del folder
    cohort = dmrifit.simulate_cohort("cohort1", 3, shape=(12, 12, 2), random_state=0)
    study = {"strategies": ("s2s",), "algorithms": ("LR",), "controls": False, "random_state": 0}
    signal = np.broadcast_to(1000 * np.exp(-B / 1000), (4, 3, 2, len(B))).astype(np.float32)
    protocol = dmrifit.Protocol(B)
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"):
        with joblib.parallel_config(backend="dask"):
            spread = dmrifit.leave_one_patient_out(cohort, **study)
        blocks = dask.array.from_array(signal, chunks=(4, 3, 1, len(B)))
        maps = dmrifit.fit_image(blocks, protocol, "adc", affine=AFFINE)
    alone = dmrifit.leave_one_patient_out(cohort, **study)
    assert spread.signals.equals(alone.signals)
    np.testing.assert_allclose(np.asarray(maps["ADC"].dataobj), 1, rtol=1e-4)
    return f"distributed {importlib.metadata.version('distributed')}"


def dicom(folder: Path) -> str:
    """Write a DICOM SEG on a synthetic series and read it back."""
    import pydicom
    from pydicom.uid import MRImageStorage, generate_uid

    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    (folder / "series").mkdir()
    for number in range(3):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Synthetic", "synthetic-1", "", ""
        one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20000101", "000000", "1", ""
        one.ReferringPhysicianName, one.Modality, one.SeriesNumber, one.InstanceNumber = "", "MR", 1, number + 1
        one.Rows, one.Columns, one.PixelSpacing, one.SliceThickness = 5, 4, [2, 2], 3
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * number]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.PixelData = bytes(40)
        one.save_as(folder / "series" / f"{number}.dcm", enforce_file_format=True)
    labels = np.zeros((4, 5, 3), np.uint8)
    labels[1, 2:4, 1] = 1
    nib.save(nib.Nifti1Image(labels, np.diag([-2.0, -2.0, 3.0, 1.0])), folder / "labels.nii.gz")
    says("dmrifit", "dicom-seg", folder / "labels.nii.gz", "--source", folder / "series", "--out", folder / "seg.dcm")
    written = pydicom.dcmread(folder / "seg.dcm")
    assert int(written.pixel_array.sum()) == 2
    return f"highdicom {importlib.metadata.version('highdicom')}"


def docs(folder: Path) -> str:
    """Find what builds the documentation."""
    del folder
    found = [importlib.import_module(name).__name__ for name in ("sphinx", "sphinx_gallery", "numpydoc")]
    return ", ".join(found)


PARTS: dict[str, Callable[[Path], str]] = {
    one.__name__: one for one in (base, missing, report, preprocess, boost, stats, deep, cluster, dicom, docs)
}


def synthetic_scan(folder: Path, shape: tuple[int, ...] = (4, 3, 2), noise: np.random.Generator | None = None) -> Path:
    """Write a synthetic scan with S0 = 1000, D = 1 µm²/ms and no kurtosis, its b-values beside it."""
    signal = np.broadcast_to(1000 * np.exp(-B / 1000), (*shape, len(B))).astype(np.float32)
    if noise is not None:
        signal = signal + noise.normal(0, 10, signal.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(signal, AFFINE), folder / "scan.nii.gz")
    (folder / "scan.bval").write_text(" ".join(map(str, B)) + "\n", encoding="utf-8")
    return folder / "scan.nii.gz"


def command(program: str, *words: object) -> tuple[int, str, str]:
    """Run a program in this process; give its exit code and what it said."""
    main = importlib.import_module(f"{PROGRAMS[program]}.cli.program").main
    before, sys.argv = sys.argv, [program, *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stopped:
        return int(stopped.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue(), err.getvalue()


def says(program: str, *words: object) -> str:
    """Run a program that has to succeed; give what it printed."""
    code, out, err = command(program, *words)
    assert code == 0, f"{program} {' '.join(map(str, words))} ended with {code}: {err}"
    return out


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    """Call what needs a library that is not there; give what it says."""
    try:
        call(*arguments)
    except ImportError as error:
        return str(error)
    return "nothing was missing"


def main(names: list[str]) -> None:
    import dmrifit

    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            print(f"    {name}: {PARTS[name](Path(folder))}", flush=True)
    print(f"    dmrifit {dmrifit.__version__} of {Path(dmrifit.__file__).parent}")


if __name__ == "__main__":
    main(sys.argv[1:])
