"""What words on the command line stand for, and the options that several commands share."""

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
        help="A NIfTI mask of the tumor, or a table (.tsv) with the columns name and tumor, and if wanted image and "
        "exclude (files, with commas between them), relative to the table.",
    ),
]
IncludeOption: TypeAlias = Annotated[
    str | None, typer.Option(metavar="LABELS", help="Labels that count as tumor, such as 3,4.")
]
ExcludeOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="LABELS|FILES", help="Labels of the tumor file, or masks, that no voxel may touch."
    ),
]
ImageOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="Image for the figures (a single case).")
]
MarginOption: TypeAlias = Annotated[
    float, typer.Option(min=0, help="Distance to what is excluded, in mm.")
]
ToleranceOption: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.99,
        help="Part of the voxel that may be excluded all the same, where labels are scattered: 0.05.",
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
        help="Table (.tsv) of boxes with the columns name, expert, x, y, z (center in mm RAS+), size_x, size_y, size_z "
        "(mm), angle_x, angle_y, angle_z (degrees), as simulate writes it.",
    ),
]
LeastVolumeOption: TypeAlias = Annotated[float, typer.Option(min=0, help="Least volume in mL.")]
RotationsOption: TypeAlias = Annotated[
    int, typer.Option(min=0, max=3, help="How many axes may be rotated.")
]
SidesOption: TypeAlias = Annotated[
    str, typer.Option(metavar="LOW,HIGH", help="Least and largest side in mm.")
]
RateOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="PERCENT", help="Displacement in percent of the side per ppm: one or three."
    ),
]


def shift_options(ppm: str | None, percent: str | None) -> dict[str, Any]:
    """Read what is wanted of chemical-shift displacement."""
    if ppm is None and percent is None:
        return {}
    if ppm is None or percent is None:
        raise ValueError("chemical-shift displacement needs both --ppm and --percent-per-ppm")
    rate = floats("--percent-per-ppm", percent, 1 if len(words(percent)) == 1 else 3)
    low, high = floats("--ppm", ppm, 2)
    return {"ppm_range": (low, high), "percent_per_ppm": rate if len(rate) == 3 else rate[0]}


def labels_of(text: str | None) -> list[int] | None:
    """Read the labels that count as tumor."""
    return None if text is None else list(whole_numbers("--include", text))


def constraints_of(sides: str, min_volume: float, max_rotations: int) -> dict[str, Any]:
    """Read the constraints of a box."""
    low, high = floats("--sides", sides, 2)
    return {"size_range": (low, high), "min_volume": min_volume, "max_rotations": max_rotations}
