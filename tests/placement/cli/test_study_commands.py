"""The commands simulate, reader, train and evaluate: what they write, and how they go on."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from placement import simulate_gliomas
from placement.search.scene import Scene


def test_a_simulation_goes_on_where_it_stopped(run, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run("simulate", 3, "--out", whole, "--spacing", 4, "--exclude")[0] == 0
    assert run("simulate", 2, "--out", stopped, "--spacing", 4, "--exclude")[0] == 0
    first = (stopped / "synthetic-001" / "image.nii.gz").stat().st_mtime_ns
    for name in ("tumor.nii.gz", "cases.tsv"):
        (stopped / "synthetic-002" / name).unlink()
    assert run("simulate", 3, "--out", stopped, "--spacing", 4, "--exclude")[0] == 0
    assert (stopped / "synthetic-001" / "image.nii.gz").stat().st_mtime_ns == first
    for name in ("experts.tsv", "cases.tsv"):
        assert (stopped / name).read_text() == (whole / name).read_text()
    names = {path.relative_to(whole) for path in whole.rglob("*")}
    assert {path.relative_to(stopped) for path in stopped.rglob("*")} == names
    for path in whole.rglob("*.nii.gz"):
        images = [nib.load(folder / path.relative_to(whole)) for folder in (whole, stopped)]
        np.testing.assert_array_equal(*(np.asarray(image.dataobj) for image in images))
    table = pd.read_csv(whole / "cases.tsv", sep="\t")
    assert list(table["exclude"]) == [f"synthetic-00{i}/necrosis.nii.gz" for i in (1, 2, 3)]
    code, _, error = run("simulate", 3, "--out", whole, "--spacing", 4, "--exclude", "--seed", 1)
    assert code == 2
    assert "other options (seed)" in error


def place_with(run, model, cases, out):
    """Place by a model file twice; the second time nothing is done."""
    words = ("place", cases / "cases.tsv", "--model", model, "--out", out, "--no-figure")
    code, _, error = run(*words)
    assert code == 0, error
    found = pd.read_csv(out / "placements.tsv", sep="\t")
    before = (out / "synthetic-001" / "voxel.json").stat().st_mtime_ns
    assert run(*words)[0] == 0
    assert (out / "synthetic-001" / "voxel.json").stat().st_mtime_ns == before
    sides = found[["size_x", "size_y", "size_z"]].to_numpy()
    np.testing.assert_array_equal(sides, sides.round())
    return found


def test_a_ranker_is_trained_and_places(run, tmp_path, cases):
    model = tmp_path / "ranker.dmrifit"
    words = ("train", cases / "cases.tsv", cases / "experts.tsv", "--out", model)
    code, out, error = run(*words, "--min-volume", 4)
    assert code == 0, error
    assert "4 cases with 8 boxes" in out
    assert "no clinical experts" in out
    found = place_with(run, model, cases, tmp_path / "placed")
    assert (found["volume_ml"] > 3.5).all()
    code, _, error = run(*words)
    assert code == 2
    assert "already exists" in error


@pytest.mark.deep
def test_a_network_is_trained_goes_on_and_places(run, tmp_path, cases, monkeypatch):
    from placement import VoxelRegressor

    model = tmp_path / "network.dmrifit"
    words = ("train", cases / "cases.tsv", cases / "experts.tsv", "--out", model, "--model", "network", "--epochs", 2)
    words = (
        *words,
        "--channels",
        "tumor,distance,exclude",
        "--fast",
        "--validation-fraction",
        0.25,
        "--groups",
        "name",
    )
    rate = VoxelRegressor._learning_rate

    def interrupted(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return rate(self, epoch)

    with monkeypatch.context() as patched:
        patched.setattr(VoxelRegressor, "_learning_rate", interrupted)
        assert run(*words)[0] == 130
    assert not model.exists()
    states = tmp_path / ".network.dmrifit.training"
    assert len(list(states.glob("*/state.safetensors"))) == 1
    epochs = []
    monkeypatch.setattr(VoxelRegressor, "_stream", counting(VoxelRegressor._stream, epochs))
    code, out, error = run(*words)
    assert code == 0, error
    assert "4 cases with 8 boxes" in out
    assert epochs == [1]
    assert "epoch 2/2 loss" in error
    assert (tmp_path / "network.curve.png").is_file()
    assert not states.exists()
    assert len(place_with(run, model, cases, tmp_path / "placed")) == 4
    table = pd.read_csv(cases / "cases.tsv", sep="\t").drop(columns="exclude")
    table.to_csv(cases / "cases.tsv", sep="\t", index=False)
    code, _, error = run("place", cases / "cases.tsv", "--model", model, "--out", tmp_path / "other")
    assert code == 2
    assert "looks at the channel exclude" in error


def counting(stream, epochs):
    def counted(self, inputs, targets, rng, epoch):
        epochs.append(epoch)
        return stream(self, inputs, targets, rng, epoch)

    return counted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--groups", "patient"), "--groups: for --model network only"),
        (("--model", "network", "--patience", "2"), "needs validation cases"),
        (("--model", "network", "--channels", "tumor,sound"), "sound"),
        (("--model", "network", "--channels", "tumor,exclude", "--exclude", ""), "looks at the channel exclude"),
    ],
)
def test_training_is_checked_before_anything_is_read(run, tmp_path, cases, monkeypatch, words, said):
    if "network" in words:
        pytest.importorskip("torch")
    monkeypatch.setattr(Scene, "read", None)
    code, _, error = run("train", cases / "cases.tsv", cases / "experts.tsv", "--out", tmp_path / "x.dmrifit", *words)
    assert code == 2
    assert said in error
    assert error.count("\n") == 1


def test_simulated_cases_are_written_as_they_are_made(run, tmp_path):
    words = ("--spacing", 5, "--seed", 7, "--experts", "objective")
    code, out, error = run("simulate", 2, "--out", tmp_path, *words)
    assert code == 0, error
    assert f"2 synthetic cases: {tmp_path / 'cases.tsv'}" in out
    scenes, voxels = simulate_gliomas(
        2, spacing=5, experts="objective", exclude=("necrosis",), image=True, random_state=7
    )
    table = pd.read_csv(tmp_path / "cases.tsv", sep="\t")
    assert list(table["name"]) == ["synthetic-001", "synthetic-002"]
    assert "exclude" not in table
    assert table["synthetic"].all()
    for scene, row in zip(scenes, table.itertuples(), strict=True):
        tumor, image = (nib.load(tmp_path / name) for name in (row.tumor, row.image))
        np.testing.assert_array_equal(np.asarray(tumor.dataobj), scene.tumor)
        np.testing.assert_allclose(np.asarray(image.dataobj), scene.image, rtol=1e-6)
        np.testing.assert_allclose(tumor.affine, scene.affine)
        necrosis = nib.load(tmp_path / row.name / "necrosis.nii.gz")
        np.testing.assert_array_equal(np.asarray(necrosis.dataobj), scene.forbidden["necrosis"])
    boxes = pd.read_csv(tmp_path / "experts.tsv", sep="\t")
    assert list(boxes["expert"]) == [1, 2, 1, 2]
    columns = ["x", "y", "z", "size_x", "size_y", "size_z", "angle_x", "angle_y", "angle_z"]
    np.testing.assert_allclose(boxes[columns].to_numpy().reshape(2, 2, 9), voxels)


@pytest.fixture
def compared(tmp_path):
    """Write two cases, of which experts agree in the second, and boxes of a method."""
    tumor = np.zeros((30, 30, 30), np.uint8)
    tumor[5:25, 5:25, 5:25] = 4
    tumor[5:15, 5:25, 5:25] = 3
    nib.save(nib.Nifti1Image(tumor, np.diag([2.0, 2, 2, 1])), tmp_path / "labels.nii.gz")
    header = "x\ty\tz\tsize_x\tsize_y\tsize_z\tangle_x\tangle_y\tangle_z"
    first, second = "29\t29\t29\t20\t20\t20\t0\t0\t0", "34\t29\t29\t20\t20\t20\t0\t0\t0"
    beside = "29\t29\t29\t20\t20\t30\t0\t0\t0"
    names = ("one", "two")
    pairs = {"one": (first, second), "two": (first, first)}
    experts = [f"{name}\t{i}\t{box}" for name in names for i, box in enumerate(pairs[name], 1)]
    tables = {
        "cases.tsv": ["name\ttumor", *(f"{name}\tlabels.nii.gz" for name in names)],
        "experts.tsv": [f"name\texpert\t{header}", *experts],
        "placed.tsv": [f"name\t{header}", *(f"{name}\t{beside}" for name in names)],
    }
    for file, lines in tables.items():
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_compared_boxes_have_the_scores_that_their_sides_say(run, compared):
    words = ("evaluate", compared / "cases.tsv", compared / "experts.tsv", "--out", compared / "tables")
    placements = ("--placements", f"mine={compared / 'placed.tsv'}")
    code, out, error = run(*words, *placements, "--include", "3,4", "--no-figure")
    assert code == 0, error
    assert "mine" in out
    assert "synthetic" not in out
    cases = pd.read_csv(compared / "tables" / "cases.csv").set_index("method")
    mine = cases.loc["mine"]
    np.testing.assert_allclose(mine["volume"], 12.0)
    np.testing.assert_allclose(mine["difference"], 4.0)
    # A box of 8 mL lies within that of 12 mL; of the other expert's, three quarters do.
    np.testing.assert_allclose(mine["dice_closest"], 2 * 8 / 20)
    np.testing.assert_allclose(mine["dice_mean"], [(2 * 8 / 20 + 2 * 6 / 20) / 2, 2 * 8 / 20])
    np.testing.assert_allclose(cases.loc["experts", "dice_mean"], [0.75, 1])
    np.testing.assert_allclose(mine["f_tumor"], 1.0, atol=1e-6)
    assert {path.name for path in (compared / "tables").iterdir()} >= {"icc.csv", "paired.csv", "summary.csv"}
    assert not (compared / "tables" / "evaluation.png").exists()
    code, _, error = run(*words, *placements, "--include", "4", "--no-figure")
    assert code == 2
    assert "cases.csv" in error
    code, _, error = run(*words, *placements, "--include", "4", "--no-figure", "--overwrite")
    assert code == 0, error
    cases = pd.read_csv(compared / "tables" / "cases.csv").set_index("method")
    # Label 4 begins at x = 29 mm, in the middle of the box.
    np.testing.assert_allclose(cases.loc["mine", "f_tumor"], 0.5, atol=1e-6)


def test_reader_writes_one_page_with_the_proposed_boxes(run, tmp_path, cases):
    experts = pd.read_csv(cases / "experts.tsv", sep="\t")
    proposals = tmp_path / "proposals.tsv"
    first = experts[experts["expert"] == 1]
    first.drop(columns="expert").to_csv(proposals, sep="\t", index=False)
    page = tmp_path / "reader.html"
    code, text, error = run("reader", cases / "cases.tsv", "--out", page, "--proposals", proposals, "--n", 3)
    assert code == 0, error
    assert text.startswith("3 cases:")
    source = page.read_text(encoding="utf-8")
    data = json.loads(source.partition('type="application/json">')[2].partition("</script>")[0])
    shown = data["cases"]
    assert len(shown) == 3
    for case in shown:
        row = first[first["name"] == case["name"]].iloc[0]
        np.testing.assert_allclose(case["box"]["center"], row[["x", "y", "z"]].astype(float))
        assert {layer["kind"] for layer in case["layers"]} == {"image", "mask"}
    code, _, error = run("reader", cases / "cases.tsv", "--out", page)
    assert code == 2
    assert "reader.html" in error
    code, _, error = run("reader", cases / "cases.tsv", "--out", tmp_path / "page.txt")
    assert code == 2
    assert "give a name that ends in .html" in error
