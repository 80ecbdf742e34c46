"""The first screen: best predictor, its skill, other cohorts, patients needed, and its tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from dmrifit._utils.counts import counted
from dmrifit.io.digests import rerun_command
from dmrifit.predict.controls import TO_BEAT, is_control
from dmrifit.report import page, style
from dmrifit.report.dot_plot import Panel, plot_dots
from dmrifit.report.numerals import wording
from dmrifit.stats.metrics import AT_BOUND, METRICS, RANKING_METRIC, MapMetric
from dmrifit.stats.patient_summary import summarize
from dmrifit.study import summaries
from dmrifit.study.report.figures import plot_lesion, plot_sizes, series_looks
from dmrifit.study.report.sections import patients, scores
from dmrifit.study.report.sections.scores import SKILL_ENDS, training_words
from dmrifit.study.summaries import ALPHA, Board, averaged, matching, predictor_words, unique

#: A further gain of skill that is not worth more patients.
SMALL_GAIN = 0.02
_WIDTH = 6.1  # inches of half a screen
_MOST_COHORTS = 3
_SHARED = "against the fit to the same images"
_INDEPENDENT = "against a reference with independent noise"
# By way of training.
_LOOKS = {"same": (style.LINK, "o"), "other": (style.WARN, "s"), "pooled": (style.FAINT, "^")}


_TEXTS = page.Texts(__file__)
#: Tables of tests by name.
_Tests: TypeAlias = "dict[str, pd.DataFrame]"
_FEWEST_RANKS = 3
_GROUP = ["cohort", "strategy", "metrics"]
# Groups of parameters in the tables of tests.
_ALL, _WITHOUT = "all", f"without {AT_BOUND}"


def answer(board: Board) -> Iterator[Any]:
    """Say in one screen which predictor is best, how good it is, where, and for how many."""
    first, *others = verdict(board)
    yield page.Lead(first, " ".join(others))
    if board.best is not None:
        cells = (_skill(board), _example(board), _sites(board), _sizes(board))
        yield page.Columns(*(page.Block(*cell) for cell in cells))


def verdict(board: Board) -> list[str]:
    """Name the best predictor, its skill with intervals, and what it does not predict."""
    if board.best is None:
        return ["No algorithm was scored: there are controls alone."]
    name = predictor_words(*board.best)
    rows = _best_rows(board)
    measure = board.skill_column
    means = matching(rows, parameters="tissue").to_dict("records")
    numbers = "; ".join(wording(f"{{{measure}:.2i}} in {{cohort}}", row) for row in means)
    reference = _INDEPENDENT if measure == "skill_independent" else _TEXTS["shared"]
    skill = f"Skill of its maps over the best constant, {reference}: {numbers}."
    is_credited = ~rows["cohort"].isin(board.unshown["cohort"])
    words = _parameters_in_words(board, rows[is_credited], name)
    first, how = board.standing
    if len(board.regimes) > 1:
        first = f"{first.removesuffix('.')}; {training_words(board.regimes[0])}."
    sentences = [first, skill, f"{how} {words.strip()}".strip()]
    place = 2 if is_credited.any() else 0
    for row in board.unshown[::-1].to_dict("records"):
        floor = _TEXTS("floor" if row["floor_signal_skill"] > 0 else "zero", **row)
        floor += "" if np.isfinite(row["signal_skill_low"]) else _TEXTS["no_interval"]
        # A skill below 0 needs no explanation.
        end = _TEXTS("explained_by", **row) if row["skill"] > 0 else "."
        sentences.insert(place, _TEXTS("unshown", name=name, floor=floor, **row) + end)
    controls, best = board.skills(TO_BEAT), board.skills([board.best[1]])[board.best]
    if controls.max() > best:
        names = predictor_words(*controls.idxmax())
        skill = summaries.SKILL_NAMES[measure]
        text = _TEXTS("beaten", control=names, skill=skill, mean=controls.max(), best=best)
        sentences.insert(0, text + "".join(_exceptions(board)))
    return sentences


def _exceptions(board: Board) -> Iterator[str]:
    """Name the cohorts in which an algorithm is better than every control."""
    for cohort in board.cohorts:
        learned = board.skills(board.learners, cohort=cohort)
        control = board.skills(TO_BEAT, cohort=cohort).max()
        if learned.max() > control:
            name = predictor_words(*learned.idxmax())
            yield _TEXTS("but_in", cohort=cohort, name=name, skill=learned.max(), control=control)


def _best_rows(board: Board) -> pd.DataFrame:
    """Rows of the skill of the best predictor, first way of training."""
    return patients.of_best(board, matching(board.skill, train_on=board.regimes[0]))


def _parameters_in_words(board: Board, rows: pd.DataFrame, name: str) -> str:
    """Sort the parameters by whether their intervals are above the constant in all cohorts."""
    measure = board.skill_column
    texts: dict[str, list[str]] = {}
    for parameter in [name for name in board.parameters if name in set(rows["parameters"])]:
        of_parameter = matching(rows, parameters=parameter)
        verdict = "not shown to be better in"
        if (of_parameter[f"{measure}_low"] > 0).all():
            verdict = "better in"
        elif (of_parameter[f"{measure}_high"] < 0).all():
            verdict = "worse in"
        texts.setdefault(verdict, []).append(parameter)
    # In the order better, not shown, worse.
    listed = "; ".join(f"{verdict} {', '.join(texts[verdict])}" for verdict in sorted(texts))
    left_out = [name for name in board.parameters if name not in board.averaged_metrics]
    means = f" No mean includes {' or '.join(left_out)}." if left_out else ""
    once = averaged(board.scores).drop_duplicates(["cohort", "patient", "metric"])
    shares = once.groupby(["metric", "cohort"], sort=False)["at_bound"].mean()
    most = shares[shares > 0.5].items()
    if bounded := ", ".join(f"{key[0]} ({100 * share:.0f} % in {key[1]})" for key, share in most):
        means += " " + _TEXTS("at_bounds", names=bounded)
    cohorts = " and in ".join(unique(rows["cohort"]))
    return (_TEXTS("listed", name=name, cohorts=cohorts, listed=listed) if listed else "") + means


def skill_bars(board: Board) -> pd.DataFrame:
    """Tabulate the skill of the best predictor, of signals and of each parameter."""
    rows = _best_rows(board)
    rows = rows[rows["parameters"].isin(["signals", "tissue", *board.parameters])]
    table = leading = rows.assign(series=_SHARED)
    if board.skill_column == "skill_independent":
        # Unseen images share no noise with the inputs: theirs is one skill, shown with the first.
        is_map = rows["parameters"] != "signals"
        leading = pd.concat([rows[~is_map], scores.independent(rows[is_map])])
        leading = leading.assign(series=_INDEPENDENT)
        table = pd.concat([leading, table[is_map]])
    # By the skill that the verdict names.
    by_parameter = leading.groupby("parameters")["skill"].mean().reindex(board.parameters)
    order = ["signals", "tissue", *by_parameter.sort_values(ascending=False).index]
    names = {"signals": scores.SIGNALS, "tissue": "mean of maps"}
    table = table.assign(row=table["parameters"].replace(names))
    return table.sort_values("parameters", key=lambda p: p.map(order.index), kind="stable")


def _skill(board: Board) -> Iterator[Any]:
    yield page.Heading("How much better than a constant?")
    table = skill_bars(board)
    shown = board.cohorts[:_MOST_COHORTS]
    styles = {_SHARED: {"color": style.LINK}}
    if board.skill_column == "skill_independent":
        styles = {_SHARED: {"color": style.PALE}, _INDEPENDENT: styles[_SHARED]}
    panels = [
        Panel("skill", "skill", 1.0, SKILL_ENDS, cohort, 2, matching(table, cohort=cohort))
        for cohort in shown
    ]
    # One cohort alone is narrow enough for a phone, where a wider figure would be cut.
    width = min(_WIDTH, 2.0 + 2.4 * len(shown))
    figure = plot_dots(matching(table, cohort=shown[0]), panels, styles, width=width)
    yield _TEXTS.picture("answer_skill", figure, name=predictor_words(*(board.best or ("", ""))))
    note = _TEXTS["axis"]
    if len(board.cohorts) > len(shown):
        note += f" In the tables below: {counted(len(board.cohorts) - len(shown), 'more cohort')}."
    yield page.Note(note)


def _example(board: Board) -> Iterator[Any]:
    yield page.Heading("What does it look like?")
    patient = patients.typical_patient(board, board.cohorts[0])
    if patient is None:
        yield _TEXTS["not_kept"]
        return
    if not patients.has_picture(patient):
        yield _TEXTS["regions"]
        return
    names = [name for name in board.averaged_metrics if name in patient.names]
    rows = matching(_best_rows(board), cohort=patient.cohort).set_index("parameters")
    skill = rows[board.skill_column].reindex(names).fillna(-np.inf)
    best, worst = str(skill.idxmax()), str(skill.idxmin())
    maps = patients.best_maps(board, patient, list(dict.fromkeys([best, worst])))
    figure = plot_lesion(patient, maps, "", width=_WIDTH)
    label = " and ".join(row.name for row in maps)
    region = {"lesion": "largest lesion"}.get(board.setting("score_mask", "lesion"), "body")
    values = {"label": label, "region": region, "patient": patient.patient}
    note = page.capital(_TEXTS("example", cohort=patient.cohort, **values))
    if len(maps) > 1:
        note += _TEXTS("extremes", best=best, worst=worst)
        if others := [name for name in patient.names if name not in names]:
            note += f", without {', '.join(others)}, which the means leave out"
    yield _TEXTS.picture("answer_maps", figure, **values)
    yield page.Note(f"{note}. Plain gray: no E.")


def _sites(board: Board) -> Iterator[Any]:
    yield page.Heading("Does it work in the other cohort?")
    rows = patients.of_best(board, board.summary)
    measure, regimes = board.skill_column, board.regimes
    if len(board.cohorts) < 2:
        yield "One cohort was compared, so nothing is known about other cohorts."
        return
    if len(regimes) < 2:
        yield _TEXTS("not_tried", trained=training_words(regimes[0]))
        yield page.Code(rerun_command(board.study, *_TEXTS["rerun_cohorts"]))
        return
    if not rows[measure].notna().any():
        yield "No skill is defined in the other cohort."
        return
    panel = Panel(measure, summaries.SKILL_NAMES[measure], digits=2)
    figure = _plot_regimes(board, rows.assign(row=rows["cohort"]), [panel], width=_WIDTH)
    yield _TEXTS.picture("answer_sites", figure, constant=board.constant.partition(",")[0])


def _plot_regimes(
    board: Board, table: pd.DataFrame, panels: Sequence[Panel], title: str = "", *, width: float
) -> style.Figure:
    """Draw scores in a color for each way of training."""
    names, styles = {}, {}
    for train_on in unique(table["train_on"]):
        size = board.size(matching(board.scores, train_on=train_on))
        names[train_on] = f"trained on {training_words(train_on, 'whom')}, {size}"
        color, marker = _LOOKS.get(train_on, (style.INK, "o"))
        styles[names[train_on]] = {"color": color, "marker": marker}
    table = table.assign(series=table["train_on"].map(names))
    return plot_dots(table, panels, styles, title, width=width)


def _sizes(board: Board) -> Iterator[Any]:
    yield page.Heading("How many patients are enough?")
    table = patients.of_best(board, sizes_of(board))
    if (table.groupby("cohort")["n_train"].nunique() < 2).all():
        yield f"{_TEXTS['one_size']} ({board.size(board.scores)})."
        # That every cohort and way of training has.
        largest = board.scores["n_train"].min()
        if largest > 1:
            sizes = ",".join(f"{n:g}" for n in (1, 2, 3, 5) if n < largest) + f",{largest:g}"
            python = f'n_train=[{sizes}], out="study-sizes"'
            options = f"--sizes {sizes} --out study-sizes"
            yield from ("To see more:", page.Code(rerun_command(board.study, options, python)))
        return
    measure = board.skill_column
    table = table[table["cohort"].isin(board.cohorts[:_MOST_COHORTS])].assign(series="best")
    panel = Panel(measure, summaries.SKILL_NAMES[measure])
    figure = plot_sizes(table, [panel], {"best": {"color": style.INK}}, width=_WIDTH)
    scored = patients.of_best(board, matching(board.evaluation.scores, train_on=board.regimes[0]))
    by = ["cohort", "patient", "metric"]
    gains = averaged(scored[scored["cohort"].isin(table["cohort"])].dropna(subset=measure))
    gains = gains.groupby([*by, "n_train"], as_index=False)[measure].mean()
    last = gains.groupby(by).transform("last")
    gains = gains.assign(gain=last[measure] - gains[measure], most=last["n_train"])
    texts = [enough_in_words(rows) for _, rows in gains.query("n_train < most").groupby("cohort")]
    yield _TEXTS.picture("answer_sizes", figure)
    name, skill = predictor_words(*(board.best or ("", ""))), summaries.SKILL_NAMES[measure]
    told = {"constant": board.constant.partition(",")[0], "gains": "; ".join(texts) or "not known"}
    yield page.Note(_TEXTS("gain", name=name, skill=skill, **told))


def enough_in_words(gains: pd.DataFrame) -> str:
    """
    Say from which number of training patients on the largest number gains below `SMALL_GAIN`.

    `gains` is what the largest number, `most`, gains over a smaller one, `n_train`, patient by
    patient; what its interval does not show is not said.
    """
    gains = gains[gains["most"] == gains["most"].max()].sort_values("n_train", kind="stable")
    means = summarize(gains, ["cohort", "most", "n_train"], ["gain"], n_bootstrap=2000)
    # All larger numbers gain as little.
    enough = means[(means["gain_high"] < SMALL_GAIN)[::-1].cummin()[::-1]]
    row = (enough if len(enough) else means.iloc[-1:]).iloc[0].to_dict()
    kind = "enough" if len(enough) else "rising" if row["gain_low"] > 0 else "untold"
    # A digit more where it decides the sign.
    return _TEXTS(kind, small=SMALL_GAIN, digits=2 + (0 < abs(row["gain_low"]) < 0.005), **row)


def other_sites(board: Board) -> Iterator[Any]:
    """Lay training on other cohorts beside training on the same, for every predictor."""
    if len(board.regimes) < 2:
        return
    rows = board.summary[~board.summary["algorithm"].map(is_control)]
    names = rows["cohort"] + ": " + rows["algorithm"] + " " + rows["strategy"]
    table = rows.assign(row=names).sort_values("row", kind="stable")
    panels = scores.predictor_panels(board, board.skill_column)
    figure = _plot_regimes(board, table, panels, "Tested cohort: predictor", width=12.4)
    yield _TEXTS.picture("other_sites", figure, constant=board.constant)
    if board.setting("resynthesize"):
        yield page.Note(_TEXTS["resynthesized"])
    yield page.Link("tables/parameters.csv", "All numbers, by parameter: parameters.csv")


def sizes_of(board: Board) -> pd.DataFrame:
    """Summarize the learners by number of training patients, first way of training."""
    rows = averaged(matching(board.evaluation.scores, train_on=board.regimes[0]))
    return summaries.size_summary(rows[~rows["algorithm"].map(is_control)])


def curves(board: Board) -> Iterator[Any]:
    """Draw skill and dispersion of every predictor over the number of training patients."""
    if (board.evaluation.scores.groupby(["train_on", "cohort"])["n_train"].nunique() < 2).all():
        return
    learning, measure = sizes_of(board), board.skill_column
    table = learning.assign(series=learning["algorithm"] + " " + learning["strategy"])
    panels = [
        Panel(measure, summaries.SKILL_NAMES[measure], ends=_ends(table[measure].dropna())),
        Panel("dispersion", "DI (%)", 100),
    ]
    looks = series_looks(table, board.learners, board.strategies, "linestyle")
    yield (f"Means over patients, draws and the parameters {', '.join(board.averaged_metrics)}.")
    figure = plot_sizes(table[table["cohort"].isin(board.cohorts[:2])], panels, looks, width=12.4)
    yield _TEXTS.picture("learning", figure, constant=board.constant)
    yield page.Numbers("learning", learning)


def _ends(skill: pd.Series) -> tuple[float, float]:
    """Choose the ends of an axis of skill: −1.05 or above unless half of the values are below."""
    if not len(skill):
        return 0.0, 1.0
    lowest, middle, highest = skill.quantile((0.0, 0.5, 1.0))
    return max(lowest, min(SKILL_ENDS[0], middle)) - 0.05, max(highest, 0.0) + 0.05


def statistics_tables(board: Board) -> tuple[list[Any], dict[str, pd.DataFrame]]:
    """Tabulate the tests between algorithms and draw critical-difference diagrams."""
    if len(board.learners) < 2:
        return ["One algorithm was compared, so there is nothing to test it against."], {}
    tested = [metric for metric in METRICS.values() if metric.tested]
    # The one that ranks algorithms comes first.
    metrics = sorted(tested, key=lambda metric: metric.name != RANKING_METRIC)
    tables, tests = ({"statistics_best": board.rivals} if board.best else {}), {}
    try:
        for metric in metrics:
            tests[metric.name] = board.evaluation.statistics(index=metric.column)
            for name, table in tests[metric.name].items():
                tables[f"statistics_{metric.column}_{name}"] = table
    except ImportError as error:
        return [f"No tests between algorithms: {error}."], {}
    if board.undecided:
        return [_TEXTS("undecided", undecided=page.capital(board.undecided))], tables
    for shown in tests.values():
        # Of one way of training; no mean over parameters includes T2v.
        for name, table in shown.items():
            rows = matching(table, train_on=board.regimes[0])
            if (rows["metrics"] == _WITHOUT).any():
                rows = rows[rows["metrics"] != _ALL]
            shown[name] = rows
    return list(_conclusions(board, metrics, tests)), tables


def _conclusions(
    board: Board, metrics: list[MapMetric], tests: dict[str, _Tests]
) -> Iterator[Any]:
    """Show the tests of the first way of training: overview, diagrams, pairs, mixed models."""
    yield _TEXTS("explained", metrics=", ".join(board.averaged_metrics))
    first = board.regimes[0]
    conditions = board.conditions(matching(board.scores, train_on=first))
    yield page.Heading(f"Trained on {training_words(first, 'whom')}; {conditions}")
    overview = [row for metric in metrics for row in _overview(tests[metric.name], metric)]
    yield page.Table(overview, _TEXTS["overview"])
    reasons: dict[str, list[str]] = {}
    for row in overview:
        name = wording("{index} of {cohort} {strategy}", row)
        reasons.setdefault(row["reason"], []).append(name)
    for reason, names in reasons.items():
        if reason:
            yield page.Note(f"{reason} ({', '.join(unique(names))}).")
    for metric in metrics:
        yield from _ranks(board, tests[metric.name], metric)
    for metric in metrics:
        yield page.Fold(f"All pairs, {metric.label}", _pair_table(tests[metric.name], metric))
        mixed = matching(tests[metric.name]["mixed"], kind="test")
        title = f"Mixed model of {metric.label}, patients as random intercepts"
        yield page.Fold(title, page.Table(mixed, _TEXTS["mixed"]))
    if len(board.regimes) > 1:
        yield page.Note(_TEXTS["other_regimes"])


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
        # The least p value that signed ranks can have, after Holm's correction.
        if n_tested * 2.0 ** (1 - row["n_patients"]) >= ALPHA:
            differing = "too few patients"
        if len(equivalence):
            n_equivalent = (equivalence["verdict"] == "equivalent").sum()
            equivalent = f"{n_equivalent} of {len(equivalence)}"
            margin = equivalence["margin"].iloc[0]
        counts = {"differing": differing, "equivalent": equivalent}
        yield row | counts | {"index": metric.label, "margin": scores.metric_text(metric, margin)}


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
        rows = matching(board.scores, train_on=board.regimes[0], cohort=cohort)
        n_patients = counted(int(ranks["n_patients"].iloc[0]), "patient")
        title = f"{metric.label}: {cohort}, {strategy}\n{n_patients}; {board.conditions(rows)}"
        cliques = matching(tests["cliques"], **group)
        figure = plot_critical_difference(ranks, cliques, title, learners=board.learners)
        values = {"column": metric.column, "title": title, **group}
        diagrams.append(_TEXTS.picture("ranks", figure, **values))
        words = ranks_in_words(ranks, matching(tests["nemenyi"], **group))
        sentences.append(f"{cohort}, {strategy}: {words}")
        places += ranks.to_dict("records")
    if diagrams:
        extreme = "largest" if metric.better == "higher" else "smallest"
        yield page.Heading(f"Average ranks by {metric.label} over these parameters, 1 = {extreme}")
        yield page.Grid(*diagrams)
        yield page.Note(_TEXTS("bars", alpha=ALPHA))
        yield from sentences
        title = f"Stability of ranks by {metric.label}, patients drawn again"
        yield page.Fold(title, page.Table(places, _TEXTS["places"]))


def ranks_in_words(ranks: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Say which algorithm ranks first, how surely, and which are not told apart from it."""
    first = ranks.iloc[0]
    name = first["algorithm"]
    beside = pairs[(pairs["a"] == name) | (pairs["b"] == name)]
    alike = beside[~(beside["p"] <= ALPHA)]
    others = set(alike["a"]) | set(alike["b"])
    names = [other for other in ranks["algorithm"] if other in others - {name}]
    text = _TEXTS("first", **first)
    if names:
        return f"{text}; not told apart from {', '.join(names)} (Nemenyi's test)."
    return f"{text}; Nemenyi's test tells it apart from all others."


def _pair_table(tests: _Tests, metric: MapMetric) -> page.Table:
    """Tabulate difference, effect size and equivalence of every pair of algorithms."""
    number = scores.metric_format(metric)
    unit = " (%)" if metric.unit == "%" else ""
    keys, columns = [*_GROUP, "a", "b"], ["mean_difference_low", "mean_difference_high", "verdict"]
    equivalence = tests["equivalence"].set_index(keys)[columns]
    rows = tests["pairs"].join(equivalence, on=keys).to_dict("records")
    return page.Table(rows, _TEXTS("pairs", unit=unit, number=number))


def plot_critical_difference(
    ranks: pd.DataFrame, cliques: pd.DataFrame, title: str, *, learners: Sequence[str]
) -> style.Figure:
    """
    Draw average ranks, the best on top, under bars over those that no test tells apart.

    References
    ----------
    Demšar, Journal of Machine Learning Research 7:1–30, 2006.
    """
    lines = np.arange(len(ranks))
    bars = -1 - np.arange(len(cliques))
    size = style.PANEL[0], 1.1 + 0.22 * len(ranks) + 0.15 * len(cliques)
    with style.drawing(size, (1, 1), {"font.size": 9}) as (figure, [[ax]]):
        colors = [style.method_color(name, learners) for name in ranks["algorithm"]]
        ax.scatter(ranks["average_rank"], lines, c=colors, s=34, zorder=3)
        ax.vlines(ranks["average_rank"], -len(cliques) - 0.7, lines, colors, linewidth=0.8)
        ax.hlines(bars, cliques["low"], cliques["high"], style.INK, linewidth=2.5)
        names = map("{} {:.1f}".format, ranks["algorithm"], ranks["average_rank"])
        style.name_rows(ax, lines, list(names))
        ax.set(ylim=(len(ranks) - 0.5, -len(cliques) - 0.7), xlabel="average rank")
        style.head(ax, title)
    return figure
