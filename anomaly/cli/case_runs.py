"""Runs that detect anomalies in many scans: write files, tables and page, read them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly.scans.detection import Detection, mean_over_scans
from anomaly.scans.series import SeriesDetector, SeriesFiles
from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit._utils.checks import errors_about
from dmrifit._utils.counts import counted
from dmrifit._utils.progress import progress
from dmrifit.cli.case_runs import CaseRun, RunPage
from dmrifit.io import case_tables
from dmrifit.io.bids_derivatives import file_record
from dmrifit.io.grids import Volume
from dmrifit.report import page
from dmrifit.report.numerals import wording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from anomaly.scans.preparation import PreparedScan

_FILES = {"map": "map.nii.gz", "binary": "binary.nii.gz", "opened": "opened.nii.gz"}
_PANELS = "panels.png"
_VIEW = "view.html"
_BRIGHTEST = 3.0  # upper end of a map's color scale, in thresholds
_NUMBERS = ("threshold", "opening", "n_lesions", "volume_mL", "share_above")
_TEXTS = page.Texts(__file__)
_AS_A_WHOLE = {True: "differs", False: "as healthy ones", None: "not judged"}
_WORDS = {True: "true", False: "false", None: None}


def detect_scan(
    scan: SeriesFiles,
    folder: Path,
    *,
    detector: SeriesDetector,
    model: str,
    figure: bool,
    **options: Any,
) -> dict[str, Any]:
    """Detect anomalies in a scan and write its files; give its record."""
    # Before the detection, during which the files could change.
    sources = inputs(scan)
    detection = detector.detect(scan, **options)
    case = detection.scan.case
    table = detection.lesions
    healthy = detection.healthy
    n_healthy = len(healthy.scans) if healthy else 0
    # Of a scan that is too small, none found is not none there.
    is_unknown = bool(detection.too_small) and table.empty
    record: dict[str, Any] = {
        "name": case.name,
        "patient": case.patient,
        "synthetic": case.synthetic,
        "threshold": detection.threshold if np.isfinite(detection.threshold) else None,
        "opening": detection.opening,
        "n_lesions": None if is_unknown else len(table),
        "volume_mL": None if is_unknown else float(table["volume_mL"].sum()),
        "share_above": detection.figures.share,
        "differs": detection.differs,
        "flags": detection.flags,
        "whole_scan": {"bulk": detection.figures.named_bulk, "n_healthy": n_healthy},
        "notes": detection.notes,
        "model": model,
        "healthy": {
            "anomalies_per_scan": detection.healthy_per_scan,
            "n_scans": n_healthy,
            "without_fluid": detection.without_fluid,
            "origin": "calibration" if healthy and healthy.adjusted else "training",
        },
        "preparation": dict(detection.scan.notes),
        "lesion_space": _TEXTS["lesion_space"],
        **sources,
    }
    images = {_FILES[key]: image for key, image in detection.images().items()}
    drawing = _panels(detection) if figure else None
    above = {"mL": detection.found.sum() * voxel_volume(case.affine) / MM3_PER_ML, **record}
    share = wording(_TEXTS["above"], above)
    sentences = [count_sentence([record]), share, *detection.notes, model]
    view = partial(_view, detection, sentences=sentences)
    return RUN.write_case(folder, record, table, images, drawing, view)


def inputs(scan: SeriesFiles) -> dict[str, Any]:
    """Give the digests of the files of a scan, its names, and the covariates, as text."""
    digests = {role: file_record(path)["SHA256"] for role, path in scan.files.items()}
    covariates = {"patient": scan.patient, "name": scan.name} | dict(scan.known)
    return {"sources": digests, "known": {key: str(x) for key, x in covariates.items()}}


def _row(_folder: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of a scan in the table of detections."""
    row = {key: record[key] for key in ("name", "patient")}
    row |= {key: f"{record['folder']}/{file}" for key, file in _FILES.items()}
    row |= {key: record[key] for key in _NUMBERS}
    row["n_lesions_healthy"] = record["healthy"]["anomalies_per_scan"]
    row |= {key: _WORDS[record[key]] for key in ("differs", "synthetic")}
    return row | {key: "; ".join(record[key]) for key in ("flags", "notes")}


def count_sentence(contents: Sequence[Mapping[str, Any]]) -> str:
    """Count the anomalies of scans beside those that healthy scans have at the same threshold."""
    judged = _judged(contents)
    if not judged:
        return f"{counted(len(contents), 'scan')}, too small to be judged"
    counts = [content["n_lesions"] for content in judged]
    # All scans of a run have one model, but fluid may count in some of them alone.
    least = min((one["healthy"] for one in judged), key=lambda one: not one.get("without_fluid"))
    values = {**least, "mean": float(np.mean(counts))}
    # The records of earlier versions do not say whether fluid was left out.
    reference = _TEXTS["without_fluid" if values.get("without_fluid") else "unknown"]
    if values["anomalies_per_scan"] is not None:
        scans = counted(values["n_scans"], "healthy scan")
        reference = f"{{anomalies_per_scan:.2f}} per scan in {scans} {_TEXTS[values['origin']]}"
    n_free = counts.count(0)
    free = f"; in {counted(n_free, 'scan')} {_TEXTS['none']}" if n_free else ""
    n_small = len(contents) - len(judged)
    text = (
        f"{counted(sum(counts), 'anomaly', 'anomalies')} in {counted(len(judged), 'scan')} "
        f"({{mean:.2f}} per scan; {reference}){free}"
        f"{f'; {n_small} too small to be judged' if n_small else ''}"
    )
    return wording(text, values)


def _judged(contents: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Give the scans that are large enough to be without anomalies."""
    return [content for content in contents if content["n_lesions"] is not None]


def above_in_words(
    shares: Sequence[float], n_components: Sequence[int], threshold: str = "the threshold"
) -> str:
    """Describe what lies above a threshold in scans: means, with intervals over the scans."""
    share, low, high = mean_over_scans(shares)
    shown = {"share": share, "low": low, "high": high, "highest": max(shares)}
    shown |= zip(("n", "n_low", "n_high"), mean_over_scans(n_components), strict=True)
    # Few scans have no interval.
    interval = wording(_TEXTS["interval"], shown) if np.isfinite(low) else ""
    return _TEXTS("above_in_scans", threshold=threshold, interval=interval, **shown)


def scan_sentences(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell the share above the threshold over scans, and what was noted of how many."""
    judged = _judged(contents)
    shown = (judged or contents)[0]
    text = wording("{name}: {share_above:.1%} % of the voxels above the threshold", shown)
    if len(judged) > 1:
        shares = [content["share_above"] for content in judged]
        counts = [content["n_lesions"] for content in judged]
        text = f"means over scans: {above_in_words(shares, counts)}"
    sentences = [text]
    # Each note once, with the number of its scans.
    for note, n in Counter(note for content in contents for note in content["notes"]).items():
        sentences.append(f"{counted(n, 'scan')}: {note}")
    return sentences


def _page(out: Path, records: Mapping[str, Mapping[str, Any]], _lesions: Any) -> RunPage:
    """Make the page of all scans."""
    contents = list(records.values())
    rows, pictures = [], []
    for content in contents:
        threshold = content["threshold"]
        diameters = [lesion["diameter_mm"] for lesion in content["lesions"]]
        row = {
            **content,
            "threshold": "scan-specific" if threshold is None else f"{threshold:.4g}",
            "largest": max(diameters, default=np.nan),
            "as_a_whole": _AS_A_WHOLE[content["differs"]],
        }
        if content["n_lesions"] is None:
            row |= {"n_lesions": "unknown", "volume_mL": np.nan}
        rows.append(row)
        caption = _TEXTS("panels", name=content["name"])
        parts = RUN.shown(out / content["folder"], {_PANELS: caption}, width=900)
        flags = [page.Note(page.sentence(flag)) for flag in content["flags"]]
        pictures.append((content["name"], [*flags, *parts]))
    # Scans are flagged beside their pictures.
    overview = [
        page.sentence(count_sentence(contents)),
        page.Table(rows, _TEXTS["overview"]),
        *map(page.sentence, [*scan_sentences(contents), contents[0]["model"]]),
    ]
    return RunPage("Anomalies", overview, pictures)


def read_detections(
    tables: Mapping[str, Path], scans: Sequence[PreparedScan], openings: dict[str, int]
) -> dict[str, list[NDArray[Any]]]:
    """
    Read maps (x, y, z), and the binary maps at the threshold stored with their model.

    `openings` takes the edge of the cube of each method's opening; earlier tables do not say it,
    and had that of the study unless asked otherwise.
    """
    from anomaly.study.report import STORED
    from dmrifit.io.masks import MASK_THRESHOLD

    names = [scan.case.name for scan in scans]
    maps: dict[str, list[NDArray[Any]]] = {}
    for method, table in tables.items():
        table = table / RUN.table if table.is_dir() else table
        results = case_tables.ResultTable.read(table, names, ("map", "binary"))
        opening = results.setting("opening", int, 3)
        if openings.setdefault(method, opening) != opening:
            raise ValueError(
                f"{table}: opened by {opening}³ voxels, other scans of {method} by "
                f"{openings[method]}³; detect with one --opening"
            )
        # A method of its own, because its threshold was set before these scans were seen.
        stored = f"{method}{STORED}"
        openings[stored] = opening
        for name, column in ((method, "map"), (stored, "binary")):
            maps[name] = [
                Volume.upright(values.astype(np.float32), scan.affine).values
                for scan, values in zip(scans, results.volumes(column, scans), strict=True)
            ]
        maps[stored] = [values > MASK_THRESHOLD for values in maps[stored]]
    return maps


def prepared_cases(series: Sequence[SeriesFiles], **options: Any) -> list[PreparedScan]:
    """Prepare scans on their own grid, in RAS order, for the evaluation of maps."""
    scans = []
    for files in progress(series, len(series), "reading"):
        with errors_about(files.label):
            scans.append(files.prepare(**options))
    return scans


def _panels(detection: Detection) -> Figure:
    """Draw the slice with most anomalous voxels; scans with one threshold have one color scale."""
    from anomaly.study.plotting import plot_panels

    case = detection.scan.case
    threshold = detection.threshold
    top = float(detection.map.max()) or 1.0
    if not np.isfinite(threshold):
        # The scan has its own threshold, just below its lowest anomalous score.
        lowest = detection.map[detection.found].min(initial=top)
        threshold = float(np.nextafter(lowest, -np.inf))
    elif threshold > 0:
        top = _BRIGHTEST * threshold
    # A scan without an anomaly is shown, too.
    mask = next(mask for mask in (detection.opened, detection.found, case.brain) if mask.any())
    return plot_panels(
        case,
        {"map": detection.map},
        {"map": threshold},
        {"map": (0.0, top)},
        opening={"map": detection.opening},
        number=int(mask.sum(axis=(0, 1)).argmax()),
        # The default title says whether the scan is healthy, which is unknown here.
        title=case.name,
    )


def _view(detection: Detection, picture: bytes, sentences: Sequence[str]) -> str:
    """Make the page that shows the anomalies over the mean signal, in three planes."""
    from anomaly.study.report import scan_planes

    case = detection.scan.case
    maps = {"anomaly map": detection.map, "found": detection.opened}
    maps["before opening"] = detection.found
    thresholds = {}
    if np.isfinite(detection.threshold):
        thresholds["anomaly map"] = detection.threshold
    points = [("{number}: {volume_mL:.2f} mL", detection.lesions)]
    instead = page.Picture(picture, f"Anomalies of {case.name}", width=900)
    planes = scan_planes(case, maps, thresholds, points, instead, hidden=("before opening",))
    found = page.Table(detection.lesions, _TEXTS["anomalies"])
    sections = [
        page.Section("", *(page.Note(page.sentence(flag)) for flag in detection.flags), planes),
        page.Section("Anomalies", *map(page.sentence, sentences), found),
    ]
    return page.Page(case.name, sections, page.notice_lead([case.synthetic])).html()


RUN = CaseRun(
    record="{name}/detection.json",
    table="detections.tsv",
    bids="dwi/*_dwi.nii*",
    row=_row,
    page=_page,
    lesions="lesions.csv",
    files=(*_FILES.values(), "lesions.csv", _PANELS, _VIEW),
    digits=10,
    flag="flags",
    noun="scan",
)
