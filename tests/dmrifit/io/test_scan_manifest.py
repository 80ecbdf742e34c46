"""Scans in several files, joined by a table."""

import json

import nibabel as nib
import numpy as np
import pytest

from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import fit_image
from dmrifit.io.scan_manifest import read_manifest

FULL = Protocol.preset("cohort1")
MODEL = MODELS["t2-ivim-kurtosis"]
AFFINE = np.diag([-2.0, 2, 5, 1])


@pytest.fixture(scope="module")
def signals():
    rng = np.random.default_rng(0)
    parameters = np.array([500, 0.15, 30, 200, 1.1, 0.8, 70]) * rng.uniform(0.9, 1.1, (24, 7))
    return MODEL.signal(parameters, FULL).reshape(2, 3, 4, 21).astype(np.float32)


@pytest.fixture
def by_echo(tmp_path, signals):
    """A table of three images, one for each echo time, which is in a file, a number and a sidecar."""
    rows = ["image\tbval\tte"]
    for i, (te, written) in enumerate(((93, "te.txt"), (105, "105"), (120, "n/a"))):
        name = f"sub-01_echo-{i + 1}_dwi"
        columns = FULL.te == te
        nib.save(nib.Nifti1Image(signals[..., columns], AFFINE), tmp_path / f"{name}.nii{'.gz' if i else ''}")
        np.savetxt(tmp_path / f"{name}.bval", FULL.b[columns][None], fmt="%g")
        rows.append(f"{name}.nii{'.gz' if i else ''}\tn/a\t{written}")
    (tmp_path / "te.txt").write_text("93\n")
    (tmp_path / "sub-01_echo-3_dwi.json").write_text(json.dumps({"EchoTime": 0.12}))
    (tmp_path / "scan.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path / "scan.tsv"


def data(image):
    return np.asanyarray(image.dataobj)


def test_images_of_several_echo_times_are_fitted_as_one_scan(by_echo, signals, tmp_path):
    manifest = read_manifest(by_echo)
    assert manifest.protocol == FULL
    assert [path.name for path in manifest.images] == [
        "sub-01_echo-1_dwi.nii",
        "sub-01_echo-2_dwi.nii.gz",
        "sub-01_echo-3_dwi.nii.gz",
    ]
    maps = fit_image(manifest.images, manifest.protocol, MODEL, out=tmp_path / "out")
    expected = fit_voxels(signals.reshape(-1, 21), FULL, MODEL)
    np.testing.assert_array_equal(data(maps["T2t"]).ravel(), expected["T2t"].astype(np.float32))
    described = json.loads((tmp_path / "out" / "sub-01_model-t2ivimkurtosis_dwimap.json").read_text(encoding="utf-8"))
    assert [described["Sources"][f"Image {i}"]["Name"] for i in (1, 2, 3)] == [path.name for path in manifest.images]


def test_the_order_of_rows_is_the_order_of_measurements(by_echo):
    manifest = read_manifest(by_echo)
    a = fit_image(manifest.images, manifest.protocol, MODEL)
    header, *rows = by_echo.read_text().splitlines()
    by_echo.write_text("\n".join([header, *rows[::-1]]))
    manifest = read_manifest(by_echo)
    order = np.concatenate([np.flatnonzero(FULL.te == te) for te in (120, 105, 93)])
    assert manifest.protocol == FULL.take(order)
    b = fit_image(manifest.images, manifest.protocol, MODEL)
    np.testing.assert_allclose(data(a["T2t"]), data(b["T2t"]), rtol=1e-3)


def test_single_volumes_with_a_number_each_are_a_scan(tmp_path, signals):
    lines = ["image,bval,te"]
    for i in range(7):
        nib.save(nib.Nifti1Image(signals[..., i], AFFINE), tmp_path / f"b{i}.nii")
        lines.append(f"b{i}.nii,{FULL.b[i]:g},93")
    (tmp_path / "scan.csv").write_text("\n".join(lines))
    manifest = read_manifest(tmp_path / "scan.csv")
    assert manifest.protocol == FULL.take(range(7))
    maps = fit_image(manifest.images, manifest.protocol, "kurtosis")
    whole = fit_image(nib.Nifti1Image(signals[..., :7], AFFINE), manifest.protocol, "kurtosis")
    np.testing.assert_array_equal(data(maps["K"]), data(whole["K"]))


def test_directions_are_kept_when_all_images_have_them(data_dir, tmp_path):
    folder = data_dir / "dipy_small_dwi"
    loaded = nib.load(folder / "small_101D.nii.gz")
    whole = Protocol.read(folder / "small_101D.bval", 80, folder / "small_101D.bvec")
    for name, part in (("low", slice(0, 50)), ("high", slice(50, 102))):
        nib.save(loaded.slicer[..., part], tmp_path / f"{name}.nii.gz")
        np.savetxt(tmp_path / f"{name}.bval", whole.b[part])
        np.savetxt(tmp_path / f"{name}.bvec", whole.directions[part].T)
    (tmp_path / "scan.tsv").write_text("image\tte\nlow.nii.gz\t80\nhigh.nii.gz\t80\n")
    manifest = read_manifest(tmp_path / "scan.tsv")
    np.testing.assert_allclose(manifest.protocol.directions, whole.directions, atol=1e-9)
    joined = fit_image(manifest.images, manifest.protocol, "kurtosis")
    alone = fit_image(folder / "small_101D.nii.gz", whole, "kurtosis")
    np.testing.assert_array_equal(data(joined["D"]), data(alone["D"]))
    (tmp_path / "high.bvec").unlink()
    assert read_manifest(tmp_path / "scan.tsv").protocol.directions is None


def test_an_image_without_b_values_is_named_with_its_row(by_echo, tmp_path):
    (tmp_path / "sub-01_echo-2_dwi.bval").unlink()
    with pytest.raises(ValueError, match=r"scan\.tsv, row 3: no b-values"):
        read_manifest(by_echo)


def test_images_on_different_grids_are_refused_by_name(by_echo, tmp_path, signals):
    path = tmp_path / "sub-01_echo-2_dwi.nii.gz"
    nib.save(nib.Nifti1Image(signals[..., 7:14], AFFINE @ np.diag([-1, 1, 1, 1])), path)
    manifest = read_manifest(by_echo)
    with pytest.raises(ValueError, match=r"echo-2_dwi\.nii\.gz and .*echo-1_dwi\.nii .*apart"):
        fit_image(manifest.images, manifest.protocol, MODEL)
    nib.save(nib.Nifti1Image(signals[:1, ..., 7:14], AFFINE), path)
    with pytest.raises(ValueError, match=r"echo-2_dwi\.nii\.gz has 1 × 3 × 4 voxels"):
        fit_image(manifest.images, manifest.protocol, MODEL)
    nib.save(nib.Nifti1Image(signals[..., 7:14], AFFINE), path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"echo-2_dwi\.nii\.gz.*(damaged|cut off)"):
        fit_image(manifest.images, manifest.protocol, MODEL, out=tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_an_image_that_is_named_in_two_ways_is_refused(by_echo, tmp_path):
    (tmp_path / "sub").mkdir()
    header, first, *rows = by_echo.read_text().splitlines()
    cells = first.split("\t")
    again = "\t".join([f"sub/../{cells[0]}", *cells[1:]])
    by_echo.write_text("\n".join([header, first, *rows, again]))
    with pytest.raises(ValueError, match=r"row 5: image 'sub/\.\./.*' stands in row 2, too; name each image once"):
        read_manifest(by_echo)


@pytest.mark.parametrize(("largest", "doubted"), [(2.5, True), (100.5, False)])
def test_only_b_values_as_small_as_those_in_other_units_are_doubted(tmp_path, largest, doubted, recwarn):
    for name in ("low", "high"):
        nib.save(nib.Nifti1Image(np.ones((2, 2, 2, 3), np.float32), AFFINE), tmp_path / f"{name}.nii")
    (tmp_path / "low.bval").write_text(f"0 1.5 {largest}")
    (tmp_path / "high.bval").write_text("0 500 1000")
    (tmp_path / "scan.tsv").write_text("image\nlow.nii\nhigh.nii\n")
    read_manifest(tmp_path / "scan.tsv")
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == doubted
    assert all(f"the largest b-value is {largest} s/mm²; if they are in ms/µm²" in text for text in messages)
