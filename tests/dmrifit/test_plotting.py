"""Figures of a comparison: what stands where, in which color, and what the legend says."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dmrifit.controls import is_control
from dmrifit.figures.colors import algorithm_color
from dmrifit.figures.curves import plot_decays, plot_learning_curve, plot_signal_errors
from dmrifit.figures.ranks import plot_critical_difference
from dmrifit.figures.scatter import plot_bias_dispersion, plot_legend
from dmrifit.figures.voxels import plot_joint_histograms, plot_map_comparison
from dmrifit.mosaics import NO_VALUE_COLOR

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


def test_controls_are_gray_and_do_not_move_the_colors_of_learners():
    names = ["constant", "LR", "shuffled", "RFR", "perfect"]
    assert [is_control(name) for name in names] == [True, False, True, False, True]
    assert is_control("constant median")
    assert not is_control("inconstant")
    assert algorithm_color("RFR", names) == algorithm_color("RFR", ["LR", "RFR"])
    assert len({algorithm_color(name, names) for name in names}) == 5


def curve(sizes=(1, 2, 5, 8)):
    return pd.DataFrame([
        {"cohort": "c", "strategy": "s2s", "algorithm": a, "metric": m, "patient": p, "n_train": n, "repeat": r,
         "bias": (-1) ** p * (0.1 * (i + 1) / n + 0.01 * r), "dispersion": 0.2 + 0.1 * j}
        for i, a in enumerate(["LR", "RFR"]) for j, m in enumerate(METRICS) for p in range(3) for n in sizes
        for r in range(2)
    ])  # fmt: skip


def test_learning_curves_are_means_overall_by_algorithm_and_by_parameter():
    table = curve()
    figure = plot_learning_curve(table, "c, s2s\nnote")
    overall, overall_di, by_algorithm, _, by_metric, by_metric_di = figure.axes
    magnitude = table.assign(bias=table["bias"].abs())
    np.testing.assert_allclose(overall.lines[0].get_ydata(), 100 * magnitude.groupby("n_train")["bias"].mean())
    np.testing.assert_allclose(overall_di.lines[0].get_ydata(), 40)
    expected = 100 * magnitude[magnitude["algorithm"] == "RFR"].groupby("n_train")["bias"].mean()
    np.testing.assert_allclose(by_algorithm.lines[1].get_ydata(), expected)
    assert len(by_metric.lines) == len(METRICS)
    np.testing.assert_allclose(by_metric_di.lines[2].get_ydata(), 40)
    assert all(axes.get_ylim()[0] == 0 for axes in figure.axes)
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts() if text.get_text().strip()] == [
        "LR", "RFR", "f", "K", "Dv", "T2v", "Dt",
    ]  # fmt: skip


def test_learning_curves_of_one_algorithm_have_no_row_of_algorithms():
    assert len(plot_learning_curve(curve().query("algorithm == 'LR'"), "c").axes) == 4


def test_learning_curves_share_axes_with_the_figures_beside_them():
    small, large = curve(), curve().assign(strategy="m2m", bias=3.0)
    both = pd.concat([small, large])
    tops = [axes.get_ylim()[1] for axes in plot_learning_curve(small, "c", like=both).axes[::2]]
    assert tops == [axes.get_ylim()[1] for axes in plot_learning_curve(large, "c", like=both).axes[::2]]
    assert min(tops) > 300


def decays(te=(70.0, 90.0)):
    return pd.DataFrame([
        {"b": b, "te": t, "signal": scale * np.exp(-b / 1000), "kind": kind, "known": b < 500 and i == 0}
        for kind, scale in (("measured", 1.0), ("s2s", 1.1), ("m2m", 0.9)) for i, t in enumerate(te)
        for b in (800.0, 0.0, 400.0)
    ])  # fmt: skip


def test_decays_show_inputs_filled_and_predictions_as_lines():
    figure = plot_decays(decays(), "p\nnote")
    (axes,) = figure.axes
    assert len(axes.lines) == 4
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0, 400, 800])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1.1 * np.exp([0, -0.4, -0.8]))
    filled = [[to_hex(c) != "#ffffff" for c in dots.get_facecolor()] for dots in axes.collections]
    assert filled == [[False, True, True], [False] * 3]
    assert axes.get_yscale() == "log"
    assert "s/mm²" in axes.get_xlabel()
    assert {"TE 70 ms", "TE 90 ms", "input", "measured", "s2s", "m2m"} == {
        text.get_text() for text in figure.legends[0].get_texts() if text.get_text().strip()
    }
    assert len(plot_decays(decays((np.nan,)), "p").axes[0].lines) == 2


def joint():
    reference = np.concatenate([np.full(30, 1.0), np.linspace(1, 3, 10), [2.0]])
    predicted = np.concatenate([np.full(30, 2.0), np.linspace(1, 3, 10), [np.nan]])
    table = pd.DataFrame({"cohort": "a", "strategy": "s2s", "reference": reference, "predicted": predicted})
    return pd.concat([table, table.assign(strategy="m2m", predicted=2.0)])


@pytest.mark.parametrize("log", [False, True])
def test_joint_histograms_count_every_usable_voxel(log):
    figure = plot_joint_histograms(joint(), "Dt\nnote", unit="µm²/ms", log=log)
    panels = [axes for axes in figure.axes if axes.collections and "reference" in axes.get_xlabel()]
    assert len(panels) == 2
    counts = [np.nansum(axes.collections[0].get_array().filled(0)) for axes in panels]
    assert counts == [40, 41]
    assert panels[0].get_xlim() == panels[0].get_ylim() == panels[1].get_xlim()
    np.testing.assert_allclose(panels[0].lines[0].get_xdata(), panels[0].lines[0].get_ydata())
    assert "(µm²/ms)" in panels[0].get_xlabel()
    assert len({id(axes.collections[0].norm) for axes in panels}) == 1


def test_a_joint_histogram_of_one_value_is_drawn_too():
    table = joint().assign(reference=1.0, predicted=1.0)
    axes = plot_joint_histograms(table, "T2v").axes[0]
    assert axes.get_xlim()[0] < 1 < axes.get_xlim()[1]


def voxels():
    index = [(i, j, k) for i in range(3) for j in range(4) for k in range(2) if k == 1 or (i == 0 and j < 2)]
    table = pd.DataFrame(index, columns=["i", "j", "k"]).assign(reference=np.linspace(1, 2, 14))
    return table.assign(s2s=table["reference"] * 1.1, m2m=table["reference"] * 0.5)


def pictures(figure):
    return {image: axes for axes in figure.axes for image in axes.images}


def test_maps_share_colors_and_errors_too():
    import matplotlib as mpl

    figure = plot_map_comparison(voxels(), np.diag([2.0, 2, 5, 1]), "Dt (µm²/ms)\nnote", unit="µm²/ms")
    images = list(pictures(figure))
    assert len(images) == 5
    reference, s2s, error_s2s, m2m, error_m2m = (image.get_array() for image in images)
    # The fullest slice has all columns and rows; the patient's right is at the left.
    assert reference.shape == (4, 3, 4)
    middle = voxels().query("k == 1")
    low, high = np.percentile(voxels()["reference"], (2, 98))
    value = middle.query("i == 2 and j == 3")["reference"].iloc[0]
    expected = mpl.colormaps["viridis"]((min(value, high) - low) / (high - low))
    np.testing.assert_allclose(reference[3, 0], expected, atol=1e-6)
    assert np.ptp(np.asarray(error_s2s)[..., 0]) < 1e-6
    assert np.ptp(np.asarray(error_m2m)[..., 0]) < 1e-6
    assert not np.allclose(error_s2s[0, 0], error_m2m[0, 0])
    assert not np.allclose(s2s[0, 0], m2m[0, 0])
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"reference", "s2s", "m2m", "E of s2s", "E of m2m"} <= texts


def test_where_the_reference_is_zero_the_error_is_gray():
    table = voxels()
    table.loc[table["k"] == 1, "reference"] = [0.0] + [1.0] * 11
    figure = plot_map_comparison(table, np.diag([2.0, 2, 5, 1]), "K", predictions=["s2s"])
    error = list(pictures(figure))[2].get_array()
    gray = [to_hex(color) == NO_VALUE_COLOR for color in np.asarray(error).reshape(-1, 4)]
    assert sum(gray) == 1


def test_a_map_of_one_voxel_is_drawn():
    figure = plot_map_comparison(voxels().iloc[:1], np.eye(4), "f", predictions=["s2s"])
    assert len(pictures(figure)) == 4


def test_ranks_stand_in_their_order_and_bars_join_what_is_not_told_apart():
    ranks = pd.Series({"LR": 1.0, "RFR": 2.2, "GBR": 2.8})
    p = pd.DataFrame(0.001, ranks.index, ranks.index)
    p.loc["RFR", "GBR"] = p.loc["GBR", "RFR"] = np.nan
    figure = plot_critical_difference(ranks, p, "DI\nnote")
    (axes,) = figure.axes
    points = np.concatenate([dots.get_offsets() for dots in axes.collections])
    assert sorted(points[:, 0]) == [1.0, 2.2, 2.8]
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 2.5]
    assert [sorted(bar) for bar in bars] == [[2.2, 2.8]]
    texts = {text.get_text() for text in axes.texts}
    assert {"LR 1.0", "note"} <= texts
