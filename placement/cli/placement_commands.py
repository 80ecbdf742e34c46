"""Commands of single voxels: place, prescribe, read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmrifit.cli.console import FigureOption, OutOption, OverwriteOption, check_output
from dmrifit.cli.options import floats, say_folder
from dmrifit.report.html import counted
from placement.cli.case_runs import RUN, write_batch
from placement.cli.options import (
    CasesArgument,
    ExcludeOption,
    ImageOption,
    IncludeOption,
    LeastVolumeOption,
    MarginOption,
    PpmOption,
    RateOption,
    RotationsOption,
    SidesOption,
    ToleranceOption,
    constraints_of,
    labels_of,
    shift_options,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXAMPLES", "place", "prescribe", "read"]


def place(
    cases: CasesArgument,
    out: OutOption,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Model file from train; the optimizer by default."),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    margin: MarginOption = 0.0,
    tolerance: ToleranceOption = 0.0,
    image: ImageOption = None,
    min_volume: LeastVolumeOption = 6.0,
    max_rotations: RotationsOption = 3,
    sides: SidesOption = "10,60",
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Search from more starting points (optimizer).")
    ] = False,
    rounding: Annotated[
        bool, typer.Option(help="Round to 0.1 mm, 1 mm sides and 0.1 degrees.")
    ] = True,
    ppm: PpmOption = None,
    percent_per_ppm: RateOption = None,
    figure: FigureOption = True,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Place a voxel in every case, and write prescriptions. Not for clinical use.

    The optimizer maximizes the objective within the constraints; a model places as it has learned,
    and broken constraints become flags. Writes a folder for each case, the table placements.tsv
    and a page with all overlays. An interrupted run resumes when started again with the same
    options.
    """
    from dmrifit.io.nifti import file_record
    from placement.exchange.prescription import write_prescription
    from placement.exchange.tables import (
        IMAGES,
        excluded_names,
        read_cases,
        read_scene,
        source_digests,
    )
    from placement.search.optimizer import CONSOLE, VoxelOptimizer

    if model is not None and thorough:
        raise ValueError("--thorough is for the optimizer; leave out --thorough or --model")
    optimizer = VoxelOptimizer(
        **constraints_of(sides, min_volume, max_rotations),
        thorough=thorough,
        rounding=CONSOLE if rounding else None,
        random_state=seed,
    )
    say_folder(cases, IMAGES)
    table = read_cases(cases, image=image, exclude=exclude)
    labels = labels_of(include)
    shift = shift_options(ppm, percent_per_ppm)
    placer = optimizer if model is None else _trained(model, table)
    settings = {
        "command": "place",
        # Its repr holds all parameters, so that a run with other ones is not resumed.
        "optimizer": repr(optimizer),
        "include": include,
        "exclude": exclude,
        "margin": margin,
        "tolerance": tolerance,
        "model": None if model is None else file_record(model)["SHA256"],
    }
    RUN.begin(out, settings | shift, overwrite)

    def place_in(row: Any, folder: Path) -> dict[str, Any]:
        scene = read_scene(row, include=labels, margin=margin, tolerance=tolerance)
        voxel = placer.place(scene)
        # The optimizer rounds within its constraints; boxes of models are rounded afterwards.
        if model is not None and rounding:
            voxel = optimizer.rounded(voxel, scene)
        return write_prescription(
            voxel, scene, folder, optimizer=optimizer, figure=figure, overwrite=True, **shift
        )

    def is_current(row: Any, record: dict[str, Any]) -> bool:
        is_same_row = record["synthetic"] == row.synthetic
        is_same_row = is_same_row and set(record["regions"]) == excluded_names(row)
        return is_same_row and bool(record["sources"] == source_digests(row))

    rows = {row.name: row for row in table.itertuples()}
    records = RUN.process(rows, out, place_in, is_current, overwrite=overwrite)
    write_batch(out, dict(zip(rows, records, strict=True)), figure=figure)
    typer.echo(f"{counted(len(records), 'case')} placed: {out}")
    if any(record["synthetic"] for record in records):
        typer.echo("synthetic cases: no clinical result")


def prescribe(
    tumor: Annotated[Path, typer.Argument(metavar="TUMOR", help="NIfTI mask of the tumor.")],
    center: Annotated[str, typer.Option(metavar="X,Y,Z", help="Center in mm, RAS+.")],
    size: Annotated[str, typer.Option(metavar="X,Y,Z", help="Sides in mm.")],
    out: OutOption,
    angles: Annotated[
        str, typer.Option(metavar="A,B,C", help="Intrinsic XYZ Euler angles in degrees.")
    ] = "0,0,0",
    matrix: Annotated[
        Path | None,
        typer.Option(
            help="Text file of a 4 x 4 matrix that moves the box from its scan to TUMOR, in mm "
            "RAS+."
        ),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    margin: MarginOption = 0.0,
    tolerance: ToleranceOption = 0.0,
    image: ImageOption = None,
    ppm: PpmOption = None,
    percent_per_ppm: RateOption = None,
    figure: FigureOption = True,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Evaluate a voxel placed by hand, and write its prescription. Not for clinical use.

    The box may come from an earlier scan: --matrix moves it to TUMOR.
    """
    from dmrifit._utils.text_files import read_numbers
    from placement.box.voxel import Voxel
    from placement.exchange.prescription import write_prescription
    from placement.exchange.tables import read_cases, read_scene

    voxel = Voxel(
        floats("--center", center, 3), floats("--size", size, 3), floats("--angles", angles, 3)
    )
    if matrix is not None:
        try:
            voxel = voxel.transform(read_numbers(matrix))
        except ValueError as error:
            # Errors of reading name the file already, those of the numbers do not.
            if str(matrix) in str(error):
                raise
            raise ValueError(f"{matrix}: {error}; write four rows of four numbers") from None
    row = next(read_cases(tumor, image=image, exclude=exclude).itertuples())
    scene = read_scene(row, include=labels_of(include), margin=margin, tolerance=tolerance)
    content = write_prescription(
        voxel,
        scene,
        out,
        figure=figure,
        overwrite=overwrite,
        **shift_options(ppm, percent_per_ppm),
    )
    scores = content["scores"]
    volume = f"{content['volume_ml']:.2f} mL"
    fraction = f"tumor fraction {scores['tumor_fraction']:.3f}"
    objective = f"objective {scores['objective']:.3f}"
    typer.echo("; ".join([volume, fraction, objective, *content["flags"]]))


def read(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Philips .SPAR, Siemens .rda or DICOM, NIfTI-MRS, or JSON of this program.",
        ),
    ],
    image: Annotated[
        Path | None, typer.Option(help="Image of the same session, to draw the box on.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Picture (.png) of the box on --image.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Read the box of a spectrum from a scanner's file. Not for clinical use.

    Prints center, sides and angles, and the side on which the box lies; draws it on an image.
    """
    from placement.exchange.prescription import describe_side
    from placement.exchange.voxel_files import read_voxel_file

    if (out is None) != (image is None):
        raise ValueError("a picture needs both --image, to draw the box on, and --out")
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} is a picture; give a name that ends in .png")
    record = read_voxel_file(file)
    if out is not None and image is not None:
        check_output(out, overwrite)
        _draw(record.voxel, file, image, out)
    numbers = {
        "center, mm RAS+": record.voxel.center,
        "sides, mm": record.voxel.size,
        "angles, degrees": record.voxel.angles,
    }
    typer.echo(f"{record.source}: {record.voxel.volume:.2f} mL; {describe_side(record.voxel)}")
    for name, three in numbers.items():
        typer.echo(f"{name}: {', '.join(f'{number + 0.0:.3f}' for number in three)}")
    frame = record.frame or "unknown"
    date = record.date or "unknown"
    typer.echo(f"frame of reference: {frame}; date: {date}")
    if out is not None:
        typer.echo(f"picture: {out}")


def _draw(voxel: Any, file: Path, image: Path, out: Path) -> None:
    """Draw a box on an image of the same session."""
    import numpy as np

    from dmrifit.io.atomic_files import whole_file
    from dmrifit.io.grids import three_axes
    from dmrifit.io.nifti import check_position, load_image, values_of
    from placement.exchange.overlays import plot_box

    loaded = load_image(image)
    check_position(loaded, str(image))
    index = np.linalg.inv(loaded.affine) @ np.append(voxel.center, 1.0)
    if not ((index[:3] > -0.5) & (index[:3] < np.array(loaded.shape[:3]) - 0.5)).all():
        raise ValueError(
            f"the center of the box of {file} lies outside {image}; give an image of the session "
            "in which the spectrum was measured"
        )
    values = three_axes(values_of(loaded, str(image)), image)
    if not np.isfinite(values).any():
        raise ValueError(f"{image} holds no finite value")
    figure = plot_box(voxel, values, loaded.affine)
    with whole_file(out) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")


def _trained(path: Path, table: pd.DataFrame) -> Any:
    """Read a placer, and check that the cases have the images that it needs."""
    from dmrifit.model_files.model_file import load_model
    from placement.exchange.tables import check_channels

    # Importing the classes registers them with load_model.
    from placement.learned import ranker, regressor  # noqa: F401

    placer = load_model(path)
    if not hasattr(placer, "place"):
        raise ValueError(
            f"{path} holds a {type(placer).__name__}, which places no voxels; dmrifit-placement "
            "train makes placers"
        )
    check_channels(placer, table)
    return placer


#: Commands, with the line that their help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    place: "dmrifit-placement place cases/cases.tsv --out placed",
    prescribe: "dmrifit-placement prescribe tumor.nii.gz --center 10,20,30 --size 20,20,20 --out "
    "voxel",
    read: "dmrifit-placement read scan.SPAR --image t1.nii.gz --out box.png",
}
