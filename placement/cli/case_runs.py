"""Runs over many cases: their table and page."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["FIELDS", "write_batch"]

#: What the file of a case says that its row in the table needs.
FIELDS: Mapping[str, type] = {
    "sources": dict,
    "regions": dict,
    "synthetic": bool,
    "ras.center_mm": list,
    "ras.angles_deg": list,
    "size_mm": list,
    "volume_ml": float,
    "scores.objective": float,
    "scores.tumor_fraction": float,
    "scores.tumor_volume_ml": float,
    "rotated_axes": int,
    "flags": list,
}


def write_batch(out: Path, contents: Mapping[str, Mapping[str, Any]], *, figure: bool) -> None:
    """Write the table of all cases, and the page with their overlays."""
    import pandas as pd

    from dmrifit.cli.case_runs import picture_parts, table_text
    from dmrifit.io.atomic_files import write_text
    from placement.exchange.tables import box_columns

    rows = []
    for name, content in contents.items():
        pose = [*content["ras"]["center_mm"], *content["size_mm"], *content["ras"]["angles_deg"]]
        numbers = {
            key: content["scores"][key]
            for key in ("objective", "tumor_fraction", "tumor_volume_ml")
        }
        flags = "; ".join(content["flags"])
        row = {"name": name, **box_columns(pose), "volume_ml": content["volume_ml"], **numbers}
        rows.append(row | {"rotated_axes": content["rotated_axes"], "flags": flags})
    table = pd.DataFrame(rows)
    write_text(out / "placements.tsv", table_text(table, 12))
    if not figure or find_spec("jinja2") is None or find_spec("matplotlib") is None:
        return
    from dmrifit.report.html import html_join, html_note, html_page, html_table, synthetic_note
    from placement.exchange.prescription import NOTICE

    shown = ("volume_ml", "tumor_fraction", "objective")
    lines = [
        [
            one["name"],
            *(f"{one[key]:.3f}" for key in shown),
            one["rotated_axes"],
            one["flags"] or "none",
        ]
        for one in rows
    ]
    header = ("case", "volume, mL", "part that is tumor", "objective", "rotated axes", "flags")
    sections = [("All cases", html_table(lines, header, numbers=(1, 2, 3, 4)))]
    for name in contents:
        alt = f"Voxel of {name} in three planes"
        if parts := picture_parts(out / name, "voxel_overlay.png", "voxel_view.html", alt):
            sections.append((name, html_join(parts)))
    told = synthetic_note(
        sum(one["synthetic"] for one in contents.values()), len(contents), "case"
    )
    lead = f"{NOTICE}. {told}".rstrip()
    where = ("", html_note("In the pictures, the patient's right is at the left."))
    write_text(out / "index.html", html_page("Voxels", [*sections, where], lead=lead))
