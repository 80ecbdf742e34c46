"""Preparation of users' diffusion series for detectors, and the way back to their grid."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.linalg import block_diag
from threadpoolctl import threadpool_limits

from anomaly.scans.cases import TISSUES, UNWEIGHTED, Case, normalized
from anomaly.scans.directions import (
    FEWEST_DIRECTIONS,
    directions_on_grid,
    loss_by_resampling,
    matching_directions,
    resampling_matrix,
)
from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_number, check_word
from dmrifit._utils.counts import counted
from dmrifit._utils.threads import one_thread
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.head_steps import bright_brain
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import Volume, as_stored, cropped
from dmrifit.io.masks import MASK_THRESHOLD, binarize
from dmrifit.io.nifti import Image, image_name
from dmrifit.io.series import Series

__all__ = ["PreparedScan", "prepare_scan"]

_TINY = 0.02  # of the median at b = 0 in the brain, up to which voxels are left out of the brain
_SPACINGS = (0.5, 20.0)  # mm
_SHELL_WIDTH = 0.05  # of a b-value, by which others may differ on the same shell
_TOO_MANY_ABOVE = 0.1  # of the signals in the brain where that at b = 0 is high
_WHOLE = 0.8  # of a brain; a tissue map that has more of it as a single tissue is a brain mask
_DIRECTION_MODES = ("acquired", "needed", "resampled", "powder")
_CENTERS = ("grid", "brain")
#: Where the brain and the tissues come from, for the notes; None stands for an image.
_BRAIN_SOURCES = {True: "found", False: "all voxels with signal", None: "given"}
_TISSUE_SOURCES = {True: "estimated", False: "none", None: "given"}
#: What is taken for granted of a scan without directions, and how they are given.
_ASSUMED = "its directions are unknown: those of the model's training are assumed, in their order"
_MOST_HOLES = 0.01  # of a brain mask and its holes
_HOLES = "{:.2g} % of the brain mask are holes, not judged: fill them (ndimage.binary_fill_holes)"
_ONE_TISSUE = "the tissue map has {} alone, no fluid; a brain mask is for --mask (column brain)"
_BVEC = "bvec=…, --bvec; the column bvec of a table; or a file .bvec beside the image, of its name"


_FLUID_MD = 1.9  # µm²/ms; edema and infiltrated tissue stay below
_WHITE_FA = 0.25
_MM2_PER_S_TO_UM2_PER_MS = 1e3
_SMALLEST_SIGNAL = 1e-3
_NO_TISSUE = 1e6  # larger than any number of a tissue, and small enough for an integer


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """
    A scan in the form that a detector takes, with the way back to the grid of its file.

    Parameters
    ----------
    case : Case
        Signals, masks and patient data, on the grid of the detector.
    protocol : Protocol
        Weighting and directions of the channels of ``case.signal``; directions along the axes of
        the grid.
    shape : tuple of 3 int
        Numbers of voxels of the image as it is stored.
    affine : ndarray of shape (4, 4)
        Of the image as it is stored.
    working : tuple of (tuple of 3 int, ndarray of shape (4, 4))
        The grid before cropping and padding: in RAS order, with the requested voxel size.
    offset : tuple of 3 int
        Voxel of the working grid that is the first one of the detector's grid; negative where that
        was padded.
    notes : dict
        The steps of the preparation, as plain values.
    """

    case: Case
    protocol: Protocol
    shape: tuple[int, int, int]
    affine: NDArray[np.float64] = field(repr=False)
    working: tuple[tuple[int, ...], NDArray[np.float64]] = field(repr=False)
    offset: tuple[int, int, int]
    notes: dict[str, Any] = field(default_factory=dict)

    def restore(self, values: NDArray[Any]) -> NDArray[Any]:
        """
        Bring a map back to the grid of the image as it is stored.

        Parameters
        ----------
        values : ndarray of shape (x, y, z)
            A map on the grid of the detector. Where the voxel size was changed, real numbers are
            interpolated linearly, bool masks are interpolated and thresholded at one half, and
            8-bit labels take the nearest value.

        Returns
        -------
        ndarray of the shape of the stored image
            Of the type of `values` (real numbers in single precision); 0 outside the detector's
            grid. Without a change of the voxel size every value is kept exactly.

        Raises
        ------
        ValueError
            If the map has another shape than ``case.shape``.
        """
        array = np.asarray(values)
        if array.shape != self.case.shape:
            raise ValueError(
                f"a map of shape {array.shape} for a scan prepared to {self.case.shape}; give the "
                "detector's own map"
            )
        shape, affine = self.working
        volume = cropped(array, np.negative(self.offset), shape)
        canonical = Volume.upright(np.zeros(self.shape, np.uint8), self.affine)
        if canonical.shape != tuple(shape) or not np.allclose(canonical.affine, affine):
            volume = _moved(volume, affine, canonical)
        elif array.dtype.kind == "f":
            volume = volume.astype(np.float32)
        return np.ascontiguousarray(as_stored(volume, self.affine))

    def image(self, values: NDArray[Any]) -> nib.Nifti1Image:
        """
        Make an image of a map, on the grid of the image that was given.

        Parameters
        ----------
        values : ndarray of shape (x, y, z)
            As for `restore`.

        Returns
        -------
        Nifti1Image
            The map; masks as 0 and 1 of 8 bits.

        Raises
        ------
        ValueError
            If the map has another shape than ``case.shape``.
        """
        return Volume.of(self.restore(values), self.affine)


def prepare_scan(
    image: Image | Sequence[Image],
    protocol: Protocol | None = None,
    *,
    bval: str | Path | None = None,
    bvec: str | Path | None = None,
    mask: bool | Image = True,
    tissue: bool | Image = False,
    tissue_numbers: Mapping[int, int] | None = None,
    lesion: Image | None = None,
    followup: Image | None = None,
    fitted: Protocol | None = None,
    b: float | None = None,
    directions: str = "acquired",
    spacing: float | None = None,
    shape: tuple[int, int, int] | None = None,
    center: str = "grid",
    patient: str = "",
    name: str = "",
    **known: Any,
) -> PreparedScan:
    """
    Prepare a diffusion series for a detector.

    The image is put in RAS order, optionally resampled to voxels of `spacing` mm, divided by the
    mean of its volumes at b = 0 (up to 50 s/mm²) inside the brain, clipped to 0 … 1, and cropped
    or padded to `shape`; one of several shells is selected. ``restore`` and ``image`` bring maps
    of the detector back to the grid of the file. Motion, eddy currents and susceptibility
    distortion are not corrected, and nothing is registered: detectors whose scores depend on the
    position of a voxel need registered scans.

    Parameters
    ----------
    image : path, Nifti1Image, or sequence of them
        Magnitudes, shape (x, y, z, measurements), in any orientation; or several images of one
        grid.
    protocol : Protocol, optional
        The measurements; directions in the frame of FSL's files. By default they are read from
        `bval` and `bvec`.
    bval, bvec : path, optional
        b-values and directions; by default the files with these suffixes next to the image.
    mask : bool, path or Nifti1Image, default=True
        The brain on the grid of the image; True to segment it (``median_otsu`` of dipy on the
        signal at b = 0), which works for heads surrounded by air; False for all voxels with signal
        at b = 0. Voxels whose signal at b = 0 is below 2 % of the brain's median are excluded.
    tissue : bool, path or Nifti1Image, default=False
        Tissue map on the grid of the image, such as a registered one of a T1 image; True to
        estimate one from diffusivity and anisotropy (`estimate_tissue`); False for none: the whole
        brain is scored then, with ventricles.
    tissue_numbers : mapping of int to int, optional
        Meaning of the numbers of a tissue map, as for `relabel_tissue`.
    lesion, followup : path or Nifti1Image, optional
        Masks of the lesion, now and later, on the grid of the image.
    fitted : Protocol, optional
        The measurements that a detector was fitted to (``PreparedScan.protocol``), whose b-value
        and order of directions the scan then has, too.
    b : float, optional
        The b-value of the shell to select, in s/mm², if there are several; by default that of
        `fitted`. Measurements within 5 % of it belong to the shell.
    directions : {"acquired", "needed", "resampled", "powder"}, default="acquired"
        Whether the acquired measurements are used, which must lie within 5° of those of `fitted`,
        or signals along those are estimated by spherical harmonics (`resample_directions`), always
        or where they are needed; ``notes["lost"]`` then says what is lost by that. Or the channels
        are powder averages, the mean over the directions of each shell (of `b` alone if it is
        named), for any directions; a shell needs 6 of them, and ``notes["unused"]`` names volumes
        between shells. ``notes["assumed"]`` tells where a scan has no directions and `fitted` has.
    spacing : float, optional
        Edge of the voxels to resample to, in mm, 0.5 to 20; None to keep those of the image.
    shape : tuple of 3 int, optional
        Numbers of voxels that the detector takes; None to keep those of the image.
    center : {"grid", "brain"}, default="grid"
        Center of the cropped volume: that of the image (registered scans stay registered) or that
        of the box around the brain (a rough alignment of other scans).
    patient, name : str, default=""
        Of the case; by default the patient has the name of the file, and the case that of the
        patient.
    **known
        Further attributes of `Case`: age, sex, site, grade, kind, synthetic.

    Returns
    -------
    PreparedScan
        The case, its protocol, and the way back.

    Raises
    ------
    ValueError
        If volumes and b-values differ in number, none is at b = 0 or on the requested shell, their
        number or directions differ from `fitted`, a mask is empty or on another grid, a value in
        the brain is not finite, the brain does not fit into `shape`, a tissue map has no white or
        gray matter in the brain, or an option is out of range. The message names the remedy.
    FileNotFoundError
        If a file is missing.
    ImportError
        If the extra ``preprocess`` is not installed and a step needs it: brain masks, other
        directions, tissue maps.

    Warns
    -----
    UserWarning
        If more than 10 % of the signals are above that at b = 0, where that is high, or the scan
        has no directions and `fitted` has.
    """
    check_word("directions", directions, _DIRECTION_MODES)
    if directions == "resampled" and (fitted is None or fitted.directions is None):
        raise ValueError(
            "directions='resampled' needs the directions to estimate signals along: fitted=…, a "
            "protocol with them"
        )
    check_word("center", center, _CENTERS)
    if spacing is not None:
        check_number("the spacing in mm", spacing, least=_SPACINGS[0], most=_SPACINGS[1])
    if shape is not None and not (len(shape) == 3 and all(int(n) == n and n > 0 for n in shape)):
        raise ValueError(f"shape must be three numbers of voxels, not {shape!r}")
    series = Series.open(image)
    if protocol is not None and (bval, bvec) != (None, None):
        raise ValueError("give either a protocol, or bval and bvec, not both")
    if protocol is None:
        source = series.parts[0].path if len(series.parts) == 1 else None
        tables = tables_beside(source) if source else {}
        bval, bvec = bval or tables.get("bval"), bvec or tables.get("bvec")
        if bval is None:
            beside = f"{stem(source)}.bval" if source else "a file of this ending"
            raise ValueError(
                f"{series.name}: no b-values; put {beside} beside the image, or name the file: "
                "bval=…, the column bval of a table, or detect --bval"
            )
        protocol = Protocol.read(bval, bvec=bvec)
    series.check_count(protocol)
    if directions == "powder":
        plain, shell, channels = _powder_channels(protocol, fitted, b, _name_with(series, bval))
    else:
        plain, shell = _shell(protocol, fitted, b, _name_with(series, bval))
        channels = _channels(
            protocol.take(shell), series.affine, fitted, directions, _name_with(series, bvec)
        )
    # All masks before the series, which is the largest file: an error should come early.
    choices = {"brain": mask, "tissue": tissue}
    given = {key: value for key, value in choices.items() if not isinstance(value, bool)}
    lesions = {"lesion": lesion, "followup": followup}
    given |= {key: value for key, value in lesions.items() if value}
    stored: dict[str, NDArray[Any]] = {
        key: _read(value, series, tissue_numbers, is_tissue=key == "tissue")
        for key, value in given.items()
    }
    with series.unpacked() as readable:
        values = readable.read(slice(None), np.float32)[..., np.concatenate([plain, shell])]
    if mask is True:
        stored["brain"] = _segmented_brain(values[..., : len(plain)], series)
    elif mask is False:
        finite = np.isfinite(values).all(axis=-1)
        stored["brain"] = finite & (np.nan_to_num(values[..., : len(plain)]).mean(axis=-1) > 0)
    _check_finite(values, stored["brain"], series.name)

    grid = Volume.upright(np.zeros(series.grid, np.uint8), series.affine).resampled(spacing)
    # Outside the brain there may be NaN, which interpolation would carry inside.
    values = np.where(np.isfinite(values), values, 0)
    volumes = [_moved(values[..., i], series.affine, grid) for i in range(values.shape[3])]
    values = np.stack(volumes, axis=-1)
    maps: dict[str, Any] = {
        key: _moved(volume, series.affine, grid) for key, volume in stored.items()
    }
    for key in ("lesion", "followup"):
        if key in maps and not maps[key].any():
            raise ValueError(
                f"the {key} of {series.name} is too small for voxels of {spacing:g} mm; none of "
                "its voxels remains"
            )
    mean_b0 = values[..., : len(plain)].mean(axis=-1)
    brain = _bright(mean_b0, maps["brain"], series.name)
    n_dark = int(np.count_nonzero(maps["brain"] & ~brain))
    signal, b0 = normalized(values, np.append(np.zeros(len(plain)), protocol.b[shell]), brain)
    # Where the signal is low, as in air, noise alone may exceed it.
    clear = brain & (b0 > 0.5 * np.percentile(b0[brain], 98))
    above = float((values[clear][:, len(plain) :] > b0[clear][:, None]).mean())
    if above > _TOO_MANY_ABOVE:
        message = (
            f"{series.name}: {100 * above:.0f} % of the signals are above that at b = 0 where "
            "that is high; check that the b-values are in the order of the volumes"
        )
        warnings.warn(message, stacklevel=2)
    # The series is the largest array, and its quotients replace it.
    del values, volumes
    signal = channels.of(signal, brain)
    if tissue is True:
        maps["tissue"] = estimate_tissue(signal, channels.protocol, brain)
    maps |= {"signal": signal, "brain": brain, "b0": b0}
    i, j, k = map(int, grid.shape if shape is None else shape)
    size = (i, j, k)
    offset = _offset(grid.shape, size, brain, center, series.name)
    maps = {key: cropped(volume, offset, size) for key, volume in maps.items()}
    affine = np.array(grid.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ np.array(offset)
    case = Case(
        patient or series.stem or "scan",
        affine=affine,
        name=name,
        b=float(np.median(channels.protocol.b)),
        directions=channels.protocol.directions,
        **maps,
        **known,
    )
    if not case.scored.any():
        raise ValueError(
            f"{series.name}: its tissue map has no white or gray matter in the brain, so nothing "
            "would be scored; check that it belongs to this scan, and what its numbers stand for"
        )
    one_tissue = holes = ""
    if "brain" in given:
        share = 1 - stored["brain"].sum() / ndimage.binary_fill_holes(stored["brain"]).sum()
        holes = _HOLES.format(100 * share) if share > _MOST_HOLES else ""
    if "tissue" in given:
        labels = maps["tissue"][maps["brain"]]
        # A mask of white matter may be meant, and is far smaller than the brain.
        if len(numbers := np.unique(labels[labels > 0])) == 1 and np.mean(labels > 0) > _WHOLE:
            one_tissue = _ONE_TISSUE.format(TISSUES[int(numbers[0])])
    notes = {
        "b0_volumes": len(plain),
        "b": case.b,
        "directions": len(channels.protocol),
        "directions_measured": None if channels.assumed else len(shell),
        "directions_resampled": bool(channels.lost),
        "powder_averages": directions == "powder",
        "lost": channels.lost,
        "unused": channels.unused,
        "assumed": channels.assumed,
        "one_tissue": one_tissue,
        "holes": holes,
        "brain": _BRAIN_SOURCES[mask if isinstance(mask, bool) else None],
        "voxels": int(brain.sum()),
        "voxels_too_dark": n_dark,
        "share_above_b0": above,
        "tissue": _TISSUE_SOURCES[tissue if isinstance(tissue, bool) else None],
        "spacing": spacing,
        "shape": list(size),
        "center": center,
    }
    stored_grid = series.grid, series.affine
    working = grid.shape, np.asarray(grid.affine, dtype=np.float64)
    return PreparedScan(case, channels.protocol, *stored_grid, working, offset, notes)


@dataclass(frozen=True)
class _Channels:
    """Channels of a detector: weighted sums of the measurements of one or several shells."""

    protocol: Protocol
    weights: NDArray[np.floating] | None  # (n_measurements, n_channels); None: each is a channel
    lost: str = ""
    unused: str = ""
    assumed: str = ""

    def of(self, signal: NDArray[np.float32], brain: NDArray[np.bool_]) -> NDArray[np.float32]:
        if self.weights is None:
            return signal
        channels = np.zeros((*brain.shape, len(self.protocol)), np.float32)
        # The last bits of sums depend on the number of threads.
        with one_thread():
            sums = signal[brain] @ self.weights.astype(np.float32)
        # Harmonics can overshoot the range of the signals.
        channels[brain] = np.clip(sums, 0, 1)
        return channels


def tables_beside(image: Path) -> dict[str, Path]:
    """Find the files of b-values and directions next to an image, by their endings."""
    tables = {end: image.with_name(f"{stem(image)}.{end}") for end in ("bval", "bvec")}
    return {end: path for end, path in tables.items() if path.is_file()}


def _moved(
    volume: NDArray[Any], affine: NDArray[np.float64], grid: nib.Nifti1Pair
) -> NDArray[Any]:
    """Resample values or a mask (linearly), or labels (uint8, nearest), to a grid in RAS order."""
    if volume.dtype == np.uint8:
        return Volume.upright(volume, affine).labels_onto(grid).values
    moved = Volume.upright(volume.astype(np.float32), affine).onto(grid, np.eye(4)).values
    return moved > MASK_THRESHOLD if volume.dtype == bool else moved


def _shell(
    protocol: Protocol, fitted: Protocol | None, b: float | None, name: str
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the volumes at b = 0 and those on the shell."""
    plain = np.flatnonzero(protocol.b <= UNWEIGHTED)
    weighted = np.flatnonzero(protocol.b > UNWEIGHTED)
    b_values = _b_values(protocol.b)
    if not len(plain):
        raise ValueError(
            f"{name} has no volume at b = 0 (up to {UNWEIGHTED:g} s/mm²), which signals are "
            f"divided by; it has {b_values}: join the series with a volume at b = 0 of the same "
            "scan"
        )
    if not len(weighted):
        raise ValueError(
            f"{name} has no volume with diffusion weighting; it has {b_values}: check the b-values"
        )
    if b is not None:
        if fitted is not None and not _near(fitted.b[fitted.b > UNWEIGHTED], b).all():
            raise ValueError(
                f"b = {b:g} s/mm² is not that of the detector, which was fitted to "
                f"{_b_values(fitted.b)}; leave b out"
            )
    elif fitted is not None:
        b = float(np.median(fitted.b[fitted.b > UNWEIGHTED]))
    else:
        # The nominal value is unknown: scanners write effective ones around it.
        b = float(np.median(protocol.b[weighted]))
        if not _near(protocol.b[weighted], b).all():
            raise ValueError(
                f"{name} has several shells: {b_values}; choose one of them: b=… (--b)"
            )
    shell = np.flatnonzero(_near(protocol.b, b))
    if not len(shell):
        nearest = min(_nominal(protocol.b[weighted]), key=lambda value: abs(value - b))
        raise ValueError(
            f"{name} has no measurement at b = {b:g} s/mm² (± {100 * _SHELL_WIDTH:g} %); it has "
            f"{b_values}: give a scan with that b-value, or train a detector for one of these on "
            "healthy scans, your table or folder CASES: "
            f"dmrifit-anomaly train CASES --b {nearest:g} --out own.dmrifit"
        )
    return plain, shell


def _near(values: NDArray[np.float64], b: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(values - b) <= _SHELL_WIDTH * b)


def _b_values(b: NDArray[np.float64]) -> str:
    """List b-values with their numbers of volumes."""
    b_values, counts = np.unique(_nominal(b), return_counts=True)
    listed = [f"b ≈ {value:g} ({n})" for value, n in zip(b_values[:8], counts[:8], strict=True)]
    if len(b_values) > len(listed):
        listed.append("…")
    return f"{', '.join(listed)}, the lowest being {b.min():g}"


def _nominal(b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round b-values, as effective ones of one shell differ, to values on whose shell they lie."""
    steps = np.select([b <= UNWEIGHTED, b < 100, b < 500, b < 1000], [100, 5, 10, 50], 100)
    return np.asarray(np.round(b / steps) * steps)


def _channels(
    protocol: Protocol, affine: NDArray[np.float64], fitted: Protocol | None, mode: str, name: str
) -> _Channels:
    """Match the measurements of the shell to those that the detector was fitted to."""
    grid_directions = None
    if protocol.directions is not None:
        grid_directions = directions_on_grid(protocol.directions, affine)
        if not np.linalg.norm(grid_directions, axis=1).all():
            n = int(np.count_nonzero(np.linalg.norm(grid_directions, axis=1) == 0))
            raise ValueError(
                f"{name}: {n} of {len(grid_directions)} measurements with diffusion weighting "
                "have no direction; check the bvec"
            )
    measured = Protocol(protocol.b, directions=grid_directions, name=protocol.name)
    unchanged = _Channels(measured, None)
    if fitted is None:
        return unchanged
    target = fitted.take(np.flatnonzero(fitted.b > UNWEIGHTED))
    if mode == "resampled" and grid_directions is None:
        raise ValueError(
            f"{name}: other directions cannot be estimated without those that were measured; "
            f"give them ({_BVEC})"
        )
    if grid_directions is not None and target.directions is not None:
        # Networks and trees know a direction by its channel, so the order has to be that of
        # training.
        order = None
        if len(measured) == len(target):
            order = matching_directions(grid_directions, target.directions)
        can_resample = mode == "needed" and len(measured) >= FEWEST_DIRECTIONS
        if mode == "resampled" or (order is None and can_resample):
            # Too few directions are an error now, not after the images are read.
            matrix = resampling_matrix(grid_directions, target.directions)
            return _Channels(target, matrix, lost=loss_by_resampling(matrix))
        if order is not None:
            return _Channels(target, np.eye(len(target))[:, order])
    remedy = "directions='resampled' (--resample-directions) estimates signals along those"
    if len(measured) < FEWEST_DIRECTIONS:
        remedy = (
            f"signals along those are estimated from {FEWEST_DIRECTIONS} directions or more: "
            "train a model on scans of this protocol"
        )
    if len(measured) != len(target):
        raise ValueError(
            f"{name} has {counted(len(measured), 'direction')}, and the detector was fitted to "
            f"{len(target)}; {remedy}"
        )
    if grid_directions is None or target.directions is None:
        if target.directions is not None:
            warnings.warn(f"{name}: {_ASSUMED}; to check this, give {_BVEC}", stacklevel=3)
            return _Channels(measured, None, assumed=_ASSUMED)
        return unchanged
    raise ValueError(
        f"{name} has other directions than those that the detector was fitted to, by more "
        f"than 5°; {remedy}"
    )


def _powder_channels(
    protocol: Protocol, fitted: Protocol | None, b: float | None, name: str
) -> tuple[NDArray[np.intp], NDArray[np.intp], _Channels]:
    """Find the volumes at b = 0, those of the shells (of `b` alone if given), and their means."""
    if fitted is not None and fitted.directions is not None:
        raise ValueError(
            f"{name}: the detector was fitted to signals along directions, not to powder "
            "averages; leave directions='powder' out"
        )
    levels = [b] if b is not None else _shell_levels(protocol if fitted is None else fitted)
    parts = []
    for level in levels:
        plain, shell = _shell(protocol, None, level, name)
        if len(shell) < FEWEST_DIRECTIONS:
            raise ValueError(
                f"{name} has {counted(len(shell), 'measurement')} at b = {level:g} s/mm², and a "
                f"powder average needs {FEWEST_DIRECTIONS} or more; choose another shell: b=… "
                "(--b)"
            )
        parts.append(shell)
    means = Protocol(np.array(levels), name=protocol.name)
    volumes = np.concatenate(parts)
    unused = ""
    rest = np.setdiff1d(np.flatnonzero(protocol.b > UNWEIGHTED), volumes)
    # Other shells than the one that was asked for are left out on purpose.
    if b is None and len(rest):
        listed = ", ".join(f"{level:g}" for level in np.unique(protocol.b[rest])[:8])
        unused = (
            "outside the shells of the powder averages and not used: "
            f"{counted(len(rest), 'volume')} with diffusion weighting, b = {listed} s/mm²"
        )
    shares = block_diag(*(np.full((len(part), 1), 1 / len(part)) for part in parts))
    return plain, volumes, _Channels(means, shares, unused=unused)


def _shell_levels(protocol: Protocol) -> list[float]:
    """List the b-values of the shells of a protocol, in s/mm²."""
    b_values = np.sort(protocol.b[protocol.b > UNWEIGHTED])
    levels = []
    while len(b_values):
        # A shell reaches 5 % below and above its level: 10 % above its lowest b-value.
        in_shell = b_values <= b_values[0] * (1 + 2 * _SHELL_WIDTH)
        level = float(np.median(b_values[in_shell]))
        levels.append(level)
        # `_shell` selects the volumes near the level, so that these make no further shell.
        b_values = b_values[~(in_shell | _near(b_values, level))]
    # Without weighted volumes, `_shell` raises the error that names what is missing.
    return levels or [float(protocol.b.max())]


def _segmented_brain(values: NDArray[np.float32], series: Series) -> NDArray[np.bool_]:
    """Segment the brain in the signal at b = 0."""
    picture = np.nan_to_num(values).mean(axis=-1, dtype=np.float64)
    brain = bright_brain(picture, series.affine)
    if not brain.any():
        raise ValueError(
            f"{series.name}: no brain was found in the signal at b = 0; give a mask (mask=…, "
            "--mask, for many scans the column brain of a table)"
        )
    return brain


def _check_finite(values: NDArray[np.float32], brain: NDArray[np.bool_], name: str) -> None:
    n = int(np.count_nonzero(~np.isfinite(values[brain]).all(axis=-1)))
    if n:
        raise ValueError(
            f"{name}: {n} of {np.count_nonzero(brain)} voxels of the brain have values that are "
            "not finite (NaN or infinite); leave them out of the mask, or repair the series"
        )
    if not brain.any():
        raise ValueError(f"{name}: no voxel has signal at b = 0")


def _bright(b0: NDArray[np.float32], brain: NDArray[np.bool_], name: str) -> NDArray[np.bool_]:
    """Exclude voxels without signal at b = 0, whose quotients would be noise."""
    bright = brain & (b0 > 0)
    if not bright.any():
        raise ValueError(
            f"{name}: the signal at b = 0 is nowhere above 0 in the brain; check that mask and "
            "b-values belong to it"
        )
    # Of the median, as scanners scale their signals as they like.
    return bright & (b0 > _TINY * np.median(b0[bright]))


def _offset(
    shape: tuple[int, ...],
    size: tuple[int, int, int],
    brain: NDArray[np.bool_],
    center: str,
    name: str,
) -> tuple[int, int, int]:
    """Find the voxel of the working grid that becomes the first one of the cropped volume."""
    voxels = np.argwhere(brain)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    middle = (low + high) / 2 if center == "brain" else np.array(shape) / 2
    # Halves round down, whatever the rounding error of the middle.
    offset = np.floor(middle - np.array(size) / 2 + 0.25).astype(int)
    lost = ((voxels < offset) | (voxels >= offset + np.array(size))).any(axis=1)
    if lost.any():
        box = " × ".join(str(n) for n in high - low)
        fits = (high - low <= np.array(size)).all()
        remedy = "train with a larger shape (--shape), or larger voxels (--spacing)"
        if fits and center == "grid":
            remedy = "crop or pad it, or train with center='brain' (--center brain)"
        raise ValueError(
            f"{name}: {np.count_nonzero(lost)} of {len(voxels)} voxels of the brain ({box}) do "
            f"not fit into {' × '.join(map(str, size))}; {remedy}"
        )
    return int(offset[0]), int(offset[1]), int(offset[2])


def _read(
    image: Image, series: Series, numbers: Mapping[int, int] | None, *, is_tissue: bool
) -> NDArray[Any]:
    """Read the mask or the tissue map of a series, on its grid."""
    values = series.read_map(image)
    if not is_tissue:
        return binarize(values, name=image_name(image))
    try:
        return relabel_tissue(values, numbers)
    except ValueError as error:
        raise ValueError(f"{image_name(image)}: {error}") from None


def _name_with(series: Series, path: str | Path | None) -> str:
    return series.name if path is None else f"{series.name} ({path})"


def diffusion_maps(
    signal: ArrayLike, protocol: Protocol, brain: ArrayLike
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Fit diffusion tensors (Basser et al., 1994) and compute mean diffusivity (µm²/ms) and FA.

    Shapes: `signal` (x, y, z, c), `brain` (x, y, z); returns (x, y, z) each, 0 outside the brain.
    """
    values, inside = np.asarray(signal), np.asarray(brain, dtype=bool)
    if values.ndim != 4 or values.shape[:3] != inside.shape or values.shape[3] != len(protocol):
        raise ValueError(
            f"a scan of shape {values.shape} does not fit a brain of shape {inside.shape} and a "
            f"protocol of {len(protocol)} measurements"
        )
    if protocol.directions is None or len(protocol) < 6:
        raise ValueError("a tensor needs at least 6 directions; give them (bvec), or a tissue map")
    dti = import_optional("dipy.reconst.dti")
    gradients = import_optional("dipy.core.gradients")
    table = gradients.gradient_table(
        np.append(0.0, protocol.b),
        bvecs=np.vstack([np.zeros(3), protocol.directions]),
        b0_threshold=0,
    )
    # The fit takes logarithms.
    voxels = np.clip(values[inside], _SMALLEST_SIGNAL, None).astype(np.float64)
    md = np.zeros(inside.shape, np.float32)
    fa = np.zeros(inside.shape, np.float32)
    with threadpool_limits(1):
        # The signals are divided by that at b = 0, which is therefore 1 everywhere.
        fitted = dti.TensorModel(table).fit(np.hstack([np.ones((len(voxels), 1)), voxels]))
        md[inside] = fitted.md * _MM2_PER_S_TO_UM2_PER_MS
        fa[inside] = fitted.fa
    return md, fa


def estimate_tissue(
    signal: ArrayLike,
    protocol: Protocol,
    brain: ArrayLike,
    *,
    fluid_md: float = _FLUID_MD,
    white_fa: float = _WHITE_FA,
) -> NDArray[np.uint8]:
    """
    Classify white matter, gray matter and fluid by mean diffusivity and anisotropy.

    A rough map for scoring in the absence of a better one: fluid is where the mean diffusivity is
    above `fluid_md`, white matter where the anisotropy is above `white_fa`, gray matter elsewhere.
    Tumors with the diffusivity of fluid (cysts, necrosis) count as fluid and would not be scored;
    deep gray matter is not separated from cortex.

    In synthetic brains of 64 directions and voxels of 4 and 2.5 mm, Dice with the truth was .88
    and .90 for white matter, .92 and .93 for gray matter, and .91 and .94 for fluid; 17 and 12 %
    of fluid voxels, those at its rim, were classified as tissue, and of gliomas 0 and 2 % (6 % of
    one of them) as fluid.

    Parameters
    ----------
    signal : array_like of shape (x, y, z, c)
        Signals divided by that at b = 0.
    protocol : Protocol
        The c measurements, with directions along the axes of the grid.
    brain : array_like of bool, shape (x, y, z)
        The brain.
    fluid_md : float, default=1.9
        Mean diffusivity in µm²/ms above which a voxel is fluid.
    white_fa : float, default=0.25
        Fractional anisotropy above which a voxel that is not fluid is white matter.

    Returns
    -------
    ndarray of uint8, shape (x, y, z)
        0 outside the brain, 1 white matter, 2 gray matter, 3 fluid.

    Raises
    ------
    ValueError
        If shapes differ, or there are no directions or fewer than 6.
    ImportError
        If the extra ``preprocess`` is not installed.
    """
    inside = np.asarray(brain, dtype=bool)
    md, fa = diffusion_maps(signal, protocol, inside)
    tissue = np.where(md > fluid_md, 3, np.where(fa > white_fa, 1, 2))
    return np.where(inside, tissue, 0).astype(np.uint8)


def relabel_tissue(
    labels: ArrayLike, numbers: Mapping[int, int] | None = None
) -> NDArray[np.uint8]:
    """
    Convert the tissue map (x, y, z) of another program to the numbers of `TISSUES`.

    `numbers` gives the number in `TISSUES` of each number of the map; all others become 0, no
    tissue. Without it the map must have the numbers of `TISSUES`. ValueError if a number is
    unknown, or the map has no white or gray matter.
    """
    # NaN becomes 0. Infinite and huge values are clipped, as integers cannot hold them, to a
    # number that no tissue has.
    values = np.nan_to_num(
        np.asarray(labels, dtype=np.float64), posinf=_NO_TISSUE, neginf=-_NO_TISSUE
    )
    tissue = np.rint(np.clip(values, -_NO_TISSUE, _NO_TISSUE)).astype(np.int64)
    if numbers is not None:
        relabeled = np.zeros(tissue.shape, np.int64)
        for old, new in numbers.items():
            relabeled[tissue == int(old)] = int(new)
        tissue = relabeled
    legend = ", ".join(f"{number} {name}" for number, name in TISSUES.items())
    unknown = sorted(set(np.unique(tissue).tolist()) - {0, *TISSUES})
    if unknown:
        raise ValueError(
            f"a tissue map has the numbers {unknown[:5]}; {legend} are known: name what others "
            "stand for"
        )
    if not np.isin(tissue, (1, 2, 4)).any():
        raise ValueError(
            f"a tissue map without white and gray matter scores nothing; {legend} are known"
        )
    return tissue.astype(np.uint8)
