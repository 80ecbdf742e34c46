"""What can go wrong around a comparison: half-written folders, odd names, unusable patients, own classes."""

import importlib
import shutil
import sys
import zipfile

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from dmrifit import (
    Cohort,
    Evaluation,
    MapsToMaps,
    Protocol,
    Scan,
    SignalToSignal,
    compare,
    leave_one_patient_out,
    simulate_cohort,
)
from dmrifit.study.predictions import FolderPredictions

SMALL = (16, 16, 3)
PROTOCOL = Protocol.preset("cohort1")


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("cohort1", 3, name="A", shape=SMALL, random_state=320)


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(cohort, folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "study")


def run(cohort, out=None, **options):
    return leave_one_patient_out(cohort, algorithms=("LR",), max_voxels=20, random_state=0, out=out, **options)


def test_a_run_that_ends_while_it_writes_counts_as_unfinished(cohort, folder, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FolderPredictions, "write", fail)
        with pytest.raises(KeyboardInterrupt):
            run(cohort, folder)
    with pytest.raises(FileNotFoundError, match="was not finished; run it again"):
        Evaluation.read(folder)
    assert run(cohort, folder).study["models"]["trained"] == 0
    assert len(Evaluation.read(folder).predictions) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.csv", "", "scores.csv was changed or damaged"),
        ("signals.csv", "cohort,patient\nA,1\n", "signals.csv was changed or damaged"),
        ("study.json", "[]", "study.json does not describe a study"),
        ("study.json", "{", "study.json does not describe a study"),
    ],
)
def test_damaged_tables_are_named_and_restored_by_running_again(cohort, folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Evaluation.read(folder)
    if name != "study.json":
        again = run(cohort, folder)
        assert again.study["models"]["trained"] == 0
        assert len(Evaluation.read(folder).scores) == len(again.scores)


def test_damaged_predictions_are_named(folder):
    path = next((folder / "predictions").glob("*.npz"))
    path.write_bytes(path.read_bytes()[:200])
    evaluation = Evaluation.read(folder)
    with pytest.raises(ValueError, match=r"npz is damaged.*run the comparison again"):
        list(evaluation.predictions.values())


def test_a_missing_table_is_named(folder):
    (folder / "signals.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"signals.csv does not exist"):
        Evaluation.read(folder)


@pytest.mark.parametrize("content", ["[]", "{}", "null", "{"])
def test_a_cell_that_holds_something_else_is_computed_again(cohort, folder, content):
    cells = sorted((folder / "cells").glob("*.json"))
    cells[0].write_text(content)
    assert run(cohort, folder).study["models"] == {"trained": 1, "reused": len(cells) - 1}


def test_files_that_someone_is_writing_are_not_read(folder):
    (folder / "predictions" / ".part-1-A@Ap01.npz").write_bytes(b"half")
    predictions = Evaluation.read(folder).predictions
    assert (len(predictions), len(list(predictions.values()))) == (3, 3)


def test_names_that_look_alike_in_files_stay_apart(cohort, tmp_path):
    scans = list(cohort)
    one = [
        Scan(p, s.signal, PROTOCOL, s.mask, s.affine, lesion=s.lesion)
        for p, s in zip(("b--x", ".c"), scans, strict=False)
    ]
    two = [
        Scan(p, 2 * s.signal, PROTOCOL, s.mask, s.affine, lesion=s.lesion)
        for p, s in zip(("x", "д/е"), scans, strict=False)
    ]
    written = run({"a": Cohort(one, "a"), "a--b": Cohort(two, "a--b")}, tmp_path / "out")
    expected = {("a", "b--x"), ("a", ".c"), ("a--b", "x"), ("a--b", "д/е")}
    assert set(written.predictions) == set(Evaluation.read(tmp_path / "out").predictions) == expected


def test_a_refused_comparison_does_not_claim_the_folder(cohort, tmp_path):
    other = simulate_cohort("cohort2", 3, name="B", shape=SMALL, random_state=321)
    with pytest.raises(ValueError, match="lacks"):
        run([cohort, other], tmp_path / "out", train_on="other")
    assert not run([cohort, other], tmp_path / "out").scores.empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cohorts": lambda c: {1: c}}, "the name of a cohort must be a text, not 1"),
        ({"estimators": {1: SignalToSignal()}}, "the name of a estimator must be a text, not 1"),
        (
            {"estimators": {"LR-a s2s": SignalToSignal(), "LR_a s2s": SignalToSignal()}},
            "'LR-a s2s' and 'LR_a s2s' are both",
        ),
        (
            {"estimators": {"own": type("Own", (), dict.fromkeys(("fit", "predict", "predict_maps")))()}},
            "no get_params.*BaseEst",
        ),
        ({"n_repeats": 2.0}, "n_repeats must be a whole number of at least 1, not 2.0"),
        ({"max_voxels": 50.0}, "max_voxels must be a whole number of at least 1, not 50.0"),
        ({"n_train": (1.0,)}, "n_train must be a whole number of at least 1, not 1.0"),
        ({"train_on": None}, "train_on must name each way once"),
    ],
)
def test_settings_without_meaning_are_refused(cohort, arguments, message):
    cohorts = arguments.pop("cohorts", lambda c: c)(cohort)
    with pytest.raises(ValueError, match=message):
        compare(**{"estimators": {"s": SignalToSignal()}, "cohorts": cohorts, "max_voxels": 10, **arguments})


def test_numbers_of_numpy_and_single_names_are_understood(cohort):
    scores = leave_one_patient_out(
        cohort, strategies="s2s", algorithms="LR", n_train=np.int64(1), max_voxels=np.int64(9), controls=False
    ).scores
    assert set(scores["estimator"]) == {"LR s2s"}
    assert set(scores["n_train"]) == {1}


def test_one_protocol_of_an_estimator_is_taken_from_the_cohort(cohort):
    clinical = PROTOCOL.take(PROTOCOL.clinical())
    options = {"max_voxels": 30, "controls": False, "random_state": 0}
    both = compare({"LR": SignalToSignal(source=clinical, target=PROTOCOL)}, cohort, **options).scores
    for half in (SignalToSignal(source=clinical), SignalToSignal(target=PROTOCOL)):
        np.testing.assert_array_equal(compare({"LR": half}, cohort, **options).scores["bias"], both["bias"])


def test_where_every_contrast_is_seen_nothing_is_compared(cohort, tmp_path):
    same = SignalToSignal(source=PROTOCOL, target=PROTOCOL)
    with pytest.raises(ValueError, match="nothing is left to predict"):
        compare({"LR": same}, cohort, max_voxels=30, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_of_signals_without_rows_keeps_its_columns(cohort, tmp_path):
    study = run(cohort)
    Evaluation(study.scores, study.signals.iloc[:0], study.study).write(tmp_path)
    read = Evaluation.read(tmp_path)
    assert read.signals.empty
    assert {"contrast", "pearson"} <= set(read.signals.columns)


def test_images_of_a_patient_with_two_scans_are_those_of_the_first(cohort):
    first, second, third = cohort
    other = Scan(first.patient, third.signal, PROTOCOL, third.mask, third.affine, lesion=third.lesion)
    result = run(Cohort([first, other, second], "A"))
    one = result.predictions["A", first.patient]
    np.testing.assert_array_equal(np.isfinite(one.volume(one.reference[:, 0])), first.lesion)
    n = set(result.scores.loc[result.scores["patient"] == first.patient, "n_voxels"])
    assert n == {first.lesion.sum() + third.lesion.sum()}


def test_symbols_of_another_model_are_not_compared_with_the_truth(cohort):
    at_one_te = PROTOCOL.take(PROTOCOL.clinical(6))
    estimator = SignalToSignal(source=at_one_te.take(range(5)), target=at_one_te, model="ivim")
    assert compare({"LR": estimator}, cohort, max_voxels=30).scores["bias_truth"].isna().all()


def test_a_patient_without_a_usable_voxel_is_named_and_not_trained_on(cohort):
    first, second, third = cohort
    signal = np.full_like(second.signal, np.nan)
    signal[..., PROTOCOL.clinical()[0]] = second.signal[..., PROTOCOL.clinical()[0]]
    empty = Scan(second.patient, signal, PROTOCOL, second.mask, second.affine)
    study = run(Cohort([first, empty, third], "A"))
    assert set(study.scores["n_train"]) == {1}
    assert set(study.study["cohorts"]["A"]["skipped"]) == {second.patient}


def test_a_patient_without_a_lesion_is_scored_where_the_body_is(cohort):
    first, second, third = cohort
    healthy = Scan(second.patient, second.signal, PROTOCOL, second.mask, second.affine)
    result = run(Cohort([first, healthy, third], "A"), score_mask="body")
    assert second.patient in set(result.scores["patient"])
    assert not result.study["cohorts"]["A"]["skipped"]


def test_a_subclass_in_front_does_not_keep_the_controls_away(cohort):
    class Mine(SignalToSignal):
        pass

    estimators = {"mine s2s": Mine("LR"), "LR s2s": SignalToSignal("LR"), "ivim m2m": MapsToMaps("LR")}
    result = compare(estimators, cohort, max_voxels=20, random_state=0)
    assert {"constant s2s", "shuffled s2s", "perfect s2s", "constant m2m"} <= set(result.scores["estimator"])
    assert result.study["without_controls"] == []
    alone = compare({"mine s2s": Mine("LR")}, cohort, max_voxels=20, random_state=0)
    assert alone.study["without_controls"] == ["mine s2s"]


CLASS = """
from dmrifit import SignalToSignal
class Own(SignalToSignal):
    def predict_maps(self, X):
        return {factor} * super().predict_maps(X)
"""


def test_results_of_changed_code_are_computed_again(cohort, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    models = []
    for factor in ("1.0", "1.0", "1.25"):
        (tmp_path / "own_estimator.py").write_text(CLASS.format(factor=factor))
        sys.modules.pop("own_estimator", None)
        importlib.invalidate_caches()
        import linecache

        linecache.clearcache()
        own = importlib.import_module("own_estimator").Own
        result = compare(
            {"own": own("LR")}, cohort, max_voxels=20, controls=False, out=tmp_path / "out", random_state=0
        )
        models.append(result.study["models"]["trained"])
    sys.modules.pop("own_estimator")
    assert models == [3, 0, 3]


def test_what_killed_processes_left_is_removed_when_it_is_old(cohort, folder):
    import os

    old, young = (folder / "cells" / f".part-99999999-{name}.json" for name in ("old", "young"))
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    run(cohort, folder)
    assert not old.exists()
    assert young.exists()


def test_an_archive_of_predictions_holds_no_pickle(finished):
    for path in (finished / "predictions").glob("*.npz"):
        with zipfile.ZipFile(path) as archive:
            assert all(b"'O'" not in archive.read(name)[:200] for name in archive.namelist())


class Plain(BaseEstimator):
    def fit(self, X, Y):
        self.n_ = len(X)
        return self

    def predict(self, X):
        return np.zeros((len(X), 21))

    def predict_maps(self, X):
        return np.ones((len(X), 7))


def test_an_estimator_of_ones_own_takes_part(cohort):
    assert set(compare({"plain": Plain()}, cohort, max_voxels=20).scores["strategy"]) == {"Plain"}
