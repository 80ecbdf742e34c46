"""The commands simulate, reader, train and evaluate: what they write, and how they go on."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from placement import simulate_gliomas
from placement.exchange.tables import BOX
from placement.search.scene import Scene


def table_of(path):
    return pd.read_csv(path, sep="\t")


def test_a_simulation_goes_on_where_it_stopped(output_of, error_of, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = ("--spacing", 4, "--exclude", "--out")
    output_of("simulate", 3, *options, whole)
    output_of("simulate", 2, *options, stopped)
    first = (stopped / "synthetic-001" / "image.nii.gz").stat().st_mtime_ns
    for name in ("tumor.nii.gz", "cases.tsv"):
        (stopped / "synthetic-002" / name).unlink()
    output_of("simulate", 3, *options, stopped)
    assert (stopped / "synthetic-001" / "image.nii.gz").stat().st_mtime_ns == first
    for name in ("experts.tsv", "cases.tsv"):
        assert (stopped / name).read_text() == (whole / name).read_text()
    names = {path.relative_to(whole) for path in whole.rglob("*")}
    assert {path.relative_to(stopped) for path in stopped.rglob("*")} == names
    for path in whole.rglob("*.nii.gz"):
        images = [nib.load(folder / path.relative_to(whole)) for folder in (whole, stopped)]
        np.testing.assert_array_equal(*(np.asarray(image.dataobj) for image in images))
    assert list(table_of(whole / "cases.tsv")["exclude"]) == [f"synthetic-00{i}/necrosis.nii.gz" for i in (1, 2, 3)]
    assert "other options (seed was 0, now 1)" in error_of("simulate", 3, *options, whole, "--seed", 1)


def test_simulated_cases_are_written_as_they_are_made(output_of, tmp_path):
    text = output_of("simulate", 2, "--out", tmp_path, "--spacing", 5, "--seed", 7, "--experts", "objective")
    assert f"2 synthetic cases: {tmp_path / 'cases.tsv'}" in text
    options = {"experts": "objective", "exclude": ("necrosis",), "image": True}
    scenes, voxels = simulate_gliomas(2, spacing=5, random_state=7, **options)
    table = table_of(tmp_path / "cases.tsv")
    assert list(table["name"]) == ["synthetic-001", "synthetic-002"]
    assert "exclude" not in table
    assert table["synthetic"].all()
    for scene, row in zip(scenes, table.itertuples(), strict=True):
        tumor, image = (nib.load(tmp_path / name) for name in (row.tumor, row.image))
        np.testing.assert_array_equal(np.asarray(tumor.dataobj), scene.tumor)
        np.testing.assert_allclose(np.asarray(image.dataobj), scene.image, rtol=1e-6)
        brain = np.asarray(nib.load(tmp_path / row.brain).dataobj)
        assert [brain[scene.tumor > 0].all(), brain.all()] == [True, False]
        np.testing.assert_allclose(tumor.affine, scene.affine)
        necrosis = nib.load(tmp_path / row.name / "necrosis.nii.gz")
        np.testing.assert_array_equal(np.asarray(necrosis.dataobj), scene.forbidden["necrosis"])
    boxes = table_of(tmp_path / "experts.tsv")
    assert list(boxes["expert"]) == [1, 2, 1, 2]
    np.testing.assert_allclose(boxes[list(BOX)].to_numpy().reshape(2, 2, 9), voxels)


def place_with(output_of, model, cases, out):
    """Place by a model file twice; the second time nothing is done."""
    words = ("place", cases / "cases.tsv", "--model", model, "--out", out, "--no-figure")
    output_of(*words)
    before = (out / "synthetic-001" / "voxel.json").stat().st_mtime_ns
    output_of(*words)
    assert (out / "synthetic-001" / "voxel.json").stat().st_mtime_ns == before
    placed = table_of(out / "placements.tsv")
    assert placed["placed_by"].str.contains(f" of {model.name} .SHA-256 [0-9a-f]{{64}}").all()
    sides = placed[["size_x", "size_y", "size_z"]].to_numpy()
    np.testing.assert_array_equal(sides, sides.round())
    return placed


def test_a_ranker_is_trained_and_places(output_of, error_of, tmp_path, cases):
    model = tmp_path / "ranker.dmrifit"
    words = ("train", cases / "cases.tsv", cases / "experts.tsv", "--out", model)
    text = output_of(*words, "--min-volume", 4)
    assert all(words in text for words in ("4 cases with 8 boxes: ", "not clinical experts"))
    placed = place_with(output_of, model, cases, tmp_path / "placed")
    assert len(placed.query("volume_mL > 3.5 and rotated_angles < 3")) == 4
    assert "already exists" in error_of(*words)


@pytest.mark.deep
def test_a_network_is_trained_goes_on_and_places(run, output_of, error_of, tmp_path, cases, monkeypatch):
    from placement import VoxelRegressor

    model = tmp_path / "network.dmrifit"
    options = ("--channels", "tumor,distance,exclude", "--fast", "--validation-fraction", 0.25, "--groups", "name")
    words = ("train", cases / "cases.tsv", cases / "experts.tsv", "--out", model, "--model", "network", "--epochs", 2)
    rate, stream, epochs = VoxelRegressor._learning_rate, VoxelRegressor._stream, []

    def interrupted(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return rate(self, epoch)

    def counted(self, inputs, targets, rng, epoch):
        epochs.append(epoch)
        return stream(self, inputs, targets, rng, epoch)

    with monkeypatch.context() as patched:
        patched.setattr(VoxelRegressor, "_learning_rate", interrupted)
        assert run(*words, *options)[0] == 130
    assert not model.exists()
    states = tmp_path / ".network.dmrifit.training"
    assert len(list(states.glob("*/state.safetensors"))) == 1
    monkeypatch.setattr(VoxelRegressor, "_stream", counted)
    code, text, error = run(*words, *options)
    assert code == 0, error
    assert any(f"4 cases with 8 boxes, 1 of the cases held out to choose the epoch ({n} of 2): " in text for n in "12")
    assert epochs == [1]
    assert ["epoch 2/2 loss" in error, (tmp_path / "network.curve.png").is_file(), states.exists()] == [True, True, False]
    assert len(place_with(output_of, model, cases, tmp_path / "placed")) == 4
    table_of(cases / "cases.tsv").drop(columns="exclude").to_csv(cases / "cases.tsv", sep="\t", index=False)
    words = ("place", cases / "cases.tsv", "--model", model, "--out", tmp_path / "other")
    assert "looks at the channel exclude" in error_of(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--groups", "patient"), "--groups: for --model network only; leave out --groups"),
        (("--model", "network", "--jobs", "2"), "--jobs: for --model ranker only; leave out --jobs"),
        (("--model", "network", "--patience", "2"), "needs validation cases"),
        (("--model", "network", "--channels", "tumor,sound"), "sound"),
        (("--model", "network", "--channels", "tumor,exclude", "--exclude", ""), "looks at the channel exclude"),
    ],
)
def test_training_is_checked_before_anything_is_read(error_of, tmp_path, cases, monkeypatch, words, said):
    if "network" in words:
        pytest.importorskip("torch")
    monkeypatch.setattr(Scene, "read", None)
    files = (cases / "cases.tsv", cases / "experts.tsv", "--out", tmp_path / "x.dmrifit")
    assert said in error_of("train", *files, *words)


def test_compared_boxes_have_the_scores_that_their_sides_say(output_of, error_of, run, tmp_path):
    """Two cases, of which experts agree in the second, and boxes of a method."""
    tumor = np.zeros((30, 30, 30), np.uint8)
    tumor[5:25, 5:25, 5:25] = 4
    tumor[5:15, 5:25, 5:25] = 3
    nib.save(nib.Nifti1Image(tumor, np.diag([2.0, 2, 2, 1])), tmp_path / "labels.nii.gz")
    first, second, beside = ((x, 29, 29, 20, 20, side, 0, 0, 0) for x, side in ((29, 20), (34, 20), (29, 30)))
    boxes = [("one", 1, first), ("one", 2, second), ("two", 1, first), ("two", 2, first)]
    experts = pd.DataFrame([dict(zip(("name", "expert", *BOX), (name, i, *box), strict=True)) for name, i, box in boxes])
    experts.to_csv(tmp_path / "experts.tsv", sep="\t", index=False)
    placed = pd.DataFrame([dict(zip(("name", *BOX), (name, *beside), strict=True)) for name in ("one", "two")])
    placed.to_csv(tmp_path / "placed.tsv", sep="\t", index=False)
    (tmp_path / "cases.tsv").write_text("name\ttumor\none\tlabels.nii.gz\ntwo\tlabels.nii.gz\n")
    tables = tmp_path / "tables"
    words = ("evaluate", tmp_path / "cases.tsv", tmp_path / "experts.tsv", "--out", tables, "--no-figure")
    placements = ("--placements", f"mine={tmp_path / 'placed.tsv'}")
    text = output_of(*words, *placements, "--include", "3,4")
    heading = " ".join(text.splitlines()[0].split())
    assert heading.startswith("measure part that is tumor volume, mL Dice (closest expert) mean Dice")
    assert ["volume − experts', mL" in heading, "mine" in text, "synthetic" in text] == [True, True, False]
    cases = pd.read_csv(tables / "cases.csv").set_index("method")
    mine = cases.loc["mine"]
    np.testing.assert_allclose(mine[["volume", "difference"]], [[12.0, 4.0]] * 2)
    # A box of 8 mL lies within that of 12 mL; of the other expert's, three quarters do.
    np.testing.assert_allclose(mine["dice_closest"], 2 * 8 / 20)
    np.testing.assert_allclose(mine["dice_mean"], [(2 * 8 / 20 + 2 * 6 / 20) / 2, 2 * 8 / 20])
    np.testing.assert_allclose(cases.loc["experts", "dice_mean"], [0.75, 1])
    np.testing.assert_allclose(mine["f_tumor"], 1.0, atol=1e-6)
    assert {path.name for path in tables.iterdir()} >= {"icc.csv", "paired.csv", "summary.csv"}
    assert not (tables / "evaluation.png").exists()
    assert "cases.csv" in error_of(*words, *placements, "--include", "4")
    experts.assign(x=-experts["x"]).to_csv(tmp_path / "lps.tsv", sep="\t", index=False)
    files = (tmp_path / "cases.tsv", tmp_path / "lps.tsv", "--include", "3,4", "--out")
    for command in (("evaluate", *files, tmp_path / "lps", *placements), ("train", *files, tmp_path / "lps.dmrifit")):
        assert "no tumor in an expert's box of one, two: check that centers are in mm RAS+" in run(*command)[2]
    for label, options in ((4, ("--include", "4")), (2, ("--labels", "brats2013", "--flair-target"))):
        tumor = np.where(tumor > 3, label, 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(tumor, np.diag([2.0, 2, 2, 1])), tmp_path / "labels.nii.gz")
        output_of(*words, *placements, *options, "--overwrite")
        cases = pd.read_csv(tables / "cases.csv").set_index("method")
        # Label 4 begins at x = 29 mm, in the middle of the box.
        np.testing.assert_allclose(cases.loc["mine", "f_tumor"], 0.5, atol=1e-6)


def test_reader_writes_one_page_with_the_proposed_boxes(output_of, error_of, tmp_path, cases):
    proposals, page = tmp_path / "proposals.tsv", tmp_path / "reader.html"
    first = table_of(cases / "experts.tsv").query("expert == 1").drop(columns="expert")
    first.to_csv(proposals, sep="\t", index=False)
    text = output_of("reader", cases / "cases.tsv", "--out", page, "--proposals", proposals, "--n", 3)
    assert text.startswith("3 cases:")
    source = page.read_text(encoding="utf-8")
    shown = json.loads(source.partition('type="application/json">')[2].partition("</script>")[0])["cases"]
    assert len(shown) == 3
    for case in shown:
        row = first[first["name"] == case["name"]].iloc[0]
        np.testing.assert_allclose(case["box"]["center"], row[["x", "y", "z"]].astype(float))
        assert {layer["kind"] for layer in case["layers"]} == {"image", "mask"}
    assert "reader.html" in error_of("reader", cases / "cases.tsv", "--out", page)
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), 2, np.uint8), np.eye(4)), tmp_path / "edema.nii.gz")
    (tmp_path / "edema.tsv").write_text("name\ttumor\nedema\tedema.nii.gz\n")
    words = ("reader", tmp_path / "edema.tsv", "--out", page, "--labels", "brats2013", "--flair-target", "--overwrite")
    assert output_of(*words).startswith("1 case:")
    error = error_of("reader", cases / "cases.tsv", "--out", tmp_path / "page.txt")
    assert "give a name that ends in .html" in error
