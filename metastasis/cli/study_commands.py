"""Commands of models and their scores: simulate, train, evaluate, train-small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dmrifit._optional import import_optional
from dmrifit._utils.counts import counted, first_few, percent
from dmrifit.cli.case_runs import SimulationRun
from dmrifit.cli.options import given, say
from dmrifit.cli.training_files import TrainingFiles
from dmrifit.report import page

if TYPE_CHECKING:
    from metastasis.scans.cases import Case
    from metastasis.simulate.implants import TrainingScan

_TEXTS = page.Texts(__file__)
_N_FEATURES = 6  # that a training names


@dataclass(frozen=True)
class PatientOptions:
    """What synthetic patients are like."""

    prior: float = 0.75
    shape: tuple[int, int, int] = (66, 66, 66)
    spacing: float = 1.5
    metastases: tuple[int, int] = (1, 7)
    mimics: tuple[int, int] = (1, 5)
    misregistration: float = 1.0
    world: str = "easy"


def simulate(n: int, /, patients: PatientOptions, run: SimulationRun) -> None:
    """
    Write synthetic contrast-enhanced brains with metastases. No person was scanned.

    Writes a folder for each patient with scan, label, prior scan, brain and table of metastases,
    and the table cases.tsv of all. An interrupted run resumes when started again with the same
    options.

    Options:
    n N 1..: Number of patients.
    prior 0..1: Share of patients with a prior scan.
    spacing 0.2..4: Grid in mm.
    metastases LOW,HIGH: Range of metastases per patient.
    mimics LOW,HIGH: Range of mimics of metastases per patient.
    misregistration 0..10: Residual misregistration of priors: 1 for up to 1 mm, 1.5°, 1 %.
    world easy|hard: In the hard one vessels, sinuses and dura are as bright as metastases.

    Example: dmrifit-metastasis simulate 12 --out cases
    """
    from dmrifit.io.tables import TABLE

    write = partial(_write_patient, vars(patients) | {"random_state": run.seed})
    run.write(vars(patients), {"synthetic": (n, {TABLE: TABLE}, write)})
    typer.echo(f"{counted(n, 'synthetic patient')}: {run.out / TABLE}")


def _write_patient(options: dict[str, Any], i: int, folder: Path) -> None:
    """Write the scans of a synthetic patient."""
    from metastasis.scans.cases import write_cases
    from metastasis.simulate.patients import simulate_metastases

    write_cases(simulate_metastases(1, skip=i, **options), folder, overwrite=True)


@dataclass(frozen=True)
class StudyOptions:
    """Parameters of one of the study's networks."""

    loss: str | None = None
    alpha: float | None = None
    prior: str | None = None
    network: str | None = None
    widths: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TrainingOptions:
    """Fields of a training."""

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    validation_fraction: float = 0.0
    patience: int | None = None


def train(
    cases: Path,
    /,
    files: TrainingFiles,
    study: StudyOptions,
    training: TrainingOptions,
    published: bool = False,
    segments_per_epoch: int | None = None,
    spacing: float | None = None,
    warm_start: Path | None = None,
    false_positives: float | None = None,
    validation: Path | None = None,
    min_voxels: int | None = None,
    device: str = "auto",
) -> None:
    """
    Train a model to find metastases, and write a model file for segment. Not for clinical use.

    By default it has two stages: a small U-Net marks candidates, and trees judge them. The U-Net
    is retrained with its false positives. With --loss, --alpha, --prior, --network,
    --widths, --warm-start or --published it is a network of Huang et al. alone; train the
    sensitive one of an ensemble with --alpha .995, the specific one with --alpha .5. After the
    first epoch it says how long the others will take, and after each one it draws the loss:
    model.curve.png beside model.dmrifit. An interrupted training resumes after its last epoch when
    started again; with two stages, each of their trainings does.

    Options:
    loss jvss|vss|sse|bce: Loss of a network of the study; jvss by default.
    alpha 0..1: Weight of sensitivity of one of the study's networks: .995, the default, finds
        more, .5 has fewer false positives.
    prior path|shared|channel|none: How one of the study's networks receives prior scans; path by
        default.
    network deepmedic|unet: One of the study's networks; deepmedic by default.
    published: Network sizes and training as published; needs a GPU.
    widths N,…: Channels of the layers of each path of one of the study's networks, or of the
        levels of the U-Net.
    epochs 1..: Epochs of each training; default 18 (study's networks: 20).
    segments_per_epoch 1..: Segments per epoch; 200 by default.
    batch_size 1..: Segments per step; default 2 (study's networks: 10).
    learning_rate: Learning rate of the first epoch; default .002 (study's networks: .001).
    schedule constant|cosine: Schedule of the learning rate.
    spacing: Grid in mm to resample scans to; default 1 mm (study's networks: not resampled).
    warm_start: Model file of a network of the same sizes with the initial weights.
    false_positives 0..: Store the threshold with this number of false positives per scan of
        --validation.
    validation CASES: Table of other patients, on which the threshold is chosen.
    min_voxels 1..: Smallest finding in voxels; default 4, a sphere of 2 mm (study's networks: 1).
    device auto|cpu|cuda: Device to compute on.

    Example: dmrifit-metastasis train cases/cases.tsv --alpha 0.995 --out sensitive.dmrifit
    """
    from dmrifit.io.components import label_components
    from dmrifit.networks.training import Training
    from dmrifit.networks.volume_cases import called
    from metastasis.candidates.two_stage import untrained_small_model
    from metastasis.cli.case_runs import scans_of
    from metastasis.segmentation.segmenter import DeepMedicSegmenter

    if (false_positives is None) != (validation is None):
        raise ValueError("an operating point needs both --false-positives and --validation")
    import_optional("torch", "skorch")
    study_parameters = given(**vars(study), warm_start_from=warm_start and str(warm_start))
    options = given(segments_per_epoch=segments_per_epoch, spacing=spacing, min_voxels=min_voxels)
    options |= {"device": device, "random_state": files.seed}
    # The checkpoint stays until the end: another operating point needs no new training.
    with files.training() as fields:
        fields |= given(**vars(training))
        segmenter: Any
        if published or study_parameters:
            options |= {"prior": "path"} | study_parameters
            if options["prior"] == "none":
                options["prior"] = None
            make = DeepMedicSegmenter.published if published else DeepMedicSegmenter
            segmenter = make(**options, training=Training(**fields))
        else:
            segmenter = untrained_small_model(files.seed, **fields)
            segmenter.segmenter.set_params(**options)._check()
            segmenter.set_params(min_voxels=segmenter.segmenter.min_voxels)
        # Before the scans are read, which takes minutes.
        segmenter._check()
        read = partial(_labeled_cases, uses_prior=options.get("prior", "path") is not None)
        training_cases = read(cases)
        patients = [case.patient for case in training_cases]
        held_out: list[Case] = []
        if validation is not None:
            held_out = read(validation)
            # The threshold is chosen on patients that the network has not seen.
            common = sorted({*patients} & {case.patient for case in held_out})
            if common:
                names = {"validation": validation, "cases": cases, "names": first_few(common)}
                raise ValueError(_TEXTS("common", **names))
        if not published and not study_parameters:
            say(_TEXTS("trainings"))
        with called([case.name for case in training_cases], cases):
            segmenter.fit(groups=patients, **scans_of(training_cases, labels=True))
        network = getattr(segmenter, "segmenter_", segmenter)
        network.synthetic_ = any(case.synthetic for case in training_cases)
        if held_out:
            scans = scans_of(held_out, labels=True)
            try:
                with called([case.name for case in held_out], validation):
                    segmenter.set_operating_point(false_positives=false_positives, **scans)
            except ValueError as error:
                files.save(segmenter)
                kept = _TEXTS("kept", out=files.out, threshold=segmenter.threshold_)
                raise ValueError(f"{error}; {kept}") from None
        files.save(segmenter)
    labels = [case.label for case in training_cases if case.label is not None]
    n_lesions = sum(int(label_components(label).max()) for label in labels)
    typer.echo(_TEXTS("trained", n_scans=len(training_cases), n_lesions=n_lesions, out=files.out))
    if training.validation_fraction:
        typer.echo(f"{percent(training.validation_fraction)} of patients served validation alone")
    if network.synthetic_:
        typer.echo("trained on synthetic scans: its accuracy in people is unknown")
    if hasattr(segmenter, "feature_table"):
        rows = segmenter.feature_table().itertuples()
        weights = [f"{row.feature} {row.weight:.2f}" for row in rows]
        others = f"{len(weights) - _N_FEATURES} others (weights)"
        typer.echo(f"candidates are judged by {', '.join(weights[:_N_FEATURES])} and {others}")
    if held_out:
        values = {"threshold": segmenter.threshold_, "false_positives": false_positives}
        typer.echo(_TEXTS("chosen", **values, n_scans=len(held_out)))


def evaluate(
    cases: Path,
    /,
    segmentations: dict[str, Path],
    out: Path,
    figures: int = 6,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """
    Compare segmentations with reference lesions: CSV tables, and a page with curves and overlays.

    Every table includes controls: all positive, empty, random blobs and, with two or more
    patients, another patient's lesions.

    Options:
    segmentations NAME=FILE: Table segmentations.tsv from segment or ensemble, or the folder it is
        in; repeatable.
    seed 0..: Random seed of controls and intervals.

    Example: dmrifit-metastasis evaluate cases.tsv --segmentations
        model=segmented/segmentations.tsv --out compared
    """
    from metastasis.cli.case_runs import read_segmentations
    from metastasis.study.evaluation import HEADLINES, format_summary
    from metastasis.study.report import MEASURES, write_evaluation

    import_optional("matplotlib", "jinja2")
    reference = _labeled_cases(cases)
    predictions, thresholds, min_voxels = {}, {}, {}
    for name, path in segmentations.items():
        predictions[name], thresholds[name], min_voxels[name] = read_segmentations(path, reference)
    options: dict[str, Any] = {"figures": figures, "overwrite": overwrite, "random_state": seed}
    options |= {"threshold": thresholds, "min_voxels": min_voxels, "verbose": True}
    tables = write_evaluation(reference, predictions, out, **options)
    table = format_summary(tables)[[*HEADLINES[:3], "wrong_per_scan"]]
    typer.echo(table.rename(columns=MEASURES).to_string())
    typer.echo(_TEXTS("study_scores", file=out / "summary.csv"))
    if any(case.synthetic for case in reference):
        typer.echo("synthetic scans: no clinical result")
    n_patients = len({case.patient for case in reference})
    if n_patients < page.FEW:
        typer.echo(f"{counted(n_patients, 'patient')}: too few to estimate performance")


def train_small(
    scans: Path, /, files: TrainingFiles, copies: int = 16, phantoms: int = 6, epochs: int = 18
) -> None:
    """
    Train the small model of segment on implants in one's own scans without metastases.

    No labeled metastasis is needed: synthetic ones are put into warped copies of the scans. Takes
    some 40 minutes of one core; an interrupted training resumes after its last epoch when started
    again. The threshold is that of the included model: choose another one by what is marked in
    scans without metastases.

    Options:
    scans SCANS: Post-contrast scans without metastases, as prepare writes them: one image, a
        folder, or a table (.tsv) with the columns patient and image.
    copies 1..: Warped copies of each scan, all with implants.
    phantoms 1..: Synthetic patients to learn from as well.
    epochs 1..: Epochs of each of the six trainings (two halves and all, each twice).

    Example: dmrifit-metastasis train-small prepared --out mine.dmrifit
    """
    from metastasis.candidates.two_stage import untrained_small_model
    from metastasis.cli.case_runs import RUN
    from metastasis.scans.cases import CASES
    from metastasis.scans.scan_checks import Files, noted_case
    from metastasis.simulate.implants import implanted_copies, phantom_scans, read_negative

    import_optional("torch", "skorch")
    # All files are checked before the first copy is made.
    sources: Files = {}
    read = partial(noted_case, edges=[], finds_brain=False, uses_prior=False, files=sources)
    source, is_many = RUN.named_cases([scans], CASES.images)
    for case, notes in CASES.read(source if is_many else [scans], read):
        _say_notes(case, notes)
    negatives = {str(x["image"]): read_negative(x["image"]) for x in sources.values()}
    training: list[TrainingScan] = []
    for name, (volume, brain) in negatives.items():
        training += implanted_copies(name, volume, brain, copies, random_state=files.seed)
    training += phantom_scans(phantoms, random_state=files.seed)
    with files.training() as fields:
        model = untrained_small_model(files.seed, epochs=epochs, **fields)
        say(_TEXTS("trainings"))
        model.fit(
            [scan.volume for scan in training],
            [scan.label for scan in training],
            masks=[scan.brain for scan in training],
            groups=[scan.name for scan in training],
        )
        files.save(model)
    typer.echo(_TEXTS("on_implants", n_scans=len(negatives), n_phantoms=phantoms, out=files.out))


def _labeled_cases(table: Path, *, uses_prior: bool = True) -> list[Case]:
    """Read cases that must have labels, and tell the notes on them."""
    from metastasis.cli.case_runs import RUN
    from metastasis.scans.cases import CASES, read_row
    from metastasis.scans.scan_checks import label_note, scan_notes

    source = RUN.named_cases([table], CASES.images)[0]
    cases = CASES.read(source, lambda row, folder: (read_row(row, folder), folder / row["image"]))
    missing = [case.name for case, _ in cases if case.label is None]
    if missing:
        raise ValueError(_TEXTS("no_label", table=table, names=first_few(missing)))
    for case, image in cases:
        _say_notes(case, [label_note(case), *scan_notes(case, image, uses_prior=uses_prior)])
    return [case for case, _ in cases]


def _say_notes(case: Case, notes: Sequence[str]) -> None:
    """Tell the notes on a case, each with its name."""
    for note in filter(None, notes):
        say(f"{case.name}: {note.removeprefix(f'{case.name}: ')}")
