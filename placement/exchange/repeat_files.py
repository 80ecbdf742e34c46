"""Files of a repeated box: numbers for scanners, geometry, and both scans beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import dmrifit
from dmrifit._utils.counts import percent
from dmrifit.imaging.head_steps import HeadSpan
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import Volume
from dmrifit.io.masks import MASK_THRESHOLD
from dmrifit.report import page, style
from dmrifit.report.viewer import Layer, html_viewer
from placement.box.voxel import CONVENTION, Voxel
from placement.exchange import prescription
from placement.exchange.pages import box_assets, box_line, console_numbers, content_line, pose_rows
from placement.exchange.repeats import Repeat, validity
from placement.exchange.vendor_texts import NOTICE, console_record
from placement.search.optimizer import share_words
from placement.search.scene import Scene

#: What a box holds that no labels of the new scan tell of.
UNKNOWN_CONTENT = "content unknown: tumor may have grown, shrunk or been removed"

_NAME = "voxel"
_PICTURES = ("_old.png", "_new.png")
#: Of a case, beside its record.
_FILES = [_NAME + end for end in (*_PICTURES, "_view.html", *prescription.BOX_FILES)]
_VIEWER_MM = 1.5


def describe_repeat(
    repeat: Repeat,
    image: Path,
    new_image: Path,
    placement: Mapping[str, Any] | None = None,
    *,
    sources: Mapping[str, Any],
) -> dict[str, Any]:
    """
    Describe a repeated box by plain values, as a prescription that `read_voxel` reads.

    `placement` is what `describe_placement` says of the box in the tumor of the new scan, where
    that is known: the rules and flags of any box that is prescribed.
    """
    voxel = repeat.voxel
    valid = validity(new_image.name, new_image)
    new_scan = Volume.read(new_image)
    withheld = "" if repeat.reliable else f"{repeat.answer}, or its position is uncertain"
    target, content = None, UNKNOWN_CONTENT
    judged: Mapping[str, Any] = placement or {"flags": [], "notes": []}
    if placement is not None:
        withheld, shares = placement["console"]["withheld"], placement["content"]
        target = shares["target"]
        content = f"{share_words(target)} of it is target ({', '.join(placement['targets'])}); "
        content += f"{content_line(shares)}; skull and scalp not checked"
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
        "side": prescription.describe_side(voxel, HeadSpan.of(new_scan.values, new_scan.affine)),
        "valid": valid,
        "target": target,
        "content": content,
        "console": console_record(voxel, valid, withheld=withheld),
        "agreement": repeat.agreement,
        "changed_share": repeat.changed_share,
        "shown_share": repeat.shown_share,
        "disagreement_mm": repeat.disagreement,
        "matrix": repeat.matrix.tolist(),
        "matrix_direction": "from old_image to new_image, in mm RAS+",
        "flags": [*repeat.flags, *judged["flags"]],
        "advice": [*repeat.flags, *prescription.advice(judged["flags"], "repeat")],
        "notes": [*repeat.notes, *judged["notes"]],
        "old_image": image.name,
        "new_image": new_image.name,
        "sources": dict(sources),
        "synthetic": False,
    }


def summary_line(name: str, record: Mapping[str, Any]) -> str:
    """Say in one line what became of a box."""
    parts = [f"{name}: {box_line(record, 'repeated')}"]
    if record["reliable"]:
        parts += [box_line(record, "pose"), record["side"], record["content"]]
    parts += [*record["advice"], *record["notes"]]
    if record["console"]["withheld"]:
        parts.append(f"no numbers for consoles: {record['console']['withheld']}")
    # Numbers of a terminal are copied into commands, where a minus is a hyphen.
    return "; ".join(parts).replace("−", "-")


def write_repeat(
    repeat: Repeat,
    image: Path,
    new_image: Path,
    folder: Path,
    record: Mapping[str, Any],
    scene: Scene | None = None,
    *,
    figure: bool,
) -> None:
    """
    Write the files of a repeated box; numbers for scanners only where it is reliable.

    The files of an earlier run are replaced. Pictures outline the tumor of `scene`, if there is
    one, in the new scan.
    """
    new_scan = Volume.read(new_image)
    # The record comes last, which marks the case as complete.
    with FileSet(folder, [*_FILES, "repeat.json"], overwrite=True) as files:
        if repeat.reliable:
            prescription.write_box(files, _NAME, repeat.voxel, new_scan, record["console"])
        if figure:
            from placement.exchange.overlays import plot_box

            shown = prescription.box_of_console(files, _NAME, repeat.voxel, record["console"])
            old_scan = Volume.read(image)
            # The old scan is drawn where the head lies now, so that both planes are the same.
            scans = [Volume.of(old_scan.values, repeat.matrix @ old_scan.affine), new_scan]
            tumors: list[dict[str, NDArray]] = [{}, {}]
            if scene is not None and scene.image is not None:
                # Its arrays may be stored in another order of axes.
                scans[1] = Volume.of(scene.image, scene.affine)
                tumors[1] = {scene.target_name: scene.tumor}
            titles = f"Old scan, moved: {image.name}", f"New scan: {new_image.name}"
            pictures, viewers = [], []
            for end, scan, masks, title in zip(_PICTURES, scans, tumors, titles, strict=True):
                path = files.path(_NAME + end)
                plot_box(shown, scan.values, scan.affine, title, masks).savefig(path, dpi=110)
                pictures.append(page.Picture(path.read_bytes(), title, title, width=1000))
                viewers.append(_viewer(shown, scan, masks, title))
            text = _page(pictures, viewers, record)
            files.path(f"{_NAME}_view.html").write_text(text, encoding="utf-8")
        files.write_record("repeat.json", record)


def _viewer(voxel: Voxel, scan: Any, masks: Mapping[str, NDArray], title: str) -> Any:
    """Show a box over a scan in planes to move through."""
    # Two scans of full size would make a page of many megabytes.
    small = scan.resampled(_VIEWER_MM)
    layers = [Layer(title, small.values)]
    for name, mask in masks.items():
        inside = Volume.of(mask, scan.affine).resampled(_VIEWER_MM).values > MASK_THRESHOLD
        layers.append(Layer(name, inside, "mask", colors=style.OUTLINES[:1]))
    boxes = {"voxel": voxel.affine}
    planes = html_viewer(layers, small.affine, boxes=boxes, start=voxel.center, label=title)
    return page.Section(title, planes)


def _page(pictures: Sequence[Any], viewers: Sequence[Any], record: Mapping[str, Any]) -> str:
    """Make the page of a repeated box: the answer, both scans, its numbers."""
    numbers = [
        ["agreement of the heads (median local correlation)", f"{record['agreement']:.2f}"],
        ["changed tissue in the box and 10 mm around it", percent(record["changed_share"])],
        ["of these shown by the new scan", percent(record["shown_share"])],
        ["two registrations differ at the box by, mm", f"{record['disagreement_mm']:.2f}"],
        ["content", record["content"]],
    ]
    if record["reliable"]:
        numbers += pose_rows(record)
    remarks = [*record["advice"], *record["notes"]]
    sections = [
        page.Section(record["answer"].capitalize(), *map(page.sentence, remarks or ["no flags"])),
        page.Section("Both scans", *pictures),
        page.Section("The box", page.Table(numbers)),
        page.Section("Numbers for consoles", console_numbers(record)),
        *viewers,
    ]
    title = f"Voxel of {stem(record['old_image'])} on {stem(record['new_image'])}"
    return page.Page(
        title, sections, page.notice_lead([False], "case", f"{NOTICE}."), **box_assets()
    ).html()
