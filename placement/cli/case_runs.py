"""Runs that place voxels in many cases: the record of a case, the table and the page of all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmrifit.cli.case_runs import (
    FAILED,
    CaseRun,
    can_draw,
    case_pictures,
    failed_cases,
    write_page,
)
from dmrifit.io.tables import table_text

_TABLE = "placements.tsv"
_OVERVIEW = (
    "case {name} | volume, mL {volume_ml:.3f} | part that is target {target:.3f} | "
    "objective {objective:.3f} | angles to set {angles} | flags {flags}"
)

RUN = CaseRun(
    record="{name}/voxel.json",
    fields={
        "sources": dict,
        "regions": dict,
        "synthetic": bool,
        "ras.center_mm": list,
        "ras.angles_deg": list,
        "size_mm": list,
        "volume_ml": float,
        "scores.objective": float,
        "scores.tumor_fraction": float,
        "scores.tumor_volume_inside_ml": float,
        "rotated_angles": int,
        "flags": list,
        "advice": list,
        "notes": list,
        "content": dict,
        "targets": list,
        "console.withheld": str,
        "console.angles": dict,
    },
    results=(_TABLE, FAILED, "index.html"),
    pictures=("voxel_overlay.png", "voxel_view.html"),
    files=(
        "voxel_mask.nii.gz",
        "voxel_partial.nii.gz",
        "voxel_geometry.nii.gz",
        "voxel_philips.txt",
        "voxel_siemens.txt",
    ),
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


def write_batch(out: Path, contents: Mapping[str, Mapping[str, Any]], *, figure: bool) -> None:
    """Write the table of all cases, and the page with their overlays."""
    import pandas as pd

    from dmrifit.io.atomic_files import write_text

    rows = [_row(name, content) for name, content in contents.items()]
    # Twelve digits, as evaluate reads the boxes from this table.
    write_text(out / _TABLE, table_text(pd.DataFrame(rows), 12))
    if not figure or not can_draw():
        return
    from dmrifit.report import page
    from placement.exchange.pages import angles_words, box_assets, case_summary, console_numbers
    from placement.exchange.vendor_texts import NOTICE

    lines = [
        row | {"angles": angles_words(contents[row["name"]]), "flags": row["flags"] or "none"}
        for row in rows
    ]
    table = page.Table(lines, _OVERVIEW)
    pictures = []
    for name, content in contents.items():
        alt = f"Voxel of {name} in three planes"
        parts = case_pictures(out / name, "voxel_overlay.png", "voxel_view.html", alt)
        pictures.append((name, [case_summary(content), *parts, console_numbers(content)]))
    write_page(
        out,
        "Voxels",
        [table, *failed_cases(out)],
        list(contents.values()),
        pictures,
        unit="case",
        notice=f"{NOTICE}.",
        note="In the pictures, the patient's right is on the left.",
        **box_assets(),
    )


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
