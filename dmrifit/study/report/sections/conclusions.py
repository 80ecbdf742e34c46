"""What can be concluded: tests between algorithms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dmrifit._utils.counts import counted
from dmrifit.report.numerals import percent, wording
from dmrifit.report.page import Fold, Grid, Heading, Note, Picture, Table, Texts
from dmrifit.report.style import INK, PANEL, head, new_figure, shared_style
from dmrifit.stats.metrics import AT_BOUND, METRICS, RANKING_METRIC, MapMetric
from dmrifit.study.report.figures import algorithm_color
from dmrifit.study.report.sections.scores import WHOM, metric_format, metric_text
from dmrifit.study.summaries import Board, matching, unique

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_TEXTS = Texts(__file__)
#: Tables of tests by name.
_Tests: TypeAlias = "dict[str, pd.DataFrame]"
ALPHA = 0.05
_FEWEST_RANKS = 3
_GROUP = ["cohort", "strategy", "metrics"]
# Groups of parameters in the tables of tests.
_ALL, _WITHOUT = "all", f"without {AT_BOUND}"


def statistics_tables(board: Board) -> tuple[list[Any], dict[str, pd.DataFrame]]:
    """Tabulate the tests between algorithms and draw critical-difference diagrams."""
    if len(board.learners) < 2:
        return ["One algorithm was compared, so there is nothing to test it against."], {}
    tested = [metric for metric in METRICS.values() if metric.tested]
    # The one that ranks algorithms comes first.
    metrics = sorted(tested, key=lambda metric: metric.name != RANKING_METRIC)
    tables, tests = {}, {}
    try:
        for metric in metrics:
            tests[metric.name] = board.evaluation.statistics(index=metric.column)
            for name, table in tests[metric.name].items():
                tables[f"statistics_{metric.column}_{name}"] = table
    except ImportError as error:
        return [f"No tests between algorithms: {error}."], {}
    if board.undecided:
        text = _TEXTS("undecided", undecided=board.undecided)
        return [text], tables
    for shown in tests.values():
        # Of one way of training; no mean over parameters includes T2v.
        for name, table in shown.items():
            rows = matching(table, train_on=board.regimes[0])
            shown[name] = (
                rows[rows["metrics"] != _ALL] if (rows["metrics"] == _WITHOUT).any() else rows
            )
    return list(_conclusions(board, metrics, tests)), tables


def _conclusions(
    board: Board, metrics: list[MapMetric], tests: dict[str, _Tests]
) -> Iterator[Any]:
    """Show the tests of the first way of training: overview, diagrams, pairs, mixed models."""
    yield _TEXTS("explained", metrics=", ".join(board.averaged_metrics))
    first = board.regimes[0]
    conditions = board.conditions(matching(board.scores, train_on=first))
    yield Heading(f"Trained on {WHOM.get(first, first)}; {conditions}")
    overview = [row for metric in metrics for row in _overview(tests[metric.name], metric)]
    unit = " (%)" if all(metric.unit == "%" for metric in metrics) else ""
    yield Table(overview, f"{_TEXTS['overview']}{unit} {{margin:}}")
    for reason in unique(row["reason"] for row in overview if row["reason"]):
        names = [
            wording("{index} of {cohort} {strategy}", row)
            for row in overview
            if row["reason"] == reason
        ]
        yield Note(f"{reason} ({', '.join(unique(names))}).")
    for metric in metrics:
        yield from _ranks(board, tests[metric.name], metric)
    for metric in metrics:
        yield Fold(f"All pairs, {metric.label}", _pair_table(tests[metric.name], metric))
        mixed = matching(tests[metric.name]["mixed"], kind="test")
        title = f"Mixed model of {metric.label}, patients as random intercepts"
        yield Fold(title, Table(mixed, _TEXTS["mixed"]))
    if len(board.regimes) > 1:
        yield Note(
            "The tests of other ways of training are in the folder tables beside this page."
        )


def _overview(tests: _Tests, metric: MapMetric) -> Iterator[dict[str, Any]]:
    """Make a row for each group of tests, with the reason why numbers are missing."""
    for row in tests["friedman"].sort_values(_GROUP, kind="stable").to_dict("records"):
        group = {key: row[key] for key in _GROUP}
        pairs = matching(tests["pairs"], **group)
        equivalence = matching(tests["equivalence"], **group)
        n_tested = pairs["p_holm"].notna().sum()
        differing, equivalent, margin = "–", "–", np.nan
        if n_tested:
            differing = f"{(pairs['p_holm'] < ALPHA).sum()} of {n_tested}"
        if len(equivalence):
            n_equivalent = (equivalence["verdict"] == "equivalent").sum()
            equivalent = f"{n_equivalent} of {len(equivalence)}"
            margin = equivalence["margin"].iloc[0]
        counts = {"differing": differing, "equivalent": equivalent}
        yield row | counts | {"index": metric.label, "margin": metric_text(metric, margin)}


def _ranks(board: Board, tests: _Tests, metric: MapMetric) -> Iterator[Any]:
    """Draw the average ranks of each cohort and strategy, and say how stable they are."""
    diagrams, sentences = [], []
    places: list[Any] = []
    for keys, rows in tests["ranks"].groupby(_GROUP, sort=False):
        ranks = rows.dropna(subset="average_rank").sort_values("average_rank", kind="stable")
        # Ranks of two are told by their pair alone.
        if len(ranks) < _FEWEST_RANKS:
            continue
        group = dict(zip(_GROUP, keys, strict=True))
        cohort, strategy = group["cohort"], group["strategy"]
        scores = matching(board.scores, train_on=board.regimes[0], cohort=cohort)
        n_patients = counted(int(ranks["n_patients"].iloc[0]), "patient")
        title = f"{metric.label}: {cohort}, {strategy}\n{n_patients}; {board.conditions(scores)}"
        cliques = matching(tests["cliques"], **group)
        figure = plot_critical_difference(ranks, cliques, title, algorithms=board.algorithms)
        name = f"ranks_{metric.column}_{cohort}_{strategy}"
        diagrams.append(Picture(figure, f"Average ranks, {title}", name=name))
        words = ranks_in_words(ranks, matching(tests["nemenyi"], **group))
        sentences.append(f"{cohort}, {strategy}: {words}")
        places += ranks.to_dict("records")
    if diagrams:
        extreme = "largest" if metric.better == "higher" else "smallest"
        yield Heading(f"Average ranks by {metric.label} over these parameters, 1 = {extreme}")
        yield Grid(*diagrams)
        yield Note(
            f"A bar joins algorithms that Nemenyi's test does not tell apart (α = {ALPHA:g})."
        )
        yield from sentences
        title = f"Stability of ranks by {metric.label}, patients drawn again"
        yield Fold(title, Table(places, _TEXTS["places"]))


def ranks_in_words(ranks: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Say which algorithm ranks first, how surely, and which are not told apart from it."""
    first = ranks.iloc[0]
    name = first["algorithm"]
    beside = pairs[(pairs["a"] == name) | (pairs["b"] == name)]
    alike = beside[~(beside["p"] <= ALPHA)]
    others = set(alike["a"]) | set(alike["b"])
    names = [other for other in ranks["algorithm"] if other in others - {name}]
    text = _TEXTS(
        "first",
        name=name,
        share=percent(first["share_first"]),
        patients=counted(int(first["n_patients"]), "patient"),
    )
    if names:
        return f"{text}; not told apart from {', '.join(names)} (Nemenyi's test)."
    return f"{text}; Nemenyi's test tells it apart from all others."


def _pair_table(tests: _Tests, metric: MapMetric) -> Table:
    """Tabulate difference, effect size and equivalence of every pair of algorithms."""
    number = metric_format(metric)
    unit = " (%)" if metric.unit == "%" else ""
    keys, columns = [*_GROUP, "a", "b"], ["low", "high", "verdict"]
    equivalence = tests["equivalence"].set_index(keys)[columns].add_suffix("_test")
    rows = tests["pairs"].join(equivalence, on=keys).to_dict("records")
    for row in rows:
        row["interval"] = wording(f"{{low_test:{number}}} … {{high_test:{number}}}", row)
        row["verdict"] = row["verdict_test"] or "–"
    return Table(rows, _TEXTS("pairs", unit=unit, number=number))


def plot_critical_difference(
    ranks: pd.DataFrame, cliques: pd.DataFrame, title: str, *, algorithms: Sequence[str]
) -> Figure:
    """
    Draw average ranks, the best on top, under bars over those that no test tells apart.

    References
    ----------
    Demšar, Journal of Machine Learning Research 7:1–30, 2006.
    """
    lines = np.arange(len(ranks))
    bars = -1 - np.arange(len(cliques))
    with shared_style({"font.size": 9}):
        height = 1.1 + 0.22 * len(ranks) + 0.15 * len(cliques)
        figure = new_figure(PANEL[0], height, layout="constrained")
        ax = figure.subplots()
        colors = [algorithm_color(name, algorithms) for name in ranks["algorithm"]]
        ax.scatter(ranks["average_rank"], lines, c=colors, s=34, zorder=3)
        ax.vlines(ranks["average_rank"], -len(cliques) - 0.7, lines, colors, linewidth=0.8)
        ax.hlines(bars, cliques["low"], cliques["high"], INK, linewidth=2.5)
        ax.set_yticks(
            lines, list(map("{} {:.1f}".format, ranks["algorithm"], ranks["average_rank"]))
        )
        ax.set(ylim=(len(ranks) - 0.5, -len(cliques) - 0.7), xlabel="average rank")
        ax.grid(axis="x")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        head(ax, title)
    return figure
