"""Commands that place voxels: place over many cases, and prescribe for one box."""

import html
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit import MapFitter, Protocol, save_model
from placement.box.voxel import Voxel


def placements(out):
    return pd.read_csv(out / "placements.tsv", sep="\t", keep_default_na=False)


def content_of(folder):
    return json.loads((folder / "voxel.json").read_text(encoding="utf-8"))


def test_what_is_shown_of_simulation_follows_the_table(run, tmp_path, ball):
    table, out = tmp_path / "cases.tsv", tmp_path / "placed"
    shown = {}
    for words in ("true\tfalse", "false\tn/a"):
        rows = [f"{name}\tball.nii.gz\t{word}" for name, word in zip(("one", "two"), words.split("\t"), strict=True)]
        table.write_text("\n".join(["name\ttumor\tsynthetic", *rows]) + "\n")
        code, text, error = run("place", table, "--out", out)
        assert code == 0, error
        synthetic = [json.loads((out / name / "voxel.json").read_text())["synthetic"] for name in ("one", "two")]
        shown[words] = (text, (out / "index.html").read_text(encoding="utf-8"), synthetic)
    text, page, synthetic = shown["true\tfalse"]
    assert "synthetic cases: no clinical result" in text
    assert "Synthetic data: 1 of 2 cases were simulated" in page
    assert synthetic == [True, False]
    text, page, synthetic = shown["false\tn/a"]
    assert "ynthetic" not in text + page
    assert synthetic == [False, False]
    table.write_text("name\ttumor\tsynthetic\none\tball.nii.gz\tperhaps\n")
    code, _, error = run("place", table, "--out", out)
    assert code == 2
    assert "cases.tsv, row 2: synthetic must be true or false, not 'perhaps'" in error


def test_a_folder_of_masks_is_placed_in(run, tmp_path, ball):
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.nii.gz").write_bytes((tmp_path / "ball.nii.gz").read_bytes())
    code, _, error = run("place", folder, "--out", tmp_path / "placed", "--no-figure")
    assert code == 0, error
    assert f"2 cases in {folder}: one, two" in error
    assert list(placements(tmp_path / "placed")["name"]) == ["one", "two"]


def test_scattered_labels_may_be_tolerated(run, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[8:32, 8:32, 8:32] = np.where(rng.random((24, 24, 24)) < 0.01, 1, 3)
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.eye(4)), path)
    words = ("place", path, "--include", "3", "--exclude", "1", "--no-figure", "--out")
    flags = {}
    for name, more in (("strict", ()), ("tolerant", ("--tolerance", 0.05))):
        code, _, error = run(*words, tmp_path / name, *more)
        assert code == 0, error
        flags[name] = json.loads(next((tmp_path / name).glob("*/voxel.json")).read_text())["flags"]
    assert flags["tolerant"] == []
    assert flags["strict"]


def test_a_run_goes_on_where_it_stopped_and_sees_changed_masks(run, tmp_path, ball):
    table = tmp_path / "cases.tsv"
    table.write_text("name\ttumor\none\tball.nii.gz\ntwo\tball.nii.gz\n")
    out = tmp_path / "placed"
    assert run("place", table, "--out", out, "--no-figure")[0] == 0
    first = (out / "placements.tsv").read_text()
    (out / "two" / "voxel.json").unlink()
    before = (out / "one" / "voxel.json").stat().st_mtime_ns
    assert run("place", table, "--out", out, "--no-figure")[0] == 0
    assert (out / "one" / "voxel.json").stat().st_mtime_ns == before
    assert (out / "placements.tsv").read_text() == first
    image = nib.load(ball)
    changed = np.roll(np.asarray(image.dataobj), 5, axis=0)
    nib.save(nib.Nifti1Image(changed, image.affine), ball)
    assert run("place", table, "--out", out, "--no-figure")[0] == 0
    np.testing.assert_allclose(placements(out)["x"], 50, atol=3)
    assert run("place", table, "--out", out)[0] == 0
    assert all((out / name / "voxel_overlay.png").exists() for name in ("one", "two"))
    assert (out / "index.html").read_text(encoding="utf-8").count("<img") == 2
    code, _, error = run("place", table, "--out", out, "--min-volume", 4)
    assert code == 2
    assert "other options (optimizer)" in error


def test_a_case_that_fails_leaves_the_others(run, tmp_path, ball):
    image = nib.load(ball)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), tmp_path / "empty.nii.gz")
    table = tmp_path / "cases.tsv"
    table.write_text("name\ttumor\none\tempty.nii.gz\ntwo\tball.nii.gz\n")
    out = tmp_path / "placed"
    code, said, error = run("place", table, "--out", out)
    assert code == 0, error
    assert "failed: one: " in said
    assert "1 case placed" in said
    (row,) = pd.read_csv(out / "failed.tsv", sep="\t").itertuples()
    assert row.name == "one"
    assert row.problem in html.unescape((out / "index.html").read_text(encoding="utf-8"))
    assert placements(out)["name"].tolist() == ["two"]
    # The case is tried again, and the table of the first run goes.
    (tmp_path / "empty.nii.gz").write_bytes(ball.read_bytes())
    assert "2 cases placed" in run("place", table, "--out", out)[1]
    assert not (out / "failed.tsv").exists()
    # An earlier box does not stay where its case fails.
    assert (out / "one" / "voxel_philips.txt").exists()
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), tmp_path / "empty.nii.gz")
    code, said, error = run("place", table, "--out", out, "--fail-on-flag")
    assert code == 3, error
    assert "flagged: 0 of 1; failed: 1\n" in said
    assert list((out / "one").iterdir()) == []
    # A missing file is told before the first case, and its row alone fails.
    table.write_text("name\ttumor\ntwo\tball.nii.gz\nthree\tno.nii.gz\nfour\tno.nii.gz\n")
    code, said, error = run("place", table, "--out", out)
    assert code == 0, error
    assert said.startswith(f"failed: three: {table}, row 3: {tmp_path / 'no.nii.gz'}: no such file")
    assert pd.read_csv(out / "failed.tsv", sep="\t")["name"].tolist() == ["three", "four"]
    assert run("place", table, "--out", out, "--fail-on-flag")[0] == 3
    # With no case left nothing of the earlier run is touched.
    table.write_text("name\ttumor\ntwo\tno.nii.gz\n")
    code, said, error = run("place", table, "--out", out)
    assert code == 2
    assert f"error: {table}, row 2: {tmp_path / 'no.nii.gz'}: no such file" in error
    assert (out / "two" / "voxel_philips.txt").exists()
    assert (out / "placements.tsv").exists()
    table.write_text("name\ttumor\none\tempty.nii.gz\n")
    assert run("place", table, "--out", out)[0] == 2
    assert sorted(path.name for path in out.iterdir()) == ["failed.tsv", "one", "settings.json", "two"]


def test_a_case_is_placed_anew_when_its_table_excludes_other_labels(run, tmp_path, ball):
    image = nib.load(ball)
    values = np.asarray(image.dataobj).copy()
    values[:16], values[24:] = 3 * values[:16], 5 * values[24:]
    nib.save(nib.Nifti1Image(values, image.affine), ball)
    table, out, contents = tmp_path / "cases.tsv", tmp_path / "placed", {}
    for labels in ("3", "5", "n/a"):
        table.write_text(f"name\ttumor\texclude\none\tball.nii.gz\t{labels}\n")
        code, _, error = run("place", table, "--out", out, "--include", "1", "--margin", 4, "--no-figure")
        assert code == 0, error
        contents[labels] = json.loads((out / "one" / "voxel.json").read_text())
    assert contents["3"]["ras"]["center_mm"][0] > 40 > contents["5"]["ras"]["center_mm"][0]
    assert contents["n/a"]["regions"] == {}


def test_a_model_of_something_else_is_refused(run, tmp_path, cases):
    model = tmp_path / "maps.dmrifit"
    b = np.array([0.0, 500, 1000])
    save_model(MapFitter("adc", Protocol(b)).fit(np.exp(-b * np.array([[1e-3], [2e-3]]))), model)
    code, _, error = run("place", cases / "cases.tsv", "--model", model, "--out", tmp_path / "x")
    assert code == 2
    assert "holds a MapFitter, which places no voxels" in error


def test_names_that_would_leave_the_folder_are_refused(run, tmp_path, ball):
    table = tmp_path / "cases.tsv"
    table.write_text("name\ttumor\n../one\tball.nii.gz\n")
    code, _, error = run("place", table, "--out", tmp_path / "placed")
    assert code == 2
    assert "../one" in error


def test_a_hand_made_pose_is_evaluated_and_moved(run, tmp_path, ball):
    matrix = np.eye(4)
    matrix[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    matrix[:3, 3] = [80, 0, 0]
    np.savetxt(tmp_path / "move.txt", matrix)
    code, out, _ = run(
        *("prescribe", ball, "--center", "40,40,40", "--size", "10,20,20", "--out", tmp_path / "voxel"),
        *("--matrix", tmp_path / "move.txt", "--ppm=-1,1", "--percent-per-ppm", 3, "--no-figure"),
    )
    assert code == 0
    assert "(4.0 mL)" in out
    assert "volume below min_volume" in out
    content = json.loads((tmp_path / "voxel" / "voxel.json").read_text())
    box = Voxel(content["ras"]["center_mm"], content["size_mm"], content["ras"]["angles_deg"])
    assert box.dice(Voxel((40, 40, 40), (20, 10, 20))) == pytest.approx(1)
    assert content["displacement"]["percent_per_ppm"] == [3, 3, 3]


def test_one_case_is_placed_inside_its_tumor_with_sides_in_whole_millimeters(run, tmp_path, ball):
    out = tmp_path / "placed"
    code, text, error = run("place", ball, "--out", out, "--no-figure")
    assert code == 0, error
    first, second, last = text.splitlines()
    assert first.startswith("ball: ")
    assert "mL) at" in first
    assert "% of it are target (tumor)" in first
    assert second == f"1 case placed: {out}"
    assert last == "flagged: 0 of 1"
    (row,) = placements(out).itertuples()
    sides = np.array([row.size_x, row.size_y, row.size_z])
    center = np.array([row.x, row.y, row.z])
    np.testing.assert_array_equal(sides, sides.round())
    np.testing.assert_array_equal(center, center.round(1))
    np.testing.assert_allclose(center, 40, atol=3)
    assert row.volume_ml == pytest.approx(sides.prod() / 1000)
    assert row.tumor_fraction > 0.8
    assert not (out / "index.html").exists()
    assert not list(out.rglob("*.png"))


def test_rounding_to_the_console_can_be_left_out(run, tmp_path, ball):
    out = tmp_path / "exact"
    code, _, error = run("place", ball, "--out", out, "--no-figure", "--no-rounding")
    assert code == 0, error
    sides = placements(out)[["size_x", "size_y", "size_z"]].to_numpy()
    assert (sides != sides.round()).any()


def test_sides_and_volume_on_the_command_line_hold_for_the_voxel(run, tmp_path, ball):
    out = tmp_path / "small"
    options = ("--sides", "11,14", "--min-volume", 1.5, "--max-rotations", 0, "--no-figure")
    code, _, error = run("place", ball, "--out", out, *options)
    assert code == 0, error
    (row,) = placements(out).itertuples()
    assert min(row.size_x, row.size_y, row.size_z) >= 11
    assert max(row.size_x, row.size_y, row.size_z) <= 14
    assert row.rotated_angles == 0
    # The ball has room for more.
    assert row.flags == "side at its limit"


def test_what_a_run_was_asked_for_is_kept_with_it(run, tmp_path, ball):
    out = tmp_path / "placed"
    options = ("--thorough", "--seed", 7, "--margin", 2, "--tolerance", 0.1, "--exclude", 1)
    # One label cannot be both, which is known only after the settings are written.
    code, _, error = run("place", ball, "--out", out, "--include", 1, *options)
    assert code == 2
    assert "labels [1] are included and excluded at once" in error
    settings = (out / "settings.json").read_text(encoding="utf-8")
    for words in ('"margin": 2', '"tolerance": 0.1', '"exclude": "1"', "thorough=True", "random_state=7"):
        assert words in settings


def test_a_box_inside_the_ball_is_described_and_its_numbers_are_explained(run, tmp_path, ball):
    words = ("prescribe", ball, "--center", "40,40,40", "--no-figure", "--out")
    code, text, _ = run(*words, tmp_path / "inside", "--size", "20,20,20")
    assert code == 0
    assert text.startswith("ball: 20 × 20 × 20 mm (8.0 mL) at 40.0, 40.0, 40.0 mm RAS+; 100 %")
    assert "tumor fraction 1.000: the part of the box that is tumor, best 0.95" in text
    assert "volume of it 8.00 mL, best 12.9 mL" in text
    assert "objective 0.518: how near both are to their best, from 0 to 1" in text
    # A cube of 100 mm around a ball of 18 mm.
    code, text, _ = run(*words, tmp_path / "around", "--size", "100,100,100", "--angles", "0,0,30")
    assert code == 0
    share = 4 / 3 * np.pi * 18**3 / 100**3
    fraction = float(text.split("tumor fraction ")[1].split(":")[0])
    assert fraction == pytest.approx(share, abs=2e-3)
    box = content_of(tmp_path / "around")
    assert box["ras"]["angles_deg"] == pytest.approx([0, 0, 30])
    assert content_of(tmp_path / "inside")["size_mm"] == [20, 20, 20]


def test_distance_to_what_is_excluded_is_measured_and_flagged(run, tmp_path, ball):
    wall = np.zeros((40, 40, 40), np.uint8)
    wall[30:] = 1  # from 59 mm on
    nib.save(nib.Nifti1Image(wall, np.diag([2.0, 2, 2, 1])), tmp_path / "wall.nii.gz")
    words = ("prescribe", ball, "--center", "40,40,40", "--size", "20,20,20", "--no-figure")
    flags = {}
    for margin in (0, 10):
        folder = tmp_path / f"margin {margin}"
        options = ("--exclude", tmp_path / "wall.nii.gz", "--margin", margin, "--out", folder)
        code, text, error = run(*words, *options)
        assert code == 0, error
        content = content_of(folder)
        (region,) = content["regions"].values()
        assert region["distance_mm"] == pytest.approx(59 - 50, abs=0.01)
        assert region["margin_mm"] == margin
        flags[margin] = content["flags"]
        assert all(flag in text.splitlines()[0] for flag in content["flags"])
        assert text.splitlines()[-1] == f"flagged: {len(content['flags'])} of 1"
    assert not flags[0]
    assert len(flags[10]) == 1


def test_a_prescription_is_replaced_only_on_request(run, tmp_path, ball):
    words = ("prescribe", ball, "--center", "40,40,40", "--no-figure", "--out", tmp_path / "voxel")
    assert run(*words, "--size", "20,20,20")[0] == 0
    code, _, error = run(*words, "--size", "10,20,20")
    assert code == 2
    assert "overwrite" in error
    assert content_of(tmp_path / "voxel")["volume_ml"] == pytest.approx(8)
    assert run(*words, "--size", "10,20,20", "--overwrite")[0] == 0
    assert content_of(tmp_path / "voxel")["volume_ml"] == pytest.approx(4)


def test_a_scanners_box_is_read_and_drawn_on_its_image(run, tmp_path, data_dir):
    boxes = data_dir / "mrs_boxes"
    name = "UnEdited_with_MM_data__sub-01_ses-01_press__sub-01_ses-01_PRESS_raw-act_noID.SPAR"
    picture = tmp_path / "box.png"
    command = ("read", boxes / "spar" / name, "--image", boxes / "t1_brain.nii.gz", "--out", picture)
    code, text, error = run(*command)
    assert code == 0
    # Both were stripped of names, so that nothing links them.
    assert "neither a patient nor a frame of reference is named in both files. 100% of the box lie in the head" in error
    assert "Philips SPAR: 20.28 mL; it crosses x = 0" in text
    assert "center, mm RAS+: 1.568, -35.647, 30.271" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, error = run(*command)
    assert code == 2
    assert "already exists" in error


def test_the_box_of_another_patient_is_told_and_that_of_the_same_is_not(run, tmp_path, data_dir):
    boxes = data_dir / "mrs_boxes"
    image = tmp_path / "t1.nii.gz"
    image.write_bytes((boxes / "t1_brain.nii.gz").read_bytes())
    for name, date, words in (("446", "20160429", "two patients (PatientName)"), ("445", "20160429", ""),
                              ("445", "20170101", "two days (20160429 and 20170101)")):  # fmt: skip
        (tmp_path / "t1.json").write_text(json.dumps({"PatientName": name, "AcquisitionDate": date}))
        picture = ("--image", image, "--out", tmp_path / "box.png", "--overwrite")
        code, _, error = run("read", boxes / "siemens_svs_30.rda", *picture)
        assert code == 0
        assert words in error
        assert bool(error) == bool(words)


def test_a_tumor_of_edema_with_stray_enhancing_voxels_gets_a_box_by_flair_target(run, tmp_path):
    index = np.moveaxis(np.indices((60, 60, 60)), 0, -1)
    values = np.where(np.linalg.norm(index - 30, axis=-1) < 18, 2, 0).astype(np.uint8)
    values[20:25, 30, 30] = 4
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "labels.nii.gz")
    command = ("place", tmp_path / "labels.nii.gz", "--labels", "brats2017", "--no-figure", "--out")
    code, text, error = run(*command, tmp_path / "bright", "--flair-target")
    assert code == 0, error
    assert "the target is FLAIR-bright tissue (edema, enhancing; 24.3 mL), because solid tumor" in text
    content = content_of(tmp_path / "bright" / "labels")
    assert content["scores"]["tumor_fraction"] > 0.9
    assert content["tumor"]["volume_ml"] == pytest.approx(np.count_nonzero(values) / 1000)
    philips = (tmp_path / "bright" / "labels" / "voxel_philips.txt").read_text()
    assert f"! angles to set: {content['console']['angles']['philips']} of 3" in philips
    code, text, _ = run(*command, tmp_path / "solid")
    assert code == 0
    assert "has 0.005 mL of 24.3 mL labeled, less than the smallest volume of 6 mL: --flair-target" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image", "ball.nii.gz"), "needs both --image"),
        (("--image", "ball.nii.gz", "--out", "box.png"), "lies outside ball.nii.gz"),
        (("--image", "ball.nii.gz", "--out", "ball.nii.gz", "--overwrite"), "ends in .png"),
        (("--image", "nowhere.nii.gz", "--out", "box.png"), "neither an sform nor a qform"),
    ],
)
def test_a_box_is_not_drawn_where_it_was_not_measured(run, tmp_path, ball, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "box.json").write_text(Voxel((900, 0, 0), (20, 20, 20)).to_json())
    nowhere = nib.load("ball.nii.gz")
    nowhere.set_sform(None, code=0)
    nowhere.set_qform(None, code=0)
    nib.save(nowhere, "nowhere.nii.gz")
    code, _, error = run("read", "box.json", *options)
    assert code == 2
    assert message in error
    assert not (tmp_path / "box.png").exists()


def test_a_bad_reason_to_force_is_refused_before_any_work(run, tmp_path, ball):
    forced = ("--force", "pilot\nap_size : 90", "--out", tmp_path / "out")
    for command in (("place", ball), ("prescribe", ball, "--center", "40,40,40", "--size", "20,20,20")):
        code, _, error = run(*command, *forced)
        assert code == 2
        assert "one line of printable text" in error
        assert not (tmp_path / "out").exists()


def test_angles_in_radians_are_doubted_and_beyond_a_full_turn_refused(run, tmp_path, ball):
    words = ("prescribe", ball, "--center", "40,40,40", "--size", "20,20,20", "--brain", "none", "--no-figure")
    code, _, error = run(*words, "--angles", ".5,.5,.5", "--out", tmp_path / "equal")
    assert code == 0
    assert "may be radians" in error
    (tmp_path / "box.json").write_text(Voxel((1, 2, 3), (20, 20, 20), (0.5, 0.3, 0)).to_json())
    code, _, error = run("read", tmp_path / "box.json")
    assert code == 0
    assert "its angles are all below π (0.5, 0.3, 0): degrees are expected, and these may be radians" in error
    code, _, error = run(*words, "--angles", "0,400,0", "--out", tmp_path / "turns")
    assert code == 2
    assert "more than a full turn" in error
