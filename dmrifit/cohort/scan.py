"""One patient's images: signals, protocol and masks, in memory or in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote

import numpy as np
from nibabel.orientations import apply_orientation
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.affines import checked_affine
from dmrifit._utils.checks import check_word, filled
from dmrifit._utils.counts import size_text
from dmrifit.cohort.scaling import echo_times
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol, average_directions
from dmrifit.io.grids import turn_to_grid
from dmrifit.io.masks import binarize
from dmrifit.io.nifti import read_grid, read_volume
from dmrifit.io.series import Series

__all__ = ["Scan"]

Volume: TypeAlias = str | Path | tuple[Path, ...] | NDArray
MaskName: TypeAlias = Literal["body", "lesion"]

#: Share of pairs of contrasts above which signals are in another order than their protocol.
RISING_SHARE = 0.5

_SAME_B = 1.0  # s/mm²
_SAME_TE = 0.05  # ms
# Noise at its floor changes a median by less.
_RISE = 1.05
# Bytes of a file name, less an ending and the start of a temporary name.
_LONGEST_NAMES = 200


class Scan:
    """
    One patient's images: signals, protocol, masks.

    Images are arrays, or paths of NIfTI files that are read when they are asked for and not kept.

    Parameters
    ----------
    patient : str
        Identifier. Scans of one patient are never split between training and test.
    signal : ndarray of shape (x, y, z, n_measurements), path, or tuple of paths
        Magnitudes in any unit; volumes of several files, such as one for each echo time, follow
        each other.
    protocol : Protocol
        One entry for each measurement.
    mask : array_like of shape (x, y, z) or path
        The body.
    affine : array_like of shape (4, 4), optional
        From voxel indices to RAS+ coordinates in mm; by default the file's, needed with arrays.
    lesion : array_like of shape (x, y, z) or path, optional
        The tumor.
    cohort : str, default=""
        Name of the cohort.
    sigma : float, ndarray of shape (x, y, z) or path, optional
        Standard deviation of the noise of one measurement, in the unit of the signal.
    average : {"geometric", "arithmetic"}, optional
        Average the measurements that share a b-value and an echo time, such as directions,
        whenever signals are asked for (see `average_directions`); `protocol` then has one entry
        for each contrast. b-values that differ by more than `b_tolerance` are not the same: round
        them before (`Protocol.rounded`).
    b_tolerance : float, default=1
        b-values within so many s/mm² are averaged as one.
    truth : mapping of str to ndarray of shape (x, y, z) or path, optional
        True parameter maps, of a synthetic scan. A file has those of T2-IVIM-Kurtosis, in the
        order of that model.
    synthetic : bool, default=False
        Whether the scan was simulated.
    noise_free : ndarray of shape (x, y, z, n_measurements) or path, optional
        Signals of a synthetic scan before noise was added, in the unit of the signal.

    Raises
    ------
    ValueError
        If the shapes of arrays do not fit each other and the protocol, true maps in a file are not
        those of T2-IVIM-Kurtosis, sigma is not a level of noise, or the names are too long for a
        file.
    """

    def __init__(
        self,
        patient: str,
        signal: Volume,
        protocol: Protocol,
        mask: Volume,
        affine: ArrayLike | None = None,
        *,
        lesion: Volume | None = None,
        cohort: str = "",
        sigma: float | Volume | None = None,
        average: str | None = None,
        b_tolerance: float = _SAME_B,
        truth: Mapping[str, NDArray] | str | Path | None = None,
        synthetic: bool = False,
        noise_free: Volume | None = None,
    ) -> None:
        self.patient = str(patient)
        n_bytes = len(quote(self.patient + str(cohort), errors="surrogatepass"))
        if n_bytes > _LONGEST_NAMES:
            raise ValueError(
                f"patient {self.patient[:40]}…: names of patient and cohort are too long for "
                f"files, {n_bytes} bytes as they are quoted there; shorten them to "
                f"{_LONGEST_NAMES}"
            )
        self._name = f"patient {self.patient}"
        #: The measurements as they were made, before any are averaged.
        self.measured = protocol
        self._average = average
        self._b_tolerance = b_tolerance
        self.protocol = self._averaged(np.ones(len(protocol)))[1]
        self.cohort = str(cohort)
        self.synthetic = bool(synthetic)
        self._signal = signal
        self._mask = mask
        self._lesion = lesion
        self._sigma = sigma
        self._truth = truth
        self._noise_free = noise_free
        #: Orientations that lead maps to the order of the signal's axes, by what they are.
        self._turns: dict[str, NDArray[np.float64]] = {}
        self._affine = None
        if affine is not None:
            self._affine = checked_affine(affine, f"patient {self.patient}: the affine")
        if self._affine is None and not isinstance(signal, str | Path | tuple):
            raise ValueError(
                f"patient {patient}: signals given as an array need the affine of their grid"
            )
        if isinstance(sigma, int | float | np.number) and not (np.isfinite(sigma) and sigma >= 0):
            raise ValueError(
                f"patient {patient}: sigma (standard deviation of the noise) must be finite, "
                f"0 or more, not {sigma}"
            )
        # From headers alone, so that a wrong file is an error before any work.
        self._check_grids()

    def __repr__(self) -> str:
        title = "synthetic scan" if self.synthetic else "scan"
        size = size_text(self.shape)
        return f"<{title} of patient {self.patient!r}, {size} voxels, {self.protocol!r}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of voxels."""
        x, y, z = _grid(self._signal)[0][:3]
        return x, y, z

    @property
    def affine(self) -> NDArray[np.float64]:
        """From voxel indices to RAS+ coordinates in mm, shape (4, 4)."""
        affine = self._affine
        if affine is None:
            affine = _grid(self._signal)[1]
        return np.array(affine, dtype=float)

    @property
    def signal(self) -> NDArray:
        """Magnitudes, shape (x, y, z, len(protocol)); read, and averaged, now."""
        return self._averaged(_load(self._signal))[0]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The body, shape (x, y, z)."""
        inside = self._map("body mask", self._mask)
        return binarize(inside, name=self._title(self._mask, "body mask"))

    @property
    def lesion(self) -> NDArray[np.bool_] | None:
        """The tumor, shape (x, y, z); None without a mask or with an empty one."""
        if self._lesion is None:
            return None
        name = self._title(self._lesion, "lesion mask")
        inside = binarize(self._map("lesion mask", self._lesion), name=name, may_be_empty=True)
        return inside if inside.any() else None

    @property
    def sigma(self) -> float | NDArray | None:
        """Standard deviation of the noise: a number, or a map of shape (x, y, z)."""
        sigma = self._sigma
        if sigma is None:
            return None
        if isinstance(sigma, int | float | np.number):
            return float(sigma)
        return self._map("sigma map", sigma)

    @property
    def truth(self) -> dict[str, NDArray] | None:
        """True parameter maps of a synthetic scan by name, each of shape (x, y, z), or None."""
        if self._truth is None:
            return None
        if isinstance(self._truth, str | Path):
            maps = self._map("truth", self._truth, n_axes=4)
            return {name: maps[..., i] for i, name in enumerate(truth_names())}
        return dict(self._truth)

    @property
    def has_noise_free(self) -> bool:
        """Whether the signals without noise are known; nothing is read."""
        return self._noise_free is not None

    @property
    def noise_free(self) -> NDArray | None:
        """Signals of a synthetic scan without noise, in the shape of its signal, or None."""
        if self._noise_free is None:
            return None
        return self._averaged(self._map("noise-free signals", self._noise_free, n_axes=4))[0]

    def region(self, name: MaskName) -> NDArray[np.bool_] | None:
        """
        Return a mask by name.

        Parameters
        ----------
        name : {"body", "lesion"}
            Which one.

        Returns
        -------
        ndarray of bool, shape (x, y, z), or None
            The mask; None for the lesion of a patient without one.

        Raises
        ------
        ValueError
            If there is no such mask.
        """
        check_word("mask", name, get_args(MaskName))
        return self.mask if name == "body" else self.lesion

    def loaded(self) -> Scan:
        """
        Read everything into memory.

        Returns
        -------
        Scan
            The same scan, of arrays; one whose measurements are averaged without `noise_free`, as
            `sigma` is not the noise of an average.
        """
        # Averaged once: the copy has the averaged protocol and no rule to average by.
        is_averaged = len(self.protocol) < len(self.measured)
        return Scan(
            self.patient,
            self.signal,
            self.protocol,
            self.mask,
            self.affine,
            lesion=self.lesion,
            cohort=self.cohort,
            sigma=self.sigma,
            truth=self.truth,
            synthetic=self.synthetic,
            noise_free=None if is_averaged else self.noise_free,
        )

    def _averaged(self, signal: NDArray) -> tuple[NDArray, Protocol]:
        """Average measurements (..., n_measurements) that share a contrast, if it is asked for."""
        if self._average is None:
            return signal, self.measured
        return average_directions(
            signal, self.measured, mean=self._average, tolerance=self._b_tolerance
        )

    def _map(self, label: str, volume: Volume, n_axes: int = 3) -> NDArray:
        """Read a map of the scan, in the order of the signal's axes."""
        return apply_orientation(_load(volume, n_axes), self._turns[label])

    def _title(self, volume: object, label: str) -> str:
        """Name a volume in messages: by its files, or what it is of the patient."""
        if isinstance(volume, tuple):
            return ", ".join(map(str, volume))
        return str(volume) if isinstance(volume, str | Path) else f"{label} of {self._name}"

    def _check_grids(self) -> None:
        shape, affine = _grid(self._signal)[0], self.affine
        image = self._title(self._signal, "signals")
        counts = size_text(shape)
        if len(shape) != 4:
            raise ValueError(
                f"{image} is {len(shape)}-D ({counts}); a 4-D image is needed, with one volume "
                f"for each of the {len(self.measured)} measurements: put the volumes together, "
                "for example by nibabel.concat_images"
            )
        if shape[3] != len(self.measured):
            raise ValueError(
                f"{image}: {counts} values do not make one volume for each of the "
                f"{len(self.measured)} measurements of the protocol; check that b-values and "
                "image belong to one scan"
            )
        maps: dict[str, Any] = {
            "body mask": self._mask,
            "lesion mask": self._lesion,
            "sigma map": self._sigma,
        }
        n_volumes = dict.fromkeys(maps, (1,))
        if isinstance(self._truth, str | Path):
            maps["truth"] = self._truth
            names = truth_names()
            n_volumes["truth"] = (len(names),)
            truth_shape = _grid(self._truth)[0]
            if truth_shape[3:] != n_volumes["truth"]:
                raise ValueError(
                    f"{self._truth} has {size_text(truth_shape)} values; true maps are "
                    f"{len(names)} volumes of a 4-D image, in the order {', '.join(names)}"
                )
        elif self._truth is not None:
            maps |= {f"true map of {name}": volume for name, volume in self._truth.items()}
        maps["noise-free signals"] = self._noise_free
        n_volumes["noise-free signals"] = shape[3:]
        if self._noise_free is not None and _grid(self._noise_free)[0][3:] != shape[3:]:
            raise ValueError(
                f"{self._title(self._noise_free, 'noise-free signals')}: "
                f"{size_text(_grid(self._noise_free)[0])} values, and the measured signals have "
                f"{counts}; give one noise-free value for each measured one"
            )
        for label, volume in maps.items():
            if volume is None or isinstance(volume, int | float | np.number):
                continue
            map_shape, map_affine = _grid(volume)
            # Some programs store a map with a fourth axis of length one.
            if map_shape[3:] == n_volumes.get(label):
                map_shape = map_shape[:3]
            title = self._title(volume, label)
            if len(map_shape) != 3:
                raise ValueError(f"{title}: a {label} has axes x, y, z, not {len(map_shape)} axes")
            self._turns[label] = turn_to_grid(
                (map_shape, affine if map_affine is None else map_affine),
                (shape[:3], affine),
                name=title,
                reference_name=image,
            )


def truth_names() -> tuple[str, ...]:
    """Name the true maps that a file holds, in their order."""
    return MODELS["t2-ivim-kurtosis"].names


def rising_share(level: NDArray, protocol: Protocol) -> float:
    """Share of the pairs of contrasts in which a signal rises with b or TE."""
    b, te = protocol.b, echo_times(protocol)
    # Pairs (i, j) of contrasts in which j is weighted more than i, in b or TE, and in neither
    # less.
    not_less = (b[:, None] <= b + _SAME_B) & (te[:, None] <= te + _SAME_TE)
    more = not_less & ((b[:, None] < b - _SAME_B) | (te[:, None] < te - _SAME_TE))
    return float((level > _RISE * level[:, None])[more].mean()) if more.any() else 0.0


def _grid(volume: Volume) -> tuple[tuple[int, ...], NDArray | None]:
    """Return shape and affine of a volume; of a file, from its header alone."""
    if isinstance(volume, str | Path):
        return read_grid(volume)
    if isinstance(volume, tuple):
        series = Series.open(volume)
        return (*series.grid, series.n_measurements), series.affine
    return np.shape(volume), None


def _load(volume: Volume, n_axes: int = 4) -> NDArray:
    """Read values with `n_axes` axes; some programs store maps with a fourth of length one."""
    if isinstance(volume, tuple):
        with Series.open(volume).unpacked() as series:
            return series.read(slice(None))
    is_file = isinstance(volume, str | Path)
    values = read_volume(volume) if is_file else np.asarray(filled(volume))
    return values.reshape(values.shape[:n_axes])
