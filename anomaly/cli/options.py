"""What words on the command line stand for, and the options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from anomaly.detectors.base import AnomalyDetector
    from anomaly.scans.series import SeriesFiles

__all__ = ["DETECTORS", "make_detector", "parameters_of", "series_of"]

#: What detectors are called, and where they are.
DETECTORS: Mapping[str, tuple[str, str]] = {
    "gaussian": ("anomaly.detectors.gaussian", "VoxelwiseGaussian"),
    "pca": ("anomaly.detectors.subspace", "PCADetector"),
    "forest": ("anomaly.detectors.isolation", "IsolationForestDetector"),
    "implants": ("anomaly.detectors.implant_detector", "ImplantDetector"),
    "mean": ("anomaly.detectors.gaussian", "OneMinusMean"),
    "dae": ("anomaly.detectors.autoencoder", "DenoisingAutoencoder"),
    "recdisc": ("anomaly.detectors.recdisc", "RecDiscNet"),
}

ScansArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="SCANS",
        help="A diffusion series (NIfTI, with .bval and .bvec beside it), or a table (.tsv) with the columns patient "
        "and image, and if wanted name, bval, bvec, brain, tissue and what train was told of (age, sex, site); files "
        "relative to the table.",
    ),
]
CasesArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="CASES",
        help="Table (.tsv) of series with the columns patient and image, and if wanted name, bval, bvec, brain, "
        "tissue, lesion, followup, age, sex, site, grade and kind; files relative to the table.",
    ),
]
TissueOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--estimate-tissue",
        help="Tell fluid from tissue by diffusion where the table names no tissue map, and leave it out.",
    ),
]
AllVoxelsOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--all-voxels",
        help="Where no brain is named, take all voxels with signal at b = 0, as for blocks of tissue, and look for no "
        "brain.",
    ),
]
DeviceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="auto|cpu|cuda", help="Where networks compute; auto by default."),
]


def make_detector(
    name: str, parameters: Mapping[str, Any], *, published: bool = False
) -> AnomalyDetector:
    """Make a detector by its name."""
    if name not in DETECTORS:
        raise ValueError(f"there is no detector {name!r}; choose one of {', '.join(DETECTORS)}")
    module, title = DETECTORS[name]
    cls = getattr(import_module(module), title)
    known = cls._get_param_names()
    if strange := [key for key in parameters if key not in known]:
        raise ValueError(
            f"the detector {name} has no parameter {strange[0]!r}; it has {', '.join(known)}"
        )
    if published and not hasattr(cls, "published"):
        raise ValueError(
            f"the publication has no sizes of the detector {name}; leave out --published"
        )
    return (cls.published if published else cls)(**parameters)


def parameters_of(settings: Sequence[str]) -> dict[str, Any]:
    """Read parameters of a detector."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or not name.strip() or not text.strip():
            raise ValueError(f"--set {setting}: NAME=VALUE is needed, such as latent_dim=64")
        if name.strip() in found:
            raise ValueError(f"--set gives {name.strip()} twice")
        try:
            value = json.loads(text)
        except ValueError:
            value = text.strip()
        found[name.strip()] = tuple(value) if isinstance(value, list) else value
    return found


def series_of(
    scans: Path,
    *,
    bval: Path | None = None,
    bvec: Path | None = None,
    mask: Path | None = None,
    tissue: Path | None = None,
) -> list[SeriesFiles]:
    """Find the series that a user names: those of a table, or one with what options say."""
    from anomaly.scans.series import SeriesFiles, read_series

    given = {"bval": bval, "bvec": bvec, "brain": mask, "tissue": tissue}
    named: dict[str, Any] = {key: path for key, path in given.items() if path is not None}
    if not scans.is_file():
        raise FileNotFoundError(
            f"{scans} is a folder; name an image or a table in it"
            if scans.is_dir()
            else f"{scans}: no such file"
        )
    if scans.suffix.lower() in (".tsv", ".csv"):
        if named:
            raise ValueError(
                f"{scans} names files in its columns; leave out --bval, --bvec, --mask and --tissue"
            )
        return read_series(scans)
    for path in named.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
    return [SeriesFiles(scans, **named)]
