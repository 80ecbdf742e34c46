"""The command that prepares a person's own scan: prepare."""

from __future__ import annotations

from pathlib import Path

import typer


def prepare(
    scan: Path,
    /,
    out: Path,
    prior: Path | None = None,
    brain: Path | None = None,
    spacing: float = 1.0,
    overwrite: bool = False,
) -> None:
    """
    Prepare a scan for segment: cubic voxels, brain alone, prior scan aligned, median 1.

    Writes NAME.nii.gz, NAME_brain.nii.gz, with a prior scan NAME_prior.nii.gz, and a record;
    segment takes the folder. A prior scan of another head is refused.

    Options:
    scan T1: Post-contrast T1 scan (NIfTI), on any grid.
    prior: Earlier scan of the same person and contrast, any grid.
    brain MASK: Brain on the grid of T1, of a tool made for it; by default searched, which is rough
        where a skull is there.
    spacing 0.4..2: Edge in mm of the voxels to resample to.

    Example: dmrifit-metastasis prepare t1c.nii.gz --prior earlier.nii.gz --out prepared
    """
    from metastasis.scans.preparation import prepare_scan

    result = prepare_scan(
        scan, prior=prior, brain=brain, spacing=spacing, out=out, overwrite=overwrite
    )
    for note in result.notes:
        typer.echo(f"dmrifit-metastasis: {note}", err=True)
    size = " × ".join(map(str, result.image.shape))
    text = f"{size} voxels of {spacing:g} mm"
    if result.likeness is not None:
        text += f", prior scan aligned (local correlation {result.likeness:.2f})"
    typer.echo(f"{text}: {out}")
