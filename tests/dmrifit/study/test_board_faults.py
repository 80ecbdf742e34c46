"""What can go wrong around a comparison: half-written folders, odd names, unusable patients, own classes."""

import importlib
import linecache
import os
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import pytest

from dmrifit import (
    Cohort,
    Evaluation,
    Protocol,
    Scan,
    compare,
    leave_one_patient_out,
    simulate_cohort,
)
from dmrifit.study.predictions import FolderPredictions

SMALL = 16, 16, 3
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
    with monkeypatch.context() as patched:
        patched.setattr(FolderPredictions, "write", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(cohort, folder)
    with pytest.raises(FileNotFoundError, match="was not finished; run it again"):
        Evaluation.read(folder)
    assert run(cohort, folder).study["models"]["trained"] == 0
    assert len(Evaluation.read(folder).predictions) == 3


def test_damaged_tables_are_named_and_restored_by_running_again(cohort, folder):
    (folder / "signals.csv").write_text("cohort,patient\nA,1\n")
    with pytest.raises(ValueError, match=r"signals\.csv was changed or damaged"):
        Evaluation.read(folder)
    again = run(cohort, folder)
    assert again.study["models"]["trained"] == 0
    assert len(Evaluation.read(folder).scores) == len(again.scores)


@pytest.mark.parametrize("content", ["[]", "{}", "null", "{", '{"scores": ['])
def test_a_cell_that_holds_something_else_is_computed_again(cohort, folder, content):
    cells = sorted((folder / "cells").glob("*.json"))
    cells[0].write_text(content)
    assert run(cohort, folder).study["models"] == {"trained": 1, "reused": len(cells) - 1}


def test_a_refused_comparison_does_not_claim_the_folder(cohort, tmp_path):
    other = simulate_cohort("cohort2", 3, name="B", shape=SMALL, random_state=321)
    with pytest.raises(ValueError, match="lacks"):
        run([cohort, other], tmp_path / "out", train_on="other")
    assert not run([cohort, other], tmp_path / "out").scores.empty


def test_numbers_of_numpy_and_single_names_are_understood(cohort):
    scores = leave_one_patient_out(
        cohort, strategies="s2s", algorithms="LR", n_train=np.int64(1), max_voxels=np.int64(9), controls=False
    ).scores
    assert set(scores["estimator"]) == {"LR s2s"}
    assert set(scores["n_train"]) == {1}


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


def test_a_patient_without_a_usable_voxel_is_named_and_not_trained_on(cohort):
    first, second, third = cohort
    signal = np.full_like(second.signal, np.nan)
    signal[..., PROTOCOL.clinical()[0]] = second.signal[..., PROTOCOL.clinical()[0]]
    empty = Scan(second.patient, signal, PROTOCOL, second.mask, second.affine)
    study = run(Cohort([first, empty, third], "A"))
    assert set(study.scores["n_train"]) == {1}
    assert set(study.study["cohorts"]["A"]["skipped"]) == {second.patient}


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
        linecache.clearcache()
        own = importlib.import_module("own_estimator").Own
        result = compare({"own": own("LR")}, cohort, max_voxels=20, controls=False, out=tmp_path / "out", random_state=0)
        models.append(result.study["models"]["trained"])
    sys.modules.pop("own_estimator")
    assert models == [3, 0, 3]


def test_what_killed_processes_left_is_removed_when_it_is_old(cohort, folder):
    old, young = (folder / "cells" / f".part-99999999-{name}.json" for name in ("old", "young"))
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    run(cohort, folder)
    assert not old.exists()
    assert young.exists()
