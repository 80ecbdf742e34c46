"""Commands that work on many scans of which something is known: simulate, train, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly.cli.options import (
    DETECTORS,
    AllVoxelsOption,
    CasesArgument,
    DeviceOption,
    TissueOption,
    make_detector,
    parameters_of,
)
from dmrifit.cli.console import (
    ModelFileOption,
    OutOption,
    OverwriteOption,
    begin_run,
    check_output,
    progress,
)
from dmrifit.cli.options import pairs, whole_numbers, words

if TYPE_CHECKING:
    from anomaly.detectors.base import AnomalyDetector
    from anomaly.scans.preparation import PreparedScan

__all__ = ["EXAMPLES", "evaluate", "simulate", "train"]

_TABLES = {"healthy": "healthy.tsv", "glioma": "gliomas.tsv"}


def simulate(
    n_healthy: Annotated[
        int, typer.Argument(metavar="N_HEALTHY", min=0, help="How many healthy persons.")
    ],
    n_lesions: Annotated[
        int, typer.Argument(metavar="N_LESIONS", min=0, help="How many patients with gliomas.")
    ],
    out: OutOption,
    directions: Annotated[int, typer.Option(min=1, help="Gradient directions.")] = 64,
    shape: Annotated[str, typer.Option(metavar="X,Y,Z", help="Voxels of a scan.")] = "40,48,32",
    spacing: Annotated[float, typer.Option(min=1, max=12, help="Grid in mm.")] = 4.0,
    registration: Annotated[
        str,
        typer.Option(
            metavar="good|shifted",
            help="How well scans lie on each other; shifted: by 2 voxels, 5 %.",
        ),
    ] = "good",
    snr: Annotated[
        float, typer.Option(min=1, help="Signal to noise of white matter at b = 0.")
    ] = 22.0,
    cellular: Annotated[
        float, typer.Option(min=0, max=0.75, help="Share with reduced diffusivity.")
    ] = 0.3,
    skip: Annotated[
        int,
        typer.Option(
            min=0, help="Persons to pass over: those of an earlier folder, for others to test on."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same persons.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Write synthetic diffusion series of healthy persons and of patients with gliomas. No person was scanned.

    Writes for each a folder with the series, b-values, directions, brain, tissues and lesions, and the tables
    healthy.tsv and gliomas.tsv. A run that was interrupted goes on where it stopped if it is started again.
    """
    import pandas as pd

    from anomaly.scans.cases import TABLE, write_cases
    from anomaly.simulate.persons import simulate_dmri
    from dmrifit.io.atomic_files import write_text

    if not n_healthy + n_lesions:
        raise ValueError("N_HEALTHY and N_LESIONS are 0; ask for at least one person")
    options: dict[str, Any] = {
        "n_directions": directions,
        "shape": whole_numbers("--shape", shape, 3),
        "spacing": spacing,
        "registration": registration,
        "snr": snr,
        "cellular": cellular,
        "random_state": seed,
    }
    settings = {"command": "simulate", "skip": skip} | options
    begin_run(
        out, settings, overwrite, results=tuple(_TABLES.values()), parts=(f"synthetic-*/{TABLE}",)
    )
    numbers = {"healthy": n_healthy, "glioma": n_lesions}
    rows: dict[str, list[dict[str, str]]] = {group: [] for group in _TABLES}
    todo = [(group, i) for group, n in numbers.items() for i in range(skip, skip + n)]
    for group, i in progress(todo, len(todo)):
        folder = out / f"synthetic-{group}-{i + 1:03d}"
        if overwrite or not (folder / TABLE).exists():
            healthy, lesions = simulate_dmri(
                int(group == "healthy"), int(group == "glioma"), skip=i, **options
            )
            write_cases([*healthy, *lesions], folder, overwrite=True)
        row = (
            pd.read_csv(folder / TABLE, sep="\t", dtype=str, keep_default_na=False)
            .iloc[0]
            .to_dict()
        )
        files = [
            key for key, value in row.items() if value.endswith((".nii.gz", ".bval", ".bvec"))
        ]
        rows[group].append(row | {key: f"{folder.name}/{row[key]}" for key in files})
    for group, found in rows.items():
        if found:
            text = pd.DataFrame(found).fillna("n/a").to_csv(sep="\t", index=False, na_rep="n/a")
            write_text(out / _TABLES[group], text)
    named = [
        f"{n} {what}: {out / _TABLES[group]}"
        for (group, n), what in zip(numbers.items(), _WHAT, strict=True)
        if n
    ]
    typer.echo("synthetic series of " + "; ".join(named))


_WHAT = ("healthy persons", "patients with gliomas")


def train(
    cases: CasesArgument,
    out: ModelFileOption,
    detector: Annotated[
        str, typer.Option(metavar="|".join(DETECTORS), help="The detector.")
    ] = "gaussian",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Parameter of the detector, such as side=low; repeatable.",
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Sizes and training of the publication (dae, recdisc); for a GPU."
        ),
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of networks; by default the detector's.")
    ] = None,
    rate: Annotated[
        float,
        typer.Option(
            min=0, max=0.5, help="Share of healthy voxels above the threshold that is stored."
        ),
    ] = 0.01,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE|FOLDS",
            help="Healthy subjects for the threshold: a share that is not learned from, such as 0.25, or a number of "
            "folds; by default the detector's.",
        ),
    ] = None,
    spacing: Annotated[
        float | None,
        typer.Option(
            help="Grid in mm that scans are resampled to; by default they stay as they are."
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="X,Y,Z", help="Voxels that scans are cropped or padded to."),
    ] = None,
    center: Annotated[
        str,
        typer.Option(
            metavar="grid|brain",
            help="What is put in the middle; brain for scans that do not match.",
        ),
    ] = "grid",
    b: Annotated[
        float | None, typer.Option(help="Shell to take, in s/mm², if there are several.")
    ] = None,
    resample_directions: Annotated[
        bool,
        typer.Option(
            "--resample-directions",
            help="Estimate signals along the directions of the first scan.",
        ),
    ] = False,
    all_voxels: AllVoxelsOption = False,
    estimate_tissue: TissueOption = False,
    covariates: Annotated[
        str | None,
        typer.Option(metavar="age,sex,site", help="What the expectation depends on (gaussian)."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder for states of a network's training, which goes on from there; by default one beside the model "
            "file, removed when that is written. A run that was killed after that leaves it; the same with --overwrite "
            "removes it."
        ),
    ] = None,
    device: DeviceOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Learn what healthy diffusion series look like, and write a model file for detect. Not for clinical use.

    The file holds the detector, the threshold with the wanted rate of false positives on healthy scans, and what scans
    were like: their measurements and their grid. A network whose training was interrupted goes on after its last epoch
    if it is started again.
    """
    import shutil

    from anomaly.detectors.thresholds import HealthyRateThreshold
    from anomaly.scans.series import SeriesDetector, read_series
    from dmrifit._optional import import_optional
    from dmrifit.model_files.model_file import save_model

    check_output(out, overwrite)
    parameters = parameters_of(settings or [])
    if detector in ("dae", "recdisc"):
        for library in ("torch", "skorch"):
            import_optional(library)
    own = out.with_name(f".{out.name}.training") if checkpoint is None else None
    given = {
        "threshold": HealthyRateThreshold(rate),
        "calibration": None if calibration is None else _calibration(calibration),
        "epochs": epochs,
        "device": device,
    }
    used = {key: value for key, value in given.items() if value is not None}
    found = _detector(detector, used | parameters, published, str(checkpoint or own), seed)
    known = () if covariates is None else tuple(words(covariates))
    if known and detector != "gaussian":
        raise ValueError(
            f"--covariates {covariates}: the detector {detector} takes none into account; gaussian does"
        )
    model = SeriesDetector(
        found,
        spacing=spacing,
        shape=None if shape is None else _three("--shape", shape),
        center=center,
        b=b,
        directions="resampled" if resample_directions else "acquired",
        covariates=known,
    )
    model.fit(read_series(cases), tissue=estimate_tissue, mask=not all_voxels)
    save_model(model, out)
    limit = getattr(model.detector_.threshold_, "threshold_", float("nan"))
    size = " × ".join(map(str, model.shape_))
    typer.echo(
        f"{detector} learned from {model.n_scans_} scans of {size} voxels and {len(model.protocol_)} directions; "
        f"threshold {limit:.5g} for {100 * rate:g} % of healthy voxels: {out}"
    )
    if model.synthetic_:
        typer.echo("learned from synthetic scans: what it finds in people is unknown")
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)


def evaluate(
    cases: CasesArgument,
    detections: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FILE",
            help="Table detections.tsv that detect wrote of these cases; repeatable.",
        ),
    ],
    out: OutOption,
    healthy: Annotated[
        Path | None,
        typer.Option(
            metavar="CASES",
            help="Table of healthy scans that no model learned from: false positives.",
        ),
    ] = None,
    healthy_detections: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Table detections.tsv of the healthy scans, for the same names.",
        ),
    ] = None,
    b: Annotated[
        float | None,
        typer.Option(help="Shell that was looked at, in s/mm², if there are several."),
    ] = None,
    all_voxels: AllVoxelsOption = False,
    estimate_tissue: TissueOption = False,
    figures: Annotated[int, typer.Option(min=0, help="How many scans the page shows.")] = 6,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Compare anomaly maps with lesions inside white and gray matter: tables as CSV files, and a page.

    Each map is made binary by every rule of the study, and by the threshold that is stored with its model (in the rows
    whose name ends in "stored"). Controls that look at nothing stand in every table.
    """
    import sys

    from anomaly.cli.case_runs import prepared_cases
    from anomaly.scans.series import read_series
    from anomaly.study.evaluation import format_summary
    from anomaly.study.report import write_evaluation
    from dmrifit._optional import import_optional
    from dmrifit.io.digests import command_line

    for library in ("matplotlib", "jinja2"):
        import_optional(library)
    named = _named("--detections", detections)
    others = _named("--healthy-detections", healthy_detections or [])
    if (healthy is None) != (not others) or (others and set(others) != set(named)):
        raise ValueError(
            f"--healthy needs --healthy-detections of {', '.join(named)}, and of no others"
        )
    options: dict[str, Any] = {"tissue": estimate_tissue, "mask": not all_voxels, "b": b}
    scans = prepared_cases(read_series(cases), **options)
    well = [] if healthy is None else prepared_cases(read_series(healthy), **options)
    maps, well_maps = _maps(named, scans), _maps(others, well)
    tables = write_evaluation(
        [scan.case for scan in scans],
        maps,
        out,
        healthy=[scan.case for scan in well],
        healthy_maps=well_maps or None,
        figures=figures,
        overwrite=overwrite,
        command=command_line(["dmrifit-anomaly", *sys.argv[1:]]),
    )
    typer.echo(format_summary(tables).to_string())
    if any(scan.case.synthetic for scan in scans):
        typer.echo("synthetic scans: no clinical result")


#: Commands, with the line that their help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    simulate: "dmrifit-anomaly simulate 28 20 --directions 16 --out cases",
    train: "dmrifit-anomaly train cases/healthy.tsv --detector gaussian --set side=low --out model.dmrifit",
    evaluate: "dmrifit-anomaly evaluate cases/gliomas.tsv --detections z=found/detections.tsv --out compared",
}


def _detector(
    name: str, parameters: dict[str, Any], published: bool, checkpoint: str, seed: int
) -> AnomalyDetector:
    """Make a detector; those that have one get a seed, and networks a folder for the states of their training."""
    from importlib import import_module

    if name in DETECTORS:
        module, title = DETECTORS[name]
        known = getattr(import_module(module), title)._get_param_names()
        own = {"random_state": seed, "checkpoint": checkpoint, "verbose": True}
        parameters = {key: value for key, value in own.items() if key in known} | parameters
    return make_detector(name, parameters, published=published)


def _calibration(text: str) -> float | int:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ValueError(
            f"--calibration {text}: a share such as 0.25, or a number of folds such as 4"
        ) from None


def _three(option: str, text: str) -> tuple[int, int, int]:
    x, y, z = whole_numbers(option, text, 3)
    return x, y, z


def _named(option: str, texts: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in pairs(option, texts):
        if name in found:
            raise ValueError(f"{option} names {name} twice")
        found[name] = Path(path)
    return found


def _maps(named: dict[str, Path], scans: list[PreparedScan]) -> dict[str, list[Any]]:
    """Read maps, and what the threshold of the model has made of them."""
    from anomaly.cli.case_runs import read_detections

    found: dict[str, list[Any]] = {}
    for name, path in named.items():
        read = read_detections(path, scans)
        found[name] = read["map"]
        found[f"{name}, stored"] = read["binary"]
    return found
