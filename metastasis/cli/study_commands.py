"""Commands that work on many cases with reference lesions: simulate, train, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from dmrifit.cli.console import (
    ModelFileOption,
    OutOption,
    OverwriteOption,
    begin_run,
    check_output,
    progress,
)
from dmrifit.cli.options import pairs, whole_numbers

if TYPE_CHECKING:
    from metastasis.scans.cases import Case

__all__ = ["EXAMPLES", "evaluate", "simulate", "train"]

CasesArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="CASES",
        help="Table (.tsv) of scans with the columns patient, image and label, and if wanted name, classes (labels "
        "that are metastases, such as 1,3,4), prior and brain; files relative to the table.",
    ),
]


def simulate(
    n: Annotated[int, typer.Argument(metavar="N", min=1, help="How many patients.")],
    out: OutOption,
    prior: Annotated[
        float, typer.Option(min=0, max=1, help="Share of patients with a prior scan.")
    ] = 0.75,
    shape: Annotated[str, typer.Option(metavar="X,Y,Z", help="Voxels of a scan.")] = "66,66,66",
    spacing: Annotated[float, typer.Option(min=0.2, max=4, help="Grid in mm.")] = 1.5,
    metastases: Annotated[
        str, typer.Option(metavar="LOW,HIGH", help="Fewest and most of a patient.")
    ] = "1,7",
    mimics: Annotated[
        str, typer.Option(metavar="LOW,HIGH", help="Fewest and most things that look like one.")
    ] = "1,5",
    misregistration: Annotated[
        float,
        typer.Option(
            min=0, max=10, help="How badly priors lie on scans: 1 for up to 1 mm, 1.5°, 1 %."
        ),
    ] = 1.0,
    skip: Annotated[
        int,
        typer.Option(
            min=0, help="Patients to pass over: those of an earlier folder, for others to test on."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same patients.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Write synthetic contrast-enhanced brains with metastases. No person was scanned.

    Writes for each patient a folder with scan, label, prior scan, brain and table of metastases, and for all of them
    the table cases.tsv. A run that was interrupted goes on where it stopped if it is started again.
    """
    import pandas as pd

    from dmrifit.io.atomic_files import write_text
    from metastasis.scans.cases import TABLE, write_cases
    from metastasis.simulate.patients import simulate_metastases

    options: dict[str, Any] = {
        "prior": prior,
        "shape": whole_numbers("--shape", shape, 3),
        "spacing": spacing,
        "metastases": whole_numbers("--metastases", metastases, 2),
        "mimics": whole_numbers("--mimics", mimics, 2),
        "misregistration": misregistration,
        "random_state": seed,
    }
    settings = {"command": "simulate", "skip": skip} | options
    begin_run(out, settings, overwrite, results=(TABLE,), parts=(f"synthetic-*/{TABLE}",))
    rows = []
    for i in progress(range(skip, skip + n), n):
        folder = out / f"synthetic-{i + 1:03d}"
        if overwrite or not (folder / TABLE).exists():
            write_cases(simulate_metastases(1, skip=i, **options), folder, overwrite=True)
        row = (
            pd.read_csv(folder / TABLE, sep="\t", dtype=str, keep_default_na=False)
            .iloc[0]
            .to_dict()
        )
        files = [key for key, value in row.items() if value.endswith((".nii.gz", ".tsv"))]
        rows.append(row | {key: f"{folder.name}/{row[key]}" for key in files})
    write_text(out / TABLE, pd.DataFrame(rows).to_csv(sep="\t", index=False, na_rep="n/a"))
    typer.echo(f"{n} synthetic patient{'s' * (n != 1)}: {out / TABLE}")


def train(
    cases: CasesArgument,
    out: ModelFileOption,
    loss: Annotated[
        str, typer.Option(metavar="jvss|vss|sse|bce", help="What is minimized.")
    ] = "jvss",
    alpha: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Sensitivity against specificity: .995 finds more, .5 errs less."
        ),
    ] = 0.995,
    prior: Annotated[
        str,
        typer.Option(metavar="path|channel|none", help="Where the network looks for prior scans."),
    ] = "path",
    network: Annotated[
        str, typer.Option(metavar="deepmedic|unet", help="The network.")
    ] = "deepmedic",
    published: Annotated[
        bool, typer.Option("--published", help="Sizes and training of the publication; for a GPU.")
    ] = False,
    widths: Annotated[
        str | None,
        typer.Option(
            metavar="N,…", help="Channels of the layers of each path, or of the U-Net's levels."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="20 by default.")] = None,
    segments_per_epoch: Annotated[int | None, typer.Option(min=1, help="200 by default.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Segments in a step; 10 by default.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the first epoch; .001 by default.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="constant|cosine", help="How the learning rate goes on.")
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option(
            help="Grid in mm that scans are resampled to; by default they are taken as they are."
        ),
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(help="Model file of the same sizes, whose weights training begins with."),
    ] = None,
    validation_fraction: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the patients that epochs are scored with, not trained on.",
        ),
    ] = 0.0,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="End after so many epochs without a better score, and take the best."
        ),
    ] = None,
    false_positives: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Store the threshold with so many false positives per scan on --validation.",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="CASES", help="Table of further patients, to choose the threshold with."
        ),
    ] = None,
    min_voxels: Annotated[
        int,
        typer.Option(
            min=1, help="Findings of fewer voxels are left out; 4 of 1 mm are a sphere of 2 mm."
        ),
    ] = 1,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder for states of the training, which goes on from there; by default one beside the model file, "
            "removed when that is written. A run that was killed after that leaves it; the same with --overwrite "
            "removes it."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Train a network to find metastases, and write a model file for segment. Not for clinical use.

    A training that was interrupted goes on after its last epoch if it is started again. The sensitive model of an
    ensemble is trained with --alpha .995, the specific one with --alpha .5.
    """
    import shutil

    from dmrifit._optional import import_optional
    from dmrifit.model_files.model_file import save_model
    from dmrifit.networks.volume_cases import called
    from metastasis.cli.case_runs import scans_of
    from metastasis.scans.cases import read_cases
    from metastasis.segmentation.segmenter import DeepMedicSegmenter

    check_output(out, overwrite)
    if (false_positives is None) != (validation is None):
        raise ValueError("an operating point needs both --false-positives and --validation")
    for library in ("torch", "skorch"):
        import_optional(library)
    own = out.with_name(f".{out.name}.training") if checkpoint is None else None
    options: dict[str, Any] = {
        "loss": loss,
        "alpha": alpha,
        "prior": None if prior == "none" else prior,
        "network": network,
        "spacing": spacing,
        "min_voxels": min_voxels,
        "warm_start_from": None if warm_start is None else str(warm_start),
        "validation_fraction": validation_fraction,
        "patience": patience,
        "checkpoint": str(checkpoint or own),
        "verbose": True,
        "device": device,
        "random_state": seed,
    }
    given = {
        "widths": None if widths is None else whole_numbers("--widths", widths),
        "epochs": epochs,
        "segments_per_epoch": segments_per_epoch,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
    }
    options |= {key: value for key, value in given.items() if value is not None}
    segmenter = (
        DeepMedicSegmenter.published(**options) if published else DeepMedicSegmenter(**options)
    )
    segmenter._check()
    learned = _labelled(read_cases(cases), cases)
    kept = [] if validation is None else _labelled(read_cases(validation), validation)
    if both := sorted({case.patient for case in learned} & {case.patient for case in kept}):
        raise ValueError(
            f"{validation} has patients that {cases} has too: {', '.join(both[:5])}; choose others for the threshold"
        )
    with called([case.name for case in learned], cases):
        segmenter.fit(
            labels=_labels(learned), groups=[case.patient for case in learned], **scans_of(learned)
        )
    with called([case.name for case in kept], validation):
        chosen = _set_operating_point(segmenter, kept, out, false_positives) if kept else ""
    save_model(segmenter, out)
    n_lesions = sum(_n_lesions(case) for case in learned)
    typer.echo(
        f"trained on {len(learned)} scan{'s' * (len(learned) != 1)} with {n_lesions} lesions: {out}"
    )
    if any(case.synthetic for case in learned):
        typer.echo("trained on synthetic scans: what it finds in people is unknown")
    if chosen:
        typer.echo(chosen)
    # Until here another number of false positives can be asked for without training again.
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)


def evaluate(
    cases: CasesArgument,
    segmentations: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FILE",
            help="Table segmentations.tsv that segment or ensemble wrote; repeatable.",
        ),
    ],
    out: OutOption,
    figures: Annotated[int, typer.Option(min=0, help="How many scans the page shows.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of controls and intervals.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Compare segmentations with reference lesions: tables as CSV files, and a page with curves and overlays.

    Four controls stand in every table: everything, nothing, the lesions of another patient, random blobs.
    """
    import sys

    from dmrifit._optional import import_optional
    from dmrifit.io.digests import command_line
    from metastasis.cli.case_runs import read_segmentations
    from metastasis.scans.cases import read_cases
    from metastasis.study.evaluation import format_summary
    from metastasis.study.report import FEW, write_evaluation

    named = pairs("--segmentations", segmentations)
    if twice := sorted(
        {name for name, _ in named if [other for other, _ in named].count(name) > 1}
    ):
        raise ValueError(f"--segmentations names {', '.join(twice)} twice")
    for library in ("matplotlib", "jinja2"):
        import_optional(library)
    found = _labelled(read_cases(cases), cases)
    predictions, thresholds, least = {}, {}, {}
    for name, path in named:
        predictions[name], thresholds[name], least[name] = read_segmentations(Path(path), found)
    tables = write_evaluation(
        found,
        predictions,
        out,
        threshold=thresholds,
        min_voxels=least,
        figures=figures,
        overwrite=overwrite,
        command=command_line(["dmrifit-metastasis", *sys.argv[1:]]),
        random_state=seed,
    )
    typer.echo(format_summary(tables).to_string())
    if any(case.synthetic for case in found):
        typer.echo("synthetic scans: no clinical result")
    patients = len({case.patient for case in found})
    if patients < FEW:
        typer.echo(
            f"{patients} patient{'s' * (patients != 1)}: numbers about these scans, no performance"
        )


#: Commands, with the line that their help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    simulate: "dmrifit-metastasis simulate 12 --out cases",
    train: "dmrifit-metastasis train cases/cases.tsv --alpha 0.995 --out sensitive.dmrifit",
    evaluate: "dmrifit-metastasis evaluate cases.tsv --segmentations model=segmented/segmentations.tsv --out compared",
}


def _labelled(cases: list[Case], table: Path) -> list[Case]:
    if missing := [case.name for case in cases if case.label is None]:
        raise ValueError(
            f"{table}: no label of {', '.join(missing[:5])}; name one in the column label, or leave the scan out"
        )
    return cases


def _labels(cases: Sequence[Case]) -> list[Any]:
    import nibabel as nib

    return [nib.Nifti1Image(case.label, case.affine) for case in cases]


def _n_lesions(case: Case) -> int:
    from dmrifit.stats.lesion_matching import label_components

    return 0 if case.label is None else int(label_components(case.label).max(initial=0))


def _set_operating_point(
    segmenter: Any, cases: Sequence[Case], out: Path, false_positives: float | None
) -> str:
    """Choose the threshold, and say which; without one, the model is saved as it is."""
    from dmrifit.model_files.model_file import save_model
    from metastasis.cli.case_runs import scans_of

    try:
        segmenter.set_operating_point(
            labels=_labels(cases), false_positives=false_positives, **scans_of(cases)
        )
    except ValueError as error:
        save_model(segmenter, out)
        raise ValueError(
            f"{error}; {out} keeps the threshold {segmenter.threshold_:g}. Ask for more --false-positives, with "
            "--overwrite; nothing is trained again"
        ) from None
    chosen = (
        f"threshold {segmenter.threshold_:.4f} for {false_positives:g} false positives per scan"
    )
    return f"{chosen}, chosen on {len(cases)} scans of other patients"
