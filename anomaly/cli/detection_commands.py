"""Command that detects anomalies with a trained model: detect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dmrifit._utils.counts import counted, first_few
from dmrifit._utils.text_files import check_file
from dmrifit.cli.case_runs import RunOptions
from dmrifit.cli.options import given, trained_model
from dmrifit.io.bids_derivatives import file_record

if TYPE_CHECKING:
    from anomaly.scans.series import SeriesDetector, SeriesFiles


def detect(
    model: Path,
    scans: list[Path],
    /,
    *,
    bval: Path | None = None,
    bvec: Path | None = None,
    mask: str | None = None,
    tissue: Path | None = None,
    all_voxels: bool = False,
    estimate_tissue: bool = False,
    resample_directions: bool = False,
    threshold: float | None = None,
    calibrate: Path | None = None,
    opening: int | None = None,
    smallest_lesion: float | None = None,
    device: str | None = None,
    run: RunOptions,
) -> None:
    """
    Find anomalies in diffusion series by a trained model. Not for clinical use.

    Writes a folder for each scan with map.nii.gz, binary.nii.gz (voxels above the threshold,
    without fluid where a tissue map tells it) and opened.nii.gz on its grid, lesions.csv
    (on the grid of the model; the masks of a resampled scan are interpolated, which removes thin
    parts, so that their volumes can be a fifth smaller) and detection.json; for all scans
    detections.tsv, lesions.csv and, with figures, a page. Flags mark scans that differ from the
    healthy training scans as a whole (scores shifted in both hemispheres, or much more noise),
    scans in which this cannot be judged and most voxels are above the threshold, and scans with
    too few voxels to be judged. Scans of a table that are missing, and scans that cannot be read
    or prepared, are listed in failed.tsv. An interrupted run resumes when started again with the
    same options.

    Options:
    model MODEL: Model file from train.
    scans SCANS: Diffusion series (NIfTI, with .bval and .bvec beside it), one, several, a glob or
        a BIDS folder; a folder of them, where NAME_brain and NAME_tissue.nii.gz belong to
        NAME.nii.gz; or a table (.tsv) with the columns
        patient and image, and optionally name, bval, bvec, brain, tissue and the covariates of the
        model (age, sex, site), files relative to the table.
    bval: b-values (single series).
    bvec: Gradient directions (single series).
    mask FILE|auto|none: Brain on the grid of the series (single series); auto, the default, finds
        it, none takes all voxels as --all-voxels does.
    tissue: Tissue map: 1 white, 2 gray, 4 deep gray matter, 3 fluid (single series).
    resample_directions: Estimate signals along the model's directions even if the measured ones
        are close to them.
    threshold: Score above which a voxel is anomalous; by default the model's.
    calibrate HEALTHY: Table of healthy scans of the site and protocol of SCANS, to which the
        threshold is adjusted; no guarantee.
    opening 1..: Edge in voxels of the cube for opening binary maps; by default the model's (3 if
        it was trained without --smallest-lesion).
    smallest_lesion ML: In place of --opening: volume of the smallest compact lesion to keep.

    Example: dmrifit-anomaly detect model.dmrifit dwi.nii.gz --mask brain.nii.gz --out found
    """
    from anomaly.cli.case_runs import RUN, count_sentence, detect_scan, inputs, scan_sentences
    from anomaly.detectors.thresholds import FixedThreshold, opening_of
    from anomaly.scans.series import SeriesDetector, model_in_words

    if threshold is not None and calibrate is not None:
        raise ValueError("give either --threshold or --calibrate, not both")
    if opening is not None and smallest_lesion is not None:
        raise ValueError("give either --opening or --smallest-lesion, not both")
    if threshold is not None:
        FixedThreshold(threshold).check_parameters()
    remedy = "is no anomaly model; dmrifit-anomaly train makes one"
    detector = trained_model(model, SeriesDetector, remedy, device)
    if smallest_lesion is not None:
        opening = opening_of(smallest_lesion, detector.edges_)
    opening = detector.opening_ if opening is None else opening
    failed: list[dict[str, str]] = []
    all_voxels |= mask == "none"
    brain = None if mask in (None, "auto", "none") else Path(mask)
    series = series_of(scans, failed, bval=bval, bvec=bvec, mask=brain, tissue=tissue)
    directions = "resampled" if resample_directions else None
    options = given(threshold=threshold, directions=directions, opening=opening)
    options |= {"tissue": estimate_tissue, "mask": not all_voxels}
    settings = options | {
        "command": "detect",
        # The digest, not the path: a file may be replaced under its name, or moved.
        "model": file_record(model)["SHA256"],
        "figure": run.figure,
    }
    if calibrate is not None:
        settings |= _calibrated(detector, calibrate, series, options)

    def sentences(records: dict[str, dict[str, Any]]) -> Iterator[str]:
        contents = list(records.values())
        yield f"{count_sentence(contents)}: {run.out}"
        yield from scan_sentences(contents)
        for content in contents:
            yield from (f"{content['name']}: {flag}" for flag in content["flags"])
        # All scans of a run have one model.
        yield contents[0]["model"]

    work = partial(detect_scan, model=model_in_words(model, detector, threshold))
    RUN.run(
        series,
        settings,
        run,
        names=lambda scan: {"name": scan.label, "patient": scan.subject},
        work=partial(work, detector=detector, figure=run.draws, **options),
        inputs=inputs,
        # Earlier records lack this field.
        is_whole=lambda _, record: "opening" in record,
        say=sentences,
        failed=failed,
    )


def _calibrated(
    detector: SeriesDetector, table: Path, series: list[SeriesFiles], options: dict[str, Any]
) -> dict[str, Any]:
    """Adjust the threshold of a detector to healthy scans, and give the settings of that."""
    healthy = series_of([table])
    digests = {file_record(files.image)["SHA256"] for files in healthy}
    shared = [one.label for one in series if file_record(one.image)["SHA256"] in digests]
    if shared:
        raise ValueError(
            f"--calibrate {table} and SCANS share {first_few(shared)}; a threshold is not judged "
            "on the scans that it was chosen on: leave them out of one"
        )
    prepared = {key: value for key, value in options.items() if key != "opening"}
    before = getattr(detector.detector_.threshold_, "threshold_", float("nan"))
    detector.calibrate(healthy, **prepared)
    typer.echo(
        f"threshold {before:.5g} adjusted to {detector.detector_.threshold_.threshold_:.5g} by "
        f"{counted(len(healthy), 'healthy scan')} of {table}: an adjustment, not a guarantee"
    )
    return {"calibrated": sorted(digests)}


def series_of(
    scans: Sequence[Path], failed: list[dict[str, str]] | None = None, **files: Any
) -> list[SeriesFiles]:
    """
    List series: those of a table or of images, or a single one with `files` that options name.

    Rows of a table that are wrong or lack a file go into `failed`, where it is given.
    """
    from anomaly.cli.case_runs import RUN
    from anomaly.scans.cases import SCANS
    from anomaly.scans.series import SeriesFiles, read_series

    options = {f"--{name}": path for name, path in files.items()}
    source, is_many = RUN.named_cases(scans, SCANS.images, options)
    if isinstance(source, list) or is_many:
        return read_series(source, failed=failed)
    for path in options.values():
        if path is not None:
            check_file(path)
    return [SeriesFiles(source, brain=files.pop("mask", None), **files)]
