"""Acquisition protocols: the b-value, echo time and direction of every measurement."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._utils.checks import check_number, check_word, real_numbers
from dmrifit._utils.counts import counted, first_few
from dmrifit._utils.html_repr import html_summary
from dmrifit.engine.gradient_files import (
    LONGEST_DIRECTION,
    LONGEST_PLAUSIBLE_TE,
    SMALLEST_PLAUSIBLE_MAX_B,
    read_echo_times,
    read_gradients,
)
from dmrifit.engine.means import geometric_mean, mean_of_finite

__all__ = ["Protocol", "average_directions"]

#: b-values are s/mm² in files and ms/µm² in formulas, where b·D is then a number with D in µm²/ms.
MS_PER_UM2_PER_S_PER_MM2 = 1e-3

_LARGEST_PLAUSIBLE_B = 1e5
_B_MATCH = 1.0  # s/mm²: two contrasts are the same when they differ by no more than rounding
_B_MATCH_RELATIVE = 0.02  # no clinical protocol has b-values so close on purpose
_B_NEAR = 10.0  # s/mm²: b-values that may have been meant to be one
_B_NEAR_RELATIVE = 0.02
_SET_APART = 0.05  # relative difference of repeated b-values that no rounding makes
#: s/mm², below which nothing has decayed: direction and pulsation matter little.
ZERO_B = 10.0
#: ms, up to which echo times are one.
TE_MATCH = 0.05
_MOST_LISTED = 21  # measurements in a message
_ROUND_STEPS: tuple[int, ...] = (1000, 500, 100, 50, 10, 5, 1)  # s/mm²

_PRESETS = {
    # The docstring of `Protocol.preset` says which of these values the study names.
    "cohort1": ((0, 50, 100, 400, 900, 1200, 1600), (93, 105, 120)),
    "cohort2": ((0, 50, 100, 400, 900, 1200, 1500), (75, 90, 105)),
}


@dataclass(frozen=True, init=False, eq=False, repr=False, slots=True)
class Protocol:
    """
    The contrasts of a diffusion or diffusion-relaxation acquisition, in the order of its volumes.

    A protocol is frozen, hashable, and equal to another one by value (the name does not count).

    Parameters
    ----------
    b : array_like of shape (n_measurements,)
        Diffusion weighting in s/mm².
    te : float or array_like of shape (n_measurements,), optional
        Echo times in ms; one number stands for all measurements.
    directions : array_like of shape (n_measurements, 3), optional
        Gradient directions. They are normalized to unit length; a zero or NaN row, as files write
        it at b = 0, becomes zeros.
    name : str, default=""
        A label for reports.

    Attributes
    ----------
    b, te, directions : ndarray or None
        Read-only copies of the arguments, one echo time for each measurement, unit directions.

    Raises
    ------
    ValueError
        If lengths differ, a value is negative or not finite, or a unit looks wrong (b in ms/µm² or
        s/m², echo times in seconds).

    Examples
    --------
    >>> protocol = Protocol([0, 500, 1000], te=80)
    >>> len(protocol), protocol.te.tolist()
    (3, [80.0, 80.0, 80.0])
    """

    b: NDArray[np.float64]
    te: NDArray[np.float64] | None
    directions: NDArray[np.float64] | None
    name: str

    def __init__(
        self,
        b: ArrayLike,
        te: ArrayLike | None = None,
        *,
        directions: ArrayLike | None = None,
        name: str = "",
    ) -> None:
        self._store(b, te, directions, name)
        _check_units(self.b, self.te)

    def _store(
        self, b: ArrayLike, te: ArrayLike | None, directions: ArrayLike | None, name: str
    ) -> None:
        """Check the arguments, except for their units, and store them in the fields."""
        if isinstance(b, str | Path):
            raise ValueError(f"b must be numbers; to read a file use Protocol.read('{b}')")
        b = _checked_b(b)
        if te is not None:
            te = _checked_te(te, len(b))
        if directions is not None:
            directions = _checked_directions(directions, len(b))
        fields = {"b": b, "te": te, "directions": directions, "name": str(name)}
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    def _key(self) -> tuple[bytes | None, ...]:
        arrays = (self.b, self.te, self.directions)
        # Adding zero turns -0.0, which equals 0.0 but has other bytes, into 0.0.
        return tuple(None if values is None else (values + 0.0).tobytes() for values in arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Protocol):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __len__(self) -> int:
        return len(self.b)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.b, self.te, self.directions, self.name)

    def _repr_html_(self) -> str:
        """Show the contrasts in notebooks, by echo time."""
        rows = []
        for te in [None] if self.te is None else np.unique(self.te):
            b = self.b if te is None else self.b[self.te == te]
            levels = zip(*np.unique(b, return_counts=True), strict=True)
            listed = [f"{level:g} ({n}×)" if n > 1 else f"{level:g}" for level, n in levels]
            rows.append((None if te is None else f"{te:g}", ", ".join(listed), len(b)))
        title = f"Protocol {self.name}".rstrip()
        title += f": {counted(len(self), 'measurement')}"
        note = "" if self.directions is None else "with directions"
        return html_summary(title, ("TE, ms", "b, s/mm²", "measurements"), rows, note=note)

    def __repr__(self) -> str:
        shells = split_shells(np.unique(self.b))
        b = ", ".join(map(span_text, shells))
        if len(shells) > 12:
            b = f"{span_text(self.b)} ({len(shells)} values)"
        text = f"{self.name!r}, " if self.name else ""
        text += f"{counted(len(self), 'measurement')}, b = {b} s/mm²"
        if self.te is not None:
            text += f"; TE = {', '.join(f'{value:g}' for value in np.unique(self.te))} ms"
        if self.directions is not None:
            text += "; with directions"
        return f"<Protocol {text}>"

    @property
    def b_ms_per_um2(self) -> NDArray[np.float64]:
        """Diffusion weighting in ms/µm², the unit inside formulas, shape (n_measurements,)."""
        return self.b * MS_PER_UM2_PER_S_PER_MM2

    @property
    def labels(self) -> tuple[str, ...]:
        """A unique column name for each measurement, such as ``S_b400_TE93``."""
        names = [f"S_b{b:g}" for b in self.b]
        if self.te is not None:
            names = [f"{name}_TE{te:g}" for name, te in zip(names, self.te, strict=True)]
        n_repeats = Counter(names)
        repeat_of: Counter[str] = Counter()
        for i, name in enumerate(names):
            if n_repeats[name] > 1:
                repeat_of[name] += 1
                names[i] = f"{name}_{repeat_of[name]}"
        return tuple(names)

    @classmethod
    def read(
        cls,
        bval: str | Path,
        te: str | Path | float | Sequence[str | Path] | None = None,
        bvec: str | Path | None = None,
        *,
        b_tolerance: float | None = None,
    ) -> Protocol:
        """
        Read a protocol from the text files that lie beside a diffusion scan.

        Parameters
        ----------
        bval : path
            b-values in s/mm²: one row or one column, separated by blanks or commas.
        te : path, number or sequence of paths, optional
            Echo times: a number in ms; a text file in ms (one value, or one per volume); one BIDS
            sidecar (``.json``, EchoTime in seconds); or one sidecar per volume.
        bvec : path, optional
            Gradient directions, 3 × n or n × 3.
        b_tolerance : float, optional
            Take b-values that lie so close (s/mm²) for one, as `rounded` does: 995 and 1005 for
            1000. By default they stay as they are in the file.

        Returns
        -------
        Protocol
            The protocol, named after the b-value file.

        Raises
        ------
        ValueError
            If a file holds no numbers, counts differ, or a unit looks wrong; the message names the
            file.
        FileNotFoundError
            If a file does not exist.
        """
        bval = Path(bval)
        b, directions = read_gradients(bval, bvec)
        echo_times = None
        if te is not None:
            echo_times = read_echo_times(te, len(b), f"the {counted(len(b), 'b-value')} of {bval}")
        try:
            protocol = cls(b, echo_times, directions=directions, name=bval.name.split(".")[0])
            if b_tolerance is not None:
                protocol = protocol.rounded(b_tolerance)
            return protocol
        except ValueError as error:
            sources = ", ".join(str(source) for source in (bval, te, bvec) if source is not None)
            raise ValueError(f"{sources}: {error}") from None

    @classmethod
    def preset(cls, name: str) -> Protocol:
        """
        Return the advanced protocol of one of the study's two cohorts.

        The study names b = 0, 50, 100, 400, 900, 1600 s/mm² and TE = 105, 120 ms; the other values
        are assumed.

        Parameters
        ----------
        name : {"cohort1", "cohort2"}
            1.5 T, TE 93, 105, 120 ms; or 3 T, TE 75, 90, 105 ms.

        Returns
        -------
        Protocol
            21 contrasts, 7 b-values at each of 3 echo times, echo time by echo time.

        Raises
        ------
        ValueError
            If the name is not a preset.

        References
        ----------
        Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025.
        """
        if name not in _PRESETS:
            raise ValueError(f"no protocol preset {name!r}; choose one of {', '.join(_PRESETS)}")
        b, te = _PRESETS[name]
        return cls(np.tile(b, len(te)), np.repeat(te, len(b)), name=name)

    def clinical(self, n_b: int = 5) -> NDArray[np.intp]:
        """
        Find the clinical part of an advanced protocol: the lowest b-values at the shortest TE.

        Parameters
        ----------
        n_b : int, default=5
            How many b-values.

        Returns
        -------
        ndarray of shape (n_b,)
            Indices of those measurements, by ascending b.

        Raises
        ------
        ValueError
            If there are fewer b-values at the shortest echo time, or one of them was measured more
            than once, exactly or within 2 % (average directions first).
        """
        candidates = np.arange(len(self))
        at_te = ""
        if self.te is not None:
            candidates = np.flatnonzero(self.te <= self.te.min() + TE_MATCH)
            at_te = f" at the shortest TE ({self.te.min():g} ms)"
        by_b = candidates[np.argsort(self.b[candidates], kind="stable")]
        if len(by_b) < n_b:
            raise ValueError(
                f"a clinical protocol needs {counted(n_b, 'b-value')}{at_te}; this one has "
                f"{len(by_b)}: {self.b[by_b].tolist()} s/mm²"
            )
        # One more than taken: the last one could be a repeat of the next.
        b = self.b[by_b[: n_b + 1]]
        if np.any(np.diff(b) <= _B_MATCH_RELATIVE * b[1:]):
            raise ValueError(
                f"b-values{at_te} are repeated ({b.tolist()} s/mm²); use average_directions first"
            )
        return by_b[:n_b]

    def take(self, indices: ArrayLike) -> Protocol:
        """
        Select measurements.

        Parameters
        ----------
        indices : array_like of int
            Which measurements, in the wanted order; or booleans, one for each.

        Returns
        -------
        Protocol
            The selected measurements.

        Raises
        ------
        IndexError
            If there is no measurement of an index, or not one boolean for each.
        """
        try:
            volumes = np.atleast_1d(np.arange(len(self))[np.asarray(indices)])
            if volumes.ndim > 1:
                raise IndexError("needs one list of integers, or one boolean for each measurement")
        except IndexError as error:
            raise IndexError(
                f"{error}; choose from the measurements 0 to {len(self) - 1} of {self!r}"
            ) from None
        te = None if self.te is None else self.te[volumes]
        directions = None if self.directions is None else self.directions[volumes]
        return _rebuild(self.b[volumes], te, directions, self.name)

    def rounded(self, tolerance: float = 10.0, *, nominal: bool = False) -> Protocol:
        """
        Replace b-values that scatter around one nominal value by that value.

        Scanners write the b-value that each volume really had: 0.5 or 5 for 0, 995 to 1005 for
        1000. Fits may use those; b-values that are to be counted need to be those that were meant.

        Parameters
        ----------
        tolerance : float, default=10
            b-values (above it, where b = 0 was measured) count as one where neighbors differ by
            the tolerance (s/mm²) at most, and all of them by twice that at most. It has to be
            smaller than half the step between b-values that differ on purpose: with the default,
            20 and 30 become one.
        nominal : bool, default=False
            Whether protocols of several scans are to be found in each other. Then a b-value
            without others near it moves, too, by 2 % or 1 s/mm² at most and to a multiple of
            50 s/mm², and 0 need not be measured.

        Returns
        -------
        Protocol
            The same measurements. Where b = 0 (up to 1 s/mm²) was measured, b-values up to the
            tolerance become 0. Those of each group are replaced by the roundest number (a multiple
            of 1000, 500, 100, 50, 10, 5 or 1 s/mm²) that lies as near their mean as the tolerance
            and the larger of half their range and 2 % allow, or by the mean itself. A b-value
            without others near it stays.

        Raises
        ------
        ValueError
            If the tolerance is negative or not finite.
        """
        check_number("the tolerance of b-values", tolerance)
        b = self.b.copy()
        if nominal or b.min() <= _B_MATCH:
            b[b <= tolerance] = 0
        shell = _shells(b, tolerance)
        for number in np.unique(shell[b > 0]):
            group = b[shell == number]
            spread = float(np.ptp(group))
            mean = float(group.mean())
            reach = min(tolerance, max(_B_MATCH, _B_MATCH_RELATIVE * mean, spread / 2))
            # A b-value without others near it was not meant to be a less round one.
            steps = _ROUND_STEPS
            if not spread:
                steps = _ROUND_STEPS[:4] if nominal else ()
            round_values = (step * round(mean / step) for step in steps)
            near = (value for value in round_values if value > 0 and abs(mean - value) <= reach)
            b[shell == number] = next(near, mean)
        return _rebuild(b, self.te, self.directions, self.name)

    def indices_in(self, other: Protocol, *, b_tolerance: float = _B_MATCH) -> NDArray[np.intp]:
        """
        Find each measurement of this protocol in another one.

        Parameters
        ----------
        other : Protocol
            The protocol to look in; echo times match within 0.05 ms.
        b_tolerance : float, default=1
            b-values match within so many s/mm². Of several matches the nearest is taken, unless
            it is one of several measurements of one contrast (within 2 %).

        Returns
        -------
        ndarray of shape (len(self),)
            ``other.take(result)`` has the contrasts of this protocol.

        Raises
        ------
        ValueError
            If a contrast is missing there or stands there more than once; the first are named.
        """
        check_protocol(other)
        check_number("the tolerance of b-values", b_tolerance)
        if (self.te is None) != (other.te is None):
            raise ValueError("only one of two protocols has echo times (te); give both or none")
        missing, repeated, indices = match_contrasts(self, other, b_tolerance)
        if missing.any():
            lacking = first_few(np.array(self.labels)[missing].tolist())
            text = f"the protocol lacks {lacking}; it has {first_few(other.labels, 3)}"
            b = self.b[missing]
            distance = _b_distances(self, other)[missing].min(axis=1)
            limit, reach = np.maximum(_B_NEAR, _B_NEAR_RELATIVE * b), np.ceil(distance.max())
            if ((distance > b_tolerance) & (distance <= limit)).all():
                text += f"; if b-values were meant to be the same, give b_tolerance={reach:g}"
            raise ValueError(text)
        if repeated.any():
            labels = ", ".join(np.array(self.labels)[repeated])
            raise ValueError(
                f"the protocol has more than one measurement of {labels}; give each its echo time "
                "if these differ, else use average_directions first"
            )
        return indices

    def to_dict(self) -> dict[str, Any]:
        """
        Give the protocol as plain lists for JSON.

        Returns
        -------
        dict
            Keys ``name``, ``b`` (s/mm²), ``te`` (ms) and ``directions``; the last two may be None.
        """
        return {
            "name": self.name,
            "b": self.b.tolist(),
            "te": None if self.te is None else self.te.tolist(),
            "directions": None if self.directions is None else self.directions.tolist(),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Protocol:
        """
        Make a protocol from what `to_dict` gave.

        Parameters
        ----------
        fields : dict
            As returned by `to_dict`.

        Returns
        -------
        Protocol
            The same protocol.
        """
        return _rebuild(
            fields["b"], fields.get("te"), fields.get("directions"), fields.get("name", "")
        )


def average_directions(
    signals: ArrayLike, protocol: Protocol, *, mean: str = "geometric", tolerance: float = 25
) -> tuple[NDArray[np.float64], Protocol]:
    """
    Average the measurements that share a b-value and an echo time.

    Parameters
    ----------
    signals : array_like of shape (..., n_measurements)
        Magnitudes. NaN and infinite ones are left out of the mean.
    protocol : Protocol
        The protocol of the last axis.
    mean : {"geometric", "arithmetic"}, default="geometric"
        The geometric mean is the signal of the mean diffusivity (trace-weighted image); a zero
        makes it zero. The arithmetic mean is the powder average.
    tolerance : float, default=25
        b-values count as one where neighbors differ by the tolerance (s/mm²) at most, and all of
        them by twice that at most, because scanners write the b-value that each direction really
        had. Those that differ by more than 5 % and are each repeated exactly were set so, and stay
        apart: 1, 10 and 25 of an IVIM scan. So does a single 0 from those that are repeated.

    Returns
    -------
    signals : ndarray of shape (..., n_contrasts)
        One column for each (b, TE), by echo time, then b; NaN where nothing could be averaged
        (and, for the geometric mean, where a magnitude is negative).
    protocol : Protocol
        The contrasts, without directions; b is the mean of the b-values averaged over.

    Raises
    ------
    ValueError
        If the last axis is not as long as the protocol, or `mean` is unknown.

    Examples
    --------
    >>> signals = [[1000.0, 400.0, 500.0]]
    >>> means, contrasts = average_directions(signals, Protocol([0, 800, 800]), mean="arithmetic")
    >>> means.tolist(), contrasts.b.tolist()
    ([[1000.0, 450.0]], [0.0, 800.0])
    """
    check_protocol(protocol)
    signals = real_numbers(signals, "signals")
    if signals.ndim == 0 or signals.shape[-1] != len(protocol):
        raise ValueError(
            f"signals of shape {signals.shape} do not have "
            f"{counted(len(protocol), 'measurement')} on the last axis"
        )
    check_word("mean", mean, ("geometric", "arithmetic"))
    shell = _split_repeated(protocol.b, _shells(protocol.b, tolerance))
    te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
    groups = sorted(set(zip(te.tolist(), shell.tolist(), strict=True)))
    averaged = np.empty((*signals.shape[:-1], len(groups)))
    b = []
    for i, (echo_time, number) in enumerate(groups):
        members = (te == echo_time) & (shell == number)
        b.append(protocol.b[members].mean())
        values = signals[..., members]
        if mean == "geometric":
            averaged[..., i] = geometric_mean(values, np.isfinite(values))
        else:
            averaged[..., i] = mean_of_finite(values)
    echo_times = None if protocol.te is None else [echo_time for echo_time, _ in groups]
    return averaged, _rebuild(b, echo_times, None, protocol.name)


def check_protocol(protocol: object) -> None:
    """Refuse what is not a protocol, such as a list of b-values."""
    if not isinstance(protocol, Protocol):
        # The signals of an image, in the place of the protocol, would fill the screen.
        text = repr(protocol)
        if isinstance(protocol, np.ndarray):
            text = f"an array of shape {protocol.shape}"
        raise TypeError(
            f"protocol must be a Protocol, not {text}; Protocol.read reads one from files, "
            "Protocol(b, te) makes one of numbers"
        )


def span_text(b: NDArray[np.float64]) -> str:
    """Write b-values (n,) as one number, or as the lowest and the highest."""
    return " to ".join(dict.fromkeys(f"{round(value, 1):g}" for value in (b.min(), b.max())))


def shells_text(b: NDArray[np.float64]) -> str:
    """List b-values (n,) with their volumes; those that scanners scatter around one are a span."""
    shells = split_shells(np.sort(b))
    if len(shells) > _MOST_LISTED:
        return f"{span_text(b)} ({len(shells)} shells, {counted(len(b), 'volume')})"
    return ", ".join(span_text(s) + (f" ({len(s)})" if len(s) > 1 else "") for s in shells)


def split_shells(ordered: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Split b-values in ascending order (n,) where neighbors differ by more than scanners do."""
    gaps = np.diff(ordered) > np.maximum(_B_MATCH, _B_MATCH_RELATIVE * ordered[1:])
    return np.split(ordered, np.flatnonzero(gaps) + 1)


def is_same_b(b: NDArray[np.float64], value: float) -> NDArray[np.bool_]:
    """Tell which b-values agree with one within 1 s/mm² plus 2 %, as scanners scatter them."""
    return np.isclose(b, value, rtol=_B_MATCH_RELATIVE, atol=_B_MATCH)


def least_weighted(protocol: Protocol) -> NDArray[np.intp]:
    """List the measurements at the lowest b-value and, of these, at the shortest echo time."""
    lowest = np.flatnonzero(protocol.b == protocol.b.min())
    if protocol.te is None:
        return lowest
    return lowest[protocol.te[lowest] == protocol.te[lowest].min()]


def check_columns(signals: NDArray, protocol: Protocol, name: str) -> None:
    """
    Check that signals have one column for each measurement.

    Shapes: `signals` (n_voxels, n_measurements).
    """
    if signals.ndim == 4 and signals.shape[3] == len(protocol):
        raise ValueError(
            f"{name} of shape {signals.shape} are an image: give one row for each voxel, "
            "image[mask] or image.reshape(-1, image.shape[-1]); fit_image fits images"
        )
    if signals.shape == (len(protocol),):
        raise ValueError(
            f"{name} of shape {signals.shape} are those of one voxel: give a row, signals[None]"
        )
    if signals.ndim != 2 or signals.shape[1] != len(protocol):
        hint = ""
        if signals.ndim == 2 and signals.shape[0] == len(protocol):
            hint = "; its rows look like measurements: transpose it (.T)"
        raise ValueError(
            f"{name} of shape {signals.shape} does not have the {len(protocol)} columns of its "
            f"protocol: {first_few(protocol.labels)}{hint}"
        )


def match_contrasts(
    contrasts: Protocol, protocol: Protocol, b_tolerance: float = _B_MATCH
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.intp]]:
    """Tell whether a protocol lacks or repeats each contrast, and give its index there."""
    distance = _b_distances(contrasts, protocol)
    distance[distance > b_tolerance] = np.inf
    # 0 and 0.2 may both be wanted: a measurement belongs to the contrast that it is nearest to.
    matches = np.isfinite(distance) & (distance == distance.min(axis=0))
    distance[~matches] = np.inf
    indices = distance.argmin(axis=1)
    nearest = distance.min(axis=1, keepdims=True)
    apart = np.abs(protocol.b - protocol.b[indices, None])
    is_repeat = (distance == nearest) | (apart <= _B_MATCH_RELATIVE * protocol.b)
    # Where a b-value is there to the digit, those within rounding of it were meant to differ.
    is_repeat &= (nearest > 0) | (distance == 0) | (distance > _B_MATCH)
    n_matches = (matches & is_repeat).sum(axis=1)
    return np.asarray(~matches.any(axis=1)), np.asarray(n_matches > 1), indices


def _b_distances(contrasts: Protocol, protocol: Protocol) -> NDArray[np.float64]:
    """Compute differences in b, infinite where echo time or direction differ, (n, m)."""
    distance = np.abs(contrasts.b[:, None] - protocol.b)
    if contrasts.te is not None and protocol.te is not None:
        distance[np.abs(contrasts.te[:, None] - protocol.te) > TE_MATCH] = np.inf
    if contrasts.directions is not None and protocol.directions is not None:
        # A direction and its opposite give the same signal.
        along = np.abs(contrasts.directions @ protocol.directions.T) > 1 - 1e-6
        undirected = np.linalg.norm(contrasts.directions, axis=1) == 0
        distance[~(along | undirected[:, None])] = np.inf
    return distance


def _rebuild(
    b: ArrayLike, te: ArrayLike | None, directions: ArrayLike | None, name: str
) -> Protocol:
    """Make a protocol without the check of units, in which a few low b-values would fail."""
    protocol = Protocol.__new__(Protocol)
    protocol._store(b, te, directions, name)
    return protocol


def _shells(b: NDArray, tolerance: float) -> NDArray[np.intp]:
    """Assign b-values to numbered groups, in which neighbors differ by the tolerance at most."""
    shell = np.zeros(len(b), dtype=np.intp)
    order = np.argsort(b, kind="stable")
    number = 0
    lowest = b[order[0]]
    for previous, i in itertools.pairwise(order):
        # Without the second rule a chain of close b-values would become one wide shell.
        if b[i] - b[previous] > tolerance or b[i] - lowest > 2 * tolerance:
            number += 1
            lowest = b[i]
        shell[i] = number
    return shell


def _split_repeated(b: NDArray, shell: NDArray[np.intp]) -> NDArray[np.intp]:
    """Split groups with several exactly repeated b-values into one group for each of these."""
    split = np.zeros(len(b), dtype=np.intp)
    number = 0
    for group in range(shell.max() + 1):
        members = np.flatnonzero(shell == group)
        values, counts = np.unique(b[members], return_counts=True)
        # Scanners that scatter b-values write no exact 0, unless it was set.
        repeated = values[(counts > 1) | (values == 0)]
        if len(repeated) < 2 or np.ptp(repeated) <= _SET_APART * repeated[-1]:
            repeated = values[:1]
        nearest = np.abs(b[members, None] - repeated).argmin(axis=1)
        split[members] = number + nearest
        number += len(repeated)
    return split


def _frozen(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array = np.array(array, dtype=np.float64)
    array.flags.writeable = False
    return array


def _check_each(values: NDArray, is_sound: NDArray[np.bool_], rule: str) -> None:
    """Refuse values that break a rule, and name the first."""
    if not is_sound.all():
        worst = is_sound.argmin()
        raise ValueError(f"{rule}; number {worst + 1} is {values[worst]:g}")


def _checked_b(b: ArrayLike) -> NDArray[np.float64]:
    b = _frozen(np.atleast_1d(real_numbers(b, "b-values")))
    if b.ndim != 1 or b.size == 0:
        raise ValueError(
            f"b must be a list of at least one b-value, not an array of shape {b.shape}"
        )
    _check_each(b, np.isfinite(b) & (b >= 0), "b-values must be finite and not negative")
    return b


def _check_units(b: NDArray[np.float64], te: NDArray[np.float64] | None) -> None:
    """Refuse b-values and echo times that are plausible only in another unit."""
    text = f"the largest b-value is {b.max():g}: b must be in s/mm², these look like"
    problems = {
        f"{text} ms/µm² (multiply by 1000)": 0 < b.max() < SMALLEST_PLAUSIBLE_MAX_B,
        f"{text} s/m² (divide by 1e6)": b.max() > _LARGEST_PLAUSIBLE_B,
    }
    if te is not None:
        text = f"the longest echo time is {te.max():g}: TE must be in ms, these look like"
        short = f"echo time number {te.argmin() + 1} is {te.min():g} and the longest is "
        short += (
            f"{te.max():g}: TE must be in ms, the short one looks like seconds; give all in ms"
        )
        problems |= {
            f"{text} seconds (multiply by 1000)": te.max() < 1,
            f"{text} µs (divide by 1000)": te.max() > LONGEST_PLAUSIBLE_TE,
            short: te.min() < 1,
        }
    for problem, is_found in problems.items():
        if is_found:
            raise ValueError(problem)


def _checked_te(te: ArrayLike, n: int) -> NDArray[np.float64]:
    te = real_numbers(te, "echo times")
    if te.shape in ((), (1,)):
        te = np.full(n, te)
    if te.shape != (n,):
        raise ValueError(
            f"{counted(te.size, 'echo time')} for {counted(n, 'b-value')}; give one, or one for "
            "each"
        )
    _check_each(te, np.isfinite(te) & (te > 0), "echo times must be finite and positive")
    return _frozen(te)


def _checked_directions(directions: ArrayLike, n: int) -> NDArray[np.float64]:
    directions = np.array(directions, dtype=float)
    if directions.shape != (n, 3):
        raise ValueError(
            f"directions must have shape ({n}, 3), one unit vector for each b-value, not "
            f"{directions.shape}"
        )
    is_long = np.abs(np.nan_to_num(directions)).max(axis=1) > LONGEST_DIRECTION
    n_missing = np.isnan(directions).sum(axis=1)
    is_bad = is_long | (n_missing == 1) | (n_missing == 2)
    if is_bad.any():
        worst = is_bad.argmax()
        raise ValueError(
            f"direction {worst + 1} is {directions[worst].tolist()}; directions are unit vectors "
            "of three numbers, or zeros at b = 0"
        )
    directions = np.nan_to_num(directions)
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = np.divide(directions, length, out=np.zeros_like(directions), where=length > 0)
    return _frozen(unit)
