"""Strategies that predict the advanced protocol from the clinical one."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from dmrifit.engine.fitting import FitStatus, fit_voxels
from dmrifit.engine.map_fitter import ClinicalMetrics
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.predict import strategies as prediction
from dmrifit.predict.algorithms import PATCHWISE, VOXELWISE
from dmrifit.predict.strategies import MapsToMaps, SignalToSignal
from dmrifit.stats.metrics import pearson

TARGET = Protocol.preset("cohort1")
CLINICAL = TARGET.clinical()
SOURCE = TARGET.take(CLINICAL)
MODEL = MODELS["t2-ivim-kurtosis"]
PROTOCOLS = {"source": SOURCE, "target": TARGET}
STRATEGIES = [SignalToSignal, MapsToMaps]


@parametrize_with_checks([
    SignalToSignal(), MapsToMaps(),
    SignalToSignal("RFR", random_state=0), SignalToSignal(Ridge()), MapsToMaps(make_pipeline(Ridge())),
])  # fmt: skip
def test_strategies_keep_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


# No check is left out, but the one of array API, which scikit-learn skips itself unless it is switched on.
@pytest.mark.slow
@parametrize_with_checks([strategy(name, random_state=0) for strategy in STRATEGIES for name in VOXELWISE])
def test_every_algorithm_keeps_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.deep
@parametrize_with_checks([strategy(name, random_state=0) for strategy in STRATEGIES for name in PATCHWISE])
def test_networks_keep_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_maps_of_signals_to_signals_are_the_fit_to_the_prediction(noisy):
    estimator = SignalToSignal("LR", **PROTOCOLS).fit(noisy[:300, CLINICAL], noisy[:300])
    X = noisy[300:, CLINICAL]
    expected = fit_voxels(estimator.predict(X), TARGET, MODEL).parameters
    np.testing.assert_array_equal(estimator.predict_maps(X), expected)
    assert np.isfinite(expected).all()
    floor = fit_voxels(estimator.predict(X), TARGET, MODEL, sigma=2.0).parameters
    np.testing.assert_array_equal(estimator.predict_maps(X, sigma=2.0), floor)


def test_maps_to_maps_recovers_what_clinical_metrics_determine(truth, clean):
    train, test = slice(0, 300), slice(300, None)
    estimator = MapsToMaps("LR", **PROTOCOLS).fit(clean[train][:, CLINICAL], clean[train])
    maps = estimator.predict_maps(clean[test][:, CLINICAL])
    correlation = dict(zip(MODEL.names, pearson(maps, truth[test]), strict=True))
    assert min(correlation[name] for name in ("f", "Dt", "K", "T2t")) > 0.85
    assert abs(correlation["T2v"]) < 0.5  # nothing in the features tells it
    assert np.median(np.abs(maps[:, 0] / truth[test][:, 0] - 1)) < 0.05


def test_maps_to_maps_learns_scale_free_targets(noisy):
    """A patient whose images are eight times as bright has the same maps but for S0."""
    estimator = MapsToMaps("LR", **PROTOCOLS).fit(noisy[:300, CLINICAL], noisy[:300])
    one = estimator.predict_maps(noisy[300:, CLINICAL])
    np.testing.assert_array_equal(estimator.predict(noisy[300:, CLINICAL]), MODEL.signal(one, TARGET))
    bright = estimator.predict_maps(8 * noisy[300:, CLINICAL])
    np.testing.assert_allclose(bright[:, 0], 8 * one[:, 0], rtol=1e-9)
    np.testing.assert_allclose(bright[:, 1:], one[:, 1:], rtol=1e-9)
    retrained = MapsToMaps("LR", **PROTOCOLS).fit(8 * noisy[:300, CLINICAL], 8 * noisy[:300])
    np.testing.assert_allclose(retrained.predict_maps(noisy[300:, CLINICAL]), one, rtol=1e-6)


def test_predicted_maps_stay_inside_the_bounds_of_the_model(noisy):
    wild = np.random.default_rng(3).uniform(1, 100, (200, 5))
    estimator = MapsToMaps("LR", **PROTOCOLS).fit(noisy[:300, CLINICAL], noisy[:300])
    maps = estimator.predict_maps(wild)
    low, high = np.array(MODEL.bounds).T
    fitted = np.isfinite(maps).all(axis=1)
    assert fitted.sum() > 100
    assert np.all(maps[fitted, 1:] >= low[1:])
    assert np.all(maps[fitted, 1:] <= high[1:])
    assert np.all(maps[fitted, 0] >= 0.8 * wild.max(axis=1)[fitted] * (1 - 1e-12))
    assert np.any(maps[fitted, 1:] == low[1:])
    # A line that leaves all numbers ends at the bounds, too.
    estimator = MapsToMaps("LR", **PROTOCOLS, target_scale="log").fit(noisy[:300, CLINICAL], noisy[:300])
    maps = estimator.predict_maps(np.array([[1e-9, 1, 1e3, 1, 1e-9], [1, 1, 5, 1, 1], [100, 1, 1, 0.9, 0.1]]))
    assert np.all((maps[:, 1:] >= low[1:]) & (maps[:, 1:] <= high[1:]))


def test_reference_maps_that_are_known_save_the_fit_and_those_that_could_not_be_fitted_are_not_learned(noisy):
    X, Y = noisy[:300, CLINICAL], noisy[:300]
    known = fit_voxels(Y, TARGET, MODEL).parameters
    one = MapsToMaps("LR", **PROTOCOLS).fit(X, Y).predict_maps(noisy[300:, CLINICAL])
    other = MapsToMaps("LR", **PROTOCOLS).fit(X, Y, reference_maps=known).predict_maps(noisy[300:, CLINICAL])
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"\(300, 7\).*S0, f, Dv.*not \(300, 6\)"):
        MapsToMaps("LR", **PROTOCOLS).fit(X, Y, reference_maps=known[:, 1:])
    with pytest.raises(ValueError, match="source= and target="):
        MapsToMaps("LR").fit(X, Y, reference_maps=known)
    Y = noisy[:300].copy()
    Y[:7] = 0.0
    Y[7:9] = 5.0
    assert MapsToMaps("LR", **PROTOCOLS).fit(noisy[:300, CLINICAL], Y).n_dropped_ == 9
    assert SignalToSignal("LR", **PROTOCOLS).fit(noisy[:300, CLINICAL], Y).n_dropped_ == 0


def test_negative_predictions_are_shown_and_fitted_as_zero(noisy):
    X, Y = noisy[:300, CLINICAL], noisy[:300].copy()
    Y[:, 20] -= 1000.0
    estimator = SignalToSignal("LR", **PROTOCOLS).fit(X, Y)
    prediction = estimator.predict(noisy[300:, CLINICAL])
    assert np.all(prediction[:, 20] < 0)
    # A measured zero might lie outside its volume; the least number is data that fits as a zero.
    expected = fit_voxels(np.maximum(prediction, 1e-300), TARGET, MODEL, method="nlls").parameters
    np.testing.assert_array_equal(estimator.predict_maps(noisy[300:, CLINICAL]), expected)
    assert np.isfinite(expected).all()


def test_voxel_normalization_makes_the_prediction_follow_the_gain_of_each_voxel(noisy):
    gain = np.random.default_rng(4).uniform(0.5, 2.0, (100, 1))
    X = noisy[300:, CLINICAL]
    relative = SignalToSignal("RFR", **PROTOCOLS, normalize="voxel", random_state=0)
    relative.fit(noisy[:300, CLINICAL], noisy[:300])
    np.testing.assert_allclose(relative.predict(gain * X), gain * relative.predict(X), rtol=1e-9)
    absolute = SignalToSignal("RFR", **PROTOCOLS, random_state=0).fit(noisy[:300, CLINICAL], noisy[:300])
    assert np.abs(absolute.predict(gain * X) / (gain * absolute.predict(X)) - 1).max() > 0.1
    # Voxels without a signal to divide by are left out.
    dark = noisy[:300, CLINICAL].copy()
    dark[:3, 0] = 0.0
    estimator = SignalToSignal("LR", **PROTOCOLS, normalize="voxel").fit(dark, noisy[:300])
    assert estimator.n_dropped_ == 3
    assert np.isnan(estimator.predict(dark[:4])).all(axis=1).tolist() == [True, True, True, False]


def test_columns_may_stand_in_any_order(strategy, noisy):
    order = np.random.default_rng(5).permutation(5)
    back = np.random.default_rng(6).permutation(21)
    plain = strategy("LR", **PROTOCOLS).fit(noisy[:300, CLINICAL], noisy[:300])
    mixed = strategy("LR", source=SOURCE.take(order), target=TARGET.take(back))
    mixed.fit(noisy[:300, CLINICAL[order]], noisy[:300, back])
    X = noisy[300:, CLINICAL]
    np.testing.assert_allclose(mixed.predict(X[:, order]), plain.predict(X)[:, back], rtol=1e-4)


def test_other_models_and_protocols_without_echo_times_will_do_and_only_maps_ask_for_a_model():
    target = Protocol([0, 50, 100, 400, 900, 1400])
    parameters = np.random.default_rng(7).uniform([80, 0.05, 10, 0.6], [120, 0.2, 40, 1.6], (120, 4))
    Y = MODELS["ivim"].signal(parameters, target)
    for strategy in STRATEGIES:
        estimator = strategy("LR", source=target.take(range(5)), target=target, model="ivim").fit(Y[:, :5], Y)
        assert pearson(estimator.predict_maps(Y[:, :5]), parameters)[3] > 0.9
    # Two shells predict a third; only maps ask for a model.
    target = Protocol([0, 700, 2000])
    Y = np.random.default_rng(8).uniform(10, 20, (60, 3))
    estimator = SignalToSignal("LR", source=target.take([0, 1]), target=target).fit(Y[:, :2], Y)
    assert estimator.predict(Y[:4, :2]).shape == (4, 3)
    with pytest.raises(ValueError, match=r"t2-ivim-kurtosis needs echo times.*target protocol has none"):
        estimator.predict_maps(Y[:4, :2])
    with pytest.raises(ValueError, match="maps need a model"):
        estimator.set_params(model=None).predict_maps(Y[:4, :2])


PATCH = 3, 1, 1


@pytest.fixture(scope="module")
def patches(noisy):
    """Rows of three neighbors; the voxel itself is the middle one."""
    X = noisy[:, CLINICAL]
    return np.concatenate([np.roll(X, 1, axis=0), X, np.roll(X, -1, axis=0)], axis=1)


def test_what_the_neighbors_say_is_learned(strategy, noisy, patches):
    """The target is the mean of the neighborhood, which the voxel alone does not tell."""
    Y = (np.roll(noisy, 1, axis=0) + noisy + np.roll(noisy, -1, axis=0)) / 3
    alone = strategy("LR", **PROTOCOLS).fit(noisy[:300, CLINICAL], Y[:300])
    near = strategy("LR", **PROTOCOLS, patch_shape=PATCH).fit(patches[:300], Y[:300])
    assert (near.patch_shape_, near.n_features_in_) == (PATCH, 15)
    reference = fit_voxels(Y[300:], TARGET, MODEL).parameters
    dt = [pearson(maps, reference)[4] for maps in (
        near.predict_maps(patches[300:]), alone.predict_maps(noisy[300:, CLINICAL]))]  # fmt: skip
    assert dt[0] > 0.8
    assert dt[1] < dt[0] - 0.15


class RecordingRidge(Ridge):
    """Keeps what it was shown."""

    def fit(self, X, y, sample_weight=None):
        self.seen_ = X
        return super().fit(X, y, sample_weight)


def test_the_scale_of_a_patch_is_that_of_its_own_voxel(noisy, patches):
    estimator = MapsToMaps("LR", **PROTOCOLS, patch_shape=PATCH).fit(patches[:300], noisy[:300])
    bright = patches[300:] * np.repeat([8, 1, 8], 5)
    np.testing.assert_allclose(estimator.predict_maps(bright), estimator.predict_maps(patches[300:]), rtol=1e-6)
    own = patches[:, 5:6]
    given = SignalToSignal("LR", **PROTOCOLS, normalize="voxel", patch_shape=PATCH).fit(patches, noisy)
    plain = SignalToSignal("LR", **PROTOCOLS, patch_shape=PATCH).fit(patches / own, noisy / own)
    np.testing.assert_allclose(given.predict(patches), plain.predict(patches / own) * own, rtol=1e-10)


def test_maps_to_maps_computes_the_metrics_of_every_neighbor(noisy, patches):
    """Neighbors without usable metrics have those of the voxel itself."""
    broken = patches[:300].copy()
    broken[:, :5] = np.nan
    estimator = MapsToMaps(RecordingRidge(), **PROTOCOLS, patch_shape=PATCH).fit(broken, noisy[:300])
    own = ClinicalMetrics(SOURCE).fit_transform(noisy[:301, CLINICAL])[:, 2:]
    expected = np.concatenate([own[:300], own[:300], own[1:301]], axis=1)
    np.testing.assert_array_equal(estimator.regressor_.regressor_.seen_, expected)
    assert estimator.n_dropped_ == 0
    assert np.isfinite(estimator.predict_maps(broken[:5])).all()
    broken[:, 5:10] = np.nan
    with pytest.raises(ValueError, match="none of 300 training voxels"):
        estimator.fit(broken, noisy[:300])


@pytest.mark.deep
def test_the_patchwise_algorithm_looks_at_nine_neighbors_unless_told(strategy, noisy):
    X = np.tile(noisy[:, CLINICAL], 9)
    estimator = strategy("CNN", **PROTOCOLS, random_state=0).fit(X[:300], noisy[:300])
    assert estimator.patch_shape_ == (3, 3, 1)
    assert pearson(estimator.predict(X[300:]), noisy[300:]).mean() > 0.5
    again = strategy("CNN", **PROTOCOLS, random_state=0).fit(X[:300], noisy[:300])
    np.testing.assert_array_equal(again.predict(X[300:]), estimator.predict(X[300:]))
    with pytest.raises(ValueError, match="45 columns of 9 neighbors"):
        strategy("CNN", **PROTOCOLS).fit(X[:, :5], noisy)


@pytest.fixture(scope="module")
def skewed():
    """Reference maps whose Dv is log-normal given the clinical metrics, and whose K is 0 in part."""
    rng = np.random.default_rng(11)
    maps = np.tile([250.0, 0.2, 15.0, 200.0, 1.0, 0.8, 60.0], (400, 1))
    maps[:, 2] = np.clip(15 * np.exp(0.8 * rng.standard_normal(400)), 4, 100)
    maps[:, 5] = np.where(rng.random(400) < 0.3, 0.0, 0.8)
    return maps


@pytest.mark.parametrize("name", ["LR", "ETR"])
def test_the_median_is_learned_on_request(name, clean, skewed):
    X = clean[:, CLINICAL]
    medians = MapsToMaps(name, **PROTOCOLS, loss="median", random_state=0).fit(X, clean, reference_maps=skewed)
    means = MapsToMaps(name, **PROTOCOLS, random_state=0).fit(X, clean, reference_maps=skewed)
    share_below = [(skewed[:, 2] < estimator.predict_maps(X)[:, 2]).mean() for estimator in (medians, means)]
    assert abs(share_below[0] - 0.5) < 0.06
    assert share_below[1] > 0.58


def test_logarithms_give_the_geometric_mean_and_have_a_floor(clean, skewed):
    X = clean[:, CLINICAL]
    flat = MapsToMaps(DummyRegressor(), **PROTOCOLS, target_scale="log").fit(X, clean, reference_maps=skewed)
    maps = flat.predict_maps(X)
    np.testing.assert_allclose(maps[:, 2], np.exp(np.log(skewed[:, 2]).mean()), rtol=1e-9)
    np.testing.assert_allclose(maps[:, 5], np.exp(np.log(np.maximum(skewed[:, 5], 0.05)).mean()), rtol=1e-9)
    clinical_s0 = ClinicalMetrics(SOURCE).fit_transform(X)[:, 0]
    ratio = np.exp(np.log(250.0 / clinical_s0).mean())
    largest = X.max(axis=1)
    np.testing.assert_allclose(maps[:, 0], np.maximum(ratio * clinical_s0, 0.8 * largest), rtol=1e-9)


def test_maps_are_not_learned_from_fits_that_did_not_converge(noisy, monkeypatch):
    lost = np.zeros(len(noisy), bool)
    lost[[3, 50, 211]] = True

    def some_lost(signals, protocol, model, **options):
        result = fit_voxels(signals, protocol, model, **options)
        if model == "adc" or len(protocol) != len(TARGET):
            return result
        return replace(result, status=np.where(lost, FitStatus.NOT_CONVERGED, result.status))

    expected = MapsToMaps(**PROTOCOLS).fit(noisy[~lost][:, CLINICAL], noisy[~lost])
    monkeypatch.setattr(prediction, "fit_voxels", some_lost)
    found = MapsToMaps(**PROTOCOLS).fit(noisy[:, CLINICAL], noisy)
    assert found.n_dropped_ == expected.n_dropped_ + 3
    X = noisy[:20, CLINICAL]
    np.testing.assert_allclose(found.predict_maps(X), expected.predict_maps(X), rtol=1e-9)


def test_the_number_of_jobs_does_not_change_the_bits(noisy):
    predictions = {
        SignalToSignal(RandomForestRegressor(20, n_jobs=jobs), **PROTOCOLS, random_state=0)
        .fit(noisy[:300, CLINICAL], noisy[:300]).predict(noisy[300:, CLINICAL]).tobytes()
        for jobs in (1, 2)
    }  # fmt: skip
    assert len(predictions) == 1
