"""Images in, maps out: fits and predictions of whole scans, written as sets of files."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_number
from dmrifit._utils.counts import counted, percent
from dmrifit._utils.spread_sample import SpreadSample, by_slice
from dmrifit.cohort.scaling import PatientScale
from dmrifit.engine.design.identifiability import (
    ISOTROPIC,
    missing_for,
    nominal_contrasts,
    separating_remedy,
)
from dmrifit.engine.doubts import DoubtTally
from dmrifit.engine.fit_maps import OUTSIDE, empty_maps, fill_maps, map_names
from dmrifit.engine.fit_settings import MEASURED, FitSettings
from dmrifit.engine.fitting import by_snr, fit_with, learn_prior, measured_noise
from dmrifit.engine.gain_steps import GAIN_VOXELS
from dmrifit.engine.methods.prior import PRIOR_VOXELS, Prior
from dmrifit.engine.models import MODELS, SignalModel, check_echo_times, resolve_model
from dmrifit.engine.noise_choice import (
    NOISE_VOXELS,
    NoiseLevel,
    above_air,
    above_air_or_noise,
    describe_choice,
    directions_vary,
    lowest_signals,
    noise_of_residuals,
    typical_snr,
)
from dmrifit.engine.protocol import (
    ZERO_B,
    Protocol,
    average_directions,
    check_protocol,
    is_same_b,
    shells_text,
)
from dmrifit.engine.results import FitStatus
from dmrifit.engine.screening import Screen, Screening
from dmrifit.imaging import scan_info
from dmrifit.imaging.head_steps import FOREGROUND_RULE, read_region
from dmrifit.imaging.image_maps import ImageMaps, import_quicklook_libraries
from dmrifit.imaging.image_rows import (
    LowestVolume,
    SignalSlices,
    patient_scale,
    sliced_rows,
    source_volumes,
)
from dmrifit.imaging.noise import (
    SENTENCES,
    check_likelihood,
    denoised_note,
    describe_noise_levels,
    estimate_sigma,
    noise_levels,
    noise_levels_of_middle,
    noise_of_voxels,
    noise_slices,
    spread_voxels,
)
from dmrifit.io.bids_derivatives import (
    FitTally,
    derivative_name,
    describe_fit,
    describe_prediction,
    find_tissue,
    is_tissue,
    stem,
    summarize_bounds,
    summarize_tissue,
)
from dmrifit.io.chunked_arrays import is_array, placed
from dmrifit.io.nifti import Image, Images, bytes_of_maps, file_paths, image_name, output_files
from dmrifit.io.series import Series

if TYPE_CHECKING:
    from dmrifit.predict.conformal import ConformalIntervals
    from dmrifit.predict.strategies import MapsToMaps, SignalToSignal

__all__ = ["fit_image", "predict_image"]

_WITHOUT_NOISE = "without it the noise floor is less exact or missing: fluids may show kurtosis"
_NO_NOISE = "sigma must be above 0; give the noise, or leave it out"
_B_STEP = 100.0  # s/mm², between limits that are tried
_HIGH_B_LEFT = 0.05  # share of the voxels in which b may still be too high below an advised limit

#: Share of the voxels above which a warning says that they could not be fitted.
MOST_LOST = 0.2

#: Share of the voxels with signal above which a warning says that the mask auto leaves them out.
MOST_OUTSIDE = 0.25

#: Share of negative values above which a warning doubts that they are signals.
MOST_NEGATIVE = 0.2
#: Residuals in units of a given sigma, above which it is likely to be wrong.
MOST_MISFIT = 10.0
#: Residuals over the noise, above which they are told: given or of neighbors, the noise may be a
#: third too low.
_NOTED_MISFIT, _NOTED_MISFIT_OF_REPEATS = 1.5, 1.05
#: s/mm², above which kurtosis shows.
_HIGHEST_PLAIN_B = 1000.0
#: Residuals relative to the noise of averages, below which the image holds less noise than sigma.
_LEAST_MISFIT = 0.3
#: Fewer voxels may have such residuals by chance, where degrees of freedom are few.
_FEWEST_JUDGED = 100


def fit_image(
    image: Images,
    protocol: Protocol,
    model: str | SignalModel,
    *,
    affine: ArrayLike | None = None,
    mask: Image | Literal["auto"] | None = None,
    sigma: float | Image | Literal["estimate"] | None = None,
    out: str | Path | None = None,
    b_tolerance: float | None = None,
    b_max: float | None = None,
    leave_out_b: Sequence[float] = (),
    average: str | None = None,
    bounds: Mapping[str, tuple[float, float | str]] | str | None = None,
    fixed: Mapping[str, float | str] | None = None,
    method: str | None = None,
    likelihood: str = "gaussian",
    threshold: float | None = None,
    weights: ArrayLike | None = None,
    prior: Prior | None = None,
    regularization: float | None = None,
    n_starts: int | str = "auto",
    quicklook: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    n_threads: int | None = None,
    command: str | None = None,
) -> ImageMaps:
    """
    Fit a signal model to every voxel of an image.

    The image is read slab by slab, so it may be larger than memory, and an array of dask or zarr
    block by block; maps have its grid, affine, qform and sform codes, voxel sizes and units. With
    `out` they are written as NIfTI files named in the manner of BIDS derivatives, with one JSON
    sidecar for the set; all files appear together when the last one is complete.

    Parameters
    ----------
    image : path, Nifti1Image, array, or sequence of them
        Signals, shape (x, y, z, n_measurements), in any orientation and number type; scale factors
        of the file are applied. Negative values are fitted, and values that are not finite, masked
        or outside the field of view left out, as by `fit_voxels`; the sidecar counts them. Several
        images of one grid, such as one for each echo time (4-D) or b-value (3-D), follow each
        other in the order of the protocol; `read_manifest` gives both. An array of dask, zarr or
        numpy is taken in the place of an image with its `affine`, or as ``Nifti1Image(array,
        affine)``: blocks of whole slices, of up to 2 million values, are loaded a few at a time,
        once, and those of eight slices once more for the noise.
    protocol : Protocol
        The measurements of the last axis.
    model : str or SignalModel
        A model, or the name of one in `MODELS`.
    affine : array_like of shape (4, 4), optional
        From voxel indices to RAS+ coordinates in mm, for arrays without one: the image, the mask,
        sigma.
    mask : path, Nifti1Image or "auto", optional
        The voxels to fit, on the grid of the image: those above 0.5. ``"auto"`` finds the
        foreground of the volumes of lowest b by median Otsu (extra ``preprocess``), and says so in
        sidecar and page. Without a mask, all voxels that are not 0 (or NaN) in every measurement
        are fitted.
    sigma : float, path, Nifti1Image or "estimate", optional
        Standard deviation of the noise in the units of the image, one number or a map on its grid;
        gives a Rician noise floor. ``"estimate"`` estimates it from the image (`estimate_sigma`),
        which has to be as the scanner gave it. Of a denoised image it is that of the noise before
        denoising, because the floor stays: `preprocess_image` writes it.
    out : path, optional
        Folder to write to, made if missing.
    b_tolerance : float, optional
        b-values count as one where neighbors differ by this (s/mm²) at most, and all of them by
        twice this at most, as `Protocol.rounded` does it. The sidecar says which measured ones
        count as which others (``MergedB``).
    b_max : float, optional
        Leave out measurements above this b-value in s/mm².
    leave_out_b : sequence of float, optional
        Leave out the measurements of these b-values in s/mm².
    average : {"geometric", "arithmetic"}, optional
        Average the measurements that share b and TE before the fit (see `average_directions`). The
        geometric mean leaves out values ≤ 0, and the sidecar counts them.
    bounds : mapping of str to (float, float or "monotonic"), or "published", optional
        Box of the search by parameter, as in `fit_voxels`.
    fixed : mapping of str to float or "measured", optional
        Parameters that are held at a value, as in `fit_voxels`. A measured one is taken as exact:
        its noise is in no error or interval.
    method : str, optional
        As in `fit_voxels`. With ``"map"`` the prior is learned from voxels spread over the region,
        unless it is given.
    likelihood : str, default="gaussian"
        As in `fit_voxels`. ``"rician"`` is refused with `average`, and where the sidecar of the
        image (.json) says that it was denoised or combined by a sum of squares.
    threshold : float, optional
        As in `fit_voxels`.
    weights : array_like, optional
        One weight for each measurement that is fitted (with `average`, each contrast), as in
        `fit_voxels`. By default averages count by their numbers of measurements, with the method
        "ols" in errors, intervals and cost alone.
    prior : Prior, optional
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
    command : str, optional
        The command by which this fit can be repeated, for sidecar and page.

    Returns
    -------
    ImageMaps
        A mapping of names to images that shows itself in notebooks. One map for each parameter
        under its name, its standard error under ``<name>_se``,
        ``"cost"`` (sum of squared residuals, in squared units of the image; with `weights`, or
        averages of unlike numbers of volumes, each times its weight over the mean weight),
        ``"status"`` (codes of `FitStatus`, uint8), ``"at_bound"`` (bit 2j is set where parameter
        j, from 0, is at its lower bound, bit 2j + 1 where it is at its upper one) and ``"doubt"``
        (bit j is set where parameter j is in doubt, `FitResult.doubt`, and the bit after the last
        where starts disagree). ``<name>_low`` and ``<name>_high`` are the ends of the 95 %
        interval, ``"chi2"`` the reduced χ² (with `sigma` alone). Maps are float32, 0 outside the
        mask, and NaN inside it where a voxel could not be fitted, so that no mean can take such a
        voxel for a measurement; the status is 255 outside the mask.

    Raises
    ------
    ValueError
        Before the fit, if the image is not 4-D or damaged, volumes and protocol differ in number,
        the model needs echo times, has more free parameters than the protocol has contrasts, the
        mask is on another grid or empty, or sigma is negative, 0 everywhere or on another grid;
        or, with a `likelihood` of magnitudes, 0 in a voxel that is fitted.
    FileNotFoundError
        If a file does not exist.
    FileExistsError
        If a file would be overwritten without `overwrite`.
    OSError
        If `out` cannot be written to.
    ImportError
        If `quicklook` is asked for and the extra ``report`` is not installed, or `sigma` is to be
        estimated and the extra ``preprocess`` is not.

    Warns
    -----
    UserWarning
        If a file of echo times (.te) is beside the image but not in the protocol; `sigma` cannot
        be estimated, so that the fit measures the noise itself or has no floor;
        the protocol does not determine the model, such as relaxation times at one echo time, more
        than a fifth of the voxels could not be fitted, more than a fifth of the fitted values are
        negative, a parameter is beyond 3e38 and so NaN in its map, the mask ``"auto"`` leaves out
        more than a quarter of the voxels with signal, or groups of volumes differ in gain: their
        signal rises where it must fall
        (`dmrifit.engine.gain_steps`).
    """
    check_protocol(protocol)
    model = resolve_model(model)
    measured = protocol if b_tolerance is None else protocol.rounded(b_tolerance)
    measurements = _Measurements.of(measured, average, b_max, leave_out_b)
    measured_b = protocol.b[measurements.kept]
    merged_b = measurements.merged_b(measured_b, fixed or {})
    protocol, contrasts = measurements.protocol, measurements.contrasts
    image, mask, sigma = _with_affine(affine, image, mask, sigma)
    settings = FitSettings(
        method=method,
        bounds=bounds,
        fixed=fixed,
        likelihood=likelihood,
        threshold=threshold,
        weights=weights,
        prior=prior,
        regularization=regularization,
        n_starts=n_starts,
        n_threads=n_threads,
        n_averaged=len(protocol) / len(contrasts),
    )
    if weights is None:
        settings = measurements.weighted(settings)
    series = Series.open(image)
    check_likelihood(image, likelihood, average)
    series.check_count(measured)
    notes = _Notes(series.name)
    for path in file_paths([image]):
        te_file = path.with_name(f"{stem(path)}.te")
        if protocol.te is None and te_file.is_file():
            notes.warn(f"{te_file.name} beside the image is not used (--te, in Python Protocol)")
    _check_protocol(notes, protocol, model, fixed or {})
    endings = {"png": "quicklook.png", "html": "quicklook.html", "sidecar": "dwimap.json"}
    files = _files(series, map_names(model), endings, model=model.name)
    # The type first: an array of sigma would be compared with the word voxel by voxel.
    is_estimated = isinstance(sigma, str) and sigma == "estimate"
    may_have_sigma = method not in ("ols", "wls")
    has_sigma = sigma is not None and not is_estimated
    if note := denoised_note(image, has_sigma=has_sigma, may_have_sigma=may_have_sigma):
        notes.warn(note)
        settings = replace(settings, is_denoised=has_sigma)
    inputs = (image, mask, sigma)
    with output_files(out, files.values(), overwrite=overwrite, inputs=inputs) as file_set:
        # Libraries and settings are checked here, before a long fit.
        if is_estimated:
            import_optional("dipy")
        if quicklook and file_set is not None:
            import_quicklook_libraries()
        region, region_text = read_region(series, mask, measured)
        noise = None if is_estimated else _read_noise(series, sigma, region)
        # The engine checks the settings on a voxel without a signal, which it does not fit.
        blank = np.full((1, len(contrasts)), np.nan)
        is_map = is_estimated or isinstance(noise, np.ndarray)
        blank_settings = replace(settings, sigma=1.0 if is_map else noise)
        if method == "map":
            blank_settings.check()
            # There is no prior to learn from a voxel without a signal.
            blank_settings = replace(blank_settings, method="nlls", prior=None)
        box = fit_with(blank, contrasts, model, blank_settings).bounds
        capped, remedy = tuple(settings.capped(model)), "give the noise (--sigma estimate)"
        doubts = DoubtTally(model, box, capped, noise_remedy=remedy)
        tally = FitTally(model, contrasts, doubts, fixed or {}, is_masked=region is not None)
        with series.unpacked() as readable:
            # Only an unpacked file is known to hold the voxels that its header promises.
            if file_set is not None:
                file_set.check_room(bytes_of_maps(len(map_names(model)), series.grid, region))
            maps = empty_maps(model, series.grid)
            doubt_codes = np.zeros((*series.grid, len(model.names)), np.uint8)
            sigma_text = _noise_text(noise)
            given_by = "median of sigma in tissue" if is_map else "given"
            if is_estimated:
                readable.check_magnitudes()
                if estimate := _estimated_noise(readable, region, settings, notes):
                    noise, given_by = estimate.sigma, estimate.method
                    sigma_text = "estimate"
            _check_noise(readable, region, settings, noise)
            if noise is None:
                del maps["chi2"], files["chi2"]
            # A given noise is the floor of all voxels; only for IVIM does it choose the method.
            n_floored, level = 0, None
            is_automatic = noise is None or model == MODELS["ivim"]
            is_automatic &= settings.is_automatic
            if is_automatic:
                settings, level = _chosen_by_noise(
                    readable, region, measurements, model, settings, noise
                )
            settings = replace(settings, method=settings.method_for(model, contrasts))
            # Not automatic any more, it gets the threshold of a segmented fit.
            settings = by_snr(settings, model, contrasts, None)
            if method == "map" and prior is None:
                learned = _learn_prior(readable, region, measurements, model, settings, noise)
                settings = replace(settings, prior=learned)
            gain_sample = SpreadSample(GAIN_VOXELS)
            signal_slices = SignalSlices(series.grid, contrasts, len(maps))
            scan = LowestVolume(series.grid, protocol, measurements.of_image)
            n_too_large = 0
            for slab, inside, signals in readable.slabs(
                region, progress=progress, task="fit", whole=scan.add
            ):
                signals = measurements.of_image(signals)
                gain_sample.add(signals, by_slice(inside))
                signals, screening = measurements.screened(signals)
                slab_noise = noise_of_voxels(noise, slab, inside)
                result = fit_with(signals, contrasts, model, replace(settings, sigma=slab_noise))
                if result.noise is not None:
                    slab_noise = np.where(result.has_floor, result.noise, np.nan)
                    n_floored += int(np.count_nonzero(result.has_floor))
                signal_slices.add(signals, slab_noise, slab, inside)
                if result.screening is not None:
                    result = replace(result, screening=screening.then(result.screening))
                n_too_large += fill_maps(maps, result, slab, inside)
                doubt_codes[:, :, slab][inside] = tally.add(result, inside)
                # Kept, they would add to the peak of the memory while the next slab is fitted.
                del result, signals
        _check_tally(tally, notes)
        is_fitted = maps["status"] < FitStatus.NOT_FITTED
        tissue = find_tissue(
            scan.values, is_fitted, tally.noise_level(), is_masked=tally.is_masked
        )
        doubts.recount(doubt_codes, tissue)
        del doubt_codes
        share = tally.screening.n_negative / max(tally.n_fitted * len(contrasts), 1)
        if share > MOST_NEGATIVE:
            notes.warn(SENTENCES["many_negative"].format(share=percent(share)))
        if n_too_large:
            notes.warn(SENTENCES["too_large"].format(n=counted(n_too_large, "voxel")))
        rows = gain_sample.rows()
        doubts_of_signals, gain_step = scan_info.signal_doubts(
            rows, protocol, tally.noise_level(), model, has_floor=noise is not None
        )
        for doubt in doubts_of_signals:
            notes.warn(doubt)
        notes.warn(scan_info.empty_doubt(rows, protocol, measurements.kept))
        if noise is not None:
            level = NoiseLevel(tally.noise_level(), given_by)
        source = "none" if level is None else level.method.split()[0]
        # Residuals are no measure of themselves.
        is_measurable = likelihood == "gaussian" and source not in ("none", "residuals")
        # Averages have less noise than the volumes, of which sigma is.
        misfit = tally.misfit() * settings.n_averaged**0.5 if is_measurable else np.nan
        is_given = noise is not None and not is_estimated
        # Signals of several directions differ by more than the noise.
        is_wrong = is_given and not directions_vary(contrasts) and misfit > MOST_MISFIT
        if is_wrong:
            notes.warn(SENTENCES["wrong_sigma"].format(ratio=misfit))
        is_plain = weights is None and method != "map" and not settings.is_denoised
        is_plain &= is_given and tally.n_fitted >= _FEWEST_JUDGED
        if is_plain and misfit < _LEAST_MISFIT:
            notes.warn(SENTENCES["large_sigma"].format(ratio=misfit))
        if region_text == FOREGROUND_RULE:
            has_signal = above_air_or_noise(scan.values.ravel(), tally.noise_level())
            share = float(np.mean(maps["status"].ravel()[has_signal] == OUTSIDE))
            if share > MOST_OUTSIDE:
                notes.warn(SENTENCES["outside"].format(share=percent(share)))
        lower_b_max, misfit_text, doubts.lower_b = None, "", ""
        can_lower = b_max is None and weights is None
        if doubts.too_high_b and can_lower:
            # One level stands for a map of the noise.
            typical_noise = None if noise is None else tally.noise_level()
            noisy_settings = replace(settings, sigma=typical_noise)
            lower_b_max = _lower_b_max(rows, measurements, model, noisy_settings)
        if lower_b_max is not None:
            doubts.lower_b = f"rerun with --b-max {lower_b_max:g}"
        noted_misfit = _NOTED_MISFIT
        # Averages over directions differ by more than the noise of repeats.
        if source == "repeats" and settings.n_averaged == 1:
            # Of so many voxels their noise has a standard error of 0.75/√n.
            n_voxels = np.count_nonzero(tissue) * min(1, NOISE_VOXELS / tally.n_fitted)
            noted_misfit = _NOTED_MISFIT_OF_REPEATS + 2.5 / n_voxels**0.5
        if misfit > noted_misfit and not is_wrong and tally.n_fitted >= _FEWEST_JUDGED:
            told = {"ratio": misfit, "noise": "the noise" if noise is None else "sigma"}
            misfit_text = SENTENCES["misfit"].format(**told)
            if can_lower and lower_b_max is None:
                lowest = lowest_signals(rows, protocol)
                rows = rows[is_tissue(lowest, tally.noise_level(), is_masked=tally.is_masked)]
                lower = _residuals_below(rows, measurements, model, settings)
                lower /= tally.noise_level()
                if lower - 1 < (misfit - 1) / 2:
                    lower_b_max = _HIGHEST_PLAIN_B
                    told |= {"ratio": lower, "b": lower_b_max}
                    misfit_text += SENTENCES["misfit_below"].format(**told)
        options = {
            "BTolerance": b_tolerance,
            "AverageDirections": average,
            "Sigma": sigma_text,
            "Region": region_text,
            "BMax": b_max,
            "LeaveOutB": list(leave_out_b) or None,
            "Command": command,
        }
        snr = tally.snr()
        end = ", with the noise floor" if noise is not None and likelihood == "gaussian" else ""
        if is_automatic:
            choice = describe_choice(settings.threshold, snr, level, n_floored)
            options["Choice"] = f"{choice}{end} (choose by --method, --sigma)"
        elif settings.threshold is not None:
            options["Choice"] = f"two steps, Dt from b ≥ {settings.threshold:g} s/mm²{end}"
        else:
            options["Choice"] = f"one step, method {settings.method}, likelihood {likelihood}{end}"
        fitted = contrasts.take(measurements.contrast_of)
        sidecar = describe_fit(tally, settings, box, protocol, fitted, options, files)
        if level is not None and np.isfinite(snr):
            sidecar["Noise"] = {"Sigma": level.sigma, "Method": level.method, "SNR": snr}
            sidecar["Noise"]["Description"] = str(level)
            if np.isfinite(misfit):
                sidecar["Noise"]["Misfit"] = misfit
        if misfit_text:
            sidecar["Misfit"] = {"Ratio": misfit, "Description": misfit_text}
        summarize_tissue(sidecar, maps, tissue, tally.n_fitted)
        if merged_b:
            sidecar["MergedB"] = {"Description": merged_b, "MeasuredB": measured_b.tolist()}
        if names := [name for name, value in (fixed or {}).items() if isinstance(value, str)]:
            text = SENTENCES["measured_amplitude"].format(name=", ".join(names))
            sidecar["MeasuredAmplitude"] = {"Description": text}
        if gain_step is not None:
            sidecar["GainStep"] = gain_step.describe()
        if directions_vary(contrasts):
            sidecar["Directions"] = {"Description": ISOTROPIC}
        if notes.sentences:
            sidecar["Warnings"] = notes.sentences
        if lower_b_max is not None:
            sidecar["Doubt"]["BMax"] = lower_b_max
        image_maps = _image_maps(
            series,
            maps,
            model.name,
            sidecar,
            files,
            inputs,
            background=series.map(scan.values, "dmrifit input"),
            signals=signal_slices.voxels(),
        )
        if file_set is not None:
            image_maps.write(file_set, quicklook=quicklook)
    return image_maps


def predict_image(
    estimator: SignalToSignal | MapsToMaps,
    image: Images,
    *,
    affine: ArrayLike | None = None,
    protocol: Protocol | None = None,
    b_tolerance: float | None = None,
    average: str | None = None,
    mask: Image | Literal["auto"] | None = None,
    scale: str | float | PatientScale | None = "patient",
    sigma: float | Image | None = None,
    out: str | Path | None = None,
    signals: bool = False,
    quicklook: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
    model_file: str | Path | None = None,
) -> ImageMaps:
    """
    Predict the maps of an advanced protocol from the images of a clinical one.

    The image is read slab by slab and predicted slice by slice; maps have its grid, affine and
    header, and are written as by `fit_image`, with ``desc-predicted`` in their names.
    Neighborhoods, where the estimator looks at them, are made as by `Cohort.arrays`. A signal that
    is predicted to be negative is fitted as zero and written as it is; the JSON file counts the
    voxels that have one (``NegativeSignal``).

    Parameters
    ----------
    estimator : SignalToSignal, MapsToMaps, or ConformalIntervals around one
        A fitted one, with protocols.
    image : path, Nifti1Image, array, or sequence of them
        Magnitudes, shape (x, y, z, n_source), in the order of ``estimator.source``; several, or
        arrays, as in `fit_image`. With the patient's scale it is read twice.
    affine : array_like of shape (4, 4), optional
        As in `fit_image`.
    protocol : Protocol, optional
        The measurements of the image, if it holds others too or holds them in another order.
    b_tolerance : float, optional
        With `protocol`, b-values match within so many s/mm² (by default 1): 995 for 1000.
    average : {"geometric", "arithmetic"}, optional
        With `protocol`, average the measurements that share b and TE first (see
        `average_directions`).
    mask : path, Nifti1Image or "auto", optional
        The body mask, on the grid of the image: voxels above 0.5 are predicted, and the patient's
        scale is computed over them. With `protocol`, ``"auto"`` finds the foreground as in
        `fit_image`. Without a mask these are all voxels that are not 0 (or NaN) in every
        measurement.
    scale : {"patient"}, PatientScale, float or None, default="patient"
        What the signals are divided by; amplitudes and signals are multiplied by it again.
        ``"patient"`` is the rule that a loaded model was trained with (which may be none), or else
        the default rule; None leaves the signals as they are.
    sigma : float, path or Nifti1Image, optional
        Standard deviation of the noise in the units of the image, whose floor the predicted
        signals still have; only for strategies that fit maps to predicted signals.
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
    command : str, optional
        The command by which this prediction can be repeated, for sidecar and page.
    model_file : path, optional
        The file that the estimator was loaded from, for sidecar and page.

    Returns
    -------
    ImageMaps
        As of `fit_image`: one map for each parameter of the estimator's model under its name,
        float32, 0 outside the mask and NaN inside it where nothing could be predicted; with
        `signals` also ``"signals"`` of shape (x, y, z, n_target). With intervals also
        ``<name>_low``, ``<name>_high`` and ``typicality`` (see `ConformalIntervals`), which is NaN
        outside the mask.

    Raises
    ------
    ValueError
        If the estimator has no protocols, or no model where maps are wanted, the image does not
        hold its source measurements, or for the reasons that `fit_image` names.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    FileNotFoundError, FileExistsError, OSError
        As for `fit_image`.
    """
    from dmrifit.imaging.image_maps import PredictedMaps, predicted_map_names
    from dmrifit.predict.base import resolve_patch_shape

    intervals, strategy = _checked_estimator(estimator, sigma, signals=signals)
    source, target = strategy.source, strategy.target
    model = None if strategy.model is None else resolve_model(strategy.model)
    image, mask, sigma = _with_affine(affine, image, mask, sigma)
    series = Series.open(image)
    volumes = source_volumes(series, source, protocol, average=average, b_tolerance=b_tolerance)
    if isinstance(scale, str) and scale == "patient":
        # The rule of the training; an estimator that was never saved has none of its own.
        scale = getattr(strategy, "patient_scale_", PatientScale())
    files = {}
    if signals:
        endings = {"signals": "dwi.nii.gz", "bval": "dwi.bval", "te": "dwi.te"}
        files = _files(series, (), endings, desc="predicted")
    if model is None:
        files |= _files(series, (), {"sidecar": "dwi.json"}, desc="predicted")
    else:
        names = predicted_map_names(model, with_intervals=intervals is not None)
        endings = {"html": "quicklook.html", "sidecar": "dwimap.json"}
        files |= _files(series, names, endings, desc="predicted", model=model.name)
    inputs = (image, mask, sigma, model_file)
    with output_files(out, files.values(), overwrite=overwrite, inputs=inputs) as file_set:
        if quicklook and file_set is not None and model is not None:
            import_quicklook_libraries()
        region, region_text = read_region(series, mask, protocol)
        noise = _read_noise(series, sigma, region)
        with series.unpacked() as readable:
            if file_set is not None:
                file_set.check_room(bytes_of_maps(len(files), series.grid, region))
            patch_shape = resolve_patch_shape(strategy)
            prediction = PredictedMaps(
                strategy, model, series.grid, signals=signals, intervals=intervals
            )
            # A first pass through the image, because every voxel needs the scale of all.
            unit = patient_scale(readable, region, volumes, source, scale, progress=progress)
            scan = LowestVolume(series.grid, source, volumes)
            slabs = sliced_rows(
                readable, region, volumes, patch_shape, progress=progress, whole=scan.add
            )
            for slab, inside, rows in slabs:
                prediction.add(rows, unit, noise_of_voxels(noise, slab, inside), slab, inside)
            typical_noise = _typical_noise(readable, region, noise)
        scale_text = "given" if scale else "none"
        if isinstance(scale, PatientScale):
            scale_text = "patient"
        settings = {"Scale": scale_text, "Sigma": _noise_text(noise), "Region": region_text}
        settings |= {"BTolerance": b_tolerance, "Command": command}
        counts = prediction.counts
        sidecar = describe_prediction(strategy, model, target, unit, files, settings, counts)
        tissue = find_tissue(
            scan.values, prediction.region, typical_noise, is_masked=region is not None
        )
        n_voxels = int(np.count_nonzero(prediction.region))
        summarize_tissue(sidecar, prediction.maps, tissue, n_voxels)
        columns = (prediction.maps[p.name][tissue] for p in prediction.parameters)
        summarize_bounds(sidecar, prediction.parameters, columns)
        sidecar |= prediction.describe_intervals(files)
        image_maps = _image_maps(
            series,
            prediction.maps,
            "predicted",
            sidecar,
            files,
            inputs,
            target=target,
            background=series.map(scan.values, "dmrifit input") if model else None,
        )
        if file_set is not None:
            image_maps.write(file_set, quicklook=quicklook)
    return image_maps


def kept_measurements(
    protocol: Protocol, b_max: float | None = None, leave_out_b: Sequence[float] = ()
) -> NDArray[np.intp]:
    """
    Find the indices of measurements with b up to `b_max` and not at `leave_out_b`, in s/mm².

    b-values are compared by `is_same_b`, because scanners write 995 for 1000.
    """
    b = protocol.b
    is_kept = np.ones(len(b), bool)
    if b_max not in (None, np.inf):
        check_number("b_max", b_max)
        is_kept &= (b <= b_max) | is_same_b(b, b_max)
    if not np.iterable(leave_out_b):
        raise ValueError(f"leave_out_b must be a list such as [5], not {leave_out_b!r}")
    for value in leave_out_b:
        if not is_same_b(b, value).any():
            raise ValueError(SENTENCES["no_such_b"].format(value=value, b=shells_text(b)))
        is_kept &= ~is_same_b(b, value)
    if not is_kept.any():
        raise ValueError(SENTENCES["no_b_left"].format(b=shells_text(b)))
    return np.flatnonzero(is_kept)


@dataclass(frozen=True)
class _Measurements:
    """
    The measurements of an image that are fitted: those kept, and their contrasts if averaged.

    Shapes: `kept` (n_kept,), indices in the protocol of the image; `contrast_of` the same, the
    contrast that each one is averaged into.
    """

    kept: NDArray[np.intp]
    protocol: Protocol
    contrasts: Protocol
    contrast_of: NDArray[np.intp]
    average: str | None
    n_measured: int

    @classmethod
    def of(
        cls,
        measured: Protocol,
        average: str | None,
        b_max: float | None = None,
        leave_out_b: Sequence[float] = (),
    ) -> _Measurements:
        """Choose measurements by their b-values, and average those that share b and TE."""
        kept = kept_measurements(measured, b_max, leave_out_b)
        protocol = contrasts = measured.take(kept)
        shares = np.eye(len(protocol))
        if average is not None:
            shares, contrasts = average_directions(shares, protocol, mean="arithmetic")
        return cls(kept, protocol, contrasts, shares.argmax(axis=1), average, len(measured))

    def weighted(self, settings: FitSettings) -> FitSettings:
        """Weight averages by their numbers of measurements, where these differ."""
        counts = np.bincount(self.contrast_of)
        name = "counts" if settings.method == "ols" else "weights"
        weights: Any = {name: counts if np.ptp(counts) > 0 else None}
        return replace(settings, n_averaged=float(counts.mean()), **weights)

    def merged_b(self, measured: NDArray, fixed: Mapping[str, float | str]) -> str:
        """Say which measured b-values (n_kept,) count as others; an empty text if none does."""
        contrast_b = self.contrasts.b
        counted_b = contrast_b[self.contrast_of]
        sentences = [scan_info.merged_sentence("the fit", measured, counted_b)]
        if MEASURED in fixed.values():
            of_amplitude = np.where(contrast_b < ZERO_B, 0, contrast_b)
            sentences.append(scan_info.merged_sentence("S0=measured", contrast_b, of_amplitude))
        return "; ".join(filter(None, sentences))

    def of_image(self, voxels: NDArray) -> NDArray:
        """Select the kept measurements (n_voxels, n_kept) of those of the image."""
        # A copy of a slab would take as much memory again.
        return voxels if len(self.kept) == self.n_measured else voxels[:, self.kept]

    def screened(self, signals: NDArray) -> tuple[NDArray, Screening]:
        """Screen signals (n_voxels, n_kept), which are written to, and average directions."""
        is_geometric = self.average == "geometric"
        screen = Screen(self.protocol, needs_logarithms=is_geometric)
        signals, screening = screen.apply(signals, in_place=True)
        if self.average is None:
            return signals, screening
        if is_geometric:
            # A single zero would make the mean zero, and a negative value would spoil it.
            signals[signals <= 0] = np.nan
        return average_directions(signals, self.protocol, mean=self.average)[0], screening


@dataclass
class _Notes:
    """Warnings of a fit, each said at once and kept for the sidecar."""

    name: str  # of the image
    sentences: list[str] = field(default_factory=list)

    def warn(self, sentence: str) -> None:
        """Say a warning and keep it; nothing if it is empty."""
        if sentence:
            self.sentences.append(sentence)
            warnings.warn(f"{self.name}: {sentence}", stacklevel=3)


def _lower_b_max(
    rows: NDArray, measurements: _Measurements, model: SignalModel, settings: FitSettings
) -> float | None:
    """
    Find the highest limit of b, in steps of 100 s/mm², at which b is too high in few voxels.

    None where b is too high at every limit that determines the model, or at none of them. Shapes:
    `rows` (n_voxels, n_kept).
    """
    candidates = []
    for limit in np.unique(_B_STEP * np.ceil(measurements.protocol.b / _B_STEP)).tolist():
        reduced = _Measurements.of(measurements.protocol, measurements.average, limit)
        if not missing_for(reduced.protocol, model, settings.fixed or {}):
            candidates.append((limit, reduced))

    def is_too_high(candidate: tuple[float, _Measurements]) -> bool:
        reduced = candidate[1]
        signals, _ = reduced.screened(rows[:, reduced.kept])
        result = fit_with(signals, reduced.contrasts, model, reduced.weighted(settings))
        capped = tuple(settings.capped(model))
        tally = DoubtTally(model, result.bounds, capped, mentioned_high_b=_HIGH_B_LEFT)
        tally.add(result)
        return tally.too_high_b

    n_sound = bisect_left(candidates, True, key=is_too_high)
    return None if n_sound in (0, len(candidates)) else candidates[n_sound - 1][0]


def _residuals_below(
    rows: NDArray, measurements: _Measurements, model: SignalModel, settings: FitSettings
) -> float:
    """
    Measure the residuals of a fit without the b-values that show kurtosis, as one volume's noise.

    NaN of a model with kurtosis, or without such b-values. Shapes: `rows` (n_voxels, n_kept), of
    tissue.
    """
    protocol = measurements.protocol
    if model.cumulant is not None or not protocol.b.min() < _HIGHEST_PLAIN_B < protocol.b.max():
        return np.nan
    reduced = _Measurements.of(protocol, measurements.average, _HIGHEST_PLAIN_B)
    if missing_for(reduced.protocol, model, settings.fixed or {}):
        return np.nan
    signals, _ = reduced.screened(rows[:, reduced.kept])
    settings = reduced.weighted(settings)
    plain = replace(settings, method="nlls", prior=None, threshold=None, sigma=None, noise=None)
    of_averages = noise_of_residuals(fit_with(signals, reduced.contrasts, model, plain))
    return of_averages * settings.n_averaged**0.5


def _learn_prior(
    series: Series,
    region: NDArray[np.bool_] | None,
    measurements: _Measurements,
    model: SignalModel,
    settings: FitSettings,
    noise: float | NDArray | None,
) -> Prior | None:
    """Learn the prior of a region from voxels spread over it, however it is cut into slabs."""
    signals, levels = spread_voxels(series, region, measurements.of_image, noise, PRIOR_VOXELS)
    if not signals.size:
        return None
    signals, _ = measurements.screened(signals)
    return learn_prior(signals, measurements.contrasts, model, replace(settings, sigma=levels))


def _estimated_noise(
    series: Series, region: NDArray[np.bool_] | None, settings: FitSettings, notes: _Notes
) -> NoiseLevel | None:
    """Estimate the noise; where that fails, warn of a fit without it if one can be."""
    try:
        level = estimate_sigma(series, mask=region)
    except ValueError as error:
        if settings.likelihood != "gaussian":
            raise
        notes.warn(f"{error}; {_WITHOUT_NOISE}")
        return None
    if differs := describe_noise_levels([level, *noise_levels(series, mask=region)])[1]:
        notes.warn(f"{differs}; the fit uses {level}")
    return level


def _noise_of_neighbors(series: Series, region: NDArray[np.bool_] | None) -> NoiseLevel | None:
    """Measure the noise by differences of neighbors; None where they do not tell, or no dipy."""
    with suppress(ImportError):
        return next(iter(noise_levels_of_middle(series, region, ["local"])), None)
    return None


def _typical_noise(
    series: Series, region: NDArray[np.bool_] | None, noise: float | NDArray | None
) -> float:
    """Give the median noise in a region, measured there if none is given; NaN if unknown."""
    if noise is None:
        level = _noise_of_neighbors(series, region)
        return np.nan if level is None else float(level.sigma)
    if isinstance(noise, np.ndarray) and region is not None:
        noise = noise[region]
    return float(np.median(noise))


def _chosen_by_noise(
    series: Series,
    region: NDArray[np.bool_] | None,
    measurements: _Measurements,
    model: SignalModel,
    settings: FitSettings,
    noise: float | NDArray | None,
) -> tuple[FitSettings, NoiseLevel | None]:
    """Choose the method by the noise; also give the noise, if it could be measured."""
    protocol, contrasts = measurements.protocol, measurements.contrasts
    slices = noise_slices(series.grid, region, series.affine)
    rows, levels = spread_voxels(series, slices, measurements.of_image, noise, NOISE_VOXELS)
    level, snr = None, None
    if rows.size:
        rows, _ = Screen(protocol).apply(rows)
        lowest = lowest_signals(rows, protocol)
        if levels is not None:
            level = NoiseLevel(float(np.median(levels[above_air(lowest)])), "given")
        else:
            level = measured_noise(rows, protocol, model, settings)
            level = level or _noise_of_neighbors(series, region)
            settings = replace(settings, noise=None if level is None else float(level.sigma))
    if level is not None:
        snr = typical_snr(lowest, float(level.sigma))
    return by_snr(settings, model, contrasts, snr), level


def _with_affine(affine: ArrayLike | None, image: Any, *maps: Any) -> list[Any]:
    """Give the arrays among the inputs their affine."""
    images = list(image) if isinstance(image, list | tuple) else [image]
    if affine is not None and not any(map(is_array, (*images, *maps))):
        raise ValueError(SENTENCES["own_affine"].format(image=image_name(images[0])))
    return [placed(item, affine) for item in (image, *maps)]


def _check_protocol(
    notes: _Notes, protocol: Protocol, model: SignalModel, fixed: Mapping[str, float | str]
) -> None:
    """Refuse a model that the protocol cannot carry; warn of one that it does not determine."""
    check_echo_times(protocol, model)
    te = protocol.te
    free = [parameter for parameter in model.parameters if parameter.name not in fixed]
    n_contrasts = len(nominal_contrasts(protocol))
    if n_contrasts < len(free):
        names = ", ".join(parameter.name for parameter in free)
        raise ValueError(
            f"model {model.name} has {counted(len(free), 'free parameter')} ({names}), but "
            f"{notes.name} has only {counted(n_contrasts, 'different contrast')} to fit "
            f"({'; '.join(scan_info.contrast_lines(protocol))}); fix parameters or choose a "
            "simpler model"
        )
    for doubt in scan_info.protocol_doubts(protocol, model):
        notes.warn(doubt)
    relaxation_times = [parameter.name for parameter in free if parameter.unit == "ms"]
    if model.needs_te and relaxation_times and te is not None and np.ptp(te) == 0:
        text = f"the scan has one echo time ({te[0]:g} ms), which cannot separate "
        text += f"{', '.join(relaxation_times)} from the amplitude"
    elif missing := missing_for(protocol, model, fixed):
        text = f"the protocol does not determine {model.name}, which needs {missing}"
    else:
        return
    notes.warn(f"{text}; {separating_remedy(protocol, model, fixed)}")


def _read_noise(
    series: Series, sigma: float | Image | None, region: NDArray[np.bool_] | None
) -> float | NDArray | None:
    """Read the standard deviation of the noise, one number or a map (x, y, z)."""
    if sigma is None:
        return None
    if isinstance(sigma, int | float):
        if FitSettings(sigma=sigma).noise_levels(1) is None:
            raise ValueError(_NO_NOISE)
        return float(sigma)
    noise = series.read_map(sigma, "the noise map").astype(np.float64)
    levels = noise if region is None else noise[region]
    where = "" if region is None else " of the mask"
    n_bad = int(np.count_nonzero(~(np.isfinite(levels) & (levels >= 0))))
    if n_bad:
        text = SENTENCES["bad_sigma"].format(voxels=f"{counted(n_bad, 'voxel')}{where}")
        raise ValueError(f"{image_name(sigma, 'the noise map')}: {text}")
    if not noise.any():
        raise ValueError(f"{image_name(sigma, 'the noise map')}: {_NO_NOISE}")
    return noise


def _check_noise(
    series: Series,
    region: NDArray[np.bool_] | None,
    settings: FitSettings,
    noise: float | NDArray | None,
) -> None:
    """Refuse voxels without noise under a likelihood that needs it, before a long fit."""
    if not isinstance(noise, np.ndarray):
        replace(settings, sigma=noise).check()
    elif region is not None:
        replace(settings, sigma=noise[region]).check()
    elif settings.likelihood != "gaussian" and (noise <= 0).any():
        # Only the image tells which voxels of the map have a signal.
        for slab, inside, _ in series.slabs(None, progress=False, task="sigma"):
            replace(settings, sigma=noise[:, :, slab][inside]).check()


def _check_tally(tally: FitTally, notes: _Notes) -> None:
    """Refuse an image of which no voxel could be fitted, and warn of one that lost many."""
    n_voxels = tally.status.sum()
    if not n_voxels:
        raise ValueError(f"{notes.name}: {SENTENCES['no_voxel']}")
    if not tally.n_fitted:
        reasons = ", ".join(f"{n} {reason}" for reason, n in tally.screening.reasons.items())
        text = SENTENCES["none_fitted"].format(n=counted(n_voxels, "voxel"), reasons=reasons)
        raise ValueError(f"{notes.name}: {text}")
    # The sidecar says why.
    if tally.screening.n_lost > MOST_LOST * n_voxels:
        remedy = "make the mask smaller" if tally.is_masked else "name a mask (--mask)"
        lost = f"{tally.screening.n_lost} of {counted(n_voxels, 'voxel')}"
        notes.warn(f"{lost} could not be fitted; check the image, or {remedy}")


def _noise_text(noise: float | NDArray | None) -> float | str | None:
    return "map" if isinstance(noise, np.ndarray) else noise


def _files(
    series: Series, maps: Sequence[str], endings: Mapping[str, str], **entities: str
) -> dict[str, str]:
    """Name the file of each map, and others by their endings; the last completes the set."""
    files = {}
    for name in maps:
        files[name] = derivative_name(series.stem, "dwimap.nii.gz", **entities, param=name)
    for name, ending in endings.items():
        files[name] = derivative_name(series.stem, ending, **entities)
    return files


def _image_maps(
    series: Series,
    maps: Mapping[str, NDArray],
    what: str,
    sidecar: Mapping[str, Any],
    files: Mapping[str, str],
    inputs: Sequence[Any],
    **more: Any,
) -> ImageMaps:
    """Make images of maps (x, y, z) on the grid of a scan, with what describes them."""
    return ImageMaps(
        {name: series.map(values, f"dmrifit {what} {name}") for name, values in maps.items()},
        {**sidecar, **series.describe()},
        files,
        title=series.stem or sidecar.get("Protocol", {}).get("name") or "image",
        # A fit has no model file.
        sources=dict(zip(("Image", "Mask", "Sigma", "Model file"), inputs, strict=False)),
        **more,
    )


def _checked_estimator(
    estimator: Any, sigma: object, *, signals: bool
) -> tuple[ConformalIntervals | None, Any]:
    """Check that an estimator can predict maps of an image; separate intervals from it."""
    from sklearn.utils.validation import check_is_fitted

    from dmrifit.predict.conformal import strategy_of

    strategy = strategy_of(estimator)
    intervals = None if strategy is estimator else estimator
    if intervals is not None and sigma is not None:
        raise ValueError(SENTENCES["intervals_without_sigma"])
    check_is_fitted(strategy)
    if strategy.source is None or strategy.target is None:
        raise ValueError(SENTENCES["without_protocols"])
    if sigma is not None and "sigma" not in signature(strategy.predict_maps).parameters:
        raise ValueError(f"{type(strategy).__name__} {SENTENCES['no_use_of_sigma']}")
    if strategy.model is None and not signals:
        raise ValueError("the estimator has no model, so there are no maps; ask for signals=True")
    return intervals, strategy
