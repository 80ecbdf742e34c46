"""Commands that segment scans with trained models: segment, ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import typer

from dmrifit._utils.counts import counted, first_few
from dmrifit.cli.case_runs import RunOptions, say_failed_rows
from dmrifit.cli.options import is_pattern, move_to_device, named_cases, say

if TYPE_CHECKING:
    from metastasis.cli.case_runs import NotedCase
    from metastasis.scans.cases import Case

_SCAN_ENDINGS = (".nii", ".nii.gz", ".img", ".hdr", ".tsv", ".csv")
_Files: TypeAlias = tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class ModelOptions:
    """How models see scans."""

    flips: bool = False
    resample: bool = False
    device: str | None = None


def segment(
    paths: list[Path],
    /,
    *,
    out: Path,
    model: Path | None = None,
    prior: Path | None = None,
    mask: str | None = None,
    threshold: float | None = None,
    options: ModelOptions,
    run: RunOptions,
) -> None:
    """
    Find metastases in scans by one model. Not for clinical use.

    Writes a folder for each scan with probability.nii.gz and label.nii.gz on its grid, a table of
    its lesions and a picture; for all scans segmentations.tsv, lesions.tsv and a page. Scans that
    are missing or cannot be read or segmented are listed in failed.tsv. Scans with a note, such
    as one unlike the training scans or with a ring that does not close, are flagged. An
    interrupted run resumes when started again with the same options.

    Options:
    paths [MODEL] SCANS: Model file from train (by default the small model that comes along), and
        the scans: contrast-enhanced T1 images (NIfTI), prepared like the training scans, one,
        several, a glob or a BIDS folder; a folder of them, where NAME_prior and
        NAME_brain.nii.gz belong to NAME.nii.gz; or a table (.tsv)
        with the columns patient and image, and optionally name, prior and brain (files relative to
        the table).
    model: Model file from train, another way to name it.
    threshold: Lowest probability of lesion voxels; by default the model's operating point.

    Example: dmrifit-metastasis segment t1c.nii.gz --out segmented
    """
    thresholds = None if threshold is None else (threshold,)
    _check_thresholds("--threshold", thresholds)
    model, scans = _model_and_scans(paths, model)
    _segment(
        {"model": model}, thresholds, _checked_files(scans, prior, mask, out), out, options, run
    )


def ensemble(
    sensitive: Path,
    specific: Path,
    scans: list[Path],
    /,
    *,
    out: Path,
    prior: Path | None = None,
    mask: str | None = None,
    thresholds: tuple[float, float] | None = None,
    options: ModelOptions,
    run: RunOptions,
) -> None:
    """
    Find metastases by two models: those marked by both are told apart. Not for clinical use.

    Writes the files of segment, with labels 0 for background, 1 for candidates (to review) and 2
    for what both mark. Prior scans are segmented too, and lesions.tsv says which metastases
    are new, grown, stable, shrunk or vanished.

    Options:
    sensitive SENSITIVE: Sensitive model, from train.
    specific SPECIFIC: Specific model, from train.
    scans SCANS: Scans, named as for segment.
    thresholds A,B: Lowest probabilities of lesion voxels of the two models; by default their
        operating points.

    Example: dmrifit-metastasis ensemble sensitive.dmrifit specific.dmrifit cases.tsv --out joined
    """
    _check_thresholds("--thresholds", thresholds)
    # Candidates are all that the sensitive model marks, and what the specific one adds.
    models = {"sensitive": sensitive, "specific": specific}
    _segment(models, thresholds, _checked_files(scans, prior, mask, out), out, options, run)


@dataclass(frozen=True)
class _ScanFiles:
    """Scans as they were named, with the edges of their voxels in mm or their problem by case."""

    scans: Path | list[Path]
    prior: Path | None
    mask: Path | None
    finds_brain: bool
    is_table: bool
    # The keys are all files of a case: several cases may share an image.
    edges: dict[_Files, tuple[float, ...]]
    problems: dict[_Files, str]


def _checked_files(
    paths: list[Path], prior: Path | None, mask: str | None, out: Path
) -> _ScanFiles:
    """Check the headers of all scans, before a model or a volume is read."""
    from metastasis.scans.cases import CASES
    from metastasis.scans.scan_checks import check_files, scan_files

    if out.is_file():
        raise ValueError(f"--out {out} is a file; name a folder")
    brain = None if mask in (None, "auto", "none") else Path(mask)
    options = {"--prior": prior, "--mask": brain}
    what = "prior scans and brains"
    scans, table = named_cases(paths, what, options, CASES.images, "anat/*_T1w.nii*")
    files_of_scans = scan_files(scans, prior, brain, is_table=table)
    edges, problems = {}, {}
    for files in files_of_scans:
        try:
            edges[tuple(files.items())] = check_files(files)
        except ValueError as error:
            problems[tuple(files.items())] = str(error)
    if problems and not edges:
        raise ValueError(next(iter(problems.values())))
    return _ScanFiles(scans, prior, brain, mask == "auto", table, edges, problems)


def _check_edges(files: _ScanFiles, models: list[Any]) -> None:
    """Check voxels before a volume is read."""
    from metastasis.scans.scan_checks import check_edges

    for key, edges in files.edges.items():
        try:
            for model in models:
                check_edges(dict(key)["image"], edges, _edge(model))
        except ValueError as error:
            files.problems[key] = str(error)
    if files.edges.keys() <= files.problems.keys():
        raise ValueError(next(iter(files.problems.values())))


def _figures(model: Path, *, as_measured: bool) -> dict[str, Any]:
    """Read the figures of a model; sensitivities hold only where it is used as measured."""
    from metastasis.study.findings import model_figures

    figures = model_figures(model)
    if as_measured:
        return figures
    return {key: value for key, value in figures.items() if key == "seen"}


def _edge(model: Any) -> float | None:
    """Give the edge of the voxels that a model saw in training; None where any will do."""
    network = getattr(model, "segmenter_", model)
    # Scans are resampled to a spacing by the network itself.
    if getattr(network, "spacing", None) is not None:
        return None
    edge = getattr(network, "edge_", None)
    return None if edge is None else float(edge)


def _resample(model: Any) -> bool:
    """Let a model see scans on the voxels of its training scans; tell whether that is a change."""
    edge = _edge(model)
    if edge is None:
        say("scans are not resampled: the model resamples them itself, or its voxels are unknown")
        return False
    getattr(model, "segmenter_", model).set_params(spacing=edge)
    return True


def _prior_note(case: Case) -> str:
    """Say that a prior scan does not look like the scan in its place; empty where it does."""
    if case.prior is None or find_spec("SimpleITK") is None:
        return ""
    from dmrifit.imaging.rigid_alignment import SAME_HEAD, likeness_in_place
    from dmrifit.io.nifti import image_of

    try:
        likeness = likeness_in_place(
            image_of(case.image.astype(np.float32), case.affine),
            image_of(case.prior.astype(np.float32), case.affine),
        )
    # Scans that show no head, or one voxel thick, cannot be compared.
    except ValueError:
        return ""
    if not likeness < SAME_HEAD:
        return ""
    return (
        f"{case.name}: the prior scan does not look like the scan in its place, their median "
        f"local correlation is {likeness:.2f} (of one person {SAME_HEAD:g} or more): is it of "
        "the same person, and aligned?"
    )


def _cases(
    files: _ScanFiles, models: list[Any], *, resample: bool
) -> tuple[list[NotedCase], list[dict[str, str]]]:
    """Read a single image or the cases of a table, and notes on each; list cases that fail."""
    from dmrifit.imaging.head_steps import find_brain
    from dmrifit.io.grids import as_stored
    from metastasis.scans.cases import CASES, read_case, read_row
    from metastasis.scans.scan_checks import check_stripped, contrast_note, row_files, slice_note

    if not resample:
        _check_edges(files, models)
    failed: list[dict[str, str]] = []

    def noted(case: Case, key: _Files) -> NotedCase:
        if files.finds_brain and case.brain is None:
            brain = find_brain(dict(key)["image"])
            case = replace(case, brain=as_stored(brain, case.affine).astype(bool))
        check_stripped(case)
        notes = [slice_note(str(dict(key)["image"]), files.edges[key])]
        if not case.synthetic:
            notes += [contrast_note(case), _prior_note(case)]
        return case, [note for note in notes if note]

    def read(row: dict[str, str], folder: Path) -> NotedCase:
        key = tuple(row_files(row, folder).items())
        if key in files.problems:
            raise ValueError(files.problems[key])
        return noted(read_row(row, folder), key)

    if isinstance(files.scans, list) or files.is_table:
        cases = CASES.read(files.scans, read, failed=failed)
    else:
        (key,) = files.edges
        cases = [noted(read_case(files.scans, prior=files.prior, brain=files.mask), key)]
    say_failed_rows(cases, failed)
    return cases, failed


def _model_and_scans(paths: list[Path], model: Path | None) -> tuple[Path, list[Path]]:
    """Tell the model file from the scans; without one the small model is used."""
    if model is not None:
        return model, paths
    first = paths[0]
    is_model = first.suffix == ".dmrifit"
    is_scan = first.is_dir() or is_pattern(first) or first.name.lower().endswith(_SCAN_ENDINGS)
    if len(paths) > 1 and (is_model or not is_scan):
        return first, paths[1:]
    # A model file alone means that the scans were forgotten.
    if is_model:
        raise ValueError(f"{first} is a model file; name the scans after it")
    from metastasis.candidates.small_model import PATH

    typer.echo(
        "dmrifit-metastasis: the small model that comes along is used; it was never tried on "
        "a labelled real metastasis",
        err=True,
    )
    return PATH, paths


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


def _segment(
    models: Mapping[str, Path],
    thresholds: tuple[Any, ...] | None,
    files: _ScanFiles,
    out: Path,
    options: ModelOptions,
    run: RunOptions,
) -> None:
    """Segment scans by one model or an ensemble, write tables and page, and say how many."""
    from dmrifit.io.bids_derivatives import file_record
    from metastasis.cli.case_runs import RUN, is_current, segment_case, write_batch
    from metastasis.segmentation.ensemble import SensitivitySpecificityEnsemble

    segmenters = [_trained(path, options.flips, options.device) for path in models.values()]
    stored_thresholds = tuple(segmenter.threshold_ for segmenter in segmenters)
    is_unchanged = not options.flips and thresholds in (None, stored_thresholds)
    cases, failed = _cases(files, segmenters, resample=options.resample)
    uses_priors = _uses_priors(segmenters, [case for case, _ in cases])
    settings = {
        # The digest, not the path: a file may be replaced under its name, or moved.
        **{role: file_record(path)["SHA256"] for role, path in models.items()},
        "flips": options.flips,
        "resample": options.resample,
        "figure": run.figure,
    }
    segmenter = segmenters[0]
    if len(segmenters) > 1:
        heading = "Marked by both models, and candidates"
        segmenter = SensitivitySpecificityEnsemble(*segmenters, thresholds=thresholds)
        settings |= {"command": "ensemble", "thresholds": thresholds, "threshold": None}
    else:
        heading = "Segmentations"
        if thresholds is not None:
            # The number of false positives holds at the model's own threshold only.
            segmenter.threshold_, segmenter.false_positives_ = thresholds[0], None
        # The table of lesions of an ensemble compares with prior scans that its models do not see.
        if not uses_priors:
            cases = [(replace(case, prior=None), notes) for case, notes in cases]
        settings |= {"command": "segment", "threshold": segmenter.threshold_}
    resampled = [_resample(one) for one in segmenters] if options.resample else []
    is_unchanged &= not any(resampled)
    figures = _figures(next(iter(models.values())), as_measured=is_unchanged)
    RUN.run(
        cases,
        out,
        settings,
        run,
        names=lambda scan: {"name": scan[0].name, "patient": scan[0].patient},
        work=partial(
            segment_case,
            segmenter=segmenter,
            figure=run.figure,
            figures=figures,
            source=files.scans if isinstance(files.scans, Path) else None,
        ),
        is_current=is_current,
        write=lambda records: write_batch(
            out, list(records.values()), figure=run.figure, heading=heading
        ),
        say=lambda records: _sentences(list(records.values()), out),
        is_flagged=lambda record: bool(record["notes"]),
        failed=failed,
        noun="scan",
    )


def _sentences(contents: Sequence[Mapping[str, Any]], out: Path) -> Iterator[str]:
    """Say how many lesions were found, and what this means."""
    n_lesions = sum(content["n_lesions"] for content in contents)
    summary = f"{counted(len(contents), 'scan')}, {counted(n_lesions, 'lesion')} found"
    counts = [content["n_marked_by_both"] for content in contents]
    counts = [count for count in counts if count is not None]
    if counts:
        summary += f", {sum(counts)} of them marked by both models"
    yield f"{summary}: {out}"
    names: dict[str, list[str]] = {}
    for content in contents:
        for note in content["notes"]:
            say(note)
        if content["statement"] and not content["n_lesions"]:
            yield f"{content['name']}: {content['statement']}"
        elif content["statement"]:
            names.setdefault(content["statement"], []).append(content["name"])
    for statement, of_scans in names.items():
        # Scans with notes have a statement of their own.
        whose = f"{first_few(of_scans)}: " if len(names) > 1 else ""
        yield f"{whose}{statement}"


def _check_thresholds(option: str, thresholds: tuple[float, ...] | None) -> None:
    for value in thresholds or ():
        if not 0 < value <= 1:
            raise ValueError(f"{option} {value:g}: a probability above 0 and at most 1 is needed")
