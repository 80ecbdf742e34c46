"""Commands that segment scans with trained models: segment, ensemble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from dmrifit.cli.console import FigureOption, OutOption, OverwriteOption, begin_run
from dmrifit.cli.options import floats

if TYPE_CHECKING:
    from metastasis.scans.cases import Case

__all__ = ["EXAMPLES", "ensemble", "segment"]

ScansArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="SCANS",
        help="A contrast-enhanced T1 image (NIfTI), or a table (.tsv) with the columns patient and image, and if "
        "wanted name, prior and brain (files relative to the table), prepared as those that were learned from.",
    ),
]
PriorOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="Earlier scan on the grid of the image (a single image).")
]
MaskOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="The brain on the grid of the image; by default what is not 0 (a single image)."
    ),
]
FlipsOption: TypeAlias = Annotated[
    bool,
    typer.Option("--flips", help="Average over the eight mirror images: eight times the work."),
]
DeviceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="auto|cpu|cuda", help="Where to compute; by default as the model says."),
]


def segment(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file that train wrote.")],
    scans: ScansArgument,
    out: OutOption,
    prior: PriorOption = None,
    mask: MaskOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Probability from which a voxel is lesion; by default the model's operating point."
        ),
    ] = None,
    flips: FlipsOption = False,
    device: DeviceOption = None,
    figure: FigureOption = True,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Find metastases in scans by one model. Not for clinical use.

    Writes for each scan a folder with probability.nii.gz and label.nii.gz on its own grid, a table of its lesions
    and a picture; for all of them segmentations.tsv, lesions.tsv and a page. A run that was interrupted goes on where
    it stopped if it is started again with the same options.
    """
    settings: dict[str, Any] = {"command": "segment", "model": _record(model)}
    if threshold is not None:
        _check_threshold("--threshold", threshold)
    segmenter = _trained(model, flips, device)
    if threshold is not None:
        segmenter.threshold_, segmenter.false_positives_ = threshold, None
    _run(
        segmenter,
        [segmenter],
        (scans, prior, mask),
        out,
        settings,
        flips,
        figure,
        overwrite,
        "Segmentations",
    )


def ensemble(
    sensitive: Annotated[
        Path, typer.Argument(metavar="SENSITIVE", help="Model file of the sensitive model.")
    ],
    specific: Annotated[
        Path, typer.Argument(metavar="SPECIFIC", help="Model file of the specific model.")
    ],
    scans: ScansArgument,
    out: OutOption,
    prior: PriorOption = None,
    mask: MaskOption = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Probabilities from which a voxel is lesion, of both models; by default their operating points.",
        ),
    ] = None,
    flips: FlipsOption = False,
    device: DeviceOption = None,
    figure: FigureOption = True,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Find metastases by two models: what both see is confirmed, the rest is for review. Not for clinical use.

    Writes what segment writes, with labels 0 for background, 1 for candidates and 2 for confirmed metastases. Prior
    scans are segmented, too, and the reader's table, lesions.tsv, says which metastases are new, grown, stable,
    shrunk or vanished.
    """
    from metastasis.segmentation.ensemble import SensitivitySpecificityEnsemble

    settings: dict[str, Any] = {
        "command": "ensemble",
        "sensitive": _record(sensitive),
        "specific": _record(specific),
    }
    limits = None
    if thresholds is not None:
        low, high = floats("--thresholds", thresholds, 2)
        limits = (low, high)
        for limit in limits:
            _check_threshold("--thresholds", limit)
    models = [_trained(path, flips, device) for path in (sensitive, specific)]
    both = SensitivitySpecificityEnsemble(*models, thresholds=limits)
    settings["thresholds"] = None if limits is None else list(limits)
    _run(
        both,
        models,
        (scans, prior, mask),
        out,
        settings,
        flips,
        figure,
        overwrite,
        "Confirmed and candidates",
    )


#: Commands, with the line that their help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    segment: "dmrifit-metastasis segment model.dmrifit t1c.nii.gz --prior earlier.nii.gz --out segmented",
    ensemble: "dmrifit-metastasis ensemble sensitive.dmrifit specific.dmrifit cases.tsv --out joined",
}


def _run(
    segmenter: Any,
    models: list[Any],
    scans: tuple[Path, Path | None, Path | None],
    out: Path,
    settings: dict[str, Any],
    flips: bool,
    figure: bool,
    overwrite: bool,
    heading: str,
) -> None:
    """Segment all scans and write what there is about them."""
    from metastasis.cli.case_runs import RESULTS, segment_cases, write_batch

    if out.is_file():
        raise ValueError(f"--out {out} is a file; name a folder")
    cases = _cases(*scans)
    _check_priors(models, cases)
    settings |= {
        "flips": flips,
        "figure": figure,
        "threshold": getattr(segmenter, "threshold_", None),
    }
    begin_run(out, settings, overwrite, results=RESULTS, parts=("*/segmentation.json",))
    contents = segment_cases(
        segmenter, cases, out, figure=figure, overwrite=overwrite, source=scans[0]
    )
    write_batch(out, contents, figure=figure, heading=heading)
    n = sum(content["n_lesions"] for content in contents)
    confirmed = [
        content["n_confirmed"] for content in contents if content["n_confirmed"] is not None
    ]
    more = f", {sum(confirmed)} of them confirmed" if confirmed else ""
    typer.echo(
        f"{len(contents)} scan{'s' * (len(contents) != 1)}, {n} lesion{'s' * (n != 1)} found{more}: {out}"
    )
    if any(case.synthetic for case in cases):
        typer.echo("synthetic scans: no clinical result")


def _cases(scans: Path, prior: Path | None, mask: Path | None) -> list[Case]:
    from metastasis.scans.cases import read_case, read_cases

    if not scans.is_file():
        raise FileNotFoundError(
            f"{scans} is a folder; name an image or a table in it"
            if scans.is_dir()
            else f"{scans}: no such file"
        )
    if scans.suffix.lower() not in (".tsv", ".csv"):
        return [read_case(scans, prior=prior, brain=mask)]
    if prior is not None or mask is not None:
        raise ValueError(
            f"{scans} names prior scans and brains in its columns; leave out --prior and --mask"
        )
    return read_cases(scans)


def _trained(path: Path, flips: bool, device: str | None) -> Any:
    """Read a model file that finds metastases."""
    from dmrifit.model_files.model_file import load_model
    from metastasis.segmentation.segmenter import DeepMedicSegmenter

    model = load_model(path)
    if not isinstance(model, DeepMedicSegmenter):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, which segments nothing; dmrifit-metastasis train makes segmenters"
        )
    if flips:
        model.set_params(flips=True)
    if device is not None:
        from dmrifit._utils.torch_state import resolve_device

        # The weights were put where the file says.
        model.net_.module_.to(resolve_device(device))
        model.set_params(device=device)
    return model


def _check_priors(models: list[Any], cases: list[Case]) -> None:
    if any(case.prior is not None for case in cases) and all(
        model.prior_ is None for model in models
    ):
        typer.echo(
            "dmrifit-metastasis: the model was trained without prior scans and does not look at any",
            err=True,
        )
        if len(models) == 1:
            for i, case in enumerate(cases):
                cases[i] = _without_prior(case)


def _without_prior(case: Case) -> Case:
    from dataclasses import replace

    return replace(case, prior=None)


def _check_threshold(option: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{option} {value:g}: a probability above 0 and at most 1 is needed")


def _record(path: Path) -> str:
    from dmrifit.io.bids_derivatives import file_record

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    return file_record(path)["SHA256"]
