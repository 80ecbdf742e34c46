"""Curves of a comparison: what stands where, and what the legend says."""

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from dmrifit.predict.controls import is_control
from dmrifit.report.dot_plot import Panel
from dmrifit.study.report.figures import (
    algorithm_color,
    plot_decays,
    plot_signal_errors,
    plot_sizes,
)


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
    assert legend_lines(figure) == [["LR s2s"]]


def sizes(series=("LR", "RFR")):
    rows = []
    for i, name in enumerate(series):
        for cohort in ("a", "b"):
            for n in (1, 2, 5):
                skill = 0.1 * (i + 1) * n
                rows.append({"cohort": cohort, "n_train": n, "series": name, "skill": skill,
                             "skill_low": skill - 0.1, "skill_high": skill + 0.2, "dispersion": 1 / n})  # fmt: skip
    return pd.DataFrame(rows)


def test_sizes_have_a_panel_for_each_cohort_and_score_and_a_line_for_each_series():
    panels = [Panel("skill", "skill", ends=(-1.0, 1.0)), Panel("dispersion", "DI (%)", 100)]
    looks = {"LR": {"color": "red"}, "RFR": {"color": "blue"}}
    figure = plot_sizes(sizes(), panels, looks, width=12)
    assert [axes.get_ylabel() for axes in figure.axes] == ["skill", "DI (%)"] * 2
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "a", "b", "b"]
    first, second = figure.axes[:2]
    np.testing.assert_allclose(first.lines[1].get_ydata(), [0.2, 0.4, 1.0])
    np.testing.assert_allclose(second.lines[0].get_ydata(), [100, 50, 20])
    assert first.get_ylim() == (-1, 1)
    assert legend_lines(figure) == [["LR", "RFR"]]
    assert not first.collections


def test_one_series_has_a_band_and_no_legend():
    figure = plot_sizes(sizes(["LR"]), [Panel("skill", "skill")], {"LR": {}}, width=6)
    assert not figure.legends
    (band,) = figure.axes[0].collections
    vertices = band.get_paths()[0].vertices
    np.testing.assert_allclose([vertices[:, 1].min(), vertices[:, 1].max()], [0.0, 0.7])


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


def test_controls_are_gray_and_do_not_move_the_colors_of_learners():
    names = ["constant", "LR", "shuffled", "RFR", "perfect"]
    assert [is_control(name) for name in names] == [True, False, True, False, True]
    assert is_control("constant median")
    assert not is_control("inconstant")
    assert algorithm_color("RFR", names) == algorithm_color("RFR", ["LR", "RFR"])
    assert len({algorithm_color(name, names) for name in names}) == 3
