"""NIfTI images in, maps out: the only module that reads and writes images."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy, is_proxy
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from tqdm import tqdm

from dmrifit.derivatives import FileSet, derivative_name, file_record, stem, versions
from dmrifit.fitting import FitStatus, fit_voxels
from dmrifit.masks import binarize, check_same_grid, volume_to_voxels
from dmrifit.models import MODELS, SignalModel
from dmrifit.protocol import Protocol, average_directions

__all__ = ["OUTSIDE", "fit_image"]

#: Value of a status map outside the mask; inside are the codes of `FitStatus`.
OUTSIDE = 255

#: Measurements are read and fitted in slabs of whole slices of about this many values.
SLAB_VALUES = 2**23

Image = str | Path | nib.Nifti1Pair


@dataclass(frozen=True)
class Series:
    """A 4-D image that is read slab by slab."""

    name: str
    path: Path | None
    data: Any
    affine: NDArray[np.float64]
    header: nib.Nifti1Header
    image_class: type

    @property
    def grid(self) -> tuple[int, int, int]:
        """Numbers of voxels."""
        return tuple(self.data.shape[:3])

    def slabs(self) -> Iterator[slice]:
        """Give ranges of slices that are read together."""
        x, y, z, m = self.data.shape
        thickness = max(1, SLAB_VALUES // (x * y * m))
        for first in range(0, z, thickness):
            yield slice(first, min(first + thickness, z))

    def read(self, slab: slice) -> NDArray[np.float64]:
        """Read slices, scale factors applied, as an array of shape (x, y, slices, m)."""
        return np.asarray(self.data[:, :, slab, :], dtype=np.float64)

    def map(self, values: NDArray, description: str) -> nib.Nifti1Pair:
        """Make an image of this grid, header and affine as in the input."""
        header = self.header.copy()
        # Extensions (DICOM headers, labels of volumes) describe the measurements, not a map of them.
        header.extensions.clear()
        header.set_data_dtype(values.dtype)
        header["cal_min"] = header["cal_max"] = 0
        header["descrip"] = description.encode("ascii", "replace")[:79]
        return self.image_class(values, self.affine, header)


def fit_image(
    image: Image,
    protocol: Protocol,
    model: str | SignalModel,
    *,
    mask: Image | None = None,
    sigma: float | Image | None = None,
    out: str | Path | None = None,
    average: str | None = None,
    bounds: Mapping[str, tuple[float, float]] | str | None = None,
    fixed: Mapping[str, float] | None = None,
    method: str = "nlls",
    regularization: float | None = None,
    n_starts: int | str = "auto",
    overwrite: bool = False,
    progress: bool = False,
    n_threads: int | None = None,
) -> dict[str, nib.Nifti1Pair]:
    """Interim."""
    model = _model(model)
    series = open_series(image)
    _check_counts(series, protocol, model, average, fixed)
    inside = None if mask is None else _read_mask(mask, series)
    noise = None if sigma is None else _read_sigma(sigma, series, inside)
    wanted = [*model.names, *(f"{name}_se" for name in model.names), "cost", "status"]
    maps = {
        name: np.full(series.grid, OUTSIDE, np.uint8) if name == "status" else np.zeros(series.grid, np.float32)
        for name in wanted
    }
    options = {
        "method": method,
        "bounds": bounds,
        "fixed": fixed,
        "regularization": regularization,
        "n_starts": n_starts,
        "n_threads": n_threads,
    }
    with tqdm(total=series.grid[2], unit="slice", disable=None if progress else True) as bar:
        for slab in series.slabs():
            signals = series.read(slab)
            part = _nonzero(signals) if inside is None else inside[:, :, slab]
            if part.any():
                voxels, contrasts = volume_to_voxels(signals, part), protocol
                if average is not None:
                    voxels, contrasts = average_directions(voxels, protocol, mean=average)
                here = noise if noise is None or np.ndim(noise) == 0 else noise[:, :, slab][part]
                result = fit_voxels(voxels, contrasts, model, sigma=here, **options)
                columns = [*result.parameters.T, *result.standard_errors.T, result.cost, result.status]
                for name, column in zip(wanted, columns, strict=True):
                    maps[name][:, :, slab][part] = column
            bar.update(slab.stop - slab.start)
    images = {name: series.map(values, f"dmrifit {model.name} {name}") for name, values in maps.items()}
    if out is not None:
        source = stem(series.path) if series.path else ""
        names = {
            name: derivative_name(source, "dwimap.nii.gz", model=model.name, param=name)
            for name in wanted
        }
        sidecar = derivative_name(source, "dwimap.json", model=model.name)
        with FileSet(out, [*names.values(), sidecar], overwrite=overwrite) as files:
            for name, derived in images.items():
                nib.save(derived, files.path(names[name]))
            files.write_json(sidecar, {"Versions": versions()})
    return images


def _nonzero(signals):
    return (np.nan_to_num(signals) != 0).any(axis=-1)


def _model(model):
    return MODELS[model] if isinstance(model, str) else model


def open_series(image):
    loaded = nib.load(image)
    return Series(Path(image).name, Path(image), loaded.dataobj, loaded.affine, loaded.header, type(loaded))


def _check_counts(series, protocol, model, average, fixed):
    pass


def _read_mask(mask, series):
    return binarize(nib.load(mask).dataobj)


def _read_sigma(sigma, series, inside):
    return sigma
