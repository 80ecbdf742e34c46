"""Noise level of a scan, estimated from the scan itself (dipy)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_word
from dmrifit._utils.counts import size_text
from dmrifit._utils.text_files import read_object
from dmrifit.engine.methods.rician import expected_magnitude
from dmrifit.engine.models import read_table
from dmrifit.engine.noise_choice import NoiseLevel, spread_rows
from dmrifit.imaging.corrections import denoise, patches_are_large
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.chunked_arrays import Array, is_array, read_block
from dmrifit.io.grids import upright
from dmrifit.io.nifti import file_paths
from dmrifit.io.series import Series, read_slabs

__all__ = ["estimate_sigma"]

SENTENCES = read_table("sentences")["values"]
_FEWEST_NOISE_VOXELS = 100
_RAYLEIGH_MEAN = np.sqrt(np.pi / 2)
_MEAN_TOLERANCE = 0.1  # of the mean that noise has, relative
_LARGEST_SPREAD = 0.3  # of the means of volumes, relative
_LARGEST_RATIO = 2.0  # of two estimates that still agree
_VALUES = 2**21  # of measurements that are compared with their neighbors at once
_SAMPLE = 2**24  # of measurements that PIESNO starts from
_FLOOR_STEPS = 10
_NOISE_SLICES = 8
_BLOCK = 24  # voxels along each edge: enough for a second opinion, and seconds instead of minutes


def estimate_sigma(
    signals: Any, *, mask: NDArray[np.bool_] | None = None, method: str = "auto", n_coils: int = 1
) -> NoiseLevel:
    """
    Estimate the standard deviation of the noise from a scan itself (by dipy).

    Parameters
    ----------
    signals : array_like of shape (x, y, z, n_measurements)
        Magnitudes as the scanner gave them; an array of dask, zarr or h5py is read in parts.
    mask : ndarray of bool, shape (x, y, z), optional
        The body; for ``"mppca"`` and ``"local"``.
    method : {"auto", "piesno", "mppca", "local"}, default="auto"
        ``"piesno"`` finds the voxels outside the body that hold nothing but noise. It is the most
        exact, but the scanner must not have masked them. ``"mppca"`` looks at patches, as
        `denoise` does; it gives a map, and needs patches with more voxels than there are
        measurements; it falls below σ where the signal does. ``"local"`` compares each voxel with
        its neighbors, corrects magnitudes for the noise floor, and takes the least of all
        measurements; it stays up to a third below σ at the floor. ``"auto"`` is the first of
        the three that can be trusted: PIESNO, if the voxels that it found have the mean of noise
        in every measurement; MPPCA, if patches are large enough; or else the neighbors.
    n_coils : int, default=1
        Coils whose squares the scanner added (GRAPPA), for ``"piesno"``; 1 for SENSE and adaptive
        combination.

    Returns
    -------
    NoiseLevel
        The standard deviation, and the method that was used.

    Raises
    ------
    ValueError
        If the method is unknown, or it cannot estimate the noise of this image.
    ImportError
        If the extra ``preprocess`` is not installed.

    References
    ----------
    Koay et al., J Magn Reson 199:94–103, 2009 (PIESNO); Veraart et al., Magn Reson Med
    76:1582–1593, 2016 (MPPCA); Coupé et al., IEEE Trans Med Imaging 27:425–441, 2008 (local);
    Koay and Basser, J Magn Reson 179:317–322, 2006 (floor).
    """
    check_word("method", method, ("auto", "piesno", "mppca", "local"))
    values = _checked(signals, mask)
    if method in ("auto", "piesno"):
        sigma = _piesno(values, n_coils)
        if sigma is not None:
            return NoiseLevel(sigma, "piesno")
        if method == "piesno":
            raise ValueError(
                "PIESNO found no voxels that hold nothing but noise: the background is masked or "
                "there is none; use method 'mppca' or 'local'"
            )
    if method == "mppca" or (method == "auto" and patches_are_large(values.shape)):
        return NoiseLevel(denoise(values, _Nowhere(), mask=mask), "mppca")
    return NoiseLevel(_local(values, mask), "local")


def noise_levels(signals: Any, *, mask: NDArray[np.bool_] | None = None) -> list[NoiseLevel]:
    """Estimate the noise by all methods that can: PIESNO, then the others in a central block."""
    values = _checked(signals, mask)
    levels = []
    background = _piesno(values, 1)
    if background is not None:
        levels.append(NoiseLevel(background, "piesno"))
    return levels + noise_levels_of_middle(values, mask)


def noise_levels_of_middle(
    values: Array, mask: NDArray[np.bool_] | None, methods: Sequence[str] = ("mppca", "local")
) -> list[NoiseLevel]:
    """Estimate the noise around the middle of the mask, or of the voxels with signal."""
    levels = []
    inside = voxels_where(values, lambda slab: slab != 0) if mask is None else mask
    block: tuple[slice, ...] = ()
    for axis, size in enumerate(inside.shape):
        along = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        middle = int(along.mean()) if along.size else size // 2
        first = min(max(0, middle - _BLOCK // 2), max(0, size - _BLOCK))
        block += (slice(first, first + _BLOCK),)
    block_mask = None if mask is None else mask[block]
    central = read_block(values, (*block, slice(None)))
    for method in methods:
        if method == "mppca" and not patches_are_large(central.shape):
            continue
        # Neighbors may not differ, or an image be too small.
        with suppress(ValueError):
            levels.append(estimate_sigma(central, mask=block_mask, method=method))
    return levels


def _checked(signals: Any, mask: NDArray[np.bool_] | None) -> Array:
    """Check the shape of signals (x, y, z, n_measurements) and mask, without reading them."""
    values = signals if is_array(signals) else np.asarray(signals)
    if len(values.shape) != 4:
        shape = f"{values.shape} of a {type(signals).__name__}; give an array"
        raise ValueError(f"signals must have shape (x, y, z, n_measurements), not {shape}")
    if 0 in values.shape:
        raise ValueError(f"signals of shape {values.shape} hold no value")
    if mask is not None and mask.shape != values.shape[:3]:
        raise ValueError(f"a mask of shape {mask.shape} for signals of shape {values.shape}")
    return values


class _Nowhere:
    """What takes denoised signals that nobody needs."""

    def __setitem__(self, index: Any, values: Any, /) -> None:
        pass


def voxels_where(
    signals: Array, test: Callable[[NDArray[np.float32]], NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """Find the voxels (x, y, z) of which a measurement passes a test."""
    slabs = [test(values).any(axis=-1) for _, values in read_slabs(signals)]
    return np.concatenate(slabs, axis=2)


def noise_slices(
    grid: tuple[int, int, int], region: NDArray[np.bool_] | None, affine: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """
    Choose voxels (x, y, z), in up to eight axial slices of a region, to measure a fit's noise.

    They are the same ones however the axes are stored.
    """
    inside = np.zeros(grid, bool)
    axial = upright(inside, affine)
    used = np.arange(axial.shape[2])
    if region is not None:
        used = np.flatnonzero(upright(region, affine).any(axis=(0, 1)))
    axial[:, :, used[:: -(-len(used) // _NOISE_SLICES)]] = True
    return inside if region is None else inside & region


def spread_voxels(
    series: Series,
    region: NDArray[np.bool_] | None,
    select: Callable[[NDArray], NDArray],
    noise: float | NDArray | None,
    most: int,
) -> tuple[NDArray, NDArray | None]:
    """
    Read voxels spread over a region, and their noise if it is known.

    They are the same ones however the image is stored, and cut into slabs. `select` takes those
    measurements that are needed of (n_voxels, n_measurements).
    """
    signals = select(np.empty((0, series.n_measurements)))
    levels = np.empty(0)
    for slab, inside, voxels in series.slabs(region, progress=False, task="sample"):
        signals = np.concatenate([signals, select(voxels)])
        level = noise_of_voxels(noise, slab, inside)
        levels_of_slab: ArrayLike = np.nan if level is None else level
        levels = np.append(levels, np.broadcast_to(levels_of_slab, len(voxels)))
        rows = spread_rows(signals, most)
        signals, levels = signals[rows], levels[rows]
    return signals, None if noise is None else levels


def noise_of_voxels(
    noise: float | NDArray | None, slab: slice, inside: NDArray[np.bool_]
) -> float | NDArray | None:
    """Take the noise of the voxels inside a slab from a map; one number is that of all voxels."""
    return noise[:, :, slab][inside] if isinstance(noise, np.ndarray) else noise


def describe_noise_levels(levels: list[NoiseLevel]) -> tuple[str, str]:
    """List estimates of the noise; say in a second sentence that they disagree, if they do."""
    first_of: dict[str, NoiseLevel] = {}
    for level in levels:
        if np.median(level.sigma) > 0:
            first_of.setdefault(level.method, level)
    if not first_of:
        return "no method can estimate it", ""
    text = ", ".join(map(str, first_of.values()))
    medians = [float(np.median(level.sigma)) for level in first_of.values()]
    ratio = max(medians) / min(medians)
    if ratio <= _LARGEST_RATIO:
        return text, ""
    return text, SENTENCES["noise_differs"].format(ratio=ratio, text=text)


def _piesno(signals: Array, n_coils: int) -> float | None:
    """Estimate the noise outside the body; None where the voxels do not look like noise."""
    estimates = import_optional("dipy.denoise.noise_estimate")
    quantile = estimates.opt_quantile.get(n_coils, 0.5)
    # dipy's `piesno` starts so from a whole image in memory; a sample takes its place here.
    step = -(-math.prod(signals.shape) // _SAMPLE)
    samples = [_finite(values).ravel(order="K")[::step] for _, values in read_slabs(signals)]
    start = np.percentile(np.concatenate(samples).astype(np.float64), 100 * quantile)
    start = float(start) / np.sqrt(2 * estimates._inv_nchi_cdf(n_coils, 1, quantile))
    by_slice, n_background = [], 0
    totals = np.zeros(signals.shape[3])
    for _, values in read_slabs(signals):
        for k in range(values.shape[2]):
            finite = _finite(values[:, :, k]).astype(np.float64, order="C")
            with np.errstate(divide="ignore", invalid="ignore"):
                sigma, background = estimates._piesno_3D(
                    finite, n_coils, return_mask=True, initial_estimation=start
                )
            if background.any():
                by_slice.append(np.float32(sigma))
                n_background += int(np.count_nonzero(background))
                totals += finite[background].sum(axis=0) / max(by_slice[-1], np.finfo(float).tiny)
    if n_background < _FEWEST_NOISE_VOXELS:
        return None
    # PIESNO may take tissue for noise, but tissue decays between measurements and noise does not.
    means = totals / n_background
    if np.ptp(means) >= _LARGEST_SPREAD * means.mean():
        return None
    # Sums of squares of several coils have another mean than Rayleigh noise.
    if n_coils == 1 and abs(means.mean() / _RAYLEIGH_MEAN - 1) >= _MEAN_TOLERANCE:
        return None
    return float(np.median(by_slice))


def _finite(values: NDArray) -> NDArray:
    """Replace NaN and infinite values by 0."""
    return np.nan_to_num(values, posinf=0.0, neginf=0.0)


def _local(signals: Array, mask: NDArray[np.bool_] | None) -> float:
    """Estimate the noise from differences of neighbors; the least of all measurements."""
    noise_estimate = import_optional("dipy.denoise.noise_estimate")
    region = mask
    if region is None:
        region = voxels_where(signals, lambda values: _finite(values) != 0)
    every = slice(None)
    n_at_once = max(1, _VALUES // region.size)
    estimates: list[float] = []
    for first in range(0, signals.shape[3] if region.any() else 0, n_at_once):
        values = read_block(signals, (every, every, every, slice(first, first + n_at_once)))
        # dipy derives its mask from the first volume.
        masked = np.concatenate([region[..., None], _finite(values)], axis=-1, dtype=float)
        spread = noise_estimate.estimate_sigma(masked, disable_background_masking=True)[1:]
        volumes = zip(spread, np.moveaxis(masked[..., 1:], -1, 0), strict=True)
        estimates += [_without_floor(own, volume, region) for own, volume in volumes]
    by_volume = np.array(estimates)
    # Neighbors do not differ in an image or volume that is too small or constant.
    usable = by_volume[np.isfinite(by_volume) & (by_volume > 0)]
    if not usable.size:
        raise ValueError(
            f"the noise of an image of {size_text(signals.shape)} cannot be estimated: neighbors "
            "do not differ; give sigma as a number"
        )
    # Structure adds to the differences of neighbors, so the least is nearest to noise alone.
    return float(usable.min())


def _without_floor(spread: float, volume: NDArray[np.float64], region: NDArray[np.bool_]) -> float:
    """Correct the standard deviation of magnitudes in a region (x, y, z) for the noise floor."""
    if not spread > 0 or volume.min() < 0:
        return spread
    snr = np.linspace(0, 10, 1001)
    mean = expected_magnitude(snr, np.ones(1))
    variance = 2 + snr**2 - mean**2
    local = ndimage.uniform_filter(volume, 3)[region]
    sigma = spread
    for _ in range(_FLOOR_STEPS):
        sigma = spread / np.sqrt(np.interp(local / sigma, mean, variance).mean())
    return float(sigma)


def _sidecars(image: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Read the sidecars of the files of an image; without one, there is nothing in it."""
    for path in file_paths([image]):
        yield path, read_object(path.with_name(f"{stem(path)}.json")) or {}


def _is_denoised(description: Mapping[str, Any]) -> bool:
    return "denoise" in str(description.get("Steps", ""))


def preprocessed_note(image: Any) -> str:
    """Say that an image was preprocessed, if its sidecar does; an empty text if not."""
    for _, description in _sidecars(image):
        if isinstance(steps := description.get("Steps"), list):
            return SENTENCES["preprocessed"].format(steps=", ".join(map(str, steps)))
    return ""


def denoised_note(image: Any, *, has_sigma: bool, may_have_sigma: bool) -> str:
    """Say what cannot be measured in a denoised image; empty if no sidecar says that it is one."""
    if not any(_is_denoised(description) for _, description in _sidecars(image)):
        return ""
    if has_sigma:
        return SENTENCES["denoised"]
    # On a synthetic body with known tissue 95 % intervals held 25 to 70 % of the true values.
    text = SENTENCES["denoised_without_sigma"]
    return text + SENTENCES["denoised_unmeasured"] if may_have_sigma else text


def check_likelihood(image: Any, likelihood: str, average: str | None) -> None:
    """Refuse a likelihood that the magnitudes of an image, as far as sidecars say, do not have."""
    if likelihood == "gaussian":
        return
    if likelihood == "rician" and average is not None:
        raise ValueError(SENTENCES["averaged"])
    if likelihood == "rician-mean" and average == "geometric":
        raise ValueError(
            "likelihood 'rician-mean' is for arithmetic averages of directions, not for geometric "
            "ones; average them arithmetically"
        )
    # A sidecar may say what keeps magnitudes from being Rician.
    for path, description in _sidecars(image):
        combination = str(description.get("CoilCombinationMethod", "")).lower()
        is_summed = "sum" in combination and "square" in combination
        problem = "its coils were combined by a sum of squares" if is_summed else ""
        if likelihood == "rician" and _is_denoised(description):
            problem = "it was denoised"
        if problem:
            raise ValueError(
                f"{path}: its sidecar says that {problem}, so that magnitudes do not have "
                f"likelihood {likelihood!r}; use sigma alone, which fits with the noise floor"
            )
