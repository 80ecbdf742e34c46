"""What can be concluded: tests between algorithms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dmrifit._utils.counts import counted
from dmrifit.report.figure_gallery import Gallery
from dmrifit.report.html import (
    html_details,
    html_grid,
    html_heading,
    html_note,
    html_paragraph,
    html_table,
)
from dmrifit.report.numerals import fixed, p_value, percent
from dmrifit.stats.metrics import AT_BOUND, METRICS, RANKING_METRIC, MapMetric
from dmrifit.study.report.figures.ranks import plot_critical_difference
from dmrifit.study.report.sections.elements import WHOM, metric_text, section
from dmrifit.study.summaries import Board, matching, unique

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = ["ranks_in_words", "statistics_tables"]

#: Tables of tests by name.
_Tests: TypeAlias = "dict[str, pd.DataFrame]"

ALPHA = 0.05
_FEWEST_RANKS = 3

# Groups of parameters in the tables of tests.
_ALL, _WITHOUT = "all", f"without {AT_BOUND}"


def statistics_tables(board: Board, gallery: Gallery) -> tuple[Markup, dict[str, pd.DataFrame]]:
    """Tabulate the tests between algorithms and draw critical-difference diagrams."""
    if len(board.learners) < 2:
        text = "One algorithm was compared, so there is nothing to test it against."
        return html_paragraph(text), {}
    tested = [m for m in METRICS.values() if m.tested and m.column in board.scores.columns]
    # The one that ranks algorithms comes first.
    metrics = sorted(tested, key=lambda metric: metric.name != RANKING_METRIC)
    tables, tests = {}, {}
    try:
        for metric in metrics:
            tests[metric.name] = board.evaluation.statistics(index=metric.column)
            for name, table in tests[metric.name].items():
                tables[f"statistics_{metric.column}_{name}"] = table
    except ImportError as error:
        return html_paragraph(f"No tests between algorithms: {error}."), {}
    if board.undecided:
        return html_paragraph(
            f"Whether algorithms differ cannot be told from {board.undecided}: there are no "
            "verdicts here. Skill with its intervals stands above; the tests are in the folder "
            "tables beside this page."
        ), tables
    for name in tests:
        tests[name] = _shown(tests[name], board.regimes[0])
    return _conclusions(board, gallery, metrics, tests), tables


def _shown(tests: _Tests, train_on: str) -> _Tests:
    """Take the tests of one way of training; no mean over parameters includes T2v."""
    shown = {}
    for name, table in tests.items():
        rows = matching(table, train_on=train_on)
        if (rows["metrics"] == _WITHOUT).any():
            rows = rows[rows["metrics"] != _ALL]
        shown[name] = rows
    return shown


@section
def _conclusions(
    board: Board, gallery: Gallery, metrics: list[MapMetric], tests: dict[str, _Tests]
) -> Iterator[Markup]:
    """Show the tests of the first way of training: overview, diagrams, pairs, mixed models."""
    yield html_paragraph(
        "Do the algorithms differ? The patient is the unit: each enters with one number per "
        f"algorithm, the mean over {', '.join(board.averaged_metrics)}. Friedman's test asks "
        "whether any differ (Kendall's W is its effect size, 0 to 1), Wilcoxon's signed-rank "
        "test with Holm's correction which pairs do, and two one-sided tests whether pairs are "
        "equivalent: closer than the margin. A large p alone is no proof of equality."
    )
    first = board.regimes[0]
    conditions = board.conditions(matching(board.scores, train_on=first))
    yield html_heading(f"Trained on {WHOM.get(first, first)}; {conditions}")
    overview: list[list[Any]] = []
    tests_by_reason: dict[str, list[str]] = {}
    for metric in metrics:
        for row, reason in _overview(tests[metric.name], metric):
            overview.append(row)
            if reason:
                tests_by_reason.setdefault(reason, []).append(f"{row[0]} of {row[1]} {row[2]}")
    header = ["index", "cohort", "strategy", "parameters", "patients", "Friedman p", "Kendall's W"]
    header += ["pairs that differ", "pairs equivalent", _with_unit("margin", metrics)]
    yield html_table(overview, header, numbers=(4, 5, 6, 7, 8, 9))
    for reason, names in tests_by_reason.items():
        yield html_note(f"{reason} ({', '.join(unique(names))}).")
    diagrams = {}
    for metric in metrics:
        diagrams[metric.name] = _diagrams(board, gallery, tests[metric.name], metric)
    for metric in metrics:
        if diagrams[metric.name]:
            extreme = "largest" if metric.better == "higher" else "smallest"
            title = f"Average ranks by {metric.label} over these parameters, 1 = {extreme}"
            yield html_heading(title)
            yield html_grid(diagrams[metric.name])
            yield from _rank_stability(tests[metric.name], metric)
    if any(diagrams.values()):
        yield html_note(
            f"A bar joins algorithms that Nemenyi's test does not tell apart (α = {ALPHA:g})."
        )
    for metric in metrics:
        pairs = _pair_table(tests[metric.name], metric)
        yield html_details(f"All pairs, {metric.label}", pairs)
        mixed = _mixed_table(tests[metric.name])
        if mixed:
            title = f"Mixed model of {metric.label}, patients as random intercepts"
            yield html_details(title, mixed)
    if len(board.regimes) > 1:
        yield html_note(
            "The tests of other ways of training are in the folder tables beside this page."
        )


def _with_unit(heading: str, metrics: Sequence[MapMetric]) -> str:
    if all(metric.unit == "%" for metric in metrics):
        return f"{heading} (%)"
    return heading


def _overview(tests: _Tests, metric: MapMetric) -> list[tuple[list[Any], str]]:
    """Make a row for each group of tests, with the reason why numbers are missing."""
    keys = ["cohort", "strategy", "metrics"]
    rows = []
    for row in tests["friedman"].sort_values(keys, kind="stable").to_dict("records"):
        group = {key: row[key] for key in keys}
        pairs = matching(tests["pairs"], **group)
        equivalence = matching(tests["equivalence"], **group)
        n_tested = pairs["p_holm"].notna().sum()
        n_different = (pairs["p_holm"] < ALPHA).sum()
        n_equivalent = (equivalence["verdict"] == "equivalent").sum()
        differing, equivalent, margin = "–", "–", np.nan
        if n_tested:
            differing = f"{n_different} of {n_tested}"
        if len(equivalence):
            equivalent = f"{n_equivalent} of {len(equivalence)}"
            margin = equivalence["margin"].iloc[0]
        cells = [
            metric.label,
            *group.values(),
            row["n_patients"],
            p_value(row["p"]),
            fixed(row["kendall_w"], 2),
            differing,
            equivalent,
            metric_text(metric, margin),
        ]
        rows.append((cells, row["reason"]))
    return rows


def _diagrams(board: Board, gallery: Gallery, tests: _Tests, metric: MapMetric) -> list[Markup]:
    """Draw average ranks over all parameters, a diagram for each cohort and strategy."""
    ranks = tests["ranks"]
    grid = []
    group = _ALL
    if (ranks["metrics"] == _WITHOUT).any():
        group = _WITHOUT
    by_group = matching(ranks, metrics=group).groupby(["cohort", "strategy"], sort=False)
    for (cohort, strategy), rows in by_group:
        averages = rows.set_index("algorithm")["average_rank"].astype(float).dropna()
        # Ranks of two are told by their pair alone.
        if len(averages) < _FEWEST_RANKS:
            continue
        pairs = matching(tests["nemenyi"], metrics=group, cohort=cohort, strategy=strategy)
        matrix = pairs.pivot_table(index="a", columns="b", values="p", dropna=False)
        matrix = matrix.reindex(index=averages.index, columns=averages.index)
        # Each pair was tested once, so one half of the matrix is empty.
        matrix = matrix.combine_first(matrix.T)
        scores = matching(board.scores, train_on=board.regimes[0], cohort=cohort)
        n_patients = counted(int(rows["n_patients"].iloc[0]), "patient")
        title = f"{metric.label}: {cohort}, {strategy}\n{n_patients}; "
        figure = plot_critical_difference(
            averages, matrix, title + board.conditions(scores), algorithms=board.algorithms
        )
        name = f"ranks_{metric.column}_{cohort}_{strategy}"
        grid.append(gallery.show(name, figure, f"Average ranks, {title}"))
    return grid


def _rank_stability(tests: _Tests, metric: MapMetric) -> Iterator[Markup]:
    """Say which algorithm ranks first and how surely, and tabulate places over resamples."""
    rows = []
    for keys, group in tests["ranks"].groupby(["cohort", "strategy", "metrics"], sort=False):
        group = group.dropna(subset="average_rank").sort_values("average_rank", kind="stable")
        if len(group) < _FEWEST_RANKS:
            continue
        cohort, strategy, metrics = keys
        pairs = matching(tests["nemenyi"], cohort=cohort, strategy=strategy, metrics=metrics)
        yield html_paragraph(f"{cohort}, {strategy}: {ranks_in_words(group, pairs)}")
        for row in group.to_dict("records"):
            places = f"{row['place']:.0f} ({row['place_low']:.0f} … {row['place_high']:.0f})"
            numbers = [fixed(row["average_rank"], 2), places, percent(row["share_first"])]
            rows.append([cohort, strategy, row["algorithm"], *numbers])
    if rows:
        header = ["cohort", "strategy", "algorithm", "average rank", "place (95 % of resamples)"]
        yield html_details(
            f"Stability of ranks by {metric.label}, patients drawn again",
            html_table(rows, [*header, "first in (%)"], numbers=(3, 4, 5)),
        )


def ranks_in_words(ranks: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Say which algorithm ranks first, how surely, and which are not told apart from it."""
    first = ranks.iloc[0]
    name = first["algorithm"]
    beside = pairs[(pairs["a"] == name) | (pairs["b"] == name)]
    alike = beside[~(beside["p"] <= ALPHA)]
    others = set(alike["a"]) | set(alike["b"])
    names = [other for other in ranks["algorithm"] if other in others - {name}]
    text = (
        f"{name} ranks first, and in {percent(first['share_first'])} % of the resamples of "
        f"{counted(int(first['n_patients']), 'patient')} too"
    )
    if names:
        return f"{text}; not told apart from {', '.join(names)} (Nemenyi's test)."
    return f"{text}; Nemenyi's test tells it apart from all others."


def _pair_table(tests: _Tests, metric: MapMetric) -> Markup:
    """Tabulate difference, effect size and equivalence of every pair of algorithms."""

    def number(value: float) -> str:
        return metric_text(metric, value)

    keys = ["cohort", "strategy", "metrics", "a", "b"]
    equivalence = tests["equivalence"].set_index(keys)
    rows = []
    for row in tests["pairs"].to_dict("records"):
        key = tuple(row[name] for name in keys)
        interval, verdict = "–", "–"
        if key in equivalence.index:
            test = equivalence.loc[key]
            interval = f"{number(test['low'])} … {number(test['high'])}"
            verdict = test["verdict"] or "–"
        effect, low, high = (fixed(row[name], 2) for name in ("rank_biserial", "low", "high"))
        rows.append([
            *key,
            number(row["mean_a"]),
            number(row["mean_b"]),
            number(row["difference"]),
            p_value(row["p_holm"]),
            f"{effect} ({low} … {high})",
            interval,
            verdict,
        ])  # fmt: skip
    header = ["cohort", "strategy", "parameters", "a", "b"]
    header += [_with_unit(name, [metric]) for name in ("mean a", "mean b", "median a − b")]
    header += ["p (Holm)", "rank-biserial (95 % interval)"]
    header += [_with_unit("mean a − b, 90 % interval", [metric]), ""]
    return html_table(rows, header, numbers=range(5, 11))


def _mixed_table(tests: _Tests) -> Markup | None:
    mixed = matching(tests["mixed"], kind="test")
    if not len(mixed):
        return None
    rows = []
    for row in mixed.to_dict("records"):
        words = [row[key] for key in ("cohort", "strategy", "metrics", "term", "scale")]
        numbers = [fixed(row["statistic"], 1), fixed(row["df"], 0), p_value(row["p"])]
        rows.append([*words, *numbers, row["reason"]])
    header = ["cohort", "strategy", "parameters", "term", "scale", "Wald χ²", "df", "p", ""]
    return html_table(rows, header, numbers=(5, 6, 7), words=(8,))
