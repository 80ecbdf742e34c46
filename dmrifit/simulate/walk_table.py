"""Signals of tissues and blood from the random walks that the package keeps as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline, CubicSpline, make_interp_spline

from dmrifit.engine.protocol import Protocol
from dmrifit.simulate.tissues import data_rows

#: Gradient pulses of all walks, in ms; the first begins after excitation.
PULSE_START, PULSE_DURATION, PULSE_SEPARATION = 5.0, 20.0, 35.0
#: Echo times of the walks in ms: from the end of the second pulse on.
SHORTEST_TE, LONGEST_TE = 60.0, 160.0
#: Echo time, in ms, at which D and K of a walk are those of its signal at b → 0.
CUMULANT_TE = 100.0
#: Echo times, in ms, between which T2 is the slope of a tissue's signal at b = 0.
SLOPE_TES = (60.0, 120.0)
#: Largest b-value in s/mm² for which tissues were walked.
LARGEST_B = 5000.0

#: Kinds of tissue, each with microstructures of ascending K.
FAMILIES = ("impermeable", "permeable", "two T2")

# The order of a model's parameters.
_S0, _F, _DV, _T2V, _DT, _K, _T2T = range(7)


@dataclass(frozen=True)
class Microstructure:
    """What a tissue of one patient is made of: a family of tissue walks and a walk of blood."""

    family: str
    blood: int


@dataclass(frozen=True)
class _Ladder:
    """Microstructures of one family in the order of K, free water first."""

    kurtosis: NDArray[np.float64]  # (n,)
    decays: NDArray[np.float64]  # (n, n_te, n_nodes), without the relaxation outside
    nodes: NDArray[np.float64]  # of sqrt(b D)
    te: NDArray[np.float64]
    excess_rate: NDArray[np.float64]  # (n,) relaxation in 1/ms beyond that outside
    level: NDArray[np.float64]  # (n,) signal at the cumulants' TE over that of one T2


@cache
def walk_rows() -> Mapping[str, tuple[Mapping[str, float], ...]]:
    """
    Return what was walked: by family, and for ``"blood"``, geometry, D and K of each row.

    Lengths in µm, speeds in mm/s, diffusivities in µm²/ms, permeability in µm/ms, the difference
    of the relaxation rates inside and outside in 1/ms. The file is
    ``dmrifit/simulate/data/walks.csv``.
    """
    rows: dict[str, list[Mapping[str, float]]] = {}
    for row in data_rows("walks.csv"):
        kind = row.pop("kind")
        values = {name: float(value) for name, value in row.items() if value}
        rows.setdefault(kind, []).append(MappingProxyType(values))
    return MappingProxyType({kind: tuple(members) for kind, members in rows.items()})


def draw_microstructures(
    tissues: Iterable[str], rng: np.random.Generator
) -> dict[str, Microstructure]:
    """Draw the microstructure of each tissue of a patient."""
    n_bloods = len(walk_rows()["blood"])
    microstructures = {}
    for tissue in tissues:
        family = FAMILIES[int(rng.integers(len(FAMILIES)))]
        microstructures[tissue] = Microstructure(family, int(rng.integers(n_bloods)))
    return microstructures


def check_walk_protocol(protocol: Protocol) -> None:
    """Refuse contrasts that were not walked."""
    te = np.asarray(protocol.te)
    unwalked = te[(te < SHORTEST_TE) | (te > LONGEST_TE)]
    if unwalked.size:
        raise ValueError(
            f"truth='walk' has echo times from {SHORTEST_TE:g} ms, when the gradient pulses have "
            f"ended, to {LONGEST_TE:g} ms, not {unwalked[0]:g} ms; use truth='formula' or other "
            "echo times"
        )
    if protocol.b.max() > LARGEST_B:
        raise ValueError(
            f"truth='walk' has b-values up to {LARGEST_B:g} s/mm², not {protocol.b.max():g} "
            "s/mm²; use truth='formula' or smaller ones"
        )


def walk_parameters(
    parameters: NDArray[np.float64], microstructure: Microstructure
) -> NDArray[np.float64]:
    """Limit K, of parameters (n_voxels, 7), to what the family of a tissue has."""
    limited = np.array(parameters)
    limited[:, _K] = np.minimum(limited[:, _K], _ladder(microstructure.family).kurtosis[-1])
    return limited


def walk_signals(
    parameters: NDArray[np.float64], microstructure: Microstructure, protocol: Protocol
) -> NDArray[np.float64]:
    """
    Compute signals of voxels of one tissue from its walks, without noise, in the unit of S0.

    A walk at another scale of length is a walk with another D, so that every Dt and Dv is met
    exactly, by scaling b. K is met by two microstructures of one D side by side, the neighbors in
    the family's order of K: of such a mixture K is the mean. Relaxation multiplies.

    Shapes: `parameters` (n_voxels, 7), K within the family's range; returns (n_voxels,
    n_measurements).
    """
    s0, f, dv, t2v, dt, k, t2t = parameters.T[:, :, None]
    te = np.asarray(protocol.te)
    b = protocol.b_ms_per_um2
    decays = _decays()
    blood_spline = _spline(decays["blood_nodes"], decays["blood"][microstructure.blood])
    # Beyond the last node nothing but the walkers' noise is left.
    blood_nodes = np.minimum(np.sqrt(b * dv), decays["blood_nodes"][-1])
    blood = blood_spline(blood_nodes) * np.exp(-te / t2v)
    tissue = _tissue_signals(_ladder(microstructure.family), b * dt, te, k[:, 0], t2t[:, 0])
    return s0 * (f * blood + (1 - f) * tissue)


def _tissue_signals(
    ladder: _Ladder,
    weighting: NDArray[np.float64],
    te: NDArray[np.float64],
    kurtosis: NDArray[np.float64],
    t2: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Mix the signals of neighbors on a ladder; `weighting` is b Dt, (n_voxels, n_contrasts)."""
    lower = np.searchsorted(ladder.kurtosis, kurtosis, side="right") - 1
    lower = np.clip(lower, 0, len(ladder.kurtosis) - 2)
    gap = ladder.kurtosis[lower + 1] - ladder.kurtosis[lower]
    upper_share = (kurtosis - ladder.kurtosis[lower]) / gap
    # Shares of the signal where the cumulants are defined; volumes follow from its level there.
    volumes = np.column_stack([1 - upper_share, upper_share])
    volumes /= np.column_stack([ladder.level[lower], ladder.level[lower + 1]])
    volumes /= volumes.sum(axis=1, keepdims=True)
    times, contrasts = np.unique(te, return_inverse=True)
    decays = CubicSpline(ladder.te, ladder.decays, axis=1)(times)
    nodes = np.minimum(np.sqrt(weighting), ladder.nodes[-1])
    signals = np.zeros(weighting.shape)
    for row in range(len(ladder.kurtosis)):
        for neighbor in (0, 1):
            voxels = np.flatnonzero(lower + neighbor == row)
            if not voxels.size:
                continue
            rate = 1 / t2[voxels] - ladder.excess_rate[row]
            share = volumes[voxels, neighbor]
            for i, time in enumerate(times):
                columns = np.flatnonzero(contrasts == i)
                decay = _spline(ladder.nodes, decays[row, i])(nodes[np.ix_(voxels, columns)])
                outside = share * np.exp(-time * rate)
                signals[np.ix_(voxels, columns)] += outside[:, None] * decay
    return signals


def _spline(nodes: NDArray[np.float64], decay: NDArray[np.float64]) -> BSpline:
    """Interpolate an even function of sqrt(b D), (n_nodes,) from 0 on."""
    # Mirrored and of the fifth order, because K is the fourth derivative at 0.
    both_sides = np.concatenate([-nodes[:0:-1], nodes])
    return make_interp_spline(both_sides, np.concatenate([decay[:0:-1], decay]), k=5)


@cache
def _ladder(family: str) -> _Ladder:
    decays = _decays()
    rows = walk_rows()
    kinds = [kind for kind in FAMILIES for _ in rows[kind]]
    nodes, te = decays["nodes"], decays["te"]
    free = np.broadcast_to(np.exp(-np.square(nodes)), (1, len(te), len(nodes)))
    curves = np.concatenate([free, decays["tissue"][np.array(kinds) == family]])
    kurtosis = np.array([0.0, *(row["K"] for row in rows[family])])
    unweighted = {time: curves[:, int(np.argmin(np.abs(te - time))), 0] for time in te.tolist()}
    first, last = SLOPE_TES
    excess_rate = np.log(unweighted[first] / unweighted[last]) / (last - first)
    level = unweighted[CUMULANT_TE] * np.exp(CUMULANT_TE * excess_rate)
    return _Ladder(kurtosis, curves, nodes, te, excess_rate, level)


@cache
def _decays() -> Mapping[str, NDArray[np.float64]]:
    path = files("dmrifit.simulate").joinpath("data", "walk_decays.npz")
    with path.open("rb") as stream, np.load(stream) as arrays:
        return MappingProxyType({name: arrays[name].astype(np.float64) for name in arrays})
