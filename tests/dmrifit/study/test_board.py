"""The study's board: controls, learning curves, transfer between protocols, kept predictions, no leaks."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from dmrifit import (
    Cohort,
    Evaluation,
    MapsToMaps,
    Scan,
    SignalToSignal,
    compare,
    learning_curve,
    leave_one_patient_out,
    simulate_cohort,
)
from dmrifit.predict.controls import CONTROLS

SMALL = 16, 16, 3


@pytest.fixture(scope="module")
def two():
    """Two synthetic cohorts with one protocol."""
    return [simulate_cohort("cohort1", 4, name=name, shape=SMALL, random_state=310) for name in "AB"]


@pytest.fixture(scope="module")
def curve(two, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    options = {"sizes": (1, 2, 3), "algorithms": ("LR",), "max_voxels": 60, "random_state": 5}
    return learning_curve(two, out=folder, **options), folder, options


def finished(folder):
    return [path for path in (folder / "cells").glob("*.json") if not path.name.startswith(".")]


def equal(one, other):
    for name in ("scores", "signals"):
        tables = (getattr(e, name).drop(columns="seconds", errors="ignore") for e in (one, other))
        pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_every_strategy_stands_beside_its_controls(curve):
    scores = curve[0].scores
    assert set(scores["estimator"]) == {f"{a} {s}" for a in ("LR", *CONTROLS) for s in ("s2s", "m2m")}
    sizes = scores.groupby("algorithm")["n_train"].unique().map(sorted).to_dict()
    assert sizes == {"LR": [1, 2, 3], **{control: [3] for control in CONTROLS}}
    # Of two sizes, the one with the smaller error has the larger skill.
    assert (scores.groupby(["patient", "metric", "strategy"])["constant_error"].agg(np.ptp) == 0).all()
    perfect = scores[scores["algorithm"] == "perfect"]
    assert (perfect["bias"].abs().max(), perfect["dispersion"].max()) == (0, 0)
    assert perfect["pearson"].dropna().min() > 1 - 1e-12
    # One S0 relative to the clinical S0 is not one S0.
    assert scores.loc[(scores["algorithm"] == "constant") & (scores["metric"] != "S0"), "pearson"].isna().all()


def test_scores_follow_from_the_predictions_that_are_kept(curve):
    result = Evaluation.read(curve[1])
    assert len(result.predictions) == 8
    scores = result.scores[(result.scores["n_train"] == 3)].set_index(["patient", "estimator", "metric"])
    signals = result.signals[(result.signals["n_train"] == 3)].set_index(["patient", "estimator", "contrast"])
    for key in result.predictions:
        one = result.predictions[key]
        assert key == (one.cohort, one.patient)
        assert set(one.maps) == set(one.signals) == {"LR s2s", "LR m2m"}
        assert one.reference.shape == (len(one.index), 7)
        assert one.measured.shape == (len(one.index), 21)
        assert one.labels[0] == "S_b0_TE93"
        assert one.seen.sum() == 5
        for name, maps in one.maps.items():
            reference = one.reference.astype(float)
            with np.errstate(divide="ignore", invalid="ignore"):
                error = (maps - reference) / reference
            for j, metric in enumerate(one.names):
                row = scores.loc[(one.patient, name, metric)]
                low, middle, high = np.nanpercentile(error[np.isfinite(error[:, j]), j], [25, 50, 75])
                np.testing.assert_allclose([row["bias"], row["dispersion"]], [middle, high - low], atol=1e-4)
            unseen = ~one.seen
            error = np.abs(one.signals[name][:, unseen] / one.measured[:, unseen] - 1)
            pooled = signals.loc[(one.patient, name, "all unseen")]
            np.testing.assert_allclose(pooled["relative_error"], error.mean(), rtol=1e-4)
            r = np.corrcoef(one.signals[name][:, unseen].ravel(), one.measured[:, unseen].ravel())[0, 1]
            np.testing.assert_allclose(pooled["pearson"], r, atol=1e-5)


def test_predictions_are_not_kept_when_not_asked_for(two, tmp_path):
    options = {"algorithms": ("LR",), "max_voxels": 20, "random_state": 0, "out": tmp_path}
    without = leave_one_patient_out(two, keep_predictions=False, **options)
    assert not without.predictions
    assert not list(tmp_path.rglob("*.npz"))
    with_them = leave_one_patient_out(two, **options)
    assert len(with_them.predictions) == 8
    equal(without, with_them)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"strategies": ("s2m",)}, "strategies must be some of s2s, m2m"), ({"strategies": ()}, "not nothing"),
     ({"algorithms": ()}, "algorithms must name at least one")],
)
def test_boards_without_meaning_are_refused(two, arguments, message):
    with pytest.raises(ValueError, match=message):
        leave_one_patient_out(two, **{"algorithms": ("LR",), **arguments})


def test_an_algorithm_whose_extra_is_missing_is_never_left_out_in_silence(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(ImportError, match=r"pip install .*dmrifit\[boost\]"):
        leave_one_patient_out(two, algorithms=("LR", "GBR"), max_voxels=10)


def test_cohorts_of_other_protocols_train_once_their_signals_are_computed():
    # Two synthetic cohorts whose protocols differ.
    presets = [simulate_cohort(name, 3, shape=SMALL, random_state=311) for name in ("cohort1", "cohort2")]
    with pytest.raises(ValueError, match=r"cohort2.*lacks S_b0_TE93.*resynthesize=True"):
        leave_one_patient_out(presets, algorithms=("LR",), train_on="other", max_voxels=60)
    options = {"algorithms": ("LR",), "max_voxels": 60, "random_state": 2}
    result = leave_one_patient_out(presets, train_on=("same", "other", "pooled"), resynthesize=True, **options)
    scores = result.scores
    sizes = scores.groupby("train_on")["n_train"].unique().map(list).to_dict()
    assert sizes == {"other": [3], "pooled": [5], "same": [2]}
    # Equal answers have equal skills, whatever the training.
    assert scores[scores["algorithm"] == "copy"].groupby(["patient", "strategy", "metric"])["skill"].agg(np.ptp).max() == 0
    # What was trained on the patient's own cohort does not depend on whether others were computed.
    alone = leave_one_patient_out(presets, **options)
    same = scores[scores["train_on"] == "same"].drop(columns="seconds").reset_index(drop=True)
    pd.testing.assert_frame_equal(same, alone.scores.drop(columns="seconds"), check_exact=True)
    error = result.signals[(result.signals["algorithm"] == "LR") & (result.signals["strategy"] == "s2s")]
    assert error.loc[error["contrast"] == "all unseen"].groupby("train_on")["pearson"].min().min() > 0.9


def test_targets_of_the_held_out_patient_do_not_change_its_prediction(two):
    home = two[0]
    scan = home.scans[1]
    signal = scan.signal.astype(float)
    clinical = scan.protocol.clinical()
    advanced = np.setdiff1d(np.arange(len(scan.protocol)), clinical)
    signal[..., advanced] = 1e6
    spoiled = Scan(scan.patient, signal, scan.protocol, scan.mask, scan.affine, lesion=scan.lesion)
    changed = Cohort([spoiled if one is scan else one for one in home], home.name)
    options = {"algorithms": ("LR", "ETR"), "max_voxels": 40, "random_state": 1, "controls": False}
    before, after = (
        leave_one_patient_out(cohort, **options).predictions[home.name, scan.patient] for cohort in (home, changed)
    )
    for name in before.maps:
        np.testing.assert_array_equal(before.maps[name], after.maps[name])
        np.testing.assert_array_equal(before.signals[name], after.signals[name])


_STUDY = """
from dmrifit import learning_curve, simulate_cohort
cohorts = [simulate_cohort("cohort1", 4, name=name, shape=(16, 16, 3), random_state=310) for name in "AB"]
options = {"sizes": (1, 2, 3), "algorithms": ("LR",), "max_voxels": 60, "random_state": 5}
learning_curve(cohorts, out=r"OUT", **options)
"""


def test_a_study_that_was_killed_goes_on_and_gives_the_same_table(curve, two, tmp_path):
    out = tmp_path / "study"
    process = subprocess.Popen([sys.executable, "-c", _STUDY.replace("OUT", str(out))], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(finished(out)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    n_finished = len(finished(out))
    assert n_finished >= 5
    resumed = learning_curve(two, out=out, **curve[2])
    # A kill between the predictions of a cell and its scores leaves the cell unfinished.
    assert resumed.study["models"]["reused"] == n_finished
    equal(curve[0], resumed)
    equal(Evaluation.read(out), resumed)


def test_a_regressor_that_is_tuned_by_patients_can_be_compared_and_kept(two, tmp_path):
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut

    search = GridSearchCV(Ridge(), {"alpha": [1e-6, 10.0]}, cv=LeaveOneGroupOut())
    estimators = {"tuned s2s": SignalToSignal(search), "LR s2s": SignalToSignal("LR"), "tuned m2m": MapsToMaps(search)}
    scores = compare(estimators, two[0], max_voxels=60, controls=False, out=tmp_path, random_state=0).scores
    means = scores[scores["strategy"] == "s2s"].groupby("algorithm")["dispersion"].mean()
    assert means["tuned"] == pytest.approx(means["LR"], rel=0.2)
    voxelwise = {"leaky s2s": SignalToSignal(GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=3))}
    with pytest.raises(ValueError, match=r"'leaky s2s': .*voxels of one patient on both sides"):
        compare(voxelwise, two[0], max_voxels=60)


def test_the_order_of_cohorts_patients_and_volumes_moves_no_number(two):
    first = two[0].scans[0]
    again = Scan(first.patient, 1.2 * first.signal[::-1], first.protocol, first.mask[::-1], first.affine)
    cohorts = [Cohort([again, *two[0].scans], "A"), two[1]]
    turned = []
    for cohort in cohorts[::-1]:
        scans = []
        for i, scan in enumerate(cohort.scans[::-1]):
            volumes = np.random.default_rng(i).permutation(len(scan.protocol))
            clean = None if scan.noise_free is None else scan.noise_free[..., volumes]
            kept = {"lesion": scan.lesion, "sigma": scan.sigma, "truth": scan.truth, "noise_free": clean}
            moved = scan.signal[..., volumes], scan.protocol.take(volumes), scan.mask, scan.affine
            scans.append(Scan(scan.patient, *moved, **kept))
        turned.append(Cohort(scans, cohort.name))
    estimators = {f"{name} s2s": SignalToSignal(name) for name in ("LR", "RFR", "slNN")}
    estimators["ETR m2m"] = MapsToMaps("ETR")
    options = {"train_on": "pooled", "n_train": (1, 2), "max_voxels": 30, "random_state": 3}
    equal(compare(estimators, cohorts, **options), compare(estimators, turned, **options))


def test_one_image_under_two_patients_is_refused_before_training(two):
    first = two[0].scans[0]
    copied = Scan("copy", first.signal, first.protocol, first.mask, first.affine, lesion=first.lesion)
    with pytest.raises(ValueError, match=f"patients {first.patient} and copy have the same images"):
        compare({"LR s2s": SignalToSignal("LR")}, Cohort([*two[0].scans, copied], "A"))
    renamed = Scan(first.patient.upper(), first.signal, first.protocol, first.mask, first.affine)
    with pytest.raises(ValueError, match="differ only in case"):
        compare({"LR s2s": SignalToSignal("LR")}, [two[0], Cohort([renamed], "B")])
