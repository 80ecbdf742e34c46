"""Commands that work on many cases with experts' boxes: simulate, train, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

import placement
from dmrifit.cli.console import (
    FigureOption,
    ModelFileOption,
    OutOption,
    OverwriteOption,
    begin_run,
    check_output,
    progress,
)
from dmrifit.cli.options import pairs, words
from placement.cli.options import (
    CasesArgument,
    ExcludeOption,
    ExpertsArgument,
    IncludeOption,
    LeastVolumeOption,
    MarginOption,
    RotationsOption,
    SidesOption,
    ToleranceOption,
    constraints_of,
    labels_of,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXAMPLES", "evaluate", "simulate", "train"]

_MODELS = ("ranker", "network")
_public: Any = placement  # its names load when they are asked for


def simulate(
    n: Annotated[int, typer.Argument(metavar="N", min=1, help="How many cases.")],
    out: OutOption,
    experts: Annotated[
        str, typer.Option(help="preference or objective: what the simulated experts aim at.")
    ] = ("preference"),
    exclude: Annotated[
        bool,
        typer.Option("--exclude", help="Name the necrosis in the column exclude of the table."),
    ] = False,
    spacing: Annotated[float, typer.Option(min=0.5, max=10, help="Grid in mm.")] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Write synthetic gliomas and the boxes of two simulated experts, who are no clinical experts.

    Writes for each case tumor, necrosis and image as NIfTI files, a table experts.tsv of the boxes and a table
    cases.tsv of the files. A run that was interrupted goes on where it stopped if it is started again.
    """
    import numpy as np
    import pandas as pd

    from dmrifit.io.atomic_files import FileSet, write_text
    from dmrifit.io.nifti import write_volume
    from placement.exchange.tables import box_columns
    from placement.simulate.gliomas import ExpertKind, simulate_gliomas

    settings = {"command": "simulate", "experts": experts, "spacing": spacing, "seed": seed}
    options: dict[str, Any] = {
        "experts": experts,
        "spacing": spacing,
        "exclude": ("necrosis",),
        "image": True,
    }
    if experts not in get_args(ExpertKind):
        raise ValueError(
            f"--experts must be one of {', '.join(get_args(ExpertKind))}, not {experts!r}"
        )
    begin_run(out, settings, overwrite, results=("experts.tsv", "cases.tsv"))
    boxes = pd.DataFrame()
    if (out / "experts.tsv").exists() and not overwrite:
        boxes = pd.read_csv(
            out / "experts.tsv", sep="\t", dtype=str
        )  # numbers stay as they are written
    rows = []
    for i in progress(range(n), n):
        name = f"synthetic-{i + 1:03d}"
        files = {kind: f"{name}_{kind}.nii.gz" for kind in ("tumor", "necrosis", "image")}
        row = {"name": name, "tumor": files["tumor"], "image": files["image"], "synthetic": "true"}
        rows.append(row | ({"exclude": files["necrosis"]} if exclude else {}))
        whole = all((out / file).exists() for file in files.values())
        if whole and len(boxes) and name in set(boxes["name"]):
            continue
        scenes, voxels = simulate_gliomas(1, skip=i, **options, random_state=seed)
        scene = scenes[0]
        with FileSet(out, files.values(), overwrite=True) as written:
            parts = {"tumor": scene.tumor > 0, "necrosis": scene.forbidden["necrosis"]}
            for kind, values in parts.items():
                write_volume(values.astype(np.uint8), scene.affine, written.path(files[kind]))
            write_volume(np.asarray(scene.image), scene.affine, written.path(files["image"]))
        pair = [
            {"name": name, "expert": j + 1, **box_columns(box)} for j, box in enumerate(voxels[0])
        ]
        boxes = pd.concat([boxes, pd.DataFrame(pair).astype(str)], ignore_index=True)
        write_text(out / "experts.tsv", boxes.to_csv(sep="\t", index=False))
    write_text(out / "cases.tsv", pd.DataFrame(rows).to_csv(sep="\t", index=False))
    typer.echo(f"{n} synthetic case{'s' * (n != 1)}: {out / 'cases.tsv'}")


def train(
    cases: CasesArgument,
    experts: ExpertsArgument,
    out: ModelFileOption,
    model: Annotated[
        str,
        typer.Option(
            metavar="ranker|network",
            help="ranker: chooses among places that the optimizer finds. network: looks at the mask (needs torch).",
        ),
    ] = "ranker",
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="What the network sees: tumor, distance, exclude, image; tumor,distance by default.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the cases (network).")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="A smaller network that answers faster.")
    ] = False,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine", help="Polish the network's boxes by a local search of the objective."
        ),
    ] = False,
    validation_fraction: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the patients that the network is scored with, not trained on.",
        ),
    ] = 0.0,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="End after so many epochs without a better score, and take the best (network).",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of CASES with the patient, whose cases stay together (network).",
        ),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    margin: MarginOption = 0.0,
    tolerance: ToleranceOption = 0.0,
    min_volume: LeastVolumeOption = 6.0,
    max_rotations: RotationsOption = 3,
    sides: SidesOption = "10,60",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder for states of the network's training, which goes on from there; by default one beside the "
            "model file, removed when that is written. A run that was killed after that leaves it; the same with "
            "--overwrite removes it."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Processes of the ranker; −1 for one on each core.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Train a placer on experts' boxes, and write a model file for place. Not for clinical use.

    The training of a network that was interrupted goes on after its last epoch if it is started again.
    """
    import shutil

    from dmrifit._utils.threads import check_jobs
    from dmrifit.model_files.model_file import save_model
    from dmrifit.networks.volume_cases import called
    from placement.exchange.tables import read_cases, read_experts, read_scene

    check_output(out, overwrite)
    check_jobs(jobs, "--jobs")
    if model not in _MODELS:
        raise ValueError(f"--model must be one of {', '.join(_MODELS)}, not {model!r}")
    given: dict[str, Any] = {
        "--channels": channels,
        "--epochs": epochs,
        "--fast": fast,
        "--refine": refine,
        "--checkpoint": checkpoint,
    }
    given |= {
        "--validation-fraction": validation_fraction,
        "--patience": patience,
        "--groups": groups,
    }
    wrong = [name for name, value in given.items() if value and model != "network"]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: for --model network only")
    table = read_cases(cases, exclude=exclude)
    if groups is not None and groups not in table:
        raise ValueError(f"{cases} has no column {groups}; it has {', '.join(table.columns)}")
    constraints = constraints_of(sides, min_volume, max_rotations)
    placer: Any
    own: Path | None = None
    if model == "network":
        if max_rotations != 3:
            raise ValueError(
                "--max-rotations: a network turns boxes as it has learned; place flags those that are turned too much"
            )
        del constraints["max_rotations"]
        own = out.with_name(f".{out.name}.training") if checkpoint is None else None
        options = {
            "fast": fast,
            "refine": refine,
            **constraints,
            "checkpoint": str(checkpoint or own),
            "verbose": True,
        }
        options |= {} if epochs is None else {"epochs": epochs}
        options |= {} if channels is None else {"channels": tuple(words(channels))}
        options |= {"validation_fraction": validation_fraction, "patience": patience}
        placer = _network(options | {"random_state": seed}, table)
    else:
        optimizer = _public.VoxelOptimizer(**constraints, random_state=seed)
        placer = _public.VoxelRanker(optimizer, verbose=True, n_jobs=jobs, random_state=seed)
    boxes = read_experts(experts, list(table["name"]))
    image = "image" in getattr(placer, "channels", ())
    labels = labels_of(include)
    scenes = [
        read_scene(row, include=labels, margin=margin, tolerance=tolerance, image=image)
        for row in progress(table.itertuples(), len(table), "read")
    ]
    with called(list(table["name"]), cases):
        placer.fit(scenes, boxes, **({} if groups is None else {"groups": list(table[groups])}))
    save_model(placer, out)
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)
    typer.echo(
        f"trained on {len(scenes)} cases with {(boxes[..., 0] == boxes[..., 0]).sum()} boxes: {out}"
    )
    if table["synthetic"].any():
        typer.echo("trained on synthetic cases and simulated experts, who are no clinical experts")


def evaluate(
    cases: CasesArgument,
    experts: ExpertsArgument,
    placements: Annotated[
        list[str],
        typer.Option(metavar="NAME=FILE", help="Table of boxes, as place writes it; repeatable."),
    ],
    out: OutOption,
    include: IncludeOption = None,
    figure: FigureOption = True,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the random box.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Compare placements with experts': tables of the study as CSV files, and a figure."""
    from dmrifit.io.atomic_files import FileSet
    from placement.exchange.tables import read_boxes, read_cases, read_experts, read_scene
    from placement.study.evaluation import evaluate_placements, format_summary

    table = read_cases(cases)
    names = list(table["name"])
    by_expert = read_experts(experts, names)
    found = {name: read_boxes(path, names) for name, path in pairs("--placements", placements)}
    labels = labels_of(include)
    kinds = ("cases", "icc", "bland_altman", "anova", "paired", "correlations", "summary")
    drawing = figure and find_spec("matplotlib") is not None
    with FileSet(
        out, ["evaluation.png", *(f"{kind}.csv" for kind in kinds)], overwrite=overwrite
    ) as files:
        rows = progress(table.itertuples(), len(table))
        scenes = [read_scene(row, include=labels, image=False) for row in rows]
        tables = evaluate_placements(scenes, by_expert, found, random_state=seed)
        for kind in kinds:
            tables[kind].to_csv(files.path(f"{kind}.csv"), index=False)
        if drawing:
            from placement.study.plotting import plot_evaluation

            plot_evaluation(tables, synthetic=bool(table["synthetic"].any())).savefig(
                files.path("evaluation.png"), dpi=120
            )
    typer.echo(format_summary(tables).to_string())
    if table["synthetic"].any():
        typer.echo("synthetic cases: no clinical result")


def _network(options: dict[str, Any], table: pd.DataFrame) -> Any:
    """Make an untrained network, and check all that can be checked before cases are read."""
    from dmrifit._optional import import_optional
    from placement.exchange.tables import check_channels

    for library in ("torch", "skorch"):
        import_optional(library)
    network = _public.VoxelRegressor(**options)
    network._check()
    check_channels(network, table)
    return network


#: Commands, with the line that their help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    simulate: "dmrifit-placement simulate 5 --out cases",
    train: "dmrifit-placement train cases/cases.tsv cases/experts.tsv --model ranker --out ranker.dmrifit",
    evaluate: "dmrifit-placement evaluate cases.tsv experts.tsv --placements objective=placements.tsv --out tables",
}
