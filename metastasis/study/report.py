"""Report pages of segmentations: of a run over scans, and of a comparison with references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from dmrifit.report.viewer import Layer, html_viewer, viewer_page
from metastasis.study.controls import CONTROLS
from metastasis.study.evaluation import evaluate_segmentations, for_method, format_summary

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
    "status",
    "ensemble",
    "curves",
    "calibration",
    "areas",
)
PAGE = "report.html"

_method_table = partial(html_methods, controls=CONTROLS)

_FIGURES = ("curves.png", "calibration.png")
_HEADINGS = {
    "sensitivity": "sensitivity",
    "precision": "precision",
    "n_false_positives": "false positives",
    "mDSC": "mDSC",
    "strict_sensitivity": "strict sensitivity",
    "strict_precision": "strict precision",
    "strict_f1": "strict F1",
    "lesion_dice": "lesion-wise Dice",
    "lesion_f1": "lesion-wise F1",
}
_EXPLAINED = (
    "A lesion is found when a predicted component shares a voxel with it; a component that "
    "touches none is a false positive; mDSC is the mean Dice coefficient of lesions that were "
    "found. By this published rule one component over the whole brain is perfect. Strict figures "
    "do not count a component that covers several lesions or more than ten times the volume of "
    "one, and call it wrong. Lesion-wise Dice and F1 are those of BraTS-METS: 0 for each lesion "
    "that is missed and each false positive; one component over everything has such an F1 of 1, "
    "too. Gray rows are segmentations made without looking."
)


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
        limits = {
            name: (for_method(threshold, name, 0.5), for_method(min_voxels, name, 1))
            for name in predictions
        }
        sections = _sections(cases, predictions, tables, gallery, limits, figures, command)
        page = viewer_page(
            "Segmentations compared with reference lesions",
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
) -> str:
    """Make the page of a run over scans."""
    lead = notice_lead(content["synthetic"] for content in contents)
    ensemble = any(content["n_confirmed"] is not None for content in contents)
    header = ["scan", "patient", "lesions"]
    if ensemble:
        header.append("confirmed")
    header += ["volume, mL", "synthetic"]
    rows = []
    for content in contents:
        row = [content["name"], content["patient"], content["n_lesions"]]
        if ensemble:
            row.append(content["n_confirmed"])
        row.append(f"{content['volume_mL']:.2f}")
        row.append("synthetic" if content["synthetic"] else "no")
        rows.append(row)
    sections: list[tuple[str, Any]] = [
        ("All scans", html_table(rows, header, numbers=range(2, len(header) - 1)))
    ]
    for content in contents:
        name = content["name"]
        title = f"{name} (synthetic)" if content["synthetic"] else name
        scan_lesions = _lesion_lines(lesions[lesions["name"] == name])
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
) -> str:
    """Make the page of one scan: labels and probability (x, y, z) over it, in three planes."""
    # Only an ensemble has no single threshold.
    names = ("candidate", "confirmed") if threshold is None else ("found",)
    layers = [Layer("scan", case.image)]
    if case.prior is not None:
        layers.append(Layer("prior scan", case.prior))
    layers += [
        Layer("probability", probability, "score", window=(0.0, 1.0), threshold=threshold),
        Layer("segmentation", labels, "mask", names=names),
    ]
    if case.label is not None:
        # Hidden at first, so that a reader judges before the answer is seen.
        layers.append(Layer("reference", case.label, "mask", shown=False))
    located_lesions = lesions.dropna(subset=["x", "y", "z"]).to_dict("records")
    points = [
        (f"{number}: {lesion['volume_mL']:.3f} mL", [lesion[axis] for axis in "xyz"])
        for number, lesion in enumerate(located_lesions, start=1)
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
    sections = [("", planes), ("What was found", _lesion_lines(lesions))]
    return viewer_page(case.name, sections, lead=notice_lead([case.synthetic]))


def _lesion_lines(lesions: pd.DataFrame) -> Markup:
    """Make the table of the lesions of a scan, or say that there is none."""
    if not len(lesions):
        return html_paragraph("Nothing was found.")
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "finding": ("finding", str),
        "change": (
            "since the prior scan",
            lambda text: text if isinstance(text, str) and text else "–",
        ),
        "volume_mL": ("volume, mL", decimals(3)),
        "diameter_mm": ("diameter, mm", decimals(1)),
        **{axis: (axis, decimals(1)) for axis in "xyz"},
        "probability": ("probability", decimals(2)),
        "prior_volume_mL": ("then, mL", decimals(3)),
    }
    # Runs without priors or probabilities lack some of the columns.
    present = {key: column for key, column in columns.items() if key in lesions}
    rows = []
    for number, lesion in enumerate(lesions.to_dict("records"), start=1):
        cells = [write(lesion[key]) for key, (_, write) in present.items()]
        rows.append([str(number), *cells])
    header = ["", *(title for title, _ in present.values())]
    text_columns = ("finding", "change")
    numbers = [0, *(i for i, key in enumerate(present, start=1) if key not in text_columns)]
    return html_table(rows, header, numbers=numbers)


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
        ("", _introduction(cases)),
        ("Lesions found", _summaries(tables)),
        ("By size and by change", _sizes_and_changes(tables)),
    ]
    if len(tables["ensemble"]):
        sections.append(("Confirmed and candidates", _ensembles(tables)))
    sections.append(("Over thresholds", _curves(tables, gallery)))
    if len(tables["calibration"]):
        sections.append(("Probabilities", _calibration(tables, gallery)))
    overlays = _overlays(cases, predictions, tables, gallery, limits, figures)
    sections.append(("Scans", overlays))
    sections.append(("How this was made", _origin(limits, predictions, command)))
    return sections


def _introduction(cases: Sequence[Case]) -> Markup:
    from dmrifit.stats.lesion_matching import label_components

    n_patients = len({case.patient for case in cases})
    labels = [case.label for case in cases if case.label is not None]
    n_lesions = sum(int(label_components(label).max(initial=0)) for label in labels)
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
    blocks: list[Any] = [html_paragraph(_EXPLAINED)]
    for subset in dict.fromkeys(summary["part"]):
        table = format_summary(tables, part=subset)
        title = "all scans" if subset == "all" else f"scans {subset}"
        header = [title, *(_HEADINGS[key] for key in table.columns)]
        body = _method_table(table.reset_index().to_numpy().tolist(), header)
        if subset != "all":
            n_scans = int(summary.loc[summary["part"] == subset, "n_scans"].iloc[0])
            body = html_details(f"{counted(n_scans, 'scan')} {subset}", body, opened=False)
        blocks.append(body)
    rows = []
    for interval in tables["intervals"].to_dict("records"):
        # Controls are no results, and their intervals would hide those of the methods.
        if interval["method"] in CONTROLS:
            continue
        numbers = [decimals(3)(interval[key]) for key in ("value", "low", "high")]
        rows.append([interval["part"], interval["method"], interval["measure"], *numbers])
    if rows:
        table = html_table(
            rows, ["part", "method", "measure", "value", "2.5 %", "97.5 %"], numbers=(3, 4, 5)
        )
        blocks.append(html_details("Intervals: bootstrap samples of patients", table))
    return html_join(blocks)


def _sizes_and_changes(tables: Mapping[str, pd.DataFrame]) -> Markup:
    summary = tables["summary"]
    all_scans = summary[summary["part"] == "all"]
    columns = {
        "method": str,
        "n_small": whole,
        "sensitivity_small": decimals(3),
        "precision_small": decimals(3),
        "n_large": whole,
        "sensitivity_large": decimals(3),
        "precision_large": decimals(3),
    }
    rows = record_cells(all_scans.to_dict("records"), columns)
    header = [
        "method",
        "below 0.1 mL",
        "sensitivity",
        "precision",
        "0.1 mL and above",
        "sensitivity",
        "precision",
    ]
    status = tables["status"]
    size_table = _method_table(rows, header)
    if not len(status):
        return html_join([size_table])
    statuses = list(dict.fromkeys(status["status"]))
    sensitivity = status.set_index(["method", "status"])["sensitivity"]
    counts = status.drop_duplicates("status").set_index("status")["n"]
    rows = []
    for method in dict.fromkeys(status["method"]):
        values = [sensitivity.get((method, name), np.nan) for name in statuses]
        rows.append([method, *(decimals(3)(value) for value in values)])
    titles = [f"{name} ({counts[name]})" for name in statuses]
    status_table = _method_table(rows, ["sensitivity to lesions that are", *titles])
    return html_join([size_table, status_table])


def _ensembles(tables: Mapping[str, pd.DataFrame]) -> Markup:
    keys = {
        "strict_sensitivity": "strict sensitivity, all",
        "strict_precision": "strict precision, all",
        "confirmed_strict_sensitivity": "strict sensitivity, confirmed",
        "confirmed_strict_precision": "strict precision, confirmed",
        "further_true_per_scan": "true candidates per scan",
        "false_candidates_per_scan": "false candidates per scan",
    }
    columns = {"method": str} | dict.fromkeys(keys, decimals(3))
    rows = record_cells(tables["ensemble"].to_dict("records"), columns)
    return _method_table(rows, ["method", *keys.values()])


def _curves(tables: Mapping[str, pd.DataFrame], gallery: Gallery) -> Markup:
    from metastasis.study.plotting import plot_curves

    text = (
        "Strict figures. A mark is the threshold in use; lines go over thresholds from .01 to "
        ".99. Methods that give no probabilities are marks alone, controls are gray."
    )
    figure = gallery.show(
        "curves", plot_curves(tables), "FROC and precision over sensitivity of each method", text
    )
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "name": ("method", str),
        "kind": ("over", str),
        "n_points": ("points", whole),
        "low": ("from sensitivity", decimals(3)),
        "high": ("to", decimals(3)),
        "area": ("area", decimals(3)),
        "area_common": ("area, common range", decimals(3)),
        "froc": ("FROC score", decimals(3)),
    }
    writers = {key: write for key, (_, write) in columns.items()}
    rows = record_cells(tables["areas"].to_dict("records"), writers)
    table = _method_table(rows, [title for title, _ in columns.values()], 2)
    return html_join([figure, html_details("Areas under precision over sensitivity", table)])


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

    first = next(iter(predictions))
    counts = tables["scans"][tables["scans"]["method"] == first].set_index("case")
    n_missed = counts["n_lesions"] - counts["n_distinct"]
    errors = n_missed + counts["n_false_positives"] + counts["n_flagged"]
    # A page of all scans would be too long, and what went wrong tells most.
    order = errors.sort_values(ascending=False, kind="stable").index[:figures]
    text = (
        f"{len(order)} of {counted(len(cases), 'scan')}, those in which {first} has most errors "
        "first; each at the largest lesion that is missed, or else at the largest false positive. "
        "The patient's right is at the left."
    )
    blocks = [html_paragraph(text)]
    for i in order:
        case = cases[i]
        scan_values = {name: np.asarray(values[i]) for name, values in predictions.items()}
        # A viewer holds whole volumes, so only the scan with most errors has one.
        if i == order[0]:
            blocks.append(_planes(case, scan_values, limits))
        for name, values in scan_values.items():
            labels = _labels(values, *limits[name])
            ensemble = values.dtype.kind != "f" and any(
                np.max(prediction) == 2 for prediction in predictions[name]
            )
            title = f"{case.name} by {name}"
            figure = plot_overlay(case, labels, confirmable=ensemble, title=title)
            prefix = "Synthetic scan" if case.synthetic else "Scan"
            caption = f"{prefix} {title} in three planes"
            blocks.append(gallery.show(f"overlay-{i}", figure, caption))
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
        layers.append(Layer("reference", case.label, "mask"))
    points = []
    for k, (name, values) in enumerate(predictions.items()):
        labels = _labels(values, *limits[name])
        names = ("candidate", "confirmed") if labels.max(initial=0) == 2 else ()
        layers.append(Layer(name, labels, "mask", names=names, shown=k == 0))
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
