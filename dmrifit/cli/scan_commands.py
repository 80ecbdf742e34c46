"""Commands before a fit: what a scan is, and tables of the scans of a folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import typer

from dmrifit._utils.counts import counted, size_text
from dmrifit.cli.options import ProtocolFiles, say, scan_of


def info(
    image: Path,
    /,
    files: ProtocolFiles,
    mask: Path | None = None,
) -> None:
    """
    Describe a scan: grid, protocol, noise, the models that it carries, and what looks wrong.

    For each model the standard deviation is the Cramér–Rao bound in typical tissue at the SNR of
    the scan: no fit can be more precise. The image is read slab by slab, several times.

    Options:
    mask: Voxels to look at; by default all with signal.

    Example: dmrifit info sub-01_dwi.nii.gz
    """
    from dmrifit.imaging.scan_info import scan_info

    problem = ""
    images, protocol = [image], None
    try:
        images, protocol = scan_of(image, files, needs_te=True)
    except ValueError as error:
        problem = str(error)
    described = scan_info(images, protocol, mask=mask)
    edges = " × ".join(f"{edge:.4g}" for edge in described.voxel)
    grid = size_text(described.grid)
    rows = [
        ("grid", f"{grid} voxels of {edges} mm, {counted(described.n_volumes, 'volume')}"),
        ("axes", f"{described.axes} (position: {described.position})"),
        *[("protocol", line) for line in described.contrasts],
        ("noise", described.noise),
        ("SNR", f"{described.snr:.3g} (median signal at the lowest b over the noise)"),
        *[("model", line) for line in described.models],
    ]
    if protocol is not None and len(protocol) != described.n_volumes:
        problem = (
            f"{counted(described.n_volumes, 'volume')}, but "
            f"{counted(len(protocol), 'b-value')}: they are not of one scan, "
            "or volumes were lost in conversion"
        )
    doubts = [problem, *described.doubts] if problem else described.doubts
    rows += [("looks wrong", doubt) for doubt in doubts or ["nothing that this command looks for"]]
    for title, text in rows:
        if text and not text.startswith("nan"):
            typer.echo(f"{title}: {text}")


def import_(
    folder: Path, /, out: Path, subject: str | None = None, overwrite: bool = False
) -> None:
    """
    Convert the diffusion series of a DICOM folder to BIDS, by dcm2niix.

    Prints the table of all series with b-values and echo times, and why a series is no diffusion
    series. Names and identifiers of persons are not written. Series that differ in echo time alone
    are one scan for dmrifit fit. All headers are read first; then every series with images is
    converted into a temporary folder, which takes the room of the images.

    Options:
    folder DICOM_FOLDER: Folder of DICOM files, at any depth.
    out: BIDS folder to write; created if missing.
    subject LABEL: Label of the one patient; by default patients are numbered.

    Example: dmrifit import dicom --out bids
    """
    from dmrifit.io.dicom_import import import_dicom

    series = import_dicom(folder, out, subject=subject, overwrite=overwrite)
    typer.echo(series.to_string(index=False))
    typer.echo(f"to fit: {shlex.join(['dmrifit', 'fit', str(out), '--out', f'{out}_maps'])}")


def table(
    folder: Path,
    /,
    mask: str,
    lesion: str | None = None,
    sigma: str | None = None,
    cohort: str | None = None,
) -> None:
    """
    Print a table of participants of a BIDS folder, for dmrifit benchmark and train.

    Paths are relative to the folder in which the command runs: write the table there
    (> participants.tsv). Scans without a mask are left out and named.

    Options:
    folder BIDS: BIDS folder with sub-*/[ses-*/]dwi.
    mask PATTERN: Masks of the body, a pattern in quotes relative to the folder, such as
        'derivatives/masks/sub-*/**/*_desc-body_mask.nii.gz'.
    lesion PATTERN: Masks of the lesions.
    sigma PATTERN: Maps of the noise.
    cohort: Name of the cohort; by default that of the folder.

    Example: dmrifit table bids --mask 'derivatives/masks/sub-*/*_mask.nii.gz' > participants.tsv
    """
    import pandas as pd

    from dmrifit.cohort.bids_folder import find_scans, is_bids_folder, match_files
    from dmrifit.io.tables import table_text

    if not is_bids_folder(folder):
        raise ValueError(f"{folder} is no BIDS folder: it has no folders sub-*; check its name")
    scans = find_scans(folder)
    options = {"mask": mask, "lesion": lesion, "sigma": sigma}
    files = {
        column: match_files(f"--{column}", pattern, scans, folder)
        for column, pattern in options.items()
        if pattern is not None
    }
    rows = []
    for scan in scans:
        matched = {column: paths[scan.name] for column, paths in files.items()}
        if matched["mask"] is None:
            say(f"{scan.name} is left out: no mask of the pattern {mask} is of it")
            continue
        row: dict[str, str] = {"patient": scan.subject, "cohort": cohort or folder.resolve().name}
        for column in ("image", "bval", "te", "bvec"):
            paths = [file[column] for file in scan.files() if column in file]
            row[column] = ",".join(os.path.relpath(path) for path in paths)
        row |= {name: os.path.relpath(path) for name, path in matched.items() if path is not None}
        rows.append(row)
    if not rows:
        raise ValueError(f"--mask {mask}: no scan of {folder} has a mask")
    used = pd.DataFrame(rows).replace("", None).dropna(axis="columns", how="all")
    typer.echo(table_text(used), nl=False)
