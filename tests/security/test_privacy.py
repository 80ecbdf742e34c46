"""Of an input's header nothing but geometry is written anywhere, and no folder's name either."""

import gzip
import io
import zipfile
from importlib import import_module

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension

from dmrifit.io.nifti import spatial_header

#: What a scanner or converter could have written, and a folder of the user's; short fields hold the start.
FIELDS = {
    "descrip": b"PLANTED Doe^Jane 1962-03-04",
    "intent_name": b"PLANTED^Jane",
    "db_name": b"PLANTED^Doe",
    "aux_file": b"PLANTED_Doe_Jane",
    "data_type": b"PLANTED",
}
FOLDER = "PLANTED_folder_of_jane"


def plant_in(folder):
    for path in folder.rglob("*.nii.gz"):
        plant(path)


def plant(path):
    """Write a name into every field of a header that has room for one."""
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    for key, text in FIELDS.items():
        if key in image.header:
            image.header[key] = text
    image.header.extensions.append(Nifti1Extension("comment", b"PLANTED in an extension"))
    planted = nib.Nifti1Image(values, image.affine, image.header)
    nib.save(planted, path)
    stored = path.read_bytes()
    stored = gzip.decompress(stored) if path.suffix == ".gz" else stored
    assert stored.count(b"PLANTED") >= 5


def contents(path):
    """Give what is in a file, unpacked: the file itself, what gzip holds, members of archives and their members."""
    yield path.read_bytes()
    if path.suffix == ".gz":
        yield gzip.decompress(path.read_bytes())
    if zipfile.is_zipfile(path):
        yield from members(zipfile.ZipFile(path))


def members(archive):
    for name in archive.namelist():
        content = archive.read(name)
        yield name.encode() + content
        if zipfile.is_zipfile(io.BytesIO(content)):
            yield from members(zipfile.ZipFile(io.BytesIO(content)))


def assert_nothing_planted(*folders, least=3):
    """Search every byte that was written."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) >= least
    for path in files:
        assert "PLANTED" not in path.name
        for content in contents(path):
            where = content.find(b"PLANTED")
            assert where < 0, (path.name, content[max(0, where - 80) : where + 40])


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture
def run(run_main):
    """Run a command of a package in this process, which has to succeed."""

    def call(package, *arguments):
        code, _, error = run_main(import_module(f"{package}.cli.program").main, package, *arguments)
        assert code == 0, error

    return call


def scan_in(folder, name="sub-01_dwi"):
    from dmrifit import MODELS, Protocol

    protocol = Protocol([0, 200, 500, 1000], te=80)
    signals = MODELS["adc"].signal(np.random.default_rng(0).uniform([100, 0.3], [900, 2], (150, 2)), protocol)
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(signals.reshape(6, 5, 5, 4).astype(np.float32), np.diag([2.0, 2, 4, 1])), path)
    np.savetxt(folder / f"{name}.bval", protocol.b[None], fmt="%g")
    plant(path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
def test_a_spatial_header_places_voxels_as_before_and_says_nothing_else(kind):
    header = kind()
    header.set_data_shape((4, 5, 6, 7))
    header.set_qform(np.array([[0, 2, 0, 1], [2, 0, 0, 2], [0, 0, -3, 3], [0, 0, 0, 1.0]]), code=1)
    header.set_sform(np.diag([2.0, 2, 3, 1]), code=3)
    header.set_xyzt_units("mm", "sec")
    header.set_dim_info(freq=1, phase=0, slice=2)
    for key, text in FIELDS.items():
        if key in header:
            header[key] = text
    plain = spatial_header(header)
    assert b"PLANTED" not in plain.binaryblock
    assert plain.get_data_shape() == (4, 5, 6, 7)
    for one, other in ((plain.get_qform(coded=True), header.get_qform(coded=True)),
                       (plain.get_sform(coded=True), header.get_sform(coded=True))):  # fmt: skip
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1] == other[1]
    assert plain.get_zooms() == header.get_zooms()
    assert plain.get_xyzt_units() == header.get_xyzt_units()
    assert plain.get_dim_info() == header.get_dim_info()


def test_maps_of_a_fit_say_nothing_of_the_header_and_the_folder(inputs, out, run):
    run("dmrifit", "fit", scan_in(inputs), "--model", "adc", "--out", out, "--no-quicklook")
    assert_nothing_planted(out, least=6)
    adc = nib.load(next(out.glob("*param-ADC_dwimap.nii.gz")))
    np.testing.assert_array_equal(adc.affine, np.diag([2.0, 2, 4, 1]))


@pytest.mark.slow
def test_what_commands_on_scans_write_says_nothing_of_headers_and_folders(inputs, out, run):
    pytest.importorskip("dipy")
    scan = scan_in(inputs)
    mask = inputs / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((6, 5, 5), np.uint8), np.diag([2.0, 2, 4, 1])), mask)
    plant(mask)
    run("dmrifit", "preprocess", scan, "--te", 80, "--steps", "denoise", "--mask", mask, "--out", out / "clean")
    run("dmrifit", "fit", scan, "--model", "adc", "--mask", mask, "--out", out / "maps")
    run("dmrifit", "roi", out / "maps", "--labels", mask, "--out", out / "roi.csv")
    assert_nothing_planted(out, least=12)


@pytest.mark.slow
def test_what_a_study_writes_says_nothing_of_headers_and_folders(inputs, out, run):
    run("dmrifit", "simulate", "--out", inputs, "--patients", 3, "--shape", "16,16,3", "--same-protocol", "--seed", 4)
    plant_in(inputs)
    table = inputs / "participants.tsv"
    run("dmrifit", "benchmark", table, "--out", out / "study", "--algorithms", "LR", "--max-voxels", 40)
    run("dmrifit", "train", table, "--algorithm", "LR", "--max-voxels", 40, "--out", out / "model.dmrifit")
    scan = next(inputs.rglob("*dwi.nii.gz"))
    run("dmrifit", "predict", out / "model.dmrifit", scan, "--out", out / "predicted", "--signals")
    assert_nothing_planted(out, least=10)


@pytest.mark.slow
def test_what_is_written_of_placed_voxels_says_nothing_of_headers_and_folders(inputs, out, run):
    run("placement", "simulate", 2, "--out", inputs, "--spacing", 6, "--exclude")
    plant_in(inputs)
    run("placement", "place", inputs / "cases.tsv", "--out", out / "placed")
    run(*("placement", "evaluate", inputs / "cases.tsv", inputs / "experts.tsv"),
        *("--placements", f"one={out / 'placed' / 'placements.tsv'}", "--out", out / "tables"))  # fmt: skip
    assert_nothing_planted(out, least=12)


@pytest.mark.slow
def test_what_is_written_of_anomalies_says_nothing_of_headers_and_folders(inputs, out, run):
    run("anomaly", "simulate", 4, 1, "--out", inputs, "--directions", 8, "--shape", "20,24,16", "--spacing", 8)
    plant_in(inputs)
    model = out / "z.dmrifit"
    words = ("--detector", "gaussian", "--set", "side=low", "--calibration", 2)
    run("anomaly", "train", inputs / "healthy.tsv", "--out", model, *words)
    run("anomaly", "detect", model, inputs / "gliomas.tsv", "--out", out / "found")
    found = f"z={out / 'found' / 'detections.tsv'}"
    run("anomaly", "evaluate", inputs / "gliomas.tsv", "--detections", found, "--out", out / "compared")
    assert_nothing_planted(out, least=10)


@pytest.mark.slow
@pytest.mark.deep
def test_what_is_written_of_segmentations_says_nothing_of_headers_and_folders(inputs, out, run):
    pytest.importorskip("torch")
    run("metastasis", "simulate", 2, "--out", inputs, "--shape", "36,36,36", "--spacing", 2.5)
    plant_in(inputs)
    table, model = inputs / "cases.tsv", out / "model.dmrifit"
    tiny = ("--widths", "2,2", "--epochs", 1, "--segments-per-epoch", 4, "--batch-size", 2, "--device", "cpu")
    run("metastasis", "train", table, "--out", model, *tiny, "--checkpoint", out / "checkpoint")
    run("metastasis", "segment", model, table, "--out", out / "found")
    run(*("metastasis", "evaluate", table, "--segmentations", f"one={out / 'found' / 'segmentations.tsv'}"),
        *("--out", out / "compared"))  # fmt: skip
    assert_nothing_planted(out, least=10)
