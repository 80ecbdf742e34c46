"""Colors of algorithms: controls are gray and learners keep their own."""

import pytest

from dmrifit.predict.controls import CONTROLS, is_control
from dmrifit.study.report.figures.colors import algorithm_color


def spread(color):
    """Distance between the strongest and the weakest of red, green and blue."""
    channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return max(channels) - min(channels)


def test_controls_are_gray_and_do_not_move_the_colors_of_learners():
    names = ["constant", "LR", "shuffled", "RFR", "perfect"]
    assert [is_control(name) for name in names] == [True, False, True, False, True]
    assert is_control("constant median")
    assert not is_control("inconstant")
    assert algorithm_color("RFR", names) == algorithm_color("RFR", ["LR", "RFR"])
    assert len({algorithm_color(name, names) for name in names}) == 5


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_gray_by_any_word_of_its_name(control):
    assert spread(algorithm_color(control, [])) < 40
    assert algorithm_color(f"{control} median", []) == algorithm_color(control, [])
    assert algorithm_color(control.upper(), []) == algorithm_color(control, [])
