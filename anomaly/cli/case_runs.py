"""Runs over many scans: what they write for each, their tables and page, and reading it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly.scans.detection import Detection
from anomaly.scans.series import SeriesDetector, SeriesFiles
from dmrifit.cli.case_runs import join_tables, picture_parts, run_parts, table_text
from dmrifit.cli.console import progress
from dmrifit.io.case_tables import file_stems
from dmrifit.report.html import NOTICE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from anomaly.scans.preparation import PreparedScan

__all__ = ["RESULTS", "detect_series", "prepared_cases", "read_detections", "write_batch"]

#: Files that are only there after a run.
RESULTS = ("detections.tsv", "lesions.csv", "index.html")

_FILES = {"map": "map.nii.gz", "binary": "binary.nii.gz", "opened": "opened.nii.gz"}
_LESIONS, _PANELS, _DESCRIPTION = "lesions.csv", "panels.png", "detection.json"
_VIEW = "view.html"
_BRIGHTEST = 3.0  # thresholds, the end of the scale of a map's picture
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **{
        "name": str,
        "patient": str,
        "folder": str,
        "synthetic": bool,
        "threshold": (float, type(None)),
    },
    **{
        "n_lesions": int,
        "volume_mL": float,
        "share_found": float,
        "lesion_columns": list,
        "lesions": list,
    },
    "sources": dict,
}
_COLUMNS = ("patient", *_FILES, "threshold", "n_lesions", "volume_mL", "share_found", "synthetic")


def detect_series(
    detector: SeriesDetector,
    series: Sequence[SeriesFiles],
    out: Path,
    *,
    figure: bool,
    overwrite: bool,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Find anomalies in scans, each into a folder of its own; those that an earlier run has finished
    are not done again.
    """
    stems = file_stems((one.patient or one.label, one.label) for one in series)
    figure = figure and find_spec("matplotlib") is not None

    def make(part: tuple[SeriesFiles, str]) -> dict[str, Any]:
        one, stem = part
        # Before the work, in which the files could change.
        sources = _sources(one)
        try:
            detection = detector.detect(one, **options)
        except ValueError as error:
            raise ValueError(f"{one.label}: {error}") from None
        return _write_detection(detection, out / stem, sources, _known(one), figure=figure)

    return run_parts(
        zip(series, stems, strict=True),
        lambda part: out / part[1] / _DESCRIPTION,
        make,
        fields=_FIELDS,
        # A scan whose files have changed, or what is known of the patient, is looked at anew.
        same=lambda part, old: (
            old["sources"] == _sources(part[0]) and old.get("known") == _known(part[0])
        ),
        overwrite=overwrite,
    )


def write_batch(out: Path, contents: Sequence[Mapping[str, Any]], *, figure: bool) -> None:
    """Write the tables of all scans, and the page with their pictures."""
    import pandas as pd

    from dmrifit.io.atomic_files import write_text

    rows = []
    for content in contents:
        files = {key: f"{content['folder']}/{file}" for key, file in _FILES.items()}
        own = {
            key: content[key] for key in _COLUMNS if key not in (*_FILES, "patient", "synthetic")
        }
        word = "true" if content["synthetic"] else "false"
        rows.append(
            {"name": content["name"], "patient": content["patient"]}
            | files
            | own
            | {"synthetic": word}
        )
    lesions = (
        pd.DataFrame(content["lesions"], columns=list(content["lesion_columns"]))
        for content in contents
    )
    found = join_tables(contents, lesions)
    write_text(out / "lesions.csv", found.to_csv(index=False, float_format="%.8g"))
    write_text(out / "detections.tsv", table_text(pd.DataFrame(rows)))
    if not figure or find_spec("jinja2") is None or find_spec("matplotlib") is None:
        return
    from dmrifit.report.html import html_join, html_page, html_table, synthetic_note

    header = (
        "scan",
        "threshold",
        "anomalies",
        "volume, mL",
        "largest, mm",
        "share above the threshold",
    )
    lines = [
        [
            content["name"],
            "of its own" if content["threshold"] is None else f"{content['threshold']:.4g}",
            str(content["n_lesions"]),
            f"{content['volume_mL']:.2f}",
            f"{max((one['diameter_mm'] for one in content['lesions']), default=0):.1f}",
            f"{100 * content['share_found']:.2f} %",
        ]
        for content in contents
    ]
    sections = [("All scans", html_table(lines, header, numbers=(1, 2, 3, 4, 5)))]
    for content in contents:
        caption = (
            f"{content['name']}: mean signal, map, what is above the threshold, and what opening leaves of it, in the "
            "axial slice with most of it"
        )
        if parts := picture_parts(out / content["folder"], _PANELS, _VIEW, caption, width=900):
            sections.append((content["name"], html_join(parts)))
    lead = f"{NOTICE} {synthetic_note(sum(one['synthetic'] for one in contents), len(contents))}".rstrip()
    write_text(out / "index.html", html_page("Anomalies", sections, lead=lead))


def read_detections(table: Path, scans: Sequence[PreparedScan]) -> dict[str, list[NDArray[Any]]]:
    """
    Read what a run has written about scans.

    Shapes: returns (x, y, z).
    """
    import nibabel as nib

    from dmrifit.io.masks import MASK_THRESHOLD, check_same_grid
    from dmrifit.io.nifti import load_image, values_of
    from dmrifit.io.tables import read_rows

    rows = {
        row["name"]: row
        for _, row in read_rows(table, required=("name", "map", "binary"), optional=_COLUMNS)
    }
    if missing := [scan.case.name for scan in scans if scan.case.name not in rows]:
        raise ValueError(
            f"{table} knows nothing of {', '.join(missing[:5])}; run detect on these scans, or leave them out"
        )
    found: dict[str, list[NDArray[Any]]] = {"map": [], "binary": []}
    for scan in scans:
        for key, listed in found.items():
            path = table.parent / rows[scan.case.name][key]
            if not path.is_file():
                raise FileNotFoundError(
                    f"{table}: there is no {path}, the {key} of {scan.case.name}; run detect on this scan again"
                )
            image = load_image(path)
            values = values_of(image, str(path))
            if wrong := np.count_nonzero(~np.isfinite(values)):
                raise ValueError(
                    f"{path} holds {wrong} values that are not finite; a map is 0 where there is no score"
                )
            what = f"the scan {scan.case.name}"
            check_same_grid(
                values.shape,
                image.affine,
                scan.shape,
                scan.affine,
                name=str(path),
                reference_name=what,
            )
            ordered = np.asarray(
                nib.as_closest_canonical(nib.Nifti1Image(values, image.affine)).dataobj
            )
            listed.append(
                ordered > MASK_THRESHOLD if key == "binary" else ordered.astype(np.float32)
            )
    return found


def prepared_cases(
    series: Sequence[SeriesFiles], *, tissue: bool, mask: bool, b: float | None = None
) -> list[PreparedScan]:
    """Prepare scans on the grid of their files, in RAS order, for the evaluation of maps."""
    scans = []
    for one in progress(series, len(series), "reading"):
        try:
            scans.append(one.prepare(tissue=tissue, mask=mask, b=b))
        except ValueError as error:
            raise ValueError(f"{one.label}: {error}") from None
    return scans


def _write_detection(
    detection: Detection,
    folder: Path,
    sources: Mapping[str, Any],
    known: Mapping[str, str],
    *,
    figure: bool,
) -> dict[str, Any]:
    from dmrifit.io.atomic_files import FileSet
    from dmrifit.io.nifti import save_image

    case, table = detection.scan.case, detection.lesions
    limit = detection.threshold
    content: dict[str, Any] = {
        "name": case.name,
        "patient": case.patient,
        "folder": folder.name,
        "synthetic": case.synthetic,
        "threshold": limit if np.isfinite(limit) else None,
        "n_lesions": len(table),
        "volume_mL": float(table["volume_mL"].sum()),
        "share_found": float(detection.found.sum() / case.scored.sum()),
        "lesion_columns": list(table.columns),
        "lesions": json.loads(table.to_json(orient="records", double_precision=10)),
        "preparation": dict(detection.scan.notes),
        "known": dict(known),
        "sources": dict(sources),
        "notice": NOTICE,
    }
    with FileSet(
        folder, [*_FILES.values(), _LESIONS, _PANELS, _VIEW, _DESCRIPTION], overwrite=True
    ) as files:
        for key, image in detection.images().items():
            save_image(image, files.path(_FILES[key]))
        files.path(_LESIONS).write_text(
            table.to_csv(index=False, float_format="%.8g"), encoding="utf-8"
        )
        if figure:
            _panels(detection).savefig(files.path(_PANELS), dpi=110)
            if find_spec("jinja2") is not None:
                page = _view(detection, files.path(_PANELS).read_bytes())
                files.path(_VIEW).write_text(page, encoding="utf-8")
        files.write_json(_DESCRIPTION, content)
    return content


def _panels(detection: Detection) -> Figure:
    """Draw a scan on the scale of the model, which is the same for all scans, where most was found."""
    from anomaly.study.plotting import plot_panels

    case, limit, top = detection.scan.case, detection.threshold, float(detection.map.max()) or 1.0
    if not np.isfinite(limit):  # the scan has one of its own
        limit = float(np.nextafter(detection.map[detection.found].min(initial=top), -np.inf))
    elif limit > 0:
        top = _BRIGHTEST * limit
    for where in (detection.opened, detection.found, case.brain):
        if where.any():
            number = int(where.sum(axis=(0, 1)).argmax())
            break
    shown = ({"map": detection.map}, {"map": limit}, {"map": (0.0, top)})
    # A title of its own: nobody knows yet whether the scan is healthy.
    return plot_panels(case, *shown, opening=detection.opening, number=number, title=case.name)


def _view(detection: Detection, picture: bytes) -> str:
    """Make the page that shows what was found over the mean signal, in three planes."""
    from dmrifit.report.html import html_figure, html_paragraph, html_table, synthetic_note
    from dmrifit.report.viewer import Layer, html_viewer, viewer_page

    case, limit, table = detection.scan.case, detection.threshold, detection.lesions
    # Found is what lies above; the viewer shows what reaches a threshold.
    known = float(np.nextafter(limit, np.inf)) if np.isfinite(limit) else None
    places = table.to_dict("records")
    layers = [
        Layer("mean signal", case.signal.mean(axis=-1)),
        Layer("anomaly map", detection.map, "score", threshold=known),
        Layer("found", detection.opened, "mask"),
        Layer("before opening", detection.found, "mask", shown=False),
    ]
    if (
        case.lesion is not None and case.lesion.any()
    ):  # what the table names; the detector has not seen it
        layers.append(Layer("known lesion", case.lesion, "mask"))
    planes = html_viewer(
        layers,
        case.affine,
        points=[
            (f"{row['number']}: {row['volume_mL']:.2f} mL", [row[axis] for axis in "xyz"])
            for row in places
        ],
        region=case.brain,
        label="Anomaly map over the mean signal",
        instead=html_figure(picture, f"Anomalies of {case.name}", width=900),
    )
    header = ("", "volume, mL", "diameter, mm", "x", "y", "z", "largest score")
    keys = ("volume_mL", "diameter_mm", "x", "y", "z")
    rows = [
        [row["number"], *(f"{row[key]:.2f}" for key in keys), f"{row['score']:.4g}"]
        for row in places
    ]
    found = (
        html_table(rows, header, numbers=range(7))
        if rows
        else html_paragraph("Nothing was found.")
    )
    lead = f"{NOTICE} {synthetic_note(int(case.synthetic), 1)}".rstrip()
    return viewer_page(case.name, [("", planes), ("What was found", found)], lead=lead)


def _sources(series: SeriesFiles) -> dict[str, str]:
    """Tell whether the files of a scan are still those that were looked at."""
    from dmrifit.io.bids_derivatives import file_record

    return {role: file_record(path)["SHA256"] for role, path in series.files.items()}


def _known(series: SeriesFiles) -> dict[str, str]:
    """Tell what the scan was called, and what was known of the patient."""
    words = {"patient": series.patient, "name": series.name} | dict(series.known)
    return {key: str(value) for key, value in words.items()}
