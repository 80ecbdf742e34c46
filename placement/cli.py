"""The command line: make synthetic cases, train placers, place voxels in many, evaluate them, prescribe one by hand."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_args

import typer

import dmrifit
import placement
from dmrifit.options import floats, pairs, whole_numbers, words

if TYPE_CHECKING:
    import pandas as pd

    from placement.optimizer import VoxelOptimizer
    from placement.scene import Scene
    from placement.voxel import Voxel

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_public: Any = placement  # its names load when they are asked for
_EXAMPLE = "\b\nExample:\n  dmrifit-placement "
_INTERRUPTED = 130  # exit code after Ctrl-C
_MODELS = ("ranker", "network")

OverwriteOption: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Replace files of an earlier run.")]
OutOption: TypeAlias = Annotated[Path, typer.Option(help="Folder for the results; made if missing.")]
CasesArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="CASES",
        help="A NIfTI mask of the tumor, or a table (.tsv) with the columns name and tumor, and if wanted image and "
        "exclude (files, with commas between them), relative to the table.",
    ),
]
IncludeOption: TypeAlias = Annotated[
    str | None, typer.Option(metavar="LABELS", help="Labels that count as tumor, such as 3,4.")
]
ExcludeOption: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="LABELS|FILES", help="Labels of the tumor file, or masks, that no voxel may touch."),
]
ImageOption: TypeAlias = Annotated[Path | None, typer.Option(help="Image for the figures (a single case).")]
MarginOption: TypeAlias = Annotated[float, typer.Option(min=0, help="Distance to what is excluded, in mm.")]
PpmOption: TypeAlias = Annotated[
    str | None, typer.Option(metavar="LOW,HIGH", help="Chemical shifts of interest, relative to the pulses, in ppm.")
]
ExpertsArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        metavar="EXPERTS",
        help="Table (.tsv) of boxes with the columns name, expert, x, y, z (center in mm RAS+), size_x, size_y, size_z "
        "(mm), angle_x, angle_y, angle_z (degrees), as simulate writes it.",
    ),
]
LeastVolumeOption: TypeAlias = Annotated[float, typer.Option(min=0, help="Least volume in mL.")]
RotationsOption: TypeAlias = Annotated[int, typer.Option(min=0, max=3, help="How many axes may be rotated.")]
SidesOption: TypeAlias = Annotated[str, typer.Option(metavar="LOW,HIGH", help="Least and largest side in mm.")]
RateOption: TypeAlias = Annotated[
    str | None, typer.Option(metavar="PERCENT", help="Displacement in percent of the side per ppm: one or three.")
]
FigureOption: TypeAlias = Annotated[bool, typer.Option(help="Draw figures (matplotlib).")]


def main() -> None:
    """
    Run the command line; an error that the user can mend is one line on the standard error stream.

    Raises
    ------
    SystemExit
        Always: 0 when all went well, 2 for such an error, 130 after Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: _say(str(message))
            app()
    except (ValueError, OSError, ImportError) as error:
        _say(f"error: {error}")
        sys.exit(2)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            _say("interrupted")
        raise


def _say(message: str) -> None:
    typer.echo(f"dmrifit-placement: {message}", err=True)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dmrifit-placement {dmrifit.__version__}")
        raise typer.Exit


@app.callback(epilog=_EXAMPLE + "place tumor.nii.gz --out placed")
def placement_(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Place spectroscopy voxels in brain tumors. Not for clinical use."""


@app.command(epilog=_EXAMPLE + "simulate 5 --out cases")
def simulate(
    n: Annotated[int, typer.Argument(metavar="N", min=1, help="How many cases.")],
    out: OutOption,
    experts: Annotated[str, typer.Option(help="preference or objective: what the simulated experts aim at.")] = (
        "preference"
    ),
    exclude: Annotated[
        bool, typer.Option("--exclude", help="Name the necrosis in the column exclude of the table.")
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

    from dmrifit.files import FileSet, write_text
    from dmrifit.images import write_volume
    from placement.phantoms import ExpertKind, simulate_gliomas
    from placement.tables import box_columns

    settings = {"command": "simulate", "experts": experts, "spacing": spacing, "seed": seed}
    options: dict[str, Any] = {"experts": experts, "spacing": spacing, "exclude": ("necrosis",), "image": True}
    if experts not in get_args(ExpertKind):
        msg = f"--experts must be one of {', '.join(get_args(ExpertKind))}, not {experts!r}"
        raise ValueError(msg)
    _begin(out, settings, overwrite, results=("experts.tsv", "cases.tsv"))
    boxes = pd.DataFrame()
    if (out / "experts.tsv").exists() and not overwrite:
        boxes = pd.read_csv(out / "experts.tsv", sep="\t", dtype=str)  # numbers stay as they are written
    rows = []
    for i in _progress(range(n), n):
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
        pair = [{"name": name, "expert": j + 1, **box_columns(box)} for j, box in enumerate(voxels[0])]
        boxes = pd.concat([boxes, pd.DataFrame(pair).astype(str)], ignore_index=True)
        write_text(out / "experts.tsv", boxes.to_csv(sep="\t", index=False))
    write_text(out / "cases.tsv", pd.DataFrame(rows).to_csv(sep="\t", index=False))


@app.command(epilog=_EXAMPLE + "train cases/cases.tsv cases/experts.tsv --model ranker --out ranker.dmrifit")
def train(
    cases: CasesArgument,
    experts: ExpertsArgument,
    out: Annotated[Path, typer.Option(help="Model file to write, by custom with the ending .dmrifit.")],
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
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the cases (network).")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A smaller network that answers faster.")] = False,
    refine: Annotated[
        bool, typer.Option("--refine", help="Polish the network's boxes by a local search of the objective.")
    ] = False,
    groups: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of CASES with the patient, whose cases are kept together."),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    margin: MarginOption = 0.0,
    min_volume: LeastVolumeOption = 6.0,
    max_rotations: RotationsOption = 3,
    sides: SidesOption = "10,60",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder for states of the network's training, which goes on from there; by default one beside the "
            "model file, removed when that is written."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes of the ranker; −1 for one on each core.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Train a placer on experts' boxes, and write a model file for place. Not for clinical use.

    The training of a network that was interrupted goes on after its last epoch if it is started again.
    """
    import shutil

    from dmrifit.persistence import save_model
    from placement.tables import read_cases, read_experts, read_scene

    _check_output(out, overwrite)
    if model not in _MODELS:
        msg = f"--model must be one of {', '.join(_MODELS)}, not {model!r}"
        raise ValueError(msg)
    given = {"--channels": channels, "--epochs": epochs, "--fast": fast, "--refine": refine, "--checkpoint": checkpoint}
    wrong = [name for name, value in given.items() if value and model != "network"]
    if wrong:
        msg = f"{', '.join(wrong)}: for --model network only"
        raise ValueError(msg)
    table = read_cases(cases, exclude=exclude)
    if groups is not None and groups not in table:
        msg = f"{cases} has no column {groups}; it has {', '.join(table.columns)}"
        raise ValueError(msg)
    constraints = _constraints(sides, min_volume, max_rotations)
    placer: Any
    own: Path | None = None
    if model == "network":
        if max_rotations != 3:
            msg = "--max-rotations: a network turns boxes as it has learned; place flags those that are turned too much"
            raise ValueError(msg)
        del constraints["max_rotations"]
        own = out.with_name(f".{out.name}.training") if checkpoint is None else None
        options = {"fast": fast, "refine": refine, **constraints, "checkpoint": str(checkpoint or own), "verbose": True}
        options |= {} if epochs is None else {"epochs": epochs}
        options |= {} if channels is None else {"channels": tuple(words(channels))}
        placer = _network(options | {"random_state": seed}, table)
    else:
        optimizer = _public.VoxelOptimizer(**constraints, random_state=seed)
        placer = _public.VoxelRanker(optimizer, n_jobs=jobs, random_state=seed)
    boxes = read_experts(experts, list(table["name"]))
    image = "image" in getattr(placer, "channels", ())
    labels = _labels(include)
    scenes = [
        read_scene(row, include=labels, margin=margin, image=image)
        for row in _progress(table.itertuples(), len(table), "read")
    ]
    placer.fit(scenes, boxes, **({} if groups is None else {"groups": list(table[groups])}))
    save_model(placer, out)
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)
    typer.echo(f"trained on {len(scenes)} cases with {(boxes[..., 0] == boxes[..., 0]).sum()} boxes: {out}")
    if "synthetic" in table and (table["synthetic"] == "true").any():
        typer.echo("trained on synthetic cases and simulated experts, who are no clinical experts")


@app.command(epilog=_EXAMPLE + "place cases/cases.tsv --out placed")
def place(
    cases: CasesArgument,
    out: OutOption,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Model file that train wrote; the optimizer by default.")
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    margin: MarginOption = 0.0,
    image: ImageOption = None,
    min_volume: LeastVolumeOption = 6.0,
    max_rotations: RotationsOption = 3,
    sides: SidesOption = "10,60",
    thorough: Annotated[bool, typer.Option("--thorough", help="Search from more places (optimizer).")] = False,
    rounding: Annotated[bool, typer.Option(help="Round to 0.1 mm, 1 mm sides and 0.1 degrees.")] = True,
    ppm: PpmOption = None,
    percent_per_ppm: RateOption = None,
    figure: FigureOption = True,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Place a voxel in every case, and write prescriptions. Not for clinical use.

    The optimizer takes the place where the objective is largest and keeps the constraints; a model takes the place
    that it has learned, and constraints that this breaks become flags. A run that was interrupted goes on where it
    stopped if it is started again with the same options. Writes a folder for each case, a table placements.tsv and a
    page with all overlays.
    """
    from dmrifit.images import file_record
    from placement.optimizer import CONSOLE, VoxelOptimizer
    from placement.prescription import write_prescription
    from placement.tables import read_cases, read_scene, source_digests

    if model is not None and thorough:
        msg = "--thorough is for the optimizer; leave out --thorough or --model"
        raise ValueError(msg)
    optimizer = VoxelOptimizer(
        **_constraints(sides, min_volume, max_rotations),
        thorough=thorough,
        rounding=CONSOLE if rounding else None,
        random_state=seed,
    )
    table = read_cases(cases, image=image, exclude=exclude)
    labels = _labels(include)
    shift = _shift_options(ppm, percent_per_ppm)
    placer = optimizer if model is None else _trained(model, table)
    settings = {"command": "place", "optimizer": repr(optimizer), "include": include, "exclude": exclude}
    settings |= {"margin": margin, "model": None if model is None else file_record(model)["SHA256"]} | shift
    _begin(out, json.loads(json.dumps(settings)), overwrite, results=("placements.tsv",))
    contents = {}
    for row in _progress(table.itertuples(), len(table)):
        folder = out / row.name
        done = folder / "voxel.json"
        if done.exists() and not overwrite:
            before = json.loads(done.read_text(encoding="utf-8"))
            # A case whose files have changed is placed anew.
            if before["sources"] == source_digests(row):
                contents[row.name] = before
                continue
        scene = read_scene(row, include=labels, margin=margin)
        voxel = placer.place(scene)
        if model is not None and rounding:
            voxel = _rounded(voxel, scene, optimizer)
        contents[row.name] = write_prescription(
            voxel, scene, folder, optimizer=optimizer, figure=figure, overwrite=True, **shift
        )
    _write_batch(out, contents, figure=figure)


@app.command(epilog=_EXAMPLE + "prescribe tumor.nii.gz --center 10,20,30 --size 20,20,20 --out voxel")
def prescribe(
    tumor: Annotated[Path, typer.Argument(metavar="TUMOR", help="NIfTI mask of the tumor.")],
    center: Annotated[str, typer.Option(metavar="X,Y,Z", help="Center in mm, RAS+.")],
    size: Annotated[str, typer.Option(metavar="X,Y,Z", help="Sides in mm.")],
    out: OutOption,
    angles: Annotated[str, typer.Option(metavar="A,B,C", help="Intrinsic XYZ Euler angles in degrees.")] = "0,0,0",
    matrix: Annotated[
        Path | None,
        typer.Option(help="Text file of 4 x 4 numbers, mm RAS+ of the scan of the box to those of TUMOR: moves it."),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    margin: MarginOption = 0.0,
    image: ImageOption = None,
    ppm: PpmOption = None,
    percent_per_ppm: RateOption = None,
    figure: FigureOption = True,
    overwrite: OverwriteOption = False,
) -> None:
    """Evaluate a voxel placed by hand, or in an earlier scan, and write its prescription. Not for clinical use."""
    import numpy as np

    from placement.prescription import write_prescription
    from placement.tables import read_cases, read_scene
    from placement.voxel import Voxel

    voxel = Voxel(floats("--center", center, 3), floats("--size", size, 3), floats("--angles", angles, 3))
    if matrix is not None:
        voxel = voxel.transform(np.loadtxt(matrix))
    row = next(read_cases(tumor, image=image, exclude=exclude).itertuples())
    scene = read_scene(row, include=_labels(include), margin=margin)
    content = write_prescription(
        voxel, scene, out, figure=figure, overwrite=overwrite, **_shift_options(ppm, percent_per_ppm)
    )
    scores = content["scores"]
    words_ = [f"{content['volume_ml']:.2f} mL", f"{scores['tumor_fraction']:.3f} of it tumor"]
    typer.echo("; ".join([*words_, f"objective {scores['objective']:.3f}", *content["flags"]]))


@app.command(epilog=_EXAMPLE + "evaluate cases.tsv experts.tsv --placements objective=placements.tsv --out tables")
def evaluate(
    cases: CasesArgument,
    experts: ExpertsArgument,
    placements: Annotated[
        list[str], typer.Option(metavar="NAME=FILE", help="Table of boxes, as place writes it; repeatable.")
    ],
    out: OutOption,
    include: IncludeOption = None,
    figure: FigureOption = True,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the random box.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Compare placements with experts': tables of the study as CSV files, and a figure."""
    from dmrifit.files import FileSet
    from placement.evaluation import evaluate_placements, format_summary
    from placement.tables import read_boxes, read_cases, read_experts, read_scene

    table = read_cases(cases)
    names = list(table["name"])
    by_expert = read_experts(experts, names)
    found = {name: read_boxes(path, names) for name, path in pairs("--placements", placements)}
    labels = _labels(include)
    kinds = ("cases", "icc", "bland_altman", "anova", "paired", "correlations", "summary")
    drawing = figure and find_spec("matplotlib") is not None
    with FileSet(out, ["evaluation.png", *(f"{kind}.csv" for kind in kinds)], overwrite=overwrite) as files:
        rows = _progress(table.itertuples(), len(table))
        scenes = [read_scene(row, include=labels, image=False) for row in rows]
        tables = evaluate_placements(scenes, by_expert, found, random_state=seed)
        for kind in kinds:
            tables[kind].to_csv(files.path(f"{kind}.csv"), index=False)
        if drawing:
            from placement.plotting import plot_evaluation

            plot_evaluation(tables).savefig(files.path("evaluation.png"), dpi=120)
    typer.echo(format_summary(tables).to_string())


# What words on the command line stand for ----------------------------------------------------------------------------


def _shift_options(ppm: str | None, percent: str | None) -> dict[str, Any]:
    if ppm is None and percent is None:
        return {}
    if ppm is None or percent is None:
        msg = "chemical-shift displacement needs both --ppm and --percent-per-ppm"
        raise ValueError(msg)
    rate = floats("--percent-per-ppm", percent, 1 if len(words(percent)) == 1 else 3)
    low, high = floats("--ppm", ppm, 2)
    return {"ppm_range": (low, high), "percent_per_ppm": rate if len(rate) == 3 else rate[0]}


def _labels(text: str | None) -> list[int] | None:
    return None if text is None else list(whole_numbers("--include", text))


def _constraints(sides: str, min_volume: float, max_rotations: int) -> dict[str, Any]:
    low, high = floats("--sides", sides, 2)
    return {"size_range": (low, high), "min_volume": min_volume, "max_rotations": max_rotations}


# Placers that learn --------------------------------------------------------------------------------------------------


def _network(options: dict[str, Any], table: pd.DataFrame) -> Any:
    """Make an untrained network, and check all that can be checked before cases are read."""
    from dmrifit._optional import import_optional

    for library in ("torch", "skorch"):
        import_optional(library)
    network = _public.VoxelRegressor(**options)
    network._check()
    _check_channels(network, table)
    return network


def _trained(path: Path, table: pd.DataFrame) -> Any:
    """Read a model file, and check that the cases have what the model looks at."""
    from dmrifit.persistence import load_model

    placer = load_model(path)
    if not hasattr(placer, "place"):
        msg = f"{path} holds a {type(placer).__name__}, which places no voxels; dmrifit-placement train makes placers"
        raise ValueError(msg)
    _check_channels(placer, table)
    return placer


def _check_channels(placer: Any, table: pd.DataFrame) -> None:
    for column in ("image", "exclude"):
        lacking = table.loc[table[column] == "", "name"]
        if column in getattr(placer, "channels", ()) and len(lacking):
            first = ", ".join(lacking[:5])
            msg = f"the network looks at the channel {column}, which {first} lack(s); fill the column {column} of CASES"
            raise ValueError(msg)


def _rounded(voxel: Voxel, scene: Scene, optimizer: VoxelOptimizer) -> Voxel:
    """Round what a model says as the optimizer rounds its own."""
    return optimizer.rounded(voxel, scene)


# Files of a run ------------------------------------------------------------------------------------------------------


def _check_output(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        msg = f"{out} exists already; choose another name, or --overwrite"
        raise FileExistsError(msg)
    if not out.parent.is_dir():
        msg = f"{out} cannot be written: there is no folder {out.parent}"
        raise FileNotFoundError(msg)


def _begin(out: Path, settings: dict[str, Any], overwrite: bool, *, results: tuple[str, ...]) -> None:
    """Remember what a run was started with, so that another one does not go on with it."""
    from dmrifit.files import write_text

    path = out / "settings.json"
    strangers = [name for name in results if (out / name).exists() and not path.exists()]
    if strangers and not overwrite:
        msg = f"{out / strangers[0]} exists already and is of no run; choose another folder, or --overwrite"
        raise FileExistsError(msg)
    if path.exists() and not overwrite:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if changed:
            msg = f"{out} holds a run with other options ({', '.join(changed)}); choose another folder, or --overwrite"
            raise ValueError(msg)
    write_text(path, json.dumps(settings, indent=2) + "\n")


def _progress(rows: Iterable[Any], total: int, what: str | None = None) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(rows, total=total, unit="case", desc=what, disable=None)


def _write_batch(out: Path, contents: dict[str, dict[str, Any]], *, figure: bool) -> None:
    """Write the table of all cases, and the page with their overlays."""
    import pandas as pd

    from dmrifit.files import write_text
    from placement.tables import box_columns

    rows = []
    for name, content in contents.items():
        pose = [*content["ras"]["center_mm"], *content["size_mm"], *content["ras"]["angles_deg"]]
        numbers = {key: content["scores"][key] for key in ("objective", "tumor_fraction", "tumor_volume_ml")}
        flags = "; ".join(content["flags"])
        row = {"name": name, **box_columns(pose), "volume_ml": content["volume_ml"], **numbers}
        rows.append(row | {"rotated_axes": content["rotated_axes"], "flags": flags})
    table = pd.DataFrame(rows)
    write_text(out / "placements.tsv", table.to_csv(sep="\t", index=False, float_format="%.12g"))
    if not figure or find_spec("jinja2") is None or find_spec("matplotlib") is None:
        return
    from dmrifit.pages import html_figure, html_join, html_page, html_table
    from placement.prescription import NOTICE

    shown = ("volume_ml", "tumor_fraction", "objective")
    lines = [
        [one["name"], *(f"{one[key]:.3f}" for key in shown), one["rotated_axes"], one["flags"] or "none"]
        for one in rows
    ]
    header = ("case", "volume, mL", "part that is tumor", "objective", "rotated axes", "flags")
    sections = [("All cases", html_table(lines, header, numbers=(1, 2, 3, 4)))]
    for name in contents:
        path = out / name / "voxel_overlay.png"
        if path.exists():
            picture = html_figure(path.read_bytes(), f"Voxel of {name} in three planes", width=1000)
            sections.append((name, html_join([picture])))
    write_text(out / "index.html", html_page("Voxels", sections, lead=f"{NOTICE}. The patient's right is at the left."))
