"""Orders of contrasts by prediction: the errors are those of a regression written plainly."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from dmrifit import Cohort, Protocol, Scan, rank_contrasts_by_prediction, simulate_cohort

COHORT1 = Protocol.preset("cohort1")


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("cohort1", 4, shape=(24, 24, 4), random_state=21)


def test_prediction_errors_are_those_of_a_regression_from_the_chosen_contrasts(cohort):
    table = rank_contrasts_by_prediction(cohort, n=2, max_voxels=100, random_state=0)
    train = cohort.arrays(COHORT1, mask="body", max_voxels=100, random_state=0)
    test = cohort.arrays(COHORT1)
    taken = COHORT1.clinical().tolist()

    def errors(chosen):
        folds = []
        for patient in cohort.patients:
            others, mine = train.groups != patient, test.groups == patient
            model = LinearRegression().fit(train.Y[others][:, chosen], train.Y[others])
            folds.append(np.abs(model.predict(test.Y[mine][:, chosen]) / test.Y[mine] - 1).mean(axis=0))
        return np.array(folds)

    before = errors(taken)
    left = [i for i in range(21) if i not in taken]
    assert table["error"].iloc[0] == pytest.approx(before[:, left].mean(), rel=1e-6)
    gains = {}
    for one in left:
        others = [i for i in left if i != one]
        gains[one] = (before - errors([*taken, one]))[:, others].mean()
    best = max(gains, key=gains.get)
    assert table["index"].iloc[1] == best
    assert table["gain"].iloc[1] == pytest.approx(gains[best], rel=1e-5)


def test_a_contrast_that_holds_the_others_is_taken_first():
    rng = np.random.default_rng(0)
    protocol = Protocol([0, 100, 200, 300, 400], te=80)
    base, key = rng.uniform(50, 100, (2, 4, 6, 6, 2))
    signal = np.stack([base, base + key, key, 2 * key, 3 * key + base], axis=-1) * [2, 1, 1, 0.4, 0.2]
    scans = simulate_cohort("cohort1", 4, shape=(12, 12, 2), random_state=0).scans
    mask = np.ones((6, 6, 2))
    options = {"protocol": protocol, "mask": mask, "affine": np.eye(4), "lesion": mask}
    cohort = Cohort([Scan(scan.patient, one, **options) for scan, one in zip(scans, signal, strict=True)])
    table = rank_contrasts_by_prediction(cohort, start=[0])
    assert table["error"].iloc[1] < 1e-6 < table["error"].iloc[0]
    assert table["helped"].iloc[1] == 1
    assert np.isnan(table["error"].iloc[-1])
    assert len(table) == 5


def with_one_voxel_of_tumor(scan, value):
    """Leave a tumor of one voxel, with one signal that no relative error can be made of."""
    lesion, signal = np.zeros(scan.shape, bool), scan.signal.copy()
    voxel = tuple(np.argwhere(scan.lesion)[0])
    lesion[voxel], signal[(*voxel, 20)] = True, value
    return type(scan)(scan.patient, signal, scan.protocol, scan.mask, scan.affine, lesion=lesion)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_patient_without_a_usable_voxel_is_named_and_left_out_of_the_errors(cohort, value):
    first, *others = cohort.scans
    spoiled = with_one_voxel_of_tumor(first, value)
    with pytest.warns(UserWarning, match="cohort1p01 left out of the errors"):
        table = rank_contrasts_by_prediction(Cohort([spoiled, *others], "c"), n=2, random_state=0)
    without = type(first)(first.patient, spoiled.signal, first.protocol, first.mask, first.affine)
    expected = rank_contrasts_by_prediction(Cohort([without, *others], "c"), n=2, random_state=0)
    pd.testing.assert_frame_equal(table, expected)
    assert np.isfinite(table["error"]).all()
    with pytest.raises(ValueError, match="needs two"):
        rank_contrasts_by_prediction(Cohort([first], "one"))
    with pytest.raises(ValueError, match=r"needs two .* finite and positive; cohort 'c' has 1"):
        rank_contrasts_by_prediction(Cohort([spoiled, others[0]], "c"), n=2, random_state=0)
