"""How far work is, where there is no terminal."""

import pytest

from dmrifit._utils import progress


def test_steps_with_a_text_are_lines_and_others_only_after_a_while(capfd, monkeypatch):
    clock = iter([0.0, 4.0, 8.0, 16.0, 17.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.step_bar(4, "model", "compare") as count:
        count("first")
        count()
        count()
        count()
    assert capfd.readouterr().err.splitlines() == [
        "compare 1/4 (about 12 s left) first",
        "compare 3/4 (about 5 s left) models",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_are_in_their_largest_unit(seconds, text):
    assert progress._duration(seconds) == text
