"""Boxes are read from scanners' files where other readers find them, and refused where unsure."""

import csv
import json
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dmrifit.io.nifti import use_form
from placement import Voxel, read_voxel
from placement.exchange.vendor_texts import philips_text
from placement.exchange.voxel_files import read_voxel_file, siemens_directions

SPAR = (Path(__file__).parent / "data" / "box.spar").read_text(encoding="utf-8")


def farthest_corner(voxel, corners):
    """Measure how far the corner of a box lies that fits worst, whatever their order."""
    return np.linalg.norm(voxel.corners[:, None] - corners[None], axis=2).min(axis=1).max()


@pytest.fixture(scope="module")
def boxes(data_dir):
    return data_dir / "mrs_boxes"


def test_boxes_of_all_scanners_equal_the_reference(boxes):
    read = set()
    with open(boxes / "reference_boxes.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["reader"].startswith("suspect"):
                continue
            voxel = read_voxel(boxes / row["file"])
            corners = np.array([[float(row[f"corner{i}_{axis}"]) for axis in "xyz"] for i in range(1, 9)])
            assert farthest_corner(voxel, corners) < 1e-3, row["file"]
            sides = np.array([float(row[f"side_{i}"]) for i in (1, 2, 3)])
            np.testing.assert_allclose(voxel.size, sides, atol=1e-4)
            directions = np.array([[float(row[f"a{i}{j}"]) for j in (1, 2, 3)] for i in (1, 2, 3)]) / sides
            cosines = np.abs(np.sum(directions * voxel.rotation, axis=0))
            assert np.degrees(np.arccos(np.minimum(cosines, 1))).max() < 0.01
            read.add(row["file"].rpartition(".")[2].lower())
    assert read == {"spar", "rda", "gz", "ima", "dcm"}


def test_what_files_say_of_the_patient_the_date_and_the_frame_of_reference_is_kept(boxes, tmp_path):
    for name in ("siemens_svs_30.rda", "siemens_svs_30.IMA"):
        scan = read_voxel_file(boxes / name)
        assert (scan.patient["PatientName"], scan.patient["PatientID"], scan.date) == ("445", "Anonymous", "20160429")
    assert scan.source == "Siemens DICOM"
    assert scan.frame.startswith("1.3.12.2.1107")
    assert read_voxel_file(boxes / "nifti_mrs_ref.nii.gz").patient["PatientName"] == "F7T_2019_005_003"
    path = tmp_path / "box.SPAR"
    path.write_text("patient_name : Doe^Jane\npatient_birth_date : 1970.02.03\n" + SPAR)
    record = read_voxel_file(path)
    assert dict(record.patient) == {"PatientName": "Doe^Jane", "PatientBirthDate": "1970.02.03"}


def test_spar_files_and_prescriptions_give_the_box_of_their_angles_in_degrees(tmp_path):
    path = tmp_path / "box.SPAR"
    path.write_text(SPAR)
    voxel = read_voxel(path)
    turn = Rotation.from_euler("XYZ", [-35.1, 2.5, -2.1], degrees=True).as_matrix()
    np.testing.assert_allclose(voxel.rotation, turn, atol=1e-12)
    np.testing.assert_allclose(voxel.center, [1.5, -35.6, 30.2])
    np.testing.assert_allclose(voxel.size, [25, 40, 30])
    voxel = Voxel((1, 2, 3), (20, 25, 30), (0.5, -1.5, 2.0))
    path = prescription(tmp_path / "prescription.json", voxel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_voxel(path)
    np.testing.assert_allclose(read.angles, voxel.angles, atol=1e-9)


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        ("head_first", "feet_first", "head first, supine"), ('"supine"', '"prone"', "prone.*head first, supine"),
        ("lr_size : 25", "lr_size : 0", "0 × 40 × 30 mm; a side of 0 mm"),
        ("35.6", "35,6", "'35,6'; write decimals with a point"), ("volumes : 1", "volumes : 2", "2 boxes"),
        ("volumes : 1", "ap_size : 12", "ap_size is both 12 and 40: it holds several boxes"),
        ("volumes : 1", "lr_angulation : 80", "several boxes"),
        ('patient_position : "head_first"', "", "lacks patient_position; export it again"),
        ("lr_angulation : 35.1", "lr_angulation : 1e300", "more than a full turn"),
        ("lr_size : 25", "lr_size : 2_5", "it must be a number"),
        ("cc_angulation : -2.1", "cc_angulation : nan", "it must be a number"), ('"no"', '"yes"', "MRSI"),
        ("volumes : 1", "dim2_pnts : 16", r"dim2_pnts is 16; .*\(MRSI\) is not a single voxel"),
        ("lr_size : 25", "lr_size : 301", "longest side is 301 mm, more than any head"),
        ("PatientPosition: HFS", "PatientPosition: FFS", "FFS; .*head first"),
        ("PatientPosition: HFS", "PatientPosition: HFP", "HFP"),
        ("NumberOfRows: 1", "NumberOfRows: 16", "NumberOfRows is 16; .*MRSI"),
        ("VOIThickness: 20.000000", "VOIThickness: 0.000000", "side of 0 mm"),
        ("VOIPositionSag: 41.602906", "VOIPositionSag: 41,602906", "decimals with a point"),
        ("RowVector[1]: -0.251409", "RowVector[1]: 0.951409", "must be a rotation"),
        ("VOIPhaseFOV: 40.000000", "VOIPhaseFOV: 40.000000\nVOIPhaseFOV: 4.000000", "several boxes"),
        (">>> End of header <<<", "", "does not end; it was cut: export it again"),
    ],
)
def test_texts_that_determine_no_single_box_are_refused(boxes, tmp_path, line, change, message):
    rda = (boxes / "siemens_svs_30.rda").read_bytes()
    kind, content = ("spar", SPAR.encode()) if line.encode() not in rda else ("rda", rda)
    path = tmp_path / f"box.{kind}"
    assert line.encode() in content
    path.write_bytes(content.replace(line.encode(), change.encode()))
    with pytest.raises(ValueError, match=message) as caught:
        read_voxel(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("scale", "doubted"), [(np.pi / 180, True), (1.0, False), (0.0, False)])
def test_angles_that_may_be_radians_are_doubted(tmp_path, scale, doubted):
    angles = scale * np.array([35.1, -2.5, 12.0])
    path = tmp_path / "box.json"
    voxel = Voxel((1, 2, 3), (20, 25, 30), angles)
    path.write_text(voxel.to_json())
    (tmp_path / "voxel_philips.txt").write_text(philips_text(voxel))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_voxel(path)
        read_voxel(tmp_path / "voxel_philips.txt")
    assert ["may be radians" in str(one.message) for one in caught] == [True] * doubted


def prescription(path, voxel, **more):
    """Write what a prescription says of the pose of a box."""
    pose = json.loads(voxel.to_json())
    path.write_text(json.dumps({"format": "placement prescription", "ras": pose, "size_mm": pose["size_mm"], **more}))
    return path


def in_protocol(before, after):
    def change(scan):
        element = scan[0x0029, 0x1120]
        assert before.encode() in element.value
        element.value = element.value.replace(before.encode(), after.encode())

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scan: setattr(scan, "PatientPosition", "FFS"), "FFS"),
        (lambda scan: setattr(scan, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.4"), "no spectrum"),
        (in_protocol("sSpecPara.sVoI.dThickness\t = \t20.0", "sSpecPara.sVoI.dThickness\t = \t0.0"), "side of 0 mm"),
        (in_protocol("sSpecPara.lFinalMatrixSizeSlice\t = \t1", "sSpecPara.lFinalMatrixSizeSlice\t = \t8"), "MRSI"),
        (in_protocol("dInPlaneRot\t = \t-2.8", "dInPlaneRot\t = \t-28"), "more than a full turn"),
        (in_protocol("sNormal.dTra\t = \t0.9", "sNormal.dTra\t = \t9.0"), "no unit vector"),
        (lambda scan: setattr(scan[0x0029, 0x1110], "value", b"SV10" + b"x" * 40), "cannot be read"),
        (in_protocol("sPosition.dSag\t = \t41.6", "sPosition.dSag\t = \t83.2"), "two headers"),
        (in_protocol("sSpecPara.sVoI", "sSpecPara.sXoI"), "no Siemens protocol"),
        (lambda scan: scan.pop((0x0029, 0x1120)), "no Siemens protocol"),
    ],
)
def test_dicom_files_that_determine_no_single_box_are_refused(boxes, tmp_path, change, message):
    import pydicom

    scan = pydicom.dcmread(boxes / "siemens_svs_30.IMA")
    change(scan)
    scan.save_as(tmp_path / "box.IMA")
    with pytest.raises(ValueError, match=message):
        read_voxel(tmp_path / "box.IMA")


@pytest.mark.parametrize("length", [200, 5_000, 60_000, 90_000])
def test_dicom_files_that_were_cut_are_refused(boxes, tmp_path, length):
    path = tmp_path / "cut.dcm"
    path.write_bytes((boxes / "siemens_svs_xa60.dcm").read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cut\.dcm"):
        read_voxel(path)


def nifti(path, shape, affine, *, sform=1, qform=0):
    image = nib.Nifti2Image(np.zeros(shape, np.complex64), None)
    image.set_sform(affine, code=sform)
    image.set_qform(affine if qform else None, code=qform)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("hand", [1, -1])
def test_nifti_mrs_is_its_affine_by_either_hand(tmp_path, hand):
    expected = Voxel((5, 6, -7), (20, 25, 15), (10, -20, 30))
    affine = expected.affine @ np.diag([1, 1, hand, 1])
    voxel = read_voxel(nifti(tmp_path / "box.nii.gz", (1, 1, 1, 64), affine))
    assert voxel.dice(expected) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(voxel.size, expected.size, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "codes", "message"),
    [((1, 1, 1, 8), {"sform": 0}, "neither an sform nor a qform"), ((16, 16, 1, 8), {}, "16 × 16 × 1 voxels; an image or a grid .*MRSI")],
)
def test_nifti_files_without_position_or_of_many_voxels_are_refused(tmp_path, shape, codes, message):
    path = nifti(tmp_path / "box.nii.gz", shape, np.diag([20, 20, 20, 1.0]), **codes)
    with pytest.raises(ValueError, match=message):
        read_voxel(path)


def test_boxes_lie_in_the_images_that_they_were_placed_in_alone(tmp_path):
    roles = ("Tumor", "Image", "New", "Old", "Box", "Exclude", "Exclude 2", "Brain")
    sources = {role: {"Name": f"{role}.nii.gz", "SHA256": role} for role in roles}
    path = prescription(tmp_path / "repeat.json", Voxel((0, 0, 0), (20, 20, 20)), sources=sources)
    assert read_voxel_file(path).placed_in == {role: f"{role}.nii.gz" for role in ("Tumor", "Image", "New")}


def test_files_without_a_known_suffix_are_told_by_their_content(boxes, tmp_path):
    for name in ("siemens_svs_30.rda", "siemens_svs_30.IMA", "spar/UnEdited__sub-01_ses-01_press__sub-01_PRESS_35_act.spar"):
        plain = tmp_path / "box"
        shutil.copy(boxes / name, plain)
        assert read_voxel(plain) == read_voxel(boxes / name)


def test_nifti_files_of_two_positions_need_a_choice(tmp_path):
    affine = Voxel((5, 6, -7), (20, 25, 15), (10, -20, 30)).affine
    path = nifti(tmp_path / "box.nii.gz", (1, 1, 1, 8), affine)
    image = nib.load(path)
    moved = affine.copy()
    moved[0, 3] += 12
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "two.nii.gz")
    with pytest.raises(ValueError, match=r"two.nii.gz: its sform and qform place voxels up to 12 mm apart"):
        read_voxel(tmp_path / "two.nii.gz")
    with use_form("qform"), pytest.warns(UserWarning, match="qform is used"):
        assert read_voxel(tmp_path / "two.nii.gz").center[0] == pytest.approx(17, abs=1e-4)


def test_nifti_files_in_metres_are_refused(tmp_path):
    path = nifti(tmp_path / "box.nii.gz", (1, 1, 1, 8), np.diag([0.02, 0.02, 0.02, 1]))
    image = nib.load(path)
    image.header.set_xyzt_units("meter")
    nib.save(nib.Nifti2Image(np.asarray(image.dataobj), image.affine, image.header), tmp_path / "metres.nii.gz")
    with pytest.raises(ValueError, match="states its lengths in m"):
        read_voxel(tmp_path / "metres.nii.gz")


def test_directions_equal_the_vectors_of_a_scan(boxes):
    text = (boxes / "siemens_svs_30.rda").read_bytes().decode("latin-1")
    fields = dict(line.split(": ", 1) for line in text.partition(">>> End")[0].splitlines() if ": " in line)
    normal = [float(fields[f"VOINormal{axis}"]) for axis in ("Sag", "Cor", "Tra")]
    directions = siemens_directions(normal, float(fields["VOIRotationInPlane"]))
    for vector, column in (("RowVector", 0), ("ColumnVector", 1)):
        expected = [float(fields[f"{vector}[{i}]"]) for i in range(3)]
        np.testing.assert_allclose(directions[:, column], expected, atol=2e-6)
