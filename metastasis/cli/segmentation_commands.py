"""Commands that segment scans with trained models: segment, ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from dmrifit.cli.console import FigureOption, OutOption, OverwriteOption
from dmrifit.cli.options import floats, is_table, move_to_device
from dmrifit.report.html import counted

if TYPE_CHECKING:
    from metastasis.scans.cases import Case

__all__ = ["EXAMPLES", "ensemble", "segment"]

ScansArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="SCANS",
        help="Contrast-enhanced T1 image (NIfTI), prepared like the training scans; a folder of "
        "them, where NAME_prior and NAME_brain.nii.gz belong to NAME.nii.gz; or a table (.tsv) "
        "with the columns patient and image, and optionally name, prior and brain (files relative "
        "to the table).",
    ),
]
PriorOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="Prior scan on the grid of the image (single image).")
]
MaskOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Brain on the grid of the image; by default all nonzero voxels (single image)."
    ),
]
FlipsOption: TypeAlias = Annotated[
    bool,
    typer.Option("--flips", help="Average over eight mirror images; takes eight times as long."),
]
DeviceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="auto|cpu|cuda", help="Device to compute on; by default that of the model."
    ),
]


def segment(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[MODEL] SCANS",
            help="Model file from train (by default the small model that comes along), and the "
            "scans: a contrast-enhanced T1 image (NIfTI), prepared like the training scans; a "
            "folder of them, where NAME_prior and NAME_brain.nii.gz belong to NAME.nii.gz; or a "
            "table (.tsv) with the columns patient and image, and optionally name, prior and "
            "brain (files relative to the table).",
        ),
    ],
    out: OutOption,
    model: Annotated[
        Path | None, typer.Option(help="Model file from train, another way to name it.")
    ] = None,
    prior: PriorOption = None,
    mask: MaskOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Lowest probability of lesion voxels; by default the model's operating point."
        ),
    ] = None,
    flips: FlipsOption = False,
    device: DeviceOption = None,
    figure: FigureOption = True,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Find metastases in scans by one model. Not for clinical use.

    Writes a folder for each scan with probability.nii.gz and label.nii.gz on its grid, a table of
    its lesions and a picture; for all scans segmentations.tsv, lesions.tsv and a page. An
    interrupted run resumes when started again with the same options.
    """
    from dmrifit.io.bids_derivatives import file_record
    from metastasis.cli.case_runs import RUN, segment_cases, write_batch

    if threshold is not None:
        _check_threshold("--threshold", threshold)
    model, scans = _model_and_scans(paths, model)
    segmenter = _trained(model, flips, device)
    if threshold is not None:
        # The number of false positives holds at the model's own threshold only.
        segmenter.threshold_, segmenter.false_positives_ = threshold, None
    cases = _cases(scans, prior, mask, out)
    if not _uses_priors([segmenter], cases):
        cases = [replace(case, prior=None) for case in cases]
    settings = {
        "command": "segment",
        # The digest, not the path: a file may be replaced under its name, or moved.
        "model": file_record(model)["SHA256"],
        "flips": flips,
        "figure": figure,
        "threshold": segmenter.threshold_,
    }
    RUN.begin(out, settings, overwrite)
    contents = segment_cases(
        segmenter, cases, out, figure=figure, overwrite=overwrite, source=scans
    )
    write_batch(out, contents, figure=figure, heading="Segmentations")
    _print_counts(contents, out)


def ensemble(
    sensitive: Annotated[
        Path, typer.Argument(metavar="SENSITIVE", help="Sensitive model, from train.")
    ],
    specific: Annotated[
        Path, typer.Argument(metavar="SPECIFIC", help="Specific model, from train.")
    ],
    scans: ScansArgument,
    out: OutOption,
    prior: PriorOption = None,
    mask: MaskOption = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Lowest probabilities of lesion voxels of the two models; by default their "
            "operating points.",
        ),
    ] = None,
    flips: FlipsOption = False,
    device: DeviceOption = None,
    figure: FigureOption = True,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Find metastases by two models: lesions marked by both are confirmed. Not for clinical use.

    Writes the files of segment, with labels 0 for background, 1 for candidates (to review) and 2
    for confirmed metastases. Prior scans are segmented too, and lesions.tsv says which metastases
    are new, grown, stable, shrunk or vanished.
    """
    from dmrifit.io.bids_derivatives import file_record
    from metastasis.cli.case_runs import RUN, segment_cases, write_batch
    from metastasis.segmentation.ensemble import SensitivitySpecificityEnsemble

    limits = None
    if thresholds is not None:
        low, high = floats("--thresholds", thresholds, 2)
        limits = (low, high)
        for limit in limits:
            _check_threshold("--thresholds", limit)
    models = [_trained(path, flips, device) for path in (sensitive, specific)]
    segmenter = SensitivitySpecificityEnsemble(*models, thresholds=limits)
    cases = _cases(scans, prior, mask, out)
    # Without prior scans the models see none, but the table of lesions still compares with them.
    _uses_priors(models, cases)
    settings = {
        "command": "ensemble",
        "sensitive": file_record(sensitive)["SHA256"],
        "specific": file_record(specific)["SHA256"],
        "thresholds": None if limits is None else list(limits),
        "flips": flips,
        "figure": figure,
        "threshold": None,
    }
    RUN.begin(out, settings, overwrite)
    contents = segment_cases(
        segmenter, cases, out, figure=figure, overwrite=overwrite, source=scans
    )
    write_batch(out, contents, figure=figure, heading="Confirmed and candidates")
    _print_counts(contents, out)


#: Commands, each with the example that its help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    segment: "dmrifit-metastasis segment t1c.nii.gz --out segmented",
    ensemble: "dmrifit-metastasis ensemble sensitive.dmrifit specific.dmrifit cases.tsv --out "
    "joined",
}


def _cases(scans: Path, prior: Path | None, mask: Path | None, out: Path) -> list[Case]:
    """Read the cases of a table, or a single image with the files that options name."""
    from metastasis.scans.cases import IMAGES, read_case, read_cases

    if out.is_file():
        raise ValueError(f"--out {out} is a file; name a folder")
    options = {"--prior": prior, "--mask": mask}
    if is_table(scans, "prior scans and brains", options, IMAGES):
        return read_cases(scans)
    return [read_case(scans, prior=prior, brain=mask)]


def _model_and_scans(paths: list[Path], model: Path | None) -> tuple[Path, Path]:
    """Tell the model file from the scans; without one the small model is used."""
    n_most = 2 if model is None else 1
    if len(paths) > n_most:
        raise ValueError(
            f"{len(paths)} paths ({', '.join(str(path) for path in paths)}); give a model file "
            "and one image, folder or table"
        )
    if len(paths) == 2:
        return paths[0], paths[1]
    if model is None:
        from metastasis.candidates.small_model import PATH

        # A model file alone means that the scans were forgotten.
        if paths[0].suffix == ".dmrifit":
            raise ValueError(f"{paths[0]} is a model file; name the scans after it")
        typer.echo(
            "dmrifit-metastasis: the small model that comes along is used; it was never tried on "
            "a labelled real metastasis",
            err=True,
        )
        model = PATH
    return model, paths[0]


def _trained(path: Path, flips: bool, device: str | None) -> Any:
    """Read a segmenter, and move it to a device."""
    from dmrifit.model_files.model_file import load_model
    from metastasis.candidates.two_stage import TwoStageSegmenter
    from metastasis.segmentation.segmenter import DeepMedicSegmenter

    model = load_model(path)
    # Model files of the other applications can be read as well.
    if not isinstance(model, DeepMedicSegmenter | TwoStageSegmenter):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, which segments nothing; dmrifit-metastasis "
            "train makes segmenters"
        )
    network: Any = getattr(model, "segmenter_", model)
    if flips:
        network.set_params(flips=True)
    move_to_device(network, device)
    return model


def _uses_priors(models: list[Any], cases: list[Case]) -> bool:
    """Tell whether a model uses prior scans; print that prior scans of cases are ignored."""
    if any(model.prior_ is not None for model in models):
        return True
    if any(case.prior is not None for case in cases):
        typer.echo(
            "dmrifit-metastasis: prior scans are ignored: the model was trained without prior "
            "scans",
            err=True,
        )
    return False


def _print_counts(contents: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Print how many lesions were found."""
    n_lesions = sum(content["n_lesions"] for content in contents)
    summary = f"{counted(len(contents), 'scan')}, {counted(n_lesions, 'lesion')} found"
    confirmed = [content["n_confirmed"] for content in contents]
    confirmed = [count for count in confirmed if count is not None]
    if confirmed:
        summary += f", {sum(confirmed)} of them confirmed"
    typer.echo(f"{summary}: {out}")
    if any(content["synthetic"] for content in contents):
        typer.echo("synthetic scans: no clinical result")


def _check_threshold(option: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{option} {value:g}: a probability above 0 and at most 1 is needed")
