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
exactly; with ``data/voxel.js``, which draws the signals of a voxel, it has 39 kB and is all that
the page may run: `dmrifit.report.page.Page` allows it by its digest and allows no connection.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.affines import voxel_volume
from dmrifit.io.grids import upright, upright_affine
from dmrifit.report.page import fill, read_data
from dmrifit.report.slice_figures import robust_limits
from dmrifit.report.style import BOX, COLORMAPS, OUTLINES
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
_COLORS = (2, 98)  # those of a map at the ends of its colors
# Of an image, what the eye tells apart; of a map, three digits; of a score, where thresholds lie.
_BITS = {"image": 8, "map": 12, "score": 16, "mask": 8, "doubt": 8}


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


def html_viewer(
    layers: Sequence[Layer],
    affine: ArrayLike,
    *,
    boxes: Mapping[str, ArrayLike] | None = None,
    points: Sequence[tuple[str, Any]] = (),
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
    percent; by default the colors of a map hide the image, and those of a score do not. Each of
    `points`, which one can go to, is a text with x, y, z in mm, or with a DataFrame of points,
    whose columns the text names.

    Shapes: `region` (x, y, z).
    """
    if records is not None:
        layers = [*layers, Layer("rows", records.signals.rows, "rows")]
    stack = _Stack(layers, affine, region)
    places = [place for text, point in points for place in _places(text, point)]
    whole = stack.shape
    boxes = boxes or {}
    is_cropped = stack.crop(list(boxes.values()))
    edges = np.linalg.norm(stack.affine[:3, :3], axis=0)
    packed, factors = stack.fit_size(max_bytes)
    layers = [layer for layer in stack.layers if layer.kind != "rows"]
    matrix = stack.affine
    _number_colors(layers, packed)
    if start is None:
        start = places[0][1] if places else (matrix @ [*(np.array(stack.shape) - 1) / 2, 1])[:3]
    box_entries = [
        {"name": name, "affine": np.asarray(box, float)[:3].tolist(), "color": color}
        for color, (name, box) in enumerate(boxes.items(), start=BOX)
    ]
    colormaps = import_optional("matplotlib").colormaps
    colors = {name: colormaps[name](np.arange(256), bytes=True)[:, :3] for name in COLORMAPS}
    data = {
        **stack.grid,
        "voxel": voxel_volume(matrix),
        "layers": packed,
        "boxes": box_entries,
        "points": [np.asarray(position, float).tolist() for _, position in places],
        "start": [float(x) for x in start],
        "colormaps": {name: _base64(table.tobytes()) for name, table in colors.items()},
    }
    if records is not None:
        rows = stack.layers[-1].values
        has_record = rows > 0
        data["records"] = records.pack(rows[has_record])
        data["records"]["present"] = _text(has_record, 8)
    below = {i: layer for i, layer in enumerate(layers) if layer.kind in ("image", "map")}
    above = {i: layer for i, layer in enumerate(layers) if layer.kind in ("map", "score")}
    images = [i for i, layer in below.items() if layer.name == image] or list(below)
    overlays = [i for i, layer in above.items() if layer.name == overlay]
    if overlay is None:
        overlays = [i for i, layer in above.items() if layer.kind == "score"]
    shown = next(iter(overlays), None)
    # The colors of a map are to be read; below a score one wants to see the scan.
    if opacity is None:
        opacity = 100 if shown is not None and above[shown].kind == "map" else 70
    return fill(
        read_data(__file__, "viewer.html"),
        label=label,
        below=below,
        above=above,
        image=next(iter(images), None),
        overlay=shown,
        opacity=opacity,
        layers=list(zip(layers, packed, strict=True)),
        boxes=box_entries,
        points=[name for name, _ in places],
        has_records=records is not None,
        instead=instead,
        whole=whole if is_cropped else (),
        factors=factors,
        edges=edges * factors,
        data=data,
    )


def _places(text: str, point: Any) -> list[tuple[str, Any]]:
    """List points to go to: the one that is given, or those of the rows of a DataFrame."""
    if not hasattr(point, "columns"):
        return [(text, point)]
    rows = point.to_dict("records")
    return [(text.format(**row), [row[axis] for axis in "xyz"]) for row in rows]


def pack_volumes(
    layers: Sequence[Layer], affine: ArrayLike, *, max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """Pack volumes of one grid, cropped, for scripts of a page that draw them like the viewer."""
    stack = _Stack(layers, affine)
    stack.crop()
    packed, _ = stack.fit_size(max_bytes)
    return {**stack.grid, "layers": packed}


class _Stack:
    """Layers of one grid on their way to a page: turned to RAS+, cut out, made coarser, packed."""

    def __init__(
        self, layers: Sequence[Layer], affine: ArrayLike, region: NDArray[np.bool_] | None = None
    ) -> None:
        matrix = np.asarray(affine, dtype=np.float64)
        self.affine = upright_affine(matrix, layers[0].values.shape)
        layers = [replace(layer, values=upright(layer.values, matrix)) for layer in layers]
        if region is None:
            region = np.zeros(layers[0].values.shape, bool)
            # A value other than 0 and than the background in the corner.
            for layer in layers:
                values = layer.values
                region |= np.isfinite(values) & (values != 0) & (values != values.flat[0])
            region |= not region.any()
        else:
            region = upright(region, matrix)
            # Outlined voxels are never cut away.
            for layer in layers:
                if layer.kind == "mask":
                    region = region | (np.nan_to_num(layer.values) > 0)
        self.region = region
        self.layers = [
            replace(layer, window=layer.window or _window(layer, region)) for layer in layers
        ]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of each axis."""
        return self.layers[0].values.shape

    @property
    def grid(self) -> dict[str, Any]:
        """Shape and affine as a page stores them."""
        return {"shape": self.shape, "affine": self.affine[:3].tolist()}

    def crop(self, boxes: Sequence[ArrayLike] = ()) -> bool:
        """Cut away what is outside the region and the boxes; return whether anything was."""
        from scipy.ndimage import find_objects

        extents = find_objects(self.region.astype(np.uint8))
        if not extents:
            return False
        low = np.array([extent.start for extent in extents[0]], dtype=np.float64)
        high = np.array([extent.stop - 1 for extent in extents[0]], dtype=np.float64)
        for box in boxes:
            matrix = np.linalg.inv(self.affine) @ np.asarray(box, dtype=np.float64)
            reach = np.abs(matrix[:3, :3]).sum(axis=1) / 2
            low = np.minimum(low, matrix[:3, 3] - reach)
            high = np.maximum(high, matrix[:3, 3] + reach)
        first = np.clip(np.floor(low).astype(int) - _MARGIN, 0, self.shape)
        last = np.clip(np.ceil(high).astype(int) + _MARGIN + 1, first + 1, self.shape)
        is_cropped = bool((last - first < self.shape).any())
        inner = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        self.layers = [replace(layer, values=layer.values[inner]) for layer in self.layers]
        self.affine = self.affine.copy()
        self.affine[:3, 3] += self.affine[:3, :3] @ first
        return is_cropped

    def fit_size(self, max_bytes: int) -> tuple[list[dict[str, Any]], NDArray[np.intp]]:
        """Join voxels until packed layers fit; return these and the joined voxels of each axis."""
        factors = np.ones(3, int)
        edges = np.linalg.norm(self.affine[:3, :3], axis=0)
        # Fewer digits of maps are tried before fewer voxels.
        all_bits = [_BITS]
        if any(layer.kind == "map" for layer in self.layers):
            all_bits.append(_BITS | {"map": 8})
        while True:
            # Packing takes long, so volumes that are too large for the browser are not tried.
            is_small = len(self.layers) * np.prod(self.shape) <= _MAX_VOXELS
            is_last = max(self.shape) < 2
            for bits in all_bits if is_small or is_last else ():
                packed = [
                    _pack(layer, bits[layer.kind]) for layer in self.layers if layer.kind != "rows"
                ]
                if sum(len(entry["data"]) for entry in packed) <= max_bytes:
                    return packed, factors
            if is_last:
                return packed, factors
            axis = int(np.argmin(np.where(np.array(self.shape) > 1, edges * factors, np.inf)))
            factors[axis] *= 2
            self.layers = [_coarser(layer, axis) for layer in self.layers]
            pair = np.eye(4)
            pair[axis, axis], pair[axis, 3] = 2, 0.5
            self.affine = self.affine @ pair


def _number_colors(layers: Sequence[Layer], packed: Sequence[dict[str, Any]]) -> None:
    """Give masks the colors of their layers, then unused ones."""
    own_colors = [[OUTLINES.index(color) for color in layer.colors] for layer in layers]
    n_colors = max((color for own in own_colors for color in own), default=-1) + 1
    for entry, layer, own in zip(packed, layers, own_colors, strict=True):
        if layer.kind == "mask":
            largest = int(np.nan_to_num(layer.values).max(initial=0))
            n_further = max(max(largest, len(layer.names), 1) - len(own), 0)
            entry["colors"] = [*own, *range(n_colors, n_colors + n_further)]
            n_colors += n_further


def _window(layer: Layer, region: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Choose the gray scale of an image and the color scale of a map; others need none."""
    if layer.kind not in ("image", "map"):
        return None
    ends = _GRAYS if layer.kind == "image" else _COLORS
    return robust_limits(layer.values[region], ends)


def _coarser(layer: Layer, axis: int) -> Layer:
    """Put pairs of voxels along an axis together."""
    values = np.moveaxis(layer.values, axis, 0)
    if len(values) % 2:
        values = np.concatenate([values, values[-1:]])
    pairs = np.stack([values[::2], values[1::2]])
    joined = np.fmax(*pairs)
    if layer.kind in ("image", "map"):
        pairs = np.where(np.isfinite(pairs), pairs, np.nan).astype(np.float32)
        # Where one of a pair has no value, it is that of the other one.
        joined = np.where(np.isnan(pairs).any(axis=0), np.fmax(*pairs), pairs.mean(axis=0))
    return replace(layer, values=np.moveaxis(joined, 0, axis))


def _pack(layer: Layer, bits: int) -> dict[str, Any]:
    """Turn the numbers of a layer into codes: 0 is no value, then equal steps from low to high."""
    packed: dict[str, Any] = {key: getattr(layer, key) for key in ("name", "kind", "unit")}
    packed |= {"bits": bits, "names": list(layer.names)}
    if layer.kind in ("mask", "doubt"):
        codes = np.nan_to_num(layer.values).astype(np.uint8)
        packed |= {"data": _text(codes, bits), "low": 1.0, "high": 255.0, "window": [0.0, 1.0]}
        return packed | {"threshold": None}
    is_finite = np.isfinite(layer.values)
    values = layer.values[is_finite].astype(np.float64)
    smallest, largest = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    ends = [smallest, largest]
    if layer.kind != "score":
        if values.size:
            ends = np.percentile(values, _EXTREMES).tolist()
        if layer.window is not None:
            ends += np.clip(layer.window, smallest, largest).tolist()
    elif layer.threshold is not None:
        # The threshold can be slid as far as it was set.
        ends.append(float(layer.threshold))
    low, high = min(ends), max(ends)
    start, end = layer.window or (low, high)
    if not end > start:
        end = start + (abs(start) or 1.0)
    n_steps = 2**bits - 2
    codes = np.ones(values.shape)
    edge = None
    if high > low:
        codes += np.floor(np.clip((values - low) / (high - low), 0, 1) * n_steps + 0.5)
        if layer.threshold is not None:
            # What is below the threshold is never rounded up to it, however long the steps are.
            code = 1 + np.floor((layer.threshold - low) / (high - low) * n_steps + 0.5)
            edge = int(np.clip(code, 2, n_steps + 1))
            is_reached = values >= layer.threshold
            codes = np.where(is_reached, np.maximum(codes, edge), np.minimum(codes, edge - 1))
    volume = np.zeros(layer.values.shape, np.uint8 if bits == 8 else np.uint16)
    volume[is_finite] = codes
    return packed | {
        "edge": edge,
        "data": _text(volume, bits),
        "low": low,
        "high": high,
        "window": [float(start), float(end)],
        "threshold": None if layer.threshold is None else float(layer.threshold),
        "clipped": [smallest < low, largest > high],
    }


def _text(codes: NDArray[Any], bits: int) -> str:
    """Write codes as gzip in base64; of two bytes, all high ones come first: it packs better."""
    planes = [codes] if bits == 8 else [codes >> 8, codes & 255]
    raw = b"".join(plane.astype(np.uint8).tobytes() for plane in planes)
    return _base64(gzip.compress(raw, 4, mtime=0))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
