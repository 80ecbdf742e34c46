"""Report pages of segmentations: of a run over scans, and of a comparison with references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.randomness import RandomState
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.components import drop_small
from dmrifit.report.figure_gallery import Gallery, write_comparison
from dmrifit.report.html import (
    FEW,
    counted,
    decimals,
    few_note,
    html_details,
    html_figure,
    html_heading,
    html_join,
    html_methods,
    html_note,
    html_origin,
    html_page,
    html_paragraph,
    html_table,
    notice_lead,
    record_cells,
    whole,
)
from dmrifit.report.numerals import fixed, percent
from dmrifit.report.style import FOUND, REFERENCE, UNSURE
from dmrifit.report.viewer import Layer, html_viewer, viewer_page
from metastasis.segmentation.ensemble import MARKED_BY_BOTH
from metastasis.study.controls import CONTROLS
from metastasis.study.evaluation import SMALL_ML, evaluate_segmentations, option_by_method
from metastasis.study.lesion_sizes import CLOSED_GAP_MM
from metastasis.study.patient_samples import FEWEST_PATIENTS
from metastasis.study.reader_scores import SHARES

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

    from metastasis.scans.cases import Case

__all__ = ["FEW", "KINDS", "PAGE", "batch_page", "scan_page", "write_evaluation"]

#: Tables of a comparison.
KINDS = (
    "summary",
    "intervals",
    "scans",
    "lesions",
    "volumes",
    "distance",
    "challenge",
    "lesion_free",
    "froc",
    "matched",
    "status",
    "ensemble",
    "curves",
    "calibration",
    "areas",
)
PAGE = "report.html"

_method_table = partial(html_methods, controls=CONTROLS)

_FIGURES = ("strip.png", "curves.png", "calibration.png")
_STRICT = ("n_distinct", "strict_sensitivity", "strict_precision", "wrong_per_scan")
_STRICT_HEADINGS = ("lesions found", "share found", "share right", "wrong per scan")
_EXPLAINED = (
    "A lesion is found when a finding of its own touches it. Wrong are findings that touch no "
    "lesion, cover several, or have more than ten times the volume of one: by these strict rules "
    "marking everything finds nothing. Share right: of the findings, those that are not wrong. "
    "Gray rows are segmentations made without looking."
)
_PUBLISHED = ("sensitivity", "precision", "mDSC", "lesion_dice", "lesion_f1")
# Soft hyphens, so that the table fits on a telephone.
_PUBLISHED_HEADINGS = (
    "sensi\u00adtivity",
    "preci\u00adsion",
    "mDSC",
    "Dice by lesion",
    "F1 by lesion",
)
_PUBLISHED_EXPLAINED = (
    "By the published rule a lesion is found when a finding shares a voxel with it, so that one "
    "finding over the whole brain is perfect; mDSC is the mean Dice coefficient (overlap, 1 is "
    "perfect) of lesions that were found. Lesion-wise Dice and F1 are those of BraTS-METS: 0 for "
    "each lesion that is missed and each false finding; marking everything has such an F1 of 1, "
    "too."
)
_COLORS = (UNSURE, FOUND)  # of candidates and what both models mark
_STRIPS = 3  # methods whose findings are drawn lesion by lesion


def write_evaluation(
    cases: Sequence[Case],
    predictions: Mapping[str, Sequence[ArrayLike]],
    folder: str | Path,
    *,
    threshold: float | Mapping[str, float] = 0.5,
    min_voxels: int | Mapping[str, int] = 1,
    figures: int = 6,
    overwrite: bool = False,
    command: str = "",
    n_bootstrap: int = 1000,
    random_state: RandomState = 0,
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
        How many scans are shown, those with the most errors of the first method first.
    overwrite : bool, default=False
        Whether files of an earlier comparison may be replaced.
    command : str, default=""
        What made it, for the page.
    n_bootstrap : int, default=1000
        Samples of patients for the intervals; 0 leaves them out.
    random_state : int, RandomState or None, default=0
        Seed of controls and of bootstrap samples.

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
    # Both fail here, before hours of work, if matplotlib or markupsafe is not installed.
    from metastasis.study.plotting import plot_overlay  # noqa: F401

    html_note("")
    names = [*(f"{kind}.csv" for kind in KINDS), *_FIGURES, PAGE]
    with FileSet(folder, names, overwrite=overwrite) as files:
        tables = evaluate_segmentations(
            cases,
            predictions,
            threshold=threshold,
            min_voxels=min_voxels,
            n_bootstrap=n_bootstrap,
            random_state=random_state,
        )
        gallery = Gallery()
        thresholds = option_by_method("thresholds", threshold, predictions, 0.5)
        fewest_voxels = option_by_method("min_voxels", min_voxels, predictions, 1)
        limits = {name: (thresholds[name], fewest_voxels[name]) for name in predictions}
        sections = _sections(cases, predictions, tables, gallery, limits, figures, command)
        page = viewer_page(
            "Metastases found, missed and marked by mistake",
            sections,
            lead=notice_lead(case.synthetic for case in cases),
            contents=True,
        )
        written_tables = {kind: tables[kind] for kind in KINDS}
        write_comparison(files, written_tables, gallery, {PAGE: page})
    return tables


def batch_page(
    heading: str,
    contents: Sequence[Mapping[str, Any]],
    lesions: pd.DataFrame,
    shown: Mapping[str, Sequence[Markup]],
    failed: Sequence[Markup] = (),
) -> str:
    """Make the page of a run over scans."""
    lead = notice_lead(content["synthetic"] for content in contents)
    ensemble = any(content["n_marked_by_both"] is not None for content in contents)
    header = ["scan", "patient", "lesions"]
    if ensemble:
        header.append("by both models")
    header += ["enhancing, mL", "with cores, mL", "synthetic"]
    rows = []
    for content in contents:
        row = [content["name"], content["patient"], content["n_lesions"]]
        if ensemble:
            row.append(content["n_marked_by_both"])
        row += [fixed(content[key], 2) for key in ("volume_mL", "volume_with_core_mL")]
        row.append("synthetic" if content["synthetic"] else "no")
        rows.append(row)
    overview = html_table(rows, header, numbers=range(2, len(header) - 1))
    sections: list[tuple[str, Any]] = [("All scans", html_join([overview, *failed]))]
    for content in contents:
        name = content["name"]
        title = f"{name} (synthetic)" if content["synthetic"] else name
        remarks = [*content["notes"], content["statement"]]
        scan_lesions = _lesion_lines(lesions[lesions["name"] == name], remarks)
        sections.append((title, html_join([*shown[name], scan_lesions])))
    orientation = html_note(
        "Positions are in mm, RAS: to the right, to the front, up. The patient's right is at the "
        "left."
    )
    return html_page(heading, [*sections, ("", orientation)], lead=lead)


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
    layers = [Layer("scan", case.image)]
    if case.prior is not None:
        layers.append(Layer("prior scan", case.prior))
    layers += [
        Layer("probability", probability, "score", window=(0.0, 1.0), threshold=threshold),
        Layer("segmentation", labels, "mask", names=names, colors=_COLORS[-len(names) :]),
    ]
    if case.label is not None:
        # Hidden at first, so that a reader judges before the answer is seen.
        layers.append(Layer("reference", case.label, "mask", shown=False, colors=(REFERENCE,)))
    located_lesions = lesions.dropna(subset=["x", "y", "z"]).to_dict("records")
    points = [
        (
            f"{lesion['number']}: {lesion['volume_mL']:.3f} mL enhancing",
            [lesion[axis] for axis in "xyz"],
        )
        for lesion in located_lesions
    ]
    planes = html_viewer(
        layers,
        case.affine,
        points=points,
        region=case.brain,
        image="scan",
        overlay=None if threshold is not None else "",
        label="Lesions over the scan",
        instead=html_figure(picture, f"Lesions of {case.name} in three planes", width=1000),
    )
    sections = [("", planes), ("What was found", _lesion_lines(lesions, remarks))]
    return viewer_page(case.name, sections, lead=notice_lead([case.synthetic]))


def _lesion_lines(lesions: pd.DataFrame, remarks: Sequence[str] = ()) -> Markup:
    """Make the table of the lesions of a scan, after what is to be said of it."""
    sentences = [html_paragraph(_sentence(remark)) for remark in remarks if remark]
    if not len(lesions):
        return html_join(sentences or [html_paragraph("Nothing was found.")])
    header = [
        "number",
        "enhancing, mL",
        "with its core, mL",
        "diameter of a sphere of this volume, mm",
        "within its outline, mL",
        "axial diameters, longest × across, mm",
        "at x, y, z, mm",
    ]
    # Runs without priors or probabilities lack some of the columns.
    has_finding, has_change = "finding" in lesions, "change" in lesions
    if has_finding:
        header.append("finding")
    if has_change:
        header.append("since the prior scan")
    if "probability" in lesions:
        header.append("proba\u00adbility")
    rows = []
    for lesion in lesions.to_dict("records"):
        # As in lesions.tsv and DICOM; vanished lesions have numbers of the prior scan.
        number = "–" if lesion.get("finding") == "prior only" else str(lesion["number"])
        place = ", ".join(fixed(lesion[axis], 0) for axis in "xyz")
        row = [
            number,
            fixed(lesion["volume_mL"], 3),
            fixed(lesion["volume_with_core_mL"], 3),
            fixed(lesion["sphere_diameter_mm"], 1),
            fixed(lesion["hull_mL"], 3) + (", open ring" if lesion["open_ring"] else ""),
            _diameters_text(lesion),
            place,
        ]
        if has_finding:
            row.append(lesion["finding"])
        if has_change:
            row.append(_change_text(lesion))
        if "probability" in lesions:
            row.append(fixed(lesion["probability"], 2))
        rows.append(row)
    explained = html_note(
        f"Cores are filled after gaps of up to {CLOSED_GAP_MM:g} mm in the wall are closed; "
        "outlines are convex, one in each axial slice. The longest diameter is that of all axial "
        "slices, from outer edge to outer edge, and the other one is at right angles to it in the "
        "same slice."
    )
    return html_join([*sentences, html_table(rows, header, numbers=range(6)), explained])


def _diameters_text(lesion: Mapping[str, Any], prefix: str = "") -> str:
    """Write the longest axial diameter of a lesion and the one across it."""
    names = ("longest_diameter_mm", "perpendicular_diameter_mm")
    return " × ".join(fixed(lesion[f"{prefix}{name}"], 1) for name in names)


def _sentence(remark: str) -> str:
    """Begin a remark with a capital, and end it."""
    return f"{remark[:1].upper()}{remark[1:].rstrip('.?')}{'?' if remark.endswith('?') else '.'}"


def _change_text(lesion: Mapping[str, Any]) -> str:
    """Say how a lesion changed since the prior scan, and its volume then."""
    change = lesion["change"] if isinstance(lesion["change"], str) else ""
    if not np.isfinite(lesion["prior_volume_with_core_mL"]):
        return change or "–"
    before = (
        f"then {fixed(lesion['prior_volume_with_core_mL'], 3)} mL with its core, "
        f"{_diameters_text(lesion, 'prior_')} mm"
    )
    if lesion["prior_open_ring"]:
        before += f", open ring, {fixed(lesion['prior_hull_mL'], 3)} mL within its outline"
    return f"{change}, {before}".lstrip(", ")


def _sections(
    cases: Sequence[Case],
    predictions: Mapping[str, Sequence[ArrayLike]],
    tables: Mapping[str, pd.DataFrame],
    gallery: Gallery,
    limits: Mapping[str, tuple[float, int]],
    figures: int,
    command: str,
) -> list[tuple[str, Any]]:
    sections: list[tuple[str, Any]] = [
        ("", _answer(cases, tables, gallery)),
        ("Scores", _summaries(tables)),
        ("Scans", _overlays(cases, predictions, tables, gallery, limits, figures)),
        ("By size and by change", _sizes_and_changes(tables)),
    ]
    if len(tables["ensemble"]):
        sections.append(("Marked by both models, and candidates", _ensembles(tables)))
    sections.append(("At other thresholds", _curves(tables, gallery)))
    if len(tables["calibration"]):
        sections.append(("Probabilities", _calibration(tables, gallery)))
    sections.append(("How this was made", _origin(limits, predictions, command)))
    return sections


def _ranked(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Give the scores of the methods on all scans, the best strict F1 first, without controls."""
    summary = tables["summary"]
    scores = summary[(summary["part"] == "all") & ~summary["control"].astype(bool)]
    return scores.sort_values("strict_f1", ascending=False, kind="stable").set_index("method")


def _scans_by_errors(scans: pd.DataFrame, method: str) -> pd.DataFrame:
    """Give the rows of a method's scans, those with most errors first."""
    rows = scans[scans["method"] == method].set_index("case")
    errors = rows["n_lesions"] - rows["n_distinct"] + rows["n_false_positives"] + rows["n_flagged"]
    return rows.loc[errors.sort_values(ascending=False, kind="stable").index]


def _answer(cases: Sequence[Case], tables: Mapping[str, pd.DataFrame], gallery: Gallery) -> Markup:
    """Make the first screen: what the best method finds, and what became of each lesion."""
    from metastasis.study.plotting import plot_strip

    ranked = _ranked(tables)
    best = str(ranked.index[0])
    scores = ranked.iloc[0]
    n_wrong = int(scores["n_false_positives"] + scores["n_flagged"])
    interval = ""
    intervals = tables["intervals"]
    if len(intervals):
        row = intervals.set_index(["part", "method", "measure"]).sort_index()
        low, high = row.loc[("all", best, "strict_sensitivity"), ["low", "high"]]
        if np.isfinite(low):
            interval = f", 95 % interval {percent(low)} to {percent(high)} %"
    leading = f"Best of {len(ranked)}: " if len(ranked) > 1 else ""
    n_found_small = (
        round(scores["sensitivity_small"] * scores["n_small"]) if scores["n_small"] else 0
    )
    verdict = (
        f"{leading}{best} finds {scores['n_distinct']:.0f} of "
        f"{counted(round(scores['n_lesions']), 'lesion')} "
        f"({percent(scores['strict_sensitivity'])} %{interval}), and marks "
        f"{counted(n_wrong, 'wrong finding')} in {counted(len(cases), 'scan')}. "
        f"Of those below {SMALL_ML:g} mL it touches {n_found_small} of {scores['n_small']:.0f}."
    )
    shown = [str(name) for name in ranked.index[:_STRIPS]]
    order = _scans_by_errors(tables["scans"], best)["name"]
    figure = plot_strip(tables["lesions"], list(order), shown, small_ml=SMALL_ML)
    alt = f"What became of each lesion, scan by scan, by {', '.join(shown)}"
    caption = "Each mark is a lesion or a false finding; scans with most errors first."
    strip = gallery.show("strip", figure, alt, caption)
    return html_join([html_paragraph(verdict), strip, _introduction(cases, tables)])


def _introduction(cases: Sequence[Case], tables: Mapping[str, pd.DataFrame]) -> Markup:
    n_patients = len({case.patient for case in cases})
    n_lesions = int(tables["summary"]["n_lesions"].iloc[0])
    n_priors = sum(case.prior is not None for case in cases)
    prefix = "synthetic " if all(case.synthetic for case in cases) else ""
    scans = counted(len(cases), f"{prefix}scan")
    patients = counted(n_patients, f"{prefix}patient")
    text = (
        f"{scans} of {patients} with {counted(n_lesions, 'reference lesion')}; "
        f"{n_priors or 'none'} of the scans with a prior scan."
    )
    paragraphs = [html_paragraph(text)]
    note = few_note(n_patients)
    if note:
        paragraphs.append(html_paragraph(note))
    return html_join(paragraphs)


def _summaries(tables: Mapping[str, pd.DataFrame]) -> Markup:
    summary = tables["summary"]
    wrong = summary["n_false_positives"] + summary["n_flagged"]
    summary = summary.assign(wrong_per_scan=wrong / summary["n_scans"])
    blocks: list[Any] = [html_paragraph(_EXPLAINED)]
    for part in dict.fromkeys(summary["part"]):
        scores = summary[summary["part"] == part]
        strict = _score_table(scores, _STRICT, _STRICT_HEADINGS)
        published = html_join(
            [
                html_paragraph(_PUBLISHED_EXPLAINED),
                _score_table(scores, _PUBLISHED, _PUBLISHED_HEADINGS),
            ]
        )
        if part == "all":
            blocks += [strict, html_details("Published figures, which are less strict", published)]
        else:
            n_scans = int(scores["n_scans"].iloc[0])
            body = html_join([strict, published])
            blocks.append(html_details(f"{counted(n_scans, 'scan')} {part}", body))
    rows = []
    for interval in tables["intervals"].query("part == 'all'").to_dict("records"):
        # Controls are no results, and their intervals would hide those of the methods.
        if interval["method"] in CONTROLS:
            continue
        measure = str(interval["measure"]).replace("_", " ")
        ends = (interval["low"], interval["high"])
        rows.append([interval["method"], measure, _with_interval(interval["value"], *ends)])
    if rows:
        table = html_table(rows, ["method", "measure", "value, 95 % interval"])
        title = "Intervals: bootstrap samples of patients; of 0 and 1 Wilson's"
        blocks.append(html_details(title, table))
    return html_join(blocks)


def _score_table(scores: pd.DataFrame, columns: Sequence[str], headings: Sequence[str]) -> Markup:
    """Make the table of some scores of all methods."""
    writers = {"method": str, **dict.fromkeys(columns, decimals(2))}
    if "n_distinct" in writers:
        writers["n_distinct"] = whole
    return _method_table(record_cells(scores.to_dict("records"), writers), ["method", *headings])


def _with_interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """Write a number with its interval in brackets, where it has one."""
    write = decimals(digits)
    if not np.isfinite(low):
        return write(value)
    return f"{write(value)} ({write(low)} to {write(high)})"


def _interval_sentence(tables: Mapping[str, pd.DataFrame]) -> str:
    """Say what stands in brackets, or why nothing does."""
    n_patients = tables["scans"]["patient"].nunique()
    if n_patients < FEWEST_PATIENTS:
        return f"No intervals: they need {FEWEST_PATIENTS} patients, not {n_patients}."
    if tables["intervals"].empty:
        return ""
    return "In brackets the 95 % interval over patients."


def _sizes_and_changes(tables: Mapping[str, pd.DataFrame]) -> Markup:
    summary = tables["summary"]
    all_scans = summary[summary["part"] == "all"]
    n_small, n_large = all_scans[["n_small", "n_large"]].iloc[0]
    headings = [
        f"below {SMALL_ML:g} mL ({n_small:.0f}): touched",
        "right",
        f"from {SMALL_ML:g} mL ({n_large:.0f}): touched",
        "right",
    ]
    text = html_paragraph(
        "Share of the lesions that a finding touches, and share of the findings of that size that "
        "touch a lesion."
    )
    status = tables["status"]
    keys = ("sensitivity_small", "precision_small", "sensitivity_large", "precision_large")
    size_table = html_join([_score_table(all_scans, keys, headings), *_volumes_and_rules(tables)])
    if not len(status):
        return html_join([text, size_table])
    statuses = list(dict.fromkeys(status["status"]))
    sensitivity = status.set_index(["method", "status"])["sensitivity"]
    counts = status.drop_duplicates("status").set_index("status")["n"]
    rows = []
    for method in dict.fromkeys(status["method"]):
        values = [sensitivity.get((method, name), np.nan) for name in statuses]
        rows.append([method, *(decimals(2)(value) for value in values)])
    titles = [f"{name} ({counts[name]})" for name in statuses]
    status_table = _method_table(rows, ["share touched of", *titles])
    return html_join([text, size_table, status_table])


def _volumes_and_rules(tables: Mapping[str, pd.DataFrame]) -> list[Markup]:
    """Make the tables by range of volume, by two further rules, and of scans without lesions."""
    rows = []
    for record in tables["volumes"].query("n > 0").to_dict("records"):
        volume = f"{record['from_mm3']:.0f} to {record['below_mm3']:.0f} mm³"
        volume = volume.replace("to inf mm³", "mm³ or more")
        recall = _with_interval(record["recall"], record["low"], record["high"])
        rows.append([record["method"], volume, whole(record["n"]), recall])
    header = [
        "method",
        "volume in the reference",
        "lesions",
        "share touched, interval over patients",
    ]
    blocks = [html_details("By range of volume", html_table(rows, header, numbers=(2, 3)))]
    rows = []
    for row in tables["distance"].to_dict("records"):
        for key, measure in zip(SHARES, ("found", "right", "F1"), strict=True):
            share = _with_interval(row[key], row[f"{key}_low"], row[f"{key}_high"])
            rows.append([row["method"], measure, share])
    text = html_paragraph(
        "A finding is right when it touches a lesion and most of it lies within 2 mm, or two "
        f"voxels, of one. {_interval_sentence(tables)}"
    )
    table = html_table(rows, ["method", "measure", "share, interval over patients"], numbers=(2,))
    blocks.append(html_details("By distance", html_join([text, table])))
    keys = ("all_instance_f1", "large_instance_f1", "small_instance_f1", "lesionwise_dsc_mean")
    text = html_paragraph(
        "Findings and lesions paired one to one by Dice, as the official scorer of BraTS-METS: F1 "
        "of all lesions, of those from 20 mm³ and of smaller ones, Dice of the large ones; means "
        "over scans."
    )
    table = _score_table(tables["challenge"], keys, ("F1, all", "large", "small", "Dice"))
    blocks.append(html_details("By the rule of BraTS-METS", html_join([text, table])))
    if len(tables["lesion_free"]):
        writers = {"name": str, "method": str, "n_findings": whole, "marked_mL": decimals(2)}
        rows = record_cells(tables["lesion_free"].to_dict("records"), writers)
        header = ["scan", "method", "findings, all wrong", "marked, mL"]
        table = html_table(rows, header, numbers=(2, 3))
        blocks.append(html_details("Scans without lesions", table))
    return blocks


def _ensembles(tables: Mapping[str, pd.DataFrame]) -> Markup:
    scores = {
        "strict_sensitivity": "lesions found: all marks",
        "both_strict_sensitivity": "marked by both alone",
        "strict_precision": "right: all marks",
        "both_strict_precision": "marked by both alone",
    }
    candidates = {
        "further_true_per_scan": "candidates per scan that are lesions",
        "false_candidates_per_scan": "that are none",
    }
    text = html_paragraph(
        "What only one model marks is a candidate, to be looked at. Shares by the strict rules."
    )
    score_tables = [
        _score_table(tables["ensemble"], list(headings), list(headings.values()))
        for headings in (scores, candidates)
    ]
    return html_join([text, *score_tables])


def _curves(tables: Mapping[str, pd.DataFrame], gallery: Gallery) -> Markup:
    from metastasis.study.plotting import plot_curves

    text = (
        "Large marks: the threshold in use; dots: thresholds from .01 to .99, and with ten "
        "lesions or more the line of the best that they reach. Left: lesions found (strict) over "
        "wrong findings per scan, on a scale that is even up to 1 and logarithmic beyond. Methods "
        "that give no probabilities are marks alone, controls are gray."
    )
    froc = tables["froc"]
    if froc["strict_sensitivity_low"].notna().any():
        text += " Bars: 95 % intervals over patients."
    figure = gallery.show(
        "curves", plot_curves(tables), "Lesions found against wrong findings, by threshold", text
    )
    rows = []
    for area in tables["areas"].to_dict("records"):
        areas = [decimals(3)(area[key]) for key in ("area", "area_common")]
        score = _with_interval(area["froc"], area["froc_low"], area["froc_high"], digits=3)
        rows.append([area["name"], *areas, score])
    header = ["method", "area", "over the range of all", "mean share found"]
    note = html_paragraph(
        "Area under the right picture, over the shares that a method reaches and over those that "
        "all reach; mean share of lesions found at 1/8 to 8 wrong findings per scan (FROC score). "
        f"{_interval_sentence(tables)}"
    )
    blocks = [note, _method_table(rows, header)]
    rows = []
    for row in froc.to_dict("records"):
        ends = (row["strict_sensitivity_low"], row["strict_sensitivity_high"])
        share = _with_interval(row["strict_sensitivity"], *ends)
        threshold = decimals(2)(row["threshold"])
        rows.append([row["method"], f"{row['rate']:g}", threshold, share])
    if rows:
        header = ["method", "wrong per scan, at most", "threshold", "share found"]
        blocks.append(html_table(rows, header, numbers=(1, 2, 3)))
    return html_join([figure, html_details("Areas and the FROC score", html_join(blocks))])


def _calibration(tables: Mapping[str, pd.DataFrame], gallery: Gallery) -> Markup:
    from metastasis.study.plotting import plot_calibration

    text = (
        "Voxels of the brain, and components by their mean probability; a mark for each tenth "
        "that holds any."
    )
    figure = gallery.show(
        "calibration", plot_calibration(tables), "How often probabilities come true", text
    )
    errors = tables["calibration"].drop_duplicates(["method", "level"])
    columns = {"method": str, "level": str, "error": decimals(3)}
    rows = record_cells(errors.to_dict("records"), columns)
    header = ["method", "level", "expected calibration error"]
    return html_join([figure, html_table(rows, header, numbers=(2,))])


def _overlays(
    cases: Sequence[Case],
    predictions: Mapping[str, Sequence[ArrayLike]],
    tables: Mapping[str, pd.DataFrame],
    gallery: Gallery,
    limits: Mapping[str, tuple[float, int]],
    figures: int,
) -> Markup:
    from metastasis.study.plotting import plot_overlay

    best = next(name for name in _ranked(tables).index if name in predictions)
    # A page of all scans would be too long, and what went wrong tells most.
    order = _scans_by_errors(tables["scans"], best).index[:figures]
    text = (
        f"{len(order)} of {counted(len(cases), 'scan')}, those in which {best} has most errors "
        "first; each at the largest lesion that is missed, or else at the largest false positive. "
        "The patient's right is at the left."
    )
    blocks = [html_paragraph(text)]
    for i in order:
        case = cases[i]
        scan_values = {best: np.asarray(predictions[best][i])}
        scan_values |= {name: np.asarray(values[i]) for name, values in predictions.items()}
        # A viewer holds whole volumes, so only the scan with most errors has one.
        if i == order[0]:
            blocks.append(_planes(case, scan_values, limits))
        pictures = []
        for name, values in scan_values.items():
            labels = _labels(values, *limits[name])
            ensemble = values.dtype.kind != "f" and any(
                np.max(prediction) == 2 for prediction in predictions[name]
            )
            title = f"{case.name} by {name}"
            figure = plot_overlay(case, labels, of_two_models=ensemble, title=title)
            prefix = "Synthetic scan" if case.synthetic else "Scan"
            caption = f"{prefix} {title} in three planes"
            pictures.append(gallery.show(f"overlay-{i}", figure, caption))
        blocks.append(pictures[0])
        if len(pictures) > 1:
            others = html_join(pictures[1:])
            blocks.append(html_details(f"{case.name} by the other methods", others))
    return html_join(blocks)


def _labels(values: NDArray[Any], threshold: float, min_voxels: int) -> NDArray[np.uint8]:
    """Mark the voxels from a method's threshold on, in components that are large enough."""
    if values.dtype.kind == "f":
        values = values >= threshold
    labels = values.astype(np.uint8)
    return labels * drop_small(labels, min_voxels)


def _planes(
    case: Case, predictions: Mapping[str, NDArray[Any]], limits: Mapping[str, tuple[float, int]]
) -> Markup:
    """Make the viewer of one scan with the results of each method."""
    layers = [Layer("scan", case.image)]
    if case.prior is not None:
        layers.append(Layer("prior scan", case.prior))
    for name, values in predictions.items():
        if values.dtype.kind == "f":
            layers.append(
                Layer(name, values, "score", window=(0.0, 1.0), threshold=limits[name][0])
            )
    if case.label is not None:
        layers.append(Layer("reference", case.label, "mask", colors=(REFERENCE,)))
    points = []
    for k, (name, values) in enumerate(predictions.items()):
        labels = _labels(values, *limits[name])
        names = ("candidate", MARKED_BY_BOTH) if labels.max(initial=0) == 2 else ()
        # Further methods have colors of their own.
        own = _COLORS[-max(len(names), 1) :] if k == 0 else ()
        layers.append(Layer(name, labels, "mask", names=names, shown=k == 0, colors=own))
        if k == 0:
            points = _points(case, labels, name)
    prefix = "Synthetic scan" if case.synthetic else "Scan"
    title = f"{prefix} {case.name}"
    viewer = html_viewer(
        layers,
        case.affine,
        points=points,
        region=case.brain,
        image="scan",
        label=title,
        instead=html_note("The pictures below show the same scan."),
    )
    return html_join([html_heading(title), viewer])


def _points(case: Case, labels: NDArray[Any], method: str) -> list[tuple[str, list[float]]]:
    """List the points of the viewer: the center of a method's picture, then the lesions."""
    from dmrifit.stats.lesion_matching import lesion_table
    from metastasis.study.plotting import place_to_show

    center, title = place_to_show(case, labels)
    points = [(f"{title} ({method})", [float(x) for x in center])]
    if case.label is None:
        return points
    table = lesion_table(case.label, labels > 0, case.affine)
    for lesion in table[table["kind"] == "lesion"].to_dict("records"):
        state = "found" if lesion["found"] else "missed"
        title = f"lesion {lesion['number']}: {lesion['volume_mL']:.3f} mL, {state}"
        points.append((title, [lesion[axis] for axis in "xyz"]))
    return points


def _origin(
    limits: Mapping[str, tuple[float, int]],
    predictions: Mapping[str, Sequence[ArrayLike]],
    command: str,
) -> Markup:
    rows = []
    for name, values in predictions.items():
        threshold, min_voxels = limits[name]
        rule = "labels as given"
        if np.asarray(values[0]).dtype.kind == "f":
            rule = f"probability of {threshold:.4g} and above"
        if min_voxels > 1:
            rule += f", findings from {min_voxels} voxels"
        rows.append([name, rule])
    return html_origin(command, rows)
