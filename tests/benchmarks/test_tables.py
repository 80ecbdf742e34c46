"""Every table of the page of measurements is written from a stored result, and says what the result says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
