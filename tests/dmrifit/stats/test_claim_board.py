"""Boards of claims: verdicts over runs and conditions, from claims made for the purpose."""

import math

import pytest

from dmrifit.stats.claim_board import (
    BOARD_COLUMNS,
    FAILS,
    FIGURE_COLUMNS,
    HOLDS,
    OPEN,
    Check,
    Claim,
    MissingEvidence,
    Reading,
    Run,
    build_board,
    check_claims,
    format_number,
)


def below(limit, name="a"):
    """Make a rule: evidence[name] is below a limit."""

    def checks(evidence):
        if name not in evidence:
            msg = f"a measurement of {name}"
            raise MissingEvidence(msg)
        return [Check(name, evidence[name], "<", limit, where="here")]

    return checks


def claim_of(*readings, **options):
    return Claim(1, "a is small", "< 1", "a < 1", readings or (Reading("plain", below(1)),), **options)


def runs_of(*values, condition="", name="a"):
    return [Run(condition, str(i), {} if v is None else {name: v}) for i, v in enumerate(values)]


def row_of(claim, runs, **options):
    board = build_board([claim], runs, **options)
    assert tuple(board.columns) == BOARD_COLUMNS
    return board.iloc[0]


@pytest.mark.parametrize(
    ("relation", "value", "limit", "verdict"),
    [
        ("<", 1, 2, HOLDS),
        ("<", 2, 2, FAILS),
        ("<=", 2, 2, HOLDS),
        ("<=", 3, 2, FAILS),
        (">", 3, 2, HOLDS),
        (">", 2, 2, FAILS),
        (">=", 2, 2, HOLDS),
        (">=", 1, 2, FAILS),
        ("<", math.nan, 2, OPEN),
        (">", 1, math.nan, OPEN),
        (">", math.inf, 2, HOLDS),
    ],
)
def test_a_check_compares_a_number_with_its_limit(relation, value, limit, verdict):
    assert Check("a", value, relation, limit).verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict", "words"),
    [
        ((0.1, 0.2, 0.3), HOLDS, "holds in all 3 seeds"),
        ((1.1, 1.2, 1.3), FAILS, "here a 1.20 ± 0.10, not < 1.00 in all seeds"),
        ((0.1, 0.2, 1.3), OPEN, "here a 1.30, not < 1.00 in 1 of 3 seeds"),
        ((0.1, 0.2, math.nan), OPEN, "here a –, not < 1.00 in 1 of 3 seeds"),
        ((0.1, 0.2, None), OPEN, "missing in some seeds: a measurement of a"),
        ((None, None, None), OPEN, "missing: a measurement of a"),
        ((0.1,), OPEN, "one seed, 3 are needed"),
        ((1.1, 1.2), OPEN, "2 seeds, 3 are needed; here a 1.15 ± 0.07, not < 1.00 in all seeds"),
    ],
)
def test_runs_must_agree_and_be_three(values, verdict, words):
    row = row_of(claim_of(), runs_of(*values))
    assert row["verdict"] == verdict
    assert words in row["reason"]
    assert row["n_runs"] == len(values)


def test_a_reading_fails_by_one_check_that_fails_in_every_run_not_by_any_in_each():
    def two(evidence):
        return [Check("a", evidence["a"], "<", 1), Check("b", evidence["b"], "<", 1)]

    claim = claim_of(Reading("both", two))
    turns = [Run("", str(i), {"a": 2 * (i % 2), "b": 2 * (1 - i % 2)}) for i in range(4)]
    assert row_of(claim, turns)["verdict"] == OPEN
    always = [Run("", str(i), {"a": 2, "b": 0}) for i in range(4)]
    assert row_of(claim, always)["verdict"] == FAILS


def test_ours_is_mean_and_standard_deviation_over_runs():
    row = row_of(claim_of(), runs_of(0.1, 0.2, 0.3))
    assert row["ours"] == "a: here 0.200 ± 0.100"
    assert row["study"] == "< 1"


def test_conditions_that_disagree_are_named():
    runs = runs_of(0.1, 0.2, 0.3, condition="easy") + runs_of(1.1, 1.2, 1.3, condition="hard")
    row = row_of(claim_of(), runs)
    assert row["verdict"] == "depends on the condition"
    assert row["reason"].split("\n")[0] == "holds: easy; does not hold: hard"
    named = row_of(claim_of(), runs, depends=lambda holding, failing: f"{holding[0]} or {failing[0]}")
    assert named["verdict"] == "depends on easy or hard"
    assert "plain: depends on easy or hard (holds: easy)" in named["readings"]


@pytest.mark.parametrize(
    ("other", "verdict"), [((0.1, 0.2, 0.3), HOLDS), ((0.1, 0.2, 1.3), OPEN), ((0.1,), OPEN), ((None,) * 3, OPEN)]
)
def test_all_conditions_must_hold(other, verdict):
    runs = runs_of(0.1, 0.2, 0.3, condition="easy") + runs_of(*other, condition="hard")
    row = row_of(claim_of(), runs)
    assert row["verdict"] == verdict
    assert row["reason"].startswith("holds: easy; cannot be told: hard") == (verdict == OPEN)


def test_conditions_that_are_needed_and_missing_are_named():
    runs = runs_of(0.1, 0.2, 0.3, condition="easy")
    row = row_of(claim_of(conditions=("easy", "hard")), runs)
    assert row["verdict"] == OPEN
    assert "missing: hard" in row["reason"]
    assert row_of(claim_of(conditions=("easy",)), runs)["verdict"] == HOLDS


def test_the_first_reading_decides_and_the_others_are_listed():
    claim = claim_of(Reading("strict", below(0.15)), Reading("loose", below(1)), Reading("other", below(1, "b")))
    row = row_of(claim, runs_of(0.2, 0.2, 0.2))
    assert row["verdict"] == FAILS
    assert row["readings"].split("\n") == [f"strict: {FAILS}", f"loose: {HOLDS}", f"other: {OPEN}"]


def test_every_check_is_a_row_of_the_figures():
    figures = check_claims([claim_of(), claim_of(Reading("other", below(1, "b")))], runs_of(0.1, 2.0))
    assert tuple(figures.columns) == FIGURE_COLUMNS
    assert figures["verdict"].tolist() == [HOLDS, FAILS, OPEN, OPEN]
    assert figures["value"].tolist()[:2] == [0.1, 2.0]
    assert figures["relation"].tolist() == ["<", "<", "", ""]
    assert figures["quantity"].tolist()[2:] == ["a measurement of b"] * 2


def test_boards_need_runs_and_numbers():
    with pytest.raises(ValueError, match="at least one run"):
        build_board([claim_of()], [])
    with pytest.raises(ValueError, match="numbers of their own"):
        build_board([claim_of(), claim_of()], runs_of(0.1))


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.09812, 0.00521, "0.098 ± 0.005"),
        (12.345, 1.0, "12.3 ± 1.0"),
        (1234.5, math.nan, "1234"),
        (0.0, math.nan, "0.000"),
        (-0.0, math.nan, "0.000"),
        (2.5e-05, 1e-06, "2.5e-05 ± 1.0e-06"),
        (-0.25, math.nan, "-0.250"),
        (math.nan, 0.1, "–"),
        (math.inf, math.nan, "∞"),
        (-math.inf, math.nan, "−∞"),
    ],
)
def test_numbers_are_written_in_three_digits(value, spread, text):
    assert format_number(value, spread) == text
