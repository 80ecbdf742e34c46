"""What can be concluded: tests between algorithms, and the claims of the study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit.evaluation import Evaluation
from dmrifit.pages import (
    html_card,
    html_details,
    html_grid,
    html_heading,
    html_join,
    html_note,
    html_paragraph,
    html_table,
)
from dmrifit.plotting import plot_critical_difference
from dmrifit.sections.gallery import Gallery
from dmrifit.sections.numerals import decimals, p_value, percent, plural
from dmrifit.summaries import WHOM, Board

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = ["INDICES", "claims_table", "statistics_tables"]

#: Columns that are tested, and how they are written.
INDICES = {"dispersion": "DI", "abs_bias": "|BI|"}
#: Fewer comparisons decide no claim.
LEAST_RUNS = 3
_FEWEST_RANKS = 3
_KINDS = {"holds": "good", "does not hold": "bad", "cannot be told": "neutral"}
_CARD_ROWS = (
    ("study", "study"),
    ("ours", "ours"),
    ("rule", "rule"),
    ("reason", "reason"),
    ("readings", "readings"),
)


def statistics_tables(board: Board, gallery: Gallery) -> tuple[Markup, dict[str, pd.DataFrame]]:
    """
    Tabulate the tests between algorithms and draw critical-difference diagrams.

    Parameters
    ----------
    board : Board
        The comparison.
    gallery : Gallery
        Takes the figures.

    Returns
    -------
    html : Markup
        Tables and diagrams; one sentence where nothing can be tested.
    tables : dict of str to DataFrame
        All tables, to be written beside the page.
    """
    if len(board.learners) < 2:
        return html_paragraph("One algorithm was compared, so there is nothing to test it against."), {}
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
    overview = [row for index in INDICES for row in _overview(tables, index)]
    header = ["index", "parameters", "cohort", "strategy", "trained on", "patients", "Friedman p", "Kendall's W"]
    header += ["pairs that differ", "pairs equivalent", "margin (%)", ""]
    parts.append(html_table(overview, header, numbers=(5, 6, 7, 8, 9, 10), words=(11,)))
    first = board.regimes[0]
    for index, symbol in INDICES.items():
        grid = _diagrams(board, gallery, tables, index, symbol)
        if grid:
            parts += [html_heading(f"Average ranks by {symbol}, 1 = smallest"), html_grid(grid)]
    parts.append(
        html_note(
            f"All tissue parameters, trained on {WHOM.get(first, first)}. A bar joins algorithms that Nemenyi's test "
            "does not tell apart (α = .05)."
        )
    )
    for index, symbol in INDICES.items():
        parts.append(html_details(f"All pairs, {symbol}", _pair_table(tables, index)))
        mixed = _mixed_table(tables, index)
        if mixed:
            parts.append(html_details(f"Mixed model of {symbol}, patients as random intercepts", mixed))
    return html_join(parts), tables


def claims_table(evaluations: Sequence[Evaluation]) -> tuple[Markup, pd.DataFrame | None]:
    """
    Tabulate the claims of the published study beside what these comparisons show.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        All comparisons of the report.

    Returns
    -------
    html : Markup
        The board.
    table : DataFrame or None
        The same as a table, None where nothing can be judged.
    """
    from dmrifit.claims import claims_board

    try:
        table = claims_board(evaluations)
    except ValueError as error:
        return html_paragraph(f"The claims cannot be judged: {error}."), None
    n_runs = int(table["n_runs"].max()) if len(table) else 0
    text = (
        f"{plural(len(table), 'claim')} of Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025, judged by "
        f"{plural(len(evaluations), 'comparison')}. Claims are findings to be checked, not targets: each card has the "
        "study's figure, ours, the rule that decides, and the reason found in the numbers."
    )
    if n_runs < LEAST_RUNS:
        text += (
            f" A verdict needs at least {LEAST_RUNS} seeds that agree, and claims that compare the strategies need "
            "training on body and on lesion (and, for synthetic cohorts, both difficulties). Name the folders of all "
            "comparisons: dmrifit report FOLDER FOLDER …"
        )
    rows = [[row["claim"], row["statement"], row["verdict"]] for row in table.to_dict("records")]
    cards = [
        html_card(
            f"{row['claim']}. {row['statement']}",
            row["verdict"],
            [(name, row[key]) for name, key in _CARD_ROWS if str(row.get(key, "")).strip()],
            kind=_KINDS.get(row["verdict"], "open"),
        )
        for row in table.to_dict("records")
    ]
    overview = html_table(rows, ["", "claim", "verdict"], words=(1, 2))
    return html_join(
        [html_paragraph(text), overview, html_details("Each claim with its evidence", html_join(cards))]
    ), table


def _overview(tables: dict[str, pd.DataFrame], index: str) -> list[list[Any]]:
    keys = ["metrics", "cohort", "strategy", "train_on"]
    pairs = tables[f"statistics_{index}_pairs"]
    equivalence = tables[f"statistics_{index}_equivalence"]
    rows = []
    for row in tables[f"statistics_{index}_friedman"].sort_values(keys, kind="stable").to_dict("records"):
        own, same = (
            table[np.logical_and.reduce([table[key] == row[key] for key in keys])] for table in (pairs, equivalence)
        )
        tested = own["p_holm"].notna().sum()
        margin = same["margin"].iloc[0] if len(same) else np.nan
        rows.append([
            INDICES[index],
            *(row[key] for key in keys),
            row["n_patients"],
            p_value(row["p"]),
            decimals(row["kendall_w"], 2),
            f"{(own['p_holm'] < 0.05).sum()} of {tested}" if tested else "–",
            f"{(same['verdict'] == 'equivalent').sum()} of {len(same)}" if len(same) else "–",
            percent(margin),
            row["reason"],
        ])  # fmt: skip
    return rows


def _diagrams(board: Board, gallery: Gallery, tables: dict[str, pd.DataFrame], index: str, symbol: str) -> list[Markup]:
    first = board.regimes[0]
    ranks, tests = (tables[f"statistics_{index}_{name}"] for name in ("ranks", "nemenyi"))
    ranks, tests = (table[(table["metrics"] == "all") & (table["train_on"] == first)] for table in (ranks, tests))
    grid = []
    for (cohort, strategy), rows in ranks.groupby(["cohort", "strategy"], sort=False):
        averages = rows.set_index("algorithm")["average_rank"].astype(float).dropna()
        if len(averages) < _FEWEST_RANKS:
            continue
        own = tests[(tests["cohort"] == cohort) & (tests["strategy"] == strategy)]
        matrix = own.pivot_table(index="a", columns="b", values="p", dropna=False)
        matrix = matrix.reindex(index=averages.index, columns=averages.index)
        matrix = matrix.combine_first(matrix.T)
        shown = board.scores[(board.scores["cohort"] == cohort) & (board.scores["train_on"] == first)]
        title = f"{symbol}: {cohort}, {strategy}\n{plural(int(rows['n_patients'].iloc[0]), 'patient')}; "
        figure = plot_critical_difference(
            averages, matrix, title + board.conditions(shown), algorithms=board.algorithms
        )
        grid.append(gallery.show(f"ranks_{index}_{cohort}_{strategy}", figure, f"Average ranks, {title}"))
    return grid


def _pair_table(tables: dict[str, pd.DataFrame], index: str) -> Markup:
    keys = ["metrics", "cohort", "strategy", "train_on", "a", "b"]
    pairs = tables[f"statistics_{index}_pairs"]
    verdicts = tables[f"statistics_{index}_equivalence"].set_index(keys)
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
    header = ["parameters", "cohort", "strategy", "trained on", "a", "b", "mean a (%)", "mean b (%)"]
    header += ["median a − b (%)", "p (Holm)", "rank-biserial (95 % interval)", "mean a − b, 90 % interval (%)", ""]
    return html_table(rows, header, numbers=range(6, 12))


def _mixed_table(tables: dict[str, pd.DataFrame], index: str) -> Markup | None:
    mixed = tables.get(f"statistics_{index}_mixed")
    if mixed is None or not len(mixed):
        return None
    tests = mixed[mixed["kind"] == "test"]
    if not len(tests):
        return None
    rows = [
        [
            *(row[key] for key in ("metrics", "cohort", "strategy", "train_on", "term", "scale")),
            decimals(row["statistic"], 1),
            decimals(row["df"], 0),
            p_value(row["p"]),
            row["reason"],
        ]
        for row in tests.to_dict("records")
    ]
    header = ["parameters", "cohort", "strategy", "trained on", "term", "scale", "Wald χ²", "df", "p", ""]
    return html_table(rows, header, numbers=(6, 7, 8), words=(9,))
