"""Provenance of a comparison: times, settings, seeds, versions, commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dmrifit._utils.counts import counted
from dmrifit.predict.controls import is_control
from dmrifit.report.page import Code, Fold, Heading, Table
from dmrifit.study.comparison import Evaluation
from dmrifit.study.summaries import KEYS, Board, largest, unique

__all__ = ["origin", "times"]


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
        "strategy {strategy} | algorithm {algorithm} | seconds per patient, "
        f"{board.size(board.scores)} {{mean:.3f}} | seconds in all {{total:.1f}}",
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
