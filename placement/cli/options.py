"""Options that several commands share, and parsing of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from dmrifit.cli.options import floats, whole_numbers, words

__all__ = ["constraints_of", "labels_of", "shift_options"]

CasesArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="CASES",
        help="NIfTI mask of the tumor; a folder of them, where NAME_image and "
        "NAME_exclude.nii.gz belong to NAME.nii.gz; or a table (.tsv) with the columns name and "
        "tumor, and optionally image and exclude (files, separated by commas), relative to the "
        "table.",
    ),
]
IncludeOption: TypeAlias = Annotated[
    str | None, typer.Option(metavar="LABELS", help="Labels that count as tumor, such as 3,4.")
]
ExcludeOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="LABELS|FILES",
        help="Labels of the tumor file, or masks, that no voxel may overlap.",
    ),
]
ImageOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="Image for the figures (a single case).")
]
MarginOption: TypeAlias = Annotated[
    float, typer.Option(min=0, help="Distance to keep from excluded regions, in mm.")
]
ToleranceOption: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.99,
        help="Fraction of the voxel that may overlap excluded regions, such as 0.05 where labels "
        "are scattered.",
    ),
]
PpmOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH", help="Chemical shifts of interest, relative to the pulses, in ppm."
    ),
]
ExpertsArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="EXPERTS",
        help="Table (.tsv) of boxes with the columns name, expert, x, y, z (center in mm RAS+), "
        "size_x, size_y, size_z (mm), angle_x, angle_y, angle_z (degrees), as simulate writes it.",
    ),
]
LeastVolumeOption: TypeAlias = Annotated[float, typer.Option(min=0, help="Smallest volume in mL.")]
RotationsOption: TypeAlias = Annotated[
    int, typer.Option(min=0, max=3, help="Number of axes that may be rotated.")
]
SidesOption: TypeAlias = Annotated[
    str, typer.Option(metavar="LOW,HIGH", help="Shortest and longest side in mm.")
]
RateOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="PERCENT",
        help="Chemical-shift displacement per ppm, in percent of the side: one number, or one per "
        "axis.",
    ),
]


def shift_options(ppm: str | None, percent: str | None) -> dict[str, Any]:
    """Read the range of chemical shifts and their displacement."""
    if ppm is None and percent is None:
        return {}
    if ppm is None or percent is None:
        raise ValueError("chemical-shift displacement needs both --ppm and --percent-per-ppm")
    n_rates = 1 if len(words(percent)) == 1 else 3
    rate = floats("--percent-per-ppm", percent, n_rates)
    low, high = floats("--ppm", ppm, 2)
    # The prescription takes one number for all axes, or three.
    return {"ppm_range": (low, high), "percent_per_ppm": rate if len(rate) == 3 else rate[0]}


def labels_of(text: str | None) -> list[int] | None:
    """Read the labels that count as tumor."""
    return None if text is None else list(whole_numbers("--include", text))


def constraints_of(sides: str, min_volume: float, max_rotations: int) -> dict[str, Any]:
    """Read the constraints of a box."""
    low, high = floats("--sides", sides, 2)
    return {"size_range": (low, high), "min_volume": min_volume, "max_rotations": max_rotations}
