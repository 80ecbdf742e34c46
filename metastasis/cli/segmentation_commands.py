"""Commands on one's own scans: segment, ensemble, prepare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import typer

from dmrifit._utils.counts import counted, first_few, size_text
from dmrifit.cli.case_runs import RunOptions
from dmrifit.cli.options import say, trained_model


@dataclass(frozen=True)
class ModelOptions:
    """Prior, brain, mirror images, resampling and device of a segmentation."""

    prior: Path | None = None
    mask: str | None = None
    flips: bool = False
    resample: bool = False
    device: str | None = None


def segment(
    paths: list[Path],
    /,
    *,
    model: Path | None = None,
    threshold: float | None = None,
    options: ModelOptions,
    run: RunOptions,
) -> None:
    """
    Find metastases in scans by one model. Not for clinical use.

    Writes a folder for each scan with probability.nii.gz and label.nii.gz on its grid, a table of
    its findings and a picture; for all scans segmentations.tsv, lesions.tsv and a page. Scans of
    a table that are missing, and scans that cannot be read or segmented, are listed in failed.tsv.
    Scans with a note, such as one unlike the training scans or with a ring that does not close,
    are flagged. An interrupted run resumes when started again with the same options.

    Options:
    paths [MODEL] SCANS: Model file from train (by default the small included model), and
        the scans: contrast-enhanced T1 images (NIfTI), prepared like the training scans, one,
        several, a glob or a BIDS folder; a folder of them, where NAME_prior and
        NAME_brain.nii.gz belong to NAME.nii.gz; or a table (.tsv)
        with the columns patient and image, and optionally name, prior and brain (files relative to
        the table).
    model: Model file from train, another way to name it.
    threshold: Lowest probability of marked voxels; by default the model's operating point.

    Example: dmrifit-metastasis segment prepared --out segmented
    """
    if model is None:
        model, paths = _model_and_scans(paths)
    _segment({"model": model}, None if threshold is None else (threshold,), paths, options, run)


def ensemble(
    sensitive: Path,
    specific: Path,
    scans: list[Path],
    /,
    *,
    thresholds: tuple[float, float] | None = None,
    options: ModelOptions,
    run: RunOptions,
) -> None:
    """
    Find metastases by two models; label 2 is what the specific model marks. Not for clinical use.

    Writes the files of segment, with labels 0 for background, 1 for candidates (to review), which
    the sensitive model alone marks, and 2 for findings that the specific model marks, called
    "marked by both" also where it marks them alone. The sensitive model is named first. Prior
    scans are segmented too, and lesions.tsv says which metastases are new, grown, stable, shrunk
    or vanished.

    Options:
    sensitive SENSITIVE: Sensitive model, from train.
    specific SPECIFIC: Specific model, from train.
    scans SCANS: Scans, named as for segment.
    thresholds A,B: Lowest probabilities of marked voxels of the two models; by default their
        operating points.

    Example: dmrifit-metastasis ensemble sensitive.dmrifit specific.dmrifit cases.tsv --out joined
    """
    # A label is of a finding, all connected voxels that either model marks: 2 if the specific
    # model marks any of them, else 1.
    _segment({"sensitive": sensitive, "specific": specific}, thresholds, scans, options, run)


def prepare(
    scans: list[Path],
    /,
    out: Path,
    prior: Path | None = None,
    brain: Path | None = None,
    spacing: float = 1.0,
    jobs: int = 1,
    cluster: str | None = None,
    overwrite: bool = False,
) -> None:
    """
    Prepare a scan for segment: cubic voxels, brain alone, prior scan aligned, median 1.

    Writes NAME.nii.gz, NAME_brain.nii.gz, with a prior scan NAME_prior.nii.gz, and a record;
    segment takes the folder. A prior scan of another head is refused.

    Options:
    scans T1: Post-contrast T1 scan (NIfTI), on any grid; several, a glob, a folder, a BIDS folder
        or a table (.tsv) with the columns patient and image, and optionally name, prior and brain.
    jobs: Scans worked on in parallel; −1 for one per core.
    prior: Earlier scan of the same person and contrast, any grid.
    brain MASK: Brain on the grid of T1, from an extraction tool; by default found in T1, roughly
        if there is a skull.
    spacing 0.4..2: Edge in mm of the voxels to resample to.

    Example: dmrifit-metastasis prepare t1c.nii.gz --prior earlier.nii.gz --out prepared
    """
    from dmrifit.io.nifti import describe_sources
    from metastasis.cli.case_runs import PREPARATION, prepare_case, scan_names
    from metastasis.scans.cases import CASES
    from metastasis.scans.preparation import prepare_scan
    from metastasis.scans.scan_checks import files_of_row

    files_of_one = {"--prior": prior, "--brain": brain}
    source, is_many = PREPARATION.named_cases(scans, CASES.images, files_of_one)
    if is_many:
        failed: list[dict[str, str]] = []
        PREPARATION.run(
            CASES.read(
                source, lambda row, folder: (row, files_of_row(row, folder)), failed=failed
            ),
            {"command": "prepare", "spacing": spacing},
            RunOptions(out, jobs, cluster, overwrite=overwrite),
            names=lambda scan: scan_names(scan[0]),
            work=partial(prepare_case, spacing=spacing),
            inputs=lambda scan: {"sources": describe_sources(**scan[1])},
            is_whole=lambda _, record: all((out / x).is_file() for x in record["files"].values()),
            say=lambda records: [f"{counted(len(records), 'scan')} prepared: {out}"],
            failed=failed,
        )
        return
    files = {"prior": prior, "brain": brain}
    result = prepare_scan(scans[0], **files, spacing=spacing, out=out, overwrite=overwrite)
    for note in result.notes:
        say(note)
    text = f"{size_text(result.image.shape)} voxels of {spacing:g} mm"
    if result.likeness is not None:
        text += f", prior scan aligned (local correlation {result.likeness:.2f})"
    typer.echo(f"{text}: {out}")


def _model_and_scans(paths: list[Path]) -> tuple[Path, list[Path]]:
    """Separate the model file from the scans; without a model file give the included model."""
    first = paths[0]
    # A model file of another name is an archive; no scan or table is.
    is_model = first.suffix == ".dmrifit" or is_zipfile(first)
    if is_model and len(paths) > 1:
        return first, paths[1:]
    # A model file alone means that the scans were forgotten.
    if is_model:
        raise ValueError(f"{first} is a model file; name the scans after it")
    from metastasis.candidates.two_stage import PATH

    say("the included small model is used; it was never tried on a labeled real metastasis")
    return PATH, paths


def _segment(
    models: Mapping[str, Path],
    thresholds: tuple[Any, ...] | None,
    paths: list[Path],
    options: ModelOptions,
    run: RunOptions,
) -> None:
    """Segment scans by one model or an ensemble, write tables and page, and say how many."""
    from dmrifit.io.bids_derivatives import file_record, stem
    from metastasis.candidates.two_stage import TwoStageSegmenter
    from metastasis.cli import case_runs
    from metastasis.scans.cases import CASES
    from metastasis.scans.scan_checks import edge_in_training, model_remarks, noted_case
    from metastasis.segmentation.ensemble import SensitivitySpecificityEnsemble, models_in_words
    from metastasis.segmentation.segmenter import DeepMedicSegmenter
    from metastasis.study.findings import model_figures

    for value in thresholds or ():
        if not 0 < value <= 1:
            option = "--threshold" if len(models) == 1 else "--thresholds"
            raise ValueError(f"{option} {value:g}: a probability above 0 and at most 1 is needed")
    mask = None if options.mask in (None, "auto", "none") else Path(options.mask)
    files_of_one = {"--prior": options.prior, "--mask": mask}
    scans, is_table = case_runs.RUN.named_cases(paths, CASES.images, files_of_one)
    kinds = (DeepMedicSegmenter, TwoStageSegmenter)
    remedy = "segments nothing; dmrifit-metastasis train makes segmenters"
    segmenters = [trained_model(path, kinds, remedy, options.device) for path in models.values()]
    # The digest, not the path: a file may be replaced under its name, or moved.
    digests = {role: file_record(path)["SHA256"] for role, path in models.items()}
    if len(set(digests.values())) < len(models):
        names = " and ".join(sorted({str(path) for path in models.values()}))
        raise ValueError(
            f"the sensitive and the specific model are the same ({names}); name two different ones"
        )
    for model in segmenters if options.flips else ():
        getattr(model, "segmenter_", model).set_params(flips=True)
    stored = tuple(segmenter.threshold_ for segmenter in segmenters)
    edges = [edge_in_training(segmenter) for segmenter in segmenters]
    files: dict[str, dict[str, Path]] = {}
    read = partial(noted_case, edges=[] if options.resample else edges, files=files)
    # The table of lesions of an ensemble compares with prior scans that its models do not see.
    uses_prior = len(segmenters) > 1 or segmenters[0].prior_ is not None
    read = partial(read, finds_brain=options.mask == "auto", uses_prior=uses_prior)
    failed: list[dict[str, str]] = []
    if is_table:
        cases = CASES.read(scans, read, failed=failed)
    else:
        row = {"patient": stem(paths[0]), "image": paths[0], "prior": options.prior, "brain": mask}
        cases = [read({key: str(value) for key, value in row.items() if value}, Path())]
    remarks = model_remarks(segmenters, [case for case, _ in cases])
    for remark in remarks:
        say(remark)
    settings: dict[str, Any] = {**digests, "flips": options.flips, "resample": options.resample}
    segmenter = segmenters[0]
    if len(segmenters) > 1:
        segmenter = SensitivitySpecificityEnsemble(*segmenters, thresholds=thresholds)
        settings |= {"command": "ensemble", "thresholds": thresholds, "threshold": None}
    else:
        if thresholds is not None:
            # The number of false positives holds at the model's own threshold only.
            segmenter.threshold_, segmenter.false_positives_ = thresholds[0], None
        if not uses_prior:
            cases = [(replace(case, prior=None), notes) for case, notes in cases]
        settings |= {"command": "segment", "threshold": segmenter.threshold_}
    for model, edge in zip(segmenters, edges, strict=True) if options.resample else ():
        network = getattr(model, "segmenter_", model)
        if edge is not None:
            network.set_params(spacing=edge)
        elif getattr(network, "spacing", None) is None:
            say("scans are not resampled: the voxels of the model's training are unknown")
        else:
            say("--resample changes nothing: the model resamples scans by itself")
    figures = model_figures(next(iter(models.values())))
    # Sensitivities hold only where the model is used as measured.
    if options.flips or (options.resample and any(edges)):
        figures = {key: figures[key] for key in ("seen", "largest_mL") if key in figures}
    elif thresholds not in (None, stored):
        used, own = (" and ".join(map("{:g}".format, x)) for x in (thresholds, stored))
        figures["measured"] = f"figures at threshold {used} are unknown; at {own}, as measured, "
    words = models_in_words(models.values(), thresholds or stored)
    figures["model"] = "; ".join([words, *remarks])
    source = None if is_table else paths[0]
    work = partial(case_runs.segment_case, segmenter=segmenter, figures=figures, source=source)
    case_runs.RUN.run(
        cases,
        settings | {"figure": run.figure},
        run,
        names=lambda scan: {"name": scan[0].name, "patient": scan[0].patient},
        work=partial(work, figure=run.draws, files=files),
        inputs=case_runs.inputs,
        say=lambda records: _sentences(list(records.values()), run.out),
        failed=failed,
    )


def _sentences(contents: Sequence[Mapping[str, Any]], out: Path) -> Iterator[str]:
    """Say how many findings there are, and what this means."""
    n_lesions = sum(content["n_lesions"] for content in contents)
    summary = f"{counted(len(contents), 'scan')}, {counted(n_lesions, 'finding')}"
    # All scans of a run are segmented by one model, or by two.
    if contents[0]["n_marked_by_both"] is not None:
        n_both = sum(content["n_marked_by_both"] for content in contents)
        summary += f", {n_both} of them marked by both models"
    yield f"{summary}: {out}"
    names: dict[str, list[str]] = {}
    for content in contents:
        for note in content["notes"]:
            # Notes of earlier runs begin with the name.
            say(f"{content['name']}: {note.removeprefix(content['name'] + ': ')}")
        if content["statement"] and not content["n_lesions"]:
            yield f"{content['name']}: {content['statement']}"
        elif content["statement"]:
            names.setdefault(content["statement"], []).append(content["name"])
    for statement, of_scans in names.items():
        # Scans with notes have a statement of their own.
        yield f"{first_few(of_scans)}: {statement}" if len(names) > 1 else statement
