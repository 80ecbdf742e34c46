"""
Interactive viewer of volumes in three planes, for a browser without a library or a network.

The planes are drawn by a script of the project's own (``data/viewer.js``) on plain canvases.
Libraries were measured first, by the page of a T1-weighted scan of 240 × 240 × 155 voxels with the
outline of a tumor (2.0 MB by this module):

- NiiVue 0.69 (BSD-2-Clause) does all that is wanted, but adds 2.28 MB to the wheel and to each
  page (4.1 MB), needs WebGL 2, of which Chromium calls the software form deprecated that it falls
  back to where there is no graphics card, and knows a placed box only as a mesh or a mask.
- brainsprite in nilearn 0.14 (BSD-3-Clause; 2.5 MB, with jQuery) takes pictures, not numbers: the
  threshold is chosen in Python and cannot be slid, all is resampled to cubes, and the page asks
  GitHub for an icon.

The script reads the numbers themselves, cuts any grid along the scanner's axes and draws boxes
exactly; with ``data/voxel.js``, which draws the signals of a voxel, it has 36 kB and is all that
the page may run: `dmrifit.report.page.Page` allows it by its digest and allows no connection.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.affines import voxel_volume
from dmrifit.io.grids import upright, upright_affine
from dmrifit.report.page import fill, read_data
from dmrifit.report.slice_figures import robust_limits
from dmrifit.report.style import COLORMAP, OUTLINES
from dmrifit.report.voxel_records import VoxelRecords

if TYPE_CHECKING:
    from markupsafe import Markup

#: The largest text of the numbers of one viewer; above it, voxels are put together.
MAX_BYTES = 6_000_000
#: Voxels of all layers before compression, which the browser holds in memory.
_MAX_VOXELS = 40_000_000
_MARGIN = 2  # voxels around what is shown
_EXTREMES = (0.1, 99.9)  # percentiles that the codes of an image span
_GRAYS = (1, 99.5)  # percentiles of an image that are black and white
# Of an image, what the eye tells apart; of a map, three digits; of a score, where thresholds lie.
_BITS = {"image": 8, "map": 12, "score": 16, "mask": 8, "doubt": 8}
_COARSE_BITS = _BITS | {"map": 8}
_MOST_LABELS = 255
_PLANES = {"axial": (2, "RLAP"), "coronal": (1, "RLSI"), "sagittal": (0, "PASI")}


@dataclass(frozen=True, eq=False)
class Layer:
    """
    A volume that is shown.

    An image is gray and lies below; a map may lie below, in gray, or above it, in colors; a score
    lies above it, and keeps its maxima where voxels are put together; a mask is an outline, in one
    color for each number; doubt makes the map of its name gray where it is 1. Rows of records, of
    which there is one layer at most, are not seen.

    Shapes: `values` (x, y, z); NaN where there is no value, 0 outside a mask.
    """

    name: str
    values: NDArray[Any]
    kind: Literal["image", "map", "score", "mask", "doubt", "rows"] = "image"
    unit: str = ""
    # Ends of the scale of grays and colors; by default percentiles of the region, and of a score
    # the smallest and the largest number.
    window: tuple[float, float] | None = None
    # Where the threshold starts; by default all is shown.
    threshold: float | None = None
    # What the numbers 1, 2, … of a mask mean.
    names: Sequence[str] = field(default=())
    shown: bool = True
    # Colors of these numbers among `OUTLINES`; by default those that no layer has yet.
    colors: Sequence[str] = field(default=())


@dataclass(frozen=True, eq=False)
class Box:
    """A box that is drawn exactly where planes cut it: sides as columns and center, in mm RAS+."""

    name: str
    affine: ArrayLike


def html_viewer(
    layers: Sequence[Layer],
    affine: ArrayLike,
    *,
    boxes: Sequence[Box] = (),
    points: Sequence[tuple[str, Sequence[float] | NDArray[np.float64]]] = (),
    region: NDArray[np.bool_] | None = None,
    start: Sequence[float] | NDArray[np.float64] | None = None,
    image: str | None = None,
    overlay: str | None = None,
    opacity: int | None = None,
    records: VoxelRecords | None = None,
    label: str = "Three planes",
    instead: Any = "",
    max_bytes: int = MAX_BYTES,
) -> Markup:
    """
    Show volumes of one grid in three planes, with a threshold that can be slid.

    With `records` also the signals of the voxel at the crosshair. `opacity` of the overlay is in
    percent; by default the colors of a map hide the image, and those of a score do not.

    Shapes: `region` (x, y, z).
    """
    matrix = np.asarray(affine, dtype=np.float64)
    _check(layers)
    whole = layers[0].values.shape
    if records is not None:
        layers = [*layers, Layer("rows", records.rows, "rows")]
    layers, matrix, region = _upright(layers, matrix, region)
    if region is None:
        region = _filled(layers)
    else:
        # Outlined voxels are never cut away.
        for layer in layers:
            if layer.kind == "mask":
                region = region | (np.nan_to_num(layer.values) > 0)
    layers = [replace(layer, window=layer.window or _window(layer, region)) for layer in layers]
    layers, matrix, cropped = _crop(layers, matrix, region, boxes)
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    layers, matrix, packed, factors = _fit_size(layers, matrix, max_bytes)
    rows = None
    if records is not None:
        *layers, row_layer = layers
        rows = row_layer.values
    n_colors = _number_colors(layers, packed)
    shape = layers[0].values.shape
    if start is None:
        center = (np.array(shape) - 1) / 2
        start = (matrix @ [*center, 1])[:3]
        if points:
            start = points[0][1]
    box_entries = []
    for i, box in enumerate(boxes):
        box_affine = np.asarray(box.affine, float)[:3].tolist()
        box_entries.append({"name": box.name, "affine": box_affine, "color": n_colors + i})
    data = {
        "shape": shape,
        "affine": matrix[:3].tolist(),
        "voxel": voxel_volume(matrix),
        "layers": packed,
        "boxes": box_entries,
        "points": [np.asarray(position, float).tolist() for _, position in points],
        "start": [float(x) for x in start],
        "colormap": _colormap(),
    }
    if records is not None and rows is not None:
        has_record = rows > 0
        data["records"] = records.pack(rows[has_record])
        data["records"]["present"] = _text(has_record, 8)
    below = {i: layer for i, layer in enumerate(layers) if layer.kind in ("image", "map")}
    above = {i: layer for i, layer in enumerate(layers) if layer.kind in ("map", "score")}
    shown_below = [i for i, layer in below.items() if layer.name == image]
    shown_above = [
        i
        for i, layer in above.items()
        if layer.name == overlay or (overlay is None and layer.kind == "score")
    ]
    # The colors of a map are to be read; below a score one wants to see the scan.
    if opacity is None:
        is_map = bool(shown_above) and layers[shown_above[0]].kind == "map"
        opacity = 100 if is_map else 70
    return fill(
        read_data(__file__, "viewer.html"),
        label=label,
        planes=_PLANES,
        below=below,
        above=above,
        image=next(iter([*shown_below, *below]), None),
        overlay=next(iter(shown_above), None),
        opacity=opacity,
        layers=list(zip(layers, packed, strict=True)),
        boxes=box_entries,
        n_outlines=len(OUTLINES),
        points=[name for name, _ in points],
        has_records=records is not None,
        instead=instead,
        whole=whole if cropped else (),
        factors=factors,
        edges=edges * factors,
        data=page_json(data),
    )


def pack_volumes(
    layers: Sequence[Layer], affine: ArrayLike, *, max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """Pack volumes of one grid, cropped, for scripts of a page that draw them like the viewer."""
    matrix = np.asarray(affine, dtype=np.float64)
    _check(layers)
    layers, matrix, _ = _upright(layers, matrix, None)
    region = _filled(layers)
    layers = [replace(layer, window=layer.window or _window(layer, region)) for layer in layers]
    layers, matrix, _ = _crop(layers, matrix, region, ())
    layers, matrix, packed, _ = _fit_size(layers, matrix, max_bytes)
    return {"shape": layers[0].values.shape, "affine": matrix[:3].tolist(), "layers": packed}


def page_json(data: Any) -> Markup:
    """Write data for a script of a page so that no name in it can end the element."""
    from markupsafe import Markup

    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _fit_size(
    layers: Sequence[Layer], affine: NDArray[np.float64], max_bytes: int
) -> tuple[Sequence[Layer], NDArray[np.float64], list[dict[str, Any]], NDArray[np.intp]]:
    """Put voxels together until layers fit; also return their codes and voxels put together."""
    factors = np.ones(3, int)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    while True:
        shape = layers[0].values.shape
        packed: list[dict[str, Any]] = []
        # Packing takes long, so volumes that are too large for the browser are not tried.
        if len(layers) * np.prod(shape) <= _MAX_VOXELS:
            packed = _pack_within(layers, max_bytes)
            if packed:
                break
        if max(shape) < 2:
            break
        finest = int(np.argmin(np.where(np.array(shape) > 1, edges * factors, np.inf)))
        factors[finest] *= 2
        layers = [_coarser(layer, finest) for layer in layers]
        affine = _coarser_affine(affine, finest)
    return layers, affine, packed or _packed(layers, _COARSE_BITS), factors


def _pack_within(layers: Sequence[Layer], max_bytes: int) -> list[dict[str, Any]]:
    """Pack all layers, with fewer digits where that is enough to fit; none if they do not fit."""
    for bits in (_BITS, _COARSE_BITS):
        packed = _packed(layers, bits)
        if sum(len(entry["data"]) for entry in packed) <= max_bytes:
            return packed
        if not any(layer.kind == "map" for layer in layers):
            break
    return []


def _packed(layers: Sequence[Layer], bits: Mapping[str, int]) -> list[dict[str, Any]]:
    return [_pack(layer, bits[layer.kind]) for layer in layers if layer.kind != "rows"]


def _number_colors(layers: Sequence[Layer], packed: Sequence[dict[str, Any]]) -> int:
    """Give every number of every mask a color of its own; return how many there are."""
    n_colors = 0
    named = {OUTLINES.index(color) for layer in layers for color in layer.colors}
    if named:
        n_colors = max(named) + 1
    for entry, layer in zip(packed, layers, strict=True):
        if layer.kind == "mask":
            largest = int(np.nan_to_num(layer.values).max(initial=0))
            n_labels = max(largest, len(layer.names), 1)
            own = [OUTLINES.index(color) for color in layer.colors]
            n_further = max(n_labels - len(own), 0)
            entry["colors"] = [*own, *range(n_colors, n_colors + n_further)]
            n_colors += n_further
    return n_colors


def _check(layers: Sequence[Layer]) -> None:
    shape = layers[0].values.shape
    for layer in layers:
        if layer.values.ndim != 3 or layer.values.shape != shape or not all(shape):
            raise ValueError(
                f"layer {layer.name} has shape {layer.values.shape}; all need one shape (x, y, "
                f"z), like {shape}"
            )
        if layer.threshold is not None and not np.isfinite(layer.threshold):
            raise ValueError(
                f"the threshold of {layer.name} is {layer.threshold}; give a number, or none to "
                "show all"
            )
        if layer.kind == "mask":
            values = layer.values
            if values.dtype.kind == "f":
                values = values[np.isfinite(values)]
            if values.size and not 0 <= values.min() <= values.max() <= _MOST_LABELS:
                raise ValueError(
                    f"mask {layer.name} has numbers {values.min()} to {values.max()}; give 0 to "
                    f"{_MOST_LABELS}"
                )


def _upright(
    layers: Sequence[Layer], affine: NDArray[np.float64], region: NDArray[np.bool_] | None
) -> tuple[list[Layer], NDArray[np.float64], NDArray[np.bool_] | None]:
    """Turn axes so that they run nearly to the right, to the front and upwards."""
    shape = layers[0].values.shape
    layers = [replace(layer, values=upright(layer.values, affine)) for layer in layers]
    if region is not None:
        region = upright(region, affine)
    return layers, upright_affine(affine, shape), region


def _filled(layers: Sequence[Layer]) -> NDArray[np.bool_]:
    """Find voxels with a value other than 0 and than the background in the corner."""
    filled = np.zeros(layers[0].values.shape, bool)
    for layer in layers:
        background = layer.values.flat[0]
        filled |= np.isfinite(layer.values) & (layer.values != 0) & (layer.values != background)
    if not filled.any():
        return np.ones_like(filled)
    return filled


def _window(layer: Layer, region: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Choose the gray scale of an image and the color scale of a map; others need none."""
    if layer.kind in ("score", "mask", "doubt", "rows"):
        return None
    values = layer.values[region]
    values = values[np.isfinite(values)]
    if layer.kind == "map" or not values.size:
        return robust_limits(values)
    low, high = (float(x) for x in np.percentile(values, _GRAYS))
    if high > low:
        return low, high
    return robust_limits(values)


def _crop(
    layers: Sequence[Layer],
    affine: NDArray[np.float64],
    region: NDArray[np.bool_],
    boxes: Sequence[Box],
) -> tuple[list[Layer], NDArray[np.float64], bool]:
    """Cut away what is outside the region and the boxes."""
    shape = layers[0].values.shape
    ends = []
    for axis in range(3):
        filled = np.flatnonzero(region.any(axis=tuple({0, 1, 2} - {axis})))
        if len(filled):
            ends.append((filled[0], filled[-1]))
        else:
            ends.append((0, shape[axis] - 1))
    low, high = (np.array(end, dtype=np.float64) for end in zip(*ends, strict=True))
    if region.any():
        for box in boxes:
            matrix = np.linalg.inv(affine) @ np.asarray(box.affine, dtype=np.float64)
            reach = np.abs(matrix[:3, :3]).sum(axis=1) / 2
            low = np.minimum(low, matrix[:3, 3] - reach)
            high = np.maximum(high, matrix[:3, 3] + reach)
    first = np.clip(np.floor(low).astype(int) - _MARGIN, 0, shape)
    last = np.clip(np.ceil(high).astype(int) + _MARGIN + 1, first + 1, shape)
    box_of_region = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ first
    cropped = bool((last - first < shape).any())
    layers = [replace(layer, values=layer.values[box_of_region]) for layer in layers]
    return layers, moved, cropped


def _coarser(layer: Layer, axis: int) -> Layer:
    """Put pairs of voxels along an axis together."""
    values = np.moveaxis(layer.values, axis, 0)
    if len(values) % 2:
        values = np.concatenate([values, values[-1:]])
    pairs = values.reshape(-1, 2, *values.shape[1:])
    if layer.kind in ("score", "mask", "doubt", "rows"):
        joined = np.fmax(pairs[:, 0], pairs[:, 1])
    else:
        pairs = pairs.astype(np.float32)
        finite = np.isfinite(pairs)
        n_finite = finite.sum(axis=1, dtype=np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            joined = np.where(finite, pairs, 0).sum(axis=1) / n_finite
    return replace(layer, values=np.moveaxis(joined, 0, axis))


def _coarser_affine(affine: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    coarser = affine.copy()
    coarser[:3, 3] += affine[:3, axis] / 2
    coarser[:3, axis] *= 2
    return coarser


def _pack(layer: Layer, bits: int) -> dict[str, Any]:
    """Turn the numbers of a layer into codes: 0 is no value, then equal steps from low to high."""
    values = np.asarray(layer.values)
    packed: dict[str, Any] = {
        "name": layer.name,
        "kind": layer.kind,
        "unit": layer.unit,
        "bits": bits,
        "names": list(layer.names),
    }
    if layer.kind in ("mask", "doubt"):
        codes = np.nan_to_num(values).astype(np.uint8)
        return packed | {
            "data": _text(codes, bits),
            "low": 1.0,
            "high": 255.0,
            "window": [0.0, 1.0],
            "threshold": None,
        }
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    low, high, extremes = _code_range(layer, values[finite])
    window = layer.window or (low, high)
    if not window[1] > window[0]:
        window = window[0], window[0] + (abs(window[0]) or 1.0)
    levels = 2**bits - 1
    span = high - low
    share = np.zeros(int(finite.sum()))
    if span > 0:
        share = np.clip((values[finite] - low) / span, 0, 1)
    codes = np.zeros(values.shape, np.uint8 if bits == 8 else np.uint16)
    codes[finite] = 1 + np.floor(share * (levels - 1) + 0.5)
    edge = None
    if layer.threshold is not None and span > 0:
        # What is below the threshold is never rounded up to it, however long the steps are.
        code = 1 + np.floor((layer.threshold - low) / span * (levels - 1) + 0.5)
        edge = int(np.clip(code, 2, levels))
        reached = values[finite] >= layer.threshold
        raised, lowered = np.maximum(codes[finite], edge), np.minimum(codes[finite], edge - 1)
        codes[finite] = np.where(reached, raised, lowered)
    return packed | {
        "edge": edge,
        "data": _text(codes, bits),
        "low": low,
        "high": high,
        "window": [float(window[0]), float(window[1])],
        "threshold": None if layer.threshold is None else float(layer.threshold),
        "clipped": [extremes[0] < low, extremes[1] > high],
    }


def _code_range(
    layer: Layer, values: NDArray[np.float64]
) -> tuple[float, float, tuple[float, float]]:
    """Choose the values of the lowest and the highest code; also return the extreme values."""
    extremes = (0.0, 1.0)
    if values.size:
        extremes = (float(values.min()), float(values.max()))
    low, high = extremes
    if layer.kind == "score":
        # The threshold can be slid as far as it was set.
        if layer.threshold is not None:
            low, high = min(low, float(layer.threshold)), max(high, float(layer.threshold))
        return low, high, extremes
    if values.size:
        low, high = (float(x) for x in np.percentile(values, _EXTREMES))
    if layer.window is not None:
        low = min(low, max(layer.window[0], extremes[0]))
        high = max(high, min(layer.window[1], extremes[1]))
    return low, high, extremes


def _text(codes: NDArray[Any], bits: int) -> str:
    """Write codes as gzip in base64; of two bytes, all high ones come first: it packs better."""
    planes = [codes.astype(np.uint8)]
    if bits > 8:
        planes = [(codes >> 8).astype(np.uint8), (codes & 255).astype(np.uint8)]
    raw = b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes)
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")


@cache
def _colormap() -> str:
    colors = import_optional("matplotlib").colormaps[COLORMAP](np.arange(256), bytes=True)
    return base64.b64encode(np.ascontiguousarray(colors[:, :3]).tobytes()).decode("ascii")
