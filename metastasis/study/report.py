"""Report pages of segmentations: of a run over scans, and of a comparison with references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.counts import counted
from dmrifit._utils.randomness import RandomState
from dmrifit.io.components import drop_small
from dmrifit.report import page, style
from dmrifit.report.numerals import wording
from dmrifit.report.viewer import Layer, html_viewer
from dmrifit.stats.lesion_matching import lesion_table
from metastasis.scans.cases import Case
from metastasis.segmentation.ensemble import MARKED_BY_BOTH
from metastasis.study import plotting
from metastasis.study.controls import CONTROLS
from metastasis.study.evaluation import OF_BOTH, SMALL_ML, evaluate_segmentations, option_by_method
from metastasis.study.followup import GROWN, MIN_CHANGE_ML, SHRUNK
from metastasis.study.lesion_sizes import CLOSED_GAP_MM, FIGURES

__all__ = ["write_evaluation"]

_TEXTS = page.Texts(__file__)
MEASURES: dict[str, str] = _TEXTS["measures"]  # what a reader sees of them
_COLORS = (style.UNSURE, style.FOUND)  # of candidates and what both models mark
_REFERENCE = (style.REFERENCE,)
_STRIPS = 3  # methods whose findings are drawn lesion by lesion

_Tables = Mapping[str, pd.DataFrame]
_Limits = Mapping[str, tuple[float, int]]  # threshold and smallest finding of each method


def write_evaluation(
    cases: Sequence[Case],
    predictions: Mapping[str, Sequence[ArrayLike]],
    folder: str | Path,
    *,
    threshold: float | Mapping[str, float | None] = 0.5,
    min_voxels: int | Mapping[str, int] = 1,
    figures: int = 6,
    overwrite: bool = False,
    command: str = "",
    n_bootstrap: int = 1000,
    random_state: RandomState = 0,
    verbose: bool = False,
) -> dict[str, pd.DataFrame]:
    """
    Compare segmentations with reference lesions, and write tables and a page.

    Parameters
    ----------
    cases : sequence of Case
        Scans with a label.
    predictions : mapping of str to sequence of array_like of shape (x, y, z)
        For each method and each case, as `evaluate_segmentations` takes them.
    folder : path
        Made if missing. All files appear together: tables as CSV files, figures as PNG files and
        ``report.html``, which needs no other file and no network.
    threshold : float or mapping of str to float, default=0.5
        As for `evaluate_segmentations`.
    min_voxels : int or mapping of str to int, default=1
        As for `evaluate_segmentations`.
    figures : int, default=6
        How many scans are shown, those with the most errors of the best method first.
    overwrite : bool, default=False
        Whether files of an earlier comparison may be replaced.
    command : str, default=""
        What made it, for the page; by default the command that started this process.
    n_bootstrap : int, default=1000
        Samples of patients for the intervals; 0 leaves them out.
    random_state : int, RandomState or None, default=0
        Seed of controls and of bootstrap samples.
    verbose : bool, default=False
        As for `evaluate_segmentations`.

    Returns
    -------
    dict of str to DataFrame
        What `evaluate_segmentations` gave.

    Raises
    ------
    ValueError
        As `evaluate_segmentations`.
    FileExistsError
        If a file would be replaced.
    ImportError
        If the extra ``report`` is not installed.
    """
    options: dict[str, Any] = {"threshold": threshold, "min_voxels": min_voxels}
    options |= {"n_bootstrap": n_bootstrap, "random_state": random_state, "verbose": verbose}
    with page.report_files(folder, _TEXTS["files"], overwrite=overwrite) as write:
        tables = evaluate_segmentations(cases, predictions, **options)
        thresholds = option_by_method("thresholds", threshold, predictions, 0.5)
        fewest_voxels = option_by_method("min_voxels", min_voxels, predictions, 1)
        limits = {name: (thresholds[name] or 0.5, fewest_voxels[name]) for name in predictions}
        sections = [
            page.Section("", *_answer(cases, tables)),
            page.Section("Scores", *_summaries(tables)),
            page.Section("Scans", *_overlays(cases, predictions, tables, limits, figures)),
            page.Section("By size and by change", *_sizes_and_changes(tables)),
            page.Section("Marked by both models, and candidates", *_ensembles(tables)),
            page.Section("At other thresholds", *_curves(tables)),
            page.Section("Probabilities", *_calibration(tables)),
            page.Section("How this was made", page.origin(command, _rules(limits, predictions))),
        ]
        lead = page.notice_lead(case.synthetic for case in cases)
        title = "Metastases found, missed and marked by mistake"
        write(tables, page.Page(title, sections, lead, contents=True))
    return tables


# Pages of a run ----------------------------------------------------------------------------------


def batch_blocks(
    records: Mapping[str, Mapping[str, Any]],
    lesions: pd.DataFrame,
    pictures: Mapping[str, Sequence[page.Block]],
) -> tuple[page.Table, list[tuple[str, list[Any]]], str]:
    """Make the table of a run over scans, what is shown of each scan, and a note for all."""
    is_ensemble = any(record["n_marked_by_both"] is not None for record in records.values())
    columns = _TEXTS("scans", both=_TEXTS["scans_both"] if is_ensemble else "")
    if all(record["patient"] == record["name"] for record in records.values()):
        columns = columns.replace(_TEXTS["scans_patient"], "")
    rows, shown = [], []
    for folder, record in records.items():
        title = f"{record['name']} (synthetic)" if record["synthetic"] else record["name"]
        notes = " ".join(map(page.sentence, record["notes"])) or "none"
        rows.append({**record, "title": title, "notes": notes})
        remarks = [*record["notes"], record["statement"], record.get("model", "")]
        scan_lesions = _lesion_lines(lesions[lesions["name"] == record["name"]], remarks)
        shown.append((title, [*pictures[folder], *scan_lesions]))
    return page.Table(rows, columns), shown, _TEXTS["positions"]


def scan_page(
    case: Case,
    labels: NDArray[Any],
    probability: NDArray[np.floating],
    lesions: pd.DataFrame,
    *,
    threshold: float | None,
    picture: bytes,
    remarks: Sequence[str] = (),
) -> str:
    """Make the page of one scan: labels and probability (x, y, z) over it, in three planes."""
    # Only an ensemble has no single threshold.
    names = ("candidate", "marked by both models") if threshold is None else ("found",)
    layers = [
        Layer("probability", probability, "score", window=(0.0, 1.0), threshold=threshold),
        Layer("segmentation", labels, "mask", names=names, colors=_COLORS[-len(names) :]),
    ]
    if case.label is not None:
        # Hidden at first, so that a reader judges before the answer is seen.
        layers.append(Layer("reference", case.label, "mask", shown=False, colors=_REFERENCE))
    planes = _viewer(
        case,
        layers,
        points=[("{number}: {volume_mL:.3f} mL marked", lesions.dropna(subset=[*"xyz"]))],
        overlay=None if threshold is not None else "",
        label="Findings over the scan",
        instead=page.Picture(picture, f"Findings of {case.name} in three planes", width=1000),
    )
    findings = page.Section("What was found", *_lesion_lines(lesions, remarks))
    lead = page.notice_lead([case.synthetic])
    return page.Page(case.name, [page.Section("", planes), findings], lead).html()


def _viewer(case: Case, layers: Sequence[Layer], **options: Any) -> Any:
    """Make the viewer of a scan, its prior scan and what lies over them."""
    scans = [Layer("scan", case.image)]
    if case.prior is not None:
        scans.append(Layer("prior scan", case.prior))
    options |= {"region": case.brain, "image": "scan"}
    return html_viewer([*scans, *layers], case.affine, **options)


def _lesion_lines(lesions: pd.DataFrame, remarks: Sequence[str] = ()) -> Iterator[Any]:
    """Make the table of the lesions of a scan, after what is to be said of it."""
    sentences = [page.sentence(remark) for remark in remarks if remark]
    yield from sentences or (["Nothing was found."] if lesions.empty else [])
    if lesions.empty:
        return
    columns = _TEXTS["lesion"]
    # Runs without priors or probabilities lack some of the columns.
    for name, column in _TEXTS["lesion_columns"].items():
        if name in lesions:
            columns += column
    yield page.Table([_lesion_words(row) for row in lesions.to_dict("records")], columns)
    limits = {"grown": GROWN, "shrunk": SHRUNK, "min_change": MIN_CHANGE_ML}
    changes = _TEXTS("changes", **limits) if "change" in lesions else ""
    yield page.Note(_TEXTS("cores", closed_gap_mm=CLOSED_GAP_MM, changes=changes))


def _lesion_words(lesion: dict[str, Any]) -> dict[str, Any]:
    """Add the words of a lesion to its row: number, open ring, change since the prior scan."""
    # As in lesions.tsv and DICOM; vanished lesions have numbers of the prior scan.
    number = str(lesion["number"])
    if lesion.get("finding") == "prior only":
        number, lesion = "–", lesion | dict.fromkeys(FIGURES, np.nan) | {"open_ring": False}
    change = lesion.get("change")
    changes = [change] if isinstance(change, str) and change else []
    if np.isfinite(lesion.get("prior_volume_with_core_mL", np.nan)):
        changes.append(wording(_TEXTS["prior_lesion"], lesion))
        if lesion["prior_open_ring"]:
            changes.append(wording("open ring, {prior_hull_mL:.3f} mL within its outline", lesion))
    ring = ", open ring" if lesion["open_ring"] else ""
    since = ", ".join(changes) or "no prior scan"
    return lesion | {"shown_number": number, "ring": ring, "since": since}


# Sections of a comparison ------------------------------------------------------------------------


def _ranked(tables: _Tables) -> pd.DataFrame:
    """Give the scores of the methods on all scans, the best strict F1 first, without controls."""
    scores = tables["summary"].query("part == 'all' and not control").set_index("method")
    # Without lesions there is no F1.
    return scores.sort_values(["strict_f1", "n_false_positives"], ascending=[False, True])


def _scans_by_errors(scans: pd.DataFrame, method: str) -> pd.DataFrame:
    """Give the rows of a method's scans, those with most errors first."""
    rows = scans[scans["method"] == method].set_index("case")
    errors = rows["n_lesions"] - rows["n_distinct"] + rows["n_false_positives"] + rows["n_flagged"]
    return rows.loc[errors.sort_values(ascending=False, kind="stable").index]


def _tables(rows: Any, *names: str, **values: Any) -> Iterator[page.Table]:
    """Make tables of the same rows with the columns of some texts; controls are faint."""
    for name in names:
        columns = _TEXTS(name, **values) if values else _TEXTS[name]
        yield page.Table(rows, columns, controls=CONTROLS)


def _answer(cases: Sequence[Case], tables: _Tables) -> Iterator[Any]:
    """Make the first screen: what the best method finds, and what became of each lesion."""
    ranked = _ranked(tables)
    best = str(ranked.index[0])
    scores = ranked.iloc[0]
    # The interval of the best method: one row, or none where there are few patients.
    intervals = tables["intervals"].query("part == 'all' and method == @best")
    intervals = intervals[intervals["measure"] == "strict_sensitivity"].dropna(subset="low")
    key = "strict_f1" if scores["n_lesions"] else "n_false_positives"
    ties = [str(name) for name in ranked.index[1:][ranked[key][1:] == scores[key]]]
    equal = f", the same as {', '.join(ties)}" if ties else ""
    counts = {"n_cases": len(cases), "n_wrong": scores["n_false_positives"] + scores["n_flagged"]}
    # Without small lesions there is no share of them.
    n_found_small = round(np.nan_to_num(scores["sensitivity_small"] * scores["n_small"]))
    rule = "F1 (strict)" if scores["n_lesions"] else "wrong findings"
    leading = f"Best of {len(ranked)} methods by {rule}{equal}: " if len(ranked) > 1 else ""
    interval = "".join(wording(_TEXTS["interval"], row) for row in intervals.to_dict("records"))
    counts |= {"n_found_small": n_found_small, "small_ml": SMALL_ML}
    yield _TEXTS("answer", **scores, **counts, best=best, leading=leading, interval=interval)
    shown = [str(name) for name in ranked.index[:_STRIPS]]
    order = _scans_by_errors(tables["scans"], best)["name"]
    figure = plotting.plot_strip(tables["lesions"], list(order), shown, small_ml=SMALL_ML)
    yield _TEXTS.picture("strip", figure, methods=", ".join(shown))
    n_patients = len({case.patient for case in cases})
    counts = {"n_cases": len(cases), "n_patients": n_patients, "n_lesions": scores["n_lesions"]}
    prefix = "synthetic " if all(case.synthetic for case in cases) else ""
    n_priors = sum(case.prior is not None for case in cases) or "none"
    yield _TEXTS("introduction", **counts, prefix=prefix, n_priors=n_priors)
    yield page.few_note(n_patients)


def _summaries(tables: _Tables) -> Iterator[Any]:
    summary = tables["summary"].eval("wrong_per_scan = (n_false_positives + n_flagged) / n_scans")
    yield _TEXTS["explained"]
    for part, scores in summary.groupby("part", sort=False):
        strict, published = _tables(scores, "strict", "published")
        title = "Published figures, which are less strict"
        blocks = [_TEXTS["published_explained"], published]
        if part == "all":
            yield strict
        else:
            title = f"{counted(int(scores['n_scans'].iloc[0]), 'scan')} {part}"
            blocks.insert(0, strict)
        yield page.Fold(title, *blocks)
    # Controls are no results, and their intervals would hide those of the methods.
    intervals = tables["intervals"].query("part == 'all' and method not in @CONTROLS")
    intervals = intervals.rename(columns={"low": "value_low", "high": "value_high"})
    intervals["measure"] = intervals["measure"].astype(str).replace(MEASURES)
    sentence = _interval_sentence(tables)
    yield page.Fold(_TEXTS["how_intervals"], sentence, *_tables(intervals, "intervals"))


def _interval_sentence(tables: _Tables) -> str:
    """Say what stands in brackets, or why nothing does."""
    if tables["intervals"].empty:
        return ""
    n_patients = len(set(tables["scans"]["patient"]))
    key = "no_intervals" if tables["intervals"]["low"].isna().all() else "intervals_over"
    return _TEXTS(key, n=n_patients)


def _sizes_and_changes(tables: _Tables) -> Iterator[Any]:
    """Make tables by size and by range of volume, by two further rules, and by change."""
    yield _TEXTS["touched"]
    all_scans = tables["summary"].query("part == 'all'")
    sizes = all_scans[["n_small", "n_large"]].iloc[0]
    yield from _tables(all_scans, "by_size", small_ml=SMALL_ML, **sizes)
    volumes = tables["volumes"].query("n > 0")
    words = [
        f"{low:.0f} to {high:.0f} mm³" if np.isfinite(high) else f"{low:.0f} mm³ or more"
        for low, high in zip(volumes["from_mm3"], volumes["below_mm3"], strict=True)
    ]
    volumes = volumes.rename(columns={"low": "recall_low", "high": "recall_high"})
    # On a telephone there is room for one share.
    shares = [
        {"method": row["method"], "measure": measure, "share": wording(cell, row)}
        for row in tables["distance"].to_dict("records")
        for measure, cell in _TEXTS["shares"].items()
    ]
    sentence = _TEXTS("distance_explained", intervals=_interval_sentence(tables))
    folds: dict[str, tuple[Any, str, str]] = {
        "By range of volume": (volumes.assign(volume=words), "by_volume", ""),
        "By distance": (shares, "distance", sentence),
        "By the scorer of BraTS-METS": (tables["challenge"], "challenge", _TEXTS["brats"]),
        "Scans without lesions": (tables["lesion_free"], "lesion_free", ""),
    }
    for title, (table, name, text) in folds.items():
        yield page.Fold(title, text, *_tables(table, name))
    status = tables["status"]
    if not len(status):
        return
    columns = "share touched of {method}"
    for name, n in status.drop_duplicates("status").set_index("status")["n"].items():
        columns += f" | {name} ({n}) {{{name}:.2f}}"
    sensitivity = status.pivot_table("sensitivity", "method", "status", sort=False, dropna=False)
    yield page.Table(sensitivity.reset_index(), columns, controls=CONTROLS)


def _curves(tables: _Tables) -> Iterator[Any]:
    has_bars = tables["froc"]["strict_sensitivity_low"].notna().any()
    bars = " Bars: 95 % intervals over patients." if has_bars else ""
    yield _TEXTS.picture("curves", plotting.plot_curves(tables), bars=bars)
    yield page.Fold(
        "Areas and the FROC score",
        _TEXTS("areas_explained", intervals=_interval_sentence(tables)),
        *_tables(tables["areas"], "areas"),
        *_tables(tables["froc"], "froc"),
    )


def _ensembles(tables: _Tables) -> Iterator[Any]:
    if len(tables["ensemble"]):
        yield _TEXTS["two_models"]
        yield from _tables(tables["ensemble"], "ensemble", "candidates")


def _calibration(tables: _Tables) -> Iterator[Any]:
    table = tables["calibration"]
    if len(table):
        yield _TEXTS.picture("calibration", plotting.plot_calibration(tables))
        yield from _tables(table.drop_duplicates(["method", "level"]), "errors")


def _overlays(
    cases: Sequence[Case],
    predictions: Mapping[str, Sequence[ArrayLike]],
    tables: _Tables,
    limits: _Limits,
    figures: int,
) -> Iterator[Any]:
    ranked = _ranked(tables).index
    best = next(name for name in ranked if name in predictions)
    ensembles = [name for name in predictions if name + OF_BOTH in ranked]
    # A page of all scans would be too long, and what went wrong tells most.
    order = _scans_by_errors(tables["scans"], best).index[:figures]
    yield _TEXTS("overlays", n_shown=len(order), n_cases=len(cases), best=best)
    for i in order:
        case = cases[i]
        kind = "Synthetic scan" if case.synthetic else "Scan"
        scan_values = {name: np.asarray(predictions[name][i]) for name in {best: 0, **limits}}
        # A viewer holds whole volumes, so only the scan with most errors has one.
        if i == order[0]:
            yield page.Heading(f"{kind} {case.name}")
            yield _planes(case, scan_values, limits, f"{kind} {case.name}", ensembles)
        pictures = []
        for name, values in scan_values.items():
            labels = _labels(values, *limits[name])
            title = f"{case.name} by {name}"
            is_pair = name in ensembles
            figure = plotting.plot_overlay(case, labels, of_two_models=is_pair, title=title)
            pictures.append(page.Picture(figure, f"{kind} {title} in three planes"))
        yield pictures[0]
        yield page.Fold(f"{case.name} by the other methods", *pictures[1:])


def _labels(values: NDArray[Any], threshold: float, min_voxels: int) -> NDArray[np.uint8]:
    """Mark the voxels from a method's threshold on, in components that are large enough."""
    if values.dtype.kind == "f":
        values = values >= threshold
    labels = values.astype(np.uint8)
    return labels * drop_small(labels, min_voxels)


def _planes(
    case: Case,
    predictions: Mapping[str, NDArray[Any]],
    limits: _Limits,
    title: str,
    ensembles: Sequence[str],
) -> Any:
    """Make the viewer of one scan with the results of each method, and the lesions to look at."""
    assert case.label is not None
    scores, masks = [], [Layer("reference", case.label, "mask", colors=_REFERENCE)]
    points: list[tuple[str, Any]] = []
    # Only one method can have the colors of its pictures, an ensemble before others.
    main = next((name for name in predictions if name in ensembles), next(iter(predictions)))
    for name, values in predictions.items():
        if values.dtype.kind == "f":
            look: dict[str, Any] = {"window": (0.0, 1.0), "threshold": limits[name][0]}
            scores.append(Layer(name, values, "score", **look))
        labels = _labels(values, *limits[name])
        names = ("candidate", MARKED_BY_BOTH) if name in ensembles else ()
        # Further methods are hidden, and have colors of their own.
        colors = _COLORS[-max(len(names), 1) :] if name == main else ()
        look = {"shown": not points, "colors": colors}
        masks.append(Layer(name, labels, "mask", names=names, **look))
        if not points:
            center, words = plotting.place_to_show(case, labels)
            table = lesion_table(case.label, labels > 0, case.affine).query("kind == 'lesion'")
            states = table["found"].map({True: "found", False: "missed"})
            text = "lesion {number}: {volume_mL:.3f} mL, {state}"
            points = [(f"{words} ({name})", center), (text, table.assign(state=states))]
    instead = page.Note("The pictures below show the same scan.")
    return _viewer(case, [*scores, *masks], points=points, label=title, instead=instead)


def _rules(limits: _Limits, predictions: Mapping[str, Sequence[ArrayLike]]) -> Iterator[list[str]]:
    """Say of each method what it marks."""
    for name, (threshold, min_voxels) in limits.items():
        rule = "labels as given"
        if np.asarray(predictions[name][0]).dtype.kind == "f":
            rule = f"probability of {threshold:.4g} and above"
        if min_voxels > 1:
            rule += f", findings from {min_voxels} voxels"
        yield [name, rule]
