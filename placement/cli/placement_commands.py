"""Commands of single voxels, place, prescribe and read; their options, and the page of a run."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmrifit._utils.checks import errors_about
from dmrifit._utils.counts import counted, percent
from dmrifit.cli.case_runs import CaseRun, RunOptions, RunPage
from dmrifit.cli.options import given, trained_model
from dmrifit.report import page
from placement.search.tissue_labels import named_labels

if TYPE_CHECKING:
    from dmrifit.imaging.head_steps import HeadSpan

_TEXTS = page.Texts(__file__)


@dataclass(frozen=True)
class TargetOptions:
    """What counts as tumor in a case: the target of a box."""

    include: tuple[int, ...] | None = None
    labels: str | None = None
    flair_target: bool = False

    def of_scene(self) -> dict[str, Any]:
        """Give the options of `read_scene`."""
        labels = None if self.labels is None else named_labels(self.labels)
        return {"include": self.include, "labels": labels, "flair_target": self.flair_target}


@dataclass(frozen=True)
class RegionOptions(TargetOptions):
    """Files and regions of a case: the target of a box, and what the box may not overlap."""

    exclude: str | None = None
    margin: float = 0.0
    tolerance: float = 0.0
    image: Path | None = None
    brain: str = "auto"
    brain_margin: float = 2.0

    def of_cases(self) -> dict[str, Any]:
        """Give the options of `read_cases`."""
        return {"image": self.image, "exclude": self.exclude, "brain": self.brain}

    def of_scene(self) -> dict[str, Any]:
        """Give the options of `read_scene`."""
        names = ("margin", "tolerance", "brain_margin")
        return super().of_scene() | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ShiftOptions:
    """Chemical-shift displacement of a box."""

    ppm: tuple[float, float] | None = None
    percent_per_ppm: tuple[float, ...] | None = None
    bandwidth: tuple[float, ...] | None = None
    tesla: float = 3.0
    carrier: float = 2.3
    metabolite: float = 3.2

    def of_prescription(self) -> dict[str, Any]:
        """Give the range of chemical shifts and their displacement; empty without either."""
        if self.bandwidth is not None:
            from placement.exchange.displacement import pulse_displacement

            if self.ppm is not None or self.percent_per_ppm is not None:
                raise ValueError("give --bandwidth, or --ppm and --percent-per-ppm, not both")
            return pulse_displacement(self.bandwidth, self.tesla, self.carrier, self.metabolite)
        rate = self.percent_per_ppm
        if (self.ppm is None) != (rate is None):
            raise ValueError("chemical-shift displacement needs both --ppm and --percent-per-ppm")
        if rate is None:
            return {}
        if len(rate) not in (1, 3):
            text = ",".join(f"{number:g}" for number in rate)
            raise ValueError(f"--percent-per-ppm {text}: give one number, or 3 with commas")
        return {"ppm_range": self.ppm, "percent_per_ppm": rate if len(rate) == 3 else rate[0]}


def case_line(name: str, content: Mapping[str, Any], command: str) -> str:
    """Say in one line what was placed, what is wrong with it, and by which command to mend it."""
    from placement.exchange.pages import summary_line
    from placement.exchange.prescription import PRESCRIBE

    result, _, details = summary_line(content).partition("; ")
    words = [f"{name}: {result}", *content["advice"], *content["notes"], details]
    if content["console"]["withheld"]:
        words.insert(1, f"no numbers for consoles: {content['console']['withheld']}")
    elif content["console"]["forced"]:
        words.insert(1, f"numbers for consoles forced: {content['console']['forced']}")
    return "; ".join(words).replace(PRESCRIBE, command)


def broken(line: str) -> str:
    """Break a line at 100 columns, but no command, which is copied, nor a number with its unit."""
    whole = r"dmrifit-placement prescribe .+? --angles=[^ )]+| (?=[%×]|m[mL]\b)|(?<=[×≥=]) "
    line = re.sub(whole, lambda found: found[0].replace(" ", "\0"), line)
    text = textwrap.fill(
        line, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return text.replace("\0", " ")


def _page(out: Path, contents: Mapping[str, Mapping[str, Any]], _lesions: Any) -> RunPage:
    """Make the page of all cases, with their overlays."""
    from placement.exchange.pages import box_assets, case_summary, console_numbers, rotation_words
    from placement.exchange.vendor_texts import NOTICE

    lines, pictures = [], []
    for name, content in contents.items():
        flags = "; ".join(content["flags"]) or "none"
        lines.append(_row(name, content) | {"rotation": rotation_words(content), "flags": flags})
        parts = RUN.shown(out / name, {"voxel_overlay.png": f"Voxel of {name} in three planes"})
        pictures.append((name, [case_summary(content), *parts, console_numbers(content)]))
    table = page.Table(lines, _TEXTS["overview"])
    return RunPage("Voxels", [table], pictures, _TEXTS["sides"], f"{NOTICE}.", **box_assets())


def _row(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of a case in the table of placements."""
    from placement.exchange.tables import record_columns

    return {
        "name": name,
        **record_columns(content),
        "volume_mL": content["volume_mL"],
        **content["scores"],
        **{key: content[key] for key in ("rotated_axes", "rotated_angles")},
        **content["content"],
        "flags": "; ".join(content["flags"]),
        "placed_by": content["placed_by"],
    }


RUN = CaseRun(
    record="{name}/voxel.json",
    table="placements.tsv",
    bids="anat/*_mask.nii*",
    row=_row,
    page=_page,
    # The boxes keep their digits for evaluate, which reads them from the table.
    digits=12,
    pictures=("voxel_overlay.png", "voxel_view.html"),
    files=(
        *("voxel_mask.nii.gz", "voxel_partial.nii.gz", "voxel_geometry.nii.gz"),
        *("voxel_philips.txt", "voxel_siemens.txt"),
    ),
    flag="flags",
)


def place(
    cases: list[Path],
    /,
    *,
    model: Path | None = None,
    region: RegionOptions,
    published: bool = False,
    min_volume: float = 6.0,
    max_rotations: int | None = None,
    sides: tuple[float, float] = (10.0, 60.0),
    thorough: bool = False,
    rounding: bool = True,
    displacement: ShiftOptions,
    force: str = "",
    seed: int = 0,
    run: RunOptions,
) -> None:
    """
    Place a voxel in every case, and write prescriptions. Not for clinical use.

    The optimizer maximizes the objective within the constraints; a model places as it has learned,
    and broken constraints become flags. Writes a folder for each case, the table placements.tsv
    and a page with all overlays. Numbers for consoles are withheld where less than half of the box
    is target, or brain. Cases of a table that lack a file, and cases that fail, are listed in
    failed.tsv. An interrupted run resumes when started again with the same options. CASES may also
    be several masks, a glob or a BIDS folder, of which sub-*/[ses-*/]anat/*_mask.nii* are placed.
    NAME_image, NAME_exclude and NAME_brain beside a mask NAME belong to it; in BIDS, desc-brain
    masks are the brains of the other masks beside them.

    Options:
    model FILE: Model file from train; the optimizer by default.
    published: Place as the study did: the whole tumor is the target, boxes turn freely, and the
        brain is not looked at.
    max_rotations 0..3: Number of angles to set on the console; 2, and 3 with --published.
    thorough: Search from more starting points (optimizer).
    rounding: Round to 0.1 mm, 1 mm sides and 0.1 degrees, if no limit forbids it.

    Example: dmrifit-placement place cases/cases.tsv --out placed
    """
    from dmrifit.io.bids_derivatives import file_record
    from placement.exchange import tables
    from placement.exchange.displacement import placed_in_brain
    from placement.exchange.prescription import check_reason, write_prescription
    from placement.learned.ranker import VoxelRanker
    from placement.learned.regressor import VoxelRegressor
    from placement.search.objective import PlacementObjective
    from placement.search.optimizer import CONSOLE, VoxelOptimizer

    check_reason(force)
    if published and region.flair_target:
        raise ValueError("--flair-target is not for --published; leave out one of them")
    if published and region.brain == "auto":
        region = replace(region, brain="none")
    if model is not None and thorough:
        raise ValueError("--thorough is for the optimizer; leave out --thorough or --model")
    limits: dict[str, Any] = {"size_range": sides, "min_volume": min_volume}
    optimizer = VoxelOptimizer(**limits, thorough=thorough, random_state=seed)
    if published:
        optimizer.set_params(objective=PlacementObjective(), max_rotations=3, max_aspect=None)
    grid = CONSOLE if rounding else None
    optimizer.set_params(**given(max_rotations=max_rotations, rounding=grid))
    scene_options = region.of_scene()
    source, _ = RUN.named_cases(cases, tables.IMAGES)
    failed: list[dict[str, str]] = []
    table = tables.read_cases(source, **region.of_cases(), failed=failed)
    shift = displacement.of_prescription()
    placer: Any = optimizer
    digest, placed_by = None, " ".join(repr(optimizer).split())
    if model is not None:
        remedy = "places no voxels; dmrifit-placement train makes placers"
        placer = trained_model(model, (VoxelRanker, VoxelRegressor), remedy)
        tables.check_channels(placer, table)
        digest = file_record(model)["SHA256"]
        placed_by = f"{type(placer).__name__} of {model.name} (SHA-256 {digest})"
    options = shift | {"optimizer": optimizer, "force": force, "figure": run.figure}
    settings = {
        "command": "place",
        **optimizer.get_params(deep=False),
        "objective": "published" if published else None,
        "model": digest,
        "force": force,
        "exclude": region.exclude,
        "brain": region.brain,
        **scene_options,
    }
    tissues = scene_options["labels"]
    if published and tissues is not None and region.include is None:
        scene_options["include"] = [value for values in tissues.values() for value in values]
        region = replace(region, include=tuple(scene_options["include"]))
    groups = region, displacement
    commands = {row.name: tables.prescribe_command(row, *groups) for row in table.itertuples()}

    def place_in(row: Any, folder: Path) -> dict[str, Any]:
        scene = tables.read_scene(row, **scene_options, min_volume=min_volume)
        if model is None:
            voxel, scene = placed_in_brain(placer, scene, shift)
        else:
            voxel = placer.place(scene)
            # The optimizer rounds within its constraints; boxes of models are rounded afterwards.
            if rounding:
                voxel = optimizer.rounded(voxel, scene)
        remarks = tables.case_remarks(row, scene) | {"placed_by": placed_by}
        return write_prescription(voxel, scene, folder, overwrite=True, **remarks, **options)

    RUN.run(
        list(table.itertuples()),
        settings | shift,
        run,
        work=place_in,
        inputs=lambda row: {"synthetic": row.synthetic, "sources": tables.source_digests(row)},
        is_whole=lambda row, record: tables.is_current(row, record, tissues),
        say=lambda records: [
            *(broken(case_line(name, records[name], commands[name])) for name in records),
            f"{counted(len(records), 'case')} placed: {run.out}",
        ],
        failed=failed,
    )


def prescribe(
    tumor: Path,
    /,
    *,
    center: tuple[float, float, float],
    size: tuple[float, float, float],
    out: Path,
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    matrix: Path | None = None,
    region: RegionOptions,
    displacement: ShiftOptions,
    force: str = "",
    fail_on_flag: bool = False,
    figure: bool = True,
    overwrite: bool = False,
) -> None:
    """
    Evaluate a voxel placed by hand, and write its prescription. Not for clinical use.

    The box may come from an earlier scan: --matrix moves it to TUMOR. The objective that is
    printed is the placement's score from 0 to 1: volume and fraction of the target, against those
    of experts' boxes; a low score is not an error.

    Options:
    tumor TUMOR: NIfTI mask of the tumor; probabilities count as parts of voxels.
    center X,Y,Z: Center in mm, RAS+.
    size X,Y,Z: Sides in mm.
    angles A,B,C: Intrinsic XYZ Euler angles in degrees.
    matrix: Text file of a 4 x 4 matrix from mm RAS+ of the scan of the box to mm RAS+ of TUMOR, as
        in repeat.json; PriorMatrix of dmrifit-metastasis prepare is the inverse (new to prior).

    Example: dmrifit-placement prescribe tumor.nii.gz --center 10,20,30 --size 20,20,20 --out voxel
    """
    from dmrifit._utils.text_files import read_numbers
    from placement.box.voxel import Voxel
    from placement.exchange.prescription import center_is_inside, check_reason, write_prescription
    from placement.exchange.tables import case_remarks, prescribe_command, read_cases, read_scene
    from placement.exchange.voxel_files import check_angles

    # Before the scans are read, and a brain is searched.
    check_reason(force)
    voxel = Voxel(center, size, angles)
    if matrix is not None:
        numbers = read_numbers(matrix)
        with errors_about(str(matrix), "; write four rows of four numbers"):
            voxel = voxel.transform(numbers)
    row = next(read_cases(tumor, **region.of_cases()).itertuples())
    scene = read_scene(row, **region.of_scene())
    if not center_is_inside(voxel, scene.shape, scene.affine):
        place = ", ".join(f"{x:g}" for x in voxel.center)
        raise ValueError(_TEXTS("outside_scan", center=place, scan=scene.name))
    check_angles(voxel.angles, "the angles")
    options = displacement.of_prescription() | {"placed_by": "numbers given to prescribe"}
    options |= {"force": force, "figure": figure, "overwrite": overwrite}
    command = prescribe_command(row, region, displacement)
    content = write_prescription(voxel, scene, out, **case_remarks(row, scene), **options)
    typer.echo(broken(case_line(scene.name, content, command)))
    words = {"targets": " or ".join(content["targets"]), "out": out}
    words["more"] = " or more" if content["objective"]["one_sided"] else ""
    typer.echo(_TEXTS("scores", **(content["objective"] | content["scores"] | words)))
    RUN.say_flagged([content], fail=fail_on_flag)


def read(
    file: Path,
    /,
    image: Path | None = None,
    tissue: dict[str, Path] | None = None,
    out: Annotated[Path | None, ".png"] = None,
    overwrite: bool = False,
) -> None:
    """
    Read the box of a spectrum from a scanner's file. Not for clinical use.

    Prints center, sides and angles, the side on which the box lies, and the tissue in it; draws it
    on an image.

    Options:
    file FILE: Philips .SPAR, Siemens .rda or DICOM, NIfTI-MRS, or JSON of this program.
    image: Image of the same session, to draw the box on.
    tissue NAME=FILE: Map of a tissue, 0 to 1, in the same space, such as gray=c1t1.nii.gz;
        repeatable. Prints how much of the box it fills.
    out: Picture (.png) of the box on --image.

    Example: dmrifit-placement read scan.SPAR --image t1.nii.gz --out box.png
    """
    from placement.exchange.displacement import tissue_share
    from placement.exchange.pages import ANGLES, rotation_words
    from placement.exchange.prescription import describe_side
    from placement.exchange.vendor_texts import console_angles
    from placement.exchange.voxel_files import day_of, read_voxel_file

    if (out is None) != (image is None):
        raise ValueError("a picture needs both --image, to draw the box on, and --out")
    record = read_voxel_file(file)
    shares = {name: tissue_share(record.voxel, path) for name, path in (tissue or {}).items()}
    span = None
    if out is not None and image is not None:
        span, in_head = _draw(record.voxel, file, image, out)
        _check_source(record, file, image, in_head)
    voxel = record.voxel
    rotation = rotation_words({"console": {"angles": console_angles(voxel)}})
    typer.echo(f"{record.source}: {voxel.volume:.2f} mL; {rotation}; {describe_side(voxel, span)}")
    pose = {"center, mm RAS+": voxel.center, "sides, mm": voxel.size}
    for name, three in (pose | {ANGLES: voxel.angles}).items():
        typer.echo(f"{name}: {', '.join(f'{number:z.3f}' for number in three)}")
    frame, date = record.frame or "unknown", day_of(record.date) or "unknown"
    typer.echo(f"frame of reference: {frame}; date: {date}")
    for name, share in shares.items():
        typer.echo(f"{name}: {100 * share:.1f} % of the box")
    if out is not None:
        typer.echo(f"picture: {out}")


def _check_source(record: Any, file: Path, image: Path, in_head: float) -> None:
    """Warn of a box that may be of another person or session than the image that shows it."""
    from dmrifit.io.bids_derivatives import file_record
    from placement.exchange.repeats import doubtful_session

    doubt = ""
    if not record.placed_in:
        if reason := doubtful_session(record, image):
            share = percent(round(in_head, 3))
            doubt = _TEXTS("doubtful", file=file, image=image, reason=reason, share=share)
    elif file_record(image)["SHA256"] not in record.placed_in:
        names = ", ".join(sorted(set(record.placed_in.values())))
        doubt = _TEXTS("elsewhere", file=file, image=image, names=names)
    if doubt:
        warnings.warn(doubt, UserWarning, stacklevel=2)


def _draw(voxel: Any, file: Path, image: Path, out: Path) -> tuple[HeadSpan, float]:
    """Draw a box on an image; give the head's reach along x, and how much of the box is in it."""
    import numpy as np

    from dmrifit.imaging.head_steps import HeadSpan
    from dmrifit.io.atomic_files import FileSet
    from dmrifit.io.grids import three_axes
    from dmrifit.io.nifti import load_image, values_of
    from placement.exchange.overlays import plot_box
    from placement.exchange.prescription import center_is_inside, head_share

    loaded = load_image(image)
    if not center_is_inside(voxel, loaded.shape[:3], loaded.affine):
        raise ValueError(_TEXTS("outside_image", file=file, image=image))
    values = three_axes(values_of(loaded, str(image)), image)
    if not np.isfinite(values).any():
        raise ValueError(f"{image} holds no finite value")
    figure = plot_box(voxel, values, loaded.affine, "", {})
    with FileSet(out.parent, [out.name], overwrite=True) as files:
        figure.savefig(files.path(out.name), dpi=110, format="png")
    return HeadSpan.of(values, loaded.affine), head_share(voxel, values, loaded.affine)
