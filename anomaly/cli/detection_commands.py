"""The command that finds anomalies in scans of users with a trained model: detect."""

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
from dmrifit.cli.console import FigureOption, OutOption, OverwriteOption, begin_run

if TYPE_CHECKING:
    from anomaly.scans.series import SeriesDetector

__all__ = ["EXAMPLES", "detect"]


def detect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file that train wrote.")],
    scans: ScansArgument,
    out: OutOption,
    bval: Annotated[Path | None, typer.Option(help="b-values (a single series).")] = None,
    bvec: Annotated[Path | None, typer.Option(help="Directions (a single series).")] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="The brain on the grid of the series; by default it is looked for (a single series)."
        ),
    ] = None,
    tissue: Annotated[
        Path | None,
        typer.Option(
            help="Tissue map: 1 white, 2 gray matter, 3 fluid, 4 deep gray matter (a single series)."
        ),
    ] = None,
    all_voxels: AllVoxelsOption = False,
    estimate_tissue: TissueOption = False,
    resample_directions: Annotated[
        bool,
        typer.Option(
            "--resample-directions",
            help="Estimate signals along the model's directions from other ones.",
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score above which a voxel is anomalous; by default the model's."),
    ] = None,
    opening: Annotated[
        int,
        typer.Option(min=1, help="Edge in voxels of the cube that binary maps are opened with."),
    ] = 3,
    device: DeviceOption = None,
    figure: FigureOption = True,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Find anomalies in diffusion series by a trained model. Not for clinical use.

    Writes for each scan a folder with map.nii.gz, binary.nii.gz and opened.nii.gz on its own grid, lesions.csv and
    detection.json; for all of them detections.tsv, lesions.csv and, with figures, a page. A run that was interrupted
    goes on where it stopped if it is started again with the same options.
    """
    from anomaly.cli.case_runs import RESULTS, detect_series, write_batch
    from dmrifit.io.bids_derivatives import file_record

    if out.is_file():
        raise ValueError(f"--out {out} is a file; name a folder")
    detector = _trained(model, device)
    series = series_of(scans, bval=bval, bvec=bvec, mask=mask, tissue=tissue)
    if threshold is not None:
        import numpy as np

        from anomaly.detectors.thresholds import FixedThreshold

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
        "model": file_record(model)["SHA256"],
        "threshold": threshold,
        "figure": figure,
    }
    begin_run(out, settings | options, overwrite, results=RESULTS, parts=("*/detection.json",))
    contents = detect_series(detector, series, out, figure=figure, overwrite=overwrite, **options)
    write_batch(out, contents, figure=figure)
    n = sum(content["n_lesions"] for content in contents)
    empty = sum(not content["n_lesions"] for content in contents)
    plural = "s" * (len(contents) != 1)
    typer.echo(
        f"{len(contents)} scan{plural}, {n} anomal{'y' if n == 1 else 'ies'} found, {empty} without: {out}"
    )
    if any(content["synthetic"] for content in contents):
        typer.echo("synthetic scans: no clinical result")
    if detector.synthetic_:
        typer.echo("the model learned from synthetic scans: what it finds in people is unknown")


#: Commands, with the line that their help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    detect: "dmrifit-anomaly detect model.dmrifit dwi.nii.gz --mask brain.nii.gz --out found",
}


def _trained(path: Path, device: str | None) -> SeriesDetector:
    """Read a model file that finds anomalies in series."""
    from anomaly.scans.series import SeriesDetector
    from dmrifit.model_files.model_file import load_model

    model = load_model(path)
    if not isinstance(model, SeriesDetector):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, which does not know how series are prepared; "
            "dmrifit-anomaly train makes models that do"
        )
    net = getattr(model.detector_, "net_", None)
    if device is not None and net is not None:
        from dmrifit._utils.torch_state import resolve_device

        # The weights were put where the file says.
        net.module_.to(resolve_device(device))
        model.detector_.set_params(device=device)
    return model
