"""The predictions of a comparison, voxel by voxel: for maps, decay curves and joint histograms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dmrifit.io.atomic_files import remove_abandoned_parts, whole_file

__all__ = ["FolderPredictions", "PatientPredictions"]

_FOLDER = "predictions"
_BETWEEN = "@"
_MAPS, _SIGNALS = "maps/", "signals/"


@dataclass(frozen=True, eq=False, repr=False)
class PatientPredictions:
    """
    What was predicted for a held-out patient, on the grid of its scan.

    Attributes
    ----------
    cohort, patient : str
        Names.
    index : ndarray of int, shape (n_voxels, 3)
        The scored voxels.
    shape : tuple of 3 ints
        The grid.
    affine : ndarray of shape (4, 4)
        From voxel indices to RAS+ coordinates in mm.
    names, units : tuple of str
        Parameters of the model.
    labels : tuple of str
        Target contrasts.
    b, te : ndarray of shape (n_target,)
        Of these, in s/mm² and ms; te is NaN without echo times.
    seen : ndarray of bool, shape (n_target,)
        Which of these are inputs of the estimators.
    reference : ndarray of shape (n_voxels, n_parameters)
        The fit to the measured signals. Amplitudes are relative to the patient's scale.
    truth : ndarray of shape (n_voxels, n_parameters) or None
        Of a synthetic scan.
    measured : ndarray of shape (n_voxels, n_target)
        Measured signals, relative to the patient's scale.
    maps, signals : dict of str to ndarray
        Predicted parameters and signals, by estimator.
    """

    cohort: str
    patient: str
    index: NDArray[np.intp]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    names: tuple[str, ...]
    units: tuple[str, ...]
    labels: tuple[str, ...]
    b: NDArray[np.float64]
    te: NDArray[np.float64]
    seen: NDArray[np.bool_]
    reference: NDArray
    truth: NDArray | None
    measured: NDArray
    maps: dict[str, NDArray]
    signals: dict[str, NDArray]

    def __repr__(self) -> str:
        patient = f"{self.patient!r} of cohort {self.cohort!r}, {len(self.index)} voxels"
        return f"<Predictions for {patient}, by {', '.join(self.maps)}>"

    def volume(self, values: NDArray) -> NDArray:
        """
        Put values of the voxels on the grid of the scan.

        Shapes: returns (x, y, z).
        """
        values = np.asarray(values)
        dtype = np.result_type(values, np.float32)
        out = np.full((*self.shape, *values.shape[1:]), np.nan, dtype=dtype)
        out[tuple(self.index.T)] = values
        return out


class FolderPredictions(Mapping[tuple[str, str], PatientPredictions]):
    """
    The predictions in the folder of a comparison, each patient read when it is asked for.

    Parameters
    ----------
    folder : path
        That of the comparison.
    """

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
            arrays: dict[str, Any] = {}
            for field in fields(patient):
                value = getattr(patient, field.name)
                if value is not None and field.name not in ("maps", "signals"):
                    arrays[field.name] = value
            for estimator, values in patient.maps.items():
                arrays[_MAPS + estimator] = values
            for estimator, values in patient.signals.items():
                arrays[_SIGNALS + estimator] = values
            with whole_file(self.folder / _file(*key)) as part, part.open("wb") as file:
                np.savez_compressed(file, **arrays)


def _file(cohort: str, patient: str) -> str:
    # A name that begins with a dot would be hidden; the character between is always quoted in
    # names.
    names = [quote(name, safe=" ").replace(".", "%2E") for name in (cohort, patient)]
    return f"{_BETWEEN.join(names)}.npz"


def _read(path: Path) -> PatientPredictions:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = dict(content)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}); run the comparison again to restore it"
        ) from None
    predicted: dict[str, dict[str, NDArray]] = {}
    for prefix in (_MAPS, _SIGNALS):
        names = [name for name in arrays if name.startswith(prefix)]
        predicted[prefix] = {name.removeprefix(prefix): arrays.pop(name) for name in names}
    x, y, z = map(int, arrays["shape"])
    return PatientPredictions(
        cohort=str(arrays["cohort"]),
        patient=str(arrays["patient"]),
        index=arrays["index"],
        shape=(x, y, z),
        affine=arrays["affine"],
        names=tuple(map(str, arrays["names"])),
        units=tuple(map(str, arrays["units"])),
        labels=tuple(map(str, arrays["labels"])),
        b=arrays["b"],
        te=arrays["te"],
        seen=arrays["seen"],
        reference=arrays["reference"],
        truth=arrays.get("truth"),
        measured=arrays["measured"],
        maps=predicted[_MAPS],
        signals=predicted[_SIGNALS],
    )
