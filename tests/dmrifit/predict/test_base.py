"""What strategies share: checks of protocols, unusable voxels, designs, tuning by patients."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.fit_predict import predict_image
from dmrifit.predict.base import resolve_patch_shape
from dmrifit.predict.conformal import ConformalIntervals

TARGET = Protocol.preset("cohort1")
CLINICAL = TARGET.clinical()
SOURCE = TARGET.take(CLINICAL)
PROTOCOLS = {"source": SOURCE, "target": TARGET}
X = np.ones((30, 5))
Y = np.ones((30, 21))


def test_a_new_fit_does_not_keep_what_was_said_of_other_data(strategy, noisy):
    estimator = strategy("LR", **PROTOCOLS).fit(noisy[:, CLINICAL], noisy)
    estimator.synthetic_, estimator.training_ = True, {"cohorts": ["A"]}
    assert estimator.fit(noisy[:, CLINICAL], noisy).synthetic_ is False
    assert estimator.training_ is None


def test_the_neighborhood_of_an_estimator_is_known_before_it_is_fitted(strategy):
    assert resolve_patch_shape(strategy("LR")) is None
    assert resolve_patch_shape(strategy("LR", patch_shape=(3, 3, 3))) == (3, 3, 3)
    assert resolve_patch_shape(strategy("CNN")) == (3, 3, 1)
    assert resolve_patch_shape(strategy("CNN", patch_shape=(5, 5, 1))) == (5, 5, 1)
    pipeline = make_pipeline(FunctionTransformer(), strategy("CNN"))
    assert resolve_patch_shape(GridSearchCV(pipeline, {})) == (3, 3, 1)
    assert resolve_patch_shape(Ridge()) is None
    with pytest.raises(ValueError, match="three odd numbers"):
        resolve_patch_shape(strategy(patch_shape=(2, 2, 2)))


def test_predictions_are_data_frames_with_names_on_request_and_plain_columns_have_none(strategy, noisy):
    rows = pd.DataFrame(noisy[:5, CLINICAL], columns=SOURCE.labels, index=list("abcde"))
    plain = strategy("LR", **PROTOCOLS).fit(noisy[:, CLINICAL], noisy)
    assert list(plain.get_feature_names_out()) == list(TARGET.labels)
    assert isinstance(plain.set_output(transform=None).predict(rows.to_numpy()), np.ndarray)
    named = clone(plain.set_output(transform="pandas")).fit(rows_of(noisy), noisy)
    signals, maps = named.predict(rows), named.predict_maps(rows)
    assert list(signals.columns) == list(TARGET.labels)
    assert list(maps.columns) == list(MODELS["t2-ivim-kurtosis"].names)
    assert list(signals.index) == list(maps.index) == list("abcde")
    plain.set_output(transform="default")
    np.testing.assert_array_equal(signals, plain.predict(rows.to_numpy()))
    np.testing.assert_array_equal(maps, plain.predict_maps(rows.to_numpy()))
    with pytest.raises(ValueError, match="columns have no names without protocols"):
        strategy("LR").fit(X, Y).get_feature_names_out()
    with pytest.raises(ValueError, match="None, default, pandas, not 'polars'"):
        strategy("LR").set_output(transform="polars")


def test_named_predictions_are_what_images_intervals_and_searches_expect(strategy, noisy):
    """Whoever asks for data frames still gets the images, intervals and scores of arrays."""
    plain = strategy("LR", **PROTOCOLS).fit(noisy[:, CLINICAL], noisy)
    named = clone(plain).set_output(transform="pandas").fit(noisy[:, CLINICAL], noisy)
    image = nib.Nifti1Image(noisy[:60, CLINICAL].reshape(5, 4, 3, 5), np.eye(4))
    np.testing.assert_array_equal(*(predict_image(one, image)["Dt"].get_fdata() for one in (plain, named)))
    patients = np.arange(len(noisy)) % 8
    intervals = [
        ConformalIntervals(clone(estimator), random_state=0)
        .fit(noisy[:, CLINICAL], noisy, patients)
        .predict_interval(noisy[:9, CLINICAL])
        for estimator in (plain, named)
    ]
    np.testing.assert_array_equal(*intervals)
    options = {"groups": patients, "cv": GroupKFold(4)}
    np.testing.assert_array_equal(*(cross_val_score(one, noisy[:, CLINICAL], noisy, **options) for one in (plain, named)))


def rows_of(signals):
    return pd.DataFrame(signals[:, CLINICAL], columns=SOURCE.labels)


def test_unusable_training_voxels_are_dropped_and_counted_and_gaps_predicted_as_nan(strategy, noisy):
    source, target = noisy[:300, CLINICAL].copy(), noisy[:300].copy()
    clean = strategy("LR", **PROTOCOLS).fit(source[10:], target[10:])
    source[:5], target[5:10] = np.nan, np.nan
    estimator = strategy("LR", **PROTOCOLS).fit(source, target)
    assert (clean.n_dropped_, estimator.n_dropped_) == (0, 10)
    tested = noisy[300:, CLINICAL]
    np.testing.assert_array_equal(estimator.predict(tested), clean.predict(tested))
    estimator = strategy("LR", **PROTOCOLS).fit(noisy[:300, CLINICAL], noisy[:300])
    source = noisy[300:320, CLINICAL].copy()
    whole = estimator.predict(source)
    source[3] = np.nan
    broken = estimator.predict(source)
    assert np.isnan(broken[3]).all()
    complete = np.arange(20) != 3
    np.testing.assert_allclose(broken[complete], whole[complete], rtol=1e-12)
    assert np.isnan(estimator.predict_maps(source)[3]).all()
    assert np.isnan(estimator.predict(np.full((2, 5), np.nan))).all()


def test_a_regressor_is_tuned_inside_by_leaving_patients_out(strategy, noisy):
    target, groups = noisy[:240], np.repeat(list("abcd"), 60)
    source = target[:, CLINICAL]
    sizes = []

    class Watched(Ridge):
        def fit(self, X, y):
            sizes.append(len(X))
            return super().fit(X, y)

    search = GridSearchCV(Watched(), {"alpha": [1e-3, 1.0]}, cv=LeaveOneGroupOut())
    estimator = strategy(search, **PROTOCOLS).fit(source, target, groups=groups)
    assert estimator.predict(source[:3]).shape == (3, 21)
    assert sizes[:8] == [180] * 8  # each patient left out, for two candidates
    with pytest.raises(ValueError, match=r"tuned by leaving patients out: fit needs groups=patients"):
        strategy(search, **PROTOCOLS).fit(source, target)
    voxelwise = GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=5)
    message = r"cv=5, which puts voxels of one patient on both sides.*GroupKFold"
    with pytest.raises(ValueError, match=message):
        strategy(voxelwise, **PROTOCOLS).fit(source, target, groups=groups)
    by_patient = GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=GroupKFold(2))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        strategy(by_patient, **PROTOCOLS).fit(source, target, groups=groups[:-1])
