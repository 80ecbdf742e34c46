"""Regions of interest: what the maps of a fit hold in them, for many scans, and how well it repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.text_files import read_small
from dmrifit.engine.results import FitStatus
from dmrifit.io.bids_derivatives import unpack_bounds
from dmrifit.io.masks import check_same_grid
from dmrifit.io.tables import read_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FittedMaps",
    "find_fits",
    "read_label_names",
    "repeatability",
    "roi_table",
    "summarize_fits",
]

Volume: TypeAlias = Any  # a path, a Nifti1Image or an array

#: A scaled integer label may come out of its file as 2.9999999.
_LABEL_ROUNDING = 1e-3
_LARGEST_LABEL = 2**53  # beyond it, files of floating point do not hold whole numbers

_NO_PARAMETERS = ("status", "at_bound", "doubt")
_COLUMNS = (
    *("label", "name", "map", "unit", "n", "n_voxels", "median", "iqr", "q25", "q75", "mean"),
    *("at_low", "at_high", "doubtful"),
)


def roi_table(
    maps: Mapping[str, Volume],
    labels: Volume,
    *,
    status: Volume | None = None,
    names: Mapping[int, str] | None = None,
    units: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """
    Summarize the maps of a fit in each region of a label image.

    Parameters
    ----------
    maps : mapping of str to path, Nifti1Image or ndarray of shape (x, y, z)
        Maps by name, such as `fit_image` returns. ``"status"``, ``"at_bound"`` and ``"doubt"`` are taken for what they
        say about the other maps, and are not summarized. Parameters are the maps that have a standard error
        (``<name>_se``), in their order; without any, all of them.
    labels : path, Nifti1Image or ndarray of shape (x, y, z)
        Whole numbers; 0 is no region.
    status : path, Nifti1Image or ndarray of shape (x, y, z), optional
        Codes of `FitStatus`; by default ``maps["status"]``. Voxels that were not fitted or did not converge, and
        those outside the mask of the fit, are left out. Without one, only voxels that are NaN are.
    names : mapping of int to str, optional
        Names of labels; those that are not in the image get a row without voxels.
    units : mapping of str to str, optional
        Unit of each map, for the column of that name.

    Returns
    -------
    DataFrame
        One row for each label and map: ``label``, ``name``, ``map``, ``unit``, ``n`` (voxels summarized),
        ``n_voxels`` (voxels of the label), ``median``, ``iqr`` (``q75`` − ``q25``), ``q25``, ``q75``, ``mean``, and
        the shares of the n voxels where the parameter ended at its bound, ``at_low`` and ``at_high`` (0 to 1; NaN
        for other maps, and without ``"at_bound"``), and where the fit is in doubt, ``doubtful`` (NaN without
        ``"doubt"``). Statistics of no voxel are NaN.

    Raises
    ------
    ValueError
        If there is no map, a label is not a whole number, no voxel has a label, or grids differ.
    FileNotFoundError
        If a file does not exist.
    """
    import pandas as pd

    values = {name: _read(volume, name) for name, volume in maps.items()}
    if status is not None:
        values["status"] = _read(status, "status")
    where = _read(labels, "labels")
    for one in values.values():
        one.check(where)
    summarized = [name for name in values if name not in _NO_PARAMETERS]
    if not summarized:
        raise ValueError(f"there is no map to summarize among {', '.join(values) or 'none'}")
    numbers = _whole_numbers(where)
    present = np.unique(numbers[numbers != 0]).tolist()
    listed = sorted({*present, *(names or {})} - {0})
    if not present:
        raise ValueError(
            f"{where.name}: no voxel has a label other than 0; draw a region, or name another image"
        )
    usable = np.ones(numbers.shape, bool)
    if "status" in values:
        usable = np.isin(values["status"].array, (FitStatus.CONVERGED, FitStatus.AT_BOUND))
    parameters = [name for name in summarized if f"{name}_se" in values] or summarized
    rows = []
    for label in listed:
        region = numbers == label
        inside = np.nonzero(region & usable)
        fits = {name: values[name].array[inside] for name in summarized}
        ends = (
            None
            if "at_bound" not in values
            else unpack_bounds(values["at_bound"].array[inside], len(parameters))
        )
        doubt = values["doubt"].array[inside] if "doubt" in values else None
        for name in summarized:
            finite = np.isfinite(fits[name])
            shares: tuple[float, float] = (np.nan, np.nan)
            if ends is not None and name in parameters and finite.any():
                column = parameters.index(name)
                shares = ends[0][finite, column].mean(), ends[1][finite, column].mean()
            doubtful = (doubt[finite] > 0).mean() if doubt is not None and finite.any() else np.nan
            rows.append(
                (
                    *(
                        label,
                        (names or {}).get(label, str(label)),
                        name,
                        (units or {}).get(name, ""),
                    ),
                    *(int(finite.sum()), int(region.sum()), *_statistics(fits[name][finite])),
                    *(*shares, doubtful),
                )
            )
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def repeatability(table: pd.DataFrame, *, value: str = "median") -> pd.DataFrame:
    """
    Compute how well the values of regions repeat between visits.

    Parameters
    ----------
    table : DataFrame
        Rows of `roi_table` of several scans, with the columns ``subject`` and ``visit`` beside ``label``, ``name``
        and ``map`` (and ``model``, if there is one).
    value : str, default="median"
        Which statistic of the region.

    Returns
    -------
    DataFrame
        One row for each label and map: ``n_subjects`` (with two visits or more), ``mean`` over them, ``within_sd``
        (within-subject standard deviation, root mean square over subjects, in the unit of the map), ``wcv``
        (within-subject coefficient of variation: the root mean square over subjects of a subject's standard
        deviation divided by the subject's mean; two visits x₁ and x₂ have the standard deviation ``|x₁ − x₂|/√2``), and
        ``rc_percent`` (the change in percent that 95 % of repeated measurements without true change stay below:
        1.96·√2·100·wcv). NaN without such subjects, and for the last two where a mean is not positive.

    Raises
    ------
    ValueError
        If a column is missing, or a subject has two values of a region at one visit.

    References
    ----------
    Bland and Altman, BMJ 313:106, 1996; Raunig et al., Stat Methods Med Res 24:27–67, 2015.
    """
    import pandas as pd

    missing = [
        column
        for column in ("subject", "visit", "label", "name", "map", value)
        if column not in table
    ]
    if missing:
        raise ValueError(
            f"repeatability needs the columns subject and visit beside those of roi_table; {missing} are missing"
        )
    keys = [*(["model"] if "model" in table else []), "label", "name", "map"]
    twice = table.duplicated([*keys, "subject", "visit"])
    if twice.any():
        first = table[twice].iloc[0]
        raise ValueError(
            f"subject {first['subject']} has label {first['label']}, map {first['map']} twice at visit "
            f"{first['visit']}; name the visits differently"
        )
    rows = []
    for key, group in table.groupby(keys, sort=False):
        visits = group.dropna(subset=[value]).groupby("subject")[value]
        repeated = visits.agg(["mean", "var", "count"])
        repeated = repeated[repeated["count"] >= 2]
        n, within, wcv = len(repeated), np.nan, np.nan
        if n:
            within = float(np.sqrt(repeated["var"].mean()))
            if (repeated["mean"] > 0).all():
                wcv = float(np.sqrt((repeated["var"] / repeated["mean"] ** 2).mean()))
        mean = float(repeated["mean"].mean()) if n else np.nan
        rows.append((*key, n, mean, within, wcv, 1.96 * np.sqrt(2) * 100 * wcv))
    return pd.DataFrame(
        rows, columns=[*keys, "n_subjects", "mean", "within_sd", "wcv", "rc_percent"]
    )


@dataclass(frozen=True)
class FittedMaps:
    """
    The maps of one fit, in files.

    Parameters
    ----------
    scan : str
        Name of the image, as in the names of its maps.
    model : str
        Name of the model.
    maps : dict of str to Path
        As for `roi_table`.
    units : dict of str to str
        Unit of each map.
    """

    scan: str
    model: str
    maps: dict[str, Path]
    units: dict[str, str]


def find_fits(folder: str | Path) -> list[FittedMaps]:
    """Find the maps that fits have written to a folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder of maps; name one that dmrifit fit wrote"
        )
    found = []
    for sidecar in sorted(folder.glob("*model-*dwimap.json")):
        try:
            described = json.loads(read_small(sidecar))
        except (RecursionError, ValueError) as error:
            raise ValueError(
                f"{sidecar} is no sidecar of a fit ({error}); fit the scan again"
            ) from None
        if not isinstance(described, dict):
            raise ValueError(
                f"{sidecar} is no sidecar of a fit (it holds a {type(described).__name__}); fit the scan again"
            )
        if "Cost" in described and "Status" in described:
            try:
                found.append(_fitted(sidecar, described))
            except (AttributeError, KeyError, TypeError) as error:
                problem = f"without {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(
                    f"{sidecar} is no sidecar of a fit ({problem}); fit the scan again"
                ) from None
    if not found:
        raise ValueError(
            f"{folder} holds no maps of a fit (no file *_model-*_dwimap.json); name a folder that dmrifit fit wrote"
        )
    return found


def summarize_fits(
    sources: Sequence[str | Path],
    labels: Sequence[str | Path] = (),
    *,
    names: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """Summarize the maps of many fits in regions."""
    import pandas as pd

    # All files are found and named before the first is read.
    scans = [
        (row, fit, image)
        for row, folder, image in _listed(
            [Path(source) for source in sources], [Path(one) for one in labels]
        )
        for fit in find_fits(folder)
    ]
    parts = []
    for row, fit, image in scans:
        table = roi_table(fit.maps, image, names=names, units=fit.units)
        columns = {
            **row,
            "folder": str(fit.maps["status"].parent),
            "scan": fit.scan,
            "model": fit.model,
        }
        for position, (name, value) in enumerate(columns.items()):
            table.insert(position, name, value)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def read_label_names(path: str | Path) -> dict[int, str]:
    """Read the names of labels."""
    rows = read_rows(path, required=("name",), optional=("index", "label"))
    names: dict[int, str] = {}
    for line, row in rows:
        text = row.get("index") or row.get("label") or ""
        number = text.isascii() and text.removeprefix("-").isdecimal()
        if not number or int(text) in names:
            problem = "stands there twice" if number else "is no whole number"
            raise ValueError(
                f"{path}, row {line}: index {text!r} {problem}; give each label one row, with its number"
            )
        names[int(text)] = row["name"]
    return names


def _listed(sources: list[Path], labels: list[Path]) -> list[tuple[dict[str, str], Path, Path]]:
    """Pair folders of maps with label images; give the columns that describe each."""
    tables = [source for source in sources if source.suffix.lower() in (".tsv", ".csv")]
    if tables and len(sources) > 1:
        raise ValueError(
            f"name folders of maps, or one table of them, not {tables[0]} among others"
        )
    rows: list[tuple[dict[str, str], Path, Path | None]] = []
    if tables:
        (table,) = tables
        first: dict[tuple[str, ...], int] = {}
        for line, row in read_rows(
            table, required=("maps",), optional=("labels", "subject", "visit")
        ):
            described = {
                str(column): row[column] for column in ("subject", "visit") if column in row
            }
            where = f"{table}, row {line}"
            if not (table.parent / row["maps"]).is_dir():
                raise FileNotFoundError(
                    f"{where}: no such folder of maps {row['maps']!r}; paths are relative to {table.parent.resolve()}"
                )
            same = first.setdefault((row["maps"], row.get("labels", "")), line)
            if same != line:
                raise ValueError(
                    f"{where}: maps and labels are those of row {same}, and would count twice; remove one of the rows"
                )
            rows.append(
                (
                    described,
                    table.parent / row["maps"],
                    table.parent / row["labels"] if row.get("labels") else None,
                )
            )
    else:
        rows = [({}, source, None) for source in sources]
    if any(image is None for _, _, image in rows) and len(labels) not in (1, len(rows)):
        n, folders = len(labels) or "no", "1 folder" if len(rows) == 1 else f"{len(rows)} folders"
        listed_in = f" of {tables[0]}, whose column labels is empty" if tables else ""
        raise ValueError(
            f"{n} label images for {folders} of maps{listed_in}; give one (--labels), or one for each"
        )
    given = labels * len(rows) if len(labels) == 1 else labels or [Path()] * len(rows)
    listed = [
        (row, folder, one if image is None else image)
        for (row, folder, image), one in zip(rows, given, strict=True)
    ]
    for _, _, image in listed:
        if not image.is_file():
            raise FileNotFoundError(
                f"{image}: no such label image; check its name{f' in {tables[0]}' if tables else ''}"
            )
    return listed


@dataclass(frozen=True)
class _Volume:
    """A volume in memory; an array has no place in the world."""

    name: str
    array: NDArray
    affine: NDArray | None

    def check(self, labels: _Volume) -> None:
        placed = self.affine is not None and labels.affine is not None
        check_same_grid(
            labels.array.shape,
            labels.affine if placed else np.eye(4),  # type: ignore[arg-type]
            self.array.shape,
            self.affine if placed else np.eye(4),  # type: ignore[arg-type]
            name=labels.name,
            reference_name=self.name,
        )


def _read(volume: Volume, name: str) -> _Volume:
    from dmrifit.io.nifti import check_real, image_name, load_image, read_volume

    if isinstance(volume, np.ndarray):
        check_real(volume.dtype, f"the array {name}")
        if volume.ndim != 3:
            raise ValueError(
                f"the array {name} has shape {volume.shape}; a volume (x, y, z) is needed"
            )
        return _Volume(
            f"the array {name}", volume.astype(np.uint8) if volume.dtype == bool else volume, None
        )
    loaded = load_image(volume)
    label = image_name(volume)
    values = read_volume(volume)
    values = values.reshape(values.shape[:3]) if set(values.shape[3:]) <= {1} else values
    return _Volume(
        label if label != "the image" else f"the image of {name}", values, loaded.affine
    )


def _whole_numbers(labels: _Volume) -> NDArray[np.int64]:
    numbers = np.nan_to_num(labels.array, posinf=np.inf, neginf=-np.inf)
    rounded = np.round(numbers)
    largest = np.abs(rounded).max(initial=0)
    if largest > _LARGEST_LABEL:
        raise ValueError(
            f"{labels.name}: labels are whole numbers up to {_LARGEST_LABEL}, not {largest:g}; name a label image"
        )
    wrong = np.abs(numbers - rounded) > _LABEL_ROUNDING
    if wrong.any():
        raise ValueError(
            f"{labels.name}: labels are whole numbers, but {np.count_nonzero(wrong)} voxels are not, such as "
            f"{numbers[wrong][0]:g}; resample label images by the nearest neighbor"
        )
    return rounded.astype(np.int64)


def _statistics(values: NDArray) -> tuple[float, float, float, float, float]:
    """Give median, interquartile range, quartiles and mean."""
    if not values.size:
        return (np.nan,) * 5
    values = values.astype(np.float64)
    low, median, high = np.percentile(values, (25, 50, 75))
    return median, high - low, low, high, values.mean()


def _fitted(sidecar: Path, described: Mapping[str, Any]) -> FittedMaps:
    files, units = {}, {}
    for name, entry in described["Parameters"].items():
        files[name] = entry["File"]
        units[name] = units[f"{name}_se"] = "" if entry["Units"] == "1" else entry["Units"]
    for name, entry in described["Parameters"].items():
        files[f"{name}_se"] = entry["StandardErrorFile"]
    files["cost"], files["status"] = described["Cost"]["File"], described["Status"]["File"]
    for name, key in (("at_bound", "AtBound"), ("doubt", "Doubt")):
        if key in described:
            files[name] = described[key]["File"]
    elsewhere = [file for file in files.values() if Path(file).name != file]
    if elsewhere:
        raise ValueError(
            f"{sidecar} names {elsewhere[0]!r}, which is not beside it; fit the scan again"
        )
    missing = [file for file in files.values() if not (sidecar.parent / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{sidecar} names {missing[0]}, which does not exist; fit the scan again"
        )
    # As derivative_name made it: the name of the image, then entity by entity.
    scan = "_".join(part for part in sidecar.stem.split("_")[:-1] if not part.startswith("model-"))
    maps = {name: sidecar.parent / file for name, file in files.items()}
    return FittedMaps(scan, described["Model"]["Name"], maps, units)
