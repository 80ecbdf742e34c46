"""Cohorts: tables checked before work starts, files written and read back, tables of voxels that line up."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest

from dmrifit import Cohort, PatientScale, Protocol, Scan, simulate_cohort

SMALL = (16, 16, 3)


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("cohort1", 3, shape=SMALL, random_state=1)


@pytest.fixture
def written(cohort, tmp_path):
    return cohort.write(tmp_path / "data")


def rewrite(table, change):
    """Apply a change to the table's rows, each a dict, and write it again."""
    header, *lines = [line.split("\t") for line in table.read_text().splitlines()]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    change(rows)
    header = list(rows[0]) if rows else header
    text = "\n".join("\t".join(row) for row in [header, *([row[key] for key in header] for row in rows)])
    table.write_text(text + "\n")


def test_what_is_written_is_read_back(cohort, written):
    (name, back), *rest = Cohort.read(written).items()
    assert (name, rest) == ("cohort1", [])
    assert back.patients == cohort.patients
    assert back.synthetic
    for one, other in zip(cohort, back, strict=True):
        np.testing.assert_array_equal(one.signal, other.signal)
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.lesion, other.lesion)
        np.testing.assert_array_equal(one.truth["K"], other.truth["K"])
        np.testing.assert_array_equal(one.affine, other.affine)
        assert one.protocol == other.protocol
        assert other.sigma == pytest.approx(one.sigma, rel=1e-8)


def test_cohorts_written_to_one_folder_share_its_table(written):
    other = simulate_cohort("cohort2", 2, shape=SMALL, random_state=1)
    other.write(written.parent)
    cohorts = Cohort.read(written)
    assert {name: len(cohort) for name, cohort in cohorts.items()} == {"cohort1": 3, "cohort2": 2}
    with pytest.raises(ValueError, match="already has cohort2p01"):
        other.write(written.parent)


def test_writing_leaves_no_unfinished_file_behind(written):
    names = [path.name for path in written.parent.rglob("*") if path.is_file()]
    assert len(names) == 2 + 3 * 6
    assert not [name for name in names if "part" in name.replace("participants", "")]


def test_the_dataset_says_that_it_is_synthetic(written):
    assert "Synthetic" in (written.parent / "dataset_description.json").read_text()


def test_scans_are_read_when_they_are_asked_for(written):
    scan = Cohort.read(written)["cohort1"].scans[0]
    np.testing.assert_array_equal(scan.affine, np.diag([3, 3, 6, 1]))
    image = next(written.parent.glob("sub-cohort1p01/dwi/*_dwi.nii.gz"))
    image.write_bytes(gzip.compress(b"no longer an image"))
    with pytest.raises(ValueError, match="cannot be read"):
        _ = scan.signal


def test_rows_of_a_voxel_table_are_the_same_voxels(cohort):
    table = cohort.arrays(mask="body", max_voxels=50, random_state=3)
    clinical = cohort.scans[0].protocol.clinical()
    assert table.X.shape == (150, 5)
    assert table.Y.shape == (150, 21)
    np.testing.assert_array_equal(table.X, table.Y[:, clinical])
    for row in (0, 70, 149):
        position, i, j, k = table.index[row]
        scan = cohort.scans[position]
        assert scan.patient == table.groups[row]
        assert scan.mask[i, j, k]
        np.testing.assert_allclose(table.Y[row] * table.scale[row], scan.signal[i, j, k], rtol=1e-12)
        np.testing.assert_allclose(table.sigma[row] * table.scale[row], scan.sigma, rtol=1e-12)


def test_the_scale_is_that_of_the_source_images_in_the_body(cohort):
    scan = cohort.scans[0]
    source = scan.protocol.take(scan.protocol.clinical())
    expected = np.percentile(scan.signal[scan.mask][:, 0].astype(float), 95)
    table = Cohort([scan]).arrays()
    np.testing.assert_allclose(table.scale, expected, rtol=1e-12)
    targets = scan.signal.copy()
    targets[..., 5:] *= 1000
    changed = Scan("p", targets, scan.protocol, scan.mask, scan.affine, lesion=scan.lesion)
    np.testing.assert_array_equal(Cohort([changed]).arrays(source).X, table.X)
    np.testing.assert_array_equal(Cohort([scan]).arrays(scale=PatientScale()).X, table.X)
    assert Cohort([scan]).arrays(scale=None).X.max() == scan.signal[scan.lesion][:, :5].max()


def test_contrasts_are_found_whatever_the_order_of_the_volumes(cohort):
    scan = cohort.scans[0]
    order = np.random.default_rng(0).permutation(len(scan.protocol))
    mixed = Scan("p", scan.signal[..., order], scan.protocol.take(order), scan.mask, scan.affine, lesion=scan.lesion)
    one = Cohort([scan]).arrays()
    other = Cohort([mixed]).arrays(one.source, one.target)
    np.testing.assert_array_equal(one.X, other.X)
    np.testing.assert_array_equal(one.Y, other.Y)


def test_a_patient_keeps_its_drawn_voxels_whoever_else_is_there(cohort):
    alone = Cohort([cohort.scans[1]]).arrays(mask="body", max_voxels=20, random_state=4)
    together = cohort.arrays(mask="body", max_voxels=20, random_state=4)
    mine = together.groups == cohort.scans[1].patient
    np.testing.assert_array_equal(alone.index[:, 1:], together.index[mine, 1:])
    other = cohort.arrays(mask="body", max_voxels=20, random_state=5)
    assert not np.array_equal(together.index, other.index)


def test_patches_hold_the_neighbors_in_the_documented_order(cohort):
    table = cohort.arrays(mask="body", patch_shape=(3, 3, 1), max_voxels=30, random_state=0)
    neighbors = table.X.reshape(len(table), 9, 5)
    single = cohort.arrays(mask="body", max_voxels=30, random_state=0)
    np.testing.assert_array_equal(neighbors[:, 4], single.X)
    position, i, j, k = table.index[7]
    signal = cohort.scans[position].signal
    np.testing.assert_allclose(neighbors[7, 1] * table.scale[7], signal[i - 1, j, k, :5], rtol=1e-12)
    corner = np.ones(SMALL, bool)
    scan = Scan("p", cohort.scans[0].signal, cohort.scans[0].protocol, corner, np.eye(4))
    at_edge = Cohort([scan]).arrays(mask="body", patch_shape=(3, 3, 1)).X.reshape(-1, 9, 5)
    np.testing.assert_array_equal(at_edge[0, :3], at_edge[0, [4, 4, 4]])
    assert not np.array_equal(at_edge[0, 8], at_edge[0, 4])


def test_patients_without_a_lesion_are_left_out_and_named(cohort, written):
    nib.save(
        nib.Nifti1Image(np.zeros(SMALL, np.uint8), np.diag([3, 3, 6, 1])),
        next(written.parent.glob("sub-cohort1p02/dwi/*lesion_mask.nii.gz")),
    )
    with pytest.warns(UserWarning, match="cohort1p02 left out"):
        back = Cohort.read(written)["cohort1"]
    assert back.patients == ("cohort1p01", "cohort1p03")
    assert "empty" in back.skipped["cohort1p02"]


def test_participant_id_and_commas_are_understood(written):
    text = written.read_text().replace("patient\t", "participant_id\t", 1).replace("\t", ",")
    table = written.with_suffix(".csv")
    table.write_text(text)
    assert Cohort.read(table)["cohort1"].patients[0] == "cohort1p01"


def change(row, **values):
    return lambda rows: rows[row].update(values)


def remove(column):
    return lambda rows: [row.pop(column) for row in rows]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (remove("mask"), ValueError, "no column mask in"),
        (change(1, mask="n/a"), ValueError, "row 3: no mask"),
        (change(1, mask="none.nii.gz"), FileNotFoundError, r"row 3 \(patient cohort1p02\): mask 'none.nii.gz'"),
        (change(1, te="93 ms"), FileNotFoundError, "te '93 ms'"),
        (change(2, patient="cohort1p01", cohort="B"), ValueError, r"row 4: patient cohort1p01 is in cohort 'B'"),
        (lambda rows: rows.clear(), ValueError, "header and no row"),
    ],
)
def test_a_spoiled_table_is_refused_with_its_row(written, spoil, error, message):
    rewrite(written, spoil)
    with pytest.raises(error, match=message):
        Cohort.read(written)


def test_b_values_of_another_scan_are_refused_with_both_counts(written):
    (written.parent / "short.bval").write_text("0 50 100\n")
    rewrite(written, change(0, bval="short.bval", te="93"))
    with pytest.raises(ValueError, match=r"row 2 .*16 × 16 × 3 × 21 values .* 3 measurements"):
        Cohort.read(written)


def test_a_mask_on_another_grid_is_refused(written):
    mask = next(written.parent.glob("sub-cohort1p03/dwi/*body_mask.nii.gz"))
    nib.save(nib.Nifti1Image(np.ones(SMALL, np.uint8), np.diag([3, 3, 5, 1])), mask)
    with pytest.raises(ValueError, match=r"row 4 .*corners lie up to"):
        Cohort.read(written)


def test_a_missing_table_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv: no such table"):
        Cohort.read("nowhere.tsv")


def test_paths_are_relative_to_the_table(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "moved"
    os.rename(written.parent, elsewhere)
    assert len(Cohort.read("moved/participants.tsv")["cohort1"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": "tumor"}, "'body' or 'lesion'"),
        ({"scale": "voxel"}, "'patient', None"),
        ({"patch_shape": (2, 3, 1)}, "odd"),
        ({"target": Protocol([0, 2000], te=93)}, r"cohort1p01 .*lacks S_b2000_TE93"),
    ],
)
def test_impossible_tables_of_voxels_are_refused(cohort, arguments, message):
    with pytest.raises(ValueError, match=message):
        cohort.arrays(**arguments)


def test_arrays_of_different_shapes_are_refused():
    protocol = Protocol([0, 500], te=80)
    signal = np.ones((4, 4, 2, 2))
    with pytest.raises(ValueError, match="4 × 4 × 1"):
        Scan("p", signal, protocol, np.ones((4, 4, 1)), np.eye(4))
    with pytest.raises(ValueError, match="affine"):
        Scan("p", signal, protocol, np.ones((4, 4, 2)))
    with pytest.raises(ValueError, match="no scan"):
        Cohort([], "empty")


def test_masks_stored_with_a_fourth_axis_of_one_are_masks(cohort, written):
    path = next(written.parent.glob("sub-cohort1p01/dwi/*body_mask.nii.gz"))
    mask = cohort.scans[0].mask
    nib.save(nib.Nifti1Image(mask[..., None].astype(np.uint8), np.diag([3, 3, 6, 1])), path)
    np.testing.assert_array_equal(Cohort.read(written)["cohort1"].scans[0].mask, mask)


def test_an_image_that_is_cut_off_is_named(written):
    path = next(written.parent.glob("sub-cohort1p01/dwi/*_dwi.nii.gz"))
    path.write_bytes(path.read_bytes()[:-2000])
    scan = Cohort.read(written)["cohort1"].scans[0]
    with pytest.raises(ValueError, match=r"sub-cohort1p01_dwi\.nii\.gz cannot be read to its end"):
        _ = scan.signal


def test_a_lesion_mask_that_cannot_be_read_is_no_missing_lesion(written):
    path = next(written.parent.rglob("*desc-lesion_mask.nii.gz"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises((ValueError, OSError), match=path.name):
        Cohort.read(written)
