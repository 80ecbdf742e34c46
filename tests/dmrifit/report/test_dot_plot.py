"""Dots with intervals: what stands where, and what lies beyond an axis."""

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

from dmrifit.report.dot_plot import Panel, plot_dots

STYLES = {"LR": {"color": "#0072b2"}, "constant": {"color": "#a3aab3", "marker": "s"}}


def table(**changes):
    columns = {
        "row": ["f", "f", "Dt", "Dt"],
        "series": ["LR", "constant"] * 2,
        "skill": [0.5, 0.0, -3.0, np.nan],
        "skill_low": [0.4, np.nan, -4.0, np.nan],
        "skill_high": [0.6, np.nan, -2.0, np.nan],
        "dispersion": [0.1, 0.2, 0.3, 0.4],
    }
    return pd.DataFrame(columns | changes)


def clouds(axes):
    return [cloud for cloud in axes.collections if isinstance(cloud, PathCollection)]


def intervals(axes):
    lines = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    segments = [segment for line in lines for segment in line.get_segments()]
    return np.array([segment for segment in segments if len(segment)])


def test_rows_run_down_and_each_series_has_its_place_in_a_row():
    panels = [Panel("skill", "skill", ends=(-1.0, 1.0)), Panel("dispersion", "DI (%)", 100)]
    figure = plot_dots(table(), panels, STYLES, "title")
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["f", "Dt"]
    assert [text.get_text() for text in second.get_yticklabels()] == ["", ""]
    assert first.get_ylim()[0] > first.get_ylim()[1]
    learner, control = (cloud.get_offsets() for cloud in clouds(second))
    np.testing.assert_allclose(learner[:, 0], [10, 30])
    np.testing.assert_allclose(control[:, 0], [20, 40])
    assert learner[0, 1] < 0 < control[0, 1] < 0.5 < learner[1, 1]
    assert first.get_title(loc="left") == "title"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["LR", "constant"]


def test_values_and_intervals_beyond_an_axis_stand_hollow_or_as_an_arrow_at_its_end():
    (axes,) = plot_dots(table(), [Panel("skill", "skill", ends=(-1.0, 1.0))], STYLES, "").axes
    learner, control = clouds(axes)
    np.testing.assert_allclose(learner.get_offsets()[:, 0], [0.5, -1.06])
    assert [to_hex(color) for color in learner.get_facecolors()] == ["#0072b2", "#ffffff"]
    # A score that is not defined has no dot.
    assert len(control.get_offsets()) == 1
    np.testing.assert_allclose(intervals(axes)[0, :, 0], [0.4, 0.6])
    panel = Panel("skill", "skill", ends=(-1.0, 1.0))
    rows = table(skill=[0.5, 0.0, -0.5, np.nan], skill_low=[-1.05, 0, -4, 0], skill_high=[1.5, 0, -0.2, np.nan])
    (axes,) = plot_dots(rows, [panel], {"LR": STYLES["LR"]}, "").axes
    # An interval that ends in the margin, which is drawn, has no arrow there.
    tips = {line.get_marker(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() in "<>"}
    assert tips == {"<": [[-1.06, 1.0]], ">": [[1.06, 0.0]]}


def test_axes_begin_at_a_marked_zero_and_nothing_to_draw_is_an_empty_frame():
    (axes,) = plot_dots(table(), [Panel("dispersion", "DI (%)", 100)], STYLES, "").axes
    assert axes.get_xlim()[0] <= 0 < 40 <= axes.get_xlim()[1] * 1.05
    assert 0.0 in [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata())]
    nothing = table(skill=np.nan, skill_low=np.nan, skill_high=np.nan)
    (axes,) = plot_dots(nothing, [Panel("skill", "skill")], STYLES, "").axes
    assert not clouds(axes)


def test_an_axis_cuts_controls_and_intervals_but_no_algorithm():
    rows = pd.DataFrame({
        "row": [f"m{i}" for i in range(60)],
        "series": ["LR"] * 58 + ["constant"] * 2,
        "control": [False] * 58 + [True] * 2,
        "skill": [*np.linspace(0.1, 0.5, 57), -2.0, -50.0, 0.0],
    })  # fmt: skip
    rows["skill_low"], rows["skill_high"] = rows["skill"] - 0.05, rows["skill"] + 0.05
    rows.loc[3, "skill_low"] = -40.0
    (axes,) = plot_dots(rows, [Panel("skill", "skill")], STYLES, "").axes
    learner, control = clouds(axes)
    assert learner.get_offsets()[:, 0].min() == -2.0
    assert "#ffffff" not in [to_hex(color) for color in learner.get_facecolors()]
    assert -3 < axes.get_xlim()[0] < -2
    assert to_hex(control.get_facecolors()[0]) == "#ffffff"


def test_panels_of_their_own_tables_have_titles_and_numbers():
    panels = [
        Panel("skill", "skill", ends=(-1.0, 1.0), title=title, digits=2, table=table(skill=[0.25 * k] * 4))
        for k, title in enumerate("AB", start=1)
    ]
    figure = plot_dots(table(), panels, STYLES, width=6.0)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["A", "B"]
    for axes, number in zip(figure.axes, ("0.25", "0.50"), strict=True):
        assert [text.get_text() for text in axes.texts if text.get_text()] == [number] * 4


def test_long_names_are_cut_and_leave_room():
    long = table(row=["n" * 200, "n" * 200, "Dt", "Dt"])
    (axes,) = plot_dots(long, [Panel("skill", "skill")], STYLES, "", width=6.0).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["n" * 29 + "…", "Dt"]
    assert axes.get_position().width > 0.4
