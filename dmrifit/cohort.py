"""Scans, cohorts of them, and the tables of voxels that estimators learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.masks import binarize, check_same_grid
from dmrifit.protocol import Protocol
from dmrifit.randomness import RandomState, seed_for, seed_from
from dmrifit.scaling import PatientScale

__all__ = ["Cohort", "Scan", "VoxelTable"]

Volume: TypeAlias = str | Path | NDArray
MaskName: TypeAlias = Literal["body", "lesion"]


class Scan:
    """
    One patient's images: signals, protocol, masks.

    Images are arrays, or paths of NIfTI files that are read when they are asked for and not kept.

    Parameters
    ----------
    patient : str
        Identifier. Scans of one patient are never split between training and test.
    signal : ndarray of shape (x, y, z, n_measurements) or path
        Magnitudes in any unit.
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
        Standard deviation of the noise, in the unit of the signal.
    truth : mapping of str to ndarray of shape (x, y, z), optional
        True parameter maps, of a synthetic scan.
    synthetic : bool, default=False
        Whether the scan was simulated.

    Raises
    ------
    ValueError
        If the shapes of arrays do not fit each other and the protocol.
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
        truth: Mapping[str, NDArray] | str | Path | None = None,
        synthetic: bool = False,
    ) -> None:
        self.patient = str(patient)
        self.protocol = protocol
        self.cohort = str(cohort)
        self.synthetic = bool(synthetic)
        self._signal = signal
        self._mask = mask
        self._lesion = lesion
        self._sigma = sigma
        self._truth = truth
        self._affine = None if affine is None else np.array(affine, dtype=float)
        if self._affine is None and not _is_path(signal):
            msg = f"patient {patient}: signals given as an array need the affine of their grid"
            raise ValueError(msg)
        self._check_grids()

    def __repr__(self) -> str:
        kind = "synthetic scan" if self.synthetic else "scan"
        size = " × ".join(map(str, self.shape))
        return f"<{kind} of patient {self.patient!r}, {size} voxels, {self.protocol!r}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of voxels."""
        x, y, z = _grid(self._signal)[0][:3]
        return x, y, z

    @property
    def affine(self) -> NDArray[np.float64]:
        """From voxel indices to RAS+ coordinates in mm, shape (4, 4)."""
        return np.array(_grid(self._signal)[1] if self._affine is None else self._affine, dtype=float)

    @property
    def signal(self) -> NDArray:
        """Magnitudes, shape (x, y, z, n_measurements); read now if they are in a file."""
        return _load(self._signal)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The body, shape (x, y, z)."""
        return binarize(_load_map(self._mask), name=_describe(self._mask, f"body mask of patient {self.patient}"))

    @property
    def lesion(self) -> NDArray[np.bool_] | None:
        """The tumor, shape (x, y, z); None where there is none."""
        if self._lesion is None:
            return None
        values = _load_map(self._lesion)  # a file that cannot be read is not a patient without a tumor
        try:
            return binarize(values)
        except ValueError:  # no voxel is inside
            return None

    @property
    def sigma(self) -> float | NDArray | None:
        """Standard deviation of the noise: a number, or a map of shape (x, y, z)."""
        sigma = self._sigma
        if sigma is None or isinstance(sigma, int | float | np.number):
            return None if sigma is None else float(sigma)
        return _load_map(sigma)

    @property
    def truth(self) -> dict[str, NDArray] | None:
        """True parameter maps by name, each of shape (x, y, z), of a synthetic scan; None for others."""
        if self._truth is None:
            return None
        if isinstance(self._truth, str | Path):
            from dmrifit.models import MODELS

            maps = _load(self._truth)
            names = MODELS["t2-ivim-kurtosis"].names
            return {name: maps[..., i] for i, name in enumerate(names)}
        return dict(self._truth)

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
        if name not in ("body", "lesion"):
            msg = f"a mask is 'body' or 'lesion', not {name!r}"
            raise ValueError(msg)
        return self.mask if name == "body" else self.lesion

    def loaded(self) -> Scan:
        """
        Read everything into memory.

        Returns
        -------
        Scan
            The same scan, of arrays.
        """
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
        )

    def _check_grids(self) -> None:
        shape, affine = _grid(self._signal)[0], self.affine
        image = _describe(self._signal, f"signals of patient {self.patient}")
        if len(shape) != 4 or shape[3] != len(self.protocol):
            counts = " × ".join(map(str, shape))
            msg = (
                f"{image}: {counts} values do not make one volume for each of the {len(self.protocol)} "
                "measurements of the protocol; check that b-values and image belong to one scan"
            )
            raise ValueError(msg)
        for label, volume in (
            ("body mask", self._mask),
            ("lesion mask", self._lesion),
            ("sigma map", self._sigma),
        ):
            if volume is None or isinstance(volume, int | float | np.number):
                continue
            other_shape, other_affine = _grid(volume)
            other_shape = other_shape[:3] if set(other_shape[3:]) <= {1} else other_shape
            check_same_grid(
                other_shape,
                affine if other_affine is None else other_affine,
                shape[:3],
                affine,
                name=_describe(volume, f"{label} of patient {self.patient}"),
                reference_name=image,
            )


@dataclass(frozen=True, eq=False)
class VoxelTable:
    """
    Voxels of several patients as rows; row i of every array is the same voxel.

    Parameters
    ----------
    X : ndarray of shape (n_voxels, n_source)
        Source signals; with patches (n_voxels, n_neighbors * n_source), see `Cohort.arrays`.
    Y : ndarray of shape (n_voxels, n_target)
        Target signals, in the same unit.
    groups : ndarray of str, shape (n_voxels,)
        Patient.
    sigma : ndarray of shape (n_voxels,) or None
        Standard deviation of the noise in the same unit; None unless every scan has one.
    index : ndarray of int, shape (n_voxels, 4)
        Position of the scan in the cohort, then the voxel's i, j, k.
    scale : ndarray of shape (n_voxels,)
        What the signals in the images were divided by.
    source, target : Protocol
        Contrasts of X and of Y.
    """

    X: NDArray[np.float64]
    Y: NDArray[np.float64]
    groups: NDArray[np.str_]
    sigma: NDArray[np.float64] | None
    index: NDArray[np.intp]
    scale: NDArray[np.float64]
    source: Protocol
    target: Protocol

    def __len__(self) -> int:
        return len(self.X)


class Cohort:
    """
    Scans of several patients that belong together: one scanner, one study.

    Parameters
    ----------
    scans : sequence of Scan
        At least one.
    name : str, default=""
        A label for reports.

    Attributes
    ----------
    scans : tuple of Scan
        In the order given.
    skipped : dict of str to str
        Patients that the table of participants lists and that cannot be used, with the reason.

    Raises
    ------
    ValueError
        If there is no scan.
    """

    def __init__(self, scans: Sequence[Scan], name: str = "") -> None:
        self.scans = tuple(scans)
        self.name = str(name)
        self.skipped: dict[str, str] = {}
        if not self.scans:
            msg = f"cohort {name!r} has no scan"
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.scans)

    def __iter__(self) -> Iterator[Scan]:
        return iter(self.scans)

    def __repr__(self) -> str:
        kind = "synthetic cohort" if self.synthetic else "cohort"
        return f"<{kind} {self.name!r}: {len(self.patients)} patients, {self.scans[0].protocol!r}>"

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients in order, each once."""
        return tuple(dict.fromkeys(scan.patient for scan in self.scans))

    @property
    def synthetic(self) -> bool:
        """Whether any scan was simulated."""
        return any(scan.synthetic for scan in self.scans)

    def arrays(
        self,
        source: Protocol | ArrayLike | None = None,
        target: Protocol | ArrayLike | None = None,
        *,
        mask: MaskName = "lesion",
        scale: Any = "patient",
        patch_shape: tuple[int, int, int] | None = None,
        max_voxels: int | None = None,
        random_state: RandomState = None,
    ) -> VoxelTable:
        """
        Put the voxels of all patients in one table.

        Parameters
        ----------
        source : Protocol or indices, optional
            Contrasts of X; by default the clinical ones of the first scan's protocol.
        target : Protocol or indices, optional
            Contrasts of Y; by default all of the first scan's protocol.
        mask : {"lesion", "body"}, default="lesion"
            Which voxels.
        scale : "patient", None or PatientScale, default="patient"
            Divide each scan's signals by one number, computed from its source images alone; None leaves
            them as they are.
        patch_shape : tuple of 3 odd ints, optional
            Make X the neighborhood of each voxel: ``X.reshape(n_voxels, k, n_source)`` has the k
            neighbors in the order of ``np.ndindex(patch_shape)``; zeros stand outside the image.
        max_voxels : int, optional
            At most so many voxels of each scan, drawn at random; all by default.
        random_state : int, RandomState or None, default=None
            Seed of the draw. A patient's voxels depend on the seed and the patient, not on the others.

        Returns
        -------
        VoxelTable
            The table. Patients without a voxel in the mask are not in it.

        Raises
        ------
        ValueError
            If a scan lacks a contrast, or no patient has a voxel in the mask.
        """
        first = self.scans[0].protocol
        source = _protocol(source, first, first.clinical)
        target = _protocol(target, first, lambda: np.arange(len(first)))
        rule = _scale_rule(scale)
        seed = seed_from(random_state) if max_voxels is not None else 0
        parts: dict[str, list[NDArray]] = {key: [] for key in ("X", "Y", "groups", "sigma", "index", "scale")}
        for position, scan in enumerate(self.scans):
            region = scan.region(mask)
            if region is None:
                continue
            columns = _indices(source, scan), _indices(target, scan)
            voxels = np.flatnonzero(region)
            if max_voxels is not None and len(voxels) > max_voxels:
                rng = np.random.default_rng(seed_for(seed, "voxels", scan.patient, mask))
                voxels = np.sort(rng.choice(voxels, max_voxels, replace=False))
            where = np.unravel_index(voxels, region.shape)
            signal = scan.signal
            factor = _scale_of(scan, signal, columns[0], source, rule)
            inputs = _neighborhoods(signal[..., columns[0]], where, patch_shape)
            parts["X"].append(inputs.astype(float) / factor)
            parts["Y"].append(signal[where][:, columns[1]].astype(float) / factor)
            parts["groups"].append(np.full(len(voxels), scan.patient))
            parts["index"].append(np.column_stack([np.full(len(voxels), position), *where]))
            parts["scale"].append(np.full(len(voxels), factor))
            sigma = scan.sigma
            if sigma is not None:
                sigma = np.broadcast_to(sigma, region.shape)[where] / factor
                parts["sigma"].append(np.asarray(sigma, dtype=float))
        if not parts["X"]:
            msg = f"no patient of cohort {self.name!r} has a voxel in the {mask} mask"
            raise ValueError(msg)
        joined = {key: np.concatenate(values) for key, values in parts.items() if key != "sigma"}
        complete = len(parts["sigma"]) == len(parts["X"])
        return VoxelTable(
            **joined,
            sigma=np.concatenate(parts["sigma"]) if complete else None,
            source=source,
            target=target,
        )

    def count(self, mask: MaskName) -> int:
        """
        Count voxels.

        Parameters
        ----------
        mask : {"body", "lesion"}
            Which ones.

        Returns
        -------
        int
            Voxels of the mask in all scans.
        """
        regions = [scan.region(mask) for scan in self.scans]
        return sum(int(np.count_nonzero(region)) for region in regions if region is not None)

    def truth_at(self, index: NDArray[np.intp]) -> dict[str, NDArray[np.float64]] | None:
        """
        Look up the true parameters of voxels.

        Parameters
        ----------
        index : ndarray of int, shape (n_voxels, 4)
            As in `VoxelTable`.

        Returns
        -------
        dict of str to ndarray of shape (n_voxels,), or None
            By parameter, in the unit of the images; None unless every scan has a truth.
        """
        truths = [scan.truth for scan in self.scans]
        if not truths or any(truth is None for truth in truths):
            return None
        names = [name for name in truths[0] if all(name in truth for truth in truths)]  # type: ignore
        found = {name: np.empty(len(index)) for name in names}
        for position, truth in enumerate(truths):
            rows = index[:, 0] == position
            for name in names:
                found[name][rows] = truth[name][tuple(index[rows, 1:].T)]  # type: ignore
        return found

    @classmethod
    def read(cls, table: str | Path) -> dict[str, Cohort]:
        """
        Read a table of participants.

        Parameters
        ----------
        table : path
            Tab-separated (``.csv``: comma-separated) with the columns ``patient``, ``cohort``, ``image``,
            ``mask`` and ``bval``, and optionally ``lesion``, ``te`` (ms, a text file or BIDS sidecars),
            ``bvec``, ``sigma`` (a number or a map), ``truth`` and ``synthetic``. Paths are relative to the
            table; ``n/a`` stands for nothing. BIDS's ``participant_id`` counts as ``patient``.

        Returns
        -------
        dict of str to Cohort
            Cohorts by name, in the order of the table. A patient whose lesion mask is empty is left out
            with a warning and named in ``Cohort.skipped``. Headers are read now, images later.

        Raises
        ------
        ValueError
            If a column or value is missing, a patient is in two cohorts, or images, masks and protocol
            of a row do not fit each other; the message names table, row and remedy.
        FileNotFoundError
            If a file is missing.
        """
        from dmrifit.participants import read_participants

        return read_participants(Path(table))

    def write(self, folder: str | Path) -> Path:
        """
        Write images, protocols and a table of participants, in the layout of BIDS.

        Parameters
        ----------
        folder : path
            Made if needed. Cohorts written to one folder share its table.

        Returns
        -------
        Path
            The table, ``participants.tsv``, for `read`. It appears, or changes, after everything else.

        Raises
        ------
        ValueError
            If the table already lists one of the patients, or two patients would have the same files.
        """
        from dmrifit.participants import write_participants

        return write_participants(self, Path(folder))


def _protocol(choice: Protocol | ArrayLike | None, first: Protocol, default: Callable[[], NDArray]) -> Protocol:
    if isinstance(choice, Protocol):
        return choice
    return first.take(default() if choice is None else choice)


def _indices(contrasts: Protocol, scan: Scan) -> NDArray[np.intp]:
    try:
        return contrasts.indices_in(scan.protocol)
    except ValueError as error:
        msg = f"patient {scan.patient} (cohort {scan.cohort!r}): {error}"
        raise ValueError(msg) from None


def _scale_rule(scale: Any) -> PatientScale | None:
    if scale is None or isinstance(scale, PatientScale):
        return scale
    if scale == "patient":
        return PatientScale()
    msg = f"scale must be 'patient', None or a PatientScale, not {scale!r}"
    raise ValueError(msg)


def _scale_of(
    scan: Scan, signal: NDArray, columns: NDArray[np.intp], source: Protocol, rule: PatientScale | None
) -> float:
    if rule is None:
        return 1.0
    try:
        return rule.of(signal[scan.mask][:, columns], source)
    except ValueError as error:
        msg = f"patient {scan.patient}: {error}"
        raise ValueError(msg) from None


def _neighborhoods(
    volume: NDArray, where: tuple[NDArray[np.intp], ...], patch_shape: tuple[int, int, int] | None
) -> NDArray:
    """Take each voxel's measurements, or those of its neighborhood, as one row."""
    if patch_shape is None:
        return volume[where]
    if len(patch_shape) != 3 or any(n < 1 or n % 2 == 0 for n in patch_shape):
        msg = f"patch_shape must be three odd numbers such as (3, 3, 1), not {patch_shape!r}"
        raise ValueError(msg)
    reach = [n // 2 for n in patch_shape]
    padded = np.pad(volume, [*((r, r) for r in reach), (0, 0)])
    neighbors = [padded[tuple(w + d for w, d in zip(where, shift, strict=True))] for shift in np.ndindex(*patch_shape)]
    return np.concatenate(neighbors, axis=1)


def _is_path(volume: object) -> bool:
    return isinstance(volume, str | Path)


def _describe(volume: object, label: str) -> str:
    return str(volume) if _is_path(volume) else label


def _grid(volume: Volume) -> tuple[tuple[int, ...], NDArray | None]:
    """Shape and affine of a volume; of a file, from its header alone."""
    if isinstance(volume, str | Path):
        from dmrifit.volumes import read_grid

        return read_grid(volume)
    return np.shape(volume), None


def _load(volume: Volume) -> NDArray:
    if isinstance(volume, str | Path):
        from dmrifit.volumes import read_volume

        return read_volume(volume)
    return np.asarray(volume)


def _load_map(volume: Volume) -> NDArray:
    """Read a map of three axes, which some programs store with a fourth of length one."""
    values = _load(volume)
    return values.reshape(values.shape[:3])
