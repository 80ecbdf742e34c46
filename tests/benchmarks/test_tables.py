"""Every table of the READMEs is written from a stored result, and says what the result says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "benchmarks/README.md")


def tables(*words):
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.deep
def test_a_figure_changed_by_hand_is_found_and_mended(tmp_path):
    pytest.importorskip("skorch")
    (tmp_path / "benchmarks").mkdir()
    for page in PAGES:
        shutil.copy(ROOT / page, tmp_path / page)
    text = (tmp_path / PAGES[0]).read_text(encoding="utf-8")
    row = re.search(r"^[|] ranker [|] 0[.]\d+", text, re.MULTILINE)[0]
    (tmp_path / PAGES[0]).write_text(text.replace(row, "| ranker | 0.999"), encoding="utf-8")
    found = tables("--check", "--root", tmp_path)
    assert found.returncode == 1, found.stderr[-3000:]
    assert f"{PAGES[0]} is not what the results say" in found.stdout
    # The other page says what the results say, as the first one did before.
    assert PAGES[1] not in found.stdout
    assert tables("--root", tmp_path).returncode == 0
    assert (tmp_path / PAGES[0]).read_text(encoding="utf-8") == text


def test_results_are_of_committed_code_and_whole_sizes():
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert not result.get("quick"), path.name
        assert not result.get("changed"), path.name
        assert result.get("size", "full") == "full", path.name
