"""Boards of claims: verdicts from t intervals over seeds and conditions, margins and reasons."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from benchmarks.claims.claim_board import (
    BOARD_COLUMNS,
    EQUAL,
    FAILS,
    HOLDS,
    OPEN,
    Check,
    Claim,
    Margin,
    MissingEvidence,
    Reading,
    Run,
    build_board,
    combine_checks,
    decide,
    seeds_to_decide,
    t_interval,
)

TENTH = {"tenth": Margin("tenth", 0.1, "absolute", "ours", "for tests")}
SMALL, LARGE, UNCLEAR = np.linspace(0.1, 0.2, 10), np.linspace(1.6, 1.7, 10), [0.1, 1.9] * 5


def below(limit, name="a"):
    """Make a rule: evidence[name] is below a limit."""

    def checks(evidence):
        if name not in evidence:
            msg = f"a measurement of {name}"
            raise MissingEvidence(msg)
        return [Check(name, evidence[name], "<", limit, where="here", margin="tenth")]

    return checks


def claim_of(*readings, **options):
    return Claim(1, "a is small", "< 1", "a < 1", readings or (Reading("plain", below(1)),), **options)


def runs_of(values, condition=""):
    return [Run(condition, str(i), {} if v is None else {"a": v}) for i, v in enumerate(values)]


def row_of(claim, runs, **options):
    board = build_board([claim], runs, margins=TENTH, **options)
    assert tuple(board.columns) == BOARD_COLUMNS
    return board.iloc[0]


@pytest.mark.parametrize(
    ("values", "verdict", "words"),
    [
        (SMALL, HOLDS, "holds in 1 of 1 checks: here a 0.150 against 1.00"),
        (LARGE, FAILS, "does not hold in 1 of 1 checks"),
        (UNCLEAR, OPEN, "cannot be told in 1 of 1 checks"),
        ([*SMALL[1:], None], OPEN, "missing in some seeds: a measurement of a"),
        ([None] * 10, OPEN, "missing: a measurement of a"),
        (SMALL[:1], OPEN, "one seed, 10 are needed"),
    ],
)
def test_a_claim_is_decided_by_the_verdicts_of_its_checks(values, verdict, words):
    row = row_of(claim_of(), runs_of(values))
    assert row["verdict"] == verdict
    assert words in row["reason"]
    assert row["n_runs"] == len(values)


def test_ours_is_mean_and_standard_deviation_over_runs():
    assert row_of(claim_of(), runs_of([0.1, 0.2, 0.3]))["ours"] == "a: here 0.200 ± 0.100"


def test_a_check_that_some_seeds_lack_stays_open_and_conditions_that_disagree_are_named():
    def checks(evidence):
        both = [Check(name, 0.0, "<", 1.0, margin="tenth") for name in "ab"]
        return both if "a" in evidence else both[:1]

    row = row_of(claim_of(Reading("plain", checks)), runs_of([None, *SMALL[1:]]))
    assert row["verdict"] == OPEN
    assert row["reason"].startswith("cannot be told in 1 of 2 checks: b 0.000")
    runs = runs_of(SMALL, "easy") + runs_of(LARGE, "hard")
    row = row_of(claim_of(), runs)
    assert row["verdict"] == "depends on the condition"
    assert row["reason"].split("\n")[0] == "holds: easy; does not hold: hard"
    named = row_of(claim_of(), runs, depends=lambda holding, failing: f"{holding[0]} or {failing[0]}")
    assert named["verdict"] == "depends on easy or hard"
    assert "plain: depends on easy or hard (holds: easy)" in named["readings"]


@pytest.mark.parametrize(
    ("values", "verdict"), [(SMALL, HOLDS), (UNCLEAR, OPEN), (SMALL[:1], OPEN), ([None] * 10, OPEN)]
)
def test_all_conditions_must_hold(values, verdict):
    row = row_of(claim_of(), runs_of(SMALL, "easy") + runs_of(values, "hard"))
    assert row["verdict"] == verdict
    assert row["reason"].startswith("holds: easy; cannot be told: hard") == (verdict == OPEN)


def test_the_first_reading_decides_and_the_others_are_listed():
    claim = claim_of(Reading("strict", below(0)), Reading("loose", below(1)), Reading("other", below(1, "b")))
    row = row_of(claim, runs_of(SMALL))
    assert row["verdict"] == FAILS
    assert row["readings"].split("\n") == [f"strict: {FAILS}", f"loose: {HOLDS}", f"other: {OPEN}"]


def simulated(shift, n_boards=1000, n_seeds=10, seed=0):
    """Draw differences of seeds with standard deviation 1, (n_boards, n_seeds)."""
    return shift + np.random.default_rng(seed).standard_normal((n_boards, n_seeds))


def rate(differences, verdict, bound=0.0, relation="<"):
    return np.mean([decide(row, bound, relation) == verdict for row in differences])


def test_the_interval_is_that_of_scipy():
    values = simulated(1.0, 1)[0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(t_interval(values, 0.9), expected)


def test_without_a_difference_false_verdicts_are_rare_and_equivalence_is_two_one_sided_tests():
    null = simulated(0.0)
    false = rate(null, HOLDS) + rate(null, FAILS)
    low, high = stats.binomtest(round(false * len(null)), len(null)).proportion_ci(0.99)
    assert low < 0.05 < high
    # A margin makes them rarer.
    assert rate(null, HOLDS, 0.5) + rate(null, FAILS, 0.5) < 0.01
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


@pytest.mark.parametrize("differences", [[-5.0] * 9, [-5.0] * 9 + [math.nan]])
def test_few_seeds_and_missing_numbers_decide_nothing(differences):
    assert decide(differences, 0.1, "<") == OPEN


def test_checks_are_corrected_for_chance_combined_by_their_rule_and_compared_by_ratios():
    null = simulated(0.0, 2000).reshape(100, 20, 10)
    boards = [[decide(row, 0.0, "=", n_checks=20) for row in checks] for checks in null]
    failing = np.mean([FAILS in board for board in boards])
    assert failing < 0.12
    uncorrected = [[decide(row, 0.0, "=") for row in checks] for checks in null]
    assert np.mean([FAILS in board for board in uncorrected]) > 0.4
    assert combine_checks([HOLDS, HOLDS]) == HOLDS
    assert combine_checks([HOLDS, EQUAL]) == EQUAL
    assert combine_checks([HOLDS, OPEN, EQUAL]) == OPEN
    assert combine_checks([HOLDS, OPEN, FAILS]) == FAILS
    assert combine_checks([]) == OPEN
    margin = Margin("tenth", 0.1, "relative", "ours", "for tests")
    np.testing.assert_allclose(margin.differences([1.1, 2.2], [1.0, 2.0]), margin.bound)
    assert np.isnan(margin.differences([-1.0], [1.0])).all()
    assert margin.text([margin.bound]) == "+10.0 %"
    assert margin.scaled(2).words == "±20 %"


@pytest.mark.parametrize(("mean", "relation"), [(0.05, ">"), (0.05, "<="), (0.0, "=")])
def test_as_many_seeds_as_are_told_decide_and_fewer_do_not(mean, relation):
    rng = np.random.default_rng(20261201)
    values = rng.normal(0, 0.1, 10)
    values += mean - values.mean()
    told = seeds_to_decide([(values, 0.02, relation)], 1)
    (n_seeds,) = map(int, re.findall(r"about (\d+) seeds would tell", told))
    draws = [rng.normal(mean, values.std(ddof=1), (300, n)) for n in (n_seeds // 3, n_seeds, 3 * n_seeds)]
    below, at, above = (np.mean([decide(row, 0.02, relation) != OPEN for row in rows]) for rows in draws)
    # That both sides lie inside is rarer than that one does.
    assert below < (0.01 if relation == "=" else 0.4) < at < 0.75 < above
    assert seeds_to_decide([(values - values.mean() + 0.02, 0.02, ">")], 1) == "more than 1000 seeds would tell"
