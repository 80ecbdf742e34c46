"""Figures of a comparison: what stands where, in which color, and what the legend says."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dmrifit.plotting import plot_bias_dispersion, plot_legend, plot_signal_errors

ALGORITHMS = ["constant", "LR", "RFR"]
METRICS = ["f", "Dv", "T2v", "Dt", "K"]


def panel(**changes):
    rows = [
        {"algorithm": a, "metric": m, "bias": 0.1 * (i + 1), "dispersion": 0.2 * (j + 1)}
        for i, a in enumerate(ALGORITHMS)
        for j, m in enumerate(METRICS)
    ]
    return pd.DataFrame(rows).assign(**changes)


def points(axes):
    return np.concatenate([dots.get_offsets() for dots in axes.collections])


def legend_lines(figure):
    """Read a legend as it is seen, line by line."""
    (legend,) = figure.legends
    figure.draw_without_rendering()
    places = [(text.get_window_extent(), text.get_text()) for text in legend.get_texts() if text.get_text().strip()]
    lines = {}
    for box, text in sorted(places, key=lambda place: place[0].x0):
        lines.setdefault(round(-(box.y0 + box.y1) / 2 / 5), []).append(text)
    return [lines[key] for key in sorted(lines)]


def test_every_score_is_a_point_in_percent():
    figure = plot_bias_dispersion([("one", panel())])
    (axes,) = figure.axes
    expected = [(10.0 * (i + 1), 20.0 * (j + 1)) for i in range(3) for j in range(5)]
    np.testing.assert_allclose(points(axes), expected)
    assert "%" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


def test_algorithms_have_different_colors_and_the_constant_is_gray():
    (axes,) = plot_bias_dispersion([("one", panel())]).axes
    colors = {a: {to_hex(axes.collections[5 * i + j].get_facecolor()[0]) for j in range(5)}
              for i, a in enumerate(ALGORITHMS)}  # fmt: skip
    assert all(len(found) == 1 for found in colors.values())
    assert len(set.union(*colors.values())) == 3
    (gray,) = colors["constant"]
    red, green, blue = (int(gray[i : i + 2], 16) for i in (1, 3, 5))
    assert max(red, green, blue) - min(red, green, blue) < 20


def test_panels_share_their_axes_also_across_figures():
    small, large = ("small", panel(bias=0.01)), ("large\nsecond line", panel(bias=0.7))
    figure = plot_bias_dispersion([small, large])
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    (alone,) = plot_bias_dispersion([small], like=[small, large]).axes
    assert alone.get_xlim() == figure.axes[0].get_xlim()


def test_a_point_far_out_stands_hollow_at_the_edge():
    rows = pd.concat([panel()] * 4, ignore_index=True)
    rows.loc[0, "bias"] = 50.0
    (axes,) = plot_bias_dispersion([("one", rows)]).axes
    others = max(dots.get_offsets()[0, 0] for dots in axes.collections[1:])
    assert others < axes.collections[0].get_offsets()[0, 0] < axes.get_xlim()[1] < 100
    assert to_hex(axes.collections[0].get_facecolor()[0]) == "#ffffff"
    assert to_hex(axes.collections[1].get_facecolor()[0]) != "#ffffff"


def test_scores_that_are_not_defined_are_left_out():
    rows = panel()
    rows.loc[3, "dispersion"] = np.nan
    assert len(points(plot_bias_dispersion([("one", rows)]).axes[0])) == 14


@pytest.mark.parametrize("alone", [True, False])
def test_the_legend_names_algorithms_first_and_parameters_on_lines_of_their_own(alone):
    figure = plot_legend(ALGORITHMS, METRICS) if alone else plot_bias_dispersion([("one", panel())])
    assert legend_lines(figure) == [ALGORITHMS, METRICS[:4], METRICS[4:]]


def test_signal_errors_are_means_over_patients_in_order_of_te_and_b():
    rows = [
        {"strategy": "s2s", "algorithm": "LR", "patient": p, "te": te, "b": b, "relative_error": error + shift}
        for te, b, error in ((90.0, 800.0, 0.4), (90.0, 0.0, 0.1), (70.0, 0.0, 0.2))
        for p, shift in (("x", -0.05), ("y", 0.05))
    ]
    figure = plot_signal_errors(pd.DataFrame(rows), "title\nnote")
    (axes,) = figure.axes
    lines = [line.get_xydata() for line in axes.lines if line.get_marker() == "."]
    drawn = {(x, y) for x, y in np.round(np.concatenate(lines), 9).tolist()}
    assert drawn == {(0, 20), (1, 10), (2, 40)}
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0", "800"]
    assert {"TE 70 ms", "TE 90 ms", "note"} <= {text.get_text() for text in axes.texts}
    assert legend_lines(figure) == [["LR"], ["s2s"]]


def test_settings_of_matplotlib_are_left_as_they_were():
    before = dict(matplotlib.rcParams)
    plot_legend(ALGORITHMS, METRICS)
    assert dict(matplotlib.rcParams) == before
