"""Names of derived files, and sets of files that appear together."""

import hashlib

import pytest

from dmrifit.io.bids_derivatives import (
    common_stem,
    derivative_name,
    file_record,
    stem,
    versions,
)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("sub-01_dwi.nii.gz", "sub-01_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        (
            "a/sub-01_ses-2_acq-dr_dwi.nii",
            "sub-01_ses-2_acq-dr_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz",
        ),
        (
            "sub-01_desc-preproc_dwi.nii.gz",
            "sub-01_model-t2ivimkurtosis_param-Dt_desc-preproc_dwimap.nii.gz",
        ),
        ("small_101D.nii.gz", "small_101D_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("pre-op_scan.nii", "pre-op_scan_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("patient 7.v2.img", "patient 7.v2_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
    ],
)
def test_names_follow_bids_and_keep_what_the_image_was_called(image, expected):
    assert (
        derivative_name(stem(image), "dwimap.nii.gz", model="t2-ivim-kurtosis", param="Dt")
        == expected
    )


def test_an_image_without_a_name_adds_nothing():
    assert derivative_name("", "dwimap.json", model="adc") == "model-adc_dwimap.json"


def test_descriptions_are_joined_and_stand_last():
    assert (
        derivative_name("sub-1_dwi", "dwi.bval", desc="predicted")
        == "sub-1_desc-predicted_dwi.bval"
    )
    name = derivative_name("sub-1_desc-preproc_dwi", "dwimap.json", model="adc", desc="predicted")
    assert name == "sub-1_model-adc_desc-preprocPredicted_dwimap.json"


def test_a_file_is_recorded_by_name_and_digest(tmp_path):
    path = tmp_path / "x.nii"
    path.write_bytes(b"content")
    assert file_record(path) == {"Name": "x.nii", "SHA256": hashlib.sha256(b"content").hexdigest()}


def test_versions_name_what_computes():
    assert {"python", "dmrifit", "numba", "numpy", "nibabel"} == set(versions())
    assert set(versions("scipy")) == {"python", "scipy"}


def test_several_images_are_named_by_what_they_have_in_common():
    assert common_stem(["a/sub-01_echo-1_dwi.nii.gz", "b/sub-01_echo-2_dwi.nii"]) == "sub-01_dwi"
    assert common_stem(["te93.nii", "te105.nii"]) == ""
    assert common_stem(["sub-01_dwi.nii"]) == "sub-01_dwi"
    assert common_stem([]) == ""
