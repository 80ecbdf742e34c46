"""Dispersion against bias: what stands where, in which color and shape, and the legend."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dmrifit.study.report.figures.scatter import plot_bias_dispersion, plot_legend

ALGORITHMS = ["constant", "LR", "RFR"]
METRICS = ["f", "Dv", "T2v", "Dt", "K"]


def panel(**changes):
    rows = []
    for i, algorithm in enumerate(ALGORITHMS):
        for j, metric in enumerate(METRICS):
            row = {"algorithm": algorithm, "metric": metric}
            rows.append(row | {"bias": 0.1 * (i + 1), "dispersion": 0.2 * (j + 1)})
    return pd.DataFrame(rows).assign(**changes)


def points(axes):
    return np.concatenate([dots.get_offsets() for dots in axes.collections])


def legend_lines(figure):
    """Read a legend as it is seen, line by line."""
    (legend,) = figure.legends
    figure.draw_without_rendering()
    entries = []
    for text in legend.get_texts():
        if text.get_text().strip():
            entries.append((text.get_window_extent(), text.get_text()))
    lines = {}
    for box, text in sorted(entries, key=lambda entry: entry[0].x0):
        lines.setdefault(round(-(box.y0 + box.y1) / 2 / 5), []).append(text)
    return [lines[key] for key in sorted(lines)]


def test_every_score_is_a_point_in_percent():
    figure = plot_bias_dispersion([("one", panel())])
    (axes,) = figure.axes
    expected = []
    for i in range(3):
        expected += [(10.0 * (i + 1), 20.0 * (j + 1)) for j in range(5)]
    np.testing.assert_allclose(points(axes), expected)
    assert "%" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


def test_algorithms_have_different_colors_and_the_constant_is_gray():
    (axes,) = plot_bias_dispersion([("one", panel())]).axes
    colors = {}
    for i, algorithm in enumerate(ALGORITHMS):
        dots = axes.collections[5 * i : 5 * i + 5]
        colors[algorithm] = {to_hex(dot.get_facecolor()[0]) for dot in dots}
    assert all(len(shades) == 1 for shades in colors.values())
    assert len(set.union(*colors.values())) == 3
    (gray,) = colors["constant"]
    red, green, blue = (int(gray[i : i + 2], 16) for i in (1, 3, 5))
    assert max(red, green, blue) - min(red, green, blue) < 20


def test_parameters_have_different_shapes_that_algorithms_share():
    (axes,) = plot_bias_dispersion([("one", panel())]).axes
    outlines = [dots.get_paths()[0].vertices.round(6).tobytes() for dots in axes.collections]
    assert len(set(outlines)) == 5
    assert outlines[:5] == outlines[5:10] == outlines[10:]


def test_panels_share_their_axes_also_across_figures():
    small, large = ("small", panel(bias=0.01)), ("large\nsecond line", panel(bias=0.7))
    figure = plot_bias_dispersion([small, large])
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    (alone,) = plot_bias_dispersion([small], like=[small, large]).axes
    assert alone.get_xlim() == figure.axes[0].get_xlim()


def test_panels_fill_two_columns_line_by_line():
    figure = plot_bias_dispersion([(name, panel()) for name in "abc"])
    lefts = [round(axes.get_position().x0, 6) for axes in figure.axes]
    bottoms = [round(axes.get_position().y0, 6) for axes in figure.axes]
    assert lefts[0] == lefts[2] < lefts[1]
    assert bottoms[0] == bottoms[1] > bottoms[2]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b", "c"]


def test_a_point_far_out_stands_hollow_at_the_edge():
    rows = pd.concat([panel()] * 4, ignore_index=True)
    rows.loc[0, "bias"] = 50.0
    (axes,) = plot_bias_dispersion([("one", rows)]).axes
    rightmost = max(dots.get_offsets()[0, 0] for dots in axes.collections[1:])
    assert rightmost < axes.collections[0].get_offsets()[0, 0] < axes.get_xlim()[1] < 100
    assert to_hex(axes.collections[0].get_facecolor()[0]) == "#ffffff"
    assert to_hex(axes.collections[1].get_facecolor()[0]) != "#ffffff"


def test_scores_that_are_not_defined_are_left_out():
    rows = panel()
    rows.loc[3, "dispersion"] = np.nan
    assert len(points(plot_bias_dispersion([("one", rows)]).axes[0])) == 14


def test_a_panel_without_any_score_is_drawn_empty():
    (axes,) = plot_bias_dispersion([("none", panel(bias=np.nan))]).axes
    assert not axes.collections
    assert axes.get_xlim() == (0, pytest.approx(1.03))


@pytest.mark.parametrize("alone", [True, False])
def test_the_legend_names_algorithms_first_and_parameters_on_lines_of_their_own(alone):
    figure = (
        plot_legend(ALGORITHMS, METRICS) if alone else plot_bias_dispersion([("one", panel())])
    )
    assert legend_lines(figure) == [ALGORITHMS, METRICS[:4], METRICS[4:]]


def test_the_legend_can_be_left_to_another_figure():
    assert not plot_bias_dispersion([("one", panel())], legend=False).legends


def test_settings_of_matplotlib_are_left_as_they_were():
    before = dict(matplotlib.rcParams)
    plot_legend(ALGORITHMS, METRICS)
    assert dict(matplotlib.rcParams) == before
