"""Agreement of raters and of measurements: published values, hand calculation, another library."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.study.evaluation import ICC_FORMS, bland_altman, icc, rank_correlation

# What versions of pingouin call the forms.
NAMES = {"ICC(1,1)": ("ICC1", "ICC(1,1)"), "ICC(2,1)": ("ICC2", "ICC(A,1)"), "ICC(3,1)": ("ICC3", "ICC(C,1)")}

# Shrout and Fleiss 1979, table 2: six targets, four judges.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]

# Bland and Altman 1986: peak expiratory flow (l/min), first reading by each of two meters.
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI_WRIGHT = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]

@pytest.mark.parametrize(
    ("form", "published", "low", "high", "statistic", "df2"),
    [
        ("ICC(1,1)", 0.17, -0.13, 0.72, 1.795, 18), ("ICC(2,1)", 0.29, 0.02, 0.76, 11.03, 15),
        ("ICC(3,1)", 0.71, 0.34, 0.95, 11.03, 15),
    ],
)
def test_intraclass_correlations_are_those_that_were_published(form, published, low, high, statistic, df2):
    result = icc(SHROUT_FLEISS, form)
    assert result["value"] == pytest.approx(published, abs=0.005)
    assert [result["low"], result["high"]] == pytest.approx([low, high], abs=0.01)
    assert (result["n"], result["reason"]) == (6, "")
    # Mean squares of the paper: between targets 11.24, within 6.26, residual 1.02.
    assert result["statistic"] == pytest.approx(statistic, abs=0.01)
    assert (result["df1"], result["df2"]) == (5, df2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ICC_FORMS)
def test_intraclass_correlations_agree_with_another_library(form, seed):
    pingouin = pytest.importorskip("pingouin")
    generator = np.random.default_rng(seed)
    ratings = generator.normal(10, 2, (9, 1)) + generator.normal(0, 1, (9, 3)) + generator.normal(0, 1, (1, 3))
    long = pd.DataFrame(ratings).rename_axis("target").reset_index().melt("target", var_name="rater")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas's words to pingouin
        reference = pingouin.intraclass_corr(long, "target", "rater", "value")
    row = reference[reference["Type"].isin(NAMES[form])].iloc[0]
    result = icc(ratings, form)
    assert result["value"] == pytest.approx(row["ICC"], abs=1e-9)
    assert result["statistic"] == pytest.approx(row["F"], rel=1e-9)
    assert result["p"] == pytest.approx(row["pval"], rel=1e-6)
    interval = next(row[name] for name in ("CI95", "CI95%") if name in row.index)
    np.testing.assert_allclose([result["low"], result["high"]], interval, atol=0.006)


def test_perfect_agreement_is_one_and_a_constant_offset_counts_for_absolute_agreement_only():
    x = np.array([1.0, 2.0, 4.0, 7.0])
    for form in ICC_FORMS:
        result = icc(np.c_[x, x, x], form)
        assert (result["value"], result["low"], result["high"], result["p"]) == (1.0, 1.0, 1.0, 0.0)
    # Of the 24 orders of four ranks, two agree or disagree perfectly.
    assert rank_correlation(x, -x) == (-1, pytest.approx(2 / 24))
    assert icc(np.c_[x, x + 5], "ICC(3,1)")["value"] == pytest.approx(1.0)
    shifted = icc(np.c_[x, x + 5], "ICC(2,1)")
    # By hand: between 14, raters 50, no residual: 14 / (14 + 2 * 50 / 4).
    assert shifted["value"] == pytest.approx(14 / (14 + 25))
    assert shifted["low"] <= shifted["value"] <= shifted["high"]


@pytest.mark.parametrize("form", ICC_FORMS)
def test_intraclass_correlations_without_a_number_say_why(form):
    assert "1 rater;" in icc([[1.0], [2.0]], form)["reason"]
    assert "1 complete target and" in icc([[1.0, np.nan], [2.0, 3.0]], form)["reason"]
    equal = icc(np.full((5, 2), 0.1), form)
    assert np.isnan(equal["value"])
    assert "equal" in equal["reason"]
    # Two raters who swap two targets: all means are alike, and the denominator of the formula is zero.
    swapped = icc([[1.0, 2.0], [2.0, 1.0]], "ICC(2,1)")
    assert np.isnan(swapped["value"])
    assert "on average" in swapped["reason"]


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=3, max_size=8),
    st.floats(0.5, 2),
    st.floats(-50, 50),
    st.sampled_from(ICC_FORMS),
)
def test_the_unit_and_the_order_of_ratings_do_not_change_their_correlation(ratings, factor, shift, form):
    ratings = np.round(np.array(ratings), 3)
    first, second = icc(ratings, form), icc(factor * ratings[::-1, ::-1] + shift, form)
    assert (first["reason"] == "") == (second["reason"] == "") or np.ptp(ratings) < 1e-6
    if not (first["reason"] or second["reason"]):
        assert first["value"] == pytest.approx(second["value"], abs=1e-6)
        assert first["low"] <= first["value"] + 1e-9
        assert first["value"] <= first["high"] + 1e-9
        assert first["value"] <= 1 + 1e-9


def test_limits_of_agreement_are_those_published_and_by_hand_and_leave_out_nan():
    whole = bland_altman([1.0, 2.0, 4.0], [1.5, 1.0, 2.0])
    assert bland_altman([1.0, np.nan, 2.0, 4.0], [1.5, 7.0, 1.0, 2.0]) == whole
    assert (whole["n"], whole["bias"]) == (3, pytest.approx(2.5 / 3))
    single = bland_altman([3.0], [1.0])
    assert (single["bias"], single["n"]) == (2.0, 1)
    level, turned = (bland_altman([0.1, 0.2, 0.3], other) for other in ([0.3, 0.3, 0.3], [0.2, 0.3, 0.1]))
    assert np.isnan([single["lower"], level["slope_p"]]).all()
    assert ("two are needed" in single["reason"], "no slope" in level["reason"], turned["bias"]) == (True, True, 0)
    result = bland_altman(WRIGHT, MINI_WRIGHT)
    # The paper multiplies by 2 and rounds: −79.7 and 75.5; 1.96 is 0.04 sd inside. It takes the variance of
    # a limit as 3 sd² / n, which is nearly the same.
    inside = np.array([0, 0, 0, 1, 1, 1, -1, -1, -1]) * 0.04 * 38.8
    published = np.array([-2.1, -22.0, 17.8, -79.7, -114.3, -45.1, 75.5, 40.9, 110.1]) + inside
    assert result["sd"] == pytest.approx(38.8, abs=0.05)
    assert np.all(np.abs(ends_of(result) - published) < [0.05, 0.1, 0.1, 0.1, 1.5, 1.5, 0.1, 1.5, 1.5])
    # Differences 1, 2, 3, 6: mean 3, sum of squares 14, so the variance is 14 / 3.
    result = bland_altman([11, 22, 33, 46], [10, 20, 30, 40])
    sd = math.sqrt(14 / 3)
    assert (result["n"], result["sd"]) == (4, pytest.approx(sd))
    # Three degrees of freedom are left of four pairs: t is 3.182446, and 6 = 2 · (4 − 1) divides 1.96².
    width, limit = 3.182446 * sd / 2, 3.182446 * sd * math.sqrt(1 / 4 + 1.96**2 / 6)
    low, high = 3 - 1.96 * sd, 3 + 1.96 * sd
    expected = [3, 3 - width, 3 + width, low, low - limit, low + limit, high, high - limit, high + limit]
    np.testing.assert_allclose(ends_of(result), expected, atol=1e-5)


def ends_of(result):
    """Bias with its interval, then the lower and upper limit with theirs."""
    return [result[name + end] for name in ("bias", "lower", "upper") for end in ("", "_low", "_high")]
