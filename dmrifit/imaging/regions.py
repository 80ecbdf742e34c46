"""Regions of interest: statistics of maps of many scans, and their repeatability."""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import counted, percent
from dmrifit._utils.text_files import read_small
from dmrifit.engine.fit_maps import FIT_MAPS, unpack_bits, unpack_bounds
from dmrifit.engine.fit_settings import check_values
from dmrifit.engine.methods.prior import PULLED
from dmrifit.engine.models import MODELS, read_table
from dmrifit.engine.results import FitStatus
from dmrifit.io.atomic_files import check_finished
from dmrifit.io.bids_derivatives import common_stem
from dmrifit.io.case_tables import check_patients
from dmrifit.io.grids import as_stored, three_axes, turn_to_grid
from dmrifit.io.masks import whole_labels
from dmrifit.io.nifti import check_real, image_name, load_image, values_of
from dmrifit.io.tables import named_file, read_rows
from dmrifit.report.numerals import significant
from dmrifit.report.verdict import MOST_DOUBTED

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["repeatability", "roi_table"]

#: In the column model, for maps of other programs.
FOREIGN = "other"

#: Factors from units of diffusivities to µm²/ms.
DIFFUSIVITY_FACTORS = {"um2/ms": 1.0, "mm2/s": 1e3, "10-3mm2/s": 1.0, "10-6mm2/s": 1e-3}
_WRITTEN_UNITS = {"um2/ms": "µm²/ms", "mm2/s": "mm²/s"}
# Applied after NFKC, which makes superscripts plain digits and the sign of micro a Greek mu.
_UNIT_SIGNS = str.maketrans({"μ": "u", "−": "-", "^": "", "×": "", "*": "", " ": ""})
#: Parameters, by the names of maps, whose range a diffusivity has.
_DIFFUSIVITIES = {
    parameter.name: parameter
    for model in MODELS.values()
    for parameter in model.parameters
    if parameter.unit == "µm²/ms"
}
_DIFFUSIVITIES |= dict.fromkeys(("MD", "ADC_fast", "ADC_slow"), _DIFFUSIVITIES["ADC"])

_SENTENCES = read_table("sentences")["regions"]

Volume: TypeAlias = Any  # a path, a Nifti1Image or an array

#: Endings of the names of maps that have no row in the table: codes, and maps about other maps.
_NOT_SUMMARIZED = tuple(
    fit_map.name.removeprefix("{parameter}")
    for fit_map in FIT_MAPS
    if fit_map.unit is None or not fit_map.is_summarized
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
        Maps by name, such as `fit_image` returns. ``"status"``, ``"at_bound"`` and ``"doubt"``
        describe the other maps, and are not summarized. Parameters are the maps that have a
        standard error (``<name>_se``), in their order; without any, all of them.
    labels : path, Nifti1Image or ndarray of shape (x, y, z)
        Whole numbers; 0 is no region.
    status : path, Nifti1Image or ndarray of shape (x, y, z), optional
        Codes of `FitStatus`; by default ``maps["status"]``. Voxels that were not fitted or did not
        converge, and those outside the mask of the fit, are left out. Without one, only voxels
        that are NaN are.
    names : mapping of int to str, optional
        Names of labels; those that are not in the image get a row without voxels.
    units : mapping of str to str, optional
        Unit of each map, for the column of that name; by default those of the maps of `fit_image`.

    Returns
    -------
    DataFrame
        One row for each label and map: ``label``, ``name``, ``map``, ``unit``, ``n`` (voxels
        summarized, those in doubt included), ``n_voxels`` (voxels of the label), ``median``,
        ``iqr`` (``q75`` − ``q25``), ``q25``, ``q75``, ``mean``, ``median_low`` and
        ``median_high`` (the 95 % interval of the median by order statistics, which is too narrow
        where the noise of neighbors is alike, as in resampled maps, and leaves out the bias of a
        fit in two steps, see `fit_voxels`; NaN of fewer than six voxels), and the shares of the n
        voxels where the parameter ended at its bound, ``at_low`` and ``at_high`` (0 to 1; NaN for
        other maps, and without ``"at_bound"``), and where it is in doubt, ``doubtful`` (likewise;
        NaN without ``"doubt"``). Statistics of no voxel are NaN.

    Raises
    ------
    ValueError
        If there is no map, a label is not a whole number, no voxel has a label, or grids differ.
    FileNotFoundError
        If a file does not exist.

    Examples
    --------
    >>> import numpy as np
    >>> adc = np.array([[[0.9, 1.1], [1.4, 1.6]]])
    >>> table = roi_table({"ADC": adc}, np.array([[[1, 1], [2, 2]]]), units={"ADC": "µm²/ms"})
    >>> table["median"].tolist()
    [1.0, 1.5]
    """
    import pandas as pd
    from scipy.stats import quantile_test

    if not isinstance(maps, Mapping):
        raise TypeError(
            f"maps must be a dict by name, such as maps of fit_image, not {type(maps).__name__}; "
            "labels come second"
        )
    # Residuals and errors of as many measurements as parameters have the size of rounding.
    values = {name: _read(volume, name, is_map=True) for name, volume in maps.items()}
    if status is not None:
        values["status"] = _read(status, "status", is_map=True)
    label_image = _read(labels, "labels")
    for name, volume in values.items():
        # Plain arrays have no affine, and are compared by shape.
        affine, labels_affine = volume.affine, label_image.affine
        if affine is None or labels_affine is None:
            affine = labels_affine = np.eye(4)
        grid, reference = (label_image.array.shape, labels_affine), (volume.array.shape, affine)
        turn_to_grid(grid, reference, name=label_image.name, reference_name=volume.name)
        ordered = as_stored(volume.array, np.linalg.inv(affine) @ labels_affine)
        values[name] = replace(volume, array=ordered)
    summarized = [name for name in values if not name.endswith(_NOT_SUMMARIZED)]
    if not summarized:
        raise ValueError(f"there is no map to summarize among {', '.join(values) or 'none'}")
    numbers = whole_labels(label_image.array, label_image.name)
    present = np.unique(numbers[numbers != 0]).tolist()
    if not present:
        raise ValueError(
            f"{label_image.name}: no voxel has a label other than 0; "
            "draw a region, or name another image"
        )
    usable = np.ones(numbers.shape, bool)
    if "status" in values:
        # Voxels at a bound count: leaving them out would shift the median away from it.
        usable = np.isin(values["status"].array, (FitStatus.CONVERGED, FitStatus.AT_BOUND))
    parameters = [name for name in summarized if f"{name}_se" in values] or summarized
    units = _units_of(getattr(maps, "sidecar", {})) | dict(units or {})
    rows = []
    for label in sorted({*present, *(names or {})} - {0}):
        region = numbers == label
        inside = region & usable
        flags = {}
        if "at_bound" in values:
            bits = values["at_bound"].array[inside]
            flags["at_low"], flags["at_high"] = unpack_bounds(bits, len(parameters))
        if "doubt" in values:
            bits = values["doubt"].array[inside]
            flags["doubtful"] = unpack_bits(bits, len(parameters))
        for name in summarized:
            fits = values[name].array[inside]
            finite = np.isfinite(fits)
            numbers_of_map = fits[finite].astype(np.float64)
            shares = dict.fromkeys(("at_low", "at_high", "doubtful"), np.nan)
            if finite.any() and name in parameters:
                column = parameters.index(name)
                shares |= {key: flag[finite, column].mean() for key, flag in flags.items()}
            low, median, high, mean, *ends = np.full(6, np.nan)
            if numbers_of_map.size:
                low, median, high = np.percentile(numbers_of_map, (25, 50, 75))
                mean = numbers_of_map.mean()
                if not any(share > MOST_DOUBTED for share in shares.values()):
                    ends = quantile_test(numbers_of_map, p=0.5).confidence_interval(0.95)
            row = {
                "label": label,
                "name": (names or {}).get(label, str(label)),
                "map": name,
                "unit": units.get(name, ""),
                "n": int(finite.sum()),
                "n_voxels": int(region.sum()),
                "median": median,
                "iqr": high - low,
                "q25": low,
                "q75": high,
                "mean": mean,
                "median_low": ends[0],
                "median_high": ends[1],
            }
            rows.append(row | shares)
    return pd.DataFrame(rows)


def doubt_lines(table: pd.DataFrame) -> list[str]:
    """Say which medians have no interval, or one that leaves out a bias, or another bias."""
    is_doubted = (table[["at_low", "at_high", "doubtful"]] > MOST_DOUBTED).any(axis=1)
    totals = table["map"].value_counts()
    lines = [
        f"{name}: {n} of {counted(totals[name], 'median')} without interval: most voxels in doubt"
        for name, n in table["map"][is_doubted].value_counts(sort=False).items()
    ]
    if "segmented" in set(table.get("method", ())):
        lines.append(read_table("sentences")["scan"]["two_steps"])
        lines += map(steps_text, table.groupby("model")["threshold"].agg(list))
    return list(filter(None, lines))


def steps_text(thresholds: Iterable[float | None]) -> str:
    """Say that first steps of IVIM differ, by their lowest b-values; an empty text if not."""
    lowest_b = np.unique(np.nan_to_num(np.array([*thresholds], float)))
    steps = [f"b ≥ {b:g} s/mm²" if b else "all b-values" for b in lowest_b]
    text = _SENTENCES["steps"].format(steps=", ".join(steps), highest=max(lowest_b, default=0))
    return text if len(steps) > 1 else ""


def repeatability(table: pd.DataFrame) -> pd.DataFrame:
    """
    Compute how well the medians of regions repeat between visits.

    Parameters
    ----------
    table : DataFrame
        Rows of `roi_table` of several scans, with the columns ``subject`` and ``visit`` beside
        ``label``, ``name`` and ``map`` (and ``model``, ``unit`` and ``doubtful``, if they are
        there).

    Returns
    -------
    DataFrame
        One row for each label and map: ``n_subjects`` (with two visits or more), ``mean`` over
        them, ``within_sd`` (within-subject standard deviation, in the unit of the map: the root of
        the residual mean square of a one-way analysis of variance, in which a subject's variance
        counts by its number of visits minus 1), ``wcv`` (within-subject coefficient of variation:
        the root mean square over subjects, weighted in the same way, of a subject's standard
        deviation divided by the subject's mean; two visits x₁ and x₂ have the standard deviation
        ``|x₁ − x₂|/√2``), and ``rc_percent`` (the change in percent that 95 % of repeated
        measurements without true change stay below: 1.96·√2·100·wcv), ``rc`` (the repeatability
        coefficient, 1.96·√2·within_sd, in the unit of the map), and the ends of 95 % intervals of
        both, ``rc_low``, ``rc_high``, ``rc_percent_low`` and ``rc_percent_high``: rc·√(df/χ²) with
        the quantiles of χ² at df degrees of freedom, the number of these visits minus n_subjects.
        NaN without such subjects, where the medians of each subject are equal, as at a bound, and
        for wcv and rc_percent where a mean is not positive. Then ``unit``, and ``doubtful``, its
        mean over all scans.

    Raises
    ------
    ValueError
        If a column is missing, or a subject has two values of a region at one visit.

    References
    ----------
    Bland and Altman, BMJ 313:106, 1996; Raunig et al., Stat Methods Med Res 24:27–67, 2015.
    """
    import pandas as pd
    from scipy.stats import chi2

    needed = ("subject", "visit", "label", "name", "map", "median")
    missing = [column for column in needed if column not in table]
    if missing:
        raise ValueError(
            "repeatability needs the columns subject and visit beside those of roi_table; "
            f"{missing} are missing"
        )
    keys = ["label", "name", "map"]
    if "model" in table:
        keys = ["model", *keys]
    is_duplicate = table.duplicated([*keys, "subject", "visit"])
    if is_duplicate.any():
        first = table[is_duplicate].iloc[0]
        raise ValueError(
            f"subject {first['subject']} has label {first['label']}, map {first['map']} twice at "
            f"visit {first['visit']}; give each scan a name of its own in the column visit"
        )
    by_subject = table.groupby([*keys, "subject"], sort=False)["median"]
    visits = by_subject.agg(["mean", "var", "count"]).reset_index()
    repeated = visits[visits["count"] >= 2].assign(
        freedom=lambda rows: rows["count"] - 1,
        squares=lambda rows: rows["freedom"] * rows["var"],
        relative_squares=lambda rows: rows["squares"] / rows["mean"] ** 2,
        # A coefficient of variation has no meaning where means may be 0.
        is_positive=lambda rows: rows["mean"] > 0,
    )
    groups = repeated.groupby(keys, sort=False)
    result = groups["mean"].agg(n_subjects="size", mean="mean")
    # Variances are averaged, not standard deviations, which would be too small on average. The
    # interval holds for weights by degrees of freedom where the numbers of visits differ.
    freedom = groups["freedom"].sum()
    result["within_sd"] = np.sqrt(groups["squares"].sum() / freedom)
    relative_variance = groups["relative_squares"].sum() / freedom
    result["wcv"] = np.sqrt(relative_variance).where(groups["is_positive"].all())
    # Equal medians, as at a bound, tell nothing of how well others repeat.
    result.loc[result["within_sd"] == 0, ["within_sd", "wcv"]] = np.nan
    # A difference has the variance of two measurements.
    result["rc_percent"] = 1.96 * np.sqrt(2) * 100 * result["wcv"]
    result["rc"] = 1.96 * np.sqrt(2) * result["within_sd"]
    for column in ("rc", "rc_percent"):
        for end, quantile in (("low", 0.975), ("high", 0.025)):
            factor = np.sqrt(freedom / chi2.ppf(quantile, freedom))
            result[f"{column}_{end}"] = result[column] * factor
    result = result.reindex(pd.MultiIndex.from_frame(table[keys].drop_duplicates()))
    result["n_subjects"] = result["n_subjects"].fillna(0).astype(int)
    scans = table.groupby(keys, sort=False)
    for column, statistic in {"unit": "first", "doubtful": "mean"}.items():
        if column in table:
            result[column] = scans[column].agg(statistic)
    return result.reset_index()


def repeatability_text(repeats: pd.DataFrame) -> str:
    """
    Tabulate what `repeatability` gives of the parameters, or say that nothing repeats.

    Other maps tell of the fit alone.
    """
    is_parameter = ~repeats["map"].str.endswith("_se") & (repeats["map"] != "cost")
    parameters = repeats[is_parameter & (repeats["n_subjects"] > 0)]
    if parameters.empty:
        return "nothing repeats: no subject has a map of one model in one region at two visits"
    table = parameters[["model", "name", "map", "n_subjects"]]
    table = table.rename(columns={"name": "region", "n_subjects": "subjects"})
    table["within-subject CV"] = parameters["wcv"].map(percent, na_action="ignore").fillna("–")
    coefficients = []
    for row in parameters.to_dict("records"):
        interval = f"{significant(row['rc_low'])}, {significant(row['rc_high'])}"
        coefficients.append(f"{significant(row['rc'])} [{interval}] {row['unit']}".rstrip())
    varies = parameters["rc"] > 0
    table["repeatability coefficient [95 %]"] = np.where(varies, coefficients, "equal medians")
    table["in doubt"] = parameters["doubtful"].map(percent, na_action="ignore").fillna("–")
    text = table.to_string(index=False)
    if table["subjects"].min() == 1:
        text += "\none subject alone says little: measure more subjects twice"
    return text


@dataclass(frozen=True)
class FittedMaps:
    """The files, units and method of the maps of one fit; `scan` is the name of its image."""

    scan: str
    model: str
    maps: dict[str, Path]
    units: dict[str, str]
    method: str = ""
    threshold: float = np.nan  # lowest b-value of the first step, in s/mm²


def named_maps(
    maps: Mapping[str, str | Path], units: Mapping[str, str] | None = None
) -> FittedMaps:
    """Take maps of any program, by their names, as those of one scan."""
    files = {name: Path(path) for name, path in maps.items()}
    unknown = sorted(set(units or {}) - set(files))
    if unknown:
        known = ", ".join(files) or "none"
        raise ValueError(_SENTENCES["unit_of_no_map"].format(name=unknown[0], maps=known))
    for name in _DIFFUSIVITIES.keys() & files.keys():
        unit = (units or {}).get(name, "")
        if not unit:
            hint = f"{name}=um2/ms for values near 1, mm2/s near 0.001, 10-6mm2/s near 1000"
            warnings.warn(f"no unit is given for {name} (--unit {hint})", stacklevel=3)
        elif plain_unit(unit) not in DIFFUSIVITY_FACTORS:
            units_text = ", ".join(DIFFUSIVITY_FACTORS)
            raise ValueError(
                _SENTENCES["wrong_unit"].format(name=name, unit=unit, units=units_text)
            )
    written = {name: _WRITTEN_UNITS.get(plain_unit(x), x) for name, x in (units or {}).items()}
    paths = list(files.values())
    scan = common_stem(paths) or Path(*paths[:1]).parent.name
    return FittedMaps(scan, FOREIGN, files, written)


def plain_unit(unit: str) -> str:
    """Write a unit in letters and digits alone, such as mm2/s."""
    return unicodedata.normalize("NFKC", unit).translate(_UNIT_SIGNS).removeprefix("x")


def _check_units(table: pd.DataFrame, fit: FittedMaps) -> None:
    """Refuse medians of diffusivities that are impossible in the unit that was given."""
    for name, unit in fit.units.items():
        if not unit or name not in _DIFFUSIVITIES:
            continue
        medians = table.loc[table["map"] == name, "median"].dropna().to_numpy()
        possible = []
        for other, factor in DIFFUSIVITY_FACTORS.items():
            with suppress(ValueError):
                check_values(_DIFFUSIVITIES[name], name, factor * medians)
                possible.append(other)
        if plain_unit(unit) not in possible:
            values = {"name": name, "median": np.median(medians), "unit": unit}
            text = _SENTENCES["impossible"].format(**values, better=(possible or ["um2/ms"])[0])
            raise ValueError(f"{fit.maps[name]}: {text}")


def find_fits(folder: str | Path) -> list[FittedMaps]:
    """Find the maps that fits have written to a folder, or those of one sidecar."""
    folder = Path(folder)
    if folder.is_file() and folder.suffix == ".json":
        check_finished(folder.parent, folder.name)
        fit = _read_fit(folder)
        if fit is None:
            raise ValueError(f"{folder} describes no fit; name a file *_model-*_dwimap.json")
        return [fit]
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder of maps; name one that dmrifit fit wrote"
        )
    check_finished(folder)
    sidecars = sorted(folder.glob("*model-*dwimap.json"))
    fits = [fit for fit in map(_read_fit, sidecars) if fit is not None]
    if not fits:
        remedy = "name a folder that dmrifit fit wrote"
        if sidecars:
            remedy = "its maps are predicted: name each by --map NAME=FILE"
        elif (folder / "fits.tsv").is_file():
            remedy = f"name the table of its scans, {folder / 'fits.tsv'}"
        raise ValueError(f"{folder} holds no maps of a fit; {remedy}")
    return fits


def _units_of(description: Mapping[str, Any]) -> dict[str, str]:
    """Read the units of the maps that a sidecar describes."""
    units = {"cost": description.get("Cost", {}).get("Units", "")}
    for name, entry in description.get("Parameters", {}).items():
        units[name] = units[f"{name}_se"] = "" if entry["Units"] == "1" else entry["Units"]
    return units


def _read_fit(sidecar: Path) -> FittedMaps | None:
    """Read the sidecar of a fit, whose files are beside it; None if it describes other maps."""
    files = {}
    try:
        description = json.loads(read_small(sidecar))
        if not isinstance(description, dict):
            raise TypeError(f"it holds a {type(description).__name__}")
        if "Cost" not in description or "Status" not in description:
            return None
        units = _units_of(description)
        for fit_map in FIT_MAPS:
            key = fit_map.sidecar_key
            if fit_map.is_per_parameter:
                for name, entry in description["Parameters"].items():
                    # Fits of earlier versions lack some of these maps, none the parameter's own.
                    if key in entry or key == "File":
                        files[fit_map.name.format(parameter=name)] = entry[key]
            elif key in description:
                files[fit_map.name] = description[key]["File"]
        model = description["Model"]["Name"]
        settings = description.get("Settings", {})
        method, threshold = settings.get("Method", ""), float(settings.get("Threshold", np.nan))
        # A sidecar from elsewhere must not make the program read other folders.
        elsewhere = [file for file in files.values() if Path(file).name != file]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        problem = f"without {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{sidecar} is no sidecar of a fit ({problem}); fit the scan again"
        ) from None
    if elsewhere:
        raise ValueError(
            f"{sidecar} names {elsewhere[0]!r}, which is not beside it; fit the scan again"
        )
    maps = {name: sidecar.parent / file for name, file in files.items()}
    missing = [path.name for path in maps.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{sidecar} names {missing[0]}, which does not exist; fit the scan again"
        )
    # The name of the image precedes the entities that derivative_name added.
    entities = sidecar.stem.split("_")[:-1]
    scan = "_".join(entity for entity in entities if not entity.startswith("model-"))
    return FittedMaps(scan, model, maps, units, method, threshold)


def summarize_fits(
    sources: Sequence[str | Path],
    labels: Sequence[str | Path] = (),
    *,
    names: Mapping[int, str] | None = None,
    maps: Mapping[str, str | Path] | None = None,
    units: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Summarize the maps of many fits, or `maps` of one scan by another program, in regions."""
    import pandas as pd

    scans: list[tuple[dict[str, str], FittedMaps, Path]]
    if maps:
        if sources or len(labels) != 1:
            raise ValueError(_SENTENCES["one_label_image"])
        scans = [({}, named_maps(maps, units), Path(labels[0]))]
    else:
        # All files are located before the first is read, so that a missing one is reported early.
        scans = _named_scans([Path(source) for source in sources], [Path(file) for file in labels])
    fit_tables = []
    for _, fit, _ in scans:
        if fit.method == "map":
            raise ValueError(
                f"{fit.maps['status'].parent}: the maps of {fit.scan} were {PULLED}; "
                "fit the scan with --method nlls"
            )
    for row, fit, image in scans:
        table = roi_table(fit.maps, image, names=names, units=fit.units)
        if fit.model == FOREIGN:
            _check_units(table, fit)
        folder = str(next(iter(fit.maps.values())).parent)
        columns: dict[str, Any] = {**row, "folder": folder, "scan": fit.scan, "model": fit.model}
        columns |= {"method": fit.method, "threshold": fit.threshold}
        for position, (name, value) in enumerate(columns.items()):
            table.insert(position, name, value)
        fit_tables.append(table)
    return pd.concat(fit_tables, ignore_index=True)


def _named_scans(
    sources: list[Path], labels: list[Path]
) -> list[tuple[dict[str, str], FittedMaps, Path]]:
    """List the fits of folders or of a table, each with columns and its label image."""
    tables = [source for source in sources if source.suffix.lower() in (".tsv", ".csv")]
    if tables and len(sources) > 1:
        raise ValueError(
            f"name folders of maps, or one table of them, not {tables[0]} among others"
        )
    rows: list[tuple[dict[str, str], Path, Path | None]]
    rows = [({}, source, None) for source in sources]
    remedy, in_table = "give --labels once for all, or once for each, in order", ""
    if tables:
        _, first_row = read_rows(tables[0], required=())[0]
        # A table of single maps, and not of folders of fits.
        if {"map", "file"} <= first_row.keys():
            return _read_maps(tables[0], labels)
        rows = _read_folders(tables[0])
        in_table = f" in {tables[0]}"
        remedy += _SENTENCES["label_column"]
    if any(image is None for _, _, image in rows) and len(labels) not in (1, len(rows)):
        raise ValueError(
            f"{counted(len(labels), 'label image')} for {counted(len(rows), 'folder')} of maps"
            f"{in_table}; {remedy}"
        )
    defaults: list[Path | None] = [*labels]
    if len(labels) < 2:
        # Without options every row names its own label image.
        defaults = (defaults or [None]) * len(rows)
    located = []
    for (row, folder, image), default in zip(rows, defaults, strict=True):
        label_image = image or default
        if label_image is None or not label_image.is_file():
            where = in_table if image else ""
            raise FileNotFoundError(f"{label_image}: no such label image; check its name{where}")
        located.append((row, folder, label_image))
    return [(row, fit, image) for row, folder, image in located for fit in find_fits(folder)]


def _read_maps(
    table: Path, labels: Sequence[Path]
) -> list[tuple[dict[str, str], FittedMaps, Path]]:
    """Read a table of maps of other programs; one scan has one subject, visit and labels."""
    optional = ("unit", "labels", "subject", "visit")
    listed_rows = read_rows(table, required=("map", "file"), optional=optional)
    check_patients(((line, row.get("subject", "")) for line, row in listed_rows), table)
    if len(labels) > 1:
        raise ValueError(f"{table}: name the label image of each scan in the column labels")
    scans: dict[tuple[str, ...], tuple[str, dict[str, Path], dict[str, str]]] = {}
    for line, row in listed_rows:
        where = f"{table}, row {line}"
        key = tuple(row.get(column, "") for column in ("subject", "visit", "labels"))
        _, maps, units = scans.setdefault(key, (where, {}, {}))
        if row["map"] in maps:
            raise ValueError(f"{where}: {_SENTENCES['same_map'].format(name=row['map'])}")
        maps[row["map"]] = named_file(table.parent, row["file"], f"{where}: file")
        units[row["map"]] = row.get("unit", "")
    named = []
    for (subject, visit, label_name), (where, maps, units) in scans.items():
        if not (label_name or labels):
            raise ValueError(f"{where}: no label image; give the column labels, or --labels")
        image = labels[0] if labels else Path()
        if label_name:
            image = named_file(table.parent, label_name, f"{where}: labels")
        columns = {"subject": subject, "visit": visit}
        present = {column: value for column, value in columns.items() if value}
        named.append((present, named_maps(maps, units), image))
    return named


def read_label_names(path: str | Path) -> dict[int, str]:
    """Read a table of labels (columns name, and index or label): the name of each number."""
    rows = read_rows(path, required=("name",), optional=("index", "label"))
    names: dict[int, str] = {}
    for line, row in rows:
        text = row.get("index") or row.get("label") or ""
        is_number = text.isascii() and text.removeprefix("-").isdecimal()
        if not is_number or int(text) in names:
            problem = "is listed twice" if is_number else "is not a whole number"
            text = _SENTENCES["label_index"].format(index=text, problem=problem)
            raise ValueError(f"{path}, row {line}: {text}")
        names[int(text)] = row["name"]
    return names


def _read_folders(table: Path) -> list[tuple[dict[str, str], Path, Path | None]]:
    """Read a table of folders of maps, with their label images where it names them."""
    rows: list[tuple[dict[str, str], Path, Path | None]] = []
    first_lines: dict[tuple[str, str], int] = {}
    listed_rows = read_rows(table, required=("maps",), optional=("labels", "subject", "visit"))
    check_patients(((line, row.get("subject", "")) for line, row in listed_rows), table)
    for line, row in listed_rows:
        where = f"{table}, row {line}"
        folder = table.parent / row["maps"]
        labels = row.get("labels", "")
        if not folder.exists():
            place = f"paths are relative to {table.parent.resolve()}"
            raise FileNotFoundError(f"{where}: no such folder of maps {row['maps']!r}; {place}")
        first_line = first_lines.setdefault((row["maps"], labels), line)
        if first_line != line:
            raise ValueError(f"{where}: {_SENTENCES['same_maps'].format(row=first_line)}")
        columns: dict[str, str] = {key: row[key] for key in ("subject", "visit") if key in row}
        rows.append((columns, folder, table.parent / labels if labels else None))
    return rows


@dataclass(frozen=True)
class _Volume:
    """A volume in memory; plain arrays have no affine."""

    name: str
    array: NDArray
    affine: NDArray | None


def _read(volume: Volume, name: str, *, is_map: bool = False) -> _Volume:
    """Read a volume from a file, an image or an array."""
    if isinstance(volume, np.ndarray):
        title = f"the array {name}"
        check_real(volume.dtype, title)
        # NumPy computes no percentiles of truth values.
        array = volume.astype(np.uint8) if volume.dtype == bool else volume
        return _Volume(title, three_axes(array, title), None)
    # An image in memory has no name of its own.
    title = image_name(volume, f"the image of {name}")
    loaded = load_image(volume, title)
    values = values_of(loaded, title, is_map=is_map)
    return _Volume(title, three_axes(values, title), loaded.affine)
