"""Commands on many cases with reference lesions: simulate, train, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from dmrifit._utils.counts import counted, first_few
from dmrifit.cli.case_runs import begin_run, simulate_case
from dmrifit.cli.console import (
    CheckpointOption,
    ModelFileOption,
    ModelSeedOption,
    OutOption,
    OverwriteOption,
    PatienceOption,
    ValidationFractionOption,
    check_output,
    progress,
)
from dmrifit.cli.options import named_files, require_libraries, say, say_folder, whole_numbers
from dmrifit.cli.training_files import curve_writer, training_checkpoint
from dmrifit.io.tables import table_text

if TYPE_CHECKING:
    import pandas as pd

    from metastasis.candidates.two_stage import TwoStageSegmenter
    from metastasis.scans.cases import Case
    from metastasis.segmentation.segmenter import DeepMedicSegmenter

__all__ = ["EXAMPLES", "evaluate", "simulate", "train"]

_N_FEATURES = 6  # that a training names

CasesArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="CASES",
        help="Table (.tsv) of scans with the columns patient, image and label, and optionally "
        "name, classes (labels of metastases, such as 1,3,4), prior and brain (files relative to "
        "the table); or a folder of scans NAME.nii.gz, each of another patient, with "
        "NAME_label.nii.gz and optionally NAME_prior and NAME_brain.nii.gz.",
    ),
]


def simulate(
    n: Annotated[int, typer.Argument(metavar="N", min=1, help="Number of patients.")],
    out: OutOption,
    prior: Annotated[
        float, typer.Option(min=0, max=1, help="Share of patients with a prior scan.")
    ] = 0.75,
    shape: Annotated[str, typer.Option(metavar="X,Y,Z", help="Voxels of a scan.")] = "66,66,66",
    spacing: Annotated[float, typer.Option(min=0.2, max=4, help="Grid in mm.")] = 1.5,
    metastases: Annotated[
        str, typer.Option(metavar="LOW,HIGH", help="Range of metastases per patient.")
    ] = "1,7",
    mimics: Annotated[
        str, typer.Option(metavar="LOW,HIGH", help="Range of mimics of metastases per patient.")
    ] = "1,5",
    misregistration: Annotated[
        float,
        typer.Option(
            min=0, max=10, help="Residual misregistration of priors: 1 for up to 1 mm, 1.5°, 1 %."
        ),
    ] = 1.0,
    world: Annotated[
        str,
        typer.Option(
            metavar="easy|hard",
            help="In the hard one vessels, sinuses and dura are as bright as metastases.",
        ),
    ] = "easy",
    skip: Annotated[
        int,
        typer.Option(
            min=0,
            help="Patients to skip, such as those of an earlier folder, to get new ones to test "
            "on.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed: same seed, same patients.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Write synthetic contrast-enhanced brains with metastases. No person was scanned.

    Writes a folder for each patient with scan, label, prior scan, brain and table of metastases,
    and the table cases.tsv of all. An interrupted run resumes when started again with the same
    options.
    """
    import pandas as pd

    from dmrifit.io.atomic_files import write_text
    from dmrifit.io.case_tables import TABLE

    options: dict[str, Any] = {
        "prior": prior,
        "shape": whole_numbers("--shape", shape, 3),
        "spacing": spacing,
        "metastases": whole_numbers("--metastases", metastases, 2),
        "mimics": whole_numbers("--mimics", mimics, 2),
        "misregistration": misregistration,
        "world": world,
        "random_state": seed,
    }
    settings = {"command": "simulate", "skip": skip} | options
    begin_run(out, settings, overwrite, results=(TABLE,), records=f"synthetic-*/{TABLE}")
    rows = []
    for i in progress(range(skip, skip + n), n):
        folder = out / f"synthetic-{i + 1:03d}"
        write = partial(_write_patient, i, options)
        rows.append(simulate_case(folder, TABLE, write, overwrite=overwrite))
    write_text(out / TABLE, table_text(pd.DataFrame(rows)))
    typer.echo(f"{counted(n, 'synthetic patient')}: {out / TABLE}")


def _write_patient(i: int, options: dict[str, Any], folder: Path) -> None:
    """Write the scans of a synthetic patient."""
    from metastasis.scans.cases import write_cases
    from metastasis.simulate.patients import simulate_metastases

    write_cases(simulate_metastases(1, skip=i, **options), folder, overwrite=True)


def train(
    cases: CasesArgument,
    out: ModelFileOption,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="jvss|vss|sse|bce",
            help="Loss of a network of the study; jvss by default.",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Weight of sensitivity of one of the study's networks: .995, the default, finds "
            "more, .5 has fewer false positives.",
        ),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="path|shared|channel|none",
            help="How one of the study's networks receives prior scans; path by default.",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="deepmedic|unet", help="One of the study's networks; deepmedic by default."
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option("--published", help="Network sizes and training as published; needs a GPU."),
    ] = False,
    widths: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Channels of the layers of each path of one of the study's networks, or of the "
            "levels of the U-Net.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each training; 18 or 20 by default.")
    ] = None,
    segments_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="Segments per epoch; 200 by default.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Segments per step; 2 or 10 by default.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate of the first epoch; .002 or .001 by default."),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="constant|cosine", help="Schedule of the learning rate.")
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option(help="Grid in mm to resample scans to; by default 1 mm, or not resampled."),
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(help="Model file of a network of the same sizes with the initial weights."),
    ] = None,
    validation_fraction: ValidationFractionOption = 0.0,
    patience: PatienceOption = None,
    false_positives: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="False positives per scan of --validation, at the threshold to store.",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="CASES", help="Table of other patients, on which the threshold is chosen."
        ),
    ] = None,
    min_voxels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Smallest lesion in voxels; 4 voxels of 1 mm, a sphere of 2 mm, or 1 by default.",
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Device to compute on.")
    ] = "auto",
    seed: ModelSeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Train a model to find metastases, and write a model file for segment. Not for clinical use.

    By default it has two stages: a small U-Net marks candidates, and trees judge them. The U-Net
    is trained again on what it took for lesions. With --loss, --alpha, --prior, --network,
    --widths, --warm-start or --published it is a network of Huang et al. alone; train the
    sensitive one of an ensemble with --alpha .995, the specific one with --alpha .5. After the
    first epoch it says how long the others will take, and after each one it draws the loss:
    model.curve.png beside model.dmrifit. An interrupted training resumes after its last epoch when
    started again, of two stages each of its trainings.
    """
    from dmrifit.model_files.model_file import save_model
    from dmrifit.networks.volume_cases import called
    from metastasis.cli.case_runs import scans_of

    check_output(out, overwrite)
    if (false_positives is None) != (validation is None):
        raise ValueError("an operating point needs both --false-positives and --validation")
    require_libraries("torch", "skorch")
    study_parameters = {
        "loss": loss,
        "alpha": alpha,
        "prior": prior,
        "network": network,
        "widths": None if widths is None else whole_numbers("--widths", widths),
        "warm_start_from": None if warm_start is None else str(warm_start),
    }
    settings = {
        "segments_per_epoch": segments_per_epoch,
        "spacing": spacing,
        "min_voxels": min_voxels,
    }
    step_parameters = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
    }
    # The checkpoint stays until the end: another operating point needs no new training.
    with training_checkpoint(out, checkpoint) as folder:
        training: dict[str, Any] = {
            "validation_fraction": validation_fraction,
            "patience": patience,
            "checkpoint": folder,
            "after_epoch": curve_writer(out),
            "verbose": True,
        }
        training |= _drop_none(step_parameters)
        options = _drop_none(settings) | {"device": device, "random_state": seed}
        if published or _drop_none(study_parameters):
            options |= {"prior": "path"} | _drop_none(study_parameters)
            segmenter = _network_of_study(options, training, published=published)
        else:
            segmenter = _two_stages(options, training)
        # Before the scans are read, which takes minutes.
        segmenter._check()
        training_cases = _labelled_cases(cases)
        n_patients = len({case.patient for case in training_cases})
        if n_patients < getattr(segmenter, "n_folds", 1):
            raise ValueError(
                f"{cases} has scans of one patient: a model of two stages learns from two or "
                "more; add patients, or train a network alone (--network deepmedic)"
            )
        held_out: list[Case] = []
        if validation is not None:
            held_out = _labelled_cases(validation)
            _check_patients(training_cases, cases, held_out, validation)
        with called([case.name for case in training_cases], cases):
            segmenter.fit(
                labels=_labels(training_cases),
                groups=[case.patient for case in training_cases],
                **scans_of(training_cases),
            )
        operating_point = ""
        if held_out:
            with called([case.name for case in held_out], validation):
                operating_point = _set_operating_point(segmenter, held_out, out, false_positives)
        save_model(segmenter, out)
    n_lesions = sum(_n_lesions(case) for case in training_cases)
    typer.echo(
        f"trained on {counted(len(training_cases), 'scan')} with "
        f"{counted(n_lesions, 'lesion')}: {out}"
    )
    if validation_fraction:
        typer.echo(f"{validation_fraction:.0%} of the patients served validation alone")
    if any(case.synthetic for case in training_cases):
        typer.echo("trained on synthetic scans: its accuracy in people is unknown")
    if hasattr(segmenter, "feature_table"):
        typer.echo(_feature_line(segmenter.feature_table()))
    if operating_point:
        typer.echo(operating_point)


def evaluate(
    cases: CasesArgument,
    segmentations: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FILE",
            help="Table segmentations.tsv from segment or ensemble; repeatable.",
        ),
    ],
    out: OutOption,
    figures: Annotated[int, typer.Option(min=0, help="Number of scans on the page.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of controls and intervals.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Compare segmentations with reference lesions: CSV tables, and a page with curves and overlays.

    Every table includes four controls: all positive, empty, the lesions of another patient, random
    blobs.
    """
    import sys

    from dmrifit.io.digests import command_line
    from dmrifit.report.page import FEW
    from metastasis.cli.case_runs import read_segmentations
    from metastasis.study.evaluation import HEADLINES, format_summary
    from metastasis.study.report import write_evaluation

    files = named_files("--segmentations", segmentations)
    require_libraries("matplotlib", "jinja2")
    reference = _labelled_cases(cases)
    predictions, thresholds, min_voxels = {}, {}, {}
    for name, path in files.items():
        predictions[name], thresholds[name], min_voxels[name] = read_segmentations(path, reference)
    tables = write_evaluation(
        reference,
        predictions,
        out,
        threshold=thresholds,
        min_voxels=min_voxels,
        figures=figures,
        overwrite=overwrite,
        command=command_line(["dmrifit-metastasis", *sys.argv[1:]]),
        random_state=seed,
    )
    typer.echo(format_summary(tables)[[*HEADLINES[:3], "wrong_per_scan"]].to_string())
    typer.echo(f"published figures, which marking everything wins: {out / 'summary.csv'}")
    if any(case.synthetic for case in reference):
        typer.echo("synthetic scans: no clinical result")
    n_patients = len({case.patient for case in reference})
    if n_patients < FEW:
        typer.echo(f"{counted(n_patients, 'patient')}: numbers about these scans, no performance")


#: Commands, each with the example that its help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    simulate: "dmrifit-metastasis simulate 12 --out cases",
    train: "dmrifit-metastasis train cases/cases.tsv --alpha 0.995 --out sensitive.dmrifit",
    evaluate: "dmrifit-metastasis evaluate cases.tsv --segmentations "
    "model=segmented/segmentations.tsv --out compared",
}


def _drop_none(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options that were not given."""
    return {key: value for key, value in options.items() if value is not None}


def _network_of_study(
    options: dict[str, Any], training: dict[str, Any], *, published: bool
) -> DeepMedicSegmenter:
    """Make one of the study's networks, small or as published."""
    from dmrifit.networks.training import Training
    from metastasis.segmentation.segmenter import DeepMedicSegmenter

    if options["prior"] == "none":
        options["prior"] = None
    make = DeepMedicSegmenter.published if published else DeepMedicSegmenter
    return make(**options, training=Training(**training))


def _two_stages(options: dict[str, Any], training: dict[str, Any]) -> TwoStageSegmenter:
    """Make the model that does best in brains of people, not fitted."""
    from metastasis.candidates.small_model import untrained_small_model

    model = untrained_small_model(options["random_state"], **training)
    model.segmenter.set_params(**options)
    model.segmenter._check()
    return model.set_params(min_voxels=model.segmenter.min_voxels)


def _feature_line(features: pd.DataFrame) -> str:
    """Name the features of candidates that weigh most."""
    heaviest = zip(features["feature"][:_N_FEATURES], features["weight"], strict=False)
    listed = ", ".join(f"{feature} {weight:.2f}" for feature, weight in heaviest)
    return f"candidates are judged by {listed} and {len(features) - _N_FEATURES} others (weights)"


def _labelled_cases(table: Path) -> list[Case]:
    """Read cases that must have labels."""
    from metastasis.scans.cases import CASES, read_cases
    from metastasis.scans.scan_checks import contrast_note, label_note, slice_note

    say_folder(table, CASES.images)
    cases = read_cases(table)
    missing = [case.name for case in cases if case.label is None]
    if missing:
        raise ValueError(
            f"{table}: no label of {first_few(missing)}; "
            "name one in the column label, or leave the scan out"
        )
    for case in cases:
        notes = [label_note(case)]
        if not case.synthetic:
            notes += [slice_note(case.name, case.spacing), contrast_note(case)]
        for note in filter(None, notes):
            say(note)
    return cases


def _check_patients(
    training: Sequence[Case], table: Path, held_out: Sequence[Case], held_out_table: Path
) -> None:
    """Check that the threshold is chosen on patients that the network has not seen."""
    patients = {case.patient for case in training}
    common = sorted(patients & {case.patient for case in held_out})
    if common:
        raise ValueError(
            f"{held_out_table} has patients that {table} has too: {first_few(common)}; "
            "choose others for the threshold"
        )


def _labels(cases: Sequence[Case]) -> list[Any]:
    import nibabel as nib

    return [nib.Nifti1Image(case.label, case.affine) for case in cases]


def _n_lesions(case: Case) -> int:
    from dmrifit.stats.lesion_matching import label_components

    return 0 if case.label is None else int(label_components(case.label).max(initial=0))


def _set_operating_point(
    segmenter: Any, cases: Sequence[Case], out: Path, false_positives: float | None
) -> str:
    """Choose the threshold and describe it; if none can be chosen, save the model as it is."""
    from dmrifit.model_files.model_file import save_model
    from metastasis.cli.case_runs import scans_of

    try:
        segmenter.set_operating_point(
            labels=_labels(cases), false_positives=false_positives, **scans_of(cases)
        )
    except ValueError as error:
        save_model(segmenter, out)
        raise ValueError(
            f"{error}; {out} keeps the threshold {segmenter.threshold_:g}. Ask for more "
            "--false-positives, with --overwrite; nothing is trained again"
        ) from None
    return (
        f"threshold {segmenter.threshold_:.4f} for {false_positives:g} false positives per scan, "
        f"chosen on {counted(len(cases), 'scan')} of other patients"
    )
