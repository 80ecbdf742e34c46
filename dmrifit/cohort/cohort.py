"""Cohorts of scans, and the tables of voxels that estimators learn from."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import check_number, errors_about, real_numbers
from dmrifit._utils.counts import counted, percent
from dmrifit._utils.html_repr import html_summary
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.cohort.bids_dataset import write_participants
from dmrifit.cohort.participants_table import is_regions_table, read_participants, read_regions
from dmrifit.cohort.patches import neighborhoods
from dmrifit.cohort.scaling import PatientScale
from dmrifit.cohort.scan import RISING_SHARE, MaskName, Scan, rising_share
from dmrifit.engine.protocol import Protocol, check_protocol
from dmrifit.io.digests import describe

__all__ = ["Cohort", "VoxelTable"]

_VOXELS_TO_CHECK = 2000


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

    def __repr__(self) -> str:
        return f"<VoxelTable: {self._title}, X {self.X.shape}, Y {self.Y.shape}>"

    def _repr_html_(self) -> str:
        """Show shapes and contrasts in notebooks."""
        noise: tuple[object, ...] = (None, "not known")
        if self.sigma is not None:
            noise = (self.sigma.shape, f"median {np.median(self.sigma):.3g}")
        patients = np.unique(self.groups)
        rows = [
            ("X", self.X.shape, f"source: {self.source!r}"),
            ("Y", self.Y.shape, f"target: {self.target!r}"),
            ("groups", self.groups.shape, f"patients {patients[0]} … {patients[-1]}"),
            ("sigma", *noise),
            ("scale", self.scale.shape, f"median {np.median(self.scale):.4g}"),
        ]
        return html_summary(f"VoxelTable: {self._title}", ("", "shape", "what"), rows)

    @property
    def _title(self) -> str:
        """The size of the table in words."""
        return (
            f"{counted(len(self), 'voxel')} of {counted(len(np.unique(self.groups)), 'patient')}"
        )


class Cohort:
    """
    Scans of several patients that belong together: one scanner, one study.

    Parameters
    ----------
    scans : sequence of Scan
        At least one.
    name : str, default=""
        A label for reports.
    simulation : mapping, optional
        How a synthetic cohort was made, as plain values for JSON: difficulty, template, snr, seed
        and more.

    Attributes
    ----------
    scans : tuple of Scan
        In the order given.
    simulation : dict or None
        As given, in plain JSON types; None of real scans.
    skipped : dict of str to str
        Patients that the table of participants lists and that cannot be used, with the reason.
    regions : dict of str to tuple of str, or None
        Names of regions by patient, in the order of ``scan.signal[:, 0, 0]``; None of images.

    Raises
    ------
    ValueError
        If there is no scan.
    """

    def __init__(
        self, scans: Sequence[Scan], name: str = "", *, simulation: Mapping[str, Any] | None = None
    ) -> None:
        self.scans = tuple(scans)
        self.name = str(name)
        self.simulation: dict[str, Any] | None = None
        if simulation is not None:
            self.simulation = describe(dict(simulation))
        self.skipped: dict[str, str] = {}
        self.regions: dict[str, tuple[str, ...]] | None = None
        if not self.scans:
            raise ValueError(f"cohort {name!r} has no scan" if name else "the cohort has no scan")

    def __len__(self) -> int:
        return len(self.scans)

    def __iter__(self) -> Iterator[Scan]:
        return iter(self.scans)

    def __repr__(self) -> str:
        title = self._title[0].lower() + self._title[1:]
        return f"<{title}, {self.scans[0].protocol!r}>"

    def _repr_html_(self) -> str:
        """Show in notebooks how many patients have which protocol; no file is read."""
        patients = defaultdict(list)
        for scan in self.scans:
            patients[repr(scan.protocol)].append(scan.patient)
        rows = [(len(names), len(set(names)), text) for text, names in patients.items()]
        note = ""
        if self.skipped:
            n_skipped = counted(len(self.skipped), "patient")
            note = f"skipped: {n_skipped} of the table (skipped has reasons)"
        return html_summary(self._title, ("scans", "patients", "protocol"), rows, note=note)

    @property
    def _title(self) -> str:
        """Kind, name and size of the cohort in words."""
        title = "Synthetic cohort" if self.synthetic else "Cohort"
        name = f" {self.name!r}" if self.name else ""
        return f"{title}{name}: {counted(len(self.patients), 'patient')}"

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients in order, each once."""
        return tuple(dict.fromkeys(scan.patient for scan in self.scans))

    @property
    def synthetic(self) -> bool:
        """Whether any scan was simulated."""
        return any(scan.synthetic for scan in self.scans)

    @property
    def has_noise_free(self) -> bool:
        """Whether all scans were simulated and have their signals without noise."""
        return all(scan.has_noise_free for scan in self.scans)

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
            Divide each scan's signals by one number, computed from its source images alone; None
            leaves them as they are.
        patch_shape : tuple of 3 odd ints, optional
            Make X the neighborhood of each voxel: ``X.reshape(n_voxels, k, n_source)`` has the k
            neighbors in the order of ``np.ndindex(patch_shape)``, the voxel itself in the middle.
            It also stands for neighbors outside the image, outside the body or without signal.
            `resolve_patch_shape` tells what an estimator needs.
        max_voxels : int, optional
            At most so many voxels of each scan, drawn at random; None for all.
        random_state : int, RandomState or None, default=None
            Seed of the draw. A patient's voxels depend on the seed and the patient, not on the
            others.

        Returns
        -------
        VoxelTable
            The table. Patients without a voxel in the mask are not in it.

        Raises
        ------
        ValueError
            If a scan lacks a contrast, its signal rises with b or TE in most pairs of contrasts
            (volumes in another order than their protocol), a sigma map is negative or not finite
            in the mask, no patient has a voxel in the mask, `max_voxels` is neither None nor a
            whole number of at least 1, or `patch_shape` is not three odd numbers.
        """
        first = self.scans[0].protocol
        if source is None:
            with _errors_named(self.scans[0], "; or name the source contrasts (source=)"):
                source = first.clinical()
        if target is None:
            target = first
        source = source if isinstance(source, Protocol) else first.take(source)
        target = target if isinstance(target, Protocol) else first.take(target)
        rule = PatientScale() if isinstance(scale, str) and scale == "patient" else scale
        if rule is not None and not isinstance(rule, PatientScale):
            raise ValueError(f"scale must be 'patient', None or a PatientScale, not {scale!r}")
        if max_voxels is not None:
            check_number("max_voxels", max_voxels, least=1, whole=True)
        # Without a draw no random state is used up.
        seed = Seed(0 if max_voxels is None else random_state)
        columns: dict[str, list[NDArray]] = defaultdict(list)
        for position, scan in enumerate(self.scans):
            region = scan.region(mask)
            if region is None:
                continue
            with _errors_named(scan):
                source_columns = source.indices_in(scan.protocol)
                target_columns = target.indices_in(scan.protocol)
            voxels = np.flatnonzero(region)
            if max_voxels is not None and len(voxels) > max_voxels:
                # A stream of the patient's own, so that other patients do not change the draw.
                rng = seed.rng("voxels", scan.patient, mask)
                voxels = np.sort(rng.choice(voxels, max_voxels, replace=False))
            where = np.unravel_index(voxels, region.shape)
            signal, body, sigma = scan.signal, scan.mask, scan.sigma
            factor = 1.0
            with _errors_named(scan):
                _check_order(scan, signal[body])
                # From the whole body, so that it does not depend on the voxels that are drawn.
                if rule is not None:
                    factor = rule.of(signal[body][:, source_columns], source)
                if sigma is not None:
                    sigma = np.broadcast_to(sigma, region.shape)[where] / factor
                    columns["sigma"].append(np.asarray(sigma, dtype=float))
                    if not (np.isfinite(sigma).all() and (sigma >= 0).all()):
                        raise ValueError(
                            "the sigma map has voxels in the mask that are negative or not "
                            "finite; correct the map, or give one number"
                        )
            inputs = neighborhoods(signal[..., source_columns], where, patch_shape, region=body)
            columns["X"].append(inputs.astype(float) / factor)
            columns["Y"].append(signal[where][:, target_columns].astype(float) / factor)
            columns["groups"].append(np.full(len(voxels), scan.patient))
            columns["index"].append(np.column_stack([np.full(len(voxels), position), *where]))
            columns["scale"].append(np.full(len(voxels), factor))
        if not columns["X"]:
            cohort = f"cohort {self.name!r}" if self.name else "the cohort"
            raise ValueError(
                f"no patient of {cohort} has a voxel in the {mask} mask; give masks of the "
                "lesions, or take the body (mask='body'; dmrifit train: --train-mask body)"
            )
        sigma_of_scans = columns.pop("sigma", [])
        joined = {key: np.concatenate(values) for key, values in columns.items()}
        noise = None
        # A fit needs the noise of every voxel or of none.
        if len(sigma_of_scans) == len(columns["X"]):
            noise = np.concatenate(sigma_of_scans)
        return VoxelTable(**joined, sigma=noise, source=source, target=target)

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
        first = truths[0]
        names = [name for name in first if all(name in truth for truth in truths)]  # type: ignore
        parameters = {name: np.empty(len(index)) for name in names}
        for position, truth in enumerate(truths):
            rows = index[:, 0] == position
            for name in names:
                parameters[name][rows] = truth[name][tuple(index[rows, 1:].T)]  # type: ignore
        return parameters

    def noise_free_at(
        self, index: NDArray[np.intp], contrasts: Protocol
    ) -> NDArray[np.float64] | None:
        """
        Look up the signals of synthetic voxels before noise was added.

        Parameters
        ----------
        index : ndarray of int, shape (n_voxels, 4)
            As in `VoxelTable`.
        contrasts : Protocol
            Which signals.

        Returns
        -------
        ndarray of shape (n_voxels, n_contrasts), or None
            In the unit of the images; None unless every scan has them.

        Raises
        ------
        ValueError
            If a scan lacks a contrast.
        """
        signals = np.empty((len(index), len(contrasts)))
        for position, scan in enumerate(self.scans):
            noise_free = scan.noise_free
            if noise_free is None:
                return None
            rows = index[:, 0] == position
            with _errors_named(scan):
                columns = contrasts.indices_in(scan.protocol)
            signals[rows] = noise_free[tuple(index[rows, 1:].T)][:, columns]
        return signals

    @classmethod
    def from_signals(
        cls,
        signals: ArrayLike,
        protocol: Protocol,
        patients: Sequence[Any],
        *,
        name: str = "",
        regions: Sequence[Any] | None = None,
        sigma: float | None = None,
        synthetic: bool = False,
        noise_free: ArrayLike | None = None,
    ) -> Cohort:
        """
        Make a cohort of regions, such as means over organs or lesions, without images.

        Every patient is one scan, of as many voxels in a row as there are regions; all of them are
        in both masks.

        Parameters
        ----------
        signals : array_like of shape (n_regions, n_measurements)
            Magnitudes in any unit.
        protocol : Protocol
            The n_measurements contrasts.
        patients : sequence of length n_regions
            Whose region each row is. Regions of one patient are never split between training and
            test.
        name : str, default=""
            A label for reports.
        regions : sequence of length n_regions, optional
            Names of the regions, each once in a patient.
        sigma : float, optional
            Standard deviation of the noise of a signal, in the same unit.
        synthetic : bool, default=False
            Whether the signals were simulated.
        noise_free : array_like of shape (n_regions, n_measurements), optional
            Synthetic signals before noise was added.

        Returns
        -------
        Cohort
            Patients in the order of their first row, their regions in the order given.

        Raises
        ------
        ValueError
            If shapes do not fit each other, a signal is negative, infinite or NaN, or two rows are
            the same region.

        Examples
        --------
        >>> protocol = Protocol([0, 100, 800])
        >>> cohort = Cohort.from_signals([[9, 8, 4], [7, 6, 3]], protocol, ["A", "B"], name="ours")
        >>> cohort.arrays(source=[0, 1], scale=None).groups.tolist()
        ['A', 'B']
        """
        check_protocol(protocol)
        curves = real_numbers(signals, "signals")
        if curves.ndim != 2 or curves.shape != (len(patients), len(protocol)):
            raise ValueError(
                f"signals of shape {curves.shape} need one row for each entry of patients "
                f"({len(patients)}) and one column for each measurement ({len(protocol)})"
            )
        clean = curves if noise_free is None else real_numbers(noise_free, "noise-free signals")
        if clean.shape != curves.shape:
            raise ValueError(
                f"noise-free signals of shape {clean.shape} must have the shape of the "
                f"signals, {curves.shape}"
            )
        bad = ~(np.isfinite(curves) & (curves >= 0)).all(axis=1)
        if bad.any():
            raise ValueError(
                f"signals must be finite and not negative; row {bad.argmax()} is "
                f"{curves[bad.argmax()].tolist()}; correct it, or leave it out"
            )
        if regions is not None and len(regions) != len(curves):
            raise ValueError(
                f"{counted(len(regions), 'name')} of regions for {counted(len(curves), 'row')}; "
                "give all"
            )
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, patient in enumerate(patients):
            rows_of[str(patient)].append(row)
        scans = []
        names: dict[str, tuple[str, ...]] = {}
        for patient, rows in rows_of.items():
            # Each region is a voxel, so that all that works on images works on regions.
            volume = curves[rows][:, None, None]
            region = np.ones(volume.shape[:3], bool)
            scan = Scan(
                patient, volume, protocol, region, np.eye(4), lesion=region, cohort=name,
                sigma=sigma, synthetic=synthetic,
                noise_free=None if noise_free is None else clean[rows][:, None, None],
            )  # fmt: skip
            scans.append(scan)
            if regions is not None:
                names[patient] = tuple(str(regions[row]) for row in rows)
                if len(set(names[patient])) < len(rows):
                    raise ValueError(
                        f"patient {patient} has two rows of one region: {names[patient]}; "
                        "average them, or name them differently"
                    )
        cohort = cls(scans, name)
        cohort.regions = None if regions is None else names
        return cohort

    @classmethod
    def read(
        cls,
        table: str | Path,
        *,
        average: str | None = "geometric",
        b_tolerance: float | None = None,
    ) -> dict[str, Cohort]:
        """
        Read a table of participants, or of regions.

        A table of regions has one row for each signal, with the columns ``patient``, ``region``,
        ``b`` (s/mm²) and ``signal``, and optionally ``te`` (ms), ``cohort`` (by default the name
        of the file) and ``synthetic``, in any order; see `from_signals`.

        Parameters
        ----------
        table : path
            Tab-separated (``.csv``: comma-separated) with the columns ``patient``, ``cohort``,
            ``image``, ``mask`` and ``bval``, and optionally ``lesion``, ``te`` (ms, a text file or
            BIDS sidecars), ``bvec``, ``sigma`` (a number or a map), and of simulated scans
            ``truth``, ``noise_free`` (the image before noise was added) and ``synthetic``.
            Paths are relative to the table; ``n/a`` stands for nothing. ``participant_id`` counts
            as ``patient``, ``body_mask`` as ``mask``, ``lesion_mask`` as ``lesion``.
        average : {"geometric", "arithmetic"} or None, default="geometric"
            Average the measurements that share a b-value and an echo time (directions, repeats)
            whenever signals are asked for, see `average_directions`; the protocols then have one
            entry for each contrast. Scans that have neither directions nor repeats are left as
            they are, and all with None.
        b_tolerance : float, optional
            b-values within ± b_tolerance (s/mm²) count as one, as `Protocol.rounded` does it with
            ``nominal``: 995 and 1000. By default 10 in scans that are averaged, with a warning
            where this joins b-values that may differ on purpose, and nothing in others.

        Returns
        -------
        dict of str to Cohort
            Cohorts by name, in the order of the table. A scan whose lesion mask is empty is left
            out with a warning; a patient without any other scan is named in ``Cohort.skipped``.
            Headers and masks are read now, signals later. How a synthetic cohort was simulated is
            read from the table's sidecar (``participants.json``).

        Raises
        ------
        ValueError
            If a column or value is missing, a patient is in two cohorts, two patients have one
            image, a body mask is empty, or images, masks and protocol of a row do not fit each
            other; the message names table, row and remedy.
        FileNotFoundError
            If a file is missing.
        """
        cohorts = {}
        if is_regions_table(Path(table)):
            for name, regions in read_regions(Path(table)).items():
                cohorts[name] = cls.from_signals(name=name, **regions)
            return cohorts
        participants = read_participants(Path(table), average=average, b_tolerance=b_tolerance)
        for name, scans in participants.scans.items():
            cohorts[name] = cls(scans, name, simulation=participants.simulations.get(name))
            cohorts[name].skipped = participants.skipped.get(name, {})
        return cohorts

    def write(self, folder: str | Path) -> Path:
        """
        Write images, protocols and a table of participants, in the layout of BIDS.

        Parameters
        ----------
        folder : path
            Made if needed. Cohorts written to one folder share its table: rows, columns, the
            table's sidecar and a dataset_description.json that are there stay, and rows are added.

        Returns
        -------
        Path
            The table, ``participants.tsv``, for `read`. It appears, or changes, after everything
            else.

        Raises
        ------
        ValueError
            If a patient or cohort has no name that a table can hold, the table already lists one
            of the patients, two patients would have the same files, files of others would be
            replaced, or a truth is not that of T2-IVIM-Kurtosis. Nothing has been written then.
        """
        return write_participants(
            self.scans, Path(folder), cohort=self.name, simulation=self.simulation
        )


def in_order(cohort: Cohort) -> Cohort:
    """Sort the scans of a cohort by patient, so that no draw follows the order of a table."""
    scans = tuple(sorted(cohort.scans, key=lambda scan: scan.patient))
    if scans == cohort.scans:
        return cohort
    ordered = copy.copy(cohort)
    ordered.scans = scans
    return ordered


def _errors_named(scan: Scan, remedy: str = "") -> AbstractContextManager[None]:
    """Name the patient in errors of the block."""
    cohort = f" (cohort {scan.cohort!r})" if scan.cohort else ""
    return errors_about(f"patient {scan.patient}{cohort}", remedy)


def _check_order(scan: Scan, body: NDArray) -> None:
    """Refuse images whose signal rises with b or TE: volumes in the wrong order."""
    voxels = body[:: max(1, len(body) // _VOXELS_TO_CHECK)].astype(float)
    voxels[~np.isfinite(voxels)] = np.nan
    # A contrast without any finite signal has no median to compare.
    if np.isnan(voxels).all(axis=0).any():
        return
    rising = rising_share(np.nanmedian(voxels, axis=0), scan.protocol)
    if rising > RISING_SHARE:
        raise ValueError(
            f"in {percent(rising)} of the pairs of contrasts the signal in the body rises with b "
            "or TE; check that the order of volumes is that of the b-values and echo times"
        )
