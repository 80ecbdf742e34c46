"""Cases of the applications: checks of arrays, names of files, rows of tables."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import compress, product
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from nibabel.orientations import apply_orientation
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import checked_affine
from dmrifit._utils.checks import check_finite, errors_about, told_of
from dmrifit._utils.counts import counted, first_few
from dmrifit.io.atomic_files import FileSet, check_name, share_a_name
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import three_axes, turn_to_grid, upright
from dmrifit.io.masks import zeros_and_ones
from dmrifit.io.nifti import image_of, load_image, save_image, values_of
from dmrifit.io.tables import NOTHING, TABLE, read_rows, read_synthetic, table_text

#: How names of masks of brains end in BIDS.
BRAIN_MASK = "desc-brain_mask"

_Case = TypeVar("_Case")

_ALIASES = {"participant_id": "patient"}

_SERIES = "_dwi"  # end of the names of series

# Letters that are drawn as nothing, beside control characters and those of format.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\ufe00-\ufe0f]")


def checked_values(
    values: ArrayLike, shape: tuple[int, ...], what: str, *, remedy: str = ""
) -> NDArray[np.float32]:
    """Check that an array holds finite numbers and has a shape."""
    array = np.asarray(values)
    check_shape(array, shape, what, remedy)
    check_finite(array, what)
    return np.ascontiguousarray(array, dtype=np.float32)


def checked_mask(
    values: ArrayLike, what: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.bool_]:
    """Check that an array is a mask of 0 and 1, and that it has a shape, if one is given."""
    array = np.asarray(values)
    if shape is not None:
        check_shape(array, shape, what)
    return np.ascontiguousarray(zeros_and_ones(array, what))


def check_shape(values: NDArray, shape: tuple[int, ...], what: str, remedy: str = "") -> None:
    """Check the shape of an array."""
    if values.shape != shape:
        remedy = remedy or "bring both to one grid"
        raise ValueError(f"{what} has shape {values.shape} and the image {shape}; {remedy}")


def volumes_of_cases(
    volumes: Sequence[ArrayLike], cases: Sequence[Any], what: str
) -> list[NDArray]:
    """Check that there is a finite volume (x, y, z) for each case, of its shape."""
    arrays = [np.asarray(volume) for volume in volumes]
    if len(arrays) != len(cases):
        raise ValueError(
            f"{what}: {len(arrays)} for {counted(len(cases), 'scan')}; give one for each"
        )
    for array, case in zip(arrays, cases, strict=True):
        if array.shape != case.shape:
            raise ValueError(
                f"{what}: one of shape {array.shape} for {case.name}, whose shape is {case.shape}"
            )
        check_finite(array, f"{what} of {case.name}")
    return arrays


def read_on_grid(
    path: Path, shape: tuple[int, ...], affine: NDArray[np.float64], reference: str
) -> NDArray:
    """Read a volume (x, y, z) on the grid of another image, in the order of its axes."""
    loaded = load_image(path)
    volume = three_axes(values_of(loaded, str(path)), path)
    grid = volume.shape, loaded.affine
    turn = turn_to_grid(grid, (shape, affine), name=str(path), reference_name=reference)
    return apply_orientation(volume, turn)


@dataclass(frozen=True)
class CaseTable:
    """
    Columns of tables of cases, as ``data/cases.csv`` of a package describes them.

    A column holds texts, or names of files. Those of the kind ``image`` are on one grid; in a
    folder without a table, each image of the first such column is a case. The file of a column is
    written with its ending.
    """

    package: str
    required: tuple[str, ...] = ("patient", "image")
    what: str = "case"

    @cached_property
    def described(self) -> list[dict[str, str]]:
        """Columns with their kind, ending and description."""
        text = files(self.package).joinpath("data", "cases.csv").read_text(encoding="utf-8")
        return list(csv.DictReader(text.splitlines()))

    @property
    def columns(self) -> dict[str, str]:
        """Descriptions of the columns."""
        return {row["column"]: row["description"] for row in self.described}

    @property
    def images(self) -> tuple[str, ...]:
        """Columns of images."""
        return tuple(row["column"] for row in self.described if row["kind"] == "image")

    @property
    def endings(self) -> dict[str, str]:
        """Endings of files by their columns."""
        return {row["column"]: row["ending"] for row in self.described if row["ending"]}

    def rows(self, table: Path | Sequence[Path]) -> list[tuple[int, dict[str, str]]]:
        """Give the rows of a table, or that of a folder, by lines; those of images as line 0."""
        if not isinstance(table, Path):
            rows = folder_rows(table, self.images)
            return [(0, {"patient": subject_of(row["name"]), **row}) for row in rows]
        table = folder_table(table)
        # A folder of images names no other files.
        if table.is_dir() and set(self.required) == {"patient", self.images[0]}:
            rows = folder_rows(table, self.images)
            return [(0, {"patient": row["name"], **row}) for row in rows]
        optional = [name for name in self.columns if name not in self.required]
        return read_rows(table, required=self.required, optional=optional, aliases=_ALIASES)

    def read(
        self,
        table: str | Path | Sequence[Path],
        make: Callable[[dict[str, str], Path], _Case],
        *,
        failed: list[dict[str, str]] | None = None,
    ) -> list[_Case]:
        """
        Read the cases of a table, a folder or of images, and check that their names are unique.

        `make` makes a case of a row and the folder of its paths. Cases with a problem go into the
        list `failed`, where it is given; names that occur twice are refused all the same.
        """
        folder = Path()
        if isinstance(table, str | Path):
            table = folder_table(table)
            folder = table if table.is_dir() else table.parent
        cases: list[_Case] = []
        line_of: dict[str, int] = {}
        rows = self.rows(table)
        if isinstance(table, Path) and not table.is_dir():
            check_patients(((line, row["patient"]) for line, row in rows), table)
        for line, row in rows:
            place = str(table) if isinstance(table, Path) else row[self.images[0]]
            if line:
                place += f", row {line} (patient {row['patient']})"
            name = row.get("name") or row["patient"]
            first_line = line_of.setdefault(name, line)
            if first_line != line:
                raise ValueError(
                    f"{place}: row {first_line} has a {self.what} of the name {name!r} too; "
                    "add a column 'name' that tells them apart"
                )
            try:
                if row.get("synthetic"):
                    row["synthetic"] = "true" if read_synthetic(row) else "false"
                cases.append(make(row, folder))
            except (FileNotFoundError, ValueError) as error:
                problem = told_of(place, error)
                kind: type[Exception] = ValueError
                if isinstance(error, FileNotFoundError):
                    kind = FileNotFoundError
                    problem += f"; paths are relative to {folder.resolve()}"
                if failed is None:
                    raise kind(problem) from None
                failed.append({"name": name, "patient": row["patient"], "problem": problem})
        return cases

    def row_of(self, case: Any, stem: str) -> dict[str, str]:
        """Describe a case and name its files: those of its attributes that are not None."""
        row = {"patient": case.patient, "name": case.name}
        row["synthetic"] = "true" if case.synthetic else "false"
        for column, ending in self.endings.items():
            if getattr(case, column, None) is not None:
                row[column] = stem + ending
        return row

    def write(
        self,
        cases: Sequence[Any],
        folder: str | Path,
        write_others: Callable[[Any, Callable[[str], Path]], None],
        *,
        overwrite: bool,
        row_of: Callable[[Any, str], dict[str, str]] | None = None,
    ) -> Path:
        """
        Write the files of cases and their table, which appear together; give the table.

        `row_of` describes a case, given the beginning of its files' names, by default as the
        method does. Volumes are the attributes of a case with the names of their columns;
        `write_others` takes a case, and a function that gives the path to write the file of a
        column to.
        """
        stems = file_stems((case.patient, case.name) for case in cases)
        described = row_of or self.row_of
        rows = [described(case, stem) for case, stem in zip(cases, stems, strict=True)]
        files = [row[column] for row in rows for column in self.endings if column in row]
        # The table is named last: where it stands, all its files do.
        with FileSet(folder, [*files, "cases.json", TABLE], overwrite=overwrite) as file_set:
            for case, row in zip(cases, rows, strict=True):

                def path_of(column: str, row: dict[str, str] = row) -> Path:
                    return file_set.path(row[column])

                for column in self.images:
                    if column in row and hasattr(case, column):
                        save_values(getattr(case, column), case.affine, path_of(column))
                write_others(case, path_of)
            write_table(file_set, TABLE, rows, self.columns, "cases.json")
        return Path(folder) / TABLE


@dataclass(frozen=True)
class ResultTable:
    """The table of a run over cases, with the rows of some of them in their order."""

    path: Path
    rows: list[dict[str, str]]

    @classmethod
    def read(cls, path: Path, names: Sequence[str], columns: Sequence[str] = ()) -> ResultTable:
        """Read the rows of cases, by their names; the table must have these columns."""
        rows: dict[str, dict[str, str]] = {}
        for line, row in read_rows(path, required=("name", *columns)):
            if row["name"] in rows:
                raise ValueError(f"{path}, row {line}: {row['name']} has a row above; keep one")
            rows[row["name"]] = row
        missing = [name for name in names if name not in rows]
        if missing:
            raise ValueError(f"{path} has no {first_few(missing)}; write it anew for these cases")
        return cls(path, [rows[name] for name in names])

    def setting(self, key: str, number: Callable[[str], Any], default: Any) -> Any:
        """Read the number that all cases were run with; the default without one, or with two."""
        values = {row.get(key, "") for row in self.rows}
        if len(values) > 1:
            words = ", ".join(sorted(values))
            raise ValueError(f"{self.path}: the cases have different values of {key} ({words})")
        text = values.pop()
        try:
            return default if not text or "," in text else number(text)
        except ValueError:
            raise ValueError(f"{self.path}: the {key} {text!r} is not a number") from None

    def volumes(self, column: str, cases: Sequence[Any]) -> Iterator[NDArray[Any]]:
        """Read the volumes of a column, which must lie on the grids of their cases."""
        for row, case in zip(self.rows, cases, strict=True):
            name, path = row["name"], self.path.parent / row[column]
            remedy = f"run the command that wrote it on {name} again"
            if not path.is_file():
                raise FileNotFoundError(
                    f"{self.path}: there is no {path}, the {column} of {name}; {remedy}"
                )
            values = read_on_grid(path, case.shape, case.affine, f"the case {name}")
            check_finite(values, str(path), remedy)
            yield values


class CaseGrid:
    """The grid of a case, and how its checked values are stored."""

    affine: NDArray[np.float64]
    #: The array that has the grid of the case.
    _on_grid: ClassVar[str] = "brain"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of voxels."""
        x, y, z = getattr(self, self._on_grid).shape[:3]
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Lengths of the edges of a voxel in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def upright(self, values: NDArray) -> NDArray:
        """
        Turn a volume from the order of the axes of the case to RAS order.

        Parameters
        ----------
        values : ndarray of shape (x, y, z) or (x, y, z, n)
            Values on the grid of the case.

        Returns
        -------
        ndarray
            The same values, with axes from left to right, back to front and bottom to top.
        """
        return upright(values, self.affine)

    def _store(self, checked: Mapping[str, Any]) -> None:
        affine = checked_affine(self.affine, f"case {checked['name']}: the affine")
        # A frozen dataclass refuses plain assignment.
        for key, value in {**checked, "affine": affine}.items():
            object.__setattr__(self, key, value)


def folder_table(path: str | Path) -> Path:
    """Give the table of cases in a folder, or the path itself where there is none."""
    path = Path(path)
    table = path / TABLE
    return table if table.is_file() else path


def folder_rows(folder: Path | Sequence[Path], images: Sequence[str]) -> list[dict[str, str]]:
    """
    List the images of a folder, or named ones, as a table of cases does.

    Each image is a case with the name of its file, ``p1`` for ``p1.nii.gz``, ``p1_dwi.nii.gz`` or
    ``p1_image.nii.gz`` (with the first column ``image``); ``p1_brain.nii.gz`` or
    ``p1_image_brain.nii.gz`` then goes into its column ``brain``, also if it is beside a named
    image and not named itself. Named images of one name are called by their folders.
    """
    main, *others = images
    listed = list(dict.fromkeys(folder)) if not isinstance(folder, Path) else []
    if isinstance(folder, Path):
        listed = [path for path in sorted(folder.iterdir()) if _is_image(path)]
    # A mask of the brain is no case beside others.
    paths = [path for path in listed if not stem(path).endswith(BRAIN_MASK)] or listed
    texts = [path.name if isinstance(folder, Path) else str(path) for path in paths]
    end = rf"(_{main}|{_SERIES})(?=(_({'|'.join(others)}))?$)"
    names = [re.sub(end, "", stem(path)) for path in paths]
    if not isinstance(folder, Path) and len(set(names)) < len(names):
        folders = [path.absolute().parent.name for path in paths]
        names = folders if len(set(folders)) == len(folders) else names
    files: dict[str, str] = {}
    for name, file in zip(names, texts, strict=True):
        if files.setdefault(name, file) != file:
            where = f"{folder} has both" if isinstance(folder, Path) else f"{name} is the name of"
            raise ValueError(f"{where} {files[name]} and {file}; keep one of them")
    if not files and isinstance(folder, Path):
        # Tables of results have no column of images.
        paths = [path for path in sorted(folder.glob("*.tsv")) if path.is_file()]
        contents = {path.name: str(path.read_bytes(), "utf-8-sig", "replace") for path in paths}
        titles = {name: content.split("\n")[0].split() for name, content in contents.items()}
        tables = ", ".join(name for name, words in titles.items() if main in words)
        raise FileNotFoundError(
            f"{folder} is a folder without images (.nii, .nii.gz); name "
            + (f"a table in it: {tables}" if tables else "an image, a table or a folder of images")
        )
    rows: dict[str, dict[str, str]] = defaultdict(lambda: dict.fromkeys(images, ""))
    for name, file in files.items():
        # The longest first: p1_prior_label is no label of p1_prior.
        for column in sorted(others, key=len, reverse=True):
            owner = name.removesuffix(f"_{column}")
            if owner != name and owner in files:
                rows[owner][column] = file
                break
        else:
            rows[name][main] = file
    # The brain of a prior scan belongs to no column.
    rows = {name: row for name, row in rows.items() if row[main]}
    if not isinstance(folder, Path):
        for row in rows.values():
            row |= _images_beside(Path(row[main]), main, [key for key in others if not row[key]])
    return [{"name": name, **rows[name]} for name in sorted(rows)]


def _images_beside(image: Path, main: str, columns: Iterable[str]) -> dict[str, str]:
    """Find the images beside one that its name says belong to it; of several none is right."""
    name = stem(image)
    starts = {name, re.sub(f"(_{main}|{_SERIES})$", "", name)}
    beside = {}
    for column in columns:
        names = [f"{start}_{column}.nii{end}" for start, end in product(starts, ("", ".gz"))]
        paths = [path for path in map(image.with_name, names) if path.is_file()]
        if len(paths) == 1:
            beside[column] = str(paths[0])
    return beside


def _is_image(path: Path) -> bool:
    """Whether a file of a folder is an image, and the only or first file of it."""
    is_named = stem(path) != path.name and not path.name.startswith(".")
    return is_named and path.suffix.lower() != ".hdr" and not path.is_dir()


def subject_of(name: str) -> str:
    """Give the subject of a name as BIDS writes it; the name itself without one."""
    match = re.match(r"sub-[a-zA-Z0-9+]+", name)
    return match[0] if match else name


def folder_summary(source: Path | str, rows: Sequence[Mapping[str, str]]) -> str:
    """Say which cases are in a folder or a glob, and how many of them have further images."""
    text = f"{counted(len(rows), 'case')} in {source}: {first_few([row['name'] for row in rows])}"
    counts = {column: sum(bool(row[column]) for row in rows) for column in list(rows[0])[2:]}
    further = ", ".join(f"{column} {count}" for column, count in counts.items() if count)
    return f"{text}; with {further}" if further else text


def file_stem(patient: str, name: str) -> str:
    """Make a name for the files of a case."""
    check_names({"patient": patient, "case": name})
    # A leading dot would hide the files, a leading dash look like an option.
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-") or "case"


def check_patients(names: Iterable[tuple[int, str]], table: Path | None = None) -> None:
    """Refuse names of patients, each with its row in a table, that look alike but differ."""
    first_of: dict[str, tuple[int, str]] = {}
    for line, name in names:
        first_line, first = first_of.setdefault(_plain_name(name), (line, name))
        if first != name:
            where = f"{table}, rows {first_line} and {line}: " if table else ""
            raise ValueError(
                f"{where}patients {first!r} and {name!r} differ only in case, blanks, leading "
                "zeros, the form of letters or characters that are not seen; one person under "
                "two names would be in training and test: write one name, or two that differ more"
            )


def _plain_name(patient: str) -> str:
    """Write a name without what is easily overlooked, or changed by a spreadsheet."""
    # Twice, because folding the case may leave letters that are not composed.
    folded = unicodedata.normalize("NFKC", patient).casefold()
    seen = "".join(
        letter for letter in folded if letter.isspace() or unicodedata.category(letter)[0] != "C"
    )
    name = " ".join(unicodedata.normalize("NFKC", _UNSEEN.sub("", seen)).split())
    name = re.sub(r"^(\d+)[.,]0+$", r"\1", name)
    return re.sub(r"(?<![\d.,])0+(?=\d)", "", name)


def check_names(names: Mapping[str, str]) -> None:
    """Check that names come back from a table as they were written."""
    for noun, name in names.items():
        if name.strip() in NOTHING or name != name.strip() or not name.isprintable():
            raise ValueError(
                f"{noun} {name!r}: a name in a table has letters, digits or signs, "
                "and no tab or line break, and nan and n/a are missing values: rename it"
            )


def check_folder_names(names: Sequence[str], place: object) -> None:
    """Check that names of cases, found at a place, can become names of folders."""
    fault = ""
    for name in names:
        check_name(name)
        if not name.isprintable() or Path(name).name != name or name[:1] in ("", "."):
            fault = f"not {name!r}"
            break
    repeated = sorted(compress(names, share_a_name(names)))
    if not fault and repeated:
        fault = f"{repeated[-1]!r} is there twice"
    if fault:
        raise ValueError(
            f"{place}: names of cases become names of folders and must differ, such as 'case-01'; "
            f"{fault}"
        )


def named_rows(
    source: Path | Sequence[Path], required: Sequence[str], images: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """
    Read rows of a table, of a folder or of images, each with the words that name it in errors.

    Rows of images have the number 0. The names of all can be those of folders.
    """
    place = folder_table(source) if isinstance(source, Path) else source[0].parent
    if isinstance(source, Path) and not place.is_dir():
        rows = read_rows(place, required=("name", *required))
    else:
        rows = [(0, row) for row in folder_rows(source, images)]
    check_folder_names([row["name"] for _, row in rows], place)
    named: list[tuple[str, dict[str, Any]]] = []
    for line, row in rows:
        with errors_about(f"{place}, row {line}"):
            named.append((f"{place}, row {line}", row | {"synthetic": read_synthetic(row)}))
    return named


def file_stems(names: Iterable[tuple[str, str]]) -> list[str]:
    """Make names for the files of cases."""
    pairs = list(names)
    if not pairs:
        raise ValueError("there are no cases to write")
    stems = [file_stem(*pair) for pair in pairs]
    repeated = {name for (_, name) in compress(pairs, share_a_name(stems))}
    if repeated:
        raise ValueError(
            f"several cases would have the same files: {', '.join(sorted(repeated))}; "
            "give each a unique name"
        )
    return stems


def save_values(values: NDArray, affine: NDArray[np.float64], path: Path) -> None:
    """Write an array (x, y, z) as NIfTI to a path that nothing reads yet, as in a `FileSet`."""
    save_image(image_of(values, affine), path)


def write_table(
    file_set: FileSet,
    name: str,
    rows: Sequence[Mapping[str, str]],
    columns: Mapping[str, str],
    described: str,
) -> None:
    """Write a table of cases, and a JSON file that describes its columns."""
    import pandas as pd

    # Columns that no row has would only hide the others.
    used = [key for key in columns if any(key in row for row in rows)]
    text = table_text(pd.DataFrame(rows, columns=used))
    file_set.path(name).write_text(text, encoding="utf-8")
    file_set.write_json(described, {key: {"Description": columns[key]} for key in used})
