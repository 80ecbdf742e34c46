"""Options that several commands share, and parsing of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from dmrifit.cli.options import floats, whole_numbers, words

__all__ = ["constraints_of", "labels_of", "named_tissues", "shift_options"]

CasesArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="CASES",
        help="NIfTI mask of the tumor; a folder of them, where NAME_image, NAME_exclude and "
        "NAME_brain.nii.gz belong to NAME.nii.gz; or a table (.tsv) with the columns name and "
        "tumor, and optionally image, exclude (files, separated by commas) and brain, relative to "
        "the table.",
    ),
]
IncludeOption: TypeAlias = Annotated[
    str | None, typer.Option(metavar="LABELS", help="Labels that count as tumor, such as 3,4.")
]
LabelsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="SCHEME|FILE",
        help="What the values of the tumor file mean: brats2013, brats2017 (to 2022), brats2023 "
        "(metastases), or a table (.tsv) with the columns index and name. The target is then "
        "solid tumor.",
    ),
]
FlairOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--flair-target",
        help="Take FLAIR-bright tissue (edema, too) for the target of tumors in which nothing is "
        "labeled as enhancing, or solid tumor is below the smallest volume.",
    ),
]
BrainOption: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="FILE|auto|none",
        help="Mask of the brain, outside of which no box may reach; auto takes the column brain "
        "of the table, or finds the brain in the image.",
    ),
]
BrainMarginOption: TypeAlias = Annotated[
    float, typer.Option(min=0, help="Distance to keep inside the brain, in mm.")
]
ForceOption: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="REASON",
        help="Write numbers for consoles although less than half of the box is target.",
    ),
]
BandwidthOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="HZ",
        help="Bandwidths of the pulses in Hz: one number, or one per side. The boxes of water, "
        "the metabolite and lipid must then stay in the brain.",
    ),
]
TeslaOption: TypeAlias = Annotated[float, typer.Option(help="Field in tesla.")]
CarrierOption: TypeAlias = Annotated[
    float, typer.Option(help="Chemical shift that the pulses are tuned to, in ppm.")
]
MetaboliteOption: TypeAlias = Annotated[
    float, typer.Option(help="Chemical shift of the metabolite, in ppm; choline by default.")
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
    int, typer.Option(min=0, max=3, help="Number of angles to set on the console.")
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


def shift_options(
    ppm: str | None,
    percent: str | None,
    bandwidth: str | None = None,
    tesla: float = 3.0,
    carrier: float = 2.3,
    metabolite: float = 3.2,
) -> dict[str, Any]:
    """Read the range of chemical shifts and their displacement."""
    if bandwidth is not None:
        from placement.exchange.displacement import pulse_displacement

        if ppm is not None or percent is not None:
            raise ValueError("--bandwidth takes the place of --ppm and --percent-per-ppm")
        n_pulses = 1 if len(words(bandwidth)) == 1 else 3
        pulses = floats("--bandwidth", bandwidth, n_pulses)
        return pulse_displacement(pulses, tesla, carrier, metabolite)
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


def named_tissues(text: str | None) -> dict[str, Any] | None:
    """Read the tissues that the values of a tumor file mean."""
    from placement.search.tissue_labels import named_labels

    return None if text is None else named_labels(text)


def constraints_of(sides: str, min_volume: float, max_rotations: int) -> dict[str, Any]:
    """Read the constraints of a box."""
    low, high = floats("--sides", sides, 2)
    return {"size_range": (low, high), "min_volume": min_volume, "max_rotations": max_rotations}
