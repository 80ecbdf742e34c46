"""Tables of the page of measurements are written from stored results and begin with their verdicts; folds are even."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _boards as boards
from benchmarks.claims.claim_board import board_sentence

ROOT = Path(__file__).parents[2]
PAGE = "benchmarks/README.md"


def tables(*words):
    command = [sys.executable, "-m", "benchmarks.tables", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.deep
def test_a_figure_changed_by_hand_is_found_and_mended(tmp_path):
    pytest.importorskip("skorch")
    (tmp_path / "benchmarks").mkdir()
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    row = re.search(r"^[|] ranker [|] 0[.]\d+", text, re.MULTILINE)[0]
    (tmp_path / PAGE).write_text(text.replace(row, "| ranker | 0.999"), encoding="utf-8")
    found = tables("--check", "--root", tmp_path)
    assert found.returncode == 1, found.stderr[-3000:]
    assert f"{PAGE} is not what the results say" in found.stdout
    assert tables("--root", tmp_path).returncode == 0
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == text


def test_results_are_of_committed_code_and_whole_sizes():
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert not result.get("quick"), path.name
        assert not result.get("changed"), path.name
        assert result.get("size", "full") == "full", path.name


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
