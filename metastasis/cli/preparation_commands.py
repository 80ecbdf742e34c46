"""The command that prepares a person's own scan: prepare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dmrifit.cli.console import OutOption, OverwriteOption

__all__ = ["EXAMPLES", "prepare"]


def prepare(
    scan: Annotated[
        Path, typer.Argument(metavar="T1", help="Post-contrast T1 scan (NIfTI), on any grid.")
    ],
    out: OutOption,
    prior: Annotated[
        Path | None, typer.Option(help="Earlier scan of the same person and contrast, any grid.")
    ] = None,
    brain: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK",
            help="Brain on the grid of T1, of a tool made for it; by default searched, which is "
            "rough where a skull is there.",
        ),
    ] = None,
    spacing: Annotated[
        float, typer.Option(min=0.4, max=2, help="Edge in mm of the voxels to resample to.")
    ] = 1.0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Prepare a scan for segment: cubic voxels, brain alone, prior scan aligned, median 1.

    Writes NAME.nii.gz, NAME_brain.nii.gz, with a prior scan NAME_prior.nii.gz, and a record;
    segment takes the folder. A prior scan of another head is refused.
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


#: Commands, each with the example that its help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    prepare: "dmrifit-metastasis prepare t1c.nii.gz --prior earlier.nii.gz --out prepared",
}
