"""Boxes repeated on a later scan: the three answers, headers, and what is refused."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
from moved_heads import AFFINE, SHAPE, head_signals, moved

from placement import Scene, Voxel, repeat_voxel
from placement.exchange.prescription import describe_placement
from placement.exchange.repeats import (
    CHANGED,
    OTHER_HEAD,
    REPEATED,
    doubtful_session,
    frame_of,
    validity,
)
from placement.exchange.voxel_files import VoxelFile

pytest.importorskip("SimpleITK")

BOX = Voxel((10, -15, 12), (20, 25, 22), (10, -15, 20))


def write(signals, path, affine=AFFINE, **header):
    """Write a scan, and a sidecar where a header is given."""
    nib.save(nib.Nifti1Image(np.asarray(signals, np.float32), affine), path)
    if header:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(header))
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two scans of one head, and the motion."""
    folder = tmp_path_factory.mktemp("pair")
    signals = head_signals(0)
    later, truth = moved(signals, (10, -8, 12), (9, -12, 7))
    return write(signals, folder / "old.nii.gz"), write(later.get_fdata(), folder / "new.nii.gz"), truth


def test_box_is_repeated_where_the_head_went(pair):
    old, new, truth = pair
    repeat = repeat_voxel(BOX, old, new)
    assert repeat.answer == REPEATED
    assert repeat.reliable
    assert repeat.flags == ()
    assert any("no headers name the patients" in note for note in repeat.notes)
    assert repeat.voxel.dice(BOX.transform(truth)) > 0.98
    np.testing.assert_array_equal(repeat.voxel.size, BOX.size)
    np.testing.assert_allclose(repeat.matrix, truth, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.3, 1.5], ids=["cavity", "enhancement"])
def test_changed_tissue_in_the_box_is_told(gain):
    signals = head_signals(0)
    places = np.moveaxis(np.indices(SHAPE), 0, -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    lesion = np.linalg.norm(places - BOX.center - [8, 0, 0], axis=-1) < 16
    changed = np.where(lesion, 90 * gain, signals).astype(np.float32)
    later, truth = moved(changed, (6, 4, -9), (5, 5, -6))
    repeat = repeat_voxel(BOX, nib.Nifti1Image(signals, AFFINE), later)
    assert repeat.answer == CHANGED
    assert repeat.reliable
    assert any("place the box anew if the tumor moved, grew or was removed" in flag for flag in repeat.flags)
    assert repeat.voxel.dice(BOX.transform(truth)) > 0.98
    elsewhere = Voxel((-35, 25, 0), (20, 20, 20))
    assert repeat_voxel(elsewhere, nib.Nifti1Image(signals, AFFINE), later).answer == REPEATED


@pytest.mark.slow
def test_another_head_is_not_reliable(pair, tmp_path):
    old, _, _ = pair
    other = write(head_signals(3), tmp_path / "other.nii.gz")
    repeat = repeat_voxel(BOX, old, other)
    assert repeat.answer == OTHER_HEAD
    assert not repeat.reliable
    assert any("check the patient, the contrast" in flag for flag in repeat.flags)


def test_headers_of_two_patients_outweigh_alike_heads(pair, tmp_path):
    signals = nib.load(pair[0]).get_fdata()
    old = write(signals, tmp_path / "old.nii.gz", PatientID="A1", FrameOfReferenceUID="1.2")
    new = write(signals, tmp_path / "new.nii.gz", PatientID="B2")
    assert frame_of(old) == "1.2"
    repeat = repeat_voxel(BOX, old, new)
    assert repeat.answer == OTHER_HEAD
    assert not repeat.reliable
    assert "the headers name two patients (PatientID): check the scans" in repeat.flags
    # Names stay out of messages.
    assert "A1" not in " ".join(repeat.flags)
    write(signals, new, PatientID="A1")
    repeat = repeat_voxel(BOX, old, new)
    assert (repeat.answer, repeat.flags, repeat.notes) == (REPEATED, (), ())


def test_box_outside_either_scan_is_refused(pair):
    old, _, _ = pair
    signals = head_signals(0)
    with pytest.raises(ValueError, match=r"at 300, 0, 0 mm .* lies outside .*old.nii.gz; give the scan of the session"):
        repeat_voxel(Voxel((300, -0.01, 0), (20, 20, 20)), old, old)
    shifted = AFFINE.copy()
    shifted[2, 3] += 2 * 44
    cut = nib.Nifti1Image(signals[:, :, 44:], shifted)
    low = Voxel((0, 0, -35), (20, 20, 20))
    with pytest.raises(ValueError, match="lies outside the image; scan the part of the head that holds the box"):
        repeat_voxel(low, old, cut)


@pytest.mark.slow
def test_surroundings_that_the_later_scan_cuts_off_are_flagged(pair):
    shifted = AFFINE.copy()
    shifted[2, 3] += 2 * 26
    cut = nib.Nifti1Image(head_signals(0)[:, :, 26:], shifted)
    repeat = repeat_voxel(Voxel((0, 0, -4), (20, 20, 20)), pair[0], cut)
    assert repeat.shown_share < 0.9
    assert any("were not compared: look at its edge" in flag for flag in repeat.flags)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shift", "turn"])
def test_errors_of_two_millimeters_are_found_by_self_consistency(pair, monkeypatch, kind):
    from dmrifit.imaging import rigid_alignment

    old, new, _ = pair
    align = rigid_alignment._best_aligned

    def misaligned(fixed, moving):
        matrix, turn = align(fixed, moving)
        error = np.eye(4)
        if kind == "shift":
            error[:3, 3] = (1.2, -1.2, 1.1)
        else:
            # 3 degrees about the box's far side: 2 mm at the box.
            error[:3, :3] = [[np.cos(0.05), -np.sin(0.05), 0], [np.sin(0.05), np.cos(0.05), 0], [0, 0, 1]]
            center = matrix[:3, :3] @ (BOX.center + np.array([30, 25, 0])) + matrix[:3, 3]
            error[:3, 3] = center - error[:3, :3] @ center
        return error @ matrix, turn

    monkeypatch.setattr(rigid_alignment, "_best_aligned", misaligned)
    repeat = repeat_voxel(BOX, old, new)
    assert repeat.disagreement > 1.5
    assert not repeat.reliable
    assert any("registrations place the box" in flag for flag in repeat.flags)


@pytest.mark.parametrize(
    ("record", "sidecar", "doubt"),
    [
        ({}, {}, "neither a patient nor a frame"),
        ({"date": "20260301"}, {"AcquisitionDate": "20260301"}, "neither a patient nor a frame"),
        ({"patient": {"PatientID": "Anonymous"}}, {"PatientID": "anonymous"}, "neither a patient nor a frame"),
        ({"patient": {"PatientSex": "F"}}, {"PatientSex": "F"}, "neither a patient nor a frame"),
        ({"patient": {"PatientName": "Doe^Jane"}}, {"PatientName": "DOE JANE"}, ""),
        ({"patient": {"PatientBirthDate": "1970.02.03"}}, {"PatientBirthDate": "1970-02-03"}, ""),
        ({"patient": {"PatientName": "Doe^Jane"}}, {"PatientName": "Roe^Max"}, r"two patients \(PatientName\)"),
        ({"patient": {"PatientName": "A", "PatientID": "1"}}, {"PatientName": "A", "PatientID": "2"}, "two patients"),
        ({"frame": "1.2"}, {"FrameOfReferenceUID": "1.2"}, ""),
        ({"frame": "1.2"}, {"FrameOfReferenceUID": "1.3"}, "two frames of reference"),
        (
            {"patient": {"PatientID": "7"}, "date": "2026.03.01 10:20:30"},
            {"PatientID": "7", "AcquisitionDateTime": "2026-03-04T10:11:12"}, "two days .2026-03-01 and 2026-03-04",
        ),
    ],
)
def test_sessions_of_boxes_and_images_are_compared(tmp_path, record, sidecar, doubt):
    image = tmp_path / "t1.nii.gz"
    (tmp_path / "t1.json").write_text(json.dumps(sidecar))
    told = doubtful_session(VoxelFile(BOX, "Philips SPAR", **record), image)
    assert re.search(doubt, told)
    assert bool(told) == bool(doubt)
    # Names stay out of messages.
    assert "Doe" not in told


def test_numbers_are_valid_in_the_frame_that_the_sidecar_of_the_image_names(tmp_path):
    image = tmp_path / "t1.nii.gz"
    unknown = "(frame of reference unknown, date unknown)"
    assert unknown in validity("t1.nii.gz", None)
    assert unknown in validity("t1.nii.gz", image)
    (tmp_path / "t1.json").write_text('{"FrameOfReferenceUID": "1.2.3", "AcquisitionDate": "20260301"}')
    assert "t1.nii.gz (frame of reference 1.2.3, date 2026-03-01); after" in validity("t1.nii.gz", image)
    nib.save(nib.Nifti1Image(np.pad(np.ones((4, 4, 4), np.uint8), 4), np.eye(4)), image)
    scene = Scene.read(image)
    content = describe_placement(Voxel((5.5, 5.5, 5.5), (3, 3, 3)), scene)
    assert "t1.nii.gz (frame of reference 1.2.3, date 2026-03-01); after" in content["valid"]
