"""Curves of a comparison: what stands where, and what the legend says."""

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from dmrifit.study.report.figures.curves import (
    plot_decays,
    plot_learning_curve,
    plot_signal_errors,
)

METRICS = ["f", "Dv", "T2v", "Dt", "K"]


def legend_lines(figure):
    """Read a legend as it is seen, line by line."""
    (legend,) = figure.legends
    figure.draw_without_rendering()
    places = [(text.get_window_extent(), text.get_text()) for text in legend.get_texts() if text.get_text().strip()]
    lines = {}
    for box, text in sorted(places, key=lambda place: place[0].x0):
        lines.setdefault(round(-(box.y0 + box.y1) / 2 / 5), []).append(text)
    return [lines[key] for key in sorted(lines)]


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


