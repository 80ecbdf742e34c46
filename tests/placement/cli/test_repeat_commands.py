"""The command repeat: files, tables of visits, resuming, refusals of one line."""

import json
import shutil

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
    assert "Not for clinical use" in page
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


def test_labels_of_the_new_scan_tell_what_the_box_holds(run, tmp_path, visits):
    expected = BOX.transform(visits)
    labels = np.where(expected.mask((80, 96, 76), AFFINE), 4, 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "tumor.nii.gz")
    words = ("repeat", *(tmp_path / name for name in ("old.nii.gz", "box.json", "new.nii.gz")))
    options = ("--tumor", tmp_path / "tumor.nii.gz", "--labels", "brats2013", "--no-figure")
    code, text, error = run(*words, *options, "--out", tmp_path / "out")
    assert code == 0, error
    share = int(text.partition(" % enhancing")[0].rpartition(" ")[2])
    assert share >= 90
    assert "content unknown" not in text


def test_one_bad_visit_of_a_table_does_not_keep_others_from_being_repeated(run, tmp_path, visits):
    (tmp_path / "far.json").write_text(Voxel((400, 0, 0), (20, 20, 20)).to_json())
    table, out = tmp_path / "visits.tsv", tmp_path / "out"
    (tmp_path / "cut.json").write_text("{")
    nib.save(nib.Nifti1Image(np.zeros((80, 96, 76), np.uint8), AFFINE), tmp_path / "empty.nii.gz")
    rows = ["name\told\tbox\tnew\ttumor", "bad\told.nii.gz\tfar.json\tnew.nii.gz\t"]
    rows.append("cut\told.nii.gz\tcut.json\tnew.nii.gz\t")
    rows.append("empty\told.nii.gz\tbox.json\tnew.nii.gz\tempty.nii.gz")
    rows.append("good\told.nii.gz\tbox.json\tnew.nii.gz\t")
    table.write_text("\n".join(rows) + "\n")
    code, text, error = run("repeat", "--table", table, "--out", out, "--no-figure", "--fail-on-flag")
    assert code == 3, error
    assert "failed: bad: the box at 400, 0, 0 mm (RAS+) lies outside" in text
    assert "good: repeated; center" in text
    assert "cut.json: it is no JSON" in text
    assert "failed: empty: " in text
    assert "flagged: 0 of 1; failed: 3" in text
    assert not (out / "bad").exists()
    assert list(pd.read_csv(out / "repeats.tsv", sep="\t")["answer"]) == ["repeated"]


def test_visits_that_lack_a_file_are_listed_before_others_are_repeated(run, tmp_path, visits, monkeypatch):
    table, out = tmp_path / "visits.tsv", tmp_path / "out"
    rows = ["name\told\tbox\tnew", "one\told.nii.gz\tbox.json\tnew.nii.gz"]
    rows += [f"{name}\told.nii.gz\tno.json\tno.nii.gz" for name in ("two", "three")]
    table.write_text("\n".join(rows) + "\n")
    words = ("repeat", "--table", table, "--no-figure", "--out")
    shutil.copy(tmp_path / "box.json", tmp_path / "no.json")
    shutil.copy(tmp_path / "new.nii.gz", tmp_path / "no.nii.gz")
    assert run(*words, out)[0] == 0
    assert (out / "two" / "repeat.json").exists()
    for name in ("no.json", "no.nii.gz"):
        (tmp_path / name).unlink()
    code, text, error = run(*words, out)
    assert code == 0, error
    assert list((out / "two").iterdir()) == []
    first, second, third = text.splitlines()[:3]
    missing = f"{tmp_path / 'no.json'}: no such file; "
    assert first.startswith(f"failed: two: {table}, row 3: {missing}")
    assert f"{tmp_path / 'no.nii.gz'}: no such file; " in second
    assert third.startswith("one: repeated; ")
    assert pd.read_csv(out / "failed.tsv", sep="\t")["name"].tolist() == ["two", "three"]
    table.write_text("\n".join(rows[:1] + rows[2:]) + "\n")
    code, text, error = run(*words, out)
    assert code == 2
    assert f"error: {table}, row 2: {missing}" in error
    assert text.startswith(f"failed: three: {table}, row 3: {missing}")
    assert (out / "one" / "repeat.json").exists()


def test_bad_input_is_one_line(run, tmp_path, visits):
    old, box, new = (tmp_path / name for name in ("old.nii.gz", "box.json", "new.nii.gz"))
    nowhere = tmp_path / "nowhere.nii.gz"
    image = nib.Nifti1Image(np.ones((20, 20, 20), np.float32), None)
    nib.save(image, nowhere)
    (tmp_path / "far.json").write_text(Voxel((400, 0, 0), (20, 20, 20)).to_json())
    pose = {"center_mm": BOX.center.tolist(), "angles_deg": BOX.angles.tolist()}
    content = {"format": "placement prescription", "size_mm": BOX.size.tolist(), "ras": pose}
    content["sources"] = {"Image": {"Name": "first.nii.gz", "SHA256": "0"}}
    (tmp_path / "placed.json").write_text(json.dumps(content))
    affine = AFFINE.copy()
    affine[0, 3] += 40
    labels = np.where(np.indices((80, 96, 76)).max(axis=0) < 40, 4, 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "tumor.nii.gz")
    cases = (
        ((old, tmp_path / "placed.json", new), "placed.json was placed in first.nii.gz, and "),
        ((old, box, new, "--tumor", tmp_path / "tumor.nii.gz", "--labels", "brats2013"), "up to 40 mm apart"),
        ((old, box), "name three files, OLD_T1 BOX NEW_T1, or a table"),
        ((old, box, old), "is both the old and the new scan"),
        ((old, box, tmp_path / "absent.nii.gz"), "absent.nii.gz: no such file"),
        ((old, box, nowhere), "nowhere.nii.gz has neither an sform nor a qform"),
        ((old, tmp_path / "far.json", new), "lies outside"),
        ((old, new, new), "new.nii.gz: it holds 80 × 96 × 76 voxels"),
    )
    for number, (words, message) in enumerate(cases):
        out = tmp_path / f"refused {number}"
        code, text, error = run("repeat", *words, "--out", out, "--no-figure")
        assert code == 2, (message, text, error)
        lines = [line for line in error.splitlines() if message in line]
        assert len(lines) == 1, error
        assert not (out / "repeats.tsv").exists()
