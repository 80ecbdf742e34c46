"""Runs that place voxels in many cases: the record of a case, the table and the page of all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmrifit.cli.case_runs import CaseRun, RunPage, case_pictures

_OVERVIEW = (
    "case {name} | volume, mL {volume_ml:.3f} | part that is target {target:.3f} | "
    "objective {objective:.3f} | angles to set {angles} | flags {flags}"
)


def case_line(name: str, content: Mapping[str, Any]) -> str:
    """Say in one line what was placed, and what is wrong with it."""
    from placement.exchange.pages import summary_line

    words = [f"{name}: {summary_line(content)}", *content["advice"], *content["notes"]]
    if "displacement" in content and content["brain"] is None:
        words.append(content["lipid"])
    if content["console"]["withheld"]:
        words.append(f"no numbers for consoles: {content['console']['withheld']}")
    return "; ".join(words)


def _page(out: Path, contents: Mapping[str, Mapping[str, Any]], _lesions: Any) -> RunPage:
    """Make the page of all cases, with their overlays."""
    from dmrifit.report import page
    from placement.exchange.pages import angles_words, box_assets, case_summary, console_numbers
    from placement.exchange.vendor_texts import NOTICE

    lines = [
        _row(name, content)
        | {"angles": angles_words(content), "flags": "; ".join(content["flags"]) or "none"}
        for name, content in contents.items()
    ]
    table = page.Table(lines, _OVERVIEW)
    pictures = []
    for name, content in contents.items():
        alt = f"Voxel of {name} in three planes"
        parts = case_pictures(out / name, "voxel_overlay.png", "voxel_view.html", alt)
        pictures.append((name, [case_summary(content), *parts, console_numbers(content)]))
    note = "In the pictures, the patient's right is on the left."
    return RunPage("Voxels", [table], pictures, note, f"{NOTICE}.", **box_assets())


def _row(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of a case in the table of placements."""
    from placement.exchange.tables import box_columns

    pose = [*content["ras"]["center_mm"], *content["size_mm"], *content["ras"]["angles_deg"]]
    scores = content["scores"]
    return {
        "name": name,
        **box_columns(pose),
        "volume_ml": content["volume_ml"],
        "objective": scores["objective"],
        "tumor_fraction": scores["tumor_fraction"],
        "tumor_volume_inside_ml": scores["tumor_volume_inside_ml"],
        "rotated_angles": content["rotated_angles"],
        **content["content"],
        "flags": "; ".join(content["flags"]),
    }


RUN = CaseRun(
    record="{name}/voxel.json",
    table="placements.tsv",
    row=_row,
    page=_page,
    # As evaluate reads the boxes from the table.
    digits=12,
    pictures=("voxel_overlay.png", "voxel_view.html"),
    files=(
        "voxel_mask.nii.gz",
        "voxel_partial.nii.gz",
        "voxel_geometry.nii.gz",
        "voxel_philips.txt",
        "voxel_siemens.txt",
    ),
    flag="flags",
)
