"""The first screen: best predictor, its skill, maps, other sites, patients needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit._utils.counts import counted
from dmrifit.predict.controls import is_control
from dmrifit.report.dot_plot import Panel, plot_dots
from dmrifit.report.numerals import fixed
from dmrifit.report.page import Block, Columns, Heading, Lead, Link, Note, Numbers, Picture
from dmrifit.report.style import INK, PALE, PALETTE, dash_of
from dmrifit.study.report.figures import algorithm_color, plot_lesion, plot_sizes
from dmrifit.study.report.sections.patients import best_maps, has_picture, typical_patient
from dmrifit.study.report.sections.scores import (
    SIGNALS,
    SKILL_ENDS,
    TRAINED,
    WHOM,
    capital,
    independent,
    predictor_panels,
)
from dmrifit.study.summaries import Board, averaged, matching, size_summary, unique

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: A further gain of skill that is not worth more patients.
SMALL_GAIN = 0.02
_WIDTH = 6.1  # inches of half a screen
_MOST_COHORTS = 3
_SHARED = "against the fit to the same images"
_INDEPENDENT = "against a second draw of the noise"
_NAMES = {"s2s": "signals to signals", "m2m": "maps to maps"}
_REGIME_LOOKS = {"same": ("link", "o"), "other": ("warn", "s"), "pooled": ("faint", "^")}


def answer(board: Board) -> Iterator[Any]:
    """Say in one screen which predictor is best, how good it is, where, and for how many."""
    first, *others = verdict(board)
    yield Lead(first, " ".join(others))
    if board.best is not None:
        cells = (_skill(board), _example(board), _sites(board), _sizes(board))
        yield Columns(*(Block(*cell) for cell in cells))


def verdict(board: Board) -> list[str]:
    """Name the best predictor, its skill with intervals, and what it does not predict."""
    if board.best is None:
        return ["No algorithm was scored: there are controls alone."]
    name = predictor_words(*board.best)
    rows = _best_rows(board)
    means = matching(rows, parameters="tissue")
    measure = board.skill_column
    numbers = [f"{_interval(row, measure)} in {row['cohort']}" for row in means.to_dict("records")]
    reference = ", against a second draw of the noise" if measure == "skill_independent" else ""
    skill = f"skill of its maps over the best constant{reference}: {'; '.join(numbers)}"
    if board.undecided:
        reason = f"Whether algorithms differ cannot be told from {board.undecided}."
        return [f"Highest mean here: {name}.", f"{capital(skill)}.", reason]
    return [f"Best predictor: {name}.", f"{capital(skill)}.", _parameters_in_words(board, rows)]


def predictor_words(strategy: str, algorithm: str) -> str:
    """Name a predictor in full."""
    return f"{algorithm}, {_NAMES.get(strategy, strategy)}"


def _best_rows(board: Board) -> pd.DataFrame:
    """Rows of the skill of the best predictor, first way of training."""
    return _of_best(board, matching(board.skill, train_on=board.regimes[0]))


def _of_best(board: Board, table: pd.DataFrame) -> pd.DataFrame:
    strategy, algorithm = board.best or ("", "")
    return matching(table, strategy=strategy, algorithm=algorithm)


def _parameters_in_words(board: Board, rows: pd.DataFrame) -> str:
    """Sort the parameters by whether their intervals lie above the constant in every cohort."""
    measure = board.skill_column
    texts: dict[str, list[str]] = {
        "better than guessing in": [], "not shown to be better in": [], "worse in": []
    }  # fmt: skip
    for parameter in board.metrics:
        of_parameter = matching(rows, parameters=parameter)
        verdict = "not shown to be better in"
        if (of_parameter[f"{measure}_low"] > 0).all():
            verdict = "better than guessing in"
        elif (of_parameter[f"{measure}_high"] < 0).all():
            verdict = "worse in"
        texts[verdict].append(parameter)
    listed = [f"{verdict} {', '.join(names)}" for verdict, names in texts.items() if names]
    return f"{capital('; '.join(listed))}." if listed else ""


def _interval(row: dict[Any, Any], measure: str) -> str:
    text = fixed(row[measure], 2)
    if np.isfinite(row[f"{measure}_low"]):
        low, high = (fixed(row[f"{measure}_{side}"], 2) for side in ("low", "high"))
        text += f" [{low}, {high}]"
    return text


def skill_bars(board: Board) -> pd.DataFrame:
    """Tabulate the skill of the best predictor, of signals and of each parameter."""
    import pandas as pd

    rows = _best_rows(board)
    rows = rows[rows["parameters"].isin(["signals", "tissue", *board.metrics])]
    table = leading = rows.assign(series=_SHARED)
    if board.skill_column == "skill_independent":
        # Unseen images share no noise with the inputs: theirs is one skill, shown with the first.
        is_map = rows["parameters"] != "signals"
        leading = pd.concat([rows[~is_map], independent(rows[is_map])])
        leading = leading.assign(series=_INDEPENDENT)
        table = pd.concat([leading, table[is_map]])
    # As the verdict reads them.
    by_parameter = leading.groupby("parameters")["skill"].mean().reindex(board.metrics)
    order = ["signals", "tissue", *by_parameter.sort_values(ascending=False).index]
    names = {"signals": SIGNALS, "tissue": "mean of maps"}
    table = table.assign(row=table["parameters"].replace(names))
    return table.sort_values("parameters", key=lambda p: p.map(order.index), kind="stable")


def _skill(board: Board) -> Iterator[Any]:
    yield Heading("How much better than a constant?")
    table = skill_bars(board)
    shown = board.cohorts[:_MOST_COHORTS]
    styles = {_SHARED: {"color": PALETTE["link"].light}}
    if board.skill_column == "skill_independent":
        styles = {_SHARED: {"color": PALE}, _INDEPENDENT: styles[_SHARED]}
    panels = [
        Panel("skill", "skill", 1.0, SKILL_ENDS, cohort, 2, matching(table, cohort=cohort))
        for cohort in shown
    ]
    figure = plot_dots(matching(table, cohort=shown[0]), panels, styles, width=_WIDTH)
    name = predictor_words(*(board.best or ("", "")))
    alt = f"Skill of {name}, by parameter and cohort"
    yield Picture(figure, alt, name="answer_skill")
    note = "0 is the best constant, 1 perfect; lines are 95 % intervals over patients."
    ends = table.loc[table["cohort"].isin(shown), ["skill_low", "skill_high"]]
    if (ends["skill_low"] < SKILL_ENDS[0]).any() or (ends["skill_high"] > SKILL_ENDS[1]).any():
        note += " Arrows: the interval goes on beyond the axis."
    if len(board.cohorts) > len(shown):
        note += f" In the tables below: {counted(len(board.cohorts) - len(shown), 'more cohort')}."
    yield Note(note)


def _example(board: Board) -> Iterator[Any]:
    yield Heading("What does it look like?")
    patient = typical_patient(board, board.cohorts[0])
    if patient is None:
        yield "No predictions of single voxels were kept: compare(…, keep_predictions=True)."
        return
    if not has_picture(patient):
        yield "Regions without images were compared: there is no map to draw."
        return
    names = [name for name in board.averaged_metrics if name in patient.names]
    rows = matching(_best_rows(board), cohort=patient.cohort).set_index("parameters")
    skill = rows[board.skill_column].reindex(names).fillna(-np.inf)
    best, worst = str(skill.idxmax()), str(skill.idxmin())
    maps = best_maps(board, patient, list(dict.fromkeys([best, worst])))
    figure = plot_lesion(patient, maps, "", width=_WIDTH)
    label = " and ".join(row.name for row in maps)
    is_lesion = board.setting("score_mask", "lesion") == "lesion"
    region = "largest lesion" if is_lesion else "body"
    alt = f"{label} in the {region} of {patient.patient}: reference, prediction and error"
    note = f"{capital(region)} of {patient.cohort}'s median patient, {patient.patient}"
    if len(maps) > 1:
        note += f": {best}, which is predicted best, and {worst}, worst"
    yield Picture(figure, alt, name="answer_maps")
    yield Note(f"{note}.")


def _sites(board: Board) -> Iterator[Any]:
    yield Heading("Does it work at the other site?")
    rows = _of_best(board, board.summary)
    measure, regimes = board.skill_column, board.regimes
    if len(board.cohorts) < 2:
        yield "One cohort was compared, so nothing is known of another site."
        return
    if len(regimes) < 2:
        yield (
            f"Not tried: every predictor was {TRAINED.get(regimes[0], regimes[0])}. To try: "
            "dmrifit benchmark --train-on same,other, with --resynthesize where protocols differ."
        )
        return
    if not rows[measure].notna().any():
        yield "No skill is defined at the other site."
        return
    panel = Panel(measure, "skill of maps, mean over parameters", digits=2)
    figure = _plot_regimes(rows.assign(row=rows["cohort"]), [panel], width=_WIDTH)
    alt = "Skill of the best predictor by tested cohort and cohorts trained on"
    yield Picture(figure, alt, name="answer_sites")


def _plot_regimes(
    table: pd.DataFrame, panels: Sequence[Panel], title: str = "", *, width: float
) -> Figure:
    """Draw scores in a color for each way of training."""
    styles = {}
    for train_on in unique(table["train_on"]):
        color, marker = _REGIME_LOOKS.get(train_on, ("ink", "o"))
        styles[_trained_on(train_on)] = {"color": PALETTE[color].light, "marker": marker}
    table = table.assign(series=table["train_on"].map(_trained_on))
    return plot_dots(table, panels, styles, title, width=width)


def _trained_on(train_on: str) -> str:
    return f"trained on {WHOM.get(train_on, train_on)}"


def _sizes(board: Board) -> Iterator[Any]:
    yield Heading("How many patients are enough?")
    table = _of_best(board, sizes_of(board))
    if not len(table) or table["n_train"].nunique() < 2:
        text = "One number was compared. To see more: dmrifit benchmark --sizes 1,2,3,5."
        yield f"{board.size(board.scores)}. {text}"
        return
    measure = board.skill_column
    table = table[table["cohort"].isin(board.cohorts[:_MOST_COHORTS])].assign(series="best")
    panel = Panel(measure, "skill of maps")
    figure = plot_sizes(table, [panel], {"best": {"color": INK}}, width=_WIDTH)
    alt = "Skill of the best predictor over the number of training patients"
    texts = [
        f"{cohort}: {enough_in_words(rows.set_index('n_train')[measure])}"
        for cohort, rows in table.groupby("cohort", sort=False)
    ]
    yield Picture(figure, alt, name="answer_sizes")
    yield Note(f"{'; '.join(texts)}.")


def enough_in_words(skill: pd.Series) -> str:
    """Say from which number of patients on, the index, more of them gain little skill."""
    skill = skill.dropna().sort_index()
    if len(skill) < 2:
        return "not known"
    gains = skill[::-1].cummax()[::-1] - skill
    enough = int(gains.index[gains < SMALL_GAIN][0])
    if enough == skill.index[-1]:
        return f"still rising at {enough}"
    return f"more than {enough} gain less than {SMALL_GAIN:g}"


def other_sites(board: Board) -> Iterator[Any]:
    """Lay training on other cohorts beside training on the same, for every predictor."""
    if len(board.regimes) < 2:
        return
    rows = board.summary[~board.summary["algorithm"].map(is_control)]
    names = rows["cohort"] + ": " + rows["algorithm"] + " " + rows["strategy"]
    table = rows.assign(row=names).sort_values("row", kind="stable")
    panels = predictor_panels(board, board.skill_column)
    figure = _plot_regimes(table, panels, "Tested cohort: predictor", width=12.4)
    alt = "Scores of every predictor by tested cohort and cohorts trained on"
    yield Picture(figure, alt, name="other_sites")
    if board.setting("resynthesize"):
        yield Note(
            "Protocols differ, so training images of other cohorts were computed for the "
            "tested protocol from the model fitted to theirs."
        )
    sizes = [
        f"{WHOM.get(train_on, train_on)} {board.size(matching(board.scores, train_on=train_on))}"
        for train_on in board.regimes
    ]
    yield Note(f"Training patients: {', '.join(sizes)}. Parameter by parameter:")
    yield Link("tables/parameters.csv", "All numbers: parameters.csv")


def sizes_of(board: Board) -> pd.DataFrame:
    """Summarize the learners by number of training patients, first way of training."""
    scores = averaged(matching(board.evaluation.scores, train_on=board.regimes[0]))
    return size_summary(scores[~scores["algorithm"].map(is_control)])


def curves(board: Board) -> Iterator[Any]:
    """Draw skill and dispersion of every predictor over the number of training patients."""
    if len(unique(board.evaluation.scores["n_train"])) < 2:
        return
    learning, measure = sizes_of(board), board.skill_column
    table = learning.assign(series=learning["algorithm"] + " " + learning["strategy"])
    panels = [
        Panel(measure, "skill of maps", ends=_ends(table[measure].dropna())),
        Panel("dispersion", "DI (%)", 100),
    ]
    looks = {
        row.series: {
            "color": algorithm_color(row.algorithm, board.algorithms),
            "linestyle": dash_of(row.strategy, board.strategies),
        }
        for row in table.drop_duplicates("series").itertuples()
    }
    shown = board.cohorts[:2]
    yield (f"Means over patients, draws and the parameters {', '.join(board.averaged_metrics)}.")
    figure = plot_sizes(table[table["cohort"].isin(shown)], panels, looks, width=12.4)
    yield Picture(figure, "Skill and dispersion over training patients", name="learning")
    yield Numbers("learning", learning)


def _ends(skill: pd.Series) -> tuple[float, float]:
    """Choose the ends of an axis: skill that went astray must not squeeze what lies above it."""
    if not len(skill):
        return 0.0, 1.0
    return max(float(skill.min()), SKILL_ENDS[0]) - 0.05, max(float(skill.max()), 0.0) + 0.05
