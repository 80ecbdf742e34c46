"""Comparisons: who is trained on whom, against what, resumed, repeated to the bit, refused when impossible."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata
from sklearn.base import BaseEstimator

from dmrifit import (
    MODELS,
    Cohort,
    Evaluation,
    MapsToMaps,
    Protocol,
    Scan,
    SignalToSignal,
    compare,
    simulate_cohort,
)
from dmrifit.engine.fitting import fit_voxels
from dmrifit.stats.metrics import METRICS, MapMetric
from dmrifit.study.report.sections.scores import parameter_scores, truth_scores
from dmrifit.study.summaries import Board

SMALL = 16, 16, 3
PROTOCOL = Protocol.preset("cohort1")
TABLES = "scores", "signals"


def cohort(name="A", n=3, seed=0, protocol=PROTOCOL):
    return simulate_cohort(protocol, n, name=name, shape=SMALL, random_state=seed)


@pytest.fixture(scope="module")
def two():
    return {"A": cohort("A"), "B": cohort("B")}


class Recorder(BaseEstimator):
    """Remember what every copy was trained and tested on; answer with the mean of the training targets."""

    log: list = []  # noqa: RUF012
    fail_at: int | None = None

    def __init__(self, source=None, target=None, model="t2-ivim-kurtosis", random_state=None):
        self.source = source
        self.target = target
        self.model = model
        self.random_state = random_state

    def fit(self, X, Y):
        if Recorder.fail_at is not None and len(Recorder.log) == Recorder.fail_at:
            msg = "out of luck"
            raise ArithmeticError(msg)
        self.mean_ = Y.mean(axis=0)
        self.record_ = {"train": X.copy(), "test": [], "random_state": self.random_state}
        Recorder.log.append(self.record_)
        return self

    def predict(self, X):
        self.record_["test"].append(X.copy())
        return np.tile(self.mean_, (len(X), 1))

    def predict_maps(self, X):
        return fit_voxels(np.tile(self.mean_, (len(X), 1)), self.target, self.model, method="nlls").parameters


@pytest.fixture
def record():
    Recorder.log.clear()
    Recorder.fail_at = None
    yield Recorder.log
    Recorder.log.clear()
    Recorder.fail_at = None


def owners(X, cohorts):
    """Name the patients whose voxels are rows of X."""
    tables = [c.arrays(mask="body") for c in cohorts.values()]
    known = {row.tobytes(): group for table in tables for row, group in zip(table.X, table.groups, strict=True)}
    return {str(known[row.tobytes()]) for row in X}


def equal(one, other, *, timed=False):
    for name in TABLES:
        left, right = (getattr(e, name).drop(columns=[] if timed else "seconds", errors="ignore") for e in (one, other))
        pd.testing.assert_frame_equal(left, right, check_exact=True)


@pytest.mark.parametrize(("train_on", "n_models", "n_patients"), [("same", 6, 2), ("other", 2, 3), ("pooled", 6, 5)])
def test_no_patient_is_trained_on_itself_and_all_others_of_its_way_are(two, record, train_on, n_models, n_patients):
    scores = compare({"r": Recorder()}, two, train_on=train_on, max_voxels=10, random_state=0).scores
    assert len(record) == n_models
    everyone = {*two["A"].patients, *two["B"].patients}
    for entry in record:
        trained, tested = owners(entry["train"], two), set().union(*(owners(x, two) for x in entry["test"]))
        home = set(two[next(iter(tested))[0]].patients)
        assert trained == {"same": home - tested, "other": everyone - home, "pooled": everyone - tested}[train_on]
        assert len(entry["train"]) == 10 * n_patients
    assert set(scores["patient"]) == everyone
    assert set(scores["n_train"]) == {n_patients}


def worst_overestimate(prediction, reference):
    return np.max(prediction - reference, axis=0)


def test_a_metric_is_added_by_one_entry(two, read, monkeypatch):
    entry = MapMetric("excess", "Δmax", worst_overestimate, unit="", digits=3, signed=True, with_sd=True)
    monkeypatch.setitem(METRICS, "excess", entry)
    result = compare({"LR s2s": SignalToSignal("LR"), "LR m2m": MapsToMaps("LR")}, two["A"], max_voxels=20)
    for (_, patient), kept in result.predictions.items():
        rows = result.scores[result.scores["patient"] == patient]
        for name, maps in kept.maps.items():
            scores = rows[rows["estimator"] == name].set_index("metric").loc[list(kept.names)]
            expected = (maps - kept.reference).max(axis=0)
            np.testing.assert_allclose(scores["excess"], expected, rtol=1e-4, atol=1e-4)
            expected = (maps - kept.truth).max(axis=0)
            np.testing.assert_allclose(scores["excess_truth"], expected, rtol=1e-4, atol=1e-4)
    summary = Board(result).summary.set_index(["strategy", "algorithm"])
    # No mean over parameters includes T2v, whose reference mostly sits at a bound.
    means = result.scores.query("metric not in ('S0', 'T2v') and strategy == 's2s' and algorithm == 'LR'")
    assert summary.loc[("s2s", "LR"), "excess"] == pytest.approx(means["excess"].mean())
    assert summary.loc[("s2s", "LR"), "excess_sd"] == pytest.approx(means.groupby("patient")["excess"].mean().std())
    for section in (parameter_scores, truth_scores):
        read(section(Board(result)))
    for figure in read.figures.values():
        assert any("Δmax" in axes.get_xlabel() for axes in figure.axes)


def test_scores_have_the_same_bits_for_any_number_of_jobs(two):
    estimators = {"RFR s2s": SignalToSignal("RFR"), "LR m2m": MapsToMaps("LR")}
    one, other = (
        compare(estimators, two, train_on=("same", "other"), max_voxels=30, n_jobs=n, random_state=3) for n in (1, 2)
    )
    equal(one, other)


def test_an_interrupted_comparison_goes_on_where_it_stopped(two, record, tmp_path):
    arguments = {"max_voxels": 20, "random_state": 7}
    whole = compare({"r": Recorder()}, two, **arguments)
    record.clear()
    Recorder.fail_at = 4
    with pytest.raises(RuntimeError, match=r"estimator 'r' failed for Bp02 of cohort 'B'.*out of luck"):
        compare({"r": Recorder()}, two, out=tmp_path, **arguments)
    with pytest.raises(FileNotFoundError, match="was not finished"):
        Evaluation.read(tmp_path)
    Recorder.fail_at = None
    record.clear()
    resumed = compare({"r": Recorder()}, two, out=tmp_path, **arguments)
    assert len(record) == 2
    assert resumed.study["models"] == {"trained": 2, "reused": 4}
    equal(whole, resumed)
    equal(Evaluation.read(tmp_path), resumed, timed=True)


def with_signal(cohort, place, value):
    """Put another signal at a place of the first scan."""
    scan = cohort.scans[0]
    signal = scan.signal.copy()
    signal[place] = value
    kept = {"lesion": scan.lesion, "truth": scan.truth, "sigma": scan.sigma, "noise_free": scan.noise_free}
    changed = Scan(scan.patient, signal, PROTOCOL, scan.mask, scan.affine, **kept)
    return Cohort([changed, *cohort.scans[1:]], "A")


def test_changed_signals_of_a_held_out_patient_are_noticed(two, record, tmp_path):
    compare({"r": Recorder()}, two["A"], max_voxels=1, out=tmp_path, random_state=7)
    trained_on = {row.tobytes() for entry in record for row in entry["train"]}
    record.clear()
    scan = two["A"].scans[0]
    table = Cohort([scan], "A").arrays()
    i = next(i for i, row in enumerate(table.X) if row.tobytes() not in trained_on)
    place = (*table.index[i, 1:], 12)  # a contrast that is no input
    cohorts = with_signal(two["A"], place, 1.5 * scan.signal[place])
    result = compare({"r": Recorder()}, cohorts, max_voxels=1, out=tmp_path, random_state=7)
    assert [owners(entry["test"][0], {"A": cohorts}) for entry in record] == [{scan.patient}]
    assert result.study["models"] == {"trained": 1, "reused": 2}


def test_the_seed_of_a_folder_is_taken_up_again(two, record, tmp_path):
    first = compare({"r": Recorder()}, two["A"], max_voxels=20, out=tmp_path)
    n = len(record)
    second = compare({"r": Recorder()}, two["A"], max_voxels=20, out=tmp_path)
    assert len(record) == n
    equal(first, second, timed=True)


def test_a_folder_of_another_study_is_left_alone(two, tmp_path):
    compare({"r": Recorder()}, two["A"], max_voxels=20, out=tmp_path, random_state=0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="another study: max_voxels was 20 there and is 30 now"):
        compare({"r": Recorder()}, two["A"], max_voxels=30, out=tmp_path, random_state=0)
    with pytest.raises(ValueError, match="another study: cohorts was"):
        compare({"r": Recorder()}, two["B"], max_voxels=20, out=tmp_path, random_state=0)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(ValueError, match="does not describe a study"):
        compare({"r": Recorder()}, two["A"], max_voxels=20, out=tmp_path, random_state=0)


def test_patients_without_a_lesion_train_and_are_named(two, record):
    scan = two["A"].scans[1]
    healthy = Scan(scan.patient, scan.signal, PROTOCOL, scan.mask, scan.affine)
    scans = [two["A"].scans[0], healthy, two["A"].scans[2]]
    result = compare({"r": Recorder()}, Cohort(scans, "A"), max_voxels=20, random_state=0)
    assert healthy.patient not in set(result.scores["patient"])
    assert result.study["cohorts"]["A"]["skipped"] == {healthy.patient: "trained on; not scored: no lesion voxel"}
    assert all(healthy.patient in owners(entry["train"], two) for entry in record)


def test_scores_agree_with_a_comparison_written_plainly(two):
    """Least squares by numpy, trained on all body voxels of the others, scored by hand."""
    result = compare({"LR s2s": SignalToSignal("LR")}, two["A"], controls=False, random_state=0)
    signals, lesions, truths = [], [], []
    for scan in two["A"]:
        body = scan.signal[scan.mask].astype(float)
        unit = np.percentile(body[:, 0], 95)
        signals.append(body / unit)
        lesions.append(scan.signal[scan.lesion].astype(float) / unit)
        truth = {name: values[scan.lesion] for name, values in scan.truth.items()}
        truths.append(truth | {"S0": truth["S0"] / unit})
    for held_out, patient in enumerate(two["A"].patients):
        train = np.concatenate([s for i, s in enumerate(signals) if i != held_out])
        weights = np.linalg.lstsq(np.column_stack([np.ones(len(train)), train[:, :5]]), train, rcond=None)[0]
        measured = lesions[held_out]
        predicted = np.column_stack([np.ones(len(measured)), measured[:, :5]]) @ weights
        error = (predicted / measured - 1)[:, 5:]
        found = result.signals[(result.signals["patient"] == patient) & (result.signals["contrast"] != "all unseen")]
        np.testing.assert_allclose(found["relative_error"], np.abs(error).mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(found["median_relative_error"], np.median(np.abs(error), axis=0), rtol=1e-6)
        np.testing.assert_allclose(found["signed_relative_error"], error.mean(axis=0), rtol=1e-6, atol=1e-9)
        maps, reference = (
            fit_voxels(np.maximum(s, 0), PROTOCOL, "t2-ivim-kurtosis", method="nlls").parameters for s in (predicted, measured)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            E = maps / reference - 1
        for j, (_, row) in enumerate(result.scores[result.scores["patient"] == patient].iterrows()):
            e = E[:, j][np.isfinite(E[:, j])]
            assert row["bias"] == pytest.approx(np.median(e), abs=1e-4)
            assert row["dispersion"] == pytest.approx(np.subtract(*np.percentile(e, [75, 25])), abs=2e-4)
            assert row["median_abs_error"] == pytest.approx(np.median(np.abs(e)), abs=1e-4)
            assert row["n_undefined"] == len(E) - len(e)
            true = maps[:, j] / truths[held_out][row["metric"]] - 1
            assert row["bias_truth"] == pytest.approx(np.median(true), abs=1e-4)
            assert row["dispersion_truth"] == pytest.approx(np.subtract(*np.percentile(true, [75, 25])), abs=2e-4)
            ranks = [rankdata(values[:, j]) for values in (maps, reference)]
            assert row["pearson"] == pytest.approx(np.corrcoef(maps[:, j], reference[:, j])[0, 1], abs=1e-4)
            assert row["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-3)


def plain_decay(signals, b):
    """Fit S0·exp(−b·ADC) to every row: the best ADC of a fine grid, then ever finer ones around it."""
    adc = np.linspace(-8, 100, 5401)[None, :].repeat(len(signals), axis=0)
    for _ in range(5):
        decay = np.exp(-adc[:, :, None] * b / 1000)
        s0 = np.einsum("vgb,vb->vg", decay, signals) / (decay**2).sum(axis=2)
        cost = ((s0[:, :, None] * decay - signals[:, None, :]) ** 2).sum(axis=2)
        best = np.arange(len(signals)), cost.argmin(axis=1)
        step = adc[:, 1] - adc[:, 0]
        found = s0[best], adc[best]
        adc = found[1][:, None] + step[:, None] * np.linspace(-1, 1, 41)
    return found


def test_maps_from_maps_agree_with_a_comparison_written_plainly():
    """Features from a search on a grid, least squares by numpy, scored by hand."""
    patients = cohort("plain", seed=9041)
    result = compare({"LR m2m": MapsToMaps("LR")}, patients, train_mask="lesion", random_state=0)
    model = MODELS["t2-ivim-kurtosis"]
    X, targets, references = [], [], []
    clinical = np.array([0.0, 50, 100, 400, 900])
    for scan in patients:
        Y = scan.signal[scan.lesion].astype(float) / np.percentile(scan.signal[scan.mask][:, 0].astype(float), 95)
        source = Y[:, :5]
        s0, _ = plain_decay(source, clinical)
        _, fast = plain_decay(source[:, :3], clinical[:3])
        slow0, slow = plain_decay(source[:, 2:], clinical[2:])
        reference = fit_voxels(Y, PROTOCOL, model, method="nlls").parameters
        X.append((np.column_stack([np.ones(len(Y)), fast, slow, 1 - slow0 / s0]), s0, source.max(axis=1)))
        references.append(reference)
        targets.append(np.column_stack([np.log(reference[:, 0] / s0), reference[:, 1:]]))
    for held_out, patient in enumerate(patients.patients):
        train = [i for i in range(3) if i != held_out]
        weights = np.linalg.lstsq(
            np.concatenate([X[i][0] for i in train]), np.concatenate([targets[i] for i in train]), rcond=None
        )[0]
        features, s0, largest = X[held_out]
        maps = features @ weights
        maps[:, 0] = np.exp(maps[:, 0]) * s0
        for j, parameter in enumerate(model.parameters):
            unit = largest if j == 0 else 1.0
            predicted = np.clip(maps[:, j], parameter.low * unit, parameter.high * unit)
            with np.errstate(divide="ignore", invalid="ignore"):
                e = predicted / references[held_out][:, j] - 1
            e = e[np.isfinite(e)]
            rows = result.scores[result.scores["patient"] == patient]
            row = rows[rows["metric"] == parameter.name].iloc[0]
            assert row["bias"] == pytest.approx(np.median(e), abs=1e-3)
            assert row["dispersion"] == pytest.approx(np.subtract(*np.percentile(e, [75, 25])), abs=1e-3)


def test_neighborhoods_may_reach_out_of_the_images_of_one_patient_but_not_of_all():
    thick = simulate_cohort("cohort1", 2, shape=(12, 12, 5), random_state=1)
    thin = simulate_cohort("cohort1", 3, shape=(12, 12, 2), random_state=1).scans[2:]
    study = {"max_voxels": 20, "controls": False, "random_state": 0}
    estimators = {"near": SignalToSignal("LR", patch_shape=(3, 3, 5))}
    found = compare(estimators, Cohort([*thick.scans, *thin], "cohort1"), **study)
    assert found.scores["patient"].nunique() == 3
    with pytest.raises(ValueError, match=r"\(3, 3, 99\) is too large for every image; use at most \(3, 3, 9\)"):
        compare({"far": SignalToSignal("LR", patch_shape=(3, 3, 99))}, thick, **study)
