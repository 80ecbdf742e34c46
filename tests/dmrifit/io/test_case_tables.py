"""What cases of the applications share: checked arrays, names of files, rows of tables."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dmrifit.io.atomic_files import FileSet
from dmrifit.io.case_tables import (
    CaseTable,
    check_shape,
    checked_mask,
    checked_values,
    file_stem,
    file_stems,
    folder_rows,
    folder_summary,
    folder_table,
    read_on_grid,
    save_values,
    write_table,
)

AFFINE = np.array([[-1.5, 0, 0, 20], [0, 1.5, 0, -10], [0, 0, 2.0, 5], [0, 0, 0, 1]])


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_values_become_single_in_the_order_of_c(kind):
    values = np.asfortranarray((np.arange(24).reshape(2, 3, 4) % 2).astype(kind))
    checked = checked_values(values, (2, 3, 4), "image")
    assert checked.dtype == np.float32
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, values)


def test_a_mask_holds_zeros_and_ones_of_any_type_and_a_shape_that_differs_is_told():
    truth = np.array([True, False, True])
    for kind in (bool, np.uint8, np.float32):
        mask = checked_mask(truth.astype(kind), "label", (3,))
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, truth)
    check_shape(np.ones((2, 3)), (2, 3), "prior")
    with pytest.raises(ValueError, match=r"prior has shape \(2, 3\) and the image \(3, 2\); bring both"):
        check_shape(np.ones((2, 3)), (3, 2), "prior")


def test_a_volume_comes_back_on_its_grid_and_on_no_other(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    save_values(values, AFFINE, tmp_path / "image.nii.gz")
    save_values(values > 0, AFFINE, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read_on_grid(tmp_path / "image.nii.gz", (4, 5, 6), AFFINE, "t1"), values)
    stored = nib.load(tmp_path / "mask.nii.gz")
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(stored.dataobj), values > 0)
    moved = AFFINE.copy()
    moved[0, 3] += 3
    for shape, affine in (((4, 5, 7), AFFINE), ((4, 5, 6), moved)):
        with pytest.raises(ValueError, match=r"different grids|corners"):
            read_on_grid(tmp_path / "image.nii.gz", shape, affine, "t1")


# Tables -----------------------------------------------------------------------------------


class Columns(CaseTable):
    @property
    def described(self):
        kinds = {"patient": "text", "image": "image", "name": "text", "brain": "image"}
        return [
            {"column": name, "kind": kind, "ending": "", "description": "A column."}
            for name, kind in kinds.items()
        ]


SCANS = Columns("", what="scan")


def table(folder, *rows, header="patient\timage\tname"):
    path = folder / "cases.tsv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_each_row_is_read_with_the_folder_of_its_table(tmp_path):
    path = table(tmp_path, "p1\ta.nii\tfirst", "p1\tb.nii\tn/a", header="participant_id\timage\tname")
    cases = SCANS.read(path, lambda row, folder: (row["patient"], folder / row["image"], row["name"]))
    assert cases == [("p1", tmp_path / "a.nii", "first"), ("p1", tmp_path / "b.nii", "")]


@pytest.mark.parametrize("rows", [("p1\ta.nii\tsame", "p2\tb.nii\tsame"), ("p1\ta.nii\tn/a", "p1\tb.nii\tn/a")])
def test_two_rows_of_one_name_are_refused(tmp_path, rows):
    path = table(tmp_path, *rows)
    with pytest.raises(ValueError, match=r"row 3 .*: row 2 has a scan of the name '(same|p1)' too; add a column 'name'"):
        SCANS.read(path, lambda row, folder: row)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_what_reading_a_row_refuses_is_told_with_the_row(tmp_path, error):
    def read(row, folder):
        if row["patient"] == "p2":
            raise error(row["image"])

    with pytest.raises(error, match=r"cases\.tsv, row 3 \(patient p2\): broken\.nii") as caught:
        SCANS.read(table(tmp_path, "p1\ta\tx", "p2\tbroken.nii\ty"), read)
    assert (f"paths are relative to {tmp_path}" in str(caught.value)) == (error is FileNotFoundError)
    failed = []
    rows = table(tmp_path, "p1\ta\tx", "p2\tbroken.nii\ty")
    SCANS.read(rows, read, failed=failed)
    assert failed == [{"name": "y", "patient": "p2", "problem": str(caught.value)}]


NAMES = {"p01": "p01", "Jane Doe/2": "Jane-Doe-2", "..hidden": "hidden", "-x": "x", "ÄÖ": "case", "a.b_c-d": "a.b_c-d"}


@pytest.mark.parametrize(("name", "stem"), NAMES.items())
def test_names_of_files_have_letters_digits_and_few_signs(name, stem):
    assert file_stem("p", name) == stem


def test_files_of_cases_differ_even_where_small_and_large_letters_are_the_same():
    assert file_stems([("p", "a"), ("p", "b"), ("q", "A1")]) == ["a", "b", "A1"]
    with pytest.raises(ValueError, match=r"several cases would have the same files: A b, a/B; give"):
        file_stems([("p", "a/B"), ("q", "A b"), ("q", "c")])
    with pytest.raises(ValueError, match="there are no cases to write"):
        file_stems([])


def test_cases_of_patients_whose_names_look_alike_are_refused(tmp_path):
    table = tmp_path / "cases.tsv"
    scans = Columns("", required=("patient",))
    table.write_text("patient\tname\n1\tfirst\n2\tsecond\n01\tthird\n")
    with pytest.raises(ValueError, match=r"rows 2 and 4: patients '1' and '01' differ only in"):
        scans.read(table, lambda row, _: row)
    table.write_text("patient\tname\n1\tfirst\n2\tsecond\n1\tthird\n")
    cases = scans.read(table, lambda row, _: row["patient"])
    assert cases == ["1", "2", "1"]


def test_a_table_has_the_columns_that_hold_something_and_says_what_they_mean(tmp_path):
    described = {"name": "Its name.", "age": "In years.", "site": "Scanner."}
    with FileSet(tmp_path, ["cases.json", "cases.tsv"]) as files:
        rows = [{"name": 'a "b"', "site": "x"}, {"name": "c"}]
        write_table(files, "cases.tsv", rows, described, "cases.json")
    assert (tmp_path / "cases.tsv").read_text() == 'name\tsite\n"a ""b"""\tx\nc\tn/a\n'
    meanings = {"name": {"Description": "Its name."}, "site": {"Description": "Scanner."}}
    assert json.loads((tmp_path / "cases.json").read_text()) == meanings


# Folders ---------------------------------------------------------------------------------------


def folder_of(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_each_image_of_a_folder_is_a_case_with_the_images_named_after_it(tmp_path):
    folder = folder_of(
        tmp_path / "scans", "p2.nii.gz", "p1_image.nii", "p1_label.nii.gz", "p1_image_prior.nii.gz", "notes.txt",
        "p3_dwi.nii.gz", "p1_prior_label.nii.gz", "p3_dwi_brain.nii.gz", "skull_brain.nii.gz", ".p9.nii.gz",
    )  # fmt: skip
    (folder / "p8.nii.gz").mkdir()
    columns = ("image", "label", "prior", "brain", "prior_label")
    rows = folder_rows(folder, columns)
    assert [list(row) for row in rows] == [["name", *columns]] * 4
    assert [tuple(row.values()) for row in rows] == [
        ("p1", "p1_image.nii", "p1_label.nii.gz", "p1_image_prior.nii.gz", "", "p1_prior_label.nii.gz"),
        ("p2", "p2.nii.gz", "", "", "", ""),
        ("p3", "p3_dwi.nii.gz", "", "", "p3_dwi_brain.nii.gz", ""),
        # There is no image skull, so this one is no mask of it.
        ("skull_brain", "skull_brain.nii.gz", "", "", "", ""),
    ]
    assert folder_summary(folder, rows) == (
        f"4 cases in {folder}: p1, p2, p3, skull_brain; with label 1, prior 1, brain 1, prior_label 1"
    )
    named = folder_rows([folder / "p1_image.nii", folder / "p3_dwi.nii.gz"], columns)
    assert [[Path(text).name for text in row.values()] for row in named] == [list(rows[i].values()) for i in (0, 2)]
    (folder / "p3_brain.nii").touch()
    assert folder_rows([folder / "p3_dwi.nii.gz"], columns)[0]["brain"] == "", "neither of two is known to be right"
    listed = [folder / f"{name}.nii" for name in ("p1_image", "p1_prior", "p1_prior_brain", "p1_desc-brain_mask")]
    assert [(row["name"], Path(row["prior"]).name) for row in folder_rows(listed, columns)] == [("p1", "p1_prior.nii")]
    many = [{"name": f"p{i}", "image": "x"} for i in range(7)]
    assert folder_summary(folder, many).endswith("7 cases in " + f"{folder}: p0, p1, p2, p3, p4 and 2 more")
    assert folder_summary(folder, many[:1]) == f"1 case in {folder}: p0"


def test_the_cases_of_a_folder_are_read_like_those_of_a_table(tmp_path):
    folder = folder_of(tmp_path / "scans", "b.nii.gz", "a.nii.gz", "a_brain.nii.gz")

    def read(row, folder):
        if row["name"] == "b":
            raise ValueError("b.nii.gz is damaged")
        return row["patient"], folder / row["image"], row["brain"]

    with pytest.raises(ValueError, match=r"scans: b\.nii\.gz is damaged"):
        SCANS.read(folder, read)
    (folder / "b.nii.gz").unlink()
    assert SCANS.read(folder, read) == [("a", folder / "a.nii.gz", "a_brain.nii.gz")]
    # A table says more of its cases than the names of files.
    table(folder, "p7\ta.nii.gz\tseventh", header="patient\timage\tname")
    assert SCANS.read(folder, lambda row, _: row["name"]) == ["seventh"]
    assert folder_table(folder) == folder / "cases.tsv"
    assert folder_table(tmp_path) == tmp_path


def test_folders_that_hold_no_cases_are_refused_with_what_to_name(tmp_path):
    folder = folder_of(tmp_path / "empty", "read.me")
    with pytest.raises(FileNotFoundError, match=r"empty is a folder without images .*; name an image, a table or"):
        folder_rows(folder, ("image",))
    for name, header in (("healthy.tsv", "patient\timage\n"), ("gliomas.tsv", "image\n"), ("found.tsv", "name\tmap")):
        (folder / name).write_text(header)
    with pytest.raises(FileNotFoundError, match=r"name a table in it: gliomas\.tsv, healthy\.tsv"):
        folder_rows(folder, ("image",))
    folder_of(folder, "p1.nii", "p1_image.nii.gz")
    with pytest.raises(ValueError, match=r"has both p1\.nii and p1_image\.nii\.gz; keep one"):
        folder_rows(folder, ("image",))
