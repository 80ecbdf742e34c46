"""What a page holds of single voxels: signals, fitted values with their intervals, and doubts."""

from __future__ import annotations

import ast
import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit.engine.fit_maps import OUTSIDE, unpack_bits, unpack_bounds
from dmrifit.engine.protocol import Protocol
from dmrifit.engine.results import FitStatus
from dmrifit.report.page import Texts

#: Binary digits of each number: four decimal digits are right.
_MANTISSA = 13
_FLOAT32_MANTISSA = 23
#: Voxels within which a sound one is preferred to the middle one.
_NEAR = 3

_TEXTS = Texts(__file__)


@dataclass(frozen=True, eq=False)
class VoxelSignals:
    """
    Measured signals of some voxels.

    `step` is the distance of the slices that have signals; with `is_averaged`, those of one b and
    echo time were averaged: `counts` tells how many each, and `scatter` is the root mean square of
    what the volumes differ from their means.

    Shapes: `rows` (x, y, z), 0 where there is no signal, else 1 + the row of the voxel in `values`
    (n_voxels, n_measurements); `sigma` (n_voxels,), NaN where none was given; `scatter`
    (n_voxels,); `counts` (n_measurements,).
    """

    rows: NDArray[np.int32]
    values: NDArray[np.float32]
    protocol: Protocol
    sigma: NDArray[np.float32]
    scatter: NDArray[np.float32]
    counts: NDArray[np.intp]
    is_averaged: bool = False
    step: int = 1


@dataclass(frozen=True, eq=False)
class VoxelRecords:
    """Signals of voxels and their values in fitted maps (x, y, z), for the page of a viewer."""

    maps: Mapping[str, NDArray]
    sidecar: Mapping[str, Any]
    signals: VoxelSignals

    @property
    def start(self) -> tuple[int, int, int]:
        """A sound voxel with signals in the middle of the largest part, as indices."""
        from scipy.ndimage import label

        has_signals = self.signals.rows > 0
        parts, n_parts = label(self.maps["status"] != OUTSIDE)
        sizes = np.bincount(parts[has_signals], minlength=n_parts + 1)
        voxels = np.argwhere(has_signals & (parts == sizes.argmax()))
        distances = np.linalg.norm(voxels - voxels.mean(axis=0), axis=1)
        places = tuple(voxels.T)
        n_parameters = len(self.sidecar["Parameters"])
        n_doubts = unpack_bits(self.maps["doubt"][places], n_parameters + 1).sum(axis=-1)
        # A voxel without a good fit counts as more doubtful than any other.
        n_doubts[self.maps["status"][places] != FitStatus.CONVERGED] = n_parameters + 2
        n_doubts[distances > distances.min() + _NEAR] = n_parameters + 3
        i, j, k = voxels[np.lexsort((distances, n_doubts))[0]]
        return int(i), int(j), int(k)

    def pack(self, rows: NDArray[np.intp]) -> dict[str, Any]:
        """Put the records of some rows (n_voxels,), counted from 1, into text, in their order."""
        signals, protocol = self.signals, self.signals.protocol
        notes = []
        if signals.is_averaged:
            notes.append("points are means over volumes of one b and echo time")
        if signals.step > 1:
            notes.append(f"to keep the page small, one slice in {signals.step} has its signals")
        columns = [*signals.values[rows - 1].T, signals.sigma[rows - 1]]
        columns += [*self._columns_of_maps(rows), signals.scatter[rows - 1]]
        return {
            "n": len(rows),
            "data": pack_numbers(np.array(columns, dtype=np.float32)),
            "b": protocol.b.tolist(),
            "te": None if protocol.te is None else protocol.te.tolist(),
            "counts": signals.counts.tolist(),
            "formula": formula_tokens(self.sidecar["Model"].get("Expression")),
            "floor": self.sidecar["Settings"]["Likelihood"] == "gaussian",
            "parameters": [
                {"name": name, "unit": short_unit(entry["Units"]), "fixed": "Fixed" in entry}
                for name, entry in self.sidecar["Parameters"].items()
            ],
            "outcomes": {int(FitStatus[key]): text for key, text in _TEXTS["outcomes"].items()},
            "note": "; ".join(notes),
        }

    def _columns_of_maps(self, rows: NDArray[np.intp]) -> list[NDArray]:
        """Gather the values of the maps: each parameter with its interval and doubts, outcome."""
        places = np.empty(len(self.signals.values) + 1, dtype=np.intp)
        places[self.signals.rows[self.signals.rows > 0]] = np.flatnonzero(self.signals.rows)
        places = places[rows]
        names = list(self.sidecar["Parameters"])
        values = {name: self.maps[name].ravel()[places] for name in self.maps}
        doubts = unpack_bits(values["doubt"], len(names) + 1)
        at_low, at_high = unpack_bounds(values["at_bound"], len(names))
        columns: list[NDArray] = []
        for j, name in enumerate(names):
            columns += [values[name], values[f"{name}_low"], values[f"{name}_high"]]
            columns.append(doubts[:, j] + 2 * at_low[:, j] + 4 * at_high[:, j])
        return [*columns, doubts[:, -1], values["status"]]


def short_unit(unit: str) -> str:
    """Shorten the unit of a map for axes; empty for a number without unit."""
    # Amplitudes of a comparison are relative to the scale of each patient.
    return "" if unit in ("1", "signal") else unit


def pack_numbers(numbers: NDArray[np.float32]) -> str:
    """Write numbers of four digits as gzip in base64: all first bytes, then all second ones."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    dropped = _FLOAT32_MANTISSA - _MANTISSA
    is_finite = np.isfinite(numbers)
    # Half of the last digit that is kept is added before the rest is cut off.
    rounded = np.where(is_finite, bits + np.uint32(1 << (dropped - 1)), bits)
    rounded &= np.uint32(0xFFFFFFFF >> dropped << dropped)
    raw = rounded.astype(">u4").view(np.uint8).reshape(-1, 4).T[:3]
    return base64.b64encode(gzip.compress(raw.tobytes(), 4, mtime=0)).decode("ascii")


def formula_tokens(expression: str | None) -> list[float | str] | None:
    """
    Write the formula of a model in postfix notation, which a page computes without running text.

    None where a model is a function.
    """
    if expression is None:
        return None
    return _tokens(ast.parse(expression.strip(), mode="eval").body)


def _tokens(node: ast.AST) -> list[float | str]:
    # An operation has the name of its class after a sign with which no name of a parameter begins.
    operands = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    match node:
        case ast.Constant(value=value):
            return [float(value)]  # type: ignore[arg-type]
        case ast.Name(id=name):
            return [name]
        case ast.BinOp(op=operator) | ast.UnaryOp(op=operator):
            sign = f"={type(operator).__name__}"
        case ast.Call(func=ast.Name(id=sign), args=[_]):
            operands = operands[1:]
        case ast.IfExp():
            sign = "=IfExp"
        case ast.BoolOp(op=operator):
            return _joined([_tokens(value) for value in operands], f"={type(operator).__name__}")
        case ast.Compare(ops=operators):
            pairs = zip(operands[:-1], operands[1:], operators, strict=True)
            signs = [[*_tokens(a), *_tokens(b), f"={type(op).__name__}"] for a, b, op in pairs]
            return _joined(signs, "=And")
        case _:
            raise ValueError(f"the formula of a model cannot hold {ast.dump(node)}")
    return [*chain.from_iterable(map(_tokens, operands)), sign]


def _joined(parts: list[list[float | str]], sign: str) -> list[float | str]:
    return [*parts[0], *chain.from_iterable([*part, sign] for part in parts[1:])]
