"""Files derived from an image: their names in the manner of BIDS, and their sidecars."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit import __version__
from dmrifit._utils.spread_sample import SpreadSample, by_slice
from dmrifit.engine.design.identifiability import expected_precision, snr_of_amplitude
from dmrifit.engine.design.precision import is_undetermined, rounded
from dmrifit.engine.doubts import DoubtTally, least_weighted_signals
from dmrifit.engine.fit_maps import FIT_MAPS, OUTSIDE
from dmrifit.engine.fit_settings import FitSettings
from dmrifit.engine.kernels.layout import is_share
from dmrifit.engine.models import Parameter, SignalModel
from dmrifit.engine.noise_choice import above_air, above_air_or_noise, residual_levels
from dmrifit.engine.protocol import Protocol, least_weighted
from dmrifit.engine.results import FitResult, FitStatus, median_without
from dmrifit.engine.screening import ScreeningTally
from dmrifit.io.atomic_files import write_text
from dmrifit.io.digests import describe
from dmrifit.io.tables import read_texts

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

#: The region of a fit without a mask, in sidecars and pages.
ALL_VOXELS = "all voxels that are nonzero in any measurement (NaN counts as 0)"
#: The upper bound of a kurtosis that keeps the signal falling.
MONOTONIC = "3/(b_max·D)"
# Relative difference of the medians with and without voxels in doubt that is told.
_LARGEST_SHIFT = 0.1
#: What is said where predictions of a model stand that has learned from a simulation.
SYNTHETIC_TRAINING = "The model was trained on synthetic data: its accuracy in people is unknown."
#: The same of means over regions.
REGION_TRAINING = (
    "The model was trained on means over regions, which have less noise than voxels: its accuracy "
    "and its intervals in voxels are unknown."
)
#: What is said where predictions stand without intervals.
NO_INTERVALS = (
    "Without intervals the uncertainty of the predicted values is not known. Intervals need "
    "images and a model trained on five patients or more (dmrifit train, --coverage above 0)."
)

#: Voxels at least that the SNR of a scan is taken from: of millions, a sample tells it as well.
SNR_VOXELS = 2**18

_METHODS = {
    "nlls": "bounded nonlinear least squares",
    "ols": "least squares of logarithms",
    "wls": "weighted least squares of logarithms",
    "segmented": "bounded nonlinear least squares in two steps, the diffusivity of tissue first",
    "map": "the maximum of the posterior density under a prior learned from the region",
}

_EXTENSIONS = re.compile(r"\.(nii|img|hdr)(\.(gz|bz2|zst))?$", re.IGNORECASE)
_BIDS = re.compile(r"sub-[a-zA-Z0-9+]+_(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)*[a-zA-Z0-9]+")


def label(text: str) -> str:
    """Reduce a text to what BIDS allows as the value of an entity: letters and digits."""
    return re.sub(r"[^a-zA-Z0-9]", "", text)


def stem(path: str | Path) -> str:
    """Return the name of an image file without its folder and extensions."""
    return _EXTENSIONS.sub("", Path(path).name)


def common_stem(paths: Sequence[str | Path]) -> str:
    """Join the entities that the names of all image files share."""
    if not paths:
        return ""
    names = [stem(path).split("_") for path in paths]
    return "_".join(entity for entity in names[0] if all(entity in name for name in names))


def derivative_name(source: str, suffix: str, **entities: str) -> str:
    """Name a file derived from an image, in the manner of BIDS derivatives."""
    words = source.split("_") if source else []
    descriptions = []
    if _BIDS.fullmatch(source):
        # The last word is the suffix of the source.
        words.pop()
        descriptions = [word.removeprefix("desc-") for word in words if word.startswith("desc-")]
        words = [word for word in words if not word.startswith("desc-")]
    # A prediction of preprocessed images keeps both words, in one entity as BIDS wants it: preproc
    # and predicted become preprocPredicted.
    added = label(entities.pop("desc", ""))
    description = "".join([*descriptions, added[:1].upper() if descriptions else added[:1]])
    description += added[1:]
    words += [f"{key}-{label(value)}" for key, value in entities.items()]
    if description:
        words.append(f"desc-{description}")
    return "_".join([*words, suffix])


def file_record(path: str | Path) -> dict[str, str]:
    """Describe an input file so that it can be recognized later."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"Name": Path(path).name, "SHA256": digest}


def versions(*packages: str) -> dict[str, str]:
    """List the versions that made a result."""
    names = packages or ("dmrifit", "numba", "numpy", "nibabel")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def makers(*packages: str) -> dict[str, Any]:
    """Describe in a sidecar what made its files."""
    made_by = [{"Name": "dmrifit", "Version": __version__}]
    return {"GeneratedBy": made_by, "Versions": versions(*packages)}


def describe_table_of_fits(table: Path, fields: Mapping[str, Mapping[str, str]]) -> None:
    """
    Describe the columns of a table of fits in BIDS, in a JSON file beside it.

    Names of `fields` that end with _ stand for columns that end with the name of a parameter.
    """
    rows = read_texts(table)
    units: dict[str, str] = {}
    for maps in rows["maps"]:
        entries = json.loads((table.parent / maps).read_text(encoding="utf-8"))["Parameters"]
        units |= {name: entry["Units"] for name, entry in entries.items()}
    described: dict[str, Mapping[str, str]] = {}
    for column in rows:
        # One name may end as another one does, such as fast_D and D.
        names = [name for name in units if column.endswith(f"_{name}")]
        name = max(names, key=len, default="")
        field = fields[column.removesuffix(name)]
        values = {"name": name, "unit": units.get(name)}
        described[column] = {key: text.format(**values) for key, text in field.items()}
    text = json.dumps(described, indent=2, ensure_ascii=False)
    write_text(table.with_suffix(".json"), f"{text}\n")


def describe_dataset(
    out: Path, name: str, kind: str, readme: str, *programs: str, ignored: str = ""
) -> None:
    """Describe a folder as a data set in BIDS that dmrifit and programs made, unless it is."""
    made_by = [{"Name": "dmrifit", "Version": __version__}]
    made_by += [{"Name": program} for program in programs]
    fields = {"Name": name, "BIDSVersion": "1.10.0", "DatasetType": kind, "GeneratedBy": made_by}
    texts = {"dataset_description.json": json.dumps(fields, indent=2) + "\n", "README": readme}
    for file, text in texts.items():
        if text and not (out / file).exists():
            write_text(out / file, text)
    path = out / ".bidsignore"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    # An earlier version, or a person, wrote other lines.
    missing = [line for line in ignored.splitlines() if line not in lines]
    if missing:
        write_text(path, "\n".join([*lines, *missing, ""]))


@dataclass(eq=False)
class FitTally:
    """Count, over slabs of an image, how fits ended, at which bounds, and which are in doubt."""

    model: SignalModel
    contrasts: Protocol
    doubts: DoubtTally
    fixed: Collection[str] = ()
    is_masked: bool = False
    status: NDArray = field(default_factory=partial(np.zeros, len(FitStatus), np.int64))
    screening: ScreeningTally = field(default_factory=ScreeningTally)
    knows_noise: bool = False  # or else residuals stand for it
    _sample: SpreadSample = field(default_factory=partial(SpreadSample, SNR_VOXELS))

    def add(self, result: FitResult, inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Count a part whose voxels lie in `inside` (x, y, slices); give codes of doubts."""
        self.status += np.bincount(result.status, minlength=len(self.status))
        codes = self.doubts.add(result)
        if result.screening is not None:
            self.screening.add(result.screening, result.status != FitStatus.NOT_FITTED)
        noise, level, deviation = np.full((3, len(result)), np.nan)
        if result.inputs is not None:
            known = result.inputs.sigma if result.noise is None else result.noise
            level = deviation = residual_levels(result)
            self.knows_noise = known is not None
            if known is not None:
                noise = level = np.broadcast_to(known, len(result.cost)).astype(np.float64)
        # S0 itself may lie far outside of what was measured, and be not determined.
        signals = least_weighted_signals(result)
        with np.errstate(divide="ignore", invalid="ignore"):
            columns = np.column_stack([signals / level, signals, noise, deviation / noise])
        self._sample.add(columns, by_slice(inside))
        return codes

    def snr(self) -> float:
        """
        Give the SNR of the scan; NaN if it is unknown.

        It is the median over tissue of the signals at the lowest b-value and shortest echo time
        over the noise, or over the standard deviation of residuals where no noise is known.
        """
        snr, signals, noise, _ = self._finite_rows()
        if not len(snr):
            return np.nan
        # Scanners filter the background, so that a map of the noise is too low there.
        is_bright = above_air_or_noise(signals, np.fmax(noise, self.noise_level()))
        return float(np.median(snr[is_bright]))

    def _finite_rows(self) -> NDArray[np.float64]:
        """Give SNR, signal, noise and residuals / noise, (4, n_voxels); the latter may be NaN."""
        rows = self._sample.rows().reshape(-1, 4)
        return rows[np.isfinite(rows[:, :2]).all(axis=1)].T

    def noise_level(self) -> float:
        """Give the noise of the typical voxel: sigma, or of the residuals; NaN if unknown."""
        rows = self._finite_rows()
        snr, signals, noise, _ = rows[:, rows[1] != 0]
        # Of tissue alone: scanners filter the noise of air.
        levels = np.where(np.isfinite(noise), noise, signals / snr)[above_air(signals)]
        return float(np.median(levels)) if len(levels) else np.nan

    def misfit(self) -> float:
        """Give the residuals of the typical voxel of tissue over the noise; NaN if unknown."""
        _, signals, _, ratios = self._finite_rows()
        in_tissue = is_tissue(signals, self.noise_level(), is_masked=self.is_masked)
        ratios = ratios[in_tissue & np.isfinite(ratios)]
        return float(np.median(ratios)) if len(ratios) else np.nan

    @property
    def n_fitted(self) -> int:
        """Number of voxels that have parameters."""
        return int(self.status.sum() - self.status[FitStatus.NOT_FITTED])


def describe_fit(
    tally: FitTally,
    settings: FitSettings,
    bounds: Sequence[tuple[float, float]],
    protocol: Protocol,
    fitted: Protocol,
    inputs: Mapping[str, Any],
    files: Mapping[str, str],
) -> dict[str, Any]:
    """
    Describe a fit for the JSON file that stands beside its maps.

    `fitted` has, for each measurement of `protocol`, the contrast that it was fitted as.
    """
    model = tally.model
    method = _METHODS[settings.method or "nlls"]
    if settings.likelihood != "gaussian":
        method = f"maximum of the {settings.likelihood} likelihood"
    return {
        "Description": f"Voxelwise fit of the signal model {model.name} by {method}",
        **makers(),
        "Model": _describe_model(model),
        "Parameters": _describe_parameters(tally, settings, bounds, files),
        **_describe_voxel_maps(tally, files),
        **tally.screening.describe(),
        **({} if settings.prior is None else {"Prior": settings.prior.describe()}),
        **_describe_expected_precision(tally, fitted),
        "NoValue": (
            "0 outside the mask, NaN inside it where a voxel could not be fitted or an error is "
            "not defined"
        ),
        "Settings": settings.describe() | dict(inputs),
        "Protocol": protocol.to_dict(),
        "FittedProtocol": tally.contrasts.to_dict(),
    }


def _describe_parameters(
    tally: FitTally,
    settings: FitSettings,
    bounds: Sequence[tuple[float, float]],
    files: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Describe each parameter: unit, files, bounds, and how many voxels ended at them."""
    model = tally.model
    readings = tally.doubts.readings(
        partial(is_tissue, noise=tally.noise_level(), is_masked=tally.is_masked)
    )
    capped, fixed = settings.capped(model), settings.fixed or {}
    shares = np.array([tally.doubts.at_low, tally.doubts.at_high]) / tally.doubts.n_counted
    entries: dict[str, dict[str, Any]] = {}
    for j, parameter in enumerate(model.parameters):
        name = parameter.name
        entry = entries[name] = {"Units": _units(parameter), "Bounds": _finite_bounds(bounds[j])}
        for fit_map in FIT_MAPS:
            if fit_map.is_per_parameter:
                entry[fit_map.sidecar_key] = files[fit_map.names(model)[j]]
        if name in capped:
            entry["UpperBoundRule"] = f"also at most {MONOTONIC}"
        if is_share(parameter) and not model.needs_te:
            # At one echo time blood and tissue have decayed by different shares.
            entry["Meaning"] = "T2-weighted signal fraction at the echo time of the scan"
        if name in readings:
            entry["Interval"] = readings[name]
        if parameter.is_amplitude:
            entry["BoundsUnits"] = "multiples of the largest signal of the voxel"
        if name in fixed:
            value = fixed[name]
            entry["Fixed"] = value if isinstance(value, str) else float(np.asarray(value))
        else:
            entry["ShareAtBounds"] = {"Lower": float(shares[0, j]), "Upper": float(shares[1, j])}
    return entries


def is_tissue(signals: NDArray, noise: float, *, is_masked: bool) -> NDArray[np.bool_]:
    """
    Tell which voxels do not look like air, by what was measured at the lowest b-value.

    A mask was chosen: all its voxels count, however dark. Shapes: `signals` (n_voxels,), of which
    NaN is tissue; returns (n_voxels,).
    """
    if is_masked:
        return np.ones(len(signals), bool)
    return above_air_or_noise(signals, noise) | ~np.isfinite(signals)


def find_tissue(
    lowest: NDArray, has_values: NDArray[np.bool_], noise: float, *, is_masked: bool
) -> NDArray[np.bool_]:
    """
    Find the voxels with values that do not look like air; all of them in a region of air alone.

    Shapes: `lowest` (the volume of lowest b), `has_values` and what is returned are (x, y, z).
    """
    selected = is_tissue(lowest[has_values], noise, is_masked=is_masked)
    tissue = has_values.copy()
    tissue[has_values] = selected | ~selected.any()
    return tissue


def summarize_tissue(
    sidecar: dict[str, Any], maps: Mapping[str, NDArray], tissue: NDArray[np.bool_], n_voxels: int
) -> None:
    """
    Add to a sidecar which share of the voxels looks like air, and the quartiles of the others.

    Shapes: `maps` and `tissue` (x, y, z), of `n_voxels` with values.
    """
    names, end = " and ShareAtBounds of parameters", ""
    # Predictions have neither errors nor doubts.
    if "doubt" in maps:
        names = ", StandardError and Interval of parameters, and all shares,"
        end = "; all but BelievedMedian are with doubts"
    sidecar["Air"] = {
        "Share": 1 - int(np.count_nonzero(tissue)) / n_voxels if n_voxels else 0.0,
        "Description": "share of the voxels with values that look like air at the lowest b-value, "
        f"0 in a mask; Quartiles, Window (percentiles 2 and 98){names} leave them out{end}",
    }
    doubts = maps["doubt"][tissue] if "doubt" in maps else None
    shifts = []
    for j, (name, entry) in enumerate(sidecar.get("Parameters", {}).items()):
        values = maps[name][tissue]
        if doubts is not None:
            # One bit for each parameter, and two of the map of bounds.
            at_bound = (maps["at_bound"][tissue] >> 2 * j) % 4 > 0
            entry["BelievedMedian"] = median_without(values, (doubts >> j) % 2 == 1, at_bound)
        values = values[np.isfinite(values)]
        if len(values):
            low, *entry["Quartiles"], high = np.percentile(values, (2, 25, 50, 75, 98)).tolist()
            entry["Window"] = [low, high]
            believed, every = entry.get("BelievedMedian"), entry["Quartiles"][1]
            if believed is not None and not np.isclose(believed, every, _LARGEST_SHIFT, atol=0):
                medians = rounded(believed, 3), rounded(every, 3)
                shifts.append("{} {} without them, {} with them".format(name, *medians))
        if f"{name}_se" in maps:
            entry["StandardError"] = median_without(maps[f"{name}_se"][tissue])
    if shifts:
        sidecar["MedianShift"] = {
            "Description": "leaving out voxels in doubt, which are not a random sample, changes "
            f"medians: {'; '.join(shifts)}"
        }


def summarize_bounds(
    sidecar: dict[str, Any], parameters: Iterable[Parameter], columns: Iterable[NDArray]
) -> None:
    """Add to a sidecar how many predicted values (n_voxels,) of each parameter are at bounds."""
    for parameter, values in zip(parameters, columns, strict=True):
        # Bounds of an amplitude are multiples of each voxel's signal.
        if parameter.is_amplitude or not len(values):
            continue
        bounds = parameter.low, parameter.high
        # Values and bounds are rounded as maps are.
        stored = values.astype(np.float32)
        is_low, is_high = stored <= np.float32(bounds[0]), stored >= np.float32(bounds[1])
        entry = sidecar["Parameters"][parameter.name]
        entry["Bounds"] = _finite_bounds(bounds)
        entry["ShareAtBounds"] = {"Lower": float(is_low.mean()), "Upper": float(is_high.mean())}
        if sum(entry["ShareAtBounds"].values()) > 0.5:
            entry["BelievedMedian"] = None


def _finite_bounds(bounds: tuple[float, float]) -> list[float | None]:
    """Write bounds for JSON, which has no infinity."""
    return [float(bound) if np.isfinite(bound) else None for bound in bounds]


def _describe_expected_precision(tally: FitTally, fitted: Protocol) -> dict[str, Any]:
    """Describe what the protocol can determine in typical tissue at the SNR of this scan."""
    snr = tally.snr()
    contrasts, model = tally.contrasts, tally.model
    # Residuals are those of averages; a noise is that of one volume.
    of_volume = 1.0 if tally.knows_noise else np.sqrt(len(contrasts) / len(fitted))
    of_amplitude = snr_of_amplitude(snr * of_volume, contrasts, model)
    if np.isnan(of_amplitude):
        return {}
    reference = least_weighted(contrasts)[0]
    contrast = f"b = {contrasts.b[reference]:g} s/mm²"
    if contrasts.te is not None:
        contrast += f" and TE {contrasts.te[reference]:g} ms"
    try:
        table = expected_precision(fitted, model, tally.fixed, of_amplitude)
    except ValueError:  # no finite derivative: typical tissue is unknown for a user's model
        return {}
    of_averages = " of averages" if len(contrasts) < len(fitted) else ""
    over = "noise" if tally.knows_noise else f"standard deviation of residuals{of_averages}"
    variations: dict[str, float | None] = {}
    for row, parameter in zip(table.to_dict("records"), model.parameters, strict=True):
        is_open = is_undetermined(parameter, row["value"], row["sd"])
        # A typical value of 0 has no relative error.
        if parameter.name not in tally.fixed and (is_open or np.isfinite(row["cv"])):
            variations[parameter.name] = None if is_open else row["cv"]
    return {
        "ExpectedPrecision": {
            "Description": "Cramér–Rao bound of the coefficient of variation, the least of an "
            "unbiased fit (bounds of parameters and fits in two steps make it smaller), in "
            "typical tissue, at the median over voxels, without air, of the signal at the lowest "
            f"b-value and shortest echo time over the {over}; none for what is not determined",
            "SNR": snr,
            "SNRContrast": contrast,
            "SNROver": over,
            "Exact": f", with {', '.join(tally.fixed)} taken as exact" if tally.fixed else "",
            "CoefficientOfVariation": variations,
            "Inseparable": table.loc[np.isinf(table["sd"]), "parameter"].tolist(),
        }
    }


def _describe_voxel_maps(tally: FitTally, files: Mapping[str, str]) -> dict[str, Any]:
    """Describe the maps of all parameters together, such as the status, by their sidecar keys."""
    status_names = {code: code.name.lower().replace("_", " ") for code in FitStatus}
    status_codes = {str(int(code)): name for code, name in status_names.items()}
    # What the tally has counted for the maps of codes and of flags; others have no such summary.
    summaries: dict[str, dict[str, Any]] = {
        "Status": {
            "Codes": status_codes | {str(OUTSIDE): "outside the mask"},
            "Voxels": {name: int(tally.status[code]) for code, name in status_names.items()},
        },
        "Doubt": {
            "Share": dict(zip(tally.model.names, tally.doubts.share.tolist(), strict=True)),
            "MainReason": tally.doubts.main_reasons,
            "Remedy": tally.doubts.remedies,
            "StartsDisagree": tally.doubts.starts_disagree / tally.doubts.n_counted,
            "Advice": tally.doubts.advice(),
        },
    }
    sections: dict[str, Any] = {}
    for fit_map in FIT_MAPS:
        if not fit_map.is_per_parameter and fit_map.name in files:
            key = fit_map.sidecar_key
            sections[key] = fit_map.describe(files) | summaries.get(key, {})
    return sections


def file_lines(sidecar: Mapping[str, Any], folder: Path) -> list[str]:
    """Say where the maps that a sidecar describes are, and their page and signals, if any."""
    lines = []
    for entry in list(sidecar.get("Parameters", {}).values())[:1]:
        lines.append(f"maps: {folder / re.sub('param-[^_]+', 'param-*', entry['File'])}")
        page = re.sub("param-[^_]+_", "", entry["File"])
        page_path = folder / page.replace("dwimap.nii.gz", "quicklook.html")
        if page_path.exists():
            lines.append(f"page: {page_path}")
    if "Signals" in sidecar:
        lines.append(f"signals: {folder / sidecar['Signals']['File']}")
    return lines


def describe_prediction(
    estimator: BaseEstimator,
    model: SignalModel | None,
    target: Protocol,
    scale: float,
    files: Mapping[str, str],
    settings: Mapping[str, Any],
    voxels: Mapping[str, int],
) -> dict[str, Any]:
    """Describe a prediction for the JSON file that stands beside its maps."""
    regressor = getattr(estimator, "regressor", None)
    regressor = regressor if isinstance(regressor, str) else type(regressor).__name__
    classes = {"Class": type(estimator).__name__, "Regressor": regressor}
    described: dict[str, Any] = {
        "Description": "Predicted from images of another protocol",
        **makers("dmrifit", "numba", "numpy", "nibabel", "scikit-learn"),
        "Estimator": {**classes, "Parameters": describe(estimator.get_params(deep=False))},
    }
    limits = [SYNTHETIC_TRAINING] if getattr(estimator, "synthetic_", False) else []
    if training := getattr(estimator, "training_", None):
        described["Estimator"]["TrainedOn"] = {key.title(): x for key, x in training.items()}
        if training["unit"] == "region":
            limits.append(REGION_TRAINING)
    if limits:
        described["Estimator"]["TrainingData"] = " ".join(limits)
    if model is not None:
        described["Model"] = _describe_model(model)
        described["Parameters"] = {
            parameter.name: {"Units": _units(parameter), "File": files[parameter.name]}
            for parameter in model.parameters
        }
    if "signals" in files:
        described["Signals"] = {"File": files["signals"], "Protocol": target.to_dict()}
    no_value = "0 outside the mask, NaN inside it where nothing could be predicted"
    described |= {"Scale": scale, "NoValue": no_value}
    return described | {"Settings": settings, "Voxels": voxels}


def _describe_model(model: SignalModel) -> dict[str, str]:
    formula = {"Source": model.source} if model.source else {"Expression": model.expression}
    return {"Name": model.name, **formula, "FormulaUnits": "b in ms/µm², te in ms"}


def _units(parameter: Parameter) -> str:
    return parameter.shown_unit or "1"
