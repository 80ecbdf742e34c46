"""Methods, cohorts, and the table of skill: what stands behind a report."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit._utils.counts import counted
from dmrifit.predict.controls import CONTROLS, is_control
from dmrifit.report.numerals import wording
from dmrifit.report.page import Code, Fold, Heading, Note, Table, Texts, capital
from dmrifit.study import summaries
from dmrifit.study.comparison import Evaluation
from dmrifit.study.contestants import algorithm_of
from dmrifit.study.report.sections.scores import metric_text, training_words
from dmrifit.study.summaries import KEYS, Board, matching, summary_metrics, unique

_TEXTS = Texts(__file__)


def introduction(board: Board) -> Iterator[Any]:
    """State question and data, the algorithms, the controls and the indices, a paragraph each."""
    max_voxels = board.setting("max_voxels")
    voxels = f"at most {counted(max_voxels, board.unit)}" if max_voxels else f"all {board.unit}s"
    patients = board.scores.groupby("cohort", sort=False)["patient"].nunique()
    counts = []
    for name, n in patients.items():
        noun = "synthetic patient" if name in board.evaluation.synthetic else "patient"
        counts.append(f"{counted(n, noun)} of {name}")
    sizes = {way: board.size(matching(board.scores, train_on=way)) for way in board.regimes}
    regimes = [f"{training_words(way)} ({size})" for way, size in sizes.items()]
    seed = board.setting("seed")
    draws = counted(board.setting("n_repeats", 1), "draw")
    draws += "" if seed is None else f", seed {seed}"
    yield _TEXTS(
        f"question_{board.unit}",
        cohorts=" and ".join(counts),
        voxels=voxels,
        train_mask=board.setting("train_mask", "body"),
        score_mask=board.setting("score_mask", "lesion"),
        regimes=capital("; ".join(regimes)),
        draws=draws,
    )
    strategies = [_TEXTS["strategies"].get(name, name) for name in board.strategies]
    learners = ", ".join(board.learners) or "none"
    yield _TEXTS("algorithms", learners=learners, strategies="; ".join(strategies))
    controls = [_TEXTS["controls"][name] for name in CONTROLS if name in board.algorithms]
    if controls:
        yield f"Controls, in gray: {'; '.join(controls)}."
    yield _TEXTS("reference", constant=board.constant)


def headline_table(board: Board) -> Iterator[Any]:
    """Tabulate what to read first: skill over the best constant, with intervals."""
    table = summaries.headline(board.overview)
    yield Table(
        table.itertuples(index=False),
        list(table),
        numbers=range(5, len(table.columns)),
        faint=table["algorithm"].map(is_control),
    )
    for note in summaries.headline_notes(board.study, table):
        yield Note(f"{capital(note)}.")


def repeated_summary(evaluations: Sequence[Evaluation]) -> Iterator[Any]:
    """Lay several comparisons of the same question beside each other."""
    if len(evaluations) < 2:
        return
    metrics = summary_metrics()
    rows = []
    boards = list(map(Board, evaluations))
    folders = [getattr(one.predictions, "folder", None) for one in evaluations]
    paths = [folder.resolve().parent if folder else Path() for folder in folders]
    # Folders of one name are told apart by the folder that they lie in.
    short = len({path.name for path in paths}) == len(paths)
    for number, (board, path) in enumerate(zip(boards, paths, strict=True), 1):
        name = "/".join(path.parts[-1 if short else -2 :]) or number
        summary = board.summary[~board.summary["algorithm"].map(is_control)]
        for (train_on, cohort, strategy), algorithms in summary.groupby(KEYS[:3], sort=False):
            simulation = board.study.get("cohorts", {}).get(cohort, {}).get("simulation") or {}
            conditions = board.conditions(matching(board.scores, cohort=cohort, train_on=train_on))
            line = [name, conditions, training_words(train_on, "whom"), cohort]
            compared = set(algorithms["algorithm"])
            pairs = board.study.get("model", {}).items()
            models = [model for own, model in pairs if algorithm_of(own, strategy) in compared]
            words = ", ".join([strategy, *dict.fromkeys(models)])
            line += [simulation.get("difficulty", "–"), words]
            best = algorithms.sort_values(board.skill_column, ascending=False).iloc[0].to_dict()
            reference = summaries.SKILL_NAMES[board.skill_column].removeprefix("map skill")
            line.append(wording(f"{{algorithm}} {{{board.skill_column}:.2i}}{reference}", best))
            for metric in metrics:
                values = algorithms[metric.column]
                text = metric_text(metric, values.mean())
                if metric.with_sd:
                    text += f" ± {metric_text(metric, values.std())}"
                line.append(text)
            rows.append(line)
    header = ["comparison", "regions, N, seed", "trained on", "cohort", "difficulty"]
    header += ["strategy, model", "highest map skill", *(metric.heading for metric in metrics)]
    yield _TEXTS["repeated"]
    if len({board.constant for board in boards}) > 1:
        yield Note(_TEXTS["constants"])
    yield Table(rows, header, numbers=range(7, len(header)))


def cohort_tables(board: Board) -> Iterator[Any]:
    """Tabulate the cohorts: patients, lesions, protocols, simulation, patients not scored."""
    rows, texts, simulations = [], [], {}
    for name, cohort in board.study.get("cohorts", {}).items():
        row = {"name": name, "data": "synthetic" if cohort.get("synthetic") else "measured"}
        row["patients"] = len(cohort["patients"])
        for mask in ("lesion", "body"):
            row[mask] = _spread([counts[mask] for counts in cohort["patients"].values()])
        row["b"], te = _shells(cohort["protocol"])
        row |= {"te": te or "–", "contrasts": len(cohort["protocol"]["b"]), "inputs": "–"}
        if "inputs" in cohort:
            inputs = "b {} at TE {}".format(*_shells(cohort["inputs"]))
            row["inputs"] = inputs.removesuffix(" at TE ")
        rows.append(row)
        if cohort.get("simulation"):
            simulations[name] = cohort["simulation"]
        # Patients left out of training or scores are named, so that nobody has to count them.
        skipped = [f"{patient} ({why})" for patient, why in (cohort.get("skipped") or {}).items()]
        if skipped:
            texts.append(f"Not both trained on and scored in {name}: {', '.join(skipped)}.")
    if not rows:
        yield "The comparison does not say which cohorts it was made from."
        return
    yield Table(rows, _TEXTS["cohorts"])
    yield from texts
    if simulations:
        yield from _simulations(simulations)


def _simulations(simulations: dict[str, dict[str, Any]]) -> Iterator[Any]:
    """Tabulate how synthetic cohorts were made: one column each, then patient by patient."""
    rows = []
    for key in unique(itertools.chain(*simulations.values())):
        texts = [_plain(simulation.get(key)) for simulation in simulations.values()]
        if key != "patients" and any(texts):
            rows.append([_TEXTS["simulation"].get(key, key.replace("_", " ")), *texts])
    yield Fold("How the synthetic patients were made", Table(rows, ["", *simulations]))
    patients = [
        {"cohort": cohort, "patient": name, **patient}
        for cohort, simulation in simulations.items()
        for name, patient in simulation.get("patients", {}).items()
        if isinstance(patient, dict)
    ]
    if patients:
        keys = unique(itertools.chain(*patients))
        cells = [[_plain(patient.get(key)) for key in keys] for patient in patients]
        yield Fold("Each patient", Table(cells, [key.replace("_", " ") for key in keys]))


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shells(protocol: Mapping[str, Any]) -> tuple[str, str]:
    """List the b-values and the echo times of a protocol."""
    b, te = (sorted(set(protocol[name] or ())) for name in ("b", "te"))
    return ", ".join(f"{x:g}" for x in b), ", ".join(f"{x:g}" for x in te)


def _spread(counts: Sequence[int]) -> str:
    return f"{int(np.median(counts))} ({min(counts)}–{max(counts)})" if counts else "–"


def times(board: Board) -> Iterator[Any]:
    """Tabulate how long training and prediction took."""
    keys = [*KEYS, "patient", "n_train", "repeat", "estimator"]
    # The scores have a row for each parameter, all with the time of the one model.
    once = board.evaluation.scores.drop_duplicates(keys)
    names = ["strategy", "algorithm"]
    table = once.groupby(names, sort=False)["seconds"].sum().to_frame("total")
    table["mean"] = summaries.largest(once).groupby(names, sort=False)["seconds"].mean()
    table = table.reset_index()
    table = table.sort_values("algorithm", key=lambda names: names.map(is_control), kind="stable")
    yield Table(table, _TEXTS("times", size=board.size(board.scores)))
    yield "Training, prediction and the fit of the prediction, one thread for linear algebra."
    if board.study.keys() >= {"seconds", "models"}:
        yield _TEXTS("last_run", seconds=board.study["seconds"], **board.study["models"])


def origin(board: Board, evaluations: Sequence[Evaluation]) -> Iterator[Any]:
    """Tabulate settings, seeds, versions and commands."""
    study = board.study
    commands = unique(filter(None, (one.study.get("command", "") for one in evaluations)))
    if commands:
        yield Heading("Commands" if len(commands) > 1 else "Command")
        yield Code("\n".join(commands))
    if len(evaluations) > 1:
        yield "Settings are those of the first of the comparisons."
    rows = [["date", study.get("date", "")]]
    for key, value in study.get("settings", {}).items():
        if key != "cohorts":
            nothing = "all" if key in ("n_train", "max_voxels") else "none"
            rows.append([key.replace("_", " "), _plain(value) or nothing])
    for name, version in study.get("versions", {}).items():
        rows.append([f"version of {name}", version])
    yield Table(rows)
    descriptions = [[name, _short(text)] for name, text in study.get("estimators", {}).items()]
    if descriptions:
        yield Fold("Estimators", Table(descriptions, ["name", "class and parameters"]))


def _short(description: Any) -> str:
    """Write a description of an estimator like a call, a protocol as its number of contrasts."""
    if isinstance(description, dict) and "class" in description:
        inside = description.get("parameters", {})
        shown = [f"{key}={_short(value)}" for key, value in inside.items() if value is not None]
        return f"{description['class'].rpartition('.')[2]}({', '.join(shown)})"
    if isinstance(description, list) and description and description[0] in CONTROLS:
        return f"control {description[0]}, of {_short(description[1])}"
    if isinstance(description, dict) and "protocol" in description:
        return f"<{len(description['protocol']['b'])} contrasts>"
    return str(description)
