"""Tables of regions: read in any order, refused by row, used like patients with images."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_score

from dmrifit import Cohort, Protocol, SignalToSignal
from dmrifit.cohort.participants_table import read_regions

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


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (7, "signal", "n/a", "row 9: no signal"),
        (7, "signal", "-3", r"row 9 \(patient a, region r1\): signal must be a finite number"),
        (7, "b", "6O", r"row 9 .*b must be .*'6O'"),
        (7, "b", 61, r"row 9: b = 61 s/mm², TE = 45 ms is in 1 of 12 regions"),
        (7, "te", 0.045, r"row 9: b = 60 s/mm², TE = 0\.045 ms is in 1 of 12 regions"),
        (7, "b", 10, "rows 8 and 9: two signals of patient a, region r1 at b = 10"),
        (slice(20, 40), "patient", "A", "rows 2 and 22: patients 'a' and 'A' differ only in case"),
        (slice(None), "te", rf"{0.045}", "rows 2 and 12: two signals"),
    ],
)
def test_a_spoiled_row_of_regions_is_refused_by_number(rows, tmp_path, row, column, value, message):
    spoiled = rows.astype({"b": object, "te": object, "signal": object})
    spoiled.loc[spoiled.index[row], column] = value
    with pytest.raises(ValueError, match=rf"organs\.csv, {message}"):
        read_regions(written(spoiled, tmp_path))


def with_curve(place, source):
    """Give rows in which the signals of a region are replaced."""

    def change(rows):
        values = rows["signal"].to_numpy()
        return rows.assign(signal=np.r_[values[:place], values[source], values[place + 20 :]])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(index=22), r"row 22 \(patient a, region r2\): no row at b = 0\.3 s/mm², TE = 45"),
        (lambda rows: rows.assign(b=rows["b"] / 1000), r"row 11: .*look like ms/µm²"),
        (lambda rows: rows.assign(te=rows["te"] / 1000), r"row \d+: .*look like seconds"),
        (with_curve(20, slice(39, 19, -1)), r"row 22 \(patient a, region r2\): in .*% of the pairs"),
        (with_curve(100, slice(20, 40)), "rows 22 and 102: patients a and b have the same signals"),
    ],
)
def test_missing_rows_units_and_order_are_refused_by_row(rows, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_regions(written(change(rows), tmp_path))
