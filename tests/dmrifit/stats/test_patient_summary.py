"""Summaries over patients are those of plain counting; samples of patients are as large as the cohort."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from dmrifit.stats.patient_summary import in_parts, patient_draws, percentile_interval, summarize


def test_draws_of_patients_are_as_many_as_patients_and_undefined_samples_left_out():
    draws = patient_draws(5, 1999, np.random.SeedSequence(0))
    assert draws.shape == (2000, 5)
    assert (draws.sum(axis=1) == 5).all()
    # Each is left out by a sample with the probability (4/5)⁵ = .328, ± 4 standard errors.
    np.testing.assert_allclose((draws == 0).mean(axis=0), 0.8**5, atol=4 * 0.0105)
    assert patient_draws(1, 2000, np.random.SeedSequence(0)).tolist() == [[1]]
    samples = np.append(np.arange(1001.0), [np.nan] * 50)
    np.testing.assert_allclose(percentile_interval(samples, 10**6), (25, 975), rtol=1e-4)
    assert np.isnan([*percentile_interval(np.full(3, np.nan), 9), *percentile_interval(samples, 4)]).all()


@pytest.mark.parametrize("n", [5, 8, 30])
def test_intervals_of_few_patients_hold_the_true_mean_as_often_as_they_say(n):
    scores, draws = np.random.default_rng(n).normal(size=(2000, n)), patient_draws(n, 1000, 4)[1:] / n
    ends = np.array([percentile_interval(draws @ one, n) for one in scores])
    coverage = np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0))
    # Plain percentiles hold .84 of 5 and .89 of 8; three standard errors are .015.
    assert coverage > (0.90 if n == 5 else 0.93)


def scores_table(*rows, columns=("method", "patient", "fold", "dice")):
    return pd.DataFrame(rows, columns=list(columns))


TWO_SCANS = [("a", "p", "f", 0.1), ("a", "p", "f", 0.3), ("a", "p", "g", 0.4)]


def test_scans_are_averaged_within_a_patient_and_fold_first_and_undefined_scores_enter_no_mean():
    table = scores_table(*TWO_SCANS, ("a", "q", "f", 0.6), ("a", "q", "g", 0.8), ("b", "q", "f", 1.0))
    first, second = summarize(table, ["method"], ["dice"], within=["fold"]).to_dict("records")
    assert first["n_patients"] == 2
    assert first["dice"] == pytest.approx((0.3 + 0.7) / 2)
    assert first["dice_sd"] == pytest.approx(0.4 / 2**0.5)
    # Of folds: 0.2 and 0.6, 0.4 and 0.8.
    assert first["dice_sd_folds"] == pytest.approx(0.2 / 2**0.5)
    assert (second["method"], second["n_patients"], second["dice"]) == ("b", 1, 1)
    assert np.isnan([second["dice_sd"], second["dice_sd_folds"]]).all()
    table = scores_table(("a", "p", "f", 0.2), ("a", "q", "f", np.nan), ("a", "r", "f", np.nan))
    (row,) = summarize(table, ["method"], ["dice"], n_bootstrap=20).to_dict("records")
    assert (row["n_patients"], row["dice"]) == (3, 0.2)
    assert np.isnan([row["dice_low"], row["dice_high"]]).all()
    empty = summarize(table.iloc[:0], ["method"], ["dice"])
    assert list(empty.columns) == ["method", "n_patients", "dice"]
    assert not len(empty)


def test_intervals_of_a_mean_are_percentiles_over_resampled_patients_in_any_order():
    rng = np.random.default_rng(3)
    values = rng.normal(size=12)
    rows = [("a", f"p{i:02}", "f", value) for i, value in enumerate(values)]
    (row,) = summarize(scores_table(*rows), ["method"], ["dice"], n_bootstrap=4000).to_dict("records")
    # An independent bootstrap, by indices; its percentiles vary by less than a tenth of the width.
    resampled = values[rng.integers(12, size=(4000, 12))].mean(axis=1)
    width = row["dice_high"] - row["dice_low"]
    ends = row["dice_low"], row["dice_high"]
    # Of 12 patients the tails of 2.5 % shrink to 1.08 % (Hesterberg 2015, by Student's t).
    np.testing.assert_allclose(ends, np.percentile(resampled, (1.08, 98.92)), atol=0.1 * width)
    turned = summarize(scores_table(*rows[::-1]), ["method"], ["dice"], n_bootstrap=4000)
    pd.testing.assert_frame_equal(turned, pd.DataFrame([row]))
    narrow = summarize(scores_table(*rows), ["method"], ["dice"], n_bootstrap=4000, level=0.5)
    assert narrow["dice_high"][0] - narrow["dice_low"][0] < 0.5 * width


def share(counts):
    return {**counts, "recall": counts["n_found"] / counts["n"]}


def test_counts_are_summed_over_patients_and_shares_of_all_have_wilsons_interval():
    columns = ("method", "patient", "n", "n_found")
    rows = [("a", "p", 4, 4), ("a", "p", 2, 2), ("b", "p", 4, 1), ("b", "q", 4, 1), ("c", "q", 5, 2), ("c", "r", 5, 1)]
    rows += [(method, patient, 1, 1) for method in "ab" for patient in "rstu"]
    options = {"n_bootstrap": 100, "trials": {"recall": ["n"]}}
    counted = summarize(scores_table(*rows, columns=columns), ["method"], columns[2:], share, **options)
    counted = counted.set_index("method")
    assert counted[["n", "n_found"]].to_numpy().tolist() == [[10, 10], [12, 6], [10, 3]]
    assert counted["recall"].tolist() == [1, 6 / 12, 3 / 10]
    ends = counted[["recall_low", "recall_high"]].astype(float)
    np.testing.assert_allclose(ends.loc["a"], binomtest(10, 10).proportion_ci(method="wilson"))
    assert 1 / 4 <= ends.loc["b", "recall_low"] < 0.5 < ends.loc["b", "recall_high"] <= 1
    # Samples of two patients say little of others.
    assert ends.loc["c"].isna().all()


def test_rows_belong_to_each_part_that_holds_them():
    table = scores_table(*TWO_SCANS)
    parts = in_parts(table, {"all": slice(None), "g": table["fold"] == "g"})
    assert parts["part"].tolist() == ["all"] * 3 + ["g"]
    assert parts["dice"].tolist() == [0.1, 0.3, 0.4, 0.4]
