"""Critical-difference diagrams: places of ranks, and which algorithms a bar joins."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dmrifit.study.report.figures.colors import algorithm_color
from dmrifit.study.report.figures.ranks import plot_critical_difference

RANKS = pd.Series({"LR": 1.0, "RFR": 2.2, "GBR": 2.8})


def p_values(default, **pairs):
    """Make a table of p-values; pairs are named like LR_RFR."""
    table = pd.DataFrame(default, RANKS.index, RANKS.index)
    for pair, p in pairs.items():
        a, b = pair.split("_")
        table.loc[a, b] = table.loc[b, a] = p
    return table


def bars(figure):
    """List the algorithms that each bar joins, by their ranks."""
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_linewidth() == 2.5]
    return sorted(sorted(line.get_xdata()) for line in lines)


def test_ranks_stand_in_their_order_and_a_bar_joins_a_pair_that_could_not_be_tested():
    figure = plot_critical_difference(RANKS, p_values(0.001, RFR_GBR=np.nan), "DI\nnote")
    (axes,) = figure.axes
    points = np.concatenate([dots.get_offsets() for dots in axes.collections])
    assert sorted(points[:, 0]) == [1.0, 2.2, 2.8]
    assert bars(figure) == [[2.2, 2.8]]
    texts = {text.get_text() for text in axes.texts}
    assert {"LR 1.0", "note"} <= texts
    assert axes.get_title(loc="left") == "DI"


@pytest.mark.parametrize(
    ("alpha", "joined"), [(0.05, [[1.0, 2.2]]), (0.15, []), (0.005, [[1.0, 2.2, 2.8]])]
)
def test_the_level_of_significance_decides_which_pairs_are_told_apart(alpha, joined):
    table = p_values(0.01, LR_RFR=0.1)
    figure = plot_critical_difference(RANKS, table, "DI", alpha=alpha)
    assert [[bar[0], bar[-1]] for bar in bars(figure)] == [[bar[0], bar[-1]] for bar in joined]


def test_a_pair_is_told_apart_by_the_smaller_of_its_two_entries():
    table = p_values(0.001, LR_RFR=0.5)
    table.loc["LR", "RFR"] = 0.001
    assert bars(plot_critical_difference(RANKS, table, "DI")) == []
    table.loc["LR", "RFR"], table.loc["RFR", "LR"] = 0.5, 0.001
    assert bars(plot_critical_difference(RANKS, table, "DI")) == []


def test_algorithms_have_their_colors_of_the_whole_report():
    report = ["constant", "mlNN", "LR", "RFR", "GBR"]
    figure = plot_critical_difference(RANKS, p_values(0.001), "DI", algorithms=report)
    colors = {}
    for dots in figure.axes[0].collections:
        for (x, _), color in zip(dots.get_offsets(), dots.get_facecolor(), strict=True):
            colors[float(x)] = to_hex(color)
    assert colors == {rank: algorithm_color(name, report) for name, rank in RANKS.items()}


def test_the_table_of_p_values_is_left_as_it_was():
    table = p_values(0.001, RFR_GBR=np.nan)
    before = table.copy()
    plot_critical_difference(RANKS, table, "DI")
    pd.testing.assert_frame_equal(table, before)


def test_bars_do_not_depend_on_the_order_in_which_sets_are_listed(monkeypatch):
    ranks = pd.Series({"A": 1.0, "B": 1.0, "C": 2.0, "D": 3.0, "E": 3.5})
    table = pd.DataFrame(1.0, ranks.index, ranks.index)
    bars_of_orders = []
    for cliques in itertools.permutations([("A", "C", "B"), ("A", "D", "C"), ("B", "C"), ("D", "E")]):
        members = [tuple(reversed(clique)) if bars_of_orders else clique for clique in cliques]
        monkeypatch.setattr("scikit_posthocs._plotting._find_maximal_cliques", lambda _, bars=members: bars)
        (axes,) = plot_critical_difference(ranks, table, "DI").axes
        bars = [line.get_xydata().tolist() for line in axes.lines if line.get_linewidth() == 2.5]
        bars_of_orders.append(bars)
    assert all(bars == bars_of_orders[0] for bars in bars_of_orders)
    assert bars_of_orders[0] == [[[1, -1], [2, -1]], [[1, -2], [2, -2]], [[1, -3], [3, -3]], [[3, -1], [3.5, -1]]]
