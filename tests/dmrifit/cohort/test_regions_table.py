"""Tables of regions: read in any order, refused by row, used like patients with images."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_score

from dmrifit import Cohort, Protocol, SignalToSignal

LOW = [0, 0.2, 0.3, 1, 1.2, 2, 10, 60, 200, 800]
FULL = Protocol(np.tile(LOW, 2), np.repeat([45, 60], 10))
SOURCE = Protocol([10, 60, 200, 800], 45)
TARGET = FULL.take(range(10))


@pytest.fixture(scope="module")
def rows():
    """Four synthetic patients with three regions each: bi-exponential curves, with noise."""
    rng = np.random.default_rng(4)
    table = []
    for patient in "abcd":
        for region in ("r1", "r2", "r3"):
            f, d, t2 = rng.uniform([0.05, 1.2, 60], [0.4, 2.4, 120])
            for te, b in zip(FULL.te, FULL.b, strict=True):
                decay = f * np.exp(-b * 0.03) + (1 - f) * np.exp(-b * d / 1000)
                signal = 500 * np.exp(-te / t2) * decay * rng.normal(1, 0.01)
                table.append((patient, region, b, te, signal))
    return pd.DataFrame(table, columns=["patient", "region", "b", "te", "signal"])


def written(rows, folder, name="organs.csv"):
    rows.to_csv(folder / name, index=False)
    return folder / name


def curves(rows):
    """Signals by patient and region, by plain pandas."""
    return rows.sort_values(["patient", "region", "te", "b"])["signal"].to_numpy().reshape(12, 20)


def test_regions_are_read_in_any_order_of_rows_and_pass_through_cross_validation(rows, tmp_path):
    cohort = Cohort.read(written(rows.sample(frac=1, random_state=0), tmp_path))["organs"]
    table = cohort.arrays(FULL, FULL, scale=None)
    np.testing.assert_array_equal(table.X, curves(rows))
    assert table.source == FULL
    assert cohort.patients == tuple("abcd")
    assert cohort.regions == dict.fromkeys("abcd", ("r1", "r2", "r3"))
    two = rows.assign(cohort=np.where(rows["patient"] < "c", "one", "two"))
    cohorts = Cohort.read(written(two.drop(columns="te")[two["te"] == 45], tmp_path))
    assert {name: cohort.patients for name, cohort in cohorts.items()} == {"one": ("a", "b"), "two": ("c", "d")}
    assert cohorts["one"].scans[0].protocol == Protocol(LOW)
    patients = np.repeat(list("abcd"), 3)
    cohort = Cohort.from_signals(curves(rows), FULL, patients, name="organs")
    table = cohort.arrays(SOURCE, TARGET, scale=None)
    estimator = SignalToSignal("LR", source=SOURCE, target=TARGET, model="ivim")
    options = {"groups": table.groups, "cv": LeaveOneGroupOut(), "scoring": "neg_mean_absolute_error"}
    errors = -cross_val_score(estimator, table.X, table.Y, **options)
    seen = SOURCE.indices_in(FULL)
    for patient, error in zip("abcd", errors, strict=True):
        held_out = patients == patient
        X, Y = curves(rows)[:, seen], curves(rows)[:, :10]
        predicted = LinearRegression().fit(X[~held_out], Y[~held_out]).predict(X[held_out])
        np.testing.assert_allclose(error, np.abs(predicted - Y[held_out]).mean(), rtol=1e-6)
