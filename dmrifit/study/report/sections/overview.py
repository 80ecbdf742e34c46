"""Methods, cohorts, and the table of skill: what stands behind a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dmrifit._utils.counts import counted
from dmrifit.predict.controls import (
    CONTROLS,
    is_control,
)
from dmrifit.report.page import Code, Fold, Heading, Note, Table, Texts
from dmrifit.stats.metrics import MapMetric
from dmrifit.study.comparison import Evaluation
from dmrifit.study.report.sections.elements import TRAINED, capital, metric_text
from dmrifit.study.skill_summary import headline, headline_notes
from dmrifit.study.summaries import KEYS, Board, largest, matching, summary_metrics, unique

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = Texts(__file__)


def introduction(board: Board) -> Iterator[Any]:
    """State the question, the data and the indices in three paragraphs."""
    max_voxels = board.setting("max_voxels")
    voxels = "all voxels"
    if max_voxels:
        voxels = f"at most {counted(max_voxels, 'voxel')}"
    patients = board.scores.groupby("cohort", sort=False)["patient"].nunique()
    counts = []
    for name, n in patients.items():
        noun = "synthetic patient" if name in board.evaluation.synthetic else "patient"
        counts.append(f"{counted(n, noun)} of {name}")
    strategies = [
        _TEXTS["strategies"][name] for name in board.strategies if name in _TEXTS["strategies"]
    ]
    learners = ", ".join(board.learners) or "none"
    regimes = []
    for train_on in board.regimes:
        size = board.size(matching(board.scores, train_on=train_on))
        regimes.append(f"{TRAINED.get(train_on, train_on)} ({size})")
    seed = board.setting("seed")
    draws = counted(board.setting("n_repeats", 1), "draw")
    if seed is not None:
        draws += f", seed {seed}"
    yield _TEXTS(
        "question",
        cohorts=" and ".join(counts),
        voxels=voxels,
        train_mask=board.setting("train_mask", "body"),
        score_mask=board.setting("score_mask", "lesion"),
        regimes=capital("; ".join(regimes)),
        draws=draws,
    )
    yield _TEXTS(
        "algorithms",
        learners=learners,
        strategies="; ".join(strategies) or ", ".join(board.strategies),
    )
    controls = [_TEXTS["controls"][name] for name in CONTROLS if name in board.algorithms]
    if controls:
        yield f"Controls, in gray: {'; '.join(controls)}."
    yield _TEXTS["reference"]


def headline_table(board: Board) -> Iterator[Any]:
    """Tabulate what to read first: skill over the best constant, with intervals."""
    table = headline(board.evaluation.summary())
    yield Table(
        table.itertuples(index=False),
        list(table),
        numbers=range(5, len(table.columns)),
        faint=table["algorithm"].map(is_control),
    )
    for note in headline_notes(board.study, table):
        yield Note(f"{capital(note)}.")


def repeated_summary(evaluations: Sequence[Evaluation]) -> Iterator[Any]:
    """Lay several comparisons of the same question beside each other."""
    import pandas as pd

    if len(evaluations) < 2:
        return
    metrics = summary_metrics(Board(evaluations[0]).summary)
    rows = []
    for evaluation in evaluations:
        board = Board(evaluation)
        summary = board.summary[~board.summary["algorithm"].map(is_control)]
        summary = matching(summary, train_on=board.regimes[0])
        for (cohort, strategy), algorithms in summary.groupby(["cohort", "strategy"], sort=False):
            simulation = board.study.get("cohorts", {}).get(cohort, {}).get("simulation") or {}
            conditions = board.conditions(matching(board.scores, cohort=cohort))
            line = [conditions, cohort, simulation.get("difficulty", "–"), strategy]
            for metric in metrics:
                # A comparison of an earlier version may lack a metric.
                values = algorithms.get(metric.column, pd.Series(dtype=float))
                line.append(_mean_and_sd(metric, values))
            rows.append(line)
    header = ["regions, N, seed", "cohort", "difficulty", "strategy"]
    header += [metric.heading for metric in metrics]
    yield _TEXTS["repeated"]
    yield Table(rows, header, numbers=range(4, len(header)))


def cohort_tables(board: Board) -> Iterator[Any]:
    """Tabulate the cohorts: patients, lesions, protocols, simulation, patients not scored."""
    cells, texts, simulations = [], [], {}
    for name, cohort in board.study.get("cohorts", {}).items():
        protocol = cohort["protocol"]
        counts = cohort["patients"].values()
        echo_times = sorted(set(protocol["te"] or ()))
        cells.append([
            name,
            "synthetic" if cohort.get("synthetic") else "measured",
            len(cohort["patients"]),
            _spread([count["lesion"] for count in counts]),
            _spread([count["body"] for count in counts]),
            ", ".join(f"{b:g}" for b in sorted(set(protocol["b"]))),
            ", ".join(f"{te:g}" for te in echo_times) or "–",
            len(protocol["b"]),
            _clinical(board, name),
        ])  # fmt: skip
        if cohort.get("simulation"):
            simulations[name] = cohort["simulation"]
        # Patients that were left out are named, so that nobody has to count them.
        skipped = cohort.get("skipped") or {}
        if skipped:
            reasons = "; ".join(f"{patient}: {reason}" for patient, reason in skipped.items())
            texts.append(f"Not scored in {name}: {reasons}.")
    if not cells:
        yield "The comparison does not say which cohorts it was made from."
        return
    header = ["cohort", "data", "patients", "lesion voxels,\nmedian (range)"]
    header += ["body voxels,\nmedian (range)", "b (s/mm²)", "TE (ms)"]
    header += ["contrasts", "clinical input"]
    yield Table(cells, header, numbers=(2, 3, 4, 7), words=(5, 8))
    yield from texts
    if simulations:
        yield from _simulations(simulations)


def _simulations(simulations: dict[str, dict[str, Any]]) -> Iterator[Any]:
    """Tabulate how synthetic cohorts were made: one column each, then patient by patient."""
    keys: list[str] = []
    for simulation in simulations.values():
        keys += [key for key, value in simulation.items() if not isinstance(value, dict)]
    rows = []
    for key in dict.fromkeys(keys):
        values = [_plain(simulation.get(key)) for simulation in simulations.values()]
        if any(values):
            rows.append([_TEXTS["simulation"].get(key, key.replace("_", " ")), *values])
    patient_rows = []
    for cohort, simulation in simulations.items():
        for name, patient in simulation.get("patients", {}).items():
            if isinstance(patient, dict):
                patient_rows.append([cohort, name, *map(_plain, patient.values())])
    table = Table(rows, ["", *simulations])
    yield Fold("How the synthetic patients were made", table)
    if patient_rows:
        first = next(iter(next(iter(simulations.values()))["patients"].values()))
        header = ["cohort", "patient", *(str(key).replace("_", " ") for key in first)]
        yield Fold("Each patient", Table(patient_rows, header))


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _clinical(board: Board, cohort: str) -> str:
    """Name the input contrasts: those of the protocol that are not among the unseen ones."""
    protocol = board.study["cohorts"][cohort]["protocol"]
    unseen = matching(board.signals, cohort=cohort)
    if not len(unseen):
        return "–"
    te = protocol["te"] or [float("nan")] * len(protocol["b"])
    # Compared as text, in which NaN is equal to NaN.
    hidden = {(f"{b:g}", f"{t:g}") for b, t in zip(unseen["b"], unseen["te"], strict=True)}
    contrasts = list(zip(protocol["b"], te, strict=True))
    inputs = [(b, t) for b, t in contrasts if (f"{b:g}", f"{t:g}") not in hidden]
    texts = []
    for echo in sorted({t for _, t in inputs}):
        # NaN, of a protocol without echo times, is not equal to itself.
        b_values = [b for b, t in inputs if t == echo or np.isnan(t)]
        text = f"b {', '.join(f'{b:g}' for b in b_values)}"
        if not np.isnan(echo):
            text += f" at TE {echo:g}"
        texts.append(text)
    return "; ".join(texts[:3]) or "–"


def _spread(counts: Sequence[int]) -> str:
    if not counts:
        return "–"
    return f"{int(np.median(counts))} ({min(counts)}–{max(counts)})"


def _mean_and_sd(metric: MapMetric, values: pd.Series) -> str:
    mean = metric_text(metric, values.mean())
    if not metric.with_sd:
        return mean
    return f"{mean} ± {metric_text(metric, values.std())}"


def times(board: Board) -> Iterator[Any]:
    """Tabulate how long training and prediction took."""
    keys = [*KEYS, "patient", "n_train", "repeat", "estimator"]
    # The scores have a row for each parameter, all with the time of the one model.
    once = board.evaluation.scores.drop_duplicates(keys)
    at_most = largest(once).groupby(["strategy", "algorithm"], sort=False)["seconds"].mean()
    total = once.groupby(["strategy", "algorithm"], sort=False)["seconds"].sum()
    pairs = sorted(total.index, key=lambda key: is_control(key[1]))
    rows = [
        {"strategy": strategy, "algorithm": algorithm, "control": is_control(algorithm)}
        | {"mean": at_most[strategy, algorithm], "total": total[strategy, algorithm]}
        for strategy, algorithm in pairs
    ]
    yield Table(
        rows,
        _TEXTS("times", size=board.size(board.scores)),
    )
    text = "Training, prediction and the fit of the prediction, one thread for linear algebra."
    whole = board.study.get("seconds")
    if whole is not None:
        text += f" The last run took {whole:.0f} s in all"
        models = board.study.get("models", {"trained": 0, "reused": 0})
        if models["reused"]:
            text += f", without {counted(models['reused'], 'model')} kept from earlier ones"
        text += "."
    yield text


def origin(board: Board, evaluations: Sequence[Evaluation]) -> Iterator[Any]:
    """Tabulate settings, seeds, versions and commands."""
    study = board.study
    commands = unique(evaluation.study.get("command", "") for evaluation in evaluations)
    commands = [command for command in commands if command]
    if commands:
        yield Heading("Commands" if len(commands) > 1 else "Command")
        yield Code("\n".join(commands))
    if len(evaluations) > 1:
        yield "Settings are those of the first of the comparisons."
    rows = [["date", study.get("date", "")]]
    for key, value in study.get("settings", {}).items():
        if key != "cohorts":
            rows.append([key.replace("_", " "), _setting(key, value)])
    for name, version in study.get("versions", {}).items():
        rows.append([f"version of {name}", version])
    yield Table(rows)
    estimators = study.get("estimators", {})
    if estimators:
        descriptions = [[name, _short(estimators[name])] for name in estimators]
        table = Table(descriptions, ["name", "class and parameters"])
        yield Fold("Estimators", table)


def _setting(key: str, value: Any) -> str:
    if value is None:
        return "all" if key in ("n_train", "max_voxels") else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _short(description: Any) -> str:
    """Write a description of an estimator like a call, without what repeats the protocols."""
    if isinstance(description, dict) and "class" in description:
        inside = description.get("parameters", {})
        shown = [f"{key}={_short(value)}" for key, value in inside.items() if value is not None]
        return f"{description['class'].rpartition('.')[2]}({', '.join(shown)})"
    if isinstance(description, dict) and "protocol" in description:
        return f"<{len(description['protocol']['b'])} contrasts>"
    return str(description)
