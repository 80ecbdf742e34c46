"""Preprocessing of a scan before fits: denoising, Gibbs ringing, motion, noise level."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_words
from dmrifit._utils.counts import first_few, size_text
from dmrifit._utils.progress import step_bar
from dmrifit.cohort.scaling import reference_columns
from dmrifit.engine.noise_choice import NoiseLevel, above_air
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.corrections import correct_motion, denoise, remove_gibbs, rotate_directions
from dmrifit.imaging.head_steps import read_region
from dmrifit.imaging.noise import (
    SENTENCES,
    describe_noise_levels,
    estimate_sigma,
    noise_levels,
    preprocessed_note,
    voxels_where,
)
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.bids_derivatives import derivative_name, makers
from dmrifit.io.nifti import (
    Image,
    Images,
    bytes_of_maps,
    describe_sources,
    memory_left,
    output_files,
    save_image,
)
from dmrifit.io.series import Series, read_slabs

__all__ = ["preprocess_image"]

#: Steps of preprocessing, in their order: denoising needs noise that is independent between
#: voxels, Gibbs removal the grid of the scanner; interpolation of moved volumes removes both.
STEPS = ("denoise", "gibbs", "motion")

_LARGE_SHIFT = 10.0  # mm
_LARGE_TURN = 10.0  # degrees
_THICK = 1.2  # slices are thicker than pixels from this ratio on


@dataclass(frozen=True)
class Preprocessed:
    """
    A scan that is ready to be fitted.

    Parameters
    ----------
    image : Nifti1Image
        Magnitudes, shape (x, y, z, n_measurements), float32, on the grid of the scan; NaN where
        motion correction would take a voxel from more than half a voxel outside the image. If it
        was written, that of the file, whose values are read when they are asked for.
    sigma : Nifti1Image
        Standard deviation of the noise before denoising, for the noise floor of a fit.
    protocol : Protocol
        That of the scan, with rotated directions after motion correction.
    transforms : ndarray of shape (n_measurements, 4, 4), or None
        From world coordinates of the reference volume to those of each volume, in mm; None without
        motion correction.
    """

    image: nib.Nifti1Pair
    sigma: nib.Nifti1Pair
    protocol: Protocol
    transforms: NDArray[np.float64] | None


def preprocess_image(
    image: Images,
    protocol: Protocol,
    *,
    steps: Sequence[str] = STEPS,
    mask: Image | Literal["auto"] | None = None,
    slice_axis: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Preprocessed:
    """
    Denoise a scan, remove Gibbs ringing and correct motion, and find its level of noise.

    The image is read block by block and volume by volume. With `out`, image, protocol, noise level
    and a JSON sidecar are written as files whose names have ``desc-preproc``; all appear together
    when the last one is complete. Until then the result lies in a file of single precision on the
    same disk; without `out`, in memory.

    After denoising the noise is lower, but the noise floor is not: magnitudes do not fall below
    about √(π/2)·σ of the original noise. So the noise level that is returned, and that a fit with
    a noise floor takes, is that of the original noise.

    Parameters
    ----------
    image : path, Nifti1Image, or sequence of them
        Magnitudes as the scanner gave them, as for `fit_image`.
    protocol : Protocol
        The measurements of the last axis.
    steps : sequence of str, default=("denoise", "gibbs", "motion")
        Which steps: ``"denoise"`` (see `denoise`), ``"gibbs"`` (`remove_gibbs`) and ``"motion"``
        (`correct_motion`, to a volume of the lowest b-value at the shortest echo time). They are
        always done in this order.
    mask : path, Nifti1Image or "auto", optional
        The body, with a margin: voxels to denoise, and to compare for motion; ``"auto"`` finds
        the foreground as in `fit_image`, without a margin.
    slice_axis : {0, 1, 2}, optional
        The axis across slices, for Gibbs removal; by default what the header says, or else the
        axis along which voxels are longest, or else the last.
    out : path, optional
        Folder to write to, made if missing.
    overwrite : bool, default=False
        Whether files of the same names in `out` may be replaced.
    progress : bool, default=False
        Whether to show a progress bar on the standard error stream.

    Returns
    -------
    Preprocessed
        Image, noise level, protocol and transformations.

    Raises
    ------
    ValueError
        If a step is unknown or none is named, or for the reasons of `fit_image` and of the steps.
    FileNotFoundError, FileExistsError, OSError
        As for `fit_image`.
    ImportError
        If the extra ``preprocess`` is not installed.

    Warns
    -----
    UserWarning
        If the image was preprocessed before, as its sidecar says, so that its noise is too low,
        volumes were moved by more than 10 mm or 10 degrees, which a registration that went
        astray does, or estimates of the noise disagree by a factor of more than two.
    """
    names = [steps] if isinstance(steps, str) else list(steps)
    check_words("steps", names, STEPS, least=1)
    ordered_steps = [step for step in STEPS if step in names]
    import_optional("dipy")
    series = Series.open(image)
    series.check_count(protocol)
    if "motion" in ordered_steps and min(series.grid) < 4:
        raise ValueError(SENTENCES["too_few_slices"].format(grid=size_text(series.grid)))
    files = _files(series, protocol)
    file_sets = output_files(out, files.values(), overwrite=overwrite, inputs=(image, mask))
    bar = partial(step_bar, unit="volume", leave=False, show=progress)
    with file_sets as file_set, ExitStack() as stack:
        region, region_text = read_region(series, mask, protocol)
        if slice_axis is None:
            slice_axis = _slice_axis(series)
        with series.unpacked() as readable:
            readable.check_magnitudes()
            usable = voxels_where(readable, lambda values: np.isfinite(values) & (values != 0))
            inside = usable if region is None else usable & region
            if not inside.any():
                extent = "" if region is None else " of the mask"
                raise ValueError(f"{series.name}: {SENTENCES['no_signal'].format(extent=extent)}")
            signals = stack.enter_context(_empty(series, file_set))
            # Before denoising, which leaves no noise to estimate.
            levels = noise_levels(readable, mask=region)
            if "denoise" in ordered_steps:
                with bar(1, task="denoise") as count:
                    sigma = denoise(readable, signals, mask=region)
                    count()
                noise = NoiseLevel(sigma, "mppca")
            else:
                # Before the steps that follow, which smooth the noise.
                noise = estimate_sigma(readable, mask=region)
                for slab, values in read_slabs(readable):
                    signals[:, :, slab] = values
        transforms = None
        # Around the middle first, because the noise of air is lower.
        doubts = [preprocessed_note(image), describe_noise_levels([*levels, noise])[1]]
        doubt = "; ".join(filter(None, doubts))
        if doubt:
            warnings.warn(f"{series.name}: {doubt}", stacklevel=2)
        if "gibbs" in ordered_steps:
            with bar(len(protocol), task="gibbs") as count:
                remove_gibbs(signals, slice_axis, count)
        # Without diffusion weighting tissue has most signal, and borders are easiest to align.
        reference = int(reference_columns(protocol)[0])
        if "motion" in ordered_steps:
            with bar(len(protocol), task="motion") as count:
                transforms = correct_motion(signals, series.affine, reference, region, count)
            # The patient has turned against the gradients of the scanner.
            if protocol.directions is not None:
                directions = rotate_directions(protocol.directions, transforms, series.affine)
                protocol = Protocol(
                    protocol.b, protocol.te, directions=directions, name=protocol.name
                )
            _warn_of_large_motion(transforms, series)
        is_outside = np.zeros(series.grid, bool)
        # The steps spill a little into what was not measured.
        for volume in np.moveaxis(signals, -1, 0):
            volume[~usable] = 0
            is_outside |= np.isnan(volume)
        # Always a map, so that fits take one kind of file.
        sigma_map = np.broadcast_to(np.float32(noise.sigma), series.grid).copy()
        result = Preprocessed(
            series.map(signals, "dmrifit preprocessed"),
            series.map(sigma_map, "dmrifit noise sigma"),
            protocol,
            transforms,
        )
        if file_set is not None:
            description = _describe(ordered_steps, noise, files, slice_axis, transforms, series)
            # Scanners filter the noise of air.
            is_tissue = above_air(signals[..., reference][inside])
            description["Sigma"]["Median"] = float(np.median(sigma_map[inside][is_tissue]))
            if transforms is not None:
                description["Motion"]["VoxelsOutside"] = int(is_outside.sum())
            description |= series.describe() | {"Region": region_text}
            description["Sigma"] |= {"Doubt": doubt} if doubt else {}
            description["Sources"] = describe_sources(Image=image, Mask=mask)
            save_image(result.image, file_set.path(files["image"]))
            save_image(result.sigma, file_set.path(files["sigma"]))
            tables = {"bval": protocol.b, "te": protocol.te, "bvec": protocol.directions}
            for key, numbers in tables.items():
                if numbers is not None:
                    # One line of numbers; of directions one for each axis.
                    path = file_set.path(files[key])
                    np.savetxt(path, np.atleast_2d(numbers.T), fmt="%.10g")
            file_set.write_json(files["sidecar"], description)
    if file_set is not None:
        written = series.image_class.from_filename(file_set.folder / files["image"])
        result = replace(result, image=written)
    return result


@contextmanager
def _empty(series: Series, file_set: FileSet | None) -> Iterator[Any]:
    """Make an array for the result: on the disk where it is written to, or else in memory."""
    n_bytes = 4 * math.prod(series.shape)
    if file_set is None:
        if n_bytes > memory_left():
            text = SENTENCES["no_memory"].format(size=n_bytes / 2**30)
            raise ValueError(f"{series.name} {text}")
        yield np.empty(series.shape, np.float32)
        return
    file_set.check_room(n_bytes + bytes_of_maps(series.n_measurements, series.grid, None))
    # Without a name, so that it vanishes even if the process is killed.
    with tempfile.TemporaryFile(dir=file_set.folder) as file:
        # A mapped file that grows into a full disk ends the process without a word.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        yield np.memmap(file, np.float32, "r+", shape=series.shape, order="F")


def _slice_axis(series: Series) -> int:
    """Find the axis across slices: of the header, of clearly the longest edge, or the last."""
    stored = series.header.get_dim_info()[2]
    if stored is not None:
        return int(stored)
    edges = np.linalg.norm(series.affine[:3, :3], axis=0)
    longest = int(edges.argmax())
    return longest if edges[longest] > _THICK * np.delete(edges, longest).max() else 2


def _size_of_motion(
    transforms: NDArray[np.float64], series: Series
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the shift of the image center in mm and the rotation in degrees of each volume."""
    center = (series.affine @ [*(np.array(series.grid) - 1) / 2, 1])[:3]
    turns, offsets = transforms[:, :3, :3], transforms[:, :3, 3]
    shifts = np.linalg.norm(turns @ center + offsets - center, axis=1)
    cosines = (np.trace(turns, axis1=1, axis2=2) - 1) / 2
    return shifts, np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def _warn_of_large_motion(transforms: NDArray[np.float64], series: Series) -> None:
    """Warn of volumes that were moved so far that their registration may have failed."""
    shifts, turns = _size_of_motion(transforms, series)
    large = list(map(str, np.flatnonzero((shifts > _LARGE_SHIFT) | (turns > _LARGE_TURN))))
    if large:
        most = {"volumes": first_few(large), "shift": shifts.max(), "turn": turns.max()}
        text = SENTENCES["large_motion"].format(**most)
        warnings.warn(f"{series.name}: {text}", stacklevel=3)


def _files(series: Series, protocol: Protocol) -> dict[str, str]:
    """Name the files; the sidecar, last, completes the set."""
    names = {"image": "nii.gz", "bval": "bval"}
    if protocol.directions is not None:
        names["bvec"] = "bvec"
    if protocol.te is not None:
        names["te"] = "te"
    files = {"sigma": derivative_name(series.stem, "dwimap.nii.gz", param="sigma", desc="preproc")}
    for key, ending in (names | {"sidecar": "json"}).items():
        files[key] = derivative_name(series.stem, f"dwi.{ending}", desc="preproc")
    return files


def _describe(
    steps: list[str],
    noise: NoiseLevel,
    files: Mapping[str, str],
    slice_axis: int,
    transforms: NDArray[np.float64] | None,
    series: Series,
) -> dict[str, Any]:
    description: dict[str, Any] = {
        "Description": "Preprocessed magnitudes",
        **makers("dmrifit", "dipy", "numpy", "nibabel"),
        "Steps": steps,
        "File": files["image"],
        "Sigma": {
            "Description": "standard deviation of the noise before denoising, for the noise floor "
            "of a fit; denoising lowers the noise, and leaves the floor",
            "Method": noise.method,
            "File": files["sigma"],
        },
    }
    if "gibbs" in steps:
        description["SliceAxis"] = slice_axis
    if transforms is not None:
        shifts, turns = _size_of_motion(transforms, series)
        description["Motion"] = {
            "Description": "from world coordinates of the reference volume to those of each "
            "volume, mm; shift of the center of the image in mm, rotation in degrees",
            "Shifts": np.round(shifts, 4).tolist(),
            "Rotations": np.round(turns, 4).tolist(),
            "Transforms": transforms.tolist(),
            "NoValue": "NaN where a voxel would come from more than half a voxel outside the "
            "image; VoxelsOutside counts those of any volume",
        }
    return description
