"""Command that detects anomalies with a trained model: detect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly.cli.options import (
    AllVoxelsOption,
    DeviceOption,
    ScansArgument,
    TissueOption,
    series_of,
)
from dmrifit.cli.console import FigureOption, OutOption, OverwriteOption
from dmrifit.cli.options import move_to_device
from dmrifit.report.html import counted

if TYPE_CHECKING:
    from anomaly.scans.series import SeriesDetector

__all__ = ["EXAMPLES", "detect"]


def detect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file from train.")],
    scans: ScansArgument,
    out: OutOption,
    bval: Annotated[Path | None, typer.Option(help="b-values (single series).")] = None,
    bvec: Annotated[Path | None, typer.Option(help="Gradient directions (single series).")] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Brain on the grid of the series; by default found automatically (single series)."
        ),
    ] = None,
    tissue: Annotated[
        Path | None,
        typer.Option(
            help="Tissue map: 1 white, 2 gray, 4 deep gray matter, 3 fluid (single series)."
        ),
    ] = None,
    all_voxels: AllVoxelsOption = False,
    estimate_tissue: TissueOption = False,
    resample_directions: Annotated[
        bool,
        typer.Option(
            "--resample-directions",
            help="Interpolate signals along the directions of the model.",
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score above which a voxel is anomalous; by default the model's."),
    ] = None,
    opening: Annotated[
        int,
        typer.Option(min=1, help="Edge in voxels of the cube for opening binary maps."),
    ] = 3,
    device: DeviceOption = None,
    figure: FigureOption = True,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Find anomalies in diffusion series by a trained model. Not for clinical use.

    Writes a folder for each scan with map.nii.gz, binary.nii.gz and opened.nii.gz on its grid,
    lesions.csv and detection.json; for all scans detections.tsv, lesions.csv and, with figures, a
    page. An interrupted run resumes when started again with the same options.
    """
    from anomaly.cli.case_runs import RUN, detect_series, write_batch
    from dmrifit.io.bids_derivatives import file_record

    if out.is_file():
        raise ValueError(f"--out {out} is a file; name a folder")
    detector = _trained(model, device)
    series = series_of(scans, bval=bval, bvec=bvec, mask=mask, tissue=tissue)
    if threshold is not None:
        import numpy as np

        from anomaly.detectors.thresholds import FixedThreshold

        # A fixed threshold learns nothing from maps, but every rule is fitted before it is
        # applied.
        detector.detector_.threshold_ = FixedThreshold(threshold).fit(np.zeros((1, 1, 1, 1)))
    options: dict[str, Any] = {
        "opening": opening,
        "tissue": estimate_tissue,
        "mask": not all_voxels,
    }
    if resample_directions:
        options["directions"] = "resampled"
    settings = {
        "command": "detect",
        # The digest, not the path: a file may be replaced under its name, or moved.
        "model": file_record(model)["SHA256"],
        "threshold": threshold,
        "figure": figure,
    }
    RUN.begin(out, settings | options, overwrite)
    contents = detect_series(detector, series, out, figure=figure, overwrite=overwrite, **options)
    write_batch(out, contents, figure=figure)
    counts = [content["n_lesions"] for content in contents]
    anomalies = "1 anomaly" if sum(counts) == 1 else f"{sum(counts)} anomalies"
    typer.echo(
        f"{counted(len(counts), 'scan')}, {anomalies} found, {counts.count(0)} without: {out}"
    )
    if any(content["synthetic"] for content in contents):
        typer.echo("synthetic scans: no clinical result")
    if detector.synthetic_:
        typer.echo("the model was trained on synthetic scans: its accuracy in people is unknown")


#: Commands, each with the example that its help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    detect: "dmrifit-anomaly detect model.dmrifit dwi.nii.gz --mask brain.nii.gz --out found",
}


def _trained(path: Path, device: str | None) -> SeriesDetector:
    """Read a detector of anomalies in series, and move it to a device."""
    from anomaly.scans.series import SeriesDetector
    from dmrifit.model_files.model_file import load_model

    model = load_model(path)
    if not isinstance(model, SeriesDetector):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, which does not know how series are prepared; "
            "dmrifit-anomaly train makes models that do"
        )
    move_to_device(model.detector_, device)
    return model
