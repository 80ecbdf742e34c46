"""One training with its tests: what is trained, and scores by hand of what is answered."""

import numpy as np
import pytest
from scipy import stats
from sklearn.base import BaseEstimator

from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.predict.controls import nearest_contrasts
from dmrifit.predict.strategies import Clinical, MapsToMaps, SignalToSignal
from dmrifit.study.contestants import Entrant, View
from dmrifit.study.splits import Cell
from dmrifit.study.training_runs import POOLED, SIGNAL_COLUMNS, run_trial
from dmrifit.study.voxel_bank import Constants, HeldOut, Repeat

ADC = MODELS["adc"]
FULL = Protocol([0, 500, 1000, 1500])
SOURCE = FULL.take([0, 1])
VIEW = View(SOURCE, FULL, None, ADC)
TRAINING = np.random.default_rng(0).uniform(0.2, 1, (40, 4))


class Answer(BaseEstimator):
    """Remember what it was trained on, and answer as it was told."""

    def __init__(self, maps=None, signals=None, source=None, target=None, model="adc", random_state=None):
        self.maps = maps
        self.signals = signals
        self.source = source
        self.target = target
        self.model = model
        self.random_state = random_state

    trained = ()

    def fit(self, X, Y):
        if isinstance(self.maps, str):
            msg = "out of luck"
            raise ArithmeticError(msg)
        Answer.trained = (X.copy(), Y.copy(), self.get_params(deep=False))
        return self

    def predict(self, X):
        return np.array(self.signals)[: len(X)]

    def predict_maps(self, X):
        return np.array(self.maps)[: len(X)]


def make_cell(estimator, *, control="", keep=False, view=VIEW, seed=5, test=("p",), model=ADC):
    entrant = Entrant.of("x s2s", estimator, kept=False, example=FULL)
    values = entrant.name, entrant.strategy, entrant.algorithm, estimator, model, ""
    entrant = Entrant(*values, control=control)
    split = {"train_on": "same", "cohort": "A", "train": ("q", "r"), "test": test, "repeat": 1}
    return Cell(**split, seed=seed, entrant=entrant, view=view, key="key", keep=keep)


REFERENCE = np.array([[1.0, 1.0], [2.0, 2.0], [0.0, 4.0], [1.0, 2.0]])
MEASURED = np.array([[1.0, 0.8, 0.5, 0.2], [1.0, 0.9, 0.4, 0.1], [1.0, 0.7, 0.8, 0.0], [1.0, 0.6, 0.5, 0.4]])


def held_out(patient="p", **changes):
    index = np.column_stack([np.zeros(4, int), np.arange(4), np.zeros(4, int), np.zeros(4, int)])
    values = {"X": MEASURED[:, :2], "Y": MEASURED, "reference": REFERENCE, "at_bound": np.array([0.0, 0.25])}
    values |= {"truth": None, "index": index, "shape": (4, 1, 1), "affine": np.eye(4)} | changes
    return HeldOut(cohort="A", patient=patient, shown=values["index"][:, 0] == 0, **values)


ROWS = [slice(0, 10), slice(30, 40)]


def run_answers(maps, signals, test=None, **options):
    """Train the estimator that answers so, and test it on one patient."""
    cell = make_cell(Answer(maps, signals), **options)
    tests = [test or held_out()]
    return run_trial(cell, TRAINING[:, :2], TRAINING, ROWS, 0, tests, [CONSTANTS])


def test_scores_of_unseen_signals_by_hand():
    signals = MEASURED.copy()
    signals[:, 2] *= [1.1, 0.8, 1.0, 1.3]
    signals[:, 3] *= [1.2, 1.2, 1.0, 0.5]
    signals[:, 0] = 99.0  # an input, which is not scored
    first, second, pooled = rows = run_answers(REFERENCE, signals)["signals"]
    assert [row["contrast"] for row in rows] == ["S_b1000", "S_b1500", POOLED]
    assert (first["b"], second["b"]) == (1000, 1500)
    assert np.isnan([first["te"], pooled["te"], pooled["b"]]).all()
    names = "relative_error", "median_relative_error", "signed_relative_error", "n_voxels", "n_undefined"
    # Errors of the first: 0.1, −0.2, 0 and 0.3; of the second: 0.2, 0.2, none (nothing was measured) and −0.5.
    assert [first[name] for name in names] == pytest.approx([0.15, 0.15, 0.05, 4, 0])
    assert [second[name] for name in names] == pytest.approx([0.3, 0.2, -0.1 / 3, 4, 1])
    assert [pooled[name] for name in names] == pytest.approx([1.5 / 7, 0.2, 0.1 / 7, 8, 1])
    r = stats.pearsonr(signals[:, 2:].ravel(), MEASURED[:, 2:].ravel())[0]
    assert pooled["pearson"] == pytest.approx(r)
    assert set(first) == set(SIGNAL_COLUMNS)


def test_voxels_without_a_source_signal_are_not_predicted():
    source = MEASURED[:, :2].copy()
    source[1, 0] = np.nan
    # The estimator is asked for three voxels and answers their truth.
    usable = [0, 2, 3]
    content = run_answers(REFERENCE[usable], MEASURED[usable], held_out(X=source), keep=True)
    row = content["scores"][1]
    assert (row["n_failed"], row["n_voxels"], row["bias"]) == (1, 4, 0)
    maps = content["predictions"]["maps/p"]
    assert np.isnan(maps[1]).all()
    np.testing.assert_array_equal(maps[usable], REFERENCE[usable])
    nothing = held_out(X=np.full((4, 2), np.nan))
    assert run_answers([], [], nothing)["scores"][1]["n_failed"] == 4


def test_an_estimator_is_trained_on_the_rows_of_its_patients_with_contrasts_and_seed():
    run_answers(REFERENCE, MEASURED)
    X, Y, parameters = Answer.trained
    np.testing.assert_array_equal(Y, TRAINING[[*range(10), *range(30, 40)]])
    np.testing.assert_array_equal(X, Y[:, :2])
    assert (parameters["source"], parameters["target"]) == (SOURCE, FULL)
    first = parameters["random_state"]
    run_answers(REFERENCE, MEASURED)
    assert Answer.trained[2]["random_state"] == first
    run_answers(REFERENCE, MEASURED, seed=6)
    assert Answer.trained[2]["random_state"] != first


def test_shuffled_targets_are_those_of_other_voxels():
    run_answers(REFERENCE, MEASURED, control="shuffled")
    X, Y, _ = Answer.trained
    used = TRAINING[[*range(10), *range(30, 40)]]
    np.testing.assert_array_equal(X, used[:, :2])
    assert not np.array_equal(Y, used)
    np.testing.assert_array_equal(Y[np.argsort(Y[:, 0])], used[np.argsort(used[:, 0])])


NOISE_FREE = MEASURED + np.array([[0.02], [-0.03], [0.04], [0.01]])
SECOND = np.array([[1.1, 0.9], [1.8, 2.2], [0.5, 3.0], [1.2, 1.5]])
TRUE = np.array([[1.0, 1.1], [1.9, 2.1], [0.3, 3.5], [1.1, 1.8]])
CONSTANTS = Constants(np.array([1.0, 0.8, 0.5, 0.2]), np.array([1.0, 2.0]), np.array([1.0, 2.0]))


def repeated(**changes):
    repeat = Repeat(NOISE_FREE, MEASURED[:, ::-1].copy(), SECOND)
    return held_out(truth=TRUE, repeat=repeat, **changes)


def by_hand(answer, reference, constant):
    """1 − Σ |E| / Σ |E| of a constant, of the voxels whose reference is not zero."""
    usable = reference != 0
    error = np.abs(answer - reference)[usable] / np.abs(reference[usable])
    return 1 - error.sum() / (np.abs(constant - reference)[usable] / np.abs(reference[usable])).sum()


@pytest.mark.parametrize("strategy", [SignalToSignal, MapsToMaps])
@pytest.mark.parametrize(
    ("control", "signals", "maps"),
    [("truth", NOISE_FREE, TRUE), ("repeat", MEASURED[:, ::-1], SECOND), ("perfect", MEASURED, REFERENCE)],
)
def test_truth_and_repeat_are_scored_against_both_references_by_plain_numpy(strategy, control, signals, maps):
    cell = make_cell(strategy("LR", model="adc"), control=control)
    content = run_trial(cell, None, None, [], 0, [repeated()], [CONSTANTS])
    if strategy is MapsToMaps:
        signals = maps[:, :1] * np.exp(-maps[:, 1:] * FULL.b / 1000)
    for j, row in enumerate(content["scores"]):
        constant = CONSTANTS.relative[j]
        assert row["skill"] == pytest.approx(by_hand(maps[:, j], REFERENCE[:, j], constant))
        assert row["absolute_skill"] == pytest.approx(
            1 - np.abs(maps - REFERENCE)[:, j].sum() / np.abs(constant - REFERENCE[:, j]).sum()
        )
        if control == "repeat":
            # Against itself it would be perfect.
            assert np.isnan([row["skill_independent"], row["bias_independent"], row["pearson_independent"]]).all()
            continue
        assert row["skill_independent"] == pytest.approx(by_hand(maps[:, j], SECOND[:, j], constant))
        r = np.corrcoef(maps[:, j], SECOND[:, j])[0, 1]
        assert row["pearson_independent"] == pytest.approx(r)
        errors = maps[:, j] / SECOND[:, j] - 1
        assert row["bias_independent"] == pytest.approx(np.median(errors))
    for j, row in zip((2, 3), content["signals"][:2], strict=True):
        measured = MEASURED[:, j]
        assert row["skill"] == pytest.approx(by_hand(signals[:, j], measured, CONSTANTS.signals[j]))


def test_a_copy_answers_the_nearest_source_contrast_clinical_metrics_and_a_constant_for_others(monkeypatch):
    source, target = Protocol([0, 500, 0], te=[70, 70, 100]), Protocol([0, 200, 300, 900, 300], te=[70, 70, 70, 70, 99])
    assert nearest_contrasts(source, target).tolist() == [0, 0, 1, 1, 2]
    cell = make_cell(SignalToSignal("LR", model="adc"), control="copy", keep=True)
    content = run_trial(cell, None, None, [], 0, [held_out()], [CONSTANTS])
    copied = content["predictions"]
    expected = MEASURED[:, nearest_contrasts(SOURCE, FULL)]
    np.testing.assert_array_equal(copied["signals/p"], expected.astype(np.float32))
    fit = fit_voxels(expected, FULL, "adc").parameters
    np.testing.assert_array_equal(copied["maps/p"], fit.astype(np.float32))
    model = MODELS["t2-ivim-kurtosis"]
    features = np.array([[20.0, 1.5, 0.2], [30.0, 1.0, -0.1]])
    clinical = Clinical(features, np.array([0.9, 1.1]), np.array([1.0, 1.0]))
    constants = Constants(np.ones(4), np.array([2.0, 0.1, 9.0, 200.0, 1.2, 0.7, 60.0]), np.zeros(7))
    test = held_out(index=np.zeros((2, 4), int), X=np.ones((2, 2)), Y=np.ones((2, 4)), reference=np.ones((2, 7)), at_bound=np.zeros(7))
    view = View(SOURCE, Protocol([0, 100, 500, 1000], te=60), None, model)
    cell = make_cell(MapsToMaps("LR"), control="copy", keep=True, model=model, view=view)
    monkeypatch.setattr(MapsToMaps, "clinical", lambda *_: clinical)
    content = run_trial(cell, None, None, [], 0, [test], [constants])
    maps = content["predictions"]["maps/p"]
    # A negative fraction is no fraction.
    np.testing.assert_allclose(maps[:, 1], [0.2, 0])
    np.testing.assert_allclose(maps[:, [2, 4]], features[:, :2])
    np.testing.assert_allclose(maps[:, [3, 5, 6]], [[200, 0.7, 60]] * 2)


def test_predictions_are_kept_on_request_in_single_precision_for_the_first_scan():
    assert "predictions" not in run_answers(REFERENCE, MEASURED)
    index = held_out().index.copy()
    index[2:, 0] = 1
    content = run_answers(REFERENCE, MEASURED, held_out(index=index), keep=True)
    predictions = content["predictions"]
    np.testing.assert_array_equal(predictions["maps/p"], REFERENCE[:2])
    assert predictions["signals/p"].dtype == np.float32
    assert len(predictions["signals/p"]) == 2


@pytest.mark.parametrize(("test", "who"), [(("p",), "p"), (("p", "o"), "the 2 patients")])
def test_a_failure_names_estimator_patient_and_training(test, who):
    cell = make_cell(Answer("fail"), test=test)
    message = f"'x s2s' failed for {who} of cohort 'A', trained on 2 patients .same.: out of luck"
    with pytest.raises(RuntimeError, match=message):
        run_trial(cell, TRAINING[:, :2], TRAINING, ROWS, 0, [held_out()], [CONSTANTS])
