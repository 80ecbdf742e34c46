"""Files of a repeated box: numbers for scanners, geometry, and both scans beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dmrifit
from dmrifit._utils.counts import percent
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import Volume
from placement.box.voxel import CONVENTION, Voxel
from placement.exchange.pages import box_assets, box_line, console_numbers, pose_rows
from placement.exchange.prescription import (
    BOX_FILES,
    box_of_console,
    describe_side,
    head_span,
    write_box,
)
from placement.exchange.repeats import Repeat, validity
from placement.exchange.vendor_texts import NOTICE, console_record

#: What a box holds that no labels of the new scan tell of.
UNKNOWN_CONTENT = "content unknown: tumor may have grown, shrunk or been removed"

_NAME = "voxel"
_PICTURES = ("_old.png", "_new.png")
#: Of a case, the record last, which marks it as complete.
_FILES = [*(_NAME + end for end in (*_PICTURES, "_view.html", *BOX_FILES)), "repeat.json"]
_VIEWER_MM = 1.5


def describe_repeat(
    repeat: Repeat,
    image: Path,
    new_image: Path,
    *,
    sources: Mapping[str, Any],
    content: str = UNKNOWN_CONTENT,
) -> dict[str, Any]:
    """Describe a repeated box by plain values, as a prescription that `read_voxel` reads."""
    voxel = repeat.voxel
    valid = validity(new_image.name, new_image)
    new_scan = Volume.read(new_image)
    withheld = "" if repeat.reliable else f"{repeat.answer}, or its position is uncertain"
    return {
        "format": "placement prescription",
        "notice": NOTICE,
        "software": f"dmrifit {dmrifit.__version__}",
        "answer": repeat.answer,
        "reliable": repeat.reliable,
        "ras": {"center_mm": voxel.center.tolist(), "angles_deg": voxel.angles.tolist()},
        "size_mm": voxel.size.tolist(),
        "volume_mL": voxel.volume,
        "convention": CONVENTION,
        "side": describe_side(voxel, head_span(new_scan.values, new_scan.affine)),
        "valid": valid,
        "content": content,
        "console": console_record(voxel, valid, withheld=withheld),
        "agreement": repeat.agreement,
        "changed_share": repeat.changed_share,
        "shown_share": repeat.shown_share,
        "disagreement_mm": repeat.disagreement,
        "matrix": repeat.matrix.tolist(),
        "flags": list(repeat.flags),
        "notes": list(repeat.notes),
        "old_image": image.name,
        "new_image": new_image.name,
        "sources": dict(sources),
        "synthetic": False,
    }


def summary_line(name: str, record: Mapping[str, Any]) -> str:
    """Say in one line what became of a box."""
    parts = [f"{name}: {record['answer']}"]
    if record["reliable"]:
        parts += [box_line(record, "pose"), record["side"], record["content"]]
    # Numbers of a terminal are copied into commands, where a minus is a hyphen.
    return "; ".join([*parts, *record["flags"], *record["notes"]]).replace("−", "-")


def write_repeat(
    repeat: Repeat,
    image: Path,
    new_image: Path,
    folder: Path,
    record: Mapping[str, Any],
    *,
    figure: bool,
) -> None:
    """
    Write the files of a repeated box; numbers for scanners only where it is reliable.

    The files of an earlier run are replaced.
    """
    new_scan = Volume.read(new_image)
    with FileSet(folder, _FILES, overwrite=True) as files:
        if repeat.reliable:
            write_box(files, _NAME, repeat.voxel, new_scan, record["console"])
        if figure:
            from placement.exchange.overlays import plot_box

            shown = box_of_console(files, _NAME, repeat.voxel, record["console"])
            old_scan = Volume.read(image)
            # The old scan is drawn where the head lies now, so that both planes are the same.
            old_affine = repeat.matrix @ old_scan.affine
            pictures = []
            for end, scan, affine, title in (
                (_PICTURES[0], old_scan, old_affine, f"old scan, moved: {image.name}"),
                (_PICTURES[1], new_scan, new_scan.affine, f"new scan: {new_image.name}"),
            ):
                path = files.path(_NAME + end)
                plot_box(shown, scan.values, affine, title=title).savefig(path, dpi=110)
                pictures.append(path.read_bytes())
            page = _page(shown, old_scan, old_affine, new_scan, pictures, record)
            files.path(f"{_NAME}_view.html").write_text(page, encoding="utf-8")
        files.write_record("repeat.json", record)


def _page(
    voxel: Voxel,
    old_scan: Any,
    old_affine: Any,
    new_scan: Any,
    pictures: list[bytes],
    record: Mapping[str, Any],
) -> str:
    """Make the page of a repeated box: the answer, both scans, its numbers."""
    from dmrifit.report import page as pages
    from dmrifit.report.viewer import Layer, html_viewer

    figures = []
    viewers = []
    old_title = f"Old scan, moved to the new position: {record['old_image']}"
    new_title = f"New scan: {record['new_image']}"
    for picture, scan, affine, title in (
        (pictures[0], old_scan, old_affine, old_title),
        (pictures[1], new_scan, new_scan.affine, new_title),
    ):
        figures.append(pages.Picture(picture, title, title, width=1000))
        moved = Volume.of(scan.values, affine)
        # Two scans of full size would make a page of many megabytes.
        small = moved.resampled(_VIEWER_MM)
        planes = html_viewer(
            [Layer(title, small.values)],
            small.affine,
            boxes={"voxel": voxel.affine},
            start=voxel.center,
            label=title,
        )
        viewers.append(pages.Section(title, planes))
    numbers = [
        ["agreement of the heads (median local correlation)", f"{record['agreement']:.2f}"],
        ["changed in the box and 10 mm around it", percent(record["changed_share"])],
        ["of these shown by the new scan", percent(record["shown_share"])],
        ["two registrations differ at the box by, mm", f"{record['disagreement_mm']:.2f}"],
        ["content", record["content"]],
    ]
    if record["reliable"]:
        numbers += pose_rows(record)
    remarks = [*record["flags"], *record["notes"]]
    sections = [
        pages.Section(
            record["answer"].capitalize(), *map(pages.sentence, remarks or ["no flags"])
        ),
        pages.Section("Both scans", pages.Grid(*figures)),
        pages.Section("The box", pages.Table(numbers)),
        pages.Section("Numbers for consoles", console_numbers(record)),
        *viewers,
    ]
    title = f"Voxel of {stem(record['old_image'])} on {stem(record['new_image'])}"
    return pages.Page(
        title, sections, pages.notice_lead([False], "case", f"{NOTICE}."), **box_assets()
    ).html()
