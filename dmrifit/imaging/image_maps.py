"""Maps of one image, fitted or predicted: a mapping of names to images that saves itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.html_repr import InlinePage
from dmrifit.engine.fit_maps import unpack_bits, unpack_bounds
from dmrifit.engine.kernels.layout import UNDETERMINED_SHARE
from dmrifit.engine.models import SignalModel, python_words
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitStatus
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.bids_derivatives import NO_INTERVALS
from dmrifit.io.nifti import describe_sources, file_paths, output_files, save_image
from dmrifit.predict.novelty import NOVEL

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from dmrifit.predict.conformal import ConformalIntervals
    from dmrifit.predict.strategies import MapsToMaps, SignalToSignal
    from dmrifit.report.voxel_records import VoxelSignals

__all__ = ["ImageMaps"]


#: Name of the map of `ConformalIntervals.typicality`.
TYPICALITY = "typicality"


class ImageMaps(dict[str, nib.Nifti1Pair]):
    """
    Maps of one image by name, as `fit_image` and `predict_image` return them.

    ``maps["ADC"]`` is a Nifti1Image. In a notebook the last line of a cell shows a verdict, a
    table and three slices.

    Parameters
    ----------
    images : mapping of str to Nifti1Image
        By name, of one grid.
    sidecar : mapping
        What describes them: parameters with units, counts of voxels, settings, versions.
    files : mapping of str to str
        Names of the files of a folder by map, and of ``"html"``, ``"png"`` and ``"sidecar"``.
    title : str, default="image"
        Name of the scan.
    sources : mapping of str to object, optional
        What was read, by role; files are described beside saved maps.
    target : Protocol, optional
        Measurements of ``"signals"``.
    background : Nifti1Image, optional
        The scan, on which a page shows the maps.
    signals : VoxelSignals, optional
        Measured signals, which the page of a fit shows voxel by voxel.

    Attributes
    ----------
    sidecar : dict
        As given.
    """

    def __init__(
        self,
        images: Mapping[str, nib.Nifti1Pair],
        sidecar: Mapping[str, Any],
        files: Mapping[str, str],
        *,
        title: str = "image",
        sources: Mapping[str, Any] | None = None,
        target: Protocol | None = None,
        background: nib.Nifti1Pair | None = None,
        signals: VoxelSignals | None = None,
    ) -> None:
        super().__init__(images)
        self._background = background
        self._signals = signals
        self.sidecar = dict(sidecar)
        self._files = dict(files)
        self._title = title
        self._target = target
        # Paths alone: the images themselves may take gigabytes.
        self._sources = {role: file_paths([source]) for role, source in (sources or {}).items()}

    def __missing__(self, name: str) -> nib.Nifti1Pair:
        raise KeyError(f"there is no map {name!r}; there are {', '.join(self)}")

    def __repr__(self) -> str:
        from dmrifit.report.verdict import map_verdict

        size = " × ".join(map(str, next(iter(self.values())).shape[:3]))
        others = [name for name in self if name not in self.names]
        return (
            f"<ImageMaps of {self._heading}, {size} voxels: {', '.join(self.names)}\n"
            f"beside them: {', '.join(others) or 'nothing'}\n{map_verdict(self.sidecar)}>"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The maps of parameters, apart from those of errors, intervals and doubts."""
        return tuple(self.sidecar.get("Parameters", {}))

    def _repr_html_(self) -> str:
        """Show verdict, table and slices in notebooks."""
        from dmrifit.report.quicklook import ShownMaps, map_summary

        shown = ShownMaps(*self.upright(), self.sidecar)
        return map_summary(shown, title=self._heading, advice=self.advice())

    def advice(self) -> list[str]:
        """
        Say in sentences what limits the values, and what helps, as the page does.

        Remedies name arguments of `fit_image`.

        Returns
        -------
        list of str
            Empty for a sound fit.
        """
        from dmrifit.report.verdict import fit_sentences, prose

        if "Status" in self.sidecar:
            return list(map(python_words, prose(fit_sentences(self.sidecar), self.sidecar)))
        if "Intervals" in self.sidecar:
            from dmrifit.report.quicklook import interval_advice

            sentences = interval_advice(self.sidecar["Intervals"])
        else:
            sentences = [NO_INTERVALS]
        if "TrainingData" in self.sidecar.get("Estimator", {}):
            sentences.append(self.sidecar["Estimator"]["TrainingData"])
        return sentences

    def view(self) -> InlinePage:
        """
        Go through the maps in three planes.

        Returns
        -------
        InlinePage
            A page that a notebook shows in a frame; its ``html`` is a file for a browser.

        Raises
        ------
        ImportError
            If the extra ``report`` is not installed.
        ValueError
            If there are no maps of parameters.
        """
        from dmrifit.report.quicklook import ShownMaps, map_viewer

        sidecar = dict(self.sidecar)
        if doubt := sidecar.get("Doubt"):
            remedies = {name: python_words(text) for name, text in doubt["Remedy"].items()}
            sidecar["Doubt"] = doubt | {"Remedy": remedies}
        shown = ShownMaps(*self.upright(), sidecar)
        return map_viewer(
            shown, self._heading, self._upright_background(), self._upright_signals()
        )

    def to_dataframe(self) -> pd.DataFrame:
        """
        Tabulate the maps, a row for each voxel that has values.

        Returns
        -------
        DataFrame
            Voxel indices ``i``, ``j``, ``k``, RAS+ coordinates ``x``, ``y``, ``z`` in mm, and each
            3-D map under its name; of a fit ``status`` in words and ``<name>_doubt``, True where
            a parameter is in doubt, as in `FitResult.to_dataframe`, ``<name>_at_low`` and
            ``<name>_at_high``, True at a bound, and ``starts_disagree``. ``attrs["units"]`` holds
            the units of the columns.
        """
        import pandas as pd

        maps, affine, region = self._arrays()
        indices = np.argwhere(region)
        places = nib.affines.apply_affine(affine, indices)
        columns = dict(zip("ijkxyz", [*indices.T, *places.T], strict=True))
        columns |= {name: values[region] for name, values in maps.items() if values.ndim == 3}
        if "status" in columns:
            words = np.array([status.name.lower() for status in FitStatus])
            columns["status"] = words[columns["status"]]
            in_doubt = unpack_bits(columns.pop("doubt"), len(self.names) + 1)
            at_low, at_high = unpack_bounds(columns.pop("at_bound"), len(self.names))
            for j, name in enumerate(self.names):
                columns[f"{name}_doubt"] = in_doubt[:, j]
                columns[f"{name}_at_low"], columns[f"{name}_at_high"] = at_low[:, j], at_high[:, j]
            columns["starts_disagree"] = in_doubt[:, -1]
        frame = pd.DataFrame(columns)
        frame.attrs["units"] = self._units()
        return frame

    def _units(self) -> dict[str, str]:
        """Give the units of coordinates, parameters, their errors and the ends of intervals."""
        units = dict.fromkeys("xyz", "mm")
        for name, entry in self.sidecar.get("Parameters", {}).items():
            names = [f"{name}{ending}" for ending in ("", "_se", "_low", "_high")]
            units |= dict.fromkeys(filter(self.__contains__, names), entry["Units"])
        return units

    def to_xarray(self) -> Any:
        """
        Give the maps as a Dataset of xarray.

        Returns
        -------
        xarray.Dataset
            Each 3-D map with the dimensions ``i``, ``j``, ``k``, its unit in ``attrs["units"]``;
            NaN outside the voxels that were fitted or predicted, where images hold 0, but for
            maps of codes (``status``, ``at_bound``, ``doubt``), which stay as they are. RAS+
            coordinates in mm are ``x``, ``y``, ``z``, of each voxel; the affine is an attribute.

        Raises
        ------
        ImportError
            If xarray is not installed.
        """
        xarray = import_optional("xarray")
        maps, affine, region = self._arrays()
        places = nib.affines.apply_affine(affine, np.moveaxis(np.indices(region.shape), 0, -1))
        axes = ("i", "j", "k")
        coords = {"xyz"[axis]: (axes, places[..., axis]) for axis in range(3)}
        arrays = {
            name: (axes, np.where(region, values, np.nan) if values.dtype.kind == "f" else values)
            for name, values in maps.items()
            if values.ndim == 3
        }
        dataset = xarray.Dataset(arrays, coords, {"affine": affine})
        for name, unit in self._units().items():
            dataset[name].attrs["units"] = unit
        return dataset

    def plot(self, name: str | None = None, voxel: tuple[int, int, int] | None = None) -> Figure:
        """
        Draw a map, gray where it is in doubt, and the signals and fitted curve of a voxel.

        Parameters
        ----------
        name : str, optional
            A parameter; by default the one least in doubt that is no amplitude.
        voxel : tuple of int, optional
            Indices (i, j, k) of a voxel with signals; by default a sound one in the middle.
            Predictions have no curve.

        Returns
        -------
        Figure
            Of matplotlib; a notebook shows it.

        Raises
        ------
        ImportError
            If the extra ``report`` is not installed.
        KeyError, ValueError
            If there is no such parameter, or the voxel has no signals.
        """
        from dmrifit.report.quicklook import ShownMaps, single_map_figure

        maps, affine = self.upright()
        if voxel is not None:
            first = next(iter(self.values()))
            grid = first.shape[:3]
            if len(voxel) != 3 or not all(i in range(n) for i, n in zip(voxel, grid, strict=True)):
                raise ValueError(f"voxel must be (i, j, k) within {grid}, from 0, not {voxel}")
            place = first.affine @ [*voxel, 1]
            voxel = tuple(np.rint(np.linalg.solve(affine, place))[:3].astype(int).tolist())
        shown, signals = ShownMaps(maps, affine, self.sidecar), self._upright_signals()
        return single_map_figure(shown, name, signals, voxel, self._heading)

    def _arrays(self) -> tuple[dict[str, NDArray], NDArray[np.float64], NDArray[np.bool_]]:
        """Give the maps as they are stored, their affine, and the voxels that have values."""
        from dmrifit.report.quicklook import ShownMaps

        maps = {name: np.asanyarray(image.dataobj) for name, image in self.items()}
        affine = next(iter(self.values())).affine
        return maps, affine, ShownMaps(maps, affine, self.sidecar).region

    def save(
        self, folder: str | Path, *, quicklook: bool = False, overwrite: bool = False
    ) -> None:
        """
        Write the maps with their JSON file, as `fit_image` does with `out`.

        Parameters
        ----------
        folder : path
            Made if missing.
        quicklook : bool, default=False
            Whether to write a page to look at the maps, too; needs the extra ``report``.
        overwrite : bool, default=False
            Whether files of the same names may be replaced.

        Raises
        ------
        FileExistsError
            If a file would be overwritten without `overwrite`.
        OSError
            If the folder cannot be written to.
        """
        if quicklook:
            import_quicklook_libraries()
        inputs = self._sources.values()
        files = self._files.values()
        with output_files(folder, files, overwrite=overwrite, inputs=inputs) as file_set:
            if file_set is not None:
                self.write(file_set, quicklook=quicklook)

    def write(self, file_set: FileSet, *, quicklook: bool) -> None:
        """
        Write maps, page and sidecar into a set of files.

        Parameters
        ----------
        file_set : FileSet
            Opened with the names of these files.
        quicklook : bool
            Whether to write the page.
        """
        sidecar = self.sidecar | {"Sources": describe_sources(**self._sources)}
        for name, image in self.items():
            save_image(image, file_set.path(self._files[name]))
        if self._target is not None and "signals" in self:
            np.savetxt(file_set.path(self._files["bval"]), self._target.b[None], fmt="%.10g")
            if self._target.te is not None:
                np.savetxt(file_set.path(self._files["te"]), self._target.te[None], fmt="%.10g")
        if quicklook and "html" in self._files:
            self._write_page(file_set, sidecar)
        file_set.write_json(self._files["sidecar"], sidecar)

    def _write_page(self, file_set: FileSet, sidecar: Mapping[str, Any]) -> None:
        from dmrifit.report.quicklook import ShownMaps, write_prediction_page, write_quicklook

        maps, affine = self.upright()
        maps.pop("signals", None)
        shown = ShownMaps(maps, affine, sidecar)
        common: dict[str, Any] = {
            "title": self._title,
            "html": file_set.path(self._files["html"]),
            "background": self._upright_background(),
        }
        if "Status" in sidecar:
            picture = file_set.path(self._files["png"])
            write_quicklook(shown, png=picture, signals=self._upright_signals(), **common)
            return
        write_prediction_page(shown, windows=self._fit_windows(file_set.folder), **common)

    def _fit_windows(self, folder: Path) -> dict[str, tuple[float, float]]:
        """Read the ends of the color scales of a fit of the same scan and model in a folder."""
        from dmrifit.report.quicklook import color_window

        predicted = self._files["sidecar"]
        sidecar = folder / predicted.replace("_desc-predicted_", "_").replace("Predicted_", "_")
        # The sidecar completes a fit.
        if not sidecar.is_file():
            return {}
        entries = json.loads(sidecar.read_text(encoding="utf-8")).get("Parameters", {})
        # A parameter that is fixed at one value has a map, too, but no scale.
        free = {name: entry for name, entry in entries.items() if "Fixed" not in entry}
        windows = {name: color_window(entry) for name, entry in free.items()}
        return {name: window for name, window in windows.items() if window is not None}

    @property
    def _heading(self) -> str:
        """The scan and the model, for titles."""
        if "Model" not in self.sidecar:
            return self._title
        return f"{self._title}, model {self.sidecar['Model']['Name']}"

    def upright(self) -> tuple[dict[str, NDArray], NDArray[np.float64]]:
        """
        Reorder the maps to RAS, which figures expect.

        Returns
        -------
        maps : dict of str to ndarray of shape (x, y, z) or (x, y, z, n_target)
            By name.
        affine : ndarray of shape (4, 4)
            From their voxel indices to RAS+ coordinates in mm.
        """
        upright = {name: nib.as_closest_canonical(image) for name, image in self.items()}
        maps = {name: np.asanyarray(image.dataobj) for name, image in upright.items()}
        return maps, next(iter(upright.values())).affine

    def _upright_background(self) -> NDArray | None:
        if self._background is None:
            return None
        return np.asanyarray(nib.as_closest_canonical(self._background).dataobj)

    def _upright_signals(self) -> VoxelSignals | None:
        """Reorder the voxels that have signals as the maps are."""
        if self._signals is None:
            return None
        image = nib.Nifti1Image(self._signals.rows, next(iter(self.values())).affine)
        return replace(self._signals, rows=np.asanyarray(nib.as_closest_canonical(image).dataobj))


def import_quicklook_libraries() -> None:
    """Check before long work that pages can be written."""
    import_optional("matplotlib")
    import_optional("jinja2")


def predicted_map_names(model: SignalModel | None, *, with_intervals: bool) -> list[str]:
    """List the maps of a prediction: parameters, and with intervals their ends and typicality."""
    if model is None:
        return []
    names = list(model.names)
    if with_intervals:
        names += [f"{name}_{end}" for name in model.names for end in ("low", "high")]
        names.append(TYPICALITY)
    return names


class PredictedMaps:
    """The maps of a prediction and the counts of its voxels, filled slab by slab."""

    def __init__(
        self,
        estimator: SignalToSignal | MapsToMaps,
        model: SignalModel | None,
        grid: tuple[int, int, int],
        *,
        signals: bool,
        intervals: ConformalIntervals | None,
    ) -> None:
        self.parameters = () if model is None else tuple(model.parameters)
        names = predicted_map_names(model, with_intervals=intervals is not None)
        self.maps: dict[str, NDArray] = {name: np.zeros(grid, np.float32) for name in names}
        if TYPICALITY in self.maps:
            # Outside 0 would say that a voxel is unlike the training voxels.
            self.maps[TYPICALITY].fill(np.nan)
        if signals:
            assert estimator.target is not None
            self.maps["signals"] = np.zeros((*grid, len(estimator.target)), np.float32)
        self.region = np.zeros(grid, bool)
        self.counts = {"InMask": 0, "WithSignal": 0, "NegativeSignal": 0}
        self._estimator: Any = estimator
        self._intervals = intervals if model is not None else None

    def add(
        self,
        rows: NDArray,
        unit: float,
        noise: float | NDArray | None,
        slab: slice,
        inside: NDArray[np.bool_],
    ) -> None:
        """Predict the voxels of a slab from rows of signals; `unit` is the patient's scale."""
        # The estimator was trained on signals in multiples of the patient's scale.
        scaled = rows / unit
        options = {} if noise is None else {"sigma": noise / unit}
        columns: dict[str, NDArray] = {}
        fits_signals = hasattr(self._estimator, "maps_of")
        if "signals" in self.maps or fits_signals:
            predicted = np.asarray(self._estimator.predict(scaled))
            self.counts["NegativeSignal"] += int((predicted < 0).any(axis=1).sum())
        if "signals" in self.maps:
            columns["signals"] = predicted * unit
        if self.parameters:
            # Maps are fitted to the predicted signals where the estimator predicts signals.
            if fits_signals:
                maps = self._estimator.maps_of(predicted, **options)
            else:
                maps = np.asarray(self._estimator.predict_maps(scaled, **options))
            ends = None
            if self._intervals is not None:
                ends = self._intervals.intervals_of(scaled, maps)
                columns[TYPICALITY] = self._intervals.typicality(scaled)
            for j, parameter in enumerate(self.parameters):
                gain = unit if parameter.is_amplitude else 1.0
                columns[parameter.name] = maps[:, j] * gain
                if ends is not None:
                    columns[f"{parameter.name}_low"] = ends[:, j, 0] * gain
                    columns[f"{parameter.name}_high"] = ends[:, j, 1] * gain
        for name, column in columns.items():
            self.maps[name][:, :, slab][inside] = column
        self.region[:, :, slab] |= inside
        self.counts["InMask"] += len(rows)
        self.counts["WithSignal"] += int(np.isfinite(rows).all(axis=1).sum())

    def describe_intervals(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Describe the intervals for the JSON file beside the maps; nothing without intervals."""
        intervals = self._intervals
        if intervals is None:
            return {}
        coverage = intervals.calibration_.groupby("parameter")["coverage"].agg(["mean", "min"])
        entries = {}
        for parameter in self.parameters:
            name = parameter.name
            width = (self.maps[f"{name}_high"] - self.maps[f"{name}_low"])[self.region]
            width = width[np.isfinite(width)]
            box = parameter.high - parameter.low
            share = None
            # Bounds of an amplitude are multiples of each voxel's signal.
            if len(width) and np.isfinite(box) and not parameter.is_amplitude:
                share = round(float(np.median(width)) / box, 4)
            entries[name] = {
                "Files": [files[f"{name}_low"], files[f"{name}_high"]],
                "TrainingCoverage": round(float(coverage.loc[name, "mean"]), 4),
                "WorstTrainingPatient": round(float(coverage.loc[name, "min"]), 4),
                "MedianShareOfBounds": share,
                "Determined": share is None or share < UNDETERMINED_SHARE,
            }
        section: dict[str, Any] = {"File": files[TYPICALITY], "UnlikeBelow": NOVEL}
        typicality = self.maps[TYPICALITY][self.region]
        typicality = typicality[np.isfinite(typicality)]
        novelty = intervals.novelty_
        if novelty is not None and len(typicality):
            share_unlike = float(np.mean(typicality < NOVEL))
            section["ShareUnlike"] = round(share_unlike, 4)
            section["TrainingShares"] = [round(float(x), 4) for x in np.sort(novelty.shares)]
            section["Verdict"] = novelty.describe(share_unlike)
        description = {
            "Description": "Intervals of voxels, for one-step fits (dmrifit fit --method nlls)",
            "Coverage": intervals.coverage,
            "Guarantee": intervals.guarantee(),
            "Parameters": entries,
            "Typicality": section,
        }
        return {"Intervals": description}
