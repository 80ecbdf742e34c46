"""The command repeat: boxes of earlier sessions on later scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from dmrifit._utils.counts import counted
from dmrifit._utils.text_files import check_file
from dmrifit.cli.case_runs import CaseRun, RunOptions, RunPage
from dmrifit.io.bids_derivatives import file_record, stem
from dmrifit.report import page
from placement.cli.placement_commands import RegionOptions, TargetOptions, broken

_FILES = ("old", "box", "new")
#: Columns of the table of all cases that are fields of a record.
_FIGURES = ("volume_mL", "agreement", "changed_share", "disagreement_mm", "target", "content")
_TEXTS = page.Texts(__file__)


class _Case(NamedTuple):
    """Files of a case by their roles: those of `_FILES`, and "tumor" where there is one."""

    name: str
    files: dict[str, Path]


def repeat(
    old: Path | None = None,
    box: Path | None = None,
    new: Path | None = None,
    /,
    *,
    table: Path | None = None,
    tumor: Path | None = None,
    target: TargetOptions,
    run: RunOptions,
) -> None:
    """
    Repeat boxes of earlier sessions on later scans of the same heads. Not for clinical use.

    Registers both scans rigidly and moves the box; their agreement is the median local correlation
    in the head, 1 if they are alike. Answers "repeated", "repeated, but tissue in the box changed"
    or "not the same head"; without a reliable match, no numbers for scanners are written. Cases
    of a table that lack a file, and cases that fail, are listed in failed.tsv. An interrupted run
    resumes when started again with the same options.

    Options:
    old [OLD_T1]: T1 scan of the session of the box (NIfTI).
    box [BOX]: The box: Philips .SPAR, Siemens .rda or DICOM, NIfTI-MRS, or JSON of place.
    new [NEW_T1]: T1 scan of the later session.
    table: Table (.tsv) of many visits instead, with the columns name, old, box, new and optionally
        tumor: files relative to the table.
    tumor: Mask or labels of the tumor on NEW_T1, which tell what the box holds.

    Example: dmrifit-placement repeat old_T1.nii.gz scan.SPAR new_T1.nii.gz --out repeated
    """
    from dmrifit.io.nifti import describe_sources
    from placement.exchange import repeat_files
    from placement.exchange.prescription import PRESCRIBE, describe_placement
    from placement.exchange.repeats import repeat_voxel
    from placement.exchange.tables import prescribe_command
    from placement.search.scene import Scene

    failed: list[dict[str, str]] = []
    files = {"old": old, "box": box, "new": new, "tumor": tumor}
    cases = _read_cases(files, table, failed)
    target_options = target.of_scene()

    def inputs(case: _Case) -> dict[str, Any]:
        files = {role.capitalize(): path for role, path in case.files.items()}
        return {"sources": describe_sources(**files)}

    def repeat_case(case: _Case, folder: Path) -> dict[str, Any]:
        scans = case.files["old"], case.files["new"]
        voxel = _read_box(case.files)
        scene = None
        if "tumor" in case.files:
            # Refused on another grid than the new scan's, where labels would be misplaced.
            scene = Scene.read(case.files["tumor"], image=scans[1], **target_options)
        outcome = repeat_voxel(voxel, *scans)
        placement = None
        if scene is not None and outcome.reliable:
            placement = describe_placement(outcome.voxel, scene)
        record = repeat_files.describe_repeat(outcome, *scans, placement, **inputs(case))
        repeat_files.write_repeat(outcome, *scans, folder, record, scene, figure=run.draws)
        return record

    def line_of(case: _Case, record: dict[str, Any]) -> str:
        row = SimpleNamespace(name=case.name, tumor=str(case.files.get("tumor")))
        row.image, row.exclude, row.brain = case.files["new"], "", "auto"
        command = prescribe_command(row, RegionOptions(**vars(target)))
        return repeat_files.summary_line(case.name, record).replace(PRESCRIBE, command)

    _CASE_RUN.run(
        cases,
        {"command": "repeat", **target_options},
        run,
        work=repeat_case,
        inputs=inputs,
        say=lambda records: [
            *(broken(line_of(case, records[case.name])) for case in cases if case.name in records),
            f"{counted(len(records), 'case')}: {run.out}",
        ],
        failed=failed,
        # Earlier versions did not write it.
        is_whole=lambda _, record: "advice" in record,
    )


def _read_cases(
    files: Mapping[str, Path | None], table: Path | None, failed: list[dict[str, str]]
) -> list[_Case]:
    """List the cases; rows of a table that lack a file go into `failed`."""
    from placement.exchange.tables import complete_rows

    if table is not None:
        if any(files.values()):
            raise ValueError("name files or a table of them (--table), not both")
        check_file(table, "table")
        rows = complete_rows(table, _FILES, tuple(files), failed)
    else:
        if not all(files[role] for role in _FILES):
            raise ValueError("name three files, OLD_T1 BOX NEW_T1, or a table of them (--table)")
        for path in filter(None, files.values()):
            check_file(path)
        rows = [{"name": stem(str(files["new"])), **files}]
    cases = []
    for row in rows:
        case = _Case(row["name"], {role: Path(row[role]) for role in files if row[role]})
        new = case.files["new"]
        if case.files["old"].resolve() == new.resolve():
            raise ValueError(f"{new} is both the old and the new scan; name another one")
        cases.append(case)
    return cases


def _read_box(files: Mapping[str, Path]) -> Any:
    """Read a box; refuse one whose file says that it was placed in another scan."""
    from placement.exchange.repeats import frame_of
    from placement.exchange.voxel_files import read_voxel_file

    record = read_voxel_file(files["box"])
    frame = frame_of(files["old"])
    if record.frame and frame and record.frame != frame:
        raise ValueError(_TEXTS("moved", **files, frame_of_box=record.frame, frame=frame))
    if record.placed_in and file_record(files["old"])["SHA256"] not in record.placed_in:
        names = ", ".join(sorted(set(record.placed_in.values())))
        raise ValueError(_TEXTS("placed_in", **files, names=names))
    return record.voxel


def _page(out: Path, records: Mapping[str, Mapping[str, Any]], _lesions: Any) -> RunPage:
    """Make the page of all cases, with their pictures."""
    from placement.exchange import pages
    from placement.exchange.vendor_texts import NOTICE

    lines, pictures = [], []
    for name, record in records.items():
        flags = "; ".join(record["flags"]) or "none"
        angles = pages.rotation_words(record) if record["reliable"] else "n/a"
        lines.append({**record, "name": name, "angles": angles, "flags": flags})
        answer = pages.box_line(record, "repeated")
        texts = [answer, *record["advice"], record["content"], *record["notes"]]
        pose = page.Table(pages.pose_rows(record) if record["reliable"] else [])
        alts = {f"voxel_{scan}.png": f"Voxel of {name}, {scan} scan" for scan in ("old", "new")}
        shown = _CASE_RUN.shown(out / name, alts)
        parts = [*map(page.sentence, texts), pose, *shown, pages.console_numbers(record)]
        pictures.append((name, parts))
    note = _TEXTS["sides"]
    table = page.Table(lines, _TEXTS["overview"])
    return RunPage("Repeated voxels", [table], pictures, note, f"{NOTICE}.", **pages.box_assets())


def _row(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of a case in the table; without a reliable match, no box."""
    from placement.exchange.tables import record_columns

    box = record_columns(record)
    return {
        "name": name,
        "answer": record["answer"],
        **(box if record["reliable"] else dict.fromkeys(box, float("nan"))),
        **{key: record[key] for key in _FIGURES},
        "flags": "; ".join(record["flags"]),
    }


_CASE_RUN = CaseRun(
    record="{name}/repeat.json",
    table="repeats.tsv",
    row=_row,
    page=_page,
    digits=12,
    pictures=("voxel_old.png", "voxel_new.png", "voxel_view.html"),
    files=("voxel_geometry.nii.gz", "voxel_philips.txt", "voxel_siemens.txt", "voxel_mask.nii.gz"),
    flag="flags",
)
