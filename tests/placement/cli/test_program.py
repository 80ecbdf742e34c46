"""The commands run after each other, go on where they stopped, and name what is wrong in one line."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dmrifit import MapFitter, Protocol, save_model
from placement.box.voxel import Voxel


def test_cases_are_simulated_placed_and_evaluated(run, tmp_path):
    cases, placed, tables = (tmp_path / name for name in ("cases", "placed", "tables"))
    code, out, _ = run("simulate", 3, "--out", cases, "--spacing", 4)
    assert code == 0
    assert f"3 synthetic cases: {cases / 'cases.tsv'}" in out
    code, out, error = run("place", cases / "cases.tsv", "--out", placed)
    assert code == 0, error
    assert f"3 cases placed: {placed}" in out
    assert "synthetic cases: no clinical result" in out
    found = pd.read_csv(placed / "placements.tsv", sep="\t")
    assert list(found["name"]) == ["synthetic-001", "synthetic-002", "synthetic-003"]
    page = (placed / "index.html").read_text(encoding="utf-8")
    assert "Not for clinical use. Synthetic data: all cases were simulated; no person was scanned" in page
    for _, row in found.iterrows():
        assert f'href="./{row["name"]}/voxel_view.html"' in page
        view = (placed / row["name"] / "voxel_view.html").read_text(encoding="utf-8")
        stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', view, re.DOTALL).group(1))
        np.testing.assert_allclose(stored["points"][0], row[["x", "y", "z"]].astype(float), atol=1e-6)
        (box,) = stored["boxes"]
        volume = abs(np.linalg.det(np.array(box["affine"])[:, :3])) / 1000
        assert volume == pytest.approx(row["volume_ml"])
        assert "Not for clinical use. Synthetic data: this case was simulated; no person was scanned" in view
    code, out, error = run(
        *("evaluate", cases / "cases.tsv", cases / "experts.tsv"),
        *("--placements", f"objective={placed / 'placements.tsv'}", "--out", tables),
    )
    assert code == 0, error
    assert "objective" in out
    assert "synthetic cases: no clinical result" in out
    measured = pd.read_csv(tables / "cases.csv").query("method == 'objective'")
    np.testing.assert_allclose(measured["volume"], found["volume_ml"])
    np.testing.assert_allclose(measured["f_tumor"], found["tumor_fraction"])


def test_what_is_said_of_simulation_follows_the_table(run, tmp_path, ball):
    table, out = tmp_path / "cases.tsv", tmp_path / "placed"
    said = {}
    for words in ("true\tfalse", "false\tn/a"):
        rows = [f"{name}\tball.nii.gz\t{word}" for name, word in zip(("one", "two"), words.split("\t"), strict=True)]
        table.write_text("\n".join(["name\ttumor\tsynthetic", *rows]) + "\n")
        code, text, error = run("place", table, "--out", out)
        assert code == 0, error
        kept = [json.loads((out / name / "voxel.json").read_text())["synthetic"] for name in ("one", "two")]
        said[words] = (text, (out / "index.html").read_text(encoding="utf-8"), kept)
    text, page, kept = said["true\tfalse"]
    assert "synthetic cases: no clinical result" in text
    assert "Synthetic data: 1 of 2 cases were simulated" in page
    assert kept == [True, False]
    text, page, kept = said["false\tn/a"]
    assert "ynthetic" not in text + page
    assert kept == [False, False]
    table.write_text("name\ttumor\tsynthetic\none\tball.nii.gz\tperhaps\n")
    code, _, error = run("place", table, "--out", out)
    assert code == 2
    assert "cases.tsv, row 2: synthetic must be true or false, not 'perhaps'" in error


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
    changed = np.roll(np.asarray(image.dataobj), 2, axis=0)
    nib.save(nib.Nifti1Image(changed, image.affine), ball)
    assert run("place", table, "--out", out, "--no-figure")[0] == 0
    assert pd.read_csv(out / "placements.tsv", sep="\t")["x"].mean() == pytest.approx(44, abs=2.5)
    code, _, error = run("place", table, "--out", out, "--min-volume", 4)
    assert code == 2
    assert "other options (optimizer)" in error


def test_a_case_is_placed_anew_when_its_table_excludes_other_labels(run, tmp_path, ball):
    image = nib.load(ball)
    values = np.asarray(image.dataobj).copy()
    values[:16], values[24:] = 3 * values[:16], 5 * values[24:]
    nib.save(nib.Nifti1Image(values, image.affine), ball)
    table, out, found = tmp_path / "cases.tsv", tmp_path / "placed", {}
    for labels in ("3", "5", "n/a"):
        table.write_text(f"name\ttumor\texclude\none\tball.nii.gz\t{labels}\n")
        code, _, error = run("place", table, "--out", out, "--include", "1", "--margin", 4, "--no-figure")
        assert code == 0, error
        found[labels] = json.loads((out / "one" / "voxel.json").read_text())
    assert found["3"]["ras"]["center_mm"][0] > 40 > found["5"]["ras"]["center_mm"][0]
    assert found["n/a"]["regions"] == {}


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
    assert "4.00 mL" in out
    assert "volume below min_volume" in out
    content = json.loads((tmp_path / "voxel" / "voxel.json").read_text())
    box = Voxel(content["ras"]["center_mm"], content["size_mm"], content["ras"]["angles_deg"])
    assert box.dice(Voxel((40, 40, 40), (20, 10, 20))) == pytest.approx(1)
    assert content["displacement"]["percent_per_ppm"] == [3, 3, 3]


def test_a_model_of_something_else_is_refused(run, tmp_path, cases):
    model = tmp_path / "maps.dmrifit"
    b = np.array([0.0, 500, 1000])
    save_model(MapFitter("adc", Protocol(b)).fit(np.exp(-b * np.array([[1e-3], [2e-3]]))), model)
    code, _, error = run("place", cases / "cases.tsv", "--model", model, "--out", tmp_path / "x")
    assert code == 2
    assert "holds a MapFitter, which places no voxels" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("place", "nothing.nii.gz", "--out", "x"), "no such file"),
        (("place", "BALL", "--out", "x", "--sides", "10"), "--sides 10: 2 numbers"),
        (("place", "BALL", "--out", "x", "--include", "solid"), "--include solid: whole numbers"),
        (("place", "BALL", "--out", "x", "--ppm", "0,1"), "both --ppm"),
        (("place", "BALL", "--out", "x", "--model", "x.dmrifit"), "no such model file"),
        (("place", "BALL", "--out", "x", "--model", "x.dmrifit", "--thorough"), "leave out --thorough"),
        (("prescribe", "BALL", "--center", "1,2", "--size", "1,2,3", "--out", "x"), "--center 1,2: 3 numbers"),
        (("simulate", "1", "--experts", "real", "--out", "x"), "preference"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, ball, words, said):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*(str(ball) if word == "BALL" else word for word in words))
    assert code == 2
    assert said in error
    assert error.count("\n") == 1


def test_names_that_would_leave_the_folder_are_refused(run, tmp_path, ball):
    table = tmp_path / "cases.tsv"
    table.write_text("name\ttumor\n../one\tball.nii.gz\n")
    code, _, error = run("place", table, "--out", tmp_path / "placed")
    assert code == 2
    assert "../one" in error


def test_help_shows_a_worked_line(run):
    assert "dmrifit-placement place" in " ".join(run("--help")[1].split())
    for command in ("simulate", "train", "place", "prescribe", "evaluate"):
        assert f"dmrifit-placement {command}" in " ".join(run(command, "--help")[1].split())
