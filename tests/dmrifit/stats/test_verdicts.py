"""Verdicts from t intervals: rates over simulated seeds, margins, reasons."""

import math

import numpy as np
import pytest
from scipy import stats

from dmrifit.stats.claim_board import Check, Claim, Reading, Run, build_board, check_claims
from dmrifit.stats.verdicts import (
    EQUAL,
    FAILS,
    HOLDS,
    NOT_SIMULATED,
    OPEN,
    Margin,
    combine_checks,
    decide,
    decide_reading,
    read_margins,
    t_interval,
)

TENTH = Margin("tenth", 0.1, "absolute", "ours", "for tests")


def simulated(shift, n_boards=1000, n_seeds=10, seed=0):
    """Draw differences of seeds with standard deviation 1, (n_boards, n_seeds)."""
    return shift + np.random.default_rng(seed).standard_normal((n_boards, n_seeds))


def rate(differences, verdict, bound=0.0, relation="<"):
    return np.mean([decide(row, bound, relation) == verdict for row in differences])


def test_the_interval_is_that_of_scipy():
    values = simulated(1.0, 1)[0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(t_interval(values, 0.9), expected)


def test_without_a_difference_false_verdicts_are_as_rare_as_the_level_says():
    null = simulated(0.0)
    false = rate(null, HOLDS) + rate(null, FAILS)
    low, high = stats.binomtest(round(false * len(null)), len(null)).proportion_ci(0.99)
    assert low < 0.05 < high
    # A margin makes them rarer.
    assert rate(null, HOLDS, 0.5) + rate(null, FAILS, 0.5) < 0.01


def test_a_planted_difference_is_found():
    assert rate(simulated(-1.5, 500), HOLDS, 0.1) > 0.9
    assert rate(simulated(1.5, 500), FAILS, 0.1) > 0.9
    assert rate(simulated(1.5, 500), HOLDS, 0.1, ">") > 0.9


def test_a_difference_at_the_margin_is_no_more_often_called_equal_than_the_level_says():
    at_margin = simulated(1.0)
    for relation, verdict in (("=", HOLDS), ("<", EQUAL)):
        assert rate(at_margin, verdict, 1.0, relation) < 0.065
        assert rate(simulated(0.0, 500), verdict, 2.0, relation) > 0.95


def test_equivalence_is_that_of_two_one_sided_tests():
    for row in simulated(0.3, 200):
        p = max(
            stats.ttest_1samp(row, -1.0, alternative="greater").pvalue,
            stats.ttest_1samp(row, 1.0, alternative="less").pvalue,
        )
        assert (decide(row, 1.0, "=") == HOLDS) == (p < 0.05)


@pytest.mark.parametrize(
    ("mean", "relation", "verdict"),
    [
        (-0.3, "<", HOLDS),
        (0.0, "<", EQUAL),
        (0.3, "<", FAILS),
        (0.1, "<", OPEN),
        (0.3, ">", HOLDS),
        (-0.3, ">", FAILS),
        (0.0, "<=", HOLDS),
        (-0.3, "<=", HOLDS),
        (0.3, "<=", FAILS),
        (0.1, "<=", OPEN),
        (-0.3, ">=", FAILS),
        (0.0, "=", HOLDS),
        (0.3, "=", FAILS),
        (-0.3, "=", FAILS),
        (-0.1, "=", OPEN),
    ],
)
def test_the_whole_interval_decides(mean, relation, verdict):
    around = np.linspace(-0.02, 0.02, 10)
    assert decide(mean + around, 0.1, relation) == verdict


def test_few_seeds_and_missing_numbers_decide_nothing():
    assert decide(np.full(9, -5.0), 0.1, "<") == OPEN
    assert decide([-5.0] * 9 + [math.nan], 0.1, "<") == OPEN


def test_what_one_of_many_checks_shows_by_chance_is_corrected():
    null = simulated(0.0, 2000).reshape(100, 20, 10)
    boards = [[decide(row, 0.0, "=", n_checks=20) for row in checks] for checks in null]
    failing = np.mean([FAILS in board for board in boards])
    assert failing < 0.12
    uncorrected = [[decide(row, 0.0, "=") for row in checks] for checks in null]
    assert np.mean([FAILS in board for board in uncorrected]) > 0.4


def test_all_checks_must_hold_and_one_is_enough_against():
    assert combine_checks([HOLDS, HOLDS]) == HOLDS
    assert combine_checks([HOLDS, EQUAL]) == EQUAL
    assert combine_checks([HOLDS, OPEN, EQUAL]) == OPEN
    assert combine_checks([HOLDS, OPEN, FAILS]) == FAILS
    assert combine_checks([]) == OPEN


def test_relative_margins_compare_ratios():
    margin = Margin("tenth", 0.1, "relative", "ours", "for tests")
    np.testing.assert_allclose(margin.differences([1.1, 2.2], [1.0, 2.0]), margin.bound)
    assert np.isnan(margin.differences([-1.0], [1.0])).all()
    assert margin.text([margin.bound]) == "+10.0 %"
    assert margin.scaled(2).words == "±20 %"


def board_of(values, quantity="a", not_simulated="", **check):
    def checks(value):
        return [Check(quantity, value, "<", 1.0, "here", "the limit", margin="tenth", **check)]

    claim = Claim(1, "a is small", "< 1", "a < 1", (Reading("plain", checks),), (), not_simulated)
    runs = [Run("easy", str(i), value) for i, value in enumerate(values)]
    return build_board([claim], runs, margins={"tenth": TENTH}).iloc[0]


def test_a_board_with_margins_says_numbers_interval_and_margin():
    row = board_of(np.linspace(0.48, 0.52, 10))
    assert row["verdict"] == HOLDS
    assert row["reason"] == (
        "easy: holds in 1 of 1 checks: here a 0.500 against 1.00 (the limit): -0.510 … -0.490, margin ±0.1"
    )
    assert board_of([0.99, 1.01] * 5)["verdict"] == EQUAL
    few = board_of([0.5] * 3)
    assert (few["verdict"], few["reason"]) == (OPEN, "easy: 3 seeds, 10 are needed")


def test_what_is_not_simulated_is_not_decided():
    row = board_of([0.5] * 10, not_simulated="scanners")
    assert (row["verdict"], row["reason"]) == (NOT_SIMULATED, "scanners")


def test_margins_are_read(tmp_path):
    path = tmp_path / "margins.toml"
    good = '[margins.dice]\nvalue = 0.1\nscale = "absolute"\nwhose = "paper"\nsentence = "As printed."\n'
    path.write_text(good + '[claims.3]\nprimary = "DI"\n')
    margins, claims = read_margins(path)
    assert margins == {"dice": Margin("dice", 0.1, "absolute", "paper", "As printed.")}
    assert claims == {3: {"primary": "DI"}}


def test_a_check_that_some_seeds_lack_stays_open():
    def checks(evidence):
        found = [Check("a", 0.0, "<", 1.0, margin="tenth")]
        return found + [Check("b", 0.0, "<", 1.0, margin="tenth")] * evidence

    claim = Claim(1, "a and b are small", "", "", (Reading("plain", checks),))
    runs = [Run("", str(i), int(i > 0)) for i in range(10)]
    row = build_board([claim], runs, margins={"tenth": TENTH}).iloc[0]
    assert row["verdict"] == OPEN
    assert row["reason"].startswith("cannot be told in 1 of 2 checks: b 0.000")


@pytest.mark.parametrize("name", ["", "unheard"])
def test_a_check_without_a_margin_is_named_with_its_claim(name):
    claim = Claim(7, "text", "section", "", (Reading("one", lambda evidence: [evidence]),))
    check = Check("mean abs(E)", 1.0, "<", 2.0, where="tumor", margin=name)
    figures = check_claims([claim], [Run("c", str(seed), check) for seed in range(10)])
    message = f"claim 7: check 'tumor mean abs.E.' has the margin '{name}'; give it one of tenth"
    with pytest.raises(ValueError, match=message):
        decide_reading(figures, 10, {"tenth": TENTH})
