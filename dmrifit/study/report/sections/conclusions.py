"""What can be concluded: tests between algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.html import (
    html_details,
    html_grid,
    html_heading,
    html_join,
    html_note,
    html_paragraph,
    html_table,
)
from dmrifit.study.report.figures.ranks import plot_critical_difference
from dmrifit.study.report.sections.numerals import decimals, p_value, percent, plural
from dmrifit.study.summaries import WHOM, Board

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = ["INDICES", "statistics_tables"]

#: Columns that are tested, and how they are written.
INDICES = {"dispersion": "DI", "abs_bias": "|BI|"}
ALPHA = 0.05
_FEWEST_RANKS = 3


def statistics_tables(board: Board, gallery: Gallery) -> tuple[Markup, dict[str, pd.DataFrame]]:
    """Tabulate the tests between algorithms and draw critical-difference diagrams."""
    if len(board.learners) < 2:
        return html_paragraph(
            "One algorithm was compared, so there is nothing to test it against."
        ), {}
    tables = {}
    try:
        for index in INDICES:
            for name, table in board.evaluation.statistics(index=index).items():
                tables[f"statistics_{index}_{name}"] = table
    except ImportError as error:
        return html_paragraph(f"No tests between algorithms: {error}."), {}
    text = (
        "Do the algorithms differ? The patient is the unit: each enters with one number per algorithm, the mean over "
        "tissue parameters. Friedman's test asks whether any differ (Kendall's W is its effect size, 0 to 1), "
        "Wilcoxon's signed-rank test with Holm's correction which pairs do, and two one-sided tests whether pairs are "
        "equivalent: closer than the margin. A large p alone is no proof of equality."
    )
    parts: list[Any] = [html_paragraph(text)]
    first = board.regimes[0]
    overview: list[list[Any]] = []
    reasons: dict[str, list[str]] = {}
    for index in INDICES:
        for row, reason in _overview(tables, index, first):
            overview.append(row)
            if reason:
                reasons.setdefault(reason, []).append(f"{row[0]} of {row[1]} {row[2]}")
    header = ["index", "cohort", "strategy", "parameters", "patients", "Friedman p", "Kendall's W"]
    header += ["pairs that differ", "pairs equivalent", "margin (%)"]
    parts.append(
        html_heading(
            f"Trained on {WHOM.get(first, first)}; {board.conditions(_rows(board, first))}"
        )
    )
    parts.append(html_table(overview, header, numbers=(4, 5, 6, 7, 8, 9)))
    parts += [
        html_note(f"{reason} ({', '.join(dict.fromkeys(where))}).")
        for reason, where in reasons.items()
    ]
    drawn = {
        symbol: _diagrams(board, gallery, tables, index, symbol)
        for index, symbol in INDICES.items()
    }
    for symbol, grid in drawn.items():
        if grid:
            parts += [
                html_heading(
                    f"Average ranks by {symbol} over all tissue parameters, 1 = smallest"
                ),
                html_grid(grid),
            ]
    if any(drawn.values()):
        parts.append(
            html_note(
                f"A bar joins algorithms that Nemenyi's test does not tell apart (α = {ALPHA:g})."
            )
        )
    for index, symbol in INDICES.items():
        parts.append(html_details(f"All pairs, {symbol}", _pair_table(tables, index, first)))
        mixed = _mixed_table(tables, index, first)
        if mixed:
            parts.append(
                html_details(f"Mixed model of {symbol}, patients as random intercepts", mixed)
            )
    if len(board.regimes) > 1:
        parts.append(
            html_note(
                "The tests of other ways of training are in the folder tables beside this page."
            )
        )
    return html_join(parts), tables


def _overview(
    tables: dict[str, pd.DataFrame], index: str, train_on: str
) -> list[tuple[list[Any], str]]:
    """Make a row for each cohort, strategy and group of parameters, and say why numbers are missing."""
    keys = ["cohort", "strategy", "metrics"]
    friedman, pairs, equivalence = (
        table[table["train_on"] == train_on]
        for table in (
            tables[f"statistics_{index}_{name}"] for name in ("friedman", "pairs", "equivalence")
        )
    )
    rows = []
    for row in friedman.sort_values(keys, kind="stable").to_dict("records"):
        own, same = (
            table[np.logical_and.reduce([table[key] == row[key] for key in keys])]
            for table in (pairs, equivalence)
        )
        tested = own["p_holm"].notna().sum()
        cells = [
            INDICES[index],
            *(row[key] for key in keys),
            row["n_patients"],
            p_value(row["p"]),
            decimals(row["kendall_w"], 2),
            f"{(own['p_holm'] < ALPHA).sum()} of {tested}" if tested else "–",
            f"{(same['verdict'] == 'equivalent').sum()} of {len(same)}" if len(same) else "–",
            percent(same["margin"].iloc[0] if len(same) else np.nan),
        ]
        rows.append((cells, row["reason"]))
    return rows


def _rows(board: Board, train_on: str) -> pd.DataFrame:
    return board.scores[board.scores["train_on"] == train_on]


def _diagrams(
    board: Board, gallery: Gallery, tables: dict[str, pd.DataFrame], index: str, symbol: str
) -> list[Markup]:
    first = board.regimes[0]
    ranks, tests = (tables[f"statistics_{index}_{name}"] for name in ("ranks", "nemenyi"))
    ranks, tests = (
        table[(table["metrics"] == "all") & (table["train_on"] == first)]
        for table in (ranks, tests)
    )
    grid = []
    for (cohort, strategy), rows in ranks.groupby(["cohort", "strategy"], sort=False):
        averages = rows.set_index("algorithm")["average_rank"].astype(float).dropna()
        if len(averages) < _FEWEST_RANKS:
            continue
        own = tests[(tests["cohort"] == cohort) & (tests["strategy"] == strategy)]
        matrix = own.pivot_table(index="a", columns="b", values="p", dropna=False)
        matrix = matrix.reindex(index=averages.index, columns=averages.index)
        matrix = matrix.combine_first(matrix.T)
        shown = board.scores[
            (board.scores["cohort"] == cohort) & (board.scores["train_on"] == first)
        ]
        title = f"{symbol}: {cohort}, {strategy}\n{plural(int(rows['n_patients'].iloc[0]), 'patient')}; "
        figure = plot_critical_difference(
            averages, matrix, title + board.conditions(shown), algorithms=board.algorithms
        )
        grid.append(
            gallery.show(f"ranks_{index}_{cohort}_{strategy}", figure, f"Average ranks, {title}")
        )
    return grid


def _pair_table(tables: dict[str, pd.DataFrame], index: str, train_on: str) -> Markup:
    keys = ["cohort", "strategy", "metrics", "a", "b"]
    pairs, verdicts = (
        table[table["train_on"] == train_on]
        for table in (tables[f"statistics_{index}_{name}"] for name in ("pairs", "equivalence"))
    )
    verdicts = verdicts.set_index(keys)
    rows = []
    for row in pairs.to_dict("records"):
        key = tuple(row[name] for name in keys)
        same = verdicts.loc[key] if key in verdicts.index else None
        rows.append([
            *key,
            percent(row["mean_a"]),
            percent(row["mean_b"]),
            percent(row["difference"]),
            p_value(row["p_holm"]),
            f"{decimals(row['rank_biserial'], 2)} ({decimals(row['low'], 2)} … {decimals(row['high'], 2)})",
            "–" if same is None else f"{percent(same['low'])} … {percent(same['high'])}",
            "–" if same is None else same["verdict"] or "–",
        ])  # fmt: skip
    header = ["cohort", "strategy", "parameters", "a", "b", "mean a (%)", "mean b (%)"]
    header += [
        "median a − b (%)",
        "p (Holm)",
        "rank-biserial (95 % interval)",
        "mean a − b, 90 % interval (%)",
        "",
    ]
    return html_table(rows, header, numbers=range(5, 11))


def _mixed_table(tables: dict[str, pd.DataFrame], index: str, train_on: str) -> Markup | None:
    mixed = tables[f"statistics_{index}_mixed"]
    tests = mixed[(mixed["kind"] == "test") & (mixed["train_on"] == train_on)]
    if not len(tests):
        return None
    rows = [
        [
            *(row[key] for key in ("cohort", "strategy", "metrics", "term", "scale")),
            decimals(row["statistic"], 1),
            decimals(row["df"], 0),
            p_value(row["p"]),
            row["reason"],
        ]
        for row in tests.to_dict("records")
    ]
    header = ["cohort", "strategy", "parameters", "term", "scale", "Wald χ²", "df", "p", ""]
    return html_table(rows, header, numbers=(5, 6, 7), words=(8,))
