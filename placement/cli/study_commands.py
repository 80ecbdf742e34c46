"""Commands on many cases with experts' boxes: simulate, reader, train, evaluate."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

import placement
from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_word
from dmrifit._utils.counts import counted
from dmrifit._utils.progress import progress
from dmrifit.cli.case_runs import SimulationRun
from dmrifit.cli.options import given
from dmrifit.cli.training_files import TrainingFiles
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.tables import TABLE, save_table
from placement.cli.placement_commands import RUN, TargetOptions

#: Tables of synthetic cases; that of the cases is written last.
_TABLES = ("experts.tsv", TABLE)
_public: Any = placement  # its names are imported on first use


def simulate(
    n: int,
    /,
    *,
    experts: str = "preference",
    exclude: bool = False,
    spacing: float = 2.0,
    run: SimulationRun,
) -> None:
    """
    Write synthetic gliomas and the boxes of two simulated experts, who are not clinical experts.

    Writes a folder for each case with tumor, necrosis, brain and image as NIfTI files, a table
    experts.tsv of the boxes and a table cases.tsv of the files. An interrupted run resumes when
    started again with the same options.

    Options:
    n N 1..: Number of cases.
    experts: What the simulated experts aim at: preference or objective.
    exclude: Exclude the necrosis, in the column exclude of the table.
    spacing 0.5..10: Grid in mm.

    Example: dmrifit-placement simulate 5 --out cases
    """
    from placement.simulate.gliomas import EXPERT_RULES

    check_word("--experts", experts, EXPERT_RULES)
    options: dict[str, Any] = {"experts": experts, "spacing": spacing}
    write = partial(_write_glioma, exclude, options | {"random_state": run.seed})
    tables = dict(zip(_TABLES, _TABLES, strict=True))
    run.write(options | {"exclude": exclude}, {"synthetic": (n, tables, write)})
    typer.echo(f"{counted(n, 'synthetic case')}: {run.out / TABLE}")
    typer.echo(f"a simulated expert {EXPERT_RULES[experts]}")


def _write_glioma(exclude: bool, options: dict[str, Any], i: int, folder: Path) -> None:
    """Write the images of a synthetic glioma, the boxes of its experts, and its row of cases."""
    import numpy as np
    import pandas as pd

    from dmrifit.io.grids import Volume
    from placement.exchange.tables import box_columns
    from placement.simulate.gliomas import simulate_gliomas

    # Both are excluded in any case here, as only then a scene has their masks.
    options = options | {"exclude": ("necrosis", "outside"), "image": True}
    (scene,), (boxes,) = simulate_gliomas(1, skip=i, **options)
    volumes = {
        "tumor": (scene.tumor > 0).astype(np.uint8),
        "necrosis": scene.forbidden["necrosis"].astype(np.uint8),
        "brain": (~scene.forbidden["outside"]).astype(np.uint8),
        "image": np.asarray(scene.image),
    }
    files = {role: f"{role}.nii.gz" for role in volumes}
    name = {"name": folder.name}
    row = name | {role: files[role] for role in ("tumor", "image", "brain")}
    row["synthetic"] = "true"
    if exclude:
        row["exclude"] = files["necrosis"]
    rows = [name | {"expert": k, **box_columns(box)} for k, box in enumerate(boxes, start=1)]
    with FileSet(folder, [*files.values(), *_TABLES], overwrite=True) as file_set:
        for role, values in volumes.items():
            Volume.of(values, scene.affine).to_filename(file_set.path(files[role]))
        for table, lines in zip(_TABLES, (rows, [row]), strict=True):
            save_table(pd.DataFrame(lines), file_set.path(table))


def reader(
    cases: Path,
    /,
    out: Annotated[Path, ".html"],
    target: TargetOptions,
    proposals: Path | None = None,
    n: int = 24,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """
    Write a page on which an expert places a box in each case with the mouse.

    One HTML file that needs no network. Readers see numbers instead of names, and not where a
    proposed box comes from. What they save is the table EXPERTS that evaluate reads; tables of
    several readers are joined below each other. All files of CASES must be there, so that each
    reader sees the same cases.

    Options:
    out: Page (.html) to write.
    proposals FILE: Table of boxes, such as placements.tsv of place, that readers correct.
    n 1..: Cases to show, drawn by the seed where there are more.
    seed 0..: Random seed of cases and order.

    Example: dmrifit-placement reader cases/cases.tsv --out reader.html
    """
    import numpy as np

    from placement.box.voxel import Voxel
    from placement.exchange.tables import read_boxes, read_cases, read_scene
    from placement.study.plotting import reader_page

    table = read_cases(cases)
    all_names = list(table["name"])
    if len(table) > n:
        rng = np.random.default_rng(seed)
        table = table.iloc[np.sort(rng.choice(len(table), n, replace=False))]
    names = list(table["name"])
    voxels = {}
    if proposals is not None:
        boxes = read_boxes(proposals, names, others=all_names)
        voxels = {name: Voxel.from_array(box) for name, box in zip(names, boxes, strict=True)}
    rows = progress(table.itertuples(), len(table))
    scenes = [read_scene(row, **target.of_scene()) for row in rows]
    page = reader_page(scenes, proposals=voxels, random_state=seed)
    with FileSet(out.parent, [out.name], overwrite=overwrite) as file_set:
        file_set.path(out.name).write_text(page, encoding="utf-8")
    typer.echo(f"{counted(len(scenes), 'case')}: {out}")


@dataclass(frozen=True)
class NetworkOptions:
    """Options of a network, and of its training."""

    channels: tuple[str, ...] | None = None
    epochs: int | None = None
    fast: bool = False
    refine: bool = False
    validation_fraction: float = 0.0
    patience: int | None = None


def train(
    cases: Path,
    experts: Path,
    /,
    *,
    files: TrainingFiles,
    model: str = "ranker",
    network: NetworkOptions,
    groups: str | None = None,
    include: tuple[int, ...] | None = None,
    exclude: str | None = None,
    margin: float = 0.0,
    tolerance: float = 0.0,
    min_volume: float = 6.0,
    max_rotations: int | None = None,
    sides: tuple[float, float] = (10.0, 60.0),
    jobs: int | None = None,
) -> None:
    """
    Train a placer on experts' boxes, and write a model file for place. Not for clinical use.

    After the first epoch of a network it says how long the others will take, and after each one
    it draws the loss: model.curve.png beside model.dmrifit. An interrupted training of a network
    resumes after its last epoch when started again.

    Options:
    model ranker|network: ranker chooses among boxes of the optimizer; network sees the mask (needs
        torch).
    channels NAME,…: Inputs of the network: tumor, distance, exclude, image; default
        tumor,distance.
    epochs 1..: Epochs of training (network).
    fast: Use a smaller, faster network.
    refine: Refine the network's boxes by a local search of the objective.
    groups COLUMN: Column of CASES with the patient, to keep cases of a patient together (network).
    max_rotations 0..3: Number of angles to set on the console; 2, as of place (ranker).
    jobs: Parallel processes of the ranker; 1 by default, −1 for one per core.

    Example: dmrifit-placement train cases/cases.tsv cases/experts.tsv --model ranker --out
        ranker.dmrifit
    """
    from dmrifit.networks.training import gather_training
    from dmrifit.networks.volume_cases import called
    from placement.exchange import tables

    check_word("--model", model, ("ranker", "network"))
    is_network = model == "network"
    network_options = vars(network) | {"groups": groups, "checkpoint": files.checkpoint}
    unusable = [name for name, value in network_options.items() if value]
    if is_network:
        unusable = list(given(max_rotations=max_rotations, jobs=jobs))
    if unusable:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unusable)
        only = "ranker" if is_network else "network"
        raise ValueError(f"{names}: for --model {only} only; leave out {names}")
    table = tables.read_cases(RUN.named_cases([cases], tables.IMAGES)[0], exclude=exclude)
    if groups is not None and groups not in table:
        raise ValueError(f"{cases} has no column {groups}; it has {', '.join(table.columns)}")
    seed = {"random_state": files.seed}
    constraints: dict[str, Any] = {"size_range": sides, "min_volume": min_volume} | seed
    # A ranker has no checkpoints: those of an interrupted network stay.
    training: Any = files.training() if is_network else nullcontext({})
    with training as fields:
        if is_network:
            options = gather_training(given(**vars(network)) | fields)
            import_optional("torch", "skorch")
            placer = _public.VoxelRegressor(**constraints, **options)
            # Before cases are read.
            placer._check()
            tables.check_channels(placer, table)
        else:
            optimizer = _public.VoxelOptimizer(**constraints, **given(max_rotations=max_rotations))
            placer = _public.VoxelRanker(optimizer, verbose=True, n_jobs=jobs, **seed)
        boxes = tables.read_experts(experts, list(table["name"]))
        scene_options: dict[str, Any] = {"margin": margin, "tolerance": tolerance}
        scene_options |= {"include": include, "image": "image" in getattr(placer, "channels", ())}
        rows = progress(table.itertuples(), len(table), "read")
        scenes = [tables.read_scene(row, **scene_options) for row in rows]
        fit_options = {} if groups is None else {"groups": list(table[groups])}
        with called(list(table["name"]), cases):
            placer.fit(scenes, boxes, **fit_options)
        files.save(placer)
    # An expert without a box of a case has NaN there.
    words = counted(int((boxes[..., 0] == boxes[..., 0]).sum()), "box", "boxes")
    if n_held_out := getattr(placer, "n_cases_", (0, 0))[1]:
        words += f", {n_held_out} of the cases held out to choose the epoch"
        words += f" ({files.kept_epoch(placer.history_)['epoch']} of {len(placer.history_)})"
    typer.echo(f"trained on {counted(len(scenes), 'case')} with {words}: {files.out}")
    if table["synthetic"].any():
        typer.echo("trained on synthetic cases and simulated experts, not clinical experts")


def evaluate(
    cases: Path,
    experts: Path,
    /,
    placements: dict[str, Path],
    out: Path,
    target: TargetOptions,
    figure: bool = True,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """
    Compare placements with those of experts: CSV tables and a figure.

    Options:
    placements NAME=FILE: Table of boxes from place; repeatable.
    seed 0..: Random seed of the random box.

    Example: dmrifit-placement evaluate cases.tsv experts.tsv --placements objective=placements.tsv
        --out tables
    """
    from placement.exchange.tables import read_boxes, read_cases, read_experts, read_scene
    from placement.study.evaluation import MEASURES, evaluate_placements, format_summary

    table = read_cases(cases)
    names = list(table["name"])
    by_expert = read_experts(experts, names)
    boxes = {name: read_boxes(path, names) for name, path in placements.items()}
    titles = ("cases", "icc", "bland_altman", "anova", "paired", "correlations", "summary")
    names_written = ["evaluation.png", *(f"{title}.csv" for title in titles)]
    with FileSet(out, names_written, overwrite=overwrite) as file_set:
        rows = progress(table.itertuples(), len(table))
        scenes = [read_scene(row, **target.of_scene(), image=False) for row in rows]
        tables = evaluate_placements(scenes, by_expert, boxes, random_state=seed)
        for title in titles:
            save_table(tables[title], file_set.path(f"{title}.csv"), 7)
        if figure and find_spec("matplotlib") is not None:
            from placement.study.plotting import plot_evaluation

            drawing = plot_evaluation(tables, synthetic=bool(table["synthetic"].any()))
            drawing.savefig(file_set.path("evaluation.png"), dpi=120)
    typer.echo(format_summary(tables).rename(columns=MEASURES).to_string())
    typer.echo("mean ± SD over cases; the difference of experts is that of the first two")
    if table["synthetic"].any():
        typer.echo("synthetic cases: no clinical result")
