"""Diffusion scans that a BIDS folder holds."""

import json

import nibabel as nib
import numpy as np
import pytest

from dmrifit.cohort.bids_folder import find_scans, is_bids_folder, match_files, plain_scan


@pytest.fixture
def root(tmp_path):
    """A folder whose b-values and echo times lie above the images they are of."""
    image = nib.Nifti1Image(np.ones((2, 2, 2, 3), np.float32), np.eye(4))
    for name in ("sub-1/ses-a/dwi/sub-1_ses-a_dwi", "sub-2/dwi/sub-2_echo-1_dwi", "sub-2/dwi/sub-2_echo-2_dwi",
                 "sub-2/dwi/sub-2_part-phase_dwi"):  # fmt: skip
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        # As git-annex stores files.
        path.symlink_to(tmp_path / f"MD5E-{path.name}")
        nib.save(image, path)
    (tmp_path / "dwi.bval").write_text("0 500 1000")
    (tmp_path / "dwi.json").write_text('{"EchoTime": 0.07}')
    for echo, te in ((1, 0.06), (2, 0.09)):
        sidecar = tmp_path / "sub-2" / "dwi" / f"sub-2_echo-{echo}_dwi.json"
        sidecar.write_text(json.dumps({"EchoTime": te}))
    return tmp_path


def test_echoes_are_one_scan_and_phase_images_none(root):
    assert is_bids_folder(root)
    assert not is_bids_folder(root / "sub-1")
    scans = find_scans(root)
    assert [scan.name for scan in scans] == ["sub-1_ses-a", "sub-2"]
    assert [(scan.subject, scan.visit) for scan in scans] == [("1", "a"), ("2", "1")]
    assert [len(scan.images) for scan in scans] == [1, 2]
    assert scans[0].folder.as_posix() == "sub-1/ses-a/dwi"


def test_b_values_and_echo_times_are_inherited_from_above_and_the_nearest_counts(root):
    one, several = find_scans(root)
    assert [row["image"] for row in one.files()] == [str(one.images[0])]
    assert one.read().protocol.te.tolist() == [70.0] * 3
    assert several.read().protocol.te.tolist() == [60.0] * 3 + [90.0] * 3
    assert several.read().protocol.b.tolist() == [0, 500, 1000] * 2
    (root / "sub-1" / "dwi.bval").write_text("0 100 200")
    assert one.read().protocol.b.tolist() == [0, 100, 200]
    assert one.read("55").protocol.te.tolist() == [55.0] * 3
    # The content of a link may be yet to be fetched.
    own = one.images[0].with_name("sub-1_ses-a_dwi.bval")
    own.symlink_to("MD5E-0")
    with pytest.raises(FileNotFoundError, match=r"dwi.bval' is a link to a missing file \(of git-annex: datalad get"):
        one.read()
    own.unlink()
    with pytest.raises(ValueError, match=r"--te 70: the 2 images of sub-2 have echo times of their own"):
        several.read("70")
    (root / "dwi.bval").unlink()
    (root / "sub-1" / "dwi.bval").rename(root / "sub-1" / "ses-b_dwi.bval")
    with pytest.raises(ValueError, match="no b-values"):
        one.read()
    (root / "empty" / "sub-1" / "anat").mkdir(parents=True)
    with pytest.raises(ValueError, match="without diffusion images"):
        find_scans(root / "empty")


def test_errors_in_a_protocol_name_the_files_it_was_read_from(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2, 3), np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    (tmp_path / "scan.bval").write_text("0 0.4 0.6")
    (tmp_path / "scan.bvec").write_text("0 1 0\n0 0 1\n0 0 0")
    with (
        pytest.warns(UserWarning, match="if they are in ms/µm²"),
        pytest.raises(ValueError, match="look like ms/µm²") as refusal,
    ):
        plain_scan("scan", tmp_path / "scan.nii.gz").read()
    assert str(refusal.value).startswith(f"{tmp_path / 'scan.bval'}, {tmp_path / 'scan.bvec'}: the largest b-value")


def test_masks_are_those_whose_names_are_of_the_scan(root):
    masks = root / "derivatives" / "m"
    masks.mkdir(parents=True)
    for name in ("sub-1_ses-a_desc-x_mask.nii.gz", "sub-1_ses-b_mask.nii.gz", "sub-12_mask.nii.gz"):
        (masks / name).symlink_to(root / "dwi.json")
    # A folder that is a link itself.
    masks.symlink_to(masks.rename(root.parent / f"{root.name}-masks"))
    scans = find_scans(root)
    found = match_files("--mask", "derivatives/m/*_mask.nii.gz", scans, root)
    assert found["sub-1_ses-a"].name == "sub-1_ses-a_desc-x_mask.nii.gz"
    assert found["sub-2"] is None
    (masks / "sub-1_ses-a_desc-y_mask.nii.gz").touch()
    with pytest.raises(ValueError, match="sub-1_ses-a has 2 of them"):
        match_files("--mask", "derivatives/m/*_mask.nii.gz", scans, root)
    with pytest.raises(FileNotFoundError, match="no file matches"):
        match_files("--mask", "nothing/*", scans, root)


@pytest.mark.parametrize(
    ("scan_names", "mask_names", "matches"),
    [
        (("sub-1", "sub-1_acq-b"), ("sub-1_acq-b_mask",), (None, "sub-1_acq-b_mask")),
        (("sub-1", "sub-1_acq-b"), ("sub-1_mask",), ("sub-1_mask", None)),
        (("sub-1", "sub-1_acq-b"), ("sub-1_mask", "sub-1_acq-b_mask"), ("sub-1_mask", "sub-1_acq-b_mask")),
        (("sub-1_dir-AP", "sub-1_dir-PA"), ("sub-1_dir-PA_mask",), (None, "sub-1_dir-PA_mask")),
        # One mask for both, unless one has its own.
        (("sub-1_run-1", "sub-1_run-2"), ("sub-1_mask",), ("sub-1_mask", "sub-1_mask")),
        (("sub-1_run-1", "sub-1_run-2"), ("sub-1_mask", "sub-1_run-2_mask"), ("sub-1_mask", "sub-1_run-2_mask")),
        # What no scan of the subject has tells none apart.
        (("sub-1", "sub-2_acq-b"), ("sub-1_acq-b_mask",), ("sub-1_acq-b_mask", None)),
        # Names of any kind: a mask begins with that of its image, and of several such names it is that of the longest.
        (("case1", "case12"), ("case1_mask", "case12_mask"), ("case1_mask", "case12_mask")),
        (("scan 1", "scan 1_b"), ("scan 1_b_mask",), (None, "scan 1_b_mask")),
        (("scan 1", "scan 1_b"), ("scan 1_b_mask", "scan 1_mask"), ("scan 1_mask", "scan 1_b_mask")),
    ],
)
def test_names_that_tell_scans_apart_are_those_of_the_mask(tmp_path, scan_names, mask_names, matches):
    for name in mask_names:
        (tmp_path / f"{name}.nii.gz").touch()
    scans = [plain_scan(name, tmp_path / f"{name}_dwi.nii.gz") for name in scan_names]
    masks = match_files("--mask", "*_mask.nii.gz", scans, tmp_path)
    names = [None if path is None else path.name.removesuffix(".nii.gz") for path in masks.values()]
    assert names == list(matches)
