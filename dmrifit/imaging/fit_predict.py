"""Images in, maps out: fits and predictions of whole scans, written as sets of files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional
from dmrifit.cohort.scaling import PatientScale
from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import MODELS, SignalModel
from dmrifit.engine.protocol import Protocol, average_directions
from dmrifit.imaging.image_rows import patient_scale, sliced_rows, source_volumes
from dmrifit.imaging.noise import estimate_sigma
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.bids_derivatives import (
    OUTSIDE,
    FitTally,
    bits_type,
    derivative_name,
    describe_fit,
    describe_prediction,
    map_names,
    pack_bounds,
    pack_doubts,
)
from dmrifit.io.chunked_arrays import is_array, placed
from dmrifit.io.masks import binarize
from dmrifit.io.nifti import (
    Image,
    Images,
    describe_sources,
    file_paths,
    image_name,
    read_grid,
    read_volume,
    save_image,
    write_volume,
)
from dmrifit.io.series import Series, read_map

if TYPE_CHECKING:
    from dmrifit.predict.strategies import MapsToMaps, SignalToSignal

#: The largest number of a float32 map; an error beyond it, as of a parameter that the signal does not show, is none.
_LARGEST = np.finfo(np.float32).max

__all__ = ["fit_image", "predict_image", "read_grid", "read_volume", "write_volume"]


def fit_image(
    image: Images,
    protocol: Protocol,
    model: str | SignalModel,
    *,
    affine: ArrayLike | None = None,
    mask: Image | None = None,
    sigma: float | Image | Literal["estimate"] | None = None,
    out: str | Path | None = None,
    average: str | None = None,
    bounds: Mapping[str, tuple[float, float | str]] | str | None = None,
    fixed: Mapping[str, float] | None = None,
    method: str = "nlls",
    regularization: float | None = None,
    n_starts: int | str = "auto",
    quicklook: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    n_threads: int | None = None,
) -> dict[str, nib.Nifti1Pair]:
    """
    Fit a signal model to every voxel of an image.

    The image is read slab by slab, so it may be larger than memory, and an array of dask or zarr block by block; maps
    have its grid, affine, qform and sform codes, voxel sizes and units. With `out` they are written as NIfTI files
    named in the manner of BIDS derivatives, with one JSON sidecar for the set; all files appear together when the
    last one is complete.

    Parameters
    ----------
    image : path, Nifti1Image, array, or sequence of them
        Magnitudes, shape (x, y, z, n_measurements), in any orientation and number type; scale factors of the file
        are applied. Several images of one grid, such as one for each echo time (4-D) or b-value (3-D), follow each
        other in the order of the protocol; `read_manifest` gives both. An array of dask, zarr or numpy is taken in
        the place of an image with its `affine`, or as ``Nifti1Image(array, affine)``: blocks of whole slices, of up
        to 4 million values, are loaded once and a few at a time.
    protocol : Protocol
        The measurements of the last axis.
    model : str or SignalModel
        A model, or the name of one in `MODELS`.
    affine : array_like of shape (4, 4), optional
        From voxel indices to RAS+ coordinates in mm, for arrays without one: the image, the mask, sigma.
    mask : path or Nifti1Image, optional
        The voxels to fit, on the grid of the image: those above 0.5. Without a mask, all voxels that are not 0 (or
        NaN) in every measurement are fitted.
    sigma : float, path, Nifti1Image or "estimate", optional
        Standard deviation of the noise in the units of the image, one number or a map on its grid; gives a Rician
        noise floor. ``"estimate"`` estimates it from the image (`estimate_sigma`; the image is held in memory), which
        has to be as the scanner gave it. Of a denoised image it is that of the noise before denoising, because the
        floor stays: `preprocess_image` writes it.
    out : path, optional
        Folder to write to, made if missing.
    average : {"geometric", "arithmetic"}, optional
        Average the measurements that share b and TE before the fit (see `average_directions`).
    bounds : mapping of str to (float, float or "monotonic"), or "published", optional
        Box of the search by parameter, as in `fit_voxels`.
    fixed : mapping of str to float, optional
        Parameters that are held at a value.
    method : str, default="nlls"
        As in `fit_voxels`.
    regularization : float, optional
        As in `fit_voxels`.
    n_starts : int or "auto", default="auto"
        Starting points for each voxel, as in `fit_voxels`.
    quicklook : bool, default=False
        With `out`, also write a page to look at (HTML and PNG); needs the extra ``report``.
    overwrite : bool, default=False
        Whether files of the same names in `out` may be replaced.
    progress : bool, default=False
        Whether to show a progress bar on the standard error stream.
    n_threads : int, optional
        Threads of the fit; by default one for each core. The maps do not depend on it.

    Returns
    -------
    dict of Nifti1Image
        One map for each parameter under its name, its standard error under ``<name>_se``, ``"cost"`` (sum of
        squared residuals, in squared units of the image), ``"status"`` (codes of `FitStatus`, uint8),
        ``"at_bound"`` (bit 2j is set where parameter j, from 0, is at its lower bound, bit 2j + 1 where it is at its
        upper one) and ``"doubt"`` (`FitResult`'s ``starts_disagree`` counts 1, ``ill_conditioned`` 2). Maps are
        float32, 0 outside the mask, and NaN inside it where a voxel could not be fitted, so that no mean can take
        such a voxel for a measurement; the status is 255 outside the mask.

    Raises
    ------
    ValueError
        Before the fit, if the image is not 4-D or damaged, volumes and protocol differ in number, the model needs
        echo times, has more free parameters than the protocol has contrasts, mask or sigma are on another grid,
        the mask is empty or sigma negative.
    FileNotFoundError
        If a file does not exist.
    FileExistsError
        If a file would be overwritten without `overwrite`.
    OSError
        If `out` cannot be written to.
    ImportError
        If `quicklook` is asked for and the extra ``report`` is not installed, or `sigma` is to be estimated and the
        extra ``preprocess`` is not.

    Warns
    -----
    UserWarning
        If relaxation times are fitted to measurements of one echo time, or no voxel could be fitted.
    """
    model = _find_model(model)
    image, mask, sigma = _place(affine, image, mask, sigma)
    series = Series.open(image)
    contrasts = _check_protocol(series, protocol, model, average=average, fixed=fixed)
    files = _fit_files(series, model)
    with _file_set(out, files, overwrite=overwrite, inputs=(image, mask, sigma)) as written:
        if _is_estimate(sigma):
            import_optional("dipy")
        if quicklook and written is not None:
            import_optional("matplotlib")
            import_optional("jinja2")
        region, noise = _read_region(series, mask, None if _is_estimate(sigma) else sigma)
        options: dict[str, Any] = {
            "method": method,
            "bounds": bounds,
            "fixed": fixed,
            "regularization": regularization,
            "n_starts": n_starts,
            "n_threads": n_threads,
        }
        # An empty voxel is not fitted, but the engine checks its options on it, before the work.
        box = fit_voxels(np.full((1, len(contrasts)), np.nan), contrasts, model, **options).bounds
        source = _describe_noise(noise)
        names = map_names(model)
        tally = FitTally(model)
        with series.unpacked() as readable:
            # Only now is it known that there are as many voxels as the header says.
            maps: dict[str, NDArray] = {name: np.zeros(series.grid, np.float32) for name in names}
            maps["status"] = np.full(series.grid, OUTSIDE, np.uint8)
            maps["at_bound"] = np.zeros(series.grid, bits_type(len(model.names)))
            maps["doubt"] = np.zeros(series.grid, np.uint8)
            if _is_estimate(sigma):
                level = estimate_sigma(readable.read(slice(None), np.float32), mask=region)
                noise, source = (
                    level.sigma,
                    f"{np.median(level.sigma):.6g} (estimated by {level.method})",
                )
            for slab, part, voxels in readable.slabs(region, progress=progress, task="fit"):
                if average is not None:
                    voxels, _ = average_directions(voxels, protocol, mean=average)
                result = fit_voxels(
                    voxels, contrasts, model, sigma=_noise_of(noise, slab, part), **options
                )
                bounded = pack_bounds(result.at_low, result.at_high)
                errors = np.where(
                    np.abs(result.standard_errors) < _LARGEST, result.standard_errors, np.nan
                )
                columns = [*result.parameters.T, *errors.T]
                columns += [result.cost, result.status, bounded, pack_doubts(result)]
                for name, column in zip(names, columns, strict=True):
                    maps[name][:, :, slab][part] = column
                tally.add(result)
        if not tally.status.any():
            raise ValueError(
                f"{series.name}: there is nothing to fit, all voxels are 0 or NaN in every measurement"
            )
        if not tally.n_fitted:
            msg = (
                f"{series.name}: none of the {tally.status.sum()} voxels could be fitted; each has a negative value, "
                "the same value in every measurement, or too few values"
            )
            warnings.warn(msg, stacklevel=2)
        images = {
            name: series.map(values, f"dmrifit {model.name} {name}")
            for name, values in maps.items()
        }
        if written is not None:
            settings = {
                "Method": method,
                "Starts": n_starts,
                "Bounds": _describe_bounds(bounds),
                "Regularization": regularization,
                "AverageDirections": average,
                "Sigma": source,
                "Region": _describe_region(mask),
            }
            sidecar = describe_fit(
                tally,
                box,
                fixed or {},
                protocol,
                contrasts,
                settings,
                files,
                monotonic=_monotonic(bounds),
            )
            sidecar |= series.describe() | {
                "Sources": describe_sources(Image=image, Mask=mask, Sigma=sigma)
            }
            _save(images, written, files)
            if quicklook:
                from dmrifit.report.quicklook import write_quicklook

                png, page = written.path(files["png"]), written.path(files["html"])
                write_quicklook(
                    *_upright(images.items()),
                    sidecar,
                    title=series.stem or "image",
                    png=png,
                    html=page,
                )
            written.write_json(files["sidecar"], sidecar)
    return images


def predict_image(
    estimator: SignalToSignal | MapsToMaps,
    image: Images,
    *,
    affine: ArrayLike | None = None,
    protocol: Protocol | None = None,
    b_tolerance: float | None = None,
    average: str | None = None,
    mask: Image | None = None,
    scale: str | float | PatientScale | None = "patient",
    sigma: float | Image | None = None,
    out: str | Path | None = None,
    signals: bool = False,
    quicklook: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, nib.Nifti1Pair]:
    """
    Predict the maps of an advanced protocol from the images of a clinical one.

    The image is read slab by slab and predicted slice by slice; maps have its grid, affine and header, and are
    written as by `fit_image`, with ``desc-predicted`` in their names. Neighborhoods, where the estimator looks at them,
    are made as by `Cohort.arrays`. A signal that is predicted to be negative is fitted as zero and written as it is;
    the JSON file counts the voxels that have one (``NegativeSignal``).

    Parameters
    ----------
    estimator : SignalToSignal or MapsToMaps
        A fitted one, with protocols.
    image : path, Nifti1Image, array, or sequence of them
        Magnitudes, shape (x, y, z, n_source), in the order of ``estimator.source``; several, or arrays, as in
        `fit_image`. With the patient's scale it is read twice.
    affine : array_like of shape (4, 4), optional
        As in `fit_image`.
    protocol : Protocol, optional
        The measurements of the image, if it holds others too or holds them in another order.
    b_tolerance : float, optional
        With `protocol`, b-values match within so many s/mm² (by default 1): 995 for 1000.
    average : {"geometric", "arithmetic"}, optional
        With `protocol`, average the measurements that share b and TE first (see `average_directions`).
    mask : path or Nifti1Image, optional
        The body mask, on the grid of the image: voxels above 0.5 are predicted, and the patient's scale is computed
        over them. Without a mask these are all voxels that are not 0 (or NaN) in every measurement.
    scale : {"patient"}, PatientScale, float or None, default="patient"
        What the signals are divided by; amplitudes and signals are multiplied by it again. ``"patient"`` is the rule
        that a loaded model was trained with (which may be none), or else the default rule; None leaves the signals
        as they are.
    sigma : float, path or Nifti1Image, optional
        Standard deviation of the noise in the units of the image, whose floor the predicted signals still have;
        only for strategies that fit maps to predicted signals.
    out : path, optional
        Folder to write to, made if missing.
    signals : bool, default=False
        Whether to predict the signals of ``estimator.target`` too.
    quicklook : bool, default=False
        With `out`, also write a page to look at the maps (HTML); needs the extra ``report``.
    overwrite : bool, default=False
        Whether files of the same names in `out` may be replaced.
    progress : bool, default=False
        Whether to show a progress bar on the standard error stream.

    Returns
    -------
    dict of Nifti1Image
        One map for each parameter of the estimator's model under its name, float32, 0 outside the mask and NaN
        inside it where nothing could be predicted; with `signals` also ``"signals"`` of shape (x, y, z, n_target).

    Raises
    ------
    ValueError
        If the estimator has no protocols, or no model where maps are wanted, the image does not hold its source
        measurements, or for the reasons that `fit_image` names.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    FileNotFoundError, FileExistsError, OSError
        As for `fit_image`.
    """
    from dmrifit.predict.base import resolve_patch_shape

    source, target, model = _check_estimator(estimator, sigma, signals=signals)
    image, mask, sigma = _place(affine, image, mask, sigma)
    series = Series.open(image)
    chosen = source_volumes(series, source, protocol, average=average, b_tolerance=b_tolerance)
    if isinstance(scale, str) and scale == "patient":
        scale = getattr(estimator, "patient_scale_", PatientScale())
    files = _prediction_files(series, model, signals=signals)
    with _file_set(out, files, overwrite=overwrite, inputs=(image, mask, sigma)) as written:
        if quicklook and written is not None and model is not None:
            import_optional("matplotlib")
            import_optional("jinja2")
        region, noise = _read_region(series, mask, sigma)
        parameters = () if model is None else model.parameters
        counts = {"InMask": 0, "WithSignal": 0, "NegativeSignal": 0}
        with series.unpacked() as readable:
            maps: dict[str, NDArray] = {
                one.name: np.zeros(series.grid, np.float32) for one in parameters
            }
            if signals:
                maps["signals"] = np.zeros((*series.grid, len(target)), np.float32)
            unit = patient_scale(readable, region, chosen, source, scale, progress=progress)
            patch_shape = resolve_patch_shape(estimator)
            for slab, part, rows in sliced_rows(
                readable, region, chosen, patch_shape, progress=progress
            ):
                scaled = rows / unit
                here = _noise_of(noise, slab, part)
                options = {} if here is None else {"sigma": here / unit}
                predicted = (
                    estimator.predict(scaled) if signals or hasattr(estimator, "maps_of") else None
                )
                columns: Iterable[NDArray] = ()
                if parameters and predicted is not None and hasattr(estimator, "maps_of"):
                    columns = estimator.maps_of(predicted, **options).T
                elif parameters:
                    columns = estimator.predict_maps(scaled, **options).T
                for parameter, column in zip(parameters, columns, strict=True):
                    maps[parameter.name][:, :, slab][part] = column * (
                        unit if parameter.is_amplitude else 1.0
                    )
                if predicted is not None:
                    counts["NegativeSignal"] += int((predicted < 0).any(axis=1).sum())
                    if signals:
                        maps["signals"][:, :, slab][part] = predicted * unit
                counts["InMask"] += len(rows)
                counts["WithSignal"] += int(np.isfinite(rows).all(axis=1).sum())
        images = {
            name: series.map(values, f"dmrifit predicted {name}") for name, values in maps.items()
        }
        if written is not None:
            sidecar = describe_prediction(estimator, model, target, unit, files)
            sidecar["Settings"] = {
                "Scale": "patient"
                if isinstance(scale, PatientScale)
                else "given"
                if scale
                else "none",
                "Sigma": _describe_noise(noise),
                "Region": _describe_region(mask),
            }
            sidecar["Voxels"] = counts
            sidecar |= series.describe() | {
                "Sources": describe_sources(Image=image, Mask=mask, Sigma=sigma)
            }
            _save(images, written, files)
            if signals:
                np.savetxt(written.path(files["bval"]), target.b[None], fmt="%.10g")
                if target.te is not None:
                    np.savetxt(written.path(files["te"]), target.te[None], fmt="%.10g")
            if quicklook and parameters:
                from dmrifit.report.quicklook import write_prediction_page

                shown = _upright((one.name, images[one.name]) for one in parameters)
                page = written.path(files["html"])
                write_prediction_page(*shown, sidecar, title=series.stem or "image", html=page)
            written.write_json(files["sidecar"], sidecar)
    return images


def _place(affine: ArrayLike | None, image: Any, *maps: Any) -> list[Any]:
    """Give the arrays among the inputs their affine."""
    images = list(image) if isinstance(image, list | tuple) else [image]
    if affine is not None and not any(is_array(one) for one in (*images, *maps)):
        own = next(one for one in images if not is_array(one))
        raise ValueError(
            f"{image_name(own)} brings its own affine; leave out affine=, which is for arrays"
        )
    return [placed(one, affine) for one in (image, *maps)]


def _find_model(model: str | SignalModel) -> SignalModel:
    if isinstance(model, SignalModel):
        return model
    if model not in MODELS:
        raise ValueError(
            f"no model {model!r}; choose one of {', '.join(MODELS)}, or make one by SignalModel.from_expression"
        )
    return MODELS[model]


def _check_protocol(
    series: Series,
    protocol: Protocol,
    model: SignalModel,
    *,
    average: str | None,
    fixed: Mapping[str, float] | None,
) -> Protocol:
    """Check image, protocol and model against each other; return the protocol that is fitted."""
    series.check_count(protocol)
    if model.needs_te and protocol.te is None:
        raise ValueError(
            f"model {model.name} needs echo times; give them to the protocol (te in ms; on the command line --te)"
        )
    free = [name for name in model.names if name not in (fixed or {})]
    n_contrasts = _count_contrasts(protocol)
    if n_contrasts < len(free):
        raise ValueError(
            f"model {model.name} has {len(free)} free parameters ({', '.join(free)}), but {series.name} has only "
            f"{n_contrasts} different contrasts ({protocol!r}); fix parameters or choose a simpler model"
        )
    times = [one.name for one in model.parameters if one.unit == "ms" and one.name in free]
    if model.needs_te and times and protocol.te is not None and np.ptp(protocol.te) == 0:
        msg = (
            f"{series.name} has one echo time ({protocol.te[0]:g} ms), which cannot tell {', '.join(times)} from the "
            "amplitude; fix them (--fix NAME=MS), or choose a model without relaxation"
        )
        warnings.warn(msg, stacklevel=3)
    if average is None:
        return protocol
    return average_directions(np.ones(len(protocol)), protocol, mean=average)[1]


def _count_contrasts(protocol: Protocol) -> int:
    """Count the different (b, TE); b-values that differ by 5 s/mm² or 2 % are one shell, as scanners scatter them."""
    te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
    count = 0
    for echo_time in np.unique(te):
        b = np.sort(protocol.b[te == echo_time])
        count += 1 + int(np.count_nonzero(np.diff(b) > np.maximum(5, 0.02 * b[1:])))
    return count


def _read_region(
    series: Series, mask: Image | None, sigma: float | Image | None
) -> tuple[NDArray[np.bool_] | None, float | NDArray | None]:
    """Read the voxels in question and the noise level."""
    region = None if mask is None else binarize(read_map(mask, series), name=image_name(mask))
    if sigma is None:
        return region, None
    if isinstance(sigma, int | float):
        if not (np.isfinite(sigma) and sigma >= 0):
            raise ValueError(
                f"sigma must be a standard deviation of the noise, not negative and finite, not {sigma!r}"
            )
        return region, float(sigma)
    noise = read_map(sigma, series).astype(np.float64)
    used = noise if region is None else noise[region]
    n_bad = np.count_nonzero(~(np.isfinite(used) & (used >= 0)))
    if n_bad:
        where = "" if region is None else " of the mask"
        raise ValueError(
            f"{image_name(sigma)}: a standard deviation of the noise must not be negative, infinite or NaN, "
            f"and in {n_bad} voxels{where} it is; correct the map or leave these voxels out by a mask"
        )
    return region, noise


def _noise_of(
    noise: float | NDArray | None, slab: slice, part: NDArray[np.bool_]
) -> float | NDArray | None:
    return noise[:, :, slab][part] if isinstance(noise, np.ndarray) else noise


def _is_estimate(sigma: object) -> bool:
    return isinstance(sigma, str) and sigma == "estimate"


def _describe_noise(noise: float | NDArray | None) -> float | str | None:
    return "map" if isinstance(noise, np.ndarray) else noise


def _describe_bounds(bounds: Mapping[str, tuple[float, float | str]] | str | None) -> str:
    if bounds is None or isinstance(bounds, str):
        return bounds or "those of the model"
    return ", ".join(f"{name} from {low} to {high}" for name, (low, high) in bounds.items())


def _monotonic(bounds: Mapping[str, tuple[float, float | str]] | str | None) -> list[str]:
    if bounds is None or isinstance(bounds, str):
        return []
    return [name for name, (_, high) in bounds.items() if high == "monotonic"]


def _describe_region(mask: Image | None) -> str:
    return (
        "all voxels that are not 0 in every measurement" if mask is None else "the mask above 0.5"
    )


def _file_set(
    out: str | Path | None, names: Mapping[str, str], *, overwrite: bool, inputs: tuple[Any, ...]
) -> AbstractContextManager[FileSet | None]:
    if out is None:
        return nullcontext()
    return FileSet(out, names.values(), overwrite=overwrite, keep=file_paths(inputs))


def _save(
    images: Mapping[str, nib.Nifti1Pair], written: FileSet, files: Mapping[str, str]
) -> None:
    for name, image in images.items():
        save_image(image, written.path(files[name]))


def _fit_files(series: Series, model: SignalModel) -> dict[str, str]:
    """Name the file of each map, the sidecar and the quick-look page; the sidecar, last, completes the set."""
    source = series.stem
    files = {
        name: derivative_name(source, "dwimap.nii.gz", model=model.name, param=name)
        for name in map_names(model)
    }
    for name, suffix in (
        ("png", "quicklook.png"),
        ("html", "quicklook.html"),
        ("sidecar", "dwimap.json"),
    ):
        files[name] = derivative_name(source, suffix, model=model.name)
    return files


def _check_estimator(
    estimator: SignalToSignal | MapsToMaps, sigma: object, *, signals: bool
) -> tuple[Protocol, Protocol, SignalModel | None]:
    """Check that an estimator can predict maps of an image; return its protocols and its model."""
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(estimator)
    if estimator.source is None or estimator.target is None:
        raise ValueError(
            "the estimator was fitted without protocols; give source= and target= to it before fitting"
        )
    if sigma is not None and "sigma" not in signature(estimator.predict_maps).parameters:
        raise ValueError(
            f"{type(estimator).__name__} predicts maps without a fit, so it has no use for sigma; leave it out"
        )
    if estimator.model is None and not signals:
        raise ValueError("the estimator has no model, so there are no maps; ask for signals=True")
    return (
        estimator.source,
        estimator.target,
        None if estimator.model is None else _find_model(estimator.model),
    )


def _prediction_files(
    series: Series, model: SignalModel | None, *, signals: bool
) -> dict[str, str]:
    base = series.stem
    files = {}
    if model is not None:
        for name in model.names:
            files[name] = derivative_name(
                base, "dwimap.nii.gz", model=model.name, param=name, desc="predicted"
            )
    if signals:
        for name, extension in (("signals", "nii.gz"), ("bval", "bval"), ("te", "te")):
            files[name] = derivative_name(base, f"dwi.{extension}", desc="predicted")
    if model is None:
        return files | {"sidecar": derivative_name(base, "dwi.json", desc="predicted")}
    files["html"] = derivative_name(base, "quicklook.html", model=model.name, desc="predicted")
    return files | {
        "sidecar": derivative_name(base, "dwimap.json", model=model.name, desc="predicted")
    }


def _upright(
    images: Iterable[tuple[str, nib.Nifti1Pair]],
) -> tuple[dict[str, NDArray], NDArray[np.float64]]:
    """Turn any order of storage to RAS, from which figures start: maps by name, and their affine."""
    turned = {name: nib.as_closest_canonical(image) for name, image in images}
    return {name: np.asanyarray(one.dataobj) for name, one in turned.items()}, next(
        iter(turned.values())
    ).affine
