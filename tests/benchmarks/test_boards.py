"""Boards of claims: their tables begin with their verdicts, their folds are even."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _boards as boards
from benchmarks.claims.claim_board import board_sentence

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["claims", "placement_claims", "metastasis", "anomaly"])
def test_each_table_of_claims_begins_with_its_verdicts(name):
    claims = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["claims"]
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for has_reasons in (False, True):
        table = boards.claims_table(claims, reasons=has_reasons)
        assert table.startswith(f"{board_sentence(claims)}\n\n| ")
    assert board_sentence(claims) in page


def test_folds_are_even_and_repeatable():
    folds = boards.case_folds(12, n_folds=5, random_state=0)
    assert sorted(np.bincount(folds)[1:]) == [2, 2, 2, 3, 3]
    np.testing.assert_array_equal(folds, boards.case_folds(12, n_folds=5, random_state=0))
