"""Predictions of a comparison by voxel: places on the grid, files that are whole or named."""

import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest

from dmrifit.study.predictions import FolderPredictions, PatientPredictions

AFFINE = np.array([[-2.0, 0, 0, 9], [0, 2, 0, -5], [0, 0, 4, 1], [0, 0, 0, 1]])


def prediction(cohort="A", patient="p1", **changes):
    rng = np.random.default_rng(len(cohort + patient))
    values = {"index": np.array([[0, 0, 1], [2, 1, 0], [2, 2, 1]]), "shape": (3, 4, 2), "affine": AFFINE}
    values |= {"names": ("S0", "ADC"), "units": ("signal", "µm²/ms"), "labels": ("S_b0", "S_b500", "S_b1000")}
    values |= {"b": np.array([0.0, 500, 1000]), "te": np.full(3, np.nan), "seen": np.array([True, True, False])}
    values |= {"reference": rng.random((3, 2)).astype(np.float32), "truth": rng.random((3, 2))}
    values |= {"measured": rng.random((3, 3)).astype(np.float32)}
    values["maps"] = {"LR s2s": rng.random((3, 2)).astype(np.float32)}
    values["signals"] = {"LR s2s": rng.random((3, 3)).astype(np.float32)}
    return PatientPredictions(cohort, patient, **values | changes)


def check_equal(first, second):
    """Compare two predictions field by field."""
    for field in fields(PatientPredictions):
        left, right = getattr(first, field.name), getattr(second, field.name)
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            for name, values in left.items():
                np.testing.assert_array_equal(right[name], values)
                assert right[name].dtype == values.dtype
        elif isinstance(left, np.ndarray):
            np.testing.assert_array_equal(right, left)
        else:
            assert left == right, field.name
            assert type(left) is type(right)


@pytest.fixture
def folder(tmp_path):
    """A folder with the predictions for two patients."""
    predictions = FolderPredictions(tmp_path)
    predictions.write({("A", "p1"): prediction(), ("B", "p2"): prediction("B", "p2")})
    return predictions


def test_values_stand_at_their_voxels_and_nothing_elsewhere():
    volume = prediction().volume([1.0, 2.0, 3.0])
    assert volume.shape == (3, 4, 2)
    assert (volume[0, 0, 1], volume[2, 1, 0], volume[2, 2, 1]) == (1, 2, 3)
    assert np.isnan(volume).sum() == 3 * 4 * 2 - 3
    maps = prediction().maps["LR s2s"]
    volume = prediction().volume(maps)
    assert (volume.shape, volume.dtype) == ((3, 4, 2, 2), np.float32)
    np.testing.assert_array_equal(volume[2, 1, 0], maps[1])


def test_what_is_written_is_read_back_without_patients_that_are_no_longer_there(folder):
    (folder.folder / ".part-1-A@p3.npz").write_bytes(b"half")  # being written
    assert list(folder) == [("A", "p1"), ("B", "p2")]
    assert len(folder) == len(list(folder.values())) == 2
    assert ("A", "p2") not in folder
    with pytest.raises(KeyError, match="p2"):
        folder["A", "p2"]
    check_equal(prediction(), folder["A", "p1"])
    check_equal(prediction("B", "p2"), folder["B", "p2"])
    changed = replace(prediction(), reference=np.zeros((3, 2), np.float32))
    folder.write({("A", "p1"): changed})
    assert list(folder) == [("A", "p1")]
    assert (folder["A", "p1"].reference == 0).all()


def test_estimators_may_be_named_like_the_fields_of_the_file(tmp_path):
    names = "maps/signals/x", "index", "signals/"
    maps = {name: np.full((3, 2), i, np.float32) for i, name in enumerate(names)}
    signals = {name: np.full((3, 3), 10 + i, np.float32) for i, name in enumerate(names)}
    awkward = prediction(maps=maps, signals=signals, anatomy=np.arange(24, dtype=np.uint8).reshape(3, 4, 2))
    predictions = FolderPredictions(tmp_path)
    predictions.write({("A", "p1"): awkward})
    check_equal(awkward, predictions["A", "p1"])


@pytest.mark.parametrize("name", ["b--x", ".c", "a@b", "д/е", "..", "a b", "x.y", "%2E"])
def test_names_that_files_cannot_have_come_back_and_stay_apart(tmp_path, name):
    predictions = FolderPredictions(tmp_path)
    keys = [(name, "p"), ("p", name), (f"{name}@p", "q"), (name, "p@q")]
    predictions.write({key: prediction(*key) for key in keys})
    assert set(predictions) == set(keys)
    assert all((predictions[key].cohort, predictions[key].patient) == key for key in keys)
    assert {path.parent for path in tmp_path.rglob("*.npz")} == {tmp_path / "predictions"}


def test_a_write_that_is_interrupted_leaves_the_earlier_file(folder, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.write({("A", "p1"): prediction(), ("B", "p2"): prediction("B", "p2")})
    monkeypatch.undo()
    check_equal(prediction(), folder["A", "p1"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"text", "cut off"])
def test_a_damaged_file_is_named_with_the_remedy(folder, content):
    path = next(folder.folder.glob("A@*.npz"))
    path.write_bytes(path.read_bytes()[:200] if content == "cut off" else content)
    with pytest.raises(ValueError, match=r"A@p1\.npz is damaged.*run the comparison again"):
        folder["A", "p1"]


def test_files_hold_no_pickle_and_none_is_read(folder):
    path = next(folder.folder.glob("A@*.npz"))
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert b"'O'" not in archive.read(name)[:200]
    with path.open("wb") as file:
        np.savez(file, cohort=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="is damaged"):
        folder["A", "p1"]
