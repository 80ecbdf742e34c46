"""The command line: make synthetic cases, place voxels in many, evaluate them, prescribe one by hand."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

import dmrifit
from dmrifit.options import words

if TYPE_CHECKING:
    import pandas as pd

    from placement.scene import Scene

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_EXAMPLE = "\b\nExample:\n  dmrifit-placement "
_INTERRUPTED = 130  # exit code after Ctrl-C
#: Columns of a box in tables: center in mm RAS+, sides in mm, angles in degrees.
_NUMBERS = ("x", "y", "z", "size_x", "size_y", "size_z", "angle_x", "angle_y", "angle_z")

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
    spacing: Annotated[float, typer.Option(help="Grid in mm.")] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Write synthetic gliomas and the boxes of two simulated experts, who are no clinical experts.

    Writes for each case tumor, necrosis and image as NIfTI files, a table cases.tsv of the files and a table
    experts.tsv of the boxes.
    """
    import numpy as np
    import pandas as pd

    from dmrifit.files import FileSet
    from dmrifit.images import write_volume
    from placement.phantoms import simulate_gliomas

    kinds = ("tumor", "necrosis", "image")
    names = [f"synthetic-{i + 1:03d}_{kind}.nii.gz" for i in range(n) for kind in kinds]
    with FileSet(out, [*names, "experts.tsv", "cases.tsv"], overwrite=overwrite) as files:
        scenes, voxels = simulate_gliomas(
            n,
            experts=experts,  # type: ignore[arg-type]
            spacing=spacing,
            exclude=("necrosis",),
            image=True,
            random_state=seed,
        )
        rows, boxes = [], []
        for scene, pair in zip(scenes, voxels, strict=True):
            parts = {"tumor": scene.tumor > 0, "necrosis": scene.forbidden["necrosis"]}
            for kind, values in parts.items():
                write_volume(values.astype(np.uint8), scene.affine, files.path(f"{scene.name}_{kind}.nii.gz"))
            write_volume(np.asarray(scene.image), scene.affine, files.path(f"{scene.name}_image.nii.gz"))
            rows.append({"name": scene.name, **{kind: f"{scene.name}_{kind}.nii.gz" for kind in ("tumor", "image")}})
            boxes += [
                {"name": scene.name, "expert": j + 1, **dict(zip(_NUMBERS, box, strict=True))}
                for j, box in enumerate(pair)
            ]
        pd.DataFrame(boxes).to_csv(files.path("experts.tsv"), sep="\t", index=False)
        pd.DataFrame(rows).to_csv(files.path("cases.tsv"), sep="\t", index=False)


@app.command(epilog=_EXAMPLE + "place cases/cases.tsv --out placed")
def place(
    cases: CasesArgument,
    out: OutOption,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    margin: MarginOption = 0.0,
    image: ImageOption = None,
    min_volume: Annotated[float, typer.Option(min=0, help="Least volume in mL.")] = 6.0,
    max_rotations: Annotated[int, typer.Option(min=0, max=3, help="How many axes may be rotated.")] = 3,
    sides: Annotated[str, typer.Option(metavar="LOW,HIGH", help="Least and largest side in mm.")] = "10,60",
    thorough: Annotated[bool, typer.Option("--thorough", help="Search from more places.")] = False,
    rounding: Annotated[bool, typer.Option(help="Round to 0.1 mm, 1 mm sides and 0.1 degrees.")] = True,
    ppm: PpmOption = None,
    percent_per_ppm: RateOption = None,
    figure: FigureOption = True,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Place a voxel in every case where the objective is largest, and write prescriptions. Not for clinical use.

    A run that was interrupted goes on where it stopped if it is started again with the same options. Writes a folder
    for each case, a table placements.tsv and a page with all overlays.
    """
    from dmrifit.images import describe_sources
    from placement.optimizer import CONSOLE, VoxelOptimizer
    from placement.prescription import write_prescription

    low, high = _numbers(sides, 2, "--sides")
    optimizer = VoxelOptimizer(
        size_range=(low, high),
        min_volume=min_volume,
        max_rotations=max_rotations,
        thorough=thorough,
        rounding=CONSOLE if rounding else None,
        random_state=seed,
    )
    table = _case_table(cases, image, exclude)
    shift = _shift_options(ppm, percent_per_ppm)
    settings = {"optimizer": repr(optimizer), "include": include, "exclude": exclude, "margin": margin} | shift
    _begin(out, json.loads(json.dumps(settings)), overwrite)
    contents = {}
    for row in _progress(table.itertuples(), len(table)):
        folder = out / row.name
        done = folder / "voxel.json"
        if done.exists() and not overwrite:
            before = json.loads(done.read_text(encoding="utf-8"))
            # A mask that was drawn anew is placed anew.
            if before["sources"].get("Tumor") == describe_sources(Tumor=row.tumor)["Tumor"]:
                contents[row.name] = before
                continue
        scene = _scene(row, include, margin)
        contents[row.name] = write_prescription(
            optimizer.place(scene), scene, folder, optimizer=optimizer, figure=figure, overwrite=True, **shift
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
    from placement.voxel import Voxel

    voxel = Voxel(_numbers(center, 3, "--center"), _numbers(size, 3, "--size"), _numbers(angles, 3, "--angles"))
    if matrix is not None:
        voxel = voxel.transform(np.loadtxt(matrix))
    row = next(_case_table(tumor, image, exclude).itertuples())
    scene = _scene(row, include, margin)
    content = write_prescription(
        voxel, scene, out, figure=figure, overwrite=overwrite, **_shift_options(ppm, percent_per_ppm)
    )
    scores = content["scores"]
    words_ = [f"{content['volume_ml']:.2f} mL", f"{scores['tumor_fraction']:.3f} of it tumor"]
    typer.echo("; ".join([*words_, f"objective {scores['objective']:.3f}", *content["flags"]]))


@app.command(epilog=_EXAMPLE + "evaluate cases.tsv experts.tsv --placements objective=placements.tsv --out tables")
def evaluate(
    cases: CasesArgument,
    experts: Annotated[Path, typer.Argument(metavar="EXPERTS", help="Table of experts' boxes, as simulate writes it.")],
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
    import numpy as np

    from dmrifit.files import FileSet
    from placement.evaluation import evaluate_placements, format_summary

    table = _case_table(cases, None, None)
    names = list(table["name"])
    boxes = _read_boxes(experts, names)
    raters = sorted(boxes["expert"].unique()) if "expert" in boxes else []
    if not raters:
        msg = f"{experts} has no column expert; it needs a row for each case and expert"
        raise ValueError(msg)
    by_expert = np.stack([_in_order(boxes[boxes["expert"] == one], names) for one in raters], axis=1)
    found = {}
    for text in placements:
        name, _, path = text.partition("=")
        if not name or not path:
            msg = f"--placements needs NAME=FILE, not {text!r}"
            raise ValueError(msg)
        found[name] = _in_order(_read_boxes(Path(path), names), names)
    kinds = ("cases", "icc", "bland_altman", "anova", "paired", "correlations", "summary")
    drawing = figure and find_spec("matplotlib") is not None
    with FileSet(out, ["evaluation.png", *(f"{kind}.csv" for kind in kinds)], overwrite=overwrite) as files:
        scenes = [_scene(row, include, 0.0) for row in _progress(table.itertuples(), len(table))]
        tables = evaluate_placements(scenes, by_expert, found, random_state=seed)
        for kind in kinds:
            tables[kind].to_csv(files.path(f"{kind}.csv"), index=False)
        if drawing:
            from placement.plotting import plot_evaluation

            plot_evaluation(tables).savefig(files.path("evaluation.png"), dpi=120)
    typer.echo(format_summary(tables).to_string())


# What words on the command line stand for ----------------------------------------------------------------------------


def _numbers(text: str, n: int, option: str) -> list[float]:
    try:
        values = [float(word) for word in words(text)]
    except ValueError:
        values = []
    if len(values) != n:
        msg = f"{option} needs {n} numbers with commas between them, not {text!r}"
        raise ValueError(msg)
    return values


def _shift_options(ppm: str | None, percent: str | None) -> dict[str, Any]:
    if ppm is None and percent is None:
        return {}
    if ppm is None or percent is None:
        msg = "chemical-shift displacement needs both --ppm and --percent-per-ppm"
        raise ValueError(msg)
    rate = _numbers(percent, len(words(percent)) if len(words(percent)) == 1 else 3, "--percent-per-ppm")
    low, high = _numbers(ppm, 2, "--ppm")
    return {"ppm_range": (low, high), "percent_per_ppm": rate if len(rate) == 3 else rate[0]}


def _labels(text: str | None, option: str) -> list[int] | None:
    if text is None:
        return None
    if not all(word.isdecimal() for word in words(text)) or not words(text):
        msg = f"{option} needs whole numbers with commas between them, not {text!r}"
        raise ValueError(msg)
    return [int(word) for word in words(text)]


def _case_table(cases: Path, image: Path | None, exclude: str | None) -> pd.DataFrame:
    """Read the table of cases, or make one of a single file."""
    import pandas as pd

    from dmrifit.derivatives import stem

    if not cases.is_file():
        msg = f"{cases}: no such file"
        raise FileNotFoundError(msg)
    if cases.suffix != ".tsv":
        row = {"name": stem(cases), "tumor": str(cases), "image": str(image or ""), "exclude": exclude or ""}
        return pd.DataFrame([row])
    if image is not None:
        msg = "--image is for a single case; name images in a column of the table"
        raise ValueError(msg)
    table = pd.read_csv(cases, sep="\t", dtype=str).fillna("")
    missing = [name for name in ("name", "tumor") if name not in table]
    if missing or not len(table):
        msg = f"{cases} needs the columns name and tumor and a row for each case; no {', '.join(missing) or 'rows'}"
        raise ValueError(msg)
    unsafe = [name for name in table["name"] if not name or Path(name).name != name or name.startswith(".")]
    if unsafe or table["name"].duplicated().any():
        what = f"not {unsafe}" if unsafe else "one is there twice"
        msg = f"{cases}: names of cases become names of folders and must differ, such as 'case-01'; {what}"
        raise ValueError(msg)
    for column in ("tumor", "image", "exclude"):
        given = table[column] if column in table else pd.Series([""] * len(table))
        # Labels are no files; files are relative to the table.
        table[column] = [
            ",".join(one if one.isdecimal() else str(cases.parent / one) for one in words(text)) for text in given
        ]
    if exclude is not None:
        table["exclude"] = exclude
    return table


def _scene(row: Any, include: str | None, margin: float) -> Scene:
    from placement.scene import Scene

    excluded = words(row.exclude)
    labels = bool(excluded) and all(word.isdecimal() for word in excluded)
    regions: Any = [int(word) for word in excluded] if labels else {Path(word).name: word for word in excluded}
    return Scene.read(
        row.tumor,
        regions or None,
        row.image or None,
        include=_labels(include, "--include"),
        exclude_margin=margin if excluded else 0.0,
        name=row.name,
    )


def _read_boxes(path: Path, names: list[str]) -> pd.DataFrame:
    import pandas as pd

    table = pd.read_csv(path, sep="\t", dtype={"name": str})
    missing = [name for name in ("name", *_NUMBERS) if name not in table]
    if missing:
        msg = f"{path} lacks the columns {', '.join(missing)}"
        raise ValueError(msg)
    absent = sorted(set(names) - set(table["name"]))
    if absent:
        msg = f"{path} has no box for {', '.join(absent[:5])}"
        raise ValueError(msg)
    return table


def _in_order(boxes: pd.DataFrame, names: list[str]) -> Any:
    if boxes["name"].duplicated().any():
        msg = f"more than one box for {boxes['name'][boxes['name'].duplicated()].iloc[0]}"
        raise ValueError(msg)
    return boxes.set_index("name").reindex(names)[list(_NUMBERS)].to_numpy(dtype=float)


def _begin(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Remember what a run was started with, so that another one does not go on with it."""
    from dmrifit.files import write_text

    path = out / "settings.json"
    if path.exists() and not overwrite:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if changed:
            msg = f"{out} holds a run with other options ({', '.join(changed)}); choose another folder, or --overwrite"
            raise ValueError(msg)
    write_text(path, json.dumps(settings, indent=2) + "\n")


def _progress(rows: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(rows, total=total, unit="case", disable=None)


def _write_batch(out: Path, contents: dict[str, dict[str, Any]], *, figure: bool) -> None:
    """Write the table of all cases, and the page with their overlays."""
    import pandas as pd

    from dmrifit.files import write_text

    rows = []
    for name, content in contents.items():
        pose = [*content["ras"]["center_mm"], *content["size_mm"], *content["ras"]["angles_deg"]]
        numbers = {key: content["scores"][key] for key in ("objective", "tumor_fraction", "tumor_volume_ml")}
        flags = "; ".join(content["flags"])
        row = {"name": name, **dict(zip(_NUMBERS, pose, strict=True)), "volume_ml": content["volume_ml"], **numbers}
        rows.append(row | {"rotated_axes": content["rotated_axes"], "flags": flags})
    table = pd.DataFrame(rows)
    write_text(out / "placements.tsv", table.to_csv(sep="\t", index=False))
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
