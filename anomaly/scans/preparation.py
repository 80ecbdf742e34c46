"""From diffusion series of users, NIfTI with b-values and directions, to the arrays that detectors take, and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from anomaly.scans.cases import Case, normalized
from anomaly.scans.directions import (
    directions_on_grid,
    harmonic_order,
    matching_directions,
    resample_directions,
)
from anomaly.scans.tissue import estimate_tissue, relabel_tissue
from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_word
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging.corrections import quiet_dipy
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.grids import array_of, labels_onto, onto, resampled, scan_of
from dmrifit.io.masks import MASK_THRESHOLD, binarize
from dmrifit.io.nifti import Image, Images, image_name, image_of
from dmrifit.io.series import Series, read_map

if TYPE_CHECKING:
    import nibabel as nib

__all__ = ["PreparedScan", "prepare_scan"]

_UNWEIGHTED = 50.0  # s/mm², up to which a volume counts as one without diffusion weighting
_TINY = 0.02  # of the median in the brain, below which the signal at b = 0 divides nothing
_SMOOTHED = 4.0  # mm, radius of the median before the brain is looked for
_SPACINGS = (0.5, 20.0)  # mm
_SHELL_WIDTH = 0.05  # of a b-value, by which others may differ on the same shell
_TOO_MANY_ABOVE = 0.1  # of the signals in the brain
_WAYS = ("acquired", "resampled")
_CENTERS = ("grid", "brain")


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """
    A scan that a detector can take, and the way back to the file it came from.

    Parameters
    ----------
    case : Case
        Signals, masks and what is known of the patient, on the grid of the detector.
    protocol : Protocol
        Weighting and directions of the channels of ``case.signal``; directions along the axes of the grid.
    shape : tuple of 3 int
        Numbers of voxels of the image as it is stored.
    affine : ndarray of shape (4, 4)
        Of the image as it is stored.
    working : tuple of (tuple of 3 int, ndarray of shape (4, 4))
        The grid before it was cropped and padded: in RAS order, with the wanted voxels.
    offset : tuple of 3 int
        Voxel of the working grid that is the first one of the detector's grid; negative where that was padded.
    notes : dict
        What was done, as plain values.
    """

    case: Case
    protocol: Protocol
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    working: tuple[tuple[int, ...], NDArray[np.float64]]
    offset: tuple[int, int, int]
    notes: dict[str, Any] = field(default_factory=dict)

    def restore(self, values: NDArray[Any]) -> NDArray[Any]:
        """
        Bring a map back to the grid of the image as it is stored.

        Parameters
        ----------
        values : ndarray of shape (x, y, z)
            A map on the grid of the detector: real numbers, which are interpolated linearly where the voxel size was
            changed; bool, of which more than half is inside then; or labels of 8 bits, of which the nearest is taken.

        Returns
        -------
        ndarray of the shape of the stored image
            Of the type of `values` (real numbers in single precision); 0 where the detector saw nothing. Without a
            change of the voxel size every value is in its place unchanged.

        Raises
        ------
        ValueError
            If the map has another shape than ``case.signal``.
        """
        import nibabel as nib
        from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

        found = np.asarray(values)
        if found.shape != self.case.shape:
            raise ValueError(
                f"a map of shape {found.shape} for a scan prepared to {self.case.shape}; give the detector's own map"
            )
        shape, affine = self.working
        whole = np.zeros(shape, found.dtype)
        here, there = _overlap(shape, self.offset, found.shape)
        whole[here] = found[there]
        ornt = io_orientation(self.affine)
        canonical = _canonical(np.zeros(self.shape, np.uint8), self.affine)
        if canonical.shape != tuple(shape) or not np.allclose(canonical.affine, affine):
            if found.dtype == np.uint8:
                whole = array_of(labels_onto(scan_of(whole, affine), canonical))
            else:
                moved = array_of(
                    onto(scan_of(whole.astype(np.float32), affine), canonical, np.eye(4))
                )
                whole = moved > MASK_THRESHOLD if found.dtype == bool else moved
        elif found.dtype.kind == "f":
            whole = whole.astype(np.float32)
        back = ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt)
        return np.ascontiguousarray(apply_orientation(whole, back))

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
            If the map has another shape than ``case.signal``.
        """
        return image_of(self.restore(values), self.affine)


def prepare_scan(
    image: Images,
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
    Bring a diffusion series to the array that a detector takes.

    The image is put in RAS order, resampled to voxels of `spacing` mm if asked for, divided by the mean of its volumes
    at b = 0 (up to 50 s/mm²) inside the brain, limited to 0 … 1, and cropped or padded to `shape`; of several shells
    one is taken. What the detector finds comes back to the grid of the file by ``restore`` and ``image``. Motion, eddy
    currents and susceptibility are not corrected, and nothing is registered: detectors that know the place of a voxel
    need scans that lie on each other.

    Parameters
    ----------
    image : path, Nifti1Image, or sequence of them
        Magnitudes, shape (x, y, z, measurements), in any orientation; or several images of one grid.
    protocol : Protocol, optional
        The measurements; directions in the frame of FSL's files. By default they are read from `bval` and `bvec`.
    bval, bvec : path, optional
        b-values and directions; by default the files of these endings beside the image.
    mask : bool, path or Nifti1Image, default=True
        The brain on the grid of the image; True to find it (``median_otsu`` of dipy on the signal at b = 0), which
        fits heads with air around them; False for all voxels with signal at b = 0. Voxels whose signal at b = 0 is
        below 2 % of the brain's median are left out.
    tissue : bool, path or Nifti1Image, default=False
        Tissue map on the grid of the image, such as one of a T1 image brought there; True to estimate one from
        diffusivity and anisotropy (`estimate_tissue`); False for none: the whole brain is scored then, ventricles too.
    tissue_numbers : mapping of int to int, optional
        What numbers of a tissue map stand for, as for `relabel_tissue`.
    lesion, followup : path or Nifti1Image, optional
        Masks of the lesion, now and later, on the grid of the image.
    fitted : Protocol, optional
        The measurements that a detector was fitted to, as ``PreparedScan.protocol`` gives them: their b-value is
        taken, and their directions, in their order.
    b : float, optional
        The b-value of the shell to take, in s/mm², if there are several; by default that of `fitted`. Measurements
        within 5 % of it belong to the shell.
    directions : {"acquired", "resampled"}, default="acquired"
        Whether measurements are taken as they are, and have to lie within 5° of those of `fitted`, or are estimated
        along those by spherical harmonics (`resample_directions`).
    spacing : float, optional
        Edge of the voxels to resample to, in mm, 0.5 to 20; None to keep those of the image.
    shape : tuple of 3 int, optional
        Numbers of voxels that the detector takes; None to keep those of the image.
    center : {"grid", "brain"}, default="grid"
        What is put in the middle of `shape`: that of the image (scans that lie on each other stay so) or that of the
        box around the brain (a rough alignment of scans that do not).
    patient, name : str, default=""
        Of the case; by default what the file is called.
    **known
        More of what `Case` takes: age, sex, site, grade, kind, synthetic.

    Returns
    -------
    PreparedScan
        The case, its protocol, and the way back.

    Raises
    ------
    ValueError
        If volumes and b-values differ in number, none is at b = 0 or on the wanted shell, their number or directions
        are not those of `fitted`, a mask is empty or on another grid, a value in the brain is not finite, the brain
        does not fit into `shape`, a tissue map has no white or gray matter in the brain, or an option is out of its
        range. The message names the remedy.
    FileNotFoundError
        If a file is missing.
    ImportError
        If the extra ``preprocess`` is not installed and a step needs it: finding the brain, other directions, tissues.

    Warns
    -----
    UserWarning
        If more than 10 % of the signals are above that at b = 0, where that is high, or directions are not known where
        those of `fitted` are.
    """
    _check_options(fitted, directions, spacing, shape, center)
    series = Series.open(image)
    if protocol is None:
        bval, bvec = _tables_of(series, bval, bvec)
    protocol = _protocol_of(series, protocol, bval, bvec)
    series.check_count(protocol)
    told_by, along = (f" ({one})" if one is not None else "" for one in (bval, bvec))
    plain, shell = _shell(protocol, fitted, b, series.name + told_by)
    channels = _channels(
        protocol.take(shell), series.affine, fitted, directions, series.name + along
    )
    inside = (
        None if isinstance(mask, bool) else binarize(read_map(mask, series), name=image_name(mask))
    )
    marked = {"lesion": lesion, "followup": followup}
    labels = None
    if not isinstance(tissue, bool):
        found = read_map(tissue, series)
        try:
            labels = relabel_tissue(found, tissue_numbers)
        except ValueError as error:
            raise ValueError(f"{image_name(tissue)}: {error}") from None
    lesions = {
        key: binarize(read_map(one, series), name=image_name(one))
        for key, one in marked.items()
        if one
    }
    with series.unpacked() as readable:
        values = readable.read(slice(None), np.float32)[..., np.concatenate([plain, shell])]
    if inside is None:
        inside = (
            _found_brain(values[..., : len(plain)], series)
            if mask
            else _with_signal(values, len(plain))
        )
    _check_finite(values, inside, series.name)

    working = _Working.of(series, spacing)
    # Outside the brain there may be no numbers, and interpolation would carry them inside.
    values = np.where(np.isfinite(values), values, 0)
    values = np.stack([working.values(values[..., i]) for i in range(values.shape[3])], axis=-1)
    brain, n_dark = _bright(
        values[..., : len(plain)].mean(axis=-1), working.mask(inside), series.name
    )
    signal, b0 = normalized(values, np.append(np.zeros(len(plain)), protocol.b[shell]), brain)
    # Where the signal is low, as in air, noise goes either way.
    clear = brain & (b0 > 0.5 * np.percentile(b0[brain], 98))
    above = float((values[clear][:, len(plain) :] > b0[clear][:, None]).mean())
    if above > _TOO_MANY_ABOVE:
        msg = (
            f"{series.name}: {100 * above:.0f} % of the signals are above that at b = 0 where that is high; check "
            "that the b-values are in the order of the volumes"
        )
        warnings.warn(msg, stacklevel=2)
    del values
    signal = channels.of(signal, brain)
    parts: dict[str, Any] = {key: working.mask(one) for key, one in lesions.items()}
    if empty := [key for key, one in parts.items() if not one.any()]:
        raise ValueError(
            f"the {empty[0]} of {series.name} is too small for voxels of {spacing:g} mm; nothing of it is left"
        )
    if labels is not None:
        parts["tissue"] = working.labels(labels)
    elif tissue:
        parts["tissue"] = estimate_tissue(signal, channels.protocol, brain)
    size = working.shape if shape is None else (int(shape[0]), int(shape[1]), int(shape[2]))
    offset = _offset(working.shape, size, brain, center, series.name)
    parts = {key: _fitted_into(one, offset, size) for key, one in parts.items()}
    affine = working.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(offset)
    case = Case(
        patient or series.stem or "scan",
        _fitted_into(signal, offset, size),
        brain=_fitted_into(brain, offset, size),
        affine=affine,
        name=name,
        b0=_fitted_into(b0, offset, size),
        b=float(np.median(channels.protocol.b)),
        directions=channels.protocol.directions,
        **parts,
        **known,
    )
    if not case.scored.any():
        raise ValueError(
            f"{series.name}: its tissue map has no white or gray matter in the brain, so nothing would be scored; "
            "check that it belongs to this scan, and what its numbers stand for"
        )
    notes = {
        "b0_volumes": len(plain),
        "b": case.b,
        "directions": len(channels.protocol),
        "directions_measured": len(shell),
        "directions_resampled": channels.source is not None,
        "brain": "given"
        if not isinstance(mask, bool)
        else "found"
        if mask
        else "all voxels with signal",
        "voxels": int(brain.sum()),
        "voxels_too_dark": n_dark,
        "share_above_b0": above,
        "tissue": "given" if labels is not None else "estimated" if tissue else "none",
        "spacing": spacing,
        "shape": list(size),
        "center": center,
    }
    return PreparedScan(
        case,
        channels.protocol,
        series.grid,
        series.affine,
        (working.shape, working.affine),
        offset,
        notes,
    )


@dataclass(frozen=True)
class _Channels:
    """What becomes of the measurements of a shell."""

    protocol: Protocol
    order: NDArray[np.intp] | None = None
    source: NDArray[np.float64] | None = None

    def of(self, signal: NDArray[np.float32], brain: NDArray[np.bool_]) -> NDArray[np.float32]:
        if self.order is not None:
            return np.ascontiguousarray(signal[..., self.order])
        if self.source is None:
            return signal
        assert self.protocol.directions is not None
        found = np.zeros((*signal.shape[:3], len(self.protocol)), np.float32)
        found[brain] = np.clip(
            resample_directions(signal[brain], self.source, self.protocol.directions), 0, 1
        )
        return found


@dataclass(frozen=True)
class _Working:
    """The grid that work is done on: in RAS order, with the wanted voxels."""

    stored: NDArray[np.float64]
    grid: nib.Nifti1Pair
    target: nib.Nifti1Pair

    @classmethod
    def of(cls, series: Series, spacing: float | None) -> _Working:
        grid = _canonical(np.zeros(series.grid, np.uint8), series.affine)
        return cls(series.affine, grid, resampled(grid, spacing))

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = self.target.shape
        return x, y, z

    @property
    def affine(self) -> NDArray[np.float64]:
        return np.asarray(self.target.affine, dtype=np.float64)

    def values(self, volume: NDArray[Any]) -> NDArray[np.float32]:
        ordered = _canonical(volume.astype(np.float32), self.stored)
        return array_of(onto(ordered, self.target, np.eye(4)))

    def mask(self, volume: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return self.values(volume) > MASK_THRESHOLD

    def labels(self, volume: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return array_of(labels_onto(_canonical(volume, self.stored), self.target))


def _check_options(
    fitted: Protocol | None, directions: str, spacing: float | None, shape: Any, center: str
) -> None:
    check_word("directions", directions, _WAYS)
    if directions == "resampled" and (fitted is None or fitted.directions is None):
        raise ValueError(
            "directions='resampled' needs the directions to estimate signals along: fitted=…, a protocol with them"
        )
    check_word("center", center, _CENTERS)
    if spacing is not None and not _SPACINGS[0] <= spacing <= _SPACINGS[1]:
        raise ValueError(
            f"spacing must be an edge of {_SPACINGS[0]:g} to {_SPACINGS[1]:g} mm, or None, not {spacing!r}"
        )
    if shape is not None and not (len(shape) == 3 and all(int(n) == n and n > 0 for n in shape)):
        raise ValueError(f"shape must be three numbers of voxels, not {shape!r}")


def _tables_of(
    series: Series, bval: str | Path | None, bvec: str | Path | None
) -> tuple[str | Path | None, str | Path | None]:
    """Look for b-values and directions beside the image, if need be."""
    path = series.parts[0].path
    if path is not None and len(series.parts) == 1:
        beside = {ending: path.with_name(f"{stem(path)}.{ending}") for ending in ("bval", "bvec")}
        if bval is None and not beside["bval"].is_file():
            raise ValueError(
                f"{series.name}: no b-values; give bval=… (--bval), or put {beside['bval'].name} beside the image"
            )
        bval = beside["bval"] if bval is None else bval
        bvec = beside["bvec"] if bvec is None and beside["bvec"].is_file() else bvec
    return bval, bvec


def _protocol_of(
    series: Series, protocol: Protocol | None, bval: str | Path | None, bvec: str | Path | None
) -> Protocol:
    """Give the measurements, or read b-values and directions."""
    if protocol is not None:
        if bval is not None or bvec is not None:
            raise ValueError("give either a protocol, or bval and bvec, not both")
        return protocol
    if bval is None:
        raise ValueError(
            f"{series.name}: no b-values; give bval=… (and bvec=…), or put files of these endings beside the image"
        )
    return Protocol.read(bval, bvec=bvec)


def _shell(
    protocol: Protocol, fitted: Protocol | None, b: float | None, name: str
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the volumes at b = 0 and those on the shell."""
    plain, weighted = (
        np.flatnonzero(protocol.b <= _UNWEIGHTED),
        np.flatnonzero(protocol.b > _UNWEIGHTED),
    )
    found = _b_values(protocol.b)
    if not len(plain):
        raise ValueError(
            f"{name} has no volume at b = 0 (up to {_UNWEIGHTED:g} s/mm²), which signals are divided by; it has "
            f"{found}: join the series with a volume at b = 0 of the same scan"
        )
    if not len(weighted):
        raise ValueError(
            f"{name} has no volume with diffusion weighting; it has {found}: check the b-values"
        )
    if (
        fitted is not None
        and b is not None
        and not _near(fitted.b[fitted.b > _UNWEIGHTED], b).all()
    ):
        raise ValueError(
            f"b = {b:g} s/mm² is not that of the detector, which was fitted to {_b_values(fitted.b)}; leave b out"
        )
    if b is None:
        source = protocol if fitted is None else fitted
        b = float(np.median(source.b[source.b > _UNWEIGHTED]))
        if fitted is None and not _near(protocol.b[weighted], b).all():
            raise ValueError(f"{name} has several shells: {found}; choose one of them: b=… (--b)")
    shell = np.flatnonzero(_near(protocol.b, b))
    if not len(shell):
        raise ValueError(
            f"{name} has no measurement at b = {b:g} s/mm² (± {100 * _SHELL_WIDTH:g} %); it has {found}"
        )
    return plain, shell


def _near(values: NDArray[np.float64], b: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(values - b) <= _SHELL_WIDTH * b)


def _b_values(b: NDArray[np.float64]) -> str:
    """List b-values with their numbers of volumes."""
    found, counts = np.unique(np.round(b, -2), return_counts=True)
    listed = [f"b ≈ {value:g} ({n})" for value, n in zip(found[:8], counts[:8], strict=True)]
    return (
        ", ".join(listed)
        + (", …" if len(found) > len(listed) else "")
        + f", the lowest being {b.min():g}"
    )


def _channels(
    protocol: Protocol, affine: NDArray[np.float64], fitted: Protocol | None, way: str, name: str
) -> _Channels:
    """Say what becomes of the measurements of the shell."""
    along = None
    if protocol.directions is not None:
        along = directions_on_grid(protocol.directions, affine)
        if not np.linalg.norm(along, axis=1).all():
            n = int(np.count_nonzero(np.linalg.norm(along, axis=1) == 0))
            raise ValueError(
                f"{name}: {n} of {len(along)} measurements with diffusion weighting have no direction; check the bvec"
            )
    measured = Protocol(protocol.b, directions=along, name=protocol.name)
    if fitted is None:
        return _Channels(measured)
    wanted = fitted.take(np.flatnonzero(fitted.b > _UNWEIGHTED))
    if way == "resampled":
        if along is None:
            raise ValueError(
                f"{name}: other directions cannot be estimated without those that were measured; give bvec=…"
            )
        harmonic_order(len(along))
        return _Channels(wanted, source=along)
    remedy = "directions='resampled' (--resample-directions) estimates signals along the fitted directions"
    if len(measured) != len(wanted):
        raise ValueError(
            f"{name} has {len(measured)} directions, and the detector was fitted to {len(wanted)}; {remedy}"
        )
    if along is None or wanted.directions is None:
        if wanted.directions is not None:
            msg = (
                f"{name}: its directions are not known, and are taken for those that the detector was fitted to, in "
                "their order; give bvec=… (--bvec), so that this is checked"
            )
            warnings.warn(msg, stacklevel=3)
        return _Channels(measured)
    order = matching_directions(along, wanted.directions)
    if order is None:
        raise ValueError(
            f"{name} has other directions than those that the detector was fitted to, by more than 5°; {remedy}"
        )
    return _Channels(wanted, order=order)


def _with_signal(values: NDArray[np.float32], n_plain: int) -> NDArray[np.bool_]:
    finite = np.isfinite(values).all(axis=-1)
    return np.asarray(finite & (np.nan_to_num(values[..., :n_plain]).mean(axis=-1) > 0))


def _found_brain(values: NDArray[np.float32], series: Series) -> NDArray[np.bool_]:
    """Find the brain in the signal at b = 0."""
    from scipy.ndimage import binary_fill_holes, label

    mask_tools = import_optional("dipy.segment.mask")
    picture = np.nan_to_num(values).mean(axis=-1, dtype=np.float64)
    edge = float(np.cbrt(abs(np.linalg.det(series.affine[:3, :3]))))
    radius = int(np.clip(np.rint(_SMOOTHED / edge), 1, 4))
    # Where nothing differs it divides by nothing.
    with threadpool_limits(1), quiet_dipy(), np.errstate(divide="ignore", invalid="ignore"):
        _, inside = mask_tools.median_otsu(picture, median_radius=radius, numpass=2)
    parts, n = label(inside)
    if not n or not np.ptp(picture):
        raise ValueError(
            f"{series.name}: no brain was found in the signal at b = 0; give a mask (mask=…, --mask)"
        )
    return np.asarray(binary_fill_holes(parts == 1 + np.bincount(parts.ravel())[1:].argmax()))


def _check_finite(values: NDArray[np.float32], brain: NDArray[np.bool_], name: str) -> None:
    n = int(np.count_nonzero(~np.isfinite(values[brain]).all(axis=-1)))
    if n:
        raise ValueError(
            f"{name}: {n} of {np.count_nonzero(brain)} voxels of the brain have values that are not finite (NaN or "
            "infinite); leave them out of the mask, or repair the series"
        )
    if not brain.any():
        raise ValueError(f"{name}: no voxel has signal at b = 0")


def _bright(
    b0: NDArray[np.float32], brain: NDArray[np.bool_], name: str
) -> tuple[NDArray[np.bool_], int]:
    """Leave out voxels whose signal at b = 0 is no signal: quotients would be noise."""
    positive = b0[brain & (b0 > 0)]
    bright = brain & (b0 > _TINY * np.median(positive)) if positive.size else np.zeros_like(brain)
    if not bright.any():
        raise ValueError(
            f"{name}: the signal at b = 0 is nowhere above 0 in the brain; check that mask and b-values belong to it"
        )
    return bright, int(np.count_nonzero(brain & ~bright))


def _offset(
    shape: tuple[int, int, int],
    size: tuple[int, int, int],
    brain: NDArray[np.bool_],
    center: str,
    name: str,
) -> tuple[int, int, int]:
    """Find the voxel of the working grid that becomes the first one."""
    places = np.argwhere(brain)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    middle = (low + high) / 2 if center == "brain" else np.array(shape) / 2
    offset = np.floor(middle - np.array(size) / 2 + 0.25).astype(int)
    lost = ((places < offset) | (places >= offset + np.array(size))).any(axis=1)
    if lost.any():
        box = " × ".join(str(n) for n in high - low)
        fits = (high - low <= np.array(size)).all()
        remedy = (
            "center='brain' (--center brain) makes room"
            if fits and center == "grid"
            else "choose a larger shape, or larger voxels"
        )
        raise ValueError(
            f"{name}: {np.count_nonzero(lost)} of {len(places)} voxels of the brain ({box}) do not fit into "
            f"{' × '.join(map(str, size))}; {remedy}"
        )
    return int(offset[0]), int(offset[1]), int(offset[2])


def _overlap(
    shape: tuple[int, ...], offset: tuple[int, ...], size: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Give the part that two boxes share, in indices of each."""
    low = [max(0, o) for o in offset]
    high = [max(a, min(n, o + m)) for a, n, o, m in zip(low, shape, offset, size, strict=True)]
    here = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))
    return here, there


def _fitted_into(
    values: NDArray[Any], offset: tuple[int, ...], size: tuple[int, ...]
) -> NDArray[Any]:
    """Crop and pad with zeros."""
    here, there = _overlap(values.shape[:3], offset, size)
    made = np.zeros((*size, *values.shape[3:]), values.dtype)
    made[there] = values[here]
    return made


def _canonical(values: NDArray[Any], affine: NDArray[np.float64]) -> nib.Nifti1Pair:
    """Put a volume in RAS order."""
    import nibabel as nib

    ordered = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    return scan_of(np.asarray(ordered.dataobj), np.asarray(ordered.affine))
