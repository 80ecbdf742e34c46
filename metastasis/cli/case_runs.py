"""Runs that segment many scans: files of a scan, tables and page of all, reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dmrifit.cli.case_runs import CaseRun, RunPage
from dmrifit.io import case_tables
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import Volume
from dmrifit.io.nifti import describe_sources
from dmrifit.io.tables import TABLE
from dmrifit.networks.volume_cases import called
from metastasis.scans.cases import Case
from metastasis.scans.preparation import prepare_scan
from metastasis.scans.scan_checks import NotedCase, side_note, unlike_notes
from metastasis.segmentation.ensemble import (
    MARKED_BY_BOTH,
    SensitivitySpecificityEnsemble,
    models_of,
    segment_by,
    smallest_finding,
    thresholds_of,
)
from metastasis.study.findings import findings_in_words, large_finding_notes, open_ring_notes
from metastasis.study.followup import changes_in_words, reader_table
from metastasis.study.lesion_sizes import FIGURES
from metastasis.study.report import batch_blocks, scan_page

_PROBABILITY = "probability.nii.gz"
_LABEL = "label.nii.gz"
_OVERLAY = "overlay.png"
_VIEW = "view.html"
# Sums of voxels would end like 1.5479999999999998, edges of single precision like 0.210000003.
_DIGITS = 6
#: Columns of the table of segmentations that are fields of the record of a scan.
_RESULTS = ("n_lesions", "n_marked_by_both", "volume_mL", "volume_with_core_mL", "statement")
#: Columns of lesions that single models give: they compare no models and segment no prior scan.
_SINGLE_MODEL_COLUMNS = ("number", *FIGURES, "x", "y", "z", "probability", "mean_probability")


def scans_of(cases: Sequence[Case], *, labels: bool = False) -> dict[str, list[Any]]:
    """Give the scans of cases as images with affines, as a segmenter takes or learns them."""
    keys = {"volumes": "image", "priors": "prior", "masks": "brain"}
    if labels:
        keys["labels"] = "label"
    scans: dict[str, list[Any]] = {name: [] for name in keys}
    for case in cases:
        for name, key in keys.items():
            values = getattr(case, key)
            scans[name].append(None if values is None else Volume.of(values, case.affine))
    return scans


def _row(folder: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of a scan in the table of segmentations."""
    return {
        **{key: record[key] for key in ("name", "patient")},
        "probability": f"{folder}/{_PROBABILITY}",
        "label": f"{folder}/{_LABEL}",
        **{key: record[key] for key in ("threshold", "min_voxels", *_RESULTS)},
        "notes": "; ".join(record["notes"]),
        "synthetic": "true" if record["synthetic"] else "false",
    }


def _page(out: Path, records: Mapping[str, dict[str, Any]], lesions: pd.DataFrame) -> RunPage:
    """Make the page of all scans, with their overlays."""
    pictures = {}
    for folder, record in records.items():
        alt = f"Findings of {record['name']} in three planes"
        pictures[folder] = RUN.shown(out / folder, {_OVERLAY: alt})
    title = "Segmentations"
    if any(record["n_marked_by_both"] is not None for record in records.values()):
        title = "Marked by both models, and candidates"
    overview, shown, note = batch_blocks(records, lesions, pictures)
    return RunPage(title, [overview], shown, note)


def read_segmentations(
    table: Path, cases: Sequence[Case]
) -> tuple[list[NDArray[Any]], float | None, int]:
    """
    Read predictions (x, y, z) of cases that a run wrote, its threshold and smallest lesion.

    An ensemble has two thresholds: None.
    """
    table = table / RUN.table if table.is_dir() else table
    results = case_tables.ResultTable.read(table, [case.name for case in cases])
    # Scores of cases at different thresholds are those of no operating point.
    threshold = results.setting("threshold", float, None)
    min_voxels = results.setting("min_voxels", int, 1)
    # Ensembles have two thresholds: labels tell candidates from lesions that both mark.
    column = "label" if threshold is None else "probability"
    for row in results.rows:
        if not row.get(column):
            raise ValueError(f"{table}: {row['name']} has no {column}; give the table of segment")
    predictions: list[NDArray[Any]] = []
    for volume in results.volumes(column, cases):
        volume = np.rint(volume) if threshold is None else volume
        predictions.append(volume.astype(np.uint8 if threshold is None else np.float32))
    # Labels without a threshold come from elsewhere, and may be of a single model.
    if not results.rows[0].get("threshold"):
        threshold = 0.5
    return predictions, threshold, min_voxels


def segment_case(
    scan: NotedCase,
    folder: Path,
    *,
    segmenter: Any,
    figure: bool,
    figures: Mapping[str, Any],
    source: Path | None = None,
    files: Mapping[str, Mapping[str, Path]] | None = None,
) -> dict[str, Any]:
    """
    Segment a case and write its files, its record last; give the record.

    `figures` are what is known of the model, `source` is the file of a case that has no table,
    `files` are those of cases by name.
    """
    case, notes = scan
    is_ensemble = isinstance(segmenter, SensitivitySpecificityEnsemble)
    images = scans_of([case])
    prior_labels, n_marked_by_both = None, None
    models = models_of(segmenter)
    threshold: Any = thresholds_of(segmenter)
    min_voxels: Any = [smallest_finding(model, images["volumes"][0]) for model in models]
    with called([str(source or case.name)]):
        labels, probability = next(iter(segment_by(segmenter, **images)))
        if is_ensemble and case.prior is not None:
            # The same models see both scans, so that a change is one of the patient and not of
            # the method.
            images |= {"volumes": images["priors"], "priors": [None]}
            prior_labels = next(iter(segment_by(segmenter, **images)))[0]
    table = reader_table(labels, case.affine, probability=probability, prior=prior_labels)
    table = table.round(_DIGITS)
    if is_ensemble:
        # The table lists vanished lesions of the prior scan, too.
        lesions = table[table["finding"] != "prior only"]
        n_marked_by_both = int((lesions["finding"] == MARKED_BY_BOTH).sum())
    else:
        lesions = table = table[list(_SINGLE_MODEL_COLUMNS)]
        (threshold,), (min_voxels,) = threshold, min_voxels
    # Of an ensemble the sensitive one, which marks most, and whose figures are given.
    network = getattr(models[0], "segmenter_", models[0])
    seen = getattr(network, "seen_", None) or figures.get("seen")
    remarks = [*notes, *unlike_notes(case, seen, labels)]
    options: dict[str, Any] = {"is_noted": bool(remarks), "n_models": len(models)}
    statement = findings_in_words(len(lesions), figures, **options)
    # Sizes and sides say nothing of how the scan differs from those of the training.
    all_notes = [*remarks, *large_finding_notes(case.name, lesions, figures)]
    all_notes += [*open_ring_notes(case.name, lesions), side_note(case, lesions)]
    if prior_labels is not None:
        statement += f"; since the prior scan: {changes_in_words(table)}"
    content: dict[str, Any] = {
        **inputs(scan),
        "files": describe_sources(**(files or {}).get(case.name, {})),
        "threshold": threshold,
        "min_voxels": min_voxels,
        "n_lesions": len(lesions),
        "n_marked_by_both": n_marked_by_both,
        "volume_mL": round(float(lesions["volume_mL"].sum()), _DIGITS),
        "volume_with_core_mL": round(float(lesions["volume_with_core_mL"].sum()), _DIGITS),
        "statement": statement,
        "model": figures.get("model", ""),
        # The record names the scan.
        "notes": [note.removeprefix(f"{case.name}: ") for note in all_notes if note],
    }
    drawing = None
    if figure:
        from metastasis.study.plotting import plot_overlay

        drawing = plot_overlay(case, labels, of_two_models=is_ensemble)
    shown = None if is_ensemble else threshold
    page = partial(scan_page, case, labels, probability, lesions, threshold=shown)
    page = partial(page, remarks=[*content["notes"], statement, content["model"]])
    maps = {_PROBABILITY: Volume.of(probability, case.affine)}
    maps[_LABEL] = Volume.of(labels, case.affine)
    return RUN.write_case(folder, content, table, maps, drawing, page)


def inputs(scan: NotedCase) -> dict[str, Any]:
    """Give what the table says of a case, and all its arrays."""
    case = scan[0]
    known = {"name": case.name, "patient": case.patient, "synthetic": case.synthetic}
    sources = {key: getattr(case, key) for key in ("image", "prior", "brain", "label", "affine")}
    return known | {"sources": sources}


RUN = CaseRun(
    record="{name}/segmentation.json",
    table="segmentations.tsv",
    bids="anat/*_T1w.nii*",
    row=_row,
    page=_page,
    lesions="lesions.tsv",
    files=(_PROBABILITY, _LABEL, "lesions.tsv", _OVERLAY, _VIEW),
    flag="notes",
    noun="scan",
)


def prepare_case(
    scan: tuple[dict[str, str], dict[str, Path]], folder: Path, *, spacing: float
) -> dict[str, Any]:
    """Prepare one of many scans in a folder of its own; give its record."""
    row, files = scan
    sources = describe_sources(**files)
    result = prepare_scan(**files, spacing=spacing, out=folder, overwrite=True)
    start = f"{folder.name}/{stem(files['image'])}"
    endings = {"image": "", "prior": "_prior", "brain": "_brain"}
    written = {key: f"{start}{end}.nii.gz" for key, end in endings.items() if getattr(result, key)}
    record: dict[str, Any] = {**scan_names(row), "files": written}
    record |= {"likeness": result.likeness, "notes": result.notes}
    record |= {"synthetic": row.get("synthetic") == "true", "sources": sources}
    return PREPARATION.keep(folder.parent, folder.name, record)


def scan_names(row: Mapping[str, str]) -> dict[str, str]:
    """Give the names of a scan, and of its patient, in a row of a table."""
    return {"patient": row["patient"], "name": row.get("name") or row["patient"]}


PREPARATION = CaseRun(
    record="{name}/prepared.json",
    table=TABLE,
    bids="anat/*_T1w.nii*",
    row=lambda _, record: {
        **{key: record[key] for key in ("patient", "name")},
        "likeness": "" if record["likeness"] is None else f"{record['likeness']:.3f}",
        "notes": "; ".join(record["notes"]),
        "synthetic": "true" if record["synthetic"] else "false",
        **{key: record["files"].get(key, "") for key in ("image", "prior", "brain")},
    },
    files=("*.nii.gz", "*_prepared.json"),
    line=lambda record: "\n".join(record["notes"]),
    note="Likeness is the median local correlation with the aligned prior scan, at most 1.",
    flag="notes",
    noun="scan",
)
