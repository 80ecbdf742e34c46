"""Commands that place voxels: place over many cases, prescribe for one box, read of a scanner's box."""

import html
import json
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit import MapFitter, Protocol, save_model
from dmrifit._utils.text_files import sealed
from dmrifit.cli import case_runs
from placement.box.voxel import Voxel
from placement.cli.placement_commands import RUN, ShiftOptions, broken
from placement.exchange.prescription import describe_placement
from placement.exchange.tables import BOX, read_boxes
from placement.search.scene import Scene

SIDES = ["size_x", "size_y", "size_z"]


def placements(out):
    return pd.read_csv(out / "placements.tsv", sep="\t", keep_default_na=False)


def content_of(folder):
    return json.loads((folder / "voxel.json").read_text(encoding="utf-8"))


def page_of(folder):
    return (folder / "index.html").read_text(encoding="utf-8")


def save(path, values, affine=None):
    nib.save(nib.Nifti1Image(np.asarray(values, np.uint8), np.diag([2.0, 2, 2, 1]) if affine is None else affine), path)
    return path


def test_chemical_shifts_need_a_range_and_one_rate_or_three():
    assert ShiftOptions().of_prescription() == {}
    for rates, percent in (((3.0,), 3.0), ((3.0, 4.0, 5.5), (3.0, 4.0, 5.5))):
        shift = ShiftOptions(ppm=(-1.0, 2.5), percent_per_ppm=rates).of_prescription()
        assert shift == {"ppm_range": (-1.0, 2.5), "percent_per_ppm": percent}


@pytest.fixture(scope="module")
def contents():
    """Describe a box with flags and one without, in a cube of 40 mm."""
    cube, wall = np.zeros((2, 40, 40, 40), bool)
    cube[10:30, 10:30, 10:30], wall[36:] = True, True
    scene = Scene(cube, np.diag([2.0, 2, 2, 1]), exclude={"ventricles": wall})
    boxes = {
        "second": Voxel((39.5, 38, 41), (20, 21, 22), (0, 0, 12.5)),
        "first": Voxel((36, 35, 40 + 1 / 3), (11, 12, 13), (1, 2, 3)),
    }
    return {name: describe_placement(box, scene) | {"placed_by": f"hand of {name}"} for name, box in boxes.items()}


def test_the_table_has_a_row_for_each_case_in_their_order_and_its_boxes_are_read_back(contents, tmp_path):
    RUN.write(tmp_path, contents, figure=False)
    table = placements(tmp_path)
    scores = ["volume_mL", "objective", "tumor_fraction", "tumor_volume_inside_mL"]
    to_set = ["angles_to_set_philips", "angles_to_set_siemens"]
    assert list(table) == ["name", *BOX, *to_set, *scores, "rotated_axes", "rotated_angles", "target", "outside", "outside_brain", "flags", "placed_by"]
    assert table["name"].tolist() == ["second", "first"]
    np.testing.assert_allclose(table["volume_mL"], [9.24, 1.716])
    np.testing.assert_allclose(table[["tumor_fraction", "target"]], 1, atol=1e-6)
    np.testing.assert_allclose(table["tumor_volume_inside_mL"], table["volume_mL"], rtol=1e-6)
    np.testing.assert_allclose(table["objective"], [one["scores"]["objective"] for one in contents.values()])
    assert table["outside_brain"].tolist() == ["n/a", "n/a"]
    assert table[["rotated_angles", *to_set]].to_numpy().tolist() == [[1, 1, 1], [3, 3, 3]]
    assert table["flags"].tolist() == ["", "box below the smallest volume; too many rotations"]
    # Twelve digits are more than any scanner takes.
    assert "40.3333333333\t" in (tmp_path / "placements.tsv").read_text()
    boxes = read_boxes(tmp_path / "placements.tsv", ["first", "second"])
    assert boxes[0].tolist() == pytest.approx([36, 35, 40 + 1 / 3, 11, 12, 13, 1, 2, 3])
    assert boxes[1].tolist() == pytest.approx([39.5, 38, 41, 20, 21, 22, 0, 0, 12.5])


@pytest.mark.parametrize("absent", ["jinja2", "matplotlib"])
def test_without_the_libraries_of_pages_there_is_only_the_table(contents, tmp_path, monkeypatch, absent):
    monkeypatch.setattr(case_runs, "find_spec", lambda name: None if name == absent else find_spec(name))
    RUN.write(tmp_path, contents, figure=True)
    assert [path.name for path in tmp_path.iterdir()] == ["placements.tsv"]


@pytest.mark.parametrize(("words", "synthetic"), [("true false", [True, False]), ("false n/a", [False, False])])
def test_what_is_shown_of_simulation_follows_the_table(output_of, tmp_path, ball, words, synthetic):
    table, out = tmp_path / "cases.tsv", tmp_path / "placed"
    table.write_text("name\ttumor\tsynthetic\none\tball.nii.gz\t{}\ntwo\tball.nii.gz\t{}\n".format(*words.split()))
    text = output_of("place", table, "--out", out)
    assert [content_of(out / name)["synthetic"] for name in ("one", "two")] == synthetic
    assert ("synthetic cases: no clinical result" in text) == any(synthetic)
    assert ("Synthetic data: 1 of 2 cases were simulated" in page_of(out)) == any(synthetic)
    assert ("ynthetic" in text + page_of(out)) == any(synthetic)


def test_a_run_goes_on_where_it_stopped_and_sees_changed_masks(output_of, error_of, tmp_path, ball):
    table, out = tmp_path / "cases.tsv", tmp_path / "placed"
    table.write_text("name\ttumor\none\tball.nii.gz\ntwo\tball.nii.gz\n")
    command = ("place", table, "--out", out)
    output_of(*command, "--no-figure")
    first = (out / "placements.tsv").read_text()
    (out / "two" / "voxel.json").unlink()
    before = (out / "one" / "voxel.json").stat().st_mtime_ns
    output_of(*command, "--no-figure")
    assert (out / "one" / "voxel.json").stat().st_mtime_ns == before
    assert (out / "placements.tsv").read_text() == first
    # A record with the names of an earlier format is not resumed.
    stored = {key: value for key, value in content_of(out / "one").items() if key != "digest"}
    earlier = sealed(stored | {"format_version": 1, "volume_ml": stored["volume_mL"]})
    (out / "one" / "voxel.json").write_text(json.dumps(earlier))
    output_of(*command, "--no-figure")
    assert "volume_ml" not in content_of(out / "one")
    save(ball, np.roll(nib.load(ball).dataobj, 5, axis=0))
    output_of(*command, "--no-figure")
    np.testing.assert_allclose(placements(out)["x"], 50, atol=3)
    output_of(*command)
    assert all((out / name / "voxel_overlay.png").exists() for name in ("one", "two"))
    assert page_of(out).count("<img") == 2
    assert "(--min-volume was 6.0, now 4.0) or another version; repeat" in error_of(*command, "--min-volume", 4)


def test_a_case_that_fails_leaves_the_others(run, output_of, error_of, tmp_path, ball):
    empty = save(tmp_path / "empty.nii.gz", np.zeros((40, 40, 40)))
    table, out = tmp_path / "cases.tsv", tmp_path / "placed"
    table.write_text("name\ttumor\none\tempty.nii.gz\ntwo\tball.nii.gz\n")
    command = ("place", table, "--out", out)
    text = output_of(*command)
    assert all(words in text for words in ("failed: one: ", "1 case placed"))
    (row,) = pd.read_csv(out / "failed.tsv", sep="\t").itertuples()
    assert row.name == "one"
    assert row.problem in html.unescape(page_of(out))
    assert placements(out)["name"].tolist() == ["two"]
    # The case is tried again, and the table of the first run goes.
    empty.write_bytes(ball.read_bytes())
    assert "2 cases placed" in output_of(*command)
    assert not (out / "failed.tsv").exists()
    # An earlier box does not stay where its case fails.
    assert (out / "one" / "voxel_philips.txt").exists()
    save(empty, np.zeros((40, 40, 40)))
    code, text, _ = run(*command, "--fail-on-flag")
    assert code == 3
    assert "flagged: 0 of 1; failed: 1 (failed.tsv)\n" in text
    assert list((out / "one").iterdir()) == []
    # A missing file is told before the first case, and its row alone fails.
    table.write_text("name\ttumor\ntwo\tball.nii.gz\nthree\tno.nii.gz\nfour\tno.nii.gz\n")
    assert output_of(*command).startswith(f"failed: three: {table}, row 3: {tmp_path / 'no.nii.gz'}: no such file")
    assert pd.read_csv(out / "failed.tsv", sep="\t")["name"].tolist() == ["three", "four"]
    assert run(*command, "--fail-on-flag")[0] == 3
    # With no case left nothing of the earlier run is touched.
    table.write_text("name\ttumor\ntwo\tno.nii.gz\n")
    assert f"error: {table}, row 2: {tmp_path / 'no.nii.gz'}: no such file" in error_of(*command)
    assert (out / "two" / "voxel_philips.txt").exists()
    assert (out / "placements.tsv").exists()
    table.write_text("name\ttumor\none\tempty.nii.gz\n")
    error_of(*command)
    assert sorted(path.name for path in out.iterdir()) == ["failed.tsv", "one", "settings.json", "two"]


def test_a_case_is_placed_anew_when_its_table_excludes_other_labels(output_of, tmp_path, ball):
    values = np.asarray(nib.load(ball).dataobj).copy()
    values[:16], values[24:] = 3 * values[:16], 5 * values[24:]
    save(ball, values)
    table, out, contents = tmp_path / "cases.tsv", tmp_path / "placed", {}
    for labels in ("3", "5", "n/a"):
        table.write_text(f"name\ttumor\texclude\none\tball.nii.gz\t{labels}\n")
        output_of("place", table, "--out", out, "--include", "1", "--margin", 4, "--no-figure")
        contents[labels] = content_of(out / "one")
    assert contents["3"]["ras"]["center_mm"][0] > 40 > contents["5"]["ras"]["center_mm"][0]
    assert contents["n/a"]["regions"] == {}


def test_a_model_of_something_else_is_refused(error_of, tmp_path, ball):
    model = tmp_path / "maps.dmrifit"
    b = np.array([0.0, 500, 1000])
    save_model(MapFitter("adc", Protocol(b)).fit(np.exp(-b * np.array([[1e-3], [2e-3]]))), model)
    words = ("place", ball, "--model", model, "--out", tmp_path / "x")
    assert "holds a MapFitter, which places no voxels" in error_of(*words)
    assert "leave out --thorough" in error_of(*words, "--thorough")


def test_one_case_is_placed_inside_its_tumor_with_sides_in_whole_millimeters(output_of, tmp_path, ball):
    out = tmp_path / "placed"
    first, *rest = output_of("place", ball, "--out", out).splitlines()
    assert [first.startswith("ball: "), "% of it is target (tumor)" in first] == [True, True]
    assert max(map(len, (first, *rest[:-2]))) <= 100 < len(" ".join((first, *rest[:-2])))
    assert not [line for line in broken("8 × 9 mm 4 % " * 99).splitlines() if line.strip()[0] in "×m%9"]
    assert rest[-2:] == [f"1 case placed: {out}", "flagged: 0 of 1"]
    (row,) = placements(out).itertuples()
    assert row.placed_by == "VoxelOptimizer(random_state=0, rounding=(0.1, 1.0, 0.1), size_range=(10.0, 60.0))"
    assert content_of(out / "ball")["placed_by"] == row.placed_by
    for path in ("index.html", "ball/voxel_view.html"):
        assert f"Placed by {row.placed_by}" in (out / path).read_text(encoding="utf-8")
    sides = np.array([row.size_x, row.size_y, row.size_z])
    center = np.array([row.x, row.y, row.z])
    np.testing.assert_array_equal(sides, sides.round())
    np.testing.assert_array_equal(center, center.round(1))
    np.testing.assert_allclose(center, 40, atol=3)
    assert row.volume_mL == pytest.approx(sides.prod() / 1000)
    assert row.tumor_fraction > 0.8
    output_of("place", ball, "--out", tmp_path / "exact", "--no-figure", "--no-rounding")
    assert not [path for path in (tmp_path / "exact").rglob("*") if path.suffix in (".html", ".png")]
    assert (placements(tmp_path / "exact")[SIDES] % 1).any(axis=None)


def test_sides_and_volume_on_the_command_line_hold_for_the_voxel(output_of, tmp_path, ball):
    options = ("--sides", "11,14", "--min-volume", 1.5, "--max-rotations", 0, "--no-figure")
    output_of("place", ball, "--out", tmp_path, *options)
    (row,) = placements(tmp_path).itertuples()
    assert 11 <= min(row.size_x, row.size_y, row.size_z) <= max(row.size_x, row.size_y, row.size_z) <= 14
    assert row.rotated_angles == 0
    # The ball has room for more.
    assert row.flags == "side at its limit"


def test_what_a_run_was_asked_for_is_kept_with_it(error_of, tmp_path, ball):
    options = ("--thorough", "--seed", 7, "--margin", 2, "--tolerance", 0.1, "--exclude", 1)
    # One label cannot be both, which is known only after the settings are written.
    words = ("place", ball, "--out", tmp_path / "placed", "--include", 1, *options)
    assert "labels [1] are included and excluded at once" in error_of(*words)
    settings = (tmp_path / "placed" / "settings.json").read_text(encoding="utf-8")
    for words in ('"margin": 2', '"tolerance": 0.1', '"exclude": "1"', '"thorough": true', '"random_state": 7'):
        assert words in settings


def test_a_tumor_of_edema_with_stray_enhancing_voxels_gets_a_box_by_flair_target(output_of, tmp_path):
    radius = np.linalg.norm(np.moveaxis(np.indices((60, 60, 60)), 0, -1) - 30, axis=-1)
    values = np.select([radius < 10, radius < 18], [1, 2])
    values[20:25, 30, 30] = 4
    labels = save(tmp_path / "labels.nii.gz", values, np.eye(4))
    words = ("--labels", "brats2017", "--flair-target", "--no-figure", "--out", tmp_path / "bright")
    text = output_of("place", labels, *words)
    content = content_of(tmp_path / "bright" / "labels")
    for said in (" ".join(text.split()), content["notes"][0]):
        assert "the target is FLAIR-bright tissue (necrosis or non-enhancing, edema, enhancing; 24.3 mL), because" in said
        assert "less than the smallest volume of 6 mL (default of place --min-volume)" in said
    assert content["flags"] == ["more than 10 % necrosis or non-enhancing"]
    assert content["scores"]["tumor_fraction"] > 0.9
    assert content["tumor"]["volume_mL"] == pytest.approx(np.count_nonzero(values) / 1000)
    assert f"! angles to set: {content['console']['angles']['philips']} of 3" in content["console"]["philips"]


def test_a_hand_made_pose_is_evaluated_and_moved(output_of, error_of, tmp_path, ball):
    np.savetxt(tmp_path / "move.txt", [[0, -1, 0, 80], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    words = ("prescribe", ball, "--center", "40,40,40", "--size", "10,20,20", "--out", tmp_path / "voxel")
    shift = ("--ppm=-1,1", "--percent-per-ppm", 3)
    text = output_of(*words, "--matrix", tmp_path / "move.txt", *shift, "--no-figure")
    assert all(words in text for words in ("(4.0 mL)", "box below the smallest volume"))
    content = content_of(tmp_path / "voxel")
    box = Voxel(content["ras"]["center_mm"], content["size_mm"], content["ras"]["angles_deg"])
    assert box.dice(Voxel((40, 40, 40), (20, 10, 20))) == pytest.approx(1)
    assert "overwrite" in error_of(*words)
    assert content["displacement"]["percent_per_ppm"] == [3, 3, 3]


def test_a_box_inside_the_ball_is_described_and_its_numbers_are_explained(output_of, tmp_path, ball):
    words = ("prescribe", ball, "--center", "40,40,40", "--no-figure", "--out")
    text = output_of(*words, tmp_path / "inside", "--size", "20,20,20")
    assert text.startswith("ball: 20 × 20 × 20 mm (8.0 mL) at 40.0, 40.0, 40.0 mm RAS+; 100 %")
    assert "tumor fraction 1.0000: the part of the box that is tumor, best 0.95" in text
    assert "volume of it 8.00 mL, best 12.9 mL (experts' mean)" in text
    assert "objective 0.518: how near both are to their best, 0 to 1" in text
    # A cube of 100 mm around a ball of 18 mm.
    text = output_of(*words, tmp_path / "around", "--size", "100,100,100", "--angles", "0,0,30")
    fraction = float(text.split("tumor fraction ")[1].split(":")[0])
    assert fraction == pytest.approx(4 / 3 * np.pi * 18**3 / 100**3, abs=2e-3)
    assert content_of(tmp_path / "around")["ras"]["angles_deg"] == pytest.approx([0, 0, 30])
    assert content_of(tmp_path / "inside")["size_mm"] == [20, 20, 20]


@pytest.mark.parametrize(("margin", "n_flags"), [(0, 0), (10, 1)])
def test_distance_to_what_is_excluded_is_measured_and_flagged(output_of, tmp_path, ball, margin, n_flags):
    # The wall begins at 59 mm, the box ends at 50 mm.
    wall = save(tmp_path / "wall.nii.gz", np.indices((40, 40, 40))[0] >= 30)
    words = ("prescribe", ball, "--center", "40,40,40", "--size", "20,20,20", "--no-figure")
    text = output_of(*words, "--exclude", wall, "--margin", margin, "--out", tmp_path / "voxel")
    content = content_of(tmp_path / "voxel")
    (region,) = content["regions"].values()
    assert region["distance_mm"] == pytest.approx(59 - 50, abs=0.01)
    assert region["margin_mm"] == margin
    assert len(content["flags"]) == n_flags
    assert all(flag in " ".join(text.split()) for flag in content["flags"])
    assert text.splitlines()[-1] == f"flagged: {n_flags} of 1"


def test_a_bad_reason_to_force_is_refused_before_any_work(error_of, tmp_path, ball):
    forced = ("--force", "pilot\nap_size : 90", "--out", tmp_path / "out")
    for command in (("place", ball), ("prescribe", ball, "--center", "40,40,40", "--size", "20,20,20")):
        assert "one line of printable text" in error_of(*command, *forced)
        assert not (tmp_path / "out").exists()


def test_angles_in_radians_are_doubted_and_beyond_a_full_turn_refused(run, error_of, tmp_path, ball):
    words = ("prescribe", ball, "--center", "40,40,40", "--size", "20,20,20", "--brain", "none", "--no-figure")
    code, _, error = run(*words, "--angles", ".5,.5,.5", "--out", tmp_path / "equal")
    assert [code, "may be radians" in error] == [0, True]
    assert "more than a full turn" in error_of(*words, "--angles", "0,400,0", "--out", tmp_path / "turns")
    image = save(tmp_path / "image.nii.gz", np.zeros((40, 40, 40)))
    _, text, error = run(*words[:-3], "--image", image, "--margin", 2, "--no-figure", "--out", tmp_path / "image")
    assert "margin and tolerance have no effect, because nothing is excluded" in error
    assert "brain unknown, skull and scalp not checked: no brain that holds the tumor was" in " ".join(text.split())
    assert text.count("skull and scalp") == 1
    assert text.endswith("flagged: 1 of 1\n")


def test_a_scanners_box_is_read_and_drawn_on_its_image(run, error_of, tmp_path, data_dir, monkeypatch):
    boxes = data_dir / "mrs_boxes"
    name = "UnEdited_with_MM_data__sub-01_ses-01_press__sub-01_ses-01_PRESS_raw-act_noID.SPAR"
    picture = tmp_path / "box.png"
    command = ("read", boxes / "spar" / name, "--image", boxes / "t1_brain.nii.gz", "--out", picture)
    code, text, error = run(*command)
    assert code == 0
    # Both were stripped of names, so that nothing links them.
    assert "neither a patient nor a frame of reference is named in both files. 100 % of the box lies in the head" in error
    words = ("Philips SPAR: 20.28 mL; rotated by 3 angles; it crosses x = 0", "center, mm RAS+: 1.568, -35.647, 30.271")
    assert [text.count(line) for line in words] == [1, 1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "already exists" in error_of(*command)
    monkeypatch.setattr("placement.exchange.prescription.head_share", lambda *_: 0.99999)
    assert " 100 % of the box lies in the head" in run(*command, "--overwrite")[2]


@pytest.mark.parametrize(
    ("name", "date", "words"),
    [
        ("446", "20160429", "two patients (PatientName)"), ("445", "20160429", ""),
        ("445", "20170101", "two days (2016-04-29 and 2017-01-01)"),
    ],
)
def test_the_box_of_another_patient_is_told_and_that_of_the_same_is_not(run, tmp_path, data_dir, name, date, words):
    boxes, image = data_dir / "mrs_boxes", tmp_path / "t1.nii.gz"
    image.write_bytes((boxes / "t1_brain.nii.gz").read_bytes())
    (tmp_path / "t1.json").write_text(json.dumps({"PatientName": name, "AcquisitionDate": date}))
    code, text, error = run("read", boxes / "siemens_svs_30.rda", "--image", image, "--out", tmp_path / "box.png")
    assert (code, "date: 2016-04-29\n" in text) == (0, True)
    assert words in error
    assert bool(error) == bool(words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image", "ball.nii.gz"), "needs both --image"),
        (("--image", "ball.nii.gz", "--out", "box.png"), "lies outside ball.nii.gz"),
        (("--image", "ball.nii.gz", "--out", "ball.nii.gz", "--overwrite"), "ends in .png"),
        (("--image", "nowhere.nii.gz", "--out", "box.png"), "neither an sform nor a qform"),
    ],
)
def test_a_box_is_not_drawn_where_it_was_not_measured(error_of, tmp_path, ball, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "box.json").write_text(Voxel((900, 0, 0), (20, 20, 20)).to_json())
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), None), "nowhere.nii.gz")
    assert message in error_of("read", "box.json", *options)
    assert not (tmp_path / "box.png").exists()
