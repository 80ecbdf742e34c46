"""The predictions of a comparison, voxel by voxel: for maps, decay curves and joint histograms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dmrifit.io.atomic_files import remove_abandoned_parts, whole_file

_FOLDER = "predictions"
_BETWEEN = "@"
#: Fields of arrays by estimator; a file has the array of each as "maps/NAME" or "signals/NAME".
_BY_ESTIMATOR = ("maps", "signals")


@dataclass(frozen=True, eq=False, repr=False)
class PatientPredictions:
    """Predictions for a held-out patient; amplitudes are relative to the patient's scale."""

    cohort: str
    patient: str
    index: NDArray[np.intp]  # (n_voxels, 3), the scored voxels
    shape: tuple[int, int, int]  # of the grid of the scan
    affine: NDArray[np.float64]  # (4, 4), from voxel indices to RAS+ coordinates in mm
    names: tuple[str, ...]  # of the parameters
    units: tuple[str, ...]
    labels: tuple[str, ...]  # of the target contrasts
    b: NDArray[np.float64]  # (n_target,), in s/mm²
    te: NDArray[np.float64]  # (n_target,), in ms; NaN without echo times
    seen: NDArray[np.bool_]  # (n_target,), which of these are inputs of the estimators
    reference: NDArray  # (n_voxels, n_parameters), the fit to the measured signals
    truth: NDArray | None  # (n_voxels, n_parameters), of a synthetic scan
    measured: NDArray  # (n_voxels, n_target)
    maps: dict[str, NDArray]  # (n_voxels, n_parameters) by estimator
    signals: dict[str, NDArray]  # (n_voxels, n_target) by estimator
    # (x, y, z), gray levels 0 to 255 of the image below the maps; None in earlier files
    anatomy: NDArray[np.uint8] | None = None

    def __repr__(self) -> str:
        patient = f"{self.patient!r} of cohort {self.cohort!r}, {len(self.index)} voxels"
        return f"<Predictions for {patient}, by {', '.join(self.maps)}>"

    def volume(self, values: NDArray) -> NDArray:
        """Put values of the voxels, (n_voxels, …), on the grid of the scan, (x, y, z, …)."""
        values = np.asarray(values)
        out = np.full((*self.shape, *values.shape[1:]), np.nan, np.result_type(values, np.float32))
        out[tuple(self.index.T)] = values
        return out


class FolderPredictions(Mapping[tuple[str, str], PatientPredictions]):
    """The predictions in the folder of a comparison, each patient read when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / _FOLDER

    def __getitem__(self, key: tuple[str, str]) -> PatientPredictions:
        path = self.folder / _file(*key)
        if not path.is_file():
            raise KeyError(key)
        return _read(path)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for path in self._files():
            cohort, _, patient = path.stem.partition(_BETWEEN)
            yield unquote(cohort), unquote(patient)

    def __len__(self) -> int:
        return len(self._files())

    def _files(self) -> list[Path]:
        """List the files that are whole; a hidden one is being written."""
        return sorted(path for path in self.folder.glob("*.npz") if not path.name.startswith("."))

    def write(self, predictions: Mapping[tuple[str, str], PatientPredictions]) -> None:
        """Write predictions, each file whole or not at all; remove those of other patients."""
        names = {_file(*key) for key in predictions}
        remove_abandoned_parts(self.folder)
        for path in self._files():
            if path.name not in names:
                path.unlink(missing_ok=True)
        for key, patient in predictions.items():
            arrays = {name: value for name, value in vars(patient).items() if value is not None}
            for field in _BY_ESTIMATOR:
                for estimator, values in arrays.pop(field).items():
                    arrays[f"{field}/{estimator}"] = values
            with whole_file(self.folder / _file(*key)) as part, part.open("wb") as file:
                np.savez_compressed(file, **arrays)


def _file(cohort: str, patient: str) -> str:
    # A name that begins with a dot would be hidden; the character between is always quoted in
    # names.
    names = [quote(name, safe=" ").replace(".", "%2E") for name in (cohort, patient)]
    return f"{_BETWEEN.join(names)}.npz"


def _read(path: Path) -> PatientPredictions:
    try:
        # A pickle could run code when it is read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = dict(content)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}); run the comparison again to restore it"
        ) from None
    values: dict[str, Any] = {field: {} for field in _BY_ESTIMATOR}
    values["truth"] = None  # of measured scans, whose files have none
    for name, array in arrays.items():
        field, _, estimator = name.partition("/")
        if field in _BY_ESTIMATOR:
            values[field][estimator] = array
        elif array.dtype.kind == "U":  # text
            values[name] = tuple(map(str, array)) if array.ndim else str(array)
        else:
            values[name] = array
    values["shape"] = tuple(map(int, values["shape"]))
    return PatientPredictions(**values)
