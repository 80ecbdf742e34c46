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


def test_the_state_of_a_step_is_told_and_steps_of_an_earlier_run_took_no_time(capfd, monkeypatch):
    clock = iter([0.0, 5.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.step_bar(10, "epoch", "epoch", n_before=4) as count:
        count("loss 0.5", state="loss 0.5")
        count(state="loss 0.4")
    assert capfd.readouterr().err.splitlines() == [
        "epoch 5/10 (about 25 s left) loss 0.5",
        "epoch 6/10 (about 40 s left) loss 0.4",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_are_in_their_largest_unit(seconds, text):
    assert progress._duration(seconds) == text
