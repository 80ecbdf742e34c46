"""Maps of one image: a mapping of names to images that shows, describes and saves itself."""

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
from dmrifit.engine.fit_maps import OUTSIDE
from dmrifit.engine.protocol import Protocol
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.nifti import describe_sources, file_paths, output_files, read_volume, save_image

if TYPE_CHECKING:
    from dmrifit.report.voxel_records import VoxelSignals

__all__ = ["ImageMaps"]


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
        return (
            f"<ImageMaps of {self._heading}, {size} voxels: {', '.join(self)}\n"
            f"{map_verdict(self.sidecar)}>"
        )

    def _repr_html_(self) -> str:
        """Show verdict, table and slices in notebooks."""
        from dmrifit.report.quicklook import map_summary

        maps, affine = self.upright()
        return map_summary(maps, affine, self.sidecar, title=self._heading, advice=self.advice())

    def advice(self) -> list[str]:
        """
        Say in sentences what limits the values, and what helps, as the page does.

        Returns
        -------
        list of str
            Empty for a sound fit, and for predictions without intervals.
        """
        from dmrifit.report.verdict import fit_sentences, prose

        if "Status" in self.sidecar:
            return prose(fit_sentences(self.sidecar), self.sidecar)
        sentences: list[str] = []
        if "Intervals" in self.sidecar:
            from dmrifit.report.prediction_page import interval_advice

            sentences += interval_advice(self.sidecar["Intervals"])
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
        from dmrifit.report.quicklook import map_viewer

        maps, affine = self.upright()
        return map_viewer(
            maps,
            affine,
            self.sidecar,
            title=self._heading,
            background=self._upright_background(),
            signals=self._upright_signals(),
        )

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
        from dmrifit.report.prediction_page import write_prediction_page
        from dmrifit.report.quicklook import write_quicklook

        maps, affine = self.upright()
        common: dict[str, Any] = {
            "title": self._title,
            "html": file_set.path(self._files["html"]),
            "background": self._upright_background(),
        }
        if "Status" in sidecar:
            picture = file_set.path(self._files["png"])
            signals = self._upright_signals()
            write_quicklook(maps, affine, sidecar, png=picture, signals=signals, **common)
            return
        maps.pop("signals", None)
        windows = self._fit_windows(file_set.folder)
        write_prediction_page(maps, affine, sidecar, windows=windows, **common)

    def _fit_windows(self, folder: Path) -> dict[str, tuple[float, float]]:
        """Read the ends of the color scales of a fit of the same scan and model in a folder."""
        from dmrifit.report.slice_figures import robust_limits

        windows: dict[str, tuple[float, float]] = {}
        sidecar = folder / _name_of_fit(self._files["sidecar"])
        # The sidecar completes a fit.
        if not sidecar.is_file():
            return windows
        described = json.loads(sidecar.read_text(encoding="utf-8")).get("Status", {})
        status = folder / Path(described.get("File", "")).name
        if not status.is_file():
            return windows
        is_inside = read_volume(status) != OUTSIDE
        for name in self.sidecar["Parameters"]:
            path = folder / _name_of_fit(self._files[name])
            # A parameter that is fixed at one value has a map, too, but no scale.
            if path.is_file():
                windows[name] = robust_limits(read_volume(path)[is_inside])
        return windows

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
        rows = np.asanyarray(nib.as_closest_canonical(image).dataobj)
        return replace(self._signals, rows=rows)


def _name_of_fit(name: str) -> str:
    """Name the file of a fit that stands beside one of a prediction."""
    return name.replace("_desc-predicted_", "_").replace("Predicted_", "_")


def import_quicklook_libraries() -> None:
    """Check before long work that pages can be written."""
    import_optional("matplotlib")
    import_optional("jinja2")
