"""Boards of claims: verdicts over runs and conditions, from claims made for the purpose."""

import math

import numpy as np
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
    board_sentence,
    build_board,
    check_claims,
    format_number,
)
from dmrifit.stats.verdicts import Margin

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
    row = row_of(claim_of(), runs_of([0.1, 0.2, 0.3]))
    assert row["ours"] == "a: here 0.200 ± 0.100"
    assert row["study"] == "< 1"


def test_conditions_that_disagree_are_named():
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


def test_conditions_that_are_needed_and_missing_are_named():
    row = row_of(claim_of(conditions=("easy", "hard")), runs_of(SMALL, "easy"))
    assert row["verdict"] == OPEN
    assert "missing: hard" in row["reason"]
    assert row_of(claim_of(conditions=("easy",)), runs_of(SMALL, "easy"))["verdict"] == HOLDS


def test_the_first_reading_decides_and_the_others_are_listed():
    claim = claim_of(Reading("strict", below(0)), Reading("loose", below(1)), Reading("other", below(1, "b")))
    row = row_of(claim, runs_of(SMALL))
    assert row["verdict"] == FAILS
    assert row["readings"].split("\n") == [f"strict: {FAILS}", f"loose: {HOLDS}", f"other: {OPEN}"]


def test_every_check_is_a_row_of_the_figures():
    figures = check_claims([claim_of(), claim_of(Reading("other", below(1, "b")))], runs_of([0.1, 2.0]))
    assert tuple(figures.columns) == FIGURE_COLUMNS
    assert figures["value"].tolist()[:2] == [0.1, 2.0]
    assert figures["relation"].tolist() == ["<", "<", "", ""]
    assert figures["quantity"].tolist()[2:] == ["a measurement of b"] * 2


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


def test_claims_are_listed_by_their_verdicts_with_the_seeds_that_lack():
    verdicts = (OPEN, HOLDS, "not testable here", FAILS, "depends on the world", HOLDS)
    rows = [{"claim": i, "verdict": verdict, "n_runs": 10} for i, verdict in enumerate(verdicts, 1)]
    listed = (
        "Verdicts, with the numbers of their claims: holds (2, 6), does not hold (4), "
        "depends on the world (5), cannot be told (1), not testable here (3)."
    )
    assert board_sentence(rows) == listed
    few = [row | {"n_runs": 3} for row in rows]
    assert board_sentence(few) == f"{listed} Seeds: 3 of the 10 that a verdict needs."
