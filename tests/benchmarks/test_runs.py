"""Parts of a benchmark that are kept, and pages that are filled from templates."""

import math

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


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [(0.1234, ".1%", "12.3 %"), (-0.5, "+.2f", "-0.50"), (None, ".2f", "–"), (math.nan, ".2f", "–"), (1234, ",", "1,234")],
)
def test_pages_write_numbers_and_a_dash_for_none(value, form, expected):
    assert runs.written(value, form) == expected
