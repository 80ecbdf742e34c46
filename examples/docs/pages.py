"""Pages that are written by a program: numbers of benchmarks in text, lists of public names, the help of commands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["GALLERIES", "PROGRAMS", "TOPICS", "api", "fill", "program_page", "result", "table"]

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"

PROGRAMS = {"dmrifit": "dmrifit", "dmrifit-placement": "placement", "dmrifit-metastasis": "metastasis",
            "dmrifit-anomaly": "anomaly"}  # fmt: skip

#: Scripts in the order of the pages.
GALLERIES = {
    "examples": ("own_scan", "first_maps", "own_model", "plan_scan", "predict_shells", "compare_algorithms", "place_voxel",
                 "find_metastases", "find_anomalies", "real_voxels"),
    "guides": ("models", "belief", "coming_from"),
}  # fmt: skip

#: What the names of the library are for; those of the applications stand in one list each.
TOPICS = {
    "Measurements and models": ("Protocol", "average_directions", "Parameter", "SignalModel", "MODELS"),
    "Fits": ("fit_voxels", "FitResult", "FitStatus", "MapFitter", "ClinicalMetrics", "fit_image", "ImageMaps",
             "resynthesize"),
    "Images": ("read_manifest", "preprocess_image", "estimate_sigma", "prepare_brain", "roi_table", "repeatability",
               "write_dicom_seg"),
    "Predictors": ("SignalToSignal", "MapsToMaps", "make_regressor", "ALGORITHMS", "resolve_patch_shape",
                   "PatientScale", "ConformalIntervals", "coverage_table", "predict_image", "VolumeEstimator",
                   "Training", "save_model", "load_model"),
    "Patients and comparisons": ("Scan", "Cohort", "VoxelTable", "simulate_cohort", "compare",
                                 "leave_one_patient_out", "learning_curve", "Evaluation", "write_report"),
    "Scores": ("bias_index", "dispersion_index", "lesion_table", "lesion_scores"),
    "Planning a scan": ("suggest_model", "protocol_precision", "rank_contrasts", "rank_contrasts_by_prediction"),
}  # fmt: skip


def result(name: str) -> dict[str, Any]:
    """Read what a benchmark measured."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def fitting_row(what: str) -> dict[str, Any]:
    """Give the row of the benchmark of fits that has this description."""
    return next(row for row in result("fitting")["rows"] if row["what"] == what)


def longest_compilation() -> float:
    """Give the seconds of the slowest first fit of a model on a machine."""
    row = fitting_row("first fit of a model on a machine (compilation, longest of the models)")
    return max(model["cpu_s"] for model in row["ours"].values())


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write a table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [header, *rows]:
        lines += [f"   {'*' if number == 0 else ' '} - {text}" for number, text in enumerate(row)]
    return "\n".join(lines)


def fill(path: Path) -> str:
    """Fill in what stands between ``<<`` and ``>>`` in a page."""
    import jinja2

    environment = jinja2.Environment(
        variable_start_string="<<", variable_end_string=">>", block_start_string="<%", block_end_string="%>",
        comment_start_string="<#", comment_end_string="#>", undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    functions: dict[str, Callable[..., Any]] = {
        "result": result, "fitting_row": fitting_row, "table": table, "present": _present,
        "measured": _measured, "people_muscles": _people_muscles, "people_skills": _people_skills,
        "people_skill": people_skill,
        "longest_compilation": longest_compilation, "board": board, "demo_table": demo_table, "faults": fault_table,
    }  # fmt: skip
    return environment.from_string(path.read_text(encoding="utf-8")).render(functions)


def _people_muscles() -> str:
    rows = []
    for row in result("people_fits")["leg"]["muscles"]:
        cells = [str(row["label"]), str(row["n"])]
        for name, digits in (("Dt", 2), ("f", 3)):
            one = row[name]
            cells.append(f"{one['median']:.{digits}f} [{one['q25']:.{digits}f}, {one['q75']:.{digits}f}]")
        cells.append(f"{100 * row['f']['doubtful']:.0f} %")
        rows.append([*cells, f"{100 * row['Dv']['doubtful']:.0f} %"])
    return table(["muscle", "voxels", "Dt (µm²/ms)", "f", "f in doubt", "Dv in doubt"], rows)


def people_skill(what: str, algorithm: str) -> float:
    """Give the mean skill of an algorithm for people who were left out."""
    rows = result("people")["kidneys"][0][what]
    chosen = [row for row in rows if row["strategy"] == "s2s" and row["algorithm"] == algorithm]
    return chosen[0]["skill"]["mean"]


def _people_skills() -> str:
    measured = result("people")
    shown = (measured["headline"], "LR", "RFR", "mlNN", "interpolation", "input fit")
    rows = []
    for what in ("other b", "other TE"):
        by_name = {row["algorithm"]: row for row in measured["kidneys"][0][what] if row["strategy"] == "s2s"}
        for name in shown:
            # Adding 0 takes the sign from a zero.
            skill = {key: round(value, 2) + 0.0 for key, value in by_name[name]["skill"].items()}
            ends = [f"[{skill[low]:.2f}, {skill[high]:.2f}]" for low, high in (("low", "high"), ("t_low", "t_high"))]
            rows.append([what, name, f"{skill['mean']:.2f}", *ends, f"{by_name[name]['apart']:.2f}"])
    return table(["predicted", "by", "mean skill", "bootstrap", "t interval", "volunteer 3"], rows)


def _measured(name: str) -> bool:
    """Whether there is a result of this name."""
    return (RESULTS / f"{name}.json").exists()


def _present(name: str) -> bool:
    """Whether there is a page of this name."""
    return any((Path(__file__).parent / f"{name}{ending}").exists() for ending in (".rst", ".md"))


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def _summary(package: str, names: list[str]) -> str:
    lines = "".join(f"   {package}.{name}\n" for name in names)
    return f".. autosummary::\n   :toctree: api\n   :nosignatures:\n\n{lines}"


def api() -> str:
    """
    List all public names.

    Raises
    ------
    ValueError
        If a name of the library is in no topic, or a topic has one that there is not.
    """
    from dmrifit import __all__ as names

    placed = [name for topic in TOPICS.values() for name in topic]
    extra = sorted(set(placed) - set(names))
    if extra or len(placed) != len(set(placed)):
        msg = f"topics of pages.py have names twice, or names that dmrifit has not: {extra}"
        raise ValueError(msg)
    topics = dict(TOPICS)
    rest = tuple(sorted(set(names) - set(placed)))
    if rest:
        topics["More"] = rest
    parts = [
        _heading("API reference", "="),
        "Units, shapes and errors stand with each name.\n",
        _heading("dmrifit", "-"),
    ]
    for topic, chosen in topics.items():
        parts += [_heading(topic, "~"), _summary("dmrifit", list(chosen))]
    for package in ("placement", "metastasis", "anomaly"):
        module = import_module(package)
        first = (module.__doc__ or "").strip().partition("\n")[0]
        parts += [_heading(package, "-"), first + "\n", _summary(package, list(module.__all__))]
    return "\n".join(parts)


def program_page(program: str) -> str:
    """Write the page of a program: what it is for, and the help of its commands."""
    import click
    import typer
    from typer.testing import CliRunner

    package = PROGRAMS[program]
    app = import_module(f"{package}.cli.program").app
    parts = [fill(Path(__file__).parent / "programs" / f"{package}.rst"), _heading("Commands", "-")]
    for name in typer.main.get_command(app).commands:
        shown = CliRunner().invoke(app, [name, "--help"], prog_name=program, env={"COLUMNS": "90", "TERM": "dumb"})
        text = re.sub(r"\x1b\[[0-9;]*m", "", click.unstyle(shown.output)).strip("\n")
        body = "\n".join(f"   {line.rstrip()}".rstrip() for line in text.splitlines())
        parts += [_heading(f"{program} {name}", "~"), f".. code-block:: text\n\n{body}\n"]
    return "\n".join(parts)


def board(name: str) -> str:
    """Write what a study claims, and whether it holds here, from the result of a benchmark."""
    from benchmarks.claims.claim_board import board_sentence

    measured = result(name)
    claims = measured.get("claims") or next(kind["claims"] for kind in measured["kinds"].values() if kind.get("claims"))
    rows = [[str(row["claim"]), row["statement"], row["study"], row["verdict"]] for row in claims]
    return f"{board_sentence(claims)}\n\n{table(['', 'claim', 'the study', 'here'], rows)}"


def demo_table() -> str:
    """Write the rows of the demo that were trained and tested on one cohort."""
    columns = ("predictor", "signal skill", "map skill", "map skill, independent", "|BI| (%)", "DI (%)", "r")
    rows = [row for row in result("demo")["rows"] if row["trained"] == row["tested"] == "cohort1"]
    # Bars would be read as a substitution, stars as emphasis.
    cells = [[str(row[name]).replace("*", "\\*") for name in columns] for row in rows]
    return table([name.replace("|", "\\|") for name in columns], cells)


def fault_table() -> str:
    """Write how many faults were tried, by kind, and what went wrong; the last row is their sum."""
    kinds = {kind: row for part in result("faults").values() for kind, row in part["kinds"].items()}
    columns = list(next(iter(kinds.values())))
    kinds["all"] = {column: sum(row[column] for row in kinds.values()) for column in columns}
    cells = [[kind, *(f"{row[column]:,}" for column in columns)] for kind, row in kinds.items()]
    return table(["what is faulty", *(column.replace("_", "-") for column in columns)], cells)
