"""Names of derived files, and sets of files that appear together."""

import hashlib
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from dmrifit.derivatives import (
    FileSet,
    bits_type,
    common_stem,
    derivative_name,
    file_record,
    pack_bounds,
    stem,
    unpack_bounds,
    versions,
)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("sub-01_dwi.nii.gz", "sub-01_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("a/sub-01_ses-2_acq-dr_dwi.nii", "sub-01_ses-2_acq-dr_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("sub-01_desc-preproc_dwi.nii.gz", "sub-01_model-t2ivimkurtosis_param-Dt_desc-preproc_dwimap.nii.gz"),
        ("small_101D.nii.gz", "small_101D_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("pre-op_scan.nii", "pre-op_scan_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
        ("patient 7.v2.img", "patient 7.v2_model-t2ivimkurtosis_param-Dt_dwimap.nii.gz"),
    ],
)
def test_names_follow_bids_and_keep_what_the_image_was_called(image, expected):
    assert derivative_name(stem(image), "dwimap.nii.gz", model="t2-ivim-kurtosis", param="Dt") == expected


def test_an_image_without_a_name_adds_nothing():
    assert derivative_name("", "dwimap.json", model="adc") == "model-adc_dwimap.json"


def test_descriptions_are_joined_and_stand_last():
    assert derivative_name("sub-1_dwi", "dwi.bval", desc="predicted") == "sub-1_desc-predicted_dwi.bval"
    name = derivative_name("sub-1_desc-preproc_dwi", "dwimap.json", model="adc", desc="predicted")
    assert name == "sub-1_model-adc_desc-preprocPredicted_dwimap.json"


def test_a_file_is_recorded_by_name_and_digest(tmp_path):
    path = tmp_path / "x.nii"
    path.write_bytes(b"content")
    assert file_record(path) == {"Name": "x.nii", "SHA256": hashlib.sha256(b"content").hexdigest()}


def test_versions_name_what_computes():
    assert {"python", "dmrifit", "numba", "numpy", "nibabel"} == set(versions())
    assert set(versions("scipy")) == {"python", "scipy"}


def test_files_appear_together_when_the_block_ends(tmp_path):
    with FileSet(tmp_path / "new" / "out", ["a", "b"]) as files:
        files.path("a").write_text("1")
        files.path("b").write_text("2")
        assert [path.name for path in (tmp_path / "new" / "out").glob("[!.]*")] == []
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_everything_is_as_before(tmp_path, error):
    (tmp_path / "a").write_text("old")

    def interrupted():
        with FileSet(tmp_path, ["a", "b"], overwrite=True) as files:
            files.path("a").write_text("new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_existing_files_are_replaced_only_when_allowed(tmp_path):
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileExistsError, match=r"b exist.*--overwrite"):
        FileSet(tmp_path, ["a", "b"])
    with FileSet(tmp_path, ["a", "b"], overwrite=True) as files:
        files.path("b").write_text("new")
    assert (tmp_path / "b").read_text() == "new"


def test_files_of_an_earlier_run_do_not_stay_beside_those_of_a_later_one(tmp_path):
    (tmp_path / "page.html").write_text("old")
    with FileSet(tmp_path, ["map", "page.html"], overwrite=True) as files:
        files.path("map").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_an_input_is_never_replaced(tmp_path):
    (tmp_path / "a").write_text("input")
    with pytest.raises(ValueError, match="is an input"):
        FileSet(tmp_path, ["a"], overwrite=True, keep=[tmp_path / "a"])


def test_names_that_differ_by_case_are_refused(tmp_path):
    with pytest.raises(ValueError, match="differ only by case"):
        FileSet(tmp_path, ["param-F", "param-f"])


def test_a_folder_that_cannot_be_made_is_named_before_work(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(OSError, match=re.escape(f"cannot write to the folder {folder}")), FileSet(folder, ["a"]):
            pytest.fail("the block was entered")


def test_only_declared_names_are_written(tmp_path):
    files = FileSet(tmp_path, ["a"])
    with pytest.raises(ValueError, match="not a file of this set"):
        files.path("a")
    with files, pytest.raises(ValueError, match="not a file of this set"):
        files.path("b")


def test_json_keeps_lists_of_numbers_on_a_line(tmp_path):
    content = {"b": [0.0, 50.5], "rows": [[1, 2], [3, None]], "text": "[ µm²/ms,\n x ]", "names": ["a"], "none": []}
    with FileSet(tmp_path, ["a.json"]) as files:
        files.write_json("a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert '"b": [0.0, 50.5]' in text
    with pytest.raises(ValueError, match="JSON"), FileSet(tmp_path, ["b.json"]) as files:
        files.write_json("b.json", {"x": float("nan")})


def test_several_images_are_named_by_what_they_have_in_common():
    assert common_stem(["a/sub-01_echo-1_dwi.nii.gz", "b/sub-01_echo-2_dwi.nii"]) == "sub-01_dwi"
    assert common_stem(["te93.nii", "te105.nii"]) == ""
    assert common_stem(["sub-01_dwi.nii"]) == "sub-01_dwi"
    assert common_stem([]) == ""


@pytest.mark.parametrize(("n", "kind"), [(1, np.uint16), (8, np.uint16), (9, np.uint32), (17, np.uint64)])
def test_bounds_come_back_from_their_bits(n, kind):
    rng = np.random.default_rng(n)
    low, high = rng.random((2, 50, n)) < 0.3
    low[0], high[0] = True, True
    bits = pack_bounds(low, high)
    assert bits.dtype == bits_type(n) == kind
    for found, expected in zip(unpack_bounds(bits, n), (low, high), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert bits[0] == 4**n - 1
    with pytest.raises(ValueError, match="32 parameters, not 33"):
        bits_type(33)


KILLED = """
import os, signal, sys
from dmrifit.derivatives import FileSet

with FileSet(sys.argv[1], ["a", "b"], overwrite=True) as files:
    files.path("a").write_text("half")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("waiting", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, "die"], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".dmrifit-")
    with FileSet(tmp_path, ["c"]) as files:
        assert not left.exists()
        files.path("c").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_runs_at_the_same_time_leave_each_other_alone(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path, "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "waiting\n"
        with FileSet(tmp_path, ["c"]) as files:
            files.path("c").write_text("mine")
            with FileSet(tmp_path, ["d"]) as more:
                more.path("d").write_text("mine too")
        (theirs,) = tmp_path.glob(".dmrifit-*")
        other.communicate("")
    assert not theirs.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_a_folder_that_nobody_locked_is_left_alone(tmp_path):
    (tmp_path / ".dmrifit-mine").mkdir()
    (tmp_path / ".dmrifit-mine" / "notes").write_text("x")
    with FileSet(tmp_path, ["a"]) as files:
        files.path("a").write_text("1")
    assert (tmp_path / ".dmrifit-mine" / "notes").exists()
