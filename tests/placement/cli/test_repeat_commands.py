"""The command repeat: files, tables of visits, resuming, refusals of one line."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from moved_heads import AFFINE, head_signals, moved

from placement import Voxel, read_voxel

pytest.importorskip("SimpleITK")

BOX = Voxel((10, -15, 12), (20, 25, 22), (10, -15, 20))


@pytest.fixture
def visits(tmp_path):
    signals = head_signals(0)
    later, truth = moved(signals, (10, -8, 12), (9, -12, 7))
    nib.save(nib.Nifti1Image(signals, AFFINE), tmp_path / "old.nii.gz")
    nib.save(later, tmp_path / "new.nii.gz")
    (tmp_path / "box.json").write_text(BOX.to_json())
    return truth


def test_repeat_writes_numbers_and_page_and_resumes(run, tmp_path, visits):
    table = tmp_path / "visits.tsv"
    table.write_text("name\told\tbox\tnew\np1-v2\told.nii.gz\tbox.json\tnew.nii.gz\n")
    out = tmp_path / "out"
    code, text, error = run("repeat", "--table", table, "--out", out)
    assert code == 0, error
    assert "p1-v2: repeated; center" in text
    assert "content unknown: tumor may have grown, shrunk or been removed" in text
    case = out / "p1-v2"
    expected = BOX.transform(visits)
    for name in ("voxel_philips.txt", "voxel_geometry.nii.gz", "repeat.json"):
        assert read_voxel(case / name).dice(expected) > 0.98
    assert nib.load(case / "voxel_mask.nii.gz").get_fdata().sum() * 8e-3 == pytest.approx(BOX.volume, rel=0.05)
    page = (case / "voxel_view.html").read_text(encoding="utf-8")
    assert "Old scan, moved to the new position: old.nii.gz" in page
    assert "New scan: new.nii.gz" in page
    assert "valid only while the patient lies as in new.nii.gz" in page
    row = pd.read_csv(out / "repeats.tsv", sep="\t").iloc[0]
    assert Voxel.from_array(row[["x", "y", "z", "size_x", "size_y", "size_z", "angle_x", "angle_y", "angle_z"]]).dice(
        expected
    ) > 0.98
    written = (case / "repeat.json").stat().st_mtime_ns
    assert run("repeat", "--table", table, "--out", out)[0] == 0
    assert (case / "repeat.json").stat().st_mtime_ns == written
    (tmp_path / "box.json").write_text(Voxel(BOX.center + 5, BOX.size).to_json())
    assert run("repeat", "--table", table, "--out", out)[0] == 0
    assert (case / "repeat.json").stat().st_mtime_ns != written


@pytest.mark.slow
def test_unreliable_repeats_have_no_console_numbers(run, tmp_path, visits):
    (tmp_path / "old.json").write_text(json.dumps({"PatientID": "A"}))
    (tmp_path / "new.json").write_text(json.dumps({"PatientID": "B"}))
    words = ("repeat", tmp_path / "old.nii.gz", tmp_path / "box.json", tmp_path / "new.nii.gz")
    out = tmp_path / "out"
    code, text, _ = run(*words, "--out", out, "--no-figure", "--fail-on-flag")
    assert code == 3
    assert "new: not the same head; the headers name two patients (PatientID)" in text
    assert "flagged: 1 of 1" in text
    assert [path.name for path in (out / "new").iterdir()] == ["repeat.json"]
    assert np.isnan(pd.read_csv(out / "repeats.tsv", sep="\t")["x"]).all()


def test_bad_input_is_one_line(run, tmp_path, visits):
    old, box, new = (tmp_path / name for name in ("old.nii.gz", "box.json", "new.nii.gz"))
    nowhere = tmp_path / "nowhere.nii.gz"
    image = nib.Nifti1Image(np.ones((20, 20, 20), np.float32), None)
    nib.save(image, nowhere)
    (tmp_path / "far.json").write_text(Voxel((400, 0, 0), (20, 20, 20)).to_json())
    for words, message in (
        ((old, box), "name three files, OLD_T1 BOX NEW_T1, or a table"),
        ((old, box, old), "is both the old and the new scan"),
        ((old, box, tmp_path / "absent.nii.gz"), "absent.nii.gz: no such file"),
        ((old, box, nowhere), "nowhere.nii.gz has neither an sform nor a qform"),
        ((old, tmp_path / "far.json", new), "lies outside"),
        ((old, new, new), "new.nii.gz: it holds 80 × 96 × 76 voxels"),
    ):
        code, text, error = run("repeat", *words, "--out", tmp_path / "refused", "--no-figure")
        assert code == 2, (message, text, error)
        lines = [line for line in error.splitlines() if message in line]
        assert len(lines) == 1, error


def test_boxes_of_another_frame_of_reference_are_refused(run, tmp_path, visits, monkeypatch):
    from placement.exchange import voxel_files

    monkeypatch.setattr(
        voxel_files, "read_voxel_file", lambda path: voxel_files.VoxelFile(BOX, "Siemens DICOM", frame="1.2.3")
    )
    (tmp_path / "old.json").write_text(json.dumps({"FrameOfReferenceUID": "1.2.4"}))
    words = (tmp_path / "old.nii.gz", tmp_path / "box.json", tmp_path / "new.nii.gz")
    code, _, error = run("repeat", *words, "--out", tmp_path / "out")
    assert code == 2
    assert "has the frame of reference 1.2.3" in error
