"""The commands simulate, train and evaluate: what they write, and how they go on."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from placement.scene import Scene


def test_a_simulation_goes_on_where_it_stopped(run, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run("simulate", 3, "--out", whole, "--spacing", 4, "--exclude")[0] == 0
    assert run("simulate", 2, "--out", stopped, "--spacing", 4, "--exclude")[0] == 0
    first = (stopped / "synthetic-001_image.nii.gz").stat().st_mtime_ns
    (stopped / "synthetic-002_tumor.nii.gz").unlink()
    boxes = pd.read_csv(stopped / "experts.tsv", sep="\t").query("expert == 1 or name == 'synthetic-001'")
    boxes[boxes["name"] == "synthetic-001"].to_csv(stopped / "experts.tsv", sep="\t", index=False)
    assert run("simulate", 3, "--out", stopped, "--spacing", 4, "--exclude")[0] == 0
    assert (stopped / "synthetic-001_image.nii.gz").stat().st_mtime_ns == first
    for name in ("experts.tsv", "cases.tsv"):
        assert (stopped / name).read_text() == (whole / name).read_text()
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in stopped.iterdir()} == names
    for name in names - {"experts.tsv", "cases.tsv", "settings.json"}:
        images = [nib.load(folder / name) for folder in (whole, stopped)]
        np.testing.assert_array_equal(*(np.asarray(image.dataobj) for image in images))
    table = pd.read_csv(whole / "cases.tsv", sep="\t")
    assert list(table["exclude"]) == [f"synthetic-00{i}_necrosis.nii.gz" for i in (1, 2, 3)]
    code, _, error = run("simulate", 3, "--out", whole, "--spacing", 4, "--seed", 1)
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
    assert "exists already" in error


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
        (("--model", "forest"), "ranker, network"),
        (("--epochs", "3"), "--epochs: for --model network only"),
        (("--groups", "patient"), "--groups: for --model network only"),
        (("--model", "network", "--groups", "patient"), "no column patient"),
        (("--model", "network", "--patience", "2"), "needs validation cases"),
        (("--model", "network", "--max-rotations", "1"), "as it has learned"),
        (("--sides", "1"), "--sides 1: 2 numbers"),
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
