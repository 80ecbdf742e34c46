"""Files derived from an image: their names, and what is written beside them."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.models import Parameter, SignalModel
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitResult, FitStatus
from dmrifit.io.digests import describe

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

__all__ = [
    "DOUBTS",
    "MONOTONIC",
    "OUTSIDE",
    "FitTally",
    "bits_type",
    "common_stem",
    "derivative_name",
    "describe_fit",
    "describe_prediction",
    "file_record",
    "label",
    "map_names",
    "pack_bounds",
    "pack_doubts",
    "stem",
    "unpack_bounds",
    "versions",
]

#: Value of a status map outside the mask; inside it holds the codes of `FitStatus`.
OUTSIDE = 255

#: The upper bound of a kurtosis that keeps the signal falling.
MONOTONIC = "3/(b_max·D)"

#: What a map of doubts says of a fit, by the value that is added for each.
DOUBTS = {1: "starts disagree", 2: "ill-conditioned"}

_EXTENSIONS = re.compile(r"\.(nii|img|hdr)(\.(gz|bz2|zst))?$", re.IGNORECASE)
_BIDS = re.compile(r"sub-[a-zA-Z0-9+]+_(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)*[a-zA-Z0-9]+")


def label(text: str) -> str:
    """Reduce a text to what BIDS allows as the value of an entity: letters and digits."""
    return re.sub(r"[^a-zA-Z0-9]", "", text)


def stem(path: str | Path) -> str:
    """Give the name of an image file without its folder and extensions."""
    return _EXTENSIONS.sub("", Path(path).name)


def common_stem(paths: Sequence[str | Path]) -> str:
    """Give what the names of several image files have in common."""
    if not paths:
        return ""
    first, *others = (stem(path).split("_") for path in paths)
    return "_".join(part for part in first if all(part in other for other in others))


def derivative_name(source: str, suffix: str, **entities: str) -> str:
    """Name a file derived from an image, in the manner of BIDS derivatives."""
    parts = source.split("_") if source else []
    description = ""
    if _BIDS.fullmatch(source):
        description = "".join(
            part.removeprefix("desc-") for part in parts if part.startswith("desc-")
        )
        parts = [part for part in parts[:-1] if not part.startswith("desc-")]
    added = label(entities.pop("desc", ""))
    # BIDS joins words by capitals: preproc and predicted become preprocPredicted.
    description += added[:1].upper() + added[1:] if description else added
    parts += [f"{key}-{label(value)}" for key, value in entities.items()]
    return "_".join([*parts, *([f"desc-{description}"] if description else []), suffix])


def file_record(path: str | Path) -> dict[str, str]:
    """Describe an input file so that it can be recognized later."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"Name": Path(path).name, "SHA256": digest}


def versions(*packages: str) -> dict[str, str]:
    """List the versions that made a result."""
    names = packages or ("dmrifit", "numba", "numpy", "nibabel")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def map_names(model: SignalModel) -> list[str]:
    """Name the maps of a fit."""
    names = [
        *model.names,
        *(f"{name}_se" for name in model.names),
        "cost",
        "status",
        "at_bound",
        "doubt",
    ]
    if len(set(names)) != len(names):
        raise ValueError(
            f"model {model.name}: a parameter has the name of another map, of {', '.join(names)}; name it otherwise"
        )
    return names


def pack_bounds(
    at_low: NDArray[np.bool_], at_high: NDArray[np.bool_]
) -> NDArray[np.unsignedinteger]:
    """
    Pack into one number for each voxel which of its parameters ended at a bound.

    Shapes: `at_low`, `at_high` (n_voxels, n_parameters).
    """
    n = at_low.shape[1]
    kind = bits_type(n)
    weights = np.left_shift(kind.type(1), np.arange(2 * n, dtype=kind))
    pairs = np.stack([at_low, at_high], axis=2).reshape(len(at_low), 2 * n)
    return (pairs * weights).sum(axis=1, dtype=kind)


def unpack_bounds(
    bits: NDArray[np.unsignedinteger], n: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """
    Find out which parameters ended at a bound.

    Shapes: `bits` (...); returns at_low, at_high (..., n).
    """
    bits = np.asarray(bits).astype(np.uint64)[..., None]
    shifts = np.arange(2 * n, dtype=np.uint64)
    pairs = ((bits >> shifts) & np.uint64(1)).astype(bool)
    return pairs[..., ::2], pairs[..., 1::2]


def bits_type(n: int) -> np.dtype:
    """Choose the type that holds the bits of so many parameters."""
    for kind in (np.uint16, np.uint32, np.uint64):
        if 2 * n <= 8 * np.dtype(kind).itemsize:
            return np.dtype(kind)
    raise ValueError(f"a map of bounds holds at most 32 parameters, not {n}")


def pack_doubts(result: FitResult) -> NDArray[np.uint8]:
    """Pack into one number for each voxel why its fit is in doubt."""
    fitted = result.status != FitStatus.NOT_FITTED
    doubts = np.zeros(len(result), np.uint8)
    for code, flag in zip(DOUBTS, (result.starts_disagree, result.ill_conditioned), strict=True):
        doubts[flag & fitted] += code
    return doubts


class FitTally:
    """
    Count, over the parts of an image, how fits ended, what ended at a bound, and what is in doubt.

    Parameters
    ----------
    model : SignalModel
        The model.
    """

    def __init__(self, model: SignalModel) -> None:
        self.model = model
        self.status = np.zeros(len(FitStatus), np.int64)
        self.at_low = np.zeros(len(model.names), np.int64)
        self.at_high = np.zeros(len(model.names), np.int64)
        self.doubts = dict.fromkeys(DOUBTS.values(), 0)

    def add(self, result: FitResult) -> None:
        """Count the voxels of one part."""
        self.status += np.bincount(result.status, minlength=len(self.status))
        self.at_low += result.at_low.sum(axis=0)
        self.at_high += result.at_high.sum(axis=0)
        doubts = pack_doubts(result)
        for code, reason in DOUBTS.items():
            self.doubts[reason] += int(np.count_nonzero(doubts & code))

    @property
    def n_fitted(self) -> int:
        """Number of voxels that have parameters."""
        return int(self.status.sum() - self.status[FitStatus.NOT_FITTED])


def describe_fit(
    tally: FitTally,
    bounds: Sequence[tuple[float, float]],
    fixed: Mapping[str, float],
    protocol: Protocol,
    contrasts: Protocol,
    settings: Mapping[str, Any],
    files: Mapping[str, str],
    *,
    monotonic: Collection[str] = (),
) -> dict[str, Any]:
    """Describe a fit for the JSON file that stands beside its maps."""
    model, n = tally.model, max(tally.n_fitted, 1)
    parameters = {}
    for parameter, box, low, high in zip(
        model.parameters, bounds, tally.at_low, tally.at_high, strict=True
    ):
        name = parameter.name
        entry: dict[str, Any] = {
            "Units": _units(parameter),
            "Bounds": [float(bound) if np.isfinite(bound) else None for bound in box],
            "File": files[name],
            "StandardErrorFile": files[f"{name}_se"],
        }
        if name in monotonic:
            entry["UpperBoundRule"] = f"also at most {MONOTONIC}"
        if parameter.is_amplitude:
            entry["BoundsUnits"] = "multiples of the largest signal of the voxel"
        if name in fixed:
            entry["Fixed"] = float(fixed[name])
        else:
            entry["ShareAtBounds"] = {"Lower": float(low / n), "Upper": float(high / n)}
        parameters[name] = entry
    codes = {str(int(code)): code.name.lower().replace("_", " ") for code in FitStatus}
    return {
        "Description": f"Voxelwise fit of the signal model {model.name} by bounded nonlinear least squares",
        "GeneratedBy": [{"Name": "dmrifit", "Version": version("dmrifit")}],
        "Versions": versions(),
        "Model": _describe_model(model),
        "Parameters": parameters,
        "Cost": {"Description": "sum of squared residuals", "File": files["cost"]},
        "Status": {
            "File": files["status"],
            "Codes": codes | {str(OUTSIDE): "outside the mask"},
            "Voxels": {codes[str(int(code))]: int(tally.status[code]) for code in FitStatus},
        },
        "AtBound": {
            "Description": "bit 2j (value 4**j) is set where parameter j, counted from 0 in the order of Parameters, "
            "is at its lower bound, bit 2j + 1 (value 2 * 4**j) where it is at its upper bound",
            "File": files["at_bound"],
        },
        "Doubt": {
            "Description": "1 where starts disagree (another start came within 1 % of the cost in another place), 2 "
            "where the fit is ill-conditioned (its parameters cannot be told apart), 3 for both",
            "File": files["doubt"],
            "Share": {reason: count / n for reason, count in tally.doubts.items()},
        },
        "NoValue": "0 outside the mask, NaN inside it where a voxel could not be fitted or an error is not defined",
        "Settings": dict(settings),
        "Protocol": protocol.to_dict(),
        "FittedProtocol": contrasts.to_dict(),
    }


def describe_prediction(
    estimator: BaseEstimator,
    model: SignalModel | None,
    target: Protocol,
    scale: float,
    files: Mapping[str, str],
) -> dict[str, Any]:
    """Describe a prediction for the JSON file that stands beside its maps."""
    described: dict[str, Any] = {
        "Description": "Predicted from images of another protocol",
        "GeneratedBy": [{"Name": "dmrifit", "Version": version("dmrifit")}],
        "Versions": versions("dmrifit", "numba", "numpy", "nibabel", "scikit-learn"),
        "Estimator": {
            "Class": type(estimator).__name__,
            "Parameters": describe(estimator.get_params(deep=False)),
        },
    }
    if model is not None:
        described["Model"] = _describe_model(model)
        described["Parameters"] = {
            parameter.name: {"Units": _units(parameter), "File": files[parameter.name]}
            for parameter in model.parameters
        }
    if "signals" in files:
        described["Signals"] = {"File": files["signals"], "Protocol": target.to_dict()}
    return described | {
        "Scale": scale,
        "NoValue": "0 outside the mask, NaN inside it where nothing could be predicted",
    }


def _describe_model(model: SignalModel) -> dict[str, str]:
    formula = {"Source": model.source} if model.source else {"Expression": model.expression}
    return {"Name": model.name, **formula, "FormulaUnits": "b in ms/µm², te in ms"}


def _units(parameter: Parameter) -> str:
    return "arbitrary, as the image" if parameter.is_amplitude else parameter.unit or "1"
