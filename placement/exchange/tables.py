"""Tables of cases and of boxes, as files with tabs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import first_few
from dmrifit._utils.text_files import check_file
from dmrifit.cli.options import words
from dmrifit.cohort.participants_table import read_synthetic
from dmrifit.io.atomic_files import share_a_name
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.case_tables import folder_rows, folder_table
from dmrifit.io.grids import as_stored
from dmrifit.io.nifti import describe_sources, load_image, values_of
from dmrifit.io.tables import read_rows
from placement.search.scene import Scene
from placement.search.tissue_labels import OUTSIDE_BRAIN

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a box: center in mm RAS+, sides in mm, angles in degrees.
BOX = ("x", "y", "z", "size_x", "size_y", "size_z", "angle_x", "angle_y", "angle_z")

#: Columns of images, that of the tumor first.
IMAGES = ("tumor", "image", "exclude", "brain")

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

    Rows that lack a file go into `failed`, where it is given; by default the first one raises.
    """
    import pandas as pd

    if not isinstance(path, str | Path):
        if image is not None:
            raise ValueError("--image is for a single case; name images NAME_image.nii.gz")
        table = pd.DataFrame(folder_rows(path, IMAGES)).assign(synthetic=False)
        check_names(table["name"], path[0].parent)
        table = _with_brains(table, brain)
        return table if exclude is None else table.assign(exclude=exclude)
    path = folder_table(path)
    if path.is_dir():
        if image is not None:
            raise ValueError(
                f"--image is for a single case; name images like the masks, such as "
                f"NAME_image.nii.gz in {path}"
            )
        if _brain_file(brain):
            raise ValueError(f"--brain FILE is for a single case; add NAME_brain.nii.gz in {path}")
        table = pd.DataFrame(folder_rows(path, IMAGES)).assign(synthetic=False)
        for column in IMAGES:
            table[column] = [_beside(path / file, file) for file in table[column]]
        check_names(table["name"], path)
        table = _with_brains(table, brain)
        return table if exclude is None else table.assign(exclude=exclude)
    check_file(path)
    if path.suffix.lower() not in (".tsv", ".csv"):
        row = {
            "name": stem(path),
            "tumor": str(path),
            "image": str(image or ""),
            "exclude": exclude or "",
            "brain": brain,
        }
        for file in _files([row["image"], row["exclude"], _brain_file(brain)]):
            check_file(file)
        return pd.DataFrame([row | {"synthetic": False}])
    if image is not None:
        raise ValueError("--image is for a single case; name images in a column of the table")
    rows = []
    lines = []
    for line, row in read_rows(path, required=("name", "tumor")):
        lines.append(line)
        try:
            rows.append(row | {"synthetic": read_synthetic(row)})
        except ValueError as error:
            raise ValueError(f"{path}, row {line}: {error}") from None
    table = pd.DataFrame(rows)
    check_names(table["name"], path)
    for column in IMAGES:
        texts = table[column] if column in table else pd.Series([""] * len(table))
        table[column] = [_beside(path, text) for text in texts]
    if exclude is not None:
        table["exclude"] = exclude
    is_complete = []
    for line, row in zip(lines, table.to_dict("records"), strict=True):
        problem = missing_files(_files(row[column] for column in IMAGES), path, line)
        is_complete.append(not problem)
        if not problem:
            continue
        if failed is None:
            raise FileNotFoundError(problem)
        failed.append({"name": row["name"], "problem": problem})
    return _with_brains(table[is_complete], brain)


def read_scene(
    row: Any,
    *,
    margin: float = 0.0,
    tolerance: float = 0.0,
    image: bool = True,
    **options: Any,
) -> Scene:
    """
    Read the files of a case, with further options of `Scene.read`.

    Its brain, if that is asked for, is in the file or found.
    """
    excluded = _excluded(row)
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


def region_names(row: Any, record: Mapping[str, Any]) -> set[str]:
    """Name what a case keeps away from as its scene does, without reading images."""
    # Whether a brain is found in an image is known only after reading it.
    found = {OUTSIDE_BRAIN} if record.get("brain") else set()
    return set(_excluded(row)) | found


def source_digests(row: Any) -> dict[str, dict[str, str]]:
    """Describe the files of a case as its scene does, without reading images."""
    excluded = [Path(word) for word in words(row.exclude) if not word.isdecimal()]
    brain = _brain_file(row.brain) or None
    return describe_sources(
        Tumor=row.tumor, Exclude=excluded, Image=row.image or None, Brain=brain
    )


def brain_note(row: Any, scene: Scene) -> list[str]:
    """Say that the brain was asked for and not found in the image."""
    if row.brain != "auto" or not row.image or OUTSIDE_BRAIN in scene.margins:
        return []
    return ["no brain was found in the image that holds the tumor: give its mask (--brain FILE)"]


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


def read_boxes(path: str | Path, names: Sequence[str]) -> NDArray[np.float64]:
    """Read a box for each case: (n_cases, 9)."""
    return _in_order(_box_table(Path(path), names), names, str(path))


def read_experts(path: str | Path, names: Sequence[str]) -> NDArray[np.float64]:
    """Read the boxes of experts: (n_cases, n_experts, 9)."""
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


def _box_table(path: Path, names: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    rows = read_rows(path, required=("name", *BOX), optional=("expert",))
    table = pd.DataFrame([row for _, row in rows])
    absent = [name for name in names if name not in set(table["name"])]
    if absent:
        raise ValueError(
            f"{path} has no box for {first_few(absent)}; add them, or leave out these cases"
        )
    if "expert" in table and (table["expert"] == "").any():
        line = rows[int((table["expert"] == "").argmax())][0]
        raise ValueError(
            f"{path}, row {line}: no expert; every row needs one, or leave out the column"
        )
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
        raise ValueError(f"{title}: more than one box for {twice.iloc[0]}; keep one")
    return boxes.set_index("name").reindex(list(names))[list(BOX)].to_numpy(dtype=float)


def _excluded(row: Any) -> dict[str, Any]:
    """Give excluded labels or masks by their names."""
    entries = words(row.exclude)
    if entries and all(entry.isdecimal() for entry in entries):
        return {f"label {int(entry)}": int(entry) for entry in entries}
    names = [Path(entry).name for entry in entries]
    regions = {}
    for i, (name, entry) in enumerate(zip(names, entries, strict=True), start=1):
        # Masks of one name lie in different folders, which the name does not show.
        unique = name if names.count(name) == 1 else f"{name} {i}"
        regions[unique] = entry
    return regions


def missing_files(paths: Iterable[Path], table: Path, line: int) -> str:
    """Name the files of a row that are missing; empty where all are there."""
    problems = []
    for path in paths:
        try:
            check_file(path)
        except FileNotFoundError as error:
            problems.append(str(error))
    if not problems:
        return ""
    return f"{table}, row {line}: {'; '.join(problems)}; files are relative to the table"


def check_names(texts: Iterable[str], table: Path) -> None:
    """Check that names of cases can become names of folders."""
    import pandas as pd

    names = pd.Series(list(texts), dtype=str)
    fault = ""
    for name in names:
        if not name.isprintable() or Path(name).name != name or name[0] == ".":
            fault = f"not {name!r}"
            break
    repeated = names[share_a_name(names.tolist())]
    if not fault and len(repeated):
        fault = f"{repeated.iloc[-1]!r} is there twice"
    if fault:
        raise ValueError(
            f"{table}: names of cases become names of folders and must differ, such as 'case-01'; "
            f"{fault}"
        )


def _with_brains(table: pd.DataFrame, brain: str) -> pd.DataFrame:
    """Give each case the mask of its brain, or whether it is to be found."""
    if _brain_file(brain):
        raise ValueError(
            "--brain FILE is for a single case; name masks in a column brain, or like the tumors"
        )
    masks = list(table["brain"])
    return table.assign(brain=[brain if brain == "none" or not mask else mask for mask in masks])


def _brain_file(brain: str) -> str:
    """Give the file of a mask of the brain; empty where it is found or left out."""
    return "" if brain in ("auto", "none") else brain


def _brain_mask(row: Any) -> Any:
    """Give the mask of the brain, which may be found in the image; None without one."""
    if row.brain == "none" or (row.brain == "auto" and not row.image):
        return None
    if row.brain != "auto":
        return row.brain
    from dmrifit.imaging.head_steps import find_brain

    tumor = load_image(row.tumor)
    try:
        brain = find_brain(row.image)
    except (ImportError, ValueError):
        return None
    # Brains are found in RAS order.
    mask = as_stored(brain, load_image(row.image).affine).astype(bool)
    labels = values_of(tumor, str(row.tumor))
    # A series is refused when the tumor itself is read.
    if labels.size != np.prod(labels.shape[:3]):
        return None
    is_tumor = np.nan_to_num(labels.reshape(labels.shape[:3])) > 0
    # A mask without much of the tumor is no mask of this brain.
    if mask.shape != is_tumor.shape or (is_tumor & ~mask).sum() > _MOST_CUT_OFF * is_tumor.sum():
        return None
    return mask


def _beside(table: Path, text: str) -> str:
    """Give files relative to a table as paths; whole numbers are labels, no files."""
    entries = []
    for entry in words(text):
        entries.append(entry if entry.isdecimal() else str(table.parent / entry))
    return ",".join(entries)


def _files(texts: Iterable[str]) -> list[Path]:
    paths = []
    for text in texts:
        paths += [Path(entry) for entry in words(text) if not entry.isdecimal()]
    return paths
