"""The command repeat: boxes of earlier sessions on later scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dmrifit.cli.case_runs import CaseRun, can_draw, case_pictures, table_text, write_page
from dmrifit.cli.console import FigureOption, OutOption, OverwriteOption
from dmrifit.report.html import counted

__all__ = ["EXAMPLES", "RUN", "repeat"]

_TABLE = "repeats.tsv"
_FILES = ("old", "box", "new")

RUN = CaseRun(
    record="repeat.json",
    fields={
        "sources": dict,
        "answer": str,
        "reliable": bool,
        "ras.center_mm": list,
        "ras.angles_deg": list,
        "size_mm": list,
        "agreement": float,
        "changed_share": float,
        "disagreement_mm": float,
        "content": str,
        "side": str,
        "flags": list,
        "notes": list,
    },
    results=(_TABLE,),
)


def repeat(
    out: OutOption,
    old: Annotated[
        Path | None,
        typer.Argument(metavar="[OLD_T1]", help="T1 scan of the session of the box (NIfTI)."),
    ] = None,
    box: Annotated[
        Path | None,
        typer.Argument(
            metavar="[BOX]",
            help="The box: Philips .SPAR, Siemens .rda or DICOM, NIfTI-MRS, or JSON of place.",
        ),
    ] = None,
    new: Annotated[
        Path | None, typer.Argument(metavar="[NEW_T1]", help="T1 scan of the later session.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Table (.tsv) of many visits instead, with the columns name, old, box and new: "
            "files relative to the table."
        ),
    ] = None,
    figure: FigureOption = True,
    fail_on_flag: Annotated[
        bool, typer.Option("--fail-on-flag", help="End with 3 where a case is flagged.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Repeat boxes of earlier sessions on later scans of the same heads. Not for clinical use.

    Registers both scans rigidly and moves the box. Answers "repeated", "repeated, but tissue in
    the box changed" or "not the same head"; without a reliable match, no numbers for scanners are
    written. An interrupted run resumes when started again with the same options.
    """
    from dmrifit.io.nifti import describe_sources
    from placement.exchange.repeat_files import describe_repeat, summary_line, write_repeat
    from placement.exchange.repeats import repeat_voxel

    cases = _cases(old, box, new, table)
    voxels = {name: _read_box(row) for name, row in cases.items()}
    RUN.begin(out, {"command": "repeat"}, overwrite)

    def sources(row: Mapping[str, Path]) -> dict[str, Any]:
        return describe_sources(Old=row["old"], Box=row["box"], New=row["new"])

    def repeat_case(row: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        outcome = repeat_voxel(voxels[folder.name], row["old"], row["new"])
        record = describe_repeat(outcome, row["old"], row["new"], sources=sources(row))
        is_drawn = figure and can_draw()
        write_repeat(outcome, row["old"], row["new"], folder, record, figure=is_drawn)
        return record

    def is_current(row: Mapping[str, Path], record: dict[str, Any]) -> bool:
        return bool(record["sources"] == sources(row))

    records = RUN.process(cases, out, repeat_case, is_current, overwrite=overwrite)
    by_name = dict(zip(cases, records, strict=True))
    _write_results(out, by_name, figure=figure)
    for name, record in by_name.items():
        typer.echo(summary_line(name, record))
    flagged = [name for name, record in by_name.items() if record["flags"]]
    if flagged:
        typer.echo(f"flagged: {len(flagged)} of {len(records)}")
    typer.echo(f"{counted(len(records), 'case')}: {out}")
    if flagged and fail_on_flag:
        raise typer.Exit(3)


def _cases(
    old: Path | None, box: Path | None, new: Path | None, table: Path | None
) -> dict[str, dict[str, Path]]:
    """Give the files of each case by its name, all of them there."""
    from dmrifit._utils.text_files import check_file
    from dmrifit.io.bids_derivatives import stem
    from dmrifit.io.tables import read_rows
    from placement.exchange.tables import check_names

    if table is None:
        if old is None or box is None or new is None:
            raise ValueError("name three files, OLD_T1 BOX NEW_T1, or a table of them (--table)")
        cases = {stem(new): {"old": old, "box": box, "new": new}}
    else:
        if old is not None:
            raise ValueError(f"{old}: name three files or a table (--table), not both")
        rows = [row for _, row in read_rows(table, required=("name", *_FILES))]
        check_names([row["name"] for row in rows], table)
        cases = {
            row["name"]: {column: table.parent / row[column] for column in _FILES} for row in rows
        }
    for files in cases.values():
        for path in files.values():
            check_file(path)
        if files["old"].resolve() == files["new"].resolve():
            raise ValueError(f"{files['new']} is both the old and the new scan; name another one")
    return cases


def _read_box(row: Mapping[str, Path]) -> Any:
    """Read a box, and check that it is of the frame of reference of its scan, where both tell."""
    from placement.exchange.repeats import frame_of
    from placement.exchange.voxel_files import read_voxel_file

    record = read_voxel_file(row["box"])
    frame = frame_of(row["old"])
    if record.frame and frame and record.frame != frame:
        raise ValueError(
            f"{row['box']} has the frame of reference {record.frame}, {row['old']} has {frame}: "
            "the patient was moved between them; give the scan of the session of the box"
        )
    return record.voxel


def _write_results(out: Path, records: Mapping[str, Mapping[str, Any]], *, figure: bool) -> None:
    """Write the table of all cases, and the page with their pictures."""
    import pandas as pd

    from dmrifit.io.atomic_files import write_text

    rows = pd.DataFrame([_row(name, record) for name, record in records.items()])
    write_text(out / _TABLE, table_text(rows, 12))
    if not figure or not can_draw():
        return
    from dmrifit.report.html import html_table
    from placement.exchange.vendor_texts import NOTICE

    lines = []
    pictures = []
    for name, record in records.items():
        said = "; ".join([*record["flags"], *record["notes"]])
        lines.append([name, record["answer"], f"{record['agreement']:.2f}", said or "none"])
        parts = []
        for picture, title in (("voxel_old.png", "old"), ("voxel_new.png", "new")):
            alt = f"Voxel of {name} on the {title} scan in three planes"
            # One link for both pictures.
            view = "voxel_view.html" if title == "new" else ""
            parts += case_pictures(out / name, picture, view, alt)
        pictures.append((name, parts))
    write_page(
        out,
        "Repeated voxels",
        html_table(lines, ("case", "answer", "agreement", "flags and notes"), numbers=(2,)),
        list(records.values()),
        pictures,
        unit="case",
        notice=f"{NOTICE}.",
        note="In the pictures, the patient's right is on the left.",
    )


def _row(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of a case in the table; without a reliable match, no box."""
    from placement.exchange.tables import BOX, box_columns

    pose = [float("nan")] * len(BOX)
    if record["reliable"]:
        pose = [*record["ras"]["center_mm"], *record["size_mm"], *record["ras"]["angles_deg"]]
    return {
        "name": name,
        "answer": record["answer"],
        **box_columns(pose),
        "agreement": record["agreement"],
        "changed_share": record["changed_share"],
        "disagreement_mm": record["disagreement_mm"],
        "content": record["content"],
        "flags": "; ".join(record["flags"]),
    }


#: Commands, with the line that their help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    repeat: "dmrifit-placement repeat old_T1.nii.gz scan.SPAR new_T1.nii.gz --out repeated",
}
