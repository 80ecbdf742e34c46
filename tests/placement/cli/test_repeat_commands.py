"""The command repeat: files, tables of visits, resuming, refusals of one line."""

import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from moved_heads import AFFINE, SHAPE, head_signals, moved

from placement import Voxel, read_voxel
from placement.exchange import voxel_files
from placement.exchange.tables import BOX as NUMBERS

pytest.importorskip("SimpleITK")

BOX = Voxel((10, -15, 12), (20, 25, 22), (10, -15, 20))
FILES = ("old.nii.gz", "box.json", "new.nii.gz")


@pytest.fixture(autouse=True)
def expected(tmp_path, monkeypatch):
    """Work beside two scans of a head and a box of the first; give the box where it is in the second."""
    monkeypatch.chdir(tmp_path)
    later, truth = moved(head_signals(0), (10, -8, 12), (9, -12, 7))
    save(head_signals(0), "old.nii.gz")
    nib.save(later, "new.nii.gz")
    Path("box.json").write_text(BOX.to_json())
    Path("far.json").write_text(Voxel((400, 0, 0), (20, 20, 20)).to_json())
    return BOX.transform(truth)


def save(values, name, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), name)


def write_visits(*visits):
    """Write a table of visits from names, boxes, new scans and masks."""
    rows = [(name, "old.nii.gz", *files) for name, *files in visits]
    columns = ["name", "old", "box", "new", "tumor"][: len(rows[0])]
    pd.DataFrame(rows, columns=columns).to_csv("visits.tsv", sep="\t", index=False)


def read_table(name):
    return pd.read_csv(Path("out") / name, sep="\t")


def test_repeat_writes_numbers_and_page_and_resumes(output_of, expected):
    write_visits(("p1-v2", "box.json", "new.nii.gz"))
    words = ("repeat", "--table", "visits.tsv", "--out", "out")
    text = output_of(*words)
    assert "p1-v2: repeated; agreement " in text
    page = (Path("out") / "index.html").read_text(encoding="utf-8")
    for shown in (text, page):
        assert "ontent unknown: tumor may have grown, shrunk or been removed" in shown
    assert [page.count(words_of_page) for words_of_page in ("Copy</button>", "sides, mm", "rotated")] == [2, 1, 2]
    case = Path("out") / "p1-v2"
    for name in ("voxel_philips.txt", "voxel_geometry.nii.gz", "repeat.json"):
        assert read_voxel(case / name).dice(expected) > 0.98
    assert nib.load(case / "voxel_mask.nii.gz").get_fdata().sum() * 8e-3 == pytest.approx(BOX.volume, rel=0.05)
    for words_of_page in ("Not for clinical use", "valid only while the patient lies as in new.nii.gz"):
        assert words_of_page in (case / "voxel_view.html").read_text(encoding="utf-8")
    assert Voxel.from_array(read_table("repeats.tsv").iloc[0][list(NUMBERS)]).dice(expected) > 0.98
    written = (case / "repeat.json").stat().st_mtime_ns
    output_of(*words)
    assert (case / "repeat.json").stat().st_mtime_ns == written
    Path("box.json").write_text(Voxel(BOX.center + 5, BOX.size).to_json())
    output_of(*words)
    assert (case / "repeat.json").stat().st_mtime_ns != written


@pytest.mark.slow
def test_unreliable_repeats_have_no_console_numbers(run):
    Path("old.json").write_text(json.dumps({"PatientID": "A"}))
    Path("new.json").write_text(json.dumps({"PatientID": "B"}))
    code, text, _ = run("repeat", *FILES, "--out", "out", "--no-figure", "--fail-on-flag")
    assert [code, "flagged: 1 of 1" in text] == [3, True]
    assert " mm apart; the headers name two patients (PatientID)" in " ".join(text.split())
    assert [path.name for path in Path("out/new").iterdir()] == ["repeat.json"]
    assert np.isnan(read_table("repeats.tsv")["x"]).all()


def test_labels_of_the_new_scan_tell_what_the_box_holds(output_of, expected):
    save(np.where(expected.mask(SHAPE, AFFINE), 2, 0).astype(np.uint8), "tumor.nii.gz")
    text = output_of("repeat", *FILES, "--tumor", "tumor.nii.gz", "--labels", "brats2013", "--flair-target", "--out", "out")
    text = " ".join(text.split())
    assert float(text.partition("; edema ")[2].partition(" ")[0]) >= 90
    assert "content unknown" not in text
    assert "(default of place --min-volume)" in text
    advice = json.loads(Path("out/new/repeat.json").read_text())["advice"]
    (angles,) = [sentence for sentence in advice if sentence.startswith("too many rotations: ")]
    assert angles.partition("; ")[2] == "set all angles on the console, or place a box anew"
    assert angles in text
    # A box of little target gets no numbers, as where it is prescribed, and both scans show why.
    save(Voxel(expected.center, 0.6 * expected.size, expected.angles).mask(SHAPE, AFFINE).astype(np.uint8), "tumor.nii.gz")
    text = output_of("repeat", *FILES, "--tumor", "tumor.nii.gz", "--out", "out", "--overwrite")
    assert "--max-rotations" not in text
    # The better box is named by a command that runs as printed, on one line.
    (command,) = re.findall(r"^ *\((dmrifit-placement prescribe .*)\),$", text, re.MULTILINE)
    output_of(*shlex.split(command)[1:], "--no-figure")
    text = " ".join(text.split())
    for words in ("less than 50 % target: ask a spect", "no numbers for consoles: no box of ≥ 6 mL reaches 50 % target"):
        assert f"; {words}" in text
    assert read_table("repeats.tsv")["target"].tolist() == pytest.approx([0.6**3], abs=0.03)
    assert read_table("repeats.tsv")["flags"][0].endswith("less than 50 % target")
    assert not list(Path("out/new").glob("voxel_[ps]*.txt"))


def test_one_bad_visit_of_a_table_does_not_keep_others_from_being_repeated(run):
    Path("cut.json").write_text("{")
    save(np.zeros(SHAPE, np.uint8), "empty.nii.gz")
    masks = {"far": ("far.json", ""), "cut": ("cut.json", ""), "empty": ("box.json", "empty.nii.gz"), "good": ("box.json", "")}
    write_visits(*((name, box, "new.nii.gz", mask) for name, (box, mask) in masks.items()))
    code, text, error = run("repeat", "--table", "visits.tsv", "--out", "out", "--no-figure", "--fail-on-flag")
    assert code == 3, error
    said = "failed: far: the box at 400, 0, 0 mm (RAS+) lies outside", "good: repeated; agreement ", "failed: empty: "
    assert [words for words in (*said, "cut.json: it is no JSON", "flagged: 0 of 1; failed: 3") if words not in text] == []
    assert not Path("out/far").exists()
    assert list(read_table("repeats.tsv")["answer"]) == ["repeated"]


def test_visits_that_lack_a_file_are_listed_before_others_are_repeated(run, output_of, tmp_path):
    words = ("repeat", "--table", tmp_path / "visits.tsv", "--no-figure", "--out", "out")
    one, two, three = ("one", *FILES[1:]), ("two", "no.json", "no.nii.gz"), ("three", "no.json", "no.nii.gz")
    write_visits(("one", *FILES[1:]), ("two", *FILES[1:]))
    output_of(*words)
    assert Path("out/two/repeat.json").exists()
    write_visits(one, two, three)
    first, second, third = output_of(*words).splitlines()[:3]
    assert list(Path("out/two").iterdir()) == []
    missing = f"{tmp_path / 'no.json'}: no such file; "
    assert first.startswith(f"failed: two: {tmp_path / 'visits.tsv'}, row 3: {missing}")
    assert f"{tmp_path / 'no.nii.gz'}: no such file; " in second
    assert third.startswith("one: repeated; ")
    assert read_table("failed.tsv")["name"].tolist() == ["two", "three"]
    write_visits(two, three)
    code, text, error = run(*words)
    assert code == 2
    assert f"error: {tmp_path / 'visits.tsv'}, row 2: {missing}" in error
    assert text.startswith(f"failed: three: {tmp_path / 'visits.tsv'}, row 3: {missing}")
    assert Path("out/one/repeat.json").exists()


def test_boxes_of_another_frame_of_reference_are_refused(error_of, monkeypatch):
    scan = voxel_files.VoxelFile(BOX, "Siemens DICOM", frame="1.2.3")
    monkeypatch.setattr(voxel_files, "read_voxel_file", lambda path: scan)
    Path("old.json").write_text(json.dumps({"FrameOfReferenceUID": "1.2.4"}))
    assert "has the frame of reference 1.2.3" in error_of("repeat", *FILES, "--out", "out")


OLD, CASE, NEW = FILES
LABELS = ("--tumor", "tumor.nii.gz", "--labels", "brats2013")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((OLD, "placed.json", NEW), "placed.json was placed in first.nii.gz, and "),
        ((OLD, CASE, NEW, *LABELS), "up to 40 mm apart"),
        ((OLD, CASE), "name three files, OLD_T1 BOX NEW_T1, or a table"),
        ((OLD, CASE, OLD), "is both the old and the new scan"),
        ((OLD, CASE, "absent.nii.gz"), "absent.nii.gz: no such file"),
        ((OLD, CASE, "nowhere.nii.gz"), "nowhere.nii.gz has neither an sform nor a qform"),
        ((OLD, "far.json", NEW), "lies outside"), ((OLD, NEW, NEW), "new.nii.gz: it holds 80 × 96 × 76 voxels"),
    ],
)
def test_bad_input_is_one_line(error_of, words, message):
    save(np.ones((20, 20, 20), np.float32), "nowhere.nii.gz", None)
    pose = json.loads(BOX.to_json())
    content = {"format": "placement prescription", "size_mm": pose["size_mm"], "ras": pose}
    Path("placed.json").write_text(json.dumps(content | {"sources": {"Image": {"Name": "first.nii.gz", "SHA256": "0"}}}))
    shifted = AFFINE + np.array([[0, 0, 0, 40]] + 3 * [[0] * 4])
    save(np.where(np.indices(SHAPE).max(axis=0) < 40, 4, 0).astype(np.uint8), "tumor.nii.gz", shifted)
    error = error_of("repeat", *words, "--out", "out", "--no-figure")
    assert sum(message in line for line in error.splitlines()) == 1
    assert not Path("out/repeats.tsv").exists()
