"""Tables of cases and of boxes, as files with tabs."""

from __future__ import annotations

import glob
import shlex
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray

from dmrifit._utils.counts import first_few
from dmrifit._utils.text_files import check_file
from dmrifit.io import case_tables
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import turn_to_grid
from dmrifit.io.nifti import describe_sources, load_image, values_of
from dmrifit.io.tables import read_rows
from placement.exchange.prescription import FORMAT_VERSION
from placement.search.scene import Scene
from placement.search.tissue_labels import OUTSIDE_BRAIN, UNCHECKED_BRAIN, named_labels

#: Columns of a box: center in mm RAS+, sides in mm, angles in degrees.
BOX = ("x", "y", "z", "size_x", "size_y", "size_z", "angle_x", "angle_y", "angle_z")

#: Columns of images, that of the tumor first.
IMAGES = ("tumor", "image", "exclude", "brain")

#: What may stand in place of the mask of a brain.
_WORDS = ("auto", "none")

#: A brain that was found in an image and leaves out more of the tumor is not used.
_MOST_CUT_OFF = 0.1


def read_cases(
    path: str | Path | Sequence[Path],
    *,
    image: str | Path | None = None,
    exclude: str | None = None,
    brain: str = "none",
    failed: list[dict[str, str]] | None = None,
) -> pd.DataFrame:
    """
    Read a table of cases, or make one of a folder of masks, of masks, or of a single mask.

    Images beside masks belong to them by their names; in BIDS, desc-brain masks are the brains of
    other masks, and no tumors.
    Rows that lack a file go into `failed`, where it is given; by default the first one raises.
    """
    if isinstance(path, str | Path):
        path = Path(path)
        if not path.is_dir() and path.suffix.lower() not in (".tsv", ".csv"):
            if stem(path).endswith(case_tables.BRAIN_MASK):
                raise ValueError(f"{path} is named as the mask of a brain; name that of a tumor")
            row = {
                "name": stem(path),
                "tumor": str(path),
                "image": str(image or ""),
                "exclude": exclude or "",
                "brain": "" if brain == "auto" else brain,
            }
            row |= _companions(path, row)
            row["brain"] = row["brain"] or brain
            files = {column: row[column] for column in IMAGES} | {"brain": _brain_file(brain)}
            for column, text in files.items():
                for file in _files(column, text):
                    check_file(file)
            return pd.DataFrame([row | {"synthetic": False}])
    for option, given in (("image", image), ("brain", _brain_file(brain))):
        if given:
            raise ValueError(
                f"--{option} FILE is for a single case; name images like the masks, such as "
                f"NAME_{option}.nii.gz, or in a column of a table"
            )
    replaced = () if exclude is None else ("exclude",)
    rows = complete_rows(path, ("tumor",), IMAGES, failed, replaced=replaced)
    if not isinstance(path, Path) or case_tables.folder_table(path).is_dir():
        rows = [row for row in rows if case_tables.BRAIN_MASK not in Path(row["tumor"]).name]
        rows = [row | _companions(Path(row["tumor"]), row) for row in rows]
        if not rows and not failed:
            raise FileNotFoundError(
                f"{path}: only masks of brains (*{case_tables.BRAIN_MASK}); name masks of tumors"
            )
    table = pd.DataFrame(rows, columns=None if rows else ["name", *IMAGES, "synthetic"])
    if exclude is not None:
        for file in _files("exclude", exclude):
            check_file(file)
        table["exclude"] = exclude
    # The mask of a brain takes the place of searching it.
    table["brain"] = [brain if brain == "none" or not mask else mask for mask in table["brain"]]
    return table


def complete_rows(
    source: Path | Sequence[Path],
    required: Sequence[str],
    columns: Sequence[str],
    failed: list[dict[str, str]] | None = None,
    *,
    replaced: Collection[str] = (),
) -> list[dict[str, Any]]:
    """
    Read the rows of a table, a folder or of images, with the paths of the files in some columns.

    Rows that lack a file go into `failed`, where it is given; by default the first one raises.
    Files in columns that an option has `replaced` may be missing.
    """
    folder = Path()
    if isinstance(source, Path):
        folder = source if source.is_dir() else source.parent
    rows = []
    for place, row in case_tables.named_rows(source, required, columns):
        problems = []
        for column in columns:
            row[column] = _beside(folder, column, row.get(column, ""))
            if column in replaced:
                continue
            for path in _files(column, row[column]):
                try:
                    check_file(path)
                except FileNotFoundError as error:
                    problems.append(str(error))
        if not problems:
            rows.append(row)
            continue
        problem = f"{place}: {'; '.join(problems)}; files are relative to the table"
        if failed is None:
            raise FileNotFoundError(problem)
        failed.append({"name": row["name"], "problem": problem})
    return rows


def read_scene(
    row: Any, *, margin: float = 0.0, tolerance: float = 0.0, image: bool = True, **options: Any
) -> Scene:
    """
    Read the files of a case, with further options of `Scene.read`.

    The mask of the brain is the file in the column brain, or found in the image (auto).
    """
    if isinstance(options.get("labels"), str):
        options["labels"] = named_labels(options["labels"])
    excluded = _excluded(row, options.get("labels"))
    if (margin or tolerance) and not excluded:
        message = "margin and tolerance have no effect, because nothing is excluded (--exclude)"
        warnings.warn(f"{row.name}: {message}", UserWarning, stacklevel=2)
    return Scene.read(
        row.tumor,
        excluded or None,
        (row.image or None) if image else None,
        exclude_margin=margin if excluded else 0.0,
        exclude_tolerance=tolerance if excluded else 0.0,
        brain=_brain_mask(row),
        name=row.name,
        synthetic=row.synthetic,
        **options,
    )


def is_current(row: Any, record: Mapping[str, Any], labels: Mapping[str, Any] | None) -> bool:
    """Tell whether a record is of this version, and of a box that keeps off the same regions."""
    # Whether a brain is found in an image is known only after reading it.
    found = {OUTSIDE_BRAIN} if record.get("brain") else set()
    is_same = set(record["regions"]) == set(_excluded(row, labels)) | found
    return is_same and record["format_version"] == FORMAT_VERSION


def source_digests(row: Any) -> dict[str, dict[str, str]]:
    """Describe the files of a case as its scene does, without reading images."""
    masks = [Path(word) for word in _entries(row.exclude) if not word.isdecimal()]
    brain = _brain_file(row.brain) or None
    return describe_sources(Tumor=row.tumor, Exclude=masks, Image=row.image or None, Brain=brain)


def prescribe_command(row: Any, *groups: Any) -> str:
    """Write the command of a box in a case, to which advice adds center, sides and angles."""
    words = ["dmrifit-placement", "prescribe", row.tumor]
    # The files of a case count instead of options for all.
    for options, field in [(group, field) for group in groups for field in fields(group)]:
        value = getattr(row if field.name in IMAGES else options, field.name)
        if value not in ("", field.default):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{field.name.replace('_', '-')}" + f"={text}" * (value is not True))
    # Last, as advice on several boxes adds to the name of the folder.
    return shlex.join([*words, "--out", f"{row.name}_box"])


def case_remarks(row: Any, scene: Scene) -> dict[str, Any]:
    """Note that the tumor is counted by parts, and flag that no brain was found in the image."""
    notes, flags = [], []
    if ((scene.occupancy > 0) & (scene.occupancy < 1)).any():
        notes.append("the tumor file holds probabilities, which count as parts of voxels")
    if row.brain == "auto" and row.image and OUTSIDE_BRAIN not in scene.margins:
        flags.append(UNCHECKED_BRAIN)
    return {"notes": notes, "flags": flags}


def check_channels(placer: Any, table: pd.DataFrame) -> None:
    """Check that cases have what a network looks at."""
    for column in ("image", "exclude"):
        lacking = table.loc[table[column] == "", "name"]
        if column in getattr(placer, "channels", ()) and len(lacking):
            raise ValueError(
                f"the network looks at the channel {column}; fill the column {column} of CASES "
                f"for {first_few(lacking.tolist())}"
            )


def box_columns(box: Iterable[float]) -> dict[str, float]:
    """Name the nine numbers of a box."""
    return dict(zip(BOX, box, strict=True))


def record_columns(record: Mapping[str, Any]) -> dict[str, float]:
    """Name the nine numbers of the box of a record, and those of angles to set on consoles."""
    pose = [*record["ras"]["center_mm"], *record["size_mm"], *record["ras"]["angles_deg"]]
    angles = record["console"]["angles"].items()
    return box_columns(pose) | {f"angles_to_set_{vendor}": n for vendor, n in angles}


def read_boxes(path: str | Path, names: Sequence[str], others: Sequence[str] = ()) -> NDArray:
    """Read a box for each case: (n_cases, 9); `others` may have boxes, which are not read."""
    return _in_order(_box_table(Path(path), names, others), names, str(path))


def read_experts(path: str | Path, names: Sequence[str]) -> NDArray[np.float64]:
    """Read the boxes of experts: (n_cases, n_experts, 9), NaN where an expert placed none."""
    boxes = _box_table(Path(path), names)
    # A table without that column is of one expert.
    if "expert" not in boxes:
        return _in_order(boxes, names, str(path))[:, None]
    raters = boxes["expert"].unique()
    numbered = all(rater.isdecimal() for rater in raters)
    # As text, 10 would come before 2.
    raters = sorted(raters, key=int if numbered else str)
    ordered = []
    for rater in raters:
        rows = boxes[boxes["expert"] == rater]
        ordered.append(_in_order(rows, names, f"{path}, expert {rater}"))
    return np.stack(ordered, axis=1)


def _box_table(path: Path, names: Sequence[str], others: Sequence[str] = ()) -> pd.DataFrame:
    rows = read_rows(path, required=("name", *BOX), optional=("expert",))
    table = pd.DataFrame([row for _, row in rows])
    absent = [name for name in names if name not in set(table["name"])]
    if absent:
        raise ValueError(f"{path} has no box for {first_few(absent)}; add it, or omit the case")
    if extra := sorted(set(table["name"]) - {*names, *others}):
        message = f"{path}: boxes of {first_few(extra)} are left out; CASES has no such name"
        warnings.warn(message, UserWarning, stacklevel=3)
    if "expert" in table and (table["expert"] == "").any():
        line = rows[int((table["expert"] == "").argmax())][0]
        raise ValueError(f"{path}, row {line}: no expert; name one, or leave out the column")
    # What is no number becomes NaN here, and is named with its row below.
    boxes = table[list(BOX)].apply(pd.to_numeric, errors="coerce").astype(float)
    broken = ~np.isfinite(boxes).all(axis=1) | (boxes[list(BOX[3:6])] <= 0).any(axis=1)
    if broken.any():
        line, row = rows[int(broken.argmax())]
        numbers = ", ".join(row[name] for name in BOX)
        raise ValueError(
            f"{path}, row {line}: the box of {row['name']} needs nine numbers and sides above 0 "
            f"mm, not {numbers}"
        )
    table[list(BOX)] = boxes
    return table


def _in_order(boxes: pd.DataFrame, names: Sequence[str], title: str) -> NDArray[np.float64]:
    twice = boxes["name"][boxes["name"].duplicated()]
    if len(twice):
        raise ValueError(f"{title}: more than one box for {twice.iloc[0]}; keep one (per expert)")
    return boxes.set_index("name").reindex(list(names))[list(BOX)].to_numpy(dtype=float)


def _excluded(row: Any, labels: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give excluded labels or masks by their names; a tissue names the label that it has alone."""
    entries = _entries(row.exclude)
    if entries and all(entry.isdecimal() for entry in entries):
        tissues = {values[0]: name for name, values in (labels or {}).items() if len(values) == 1}
        return {tissues.get(n, f"label {n}"): n for n in map(int, entries)}
    names = [Path(entry).name for entry in entries]
    regions = {}
    for i, (name, entry) in enumerate(zip(names, entries, strict=True), start=1):
        # Masks of one name lie in different folders, which the name does not show.
        unique = name if names.count(name) == 1 else f"{name} {i}"
        regions[unique] = entry
    return regions


def _brain_file(brain: str) -> str:
    """Give the file of a mask of the brain; empty for the words auto and none."""
    return "" if brain in _WORDS else brain


def _brain_mask(row: Any) -> Any:
    """Give the mask of the brain, which may be found in the image; None without one."""
    if row.brain == "none" or (row.brain == "auto" and not row.image):
        return None
    if row.brain != "auto":
        return row.brain
    from dmrifit.imaging.head_steps import find_brain

    tumor = load_image(row.tumor)
    names = {"name": row.image, "reference_name": row.tumor}
    try:
        mask, _ = find_brain(row.image)
        grid = mask.shape, load_image(row.image).affine
        turn = turn_to_grid(grid, (tumor.shape[:3], tumor.affine), **names)
    except (ImportError, ValueError):
        return None
    mask = apply_orientation(mask, turn)
    labels = values_of(tumor, str(row.tumor))
    # A series is refused when the tumor itself is read.
    if labels.size != np.prod(labels.shape[:3]):
        return None
    is_tumor = np.nan_to_num(labels.reshape(labels.shape[:3])) > 0
    # A mask without much of the tumor is no mask of this brain.
    if (is_tumor & ~mask).sum() > _MOST_CUT_OFF * is_tumor.sum():
        return None
    return mask


def _companions(mask: Path, row: Mapping[str, str]) -> dict[str, str]:
    """Find the images beside a mask that its name says belong to it, for its empty cells."""
    name = glob.escape(stem(mask).removesuffix(f"_{IMAGES[0]}"))
    found = {key: [*mask.parent.glob(f"{name}_{key}.nii*")] for key in IMAGES[1:]}
    # In BIDS, the brain whose labels, such as of subject and session, all stand in its name.
    labels = set(stem(mask).split("_"))
    found["brain"] = found["brain"] or [
        brain
        for brain in mask.parent.glob(f"*_{case_tables.BRAIN_MASK}.nii*")
        if labels.issuperset(stem(brain).removesuffix(f"_{case_tables.BRAIN_MASK}").split("_"))
    ]
    # Of several, none is known to be the right one.
    return {key: str(paths[0]) for key, paths in found.items() if len(paths) == 1 and not row[key]}


def _beside(folder: Path, column: str, text: str) -> str:
    """Give the files of a cell as paths; what is excluded may be several, or labels."""
    if column != "exclude":
        return str(folder / text) if text else ""
    return ",".join(word if word.isdecimal() else str(folder / word) for word in _entries(text))


def _files(column: str, text: str) -> list[Path]:
    """List the files that a cell names."""
    if column != "exclude":
        return [Path(text)] if text else []
    return [Path(entry) for entry in _entries(text) if not entry.isdecimal()]


def _entries(text: str) -> list[str]:
    """Split a cell at its commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
