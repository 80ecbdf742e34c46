"""Parts of a benchmark that are kept, and pages that are filled from templates."""

import json
import sys

import pytest

from benchmarks import _runs as runs


def test_parts_are_made_once_and_one_of_another_size_ends_the_run(tmp_path):
    made = []

    def make(number):
        made.append(number)
        return {"number": number}

    parts = [runs.Part(f"hard world-{n}", {"size": 3}, make, (n,)) for n in (1, 2)]
    paths = runs.finished(parts[:1], tmp_path / "parts")
    assert runs.finished(parts, tmp_path / "parts")[:1] == paths
    assert made == [1, 2]
    assert paths[0].name == "hard-world-1.json"
    with pytest.raises(SystemExit, match=r"hard-world-1.json is of a board of another size: remove it"):
        runs.finished([runs.Part("hard world-1", {"size": 4}, make, (1,))], tmp_path / "parts")
    assert made == [1, 2]


def sizes(chosen):
    """Give the size of a run."""
    return {"is_small": chosen.quick}


def test_a_result_holds_its_command_as_it_was_given(tmp_path, monkeypatch):
    out = tmp_path / "sizes.json"
    monkeypatch.setattr(sys, "argv", ["sizes", "--quick", "--out", str(out)])
    runs.main(sizes, out, markdown=lambda _: "")
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["is_small"]
    assert sorted(result["command"].split()[3:]) == sorted(["--quick", "--out", str(out)])
