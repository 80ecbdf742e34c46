"""Figures of maps: slices side by side, with their colors and the distribution of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.counts import percent
from dmrifit.io.grids import upright, upright_affine, upright_edges
from dmrifit.report import style

#: For voxels of the mask whose value is in doubt or missing. Outside it the page shows through.
NO_VALUE_COLOR = "#b9bec6"

_STYLE = {"font.size": 9, "axes.titlesize": 10}
_BAR_COLOR = "#5b84b1"
_BOUND_COLOR = "#a8321a"
_STATUS_COLORS = ("#2f6c9e", "#e7a92f", "#a8321a", NO_VALUE_COLOR)
#: For counts, whose last color stands for all that are larger.
COUNT_COLORS = (*_STATUS_COLORS[:3], "#4d150b")
_N_BINS = 40
_MOST_COLUMNS = 3  # of slices side by side
_FAINT = 0.65  # of the way to white
_CURVE_HEIGHT = 4.0  # inches
# Room between slices and for the line of text below them, in widths of a slice.
_GAP = 0.06
_LINE = 0.22


@dataclass(frozen=True)
class MapPanel:
    """A map (x, y, z) with what a reader needs to judge it; NaN where a voxel has no value."""

    name: str
    unit: str
    values: NDArray
    # Limits of the search in the unit of the map, and the shares of voxels at each.
    bounds: tuple[float, float] = (-np.inf, np.inf)
    shares: tuple[float, float] = (0.0, 0.0)
    # Whether colors are dimmed, because the map says little.
    faint: bool = False
    # Ends of the color scale; by default percentiles of the values.
    window: tuple[float, float] | None = None
    # Which voxels (x, y, z) are in doubt, and so gray.
    doubted: NDArray | None = None
    # Of the voxels that do not look like air; by default of all that are shown.
    quartiles: tuple[float, ...] = ()

    @property
    def layer(self) -> str:
        """Name in a list of layers, where nothing else says that the map says little."""
        return f"{self.name} (not determined)" if self.faint else self.name

    @property
    def label(self) -> str:
        """Symbol and unit, for axes."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def finite(self, mask: NDArray[np.bool_]) -> NDArray:
        """Select the finite values of a mask (x, y, z)."""
        values = self.values[mask]
        return values[np.isfinite(values)]

    def summary(self, mask: NDArray[np.bool_]) -> tuple[float, ...]:
        """Give the quartiles, the median in the middle; none where no value is finite."""
        values = self.finite(mask)
        if self.quartiles or not len(values):
            return self.quartiles
        return tuple(np.percentile(values, (25, 50, 75)).tolist())


class Slices:
    """
    Slices of a volume for figures, in radiological view: from the feet, right at the left.

    Each of `n_slices` slices at most stands in the middle of an equal part of the mask. `margin`
    is what is shown around the mask, in lengths of its longer side.

    `labels` are positions in mm, and `sides` what is at the left and at the right of each picture,
    such as ``("R", "L")``.

    Shapes: `mask` (x, y, z), in any order of an image's axes.
    """

    def __init__(
        self,
        mask: NDArray[np.bool_],
        affine: NDArray[np.float64],
        *,
        n_slices: int = 6,
        margin: float = 0.0,
    ) -> None:
        from scipy.ndimage import find_objects

        self.mask, self._affine = mask, affine
        mask = upright(mask, affine)
        edges = upright_edges(affine)
        # Thick slices are shown face on; of cubes, the axial ones.
        axis = 2 - int(np.argmax(np.round(edges[::-1], 3)))
        across, up = [(1, 2), (0, 2), (0, 1)][axis]
        self.sides = [("A", "P"), ("R", "L"), ("R", "L")][axis]
        self._order = (axis, up, across)
        self._aspect = edges[up] / edges[across]
        shown = mask.transpose(self._order)
        filled = np.flatnonzero(shown.any(axis=(1, 2)))
        n = min(n_slices, len(filled))
        # In the middle of equal parts, so that the outermost slices, which hold little, are left
        # out.
        self._indices = [int(filled[int((i + 0.5) * len(filled) / n)]) for i in range(n)]
        (extents,) = find_objects(shown.any(axis=0).astype(np.uint8))
        steps = np.array([edges[up], edges[across]])
        first, last = np.array([(side.start, side.stop) for side in extents]).T
        pads = np.rint(margin * (steps * (last - first)).max() / steps).astype(int)
        first, last = np.maximum(first - pads, 0), np.minimum(last + pads, shown.shape[1:])
        self._box = tuple(map(slice, first.tolist(), last.tolist()))
        self._size = last - first
        centers = np.tile([*(np.array(mask.shape) - 1) / 2, 1.0], (n, 1))
        centers[:, axis] = self._indices
        positions = centers @ upright_affine(affine, self.mask.shape)[axis]
        self.labels = [f"{position:.0f} mm" for position in positions]
        # Only the first names the axis: labels of narrow slices would run into each other.
        self.labels[0] = f"{'xyz'[axis]} = {self.labels[0]}"

    def pictures(self, volume: NDArray) -> list[NDArray]:
        """Cut the slices (rows, columns, ...) out of a volume (x, y, z, ...)."""
        turned = upright(volume, self._affine).transpose(*self._order, *range(3, volume.ndim))
        # Mirrored, because a radiologist looks from the feet.
        return [turned[index][self._box][:, ::-1] for index in self._indices]

    def arrange(self, width: float, height: float) -> tuple[int, float, float]:
        """Find how many slices to put side by side, and how large the whole becomes."""
        n_columns = min(_MOST_COLUMNS, len(self.labels))
        columns, rows = self.extent(n_columns, -(-len(self.labels) // n_columns))
        size = min(width / columns, height / rows)
        return n_columns, size * columns, size * rows

    def mosaic(
        self,
        axes: style.Axes,
        pictures: Sequence[NDArray],
        n_columns: int,
        labels: Sequence[str] = (),
    ) -> None:
        """Draw slices (rows, columns, 4) side by side, over their positions or other labels."""
        rows, columns = pictures[0].shape[:2]
        high = rows * self._aspect
        n_lines = -(-len(pictures) // n_columns)
        gap, line = _GAP * columns, _LINE * columns
        for i, (picture, label) in enumerate(zip(pictures, labels or self.labels, strict=True)):
            x, y = (i % n_columns) * (columns + gap), -(i // n_columns) * (high + line)
            right, middle = x + columns, y + high / 2
            extent = (x, right, y, y + high)
            axes.imshow(picture, extent=extent, origin="lower", interpolation="nearest")
            below = (x + columns / 2, y - 0.1 * line)
            axes.text(*below, label, ha="center", va="top", size=8, color="#4a5563")
            if i == 0:
                axes.text(x - gap / 2, middle, self.sides[0], ha="right", va="center", size=8)
            if i == min(n_columns, len(pictures)) - 1:
                axes.text(right + gap / 2, middle, self.sides[1], ha="left", va="center", size=8)
        width, height = self.extent(n_columns, n_lines)
        axes.set(xlim=(0, width), ylim=(high - height, high), anchor="NW")
        axes.set_axis_off()

    @property
    def aspect(self) -> float:
        """Height of a picture divided by its width."""
        rows, columns = self._size
        return float(rows * self._aspect / columns)

    def extent(self, n_columns: int, n_lines: int) -> tuple[float, float]:
        """Give width and height of a mosaic, with its gaps and labels, in widths of a voxel."""
        rows, columns = self._size
        high = rows * self._aspect + _LINE * columns
        return n_columns * columns + (n_columns - 1) * _GAP * columns, n_lines * high


def robust_limits(values: NDArray, ends: tuple[float, float] = (2, 98)) -> tuple[float, float]:
    """Give limits for a scale that a few odd voxels do not decide: percentiles, 2 and 98."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(x) for x in np.percentile(values, ends))
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        # A map of one value needs a range, too: 0 to 1, or a twentieth of the value.
        margin = 0.05 * abs(low)
        return low - margin, high + (margin or 1.0)
    return low, high


def plot_maps(
    slices: Slices,
    panels: Sequence[MapPanel],
    *,
    title: str = "",
    histograms: bool = True,
    beside: float = 0.0,
) -> style.Figure:
    """
    Show slices of maps above histograms.

    `beside` is free room at the right in inches, for a curve with its title, however flat the
    slices are.
    """
    per_line, width, height = slices.arrange(3.6, 3.2)
    edge, foot = (4.6, 1.85) if histograms else (width + 1.1, 0.25)
    line = max(foot + height + 0.35, _CURVE_HEIGHT if beside else 0.0)
    n_columns = 2 if len(panels) == 4 else min(3, len(panels))
    n_lines = -(-len(panels) // n_columns)
    with style.shared_style(_STYLE):
        across, up = edge * n_columns + beside, line * n_lines + (0.4 if title else 0.0)
        figure = style.new_figure(across, up)
        figure.text(0.02, 1 - 0.3 / figure.get_figheight(), title, size=12, weight="bold")
        for i, panel in enumerate(panels):
            left = edge * (i % n_columns) + 0.2
            bottom = line * (n_lines - 1 - i // n_columns)
            axes = style.add_axes(figure, left, bottom + foot, width, height)
            axes.set_title(panel.label, size=10 if histograms else 9)
            scale = _draw_map(axes, slices, panel, per_line)
            place = left + width + 0.25, bottom + foot + 0.1, height - 0.2
            style.color_bar(figure, scale, place, panel.unit, extend="both")
            if histograms:
                below = style.add_axes(figure, left + 0.35, bottom + 0.45, 3.85, 1.05)
                _draw_histogram(below, slices, panel)
    return figure


def plot_codes(
    slices: Slices,
    values: NDArray,
    codes: Mapping[int, str],
    title: str,
    *,
    colors: Sequence[str] = _STATUS_COLORS,
) -> style.Figure:
    """Show a map (x, y, z) of codes, such as how the fit of each voxel ended, in their colors."""
    patches = import_optional("matplotlib.patches")
    to_rgba = import_optional("matplotlib.colors").to_rgba
    shades = np.zeros((*values.shape, 4), np.float32)
    legend = []
    for (code, meaning), color in zip(codes.items(), colors[: len(codes)], strict=True):
        has_code = (values == code) & slices.mask
        shades[has_code] = to_rgba(color)
        if has_code.any():
            legend.append(patches.Patch(color=color, label=meaning))
    n_columns, width, height = slices.arrange(4.2, 2.4)
    with style.shared_style(_STYLE):
        figure = style.new_figure(4.6, height + 0.85)
        axes = style.add_axes(figure, 0.2, 0.5, width, height)
        axes.set_title(title)
        slices.mosaic(axes, slices.pictures(shades), n_columns)
        figure.legend(handles=legend, loc="lower left", bbox_to_anchor=(0.02, 0), ncols=2)
    return figure


def _draw_map(axes: style.Axes, slices: Slices, panel: MapPanel, n_columns: int) -> Any:
    """Draw the slices of a map, and give the scale of its colors."""
    matplotlib = import_optional("matplotlib")
    cm, colors = import_optional("matplotlib.cm"), import_optional("matplotlib.colors")
    limits = panel.window or robust_limits(panel.values[slices.mask])
    shades = matplotlib.colormaps[style.COLORMAP](np.arange(256))
    if panel.faint:
        shades[:, :3] += _FAINT * (1 - shades[:, :3])
    colormap = colors.ListedColormap(shades).with_extremes(bad=NO_VALUE_COLOR)
    scale = cm.ScalarMappable(colors.Normalize(*limits), colormap)
    values = panel.values
    if panel.doubted is not None:
        values = np.where(panel.doubted, np.nan, values)
    pictures = []
    # Only the slices that are shown are painted: colors take eight times the room of a map.
    cuts = slices.pictures(values), slices.pictures(slices.mask)
    for cut, inside in zip(*cuts, strict=True):
        painted = scale.to_rgba(np.ma.masked_invalid(cut))
        painted[~inside] = 0
        pictures.append(painted)
    slices.mosaic(axes, pictures, n_columns)
    return scale


def _draw_histogram(axes: style.Axes, slices: Slices, panel: MapPanel) -> None:
    values = panel.finite(slices.mask)
    # Those of the colors, widened to bounds at which there are more voxels than a few.
    low, high = panel.window or robust_limits(values, (1, 99))
    if len(values):
        margin = 0.08 * (high - low)
        low, high = low - margin, high + margin
        lower, upper = panel.bounds
        # A bound that differs from voxel to voxel, as that of an amplitude, has no place here.
        if np.isfinite(lower) and (panel.shares[0] > 0.005 or lower > low):
            low = lower
        if np.isfinite(upper) and (panel.shares[1] > 0.005 or upper < high):
            high = upper
        if not low < high:
            low, high = low - margin, high + margin
    counts, edges = np.histogram(np.clip(values, low, high), bins=_N_BINS, range=(low, high))
    axes.stairs(100 * counts / max(len(values), 1), edges, fill=True, color=_BAR_COLOR)
    axes.set(xlabel=panel.label, ylabel="voxels (%)", xlim=(low, high))
    # Numbers of six digits would run into each other.
    axes.locator_params("x", nbins=5)
    look: dict[str, Any] = {"linewidth": 1.6, "linestyle": (0, (4, 2)), "clip_on": False}
    # On two lines, because both do not fit side by side over a small histogram.
    for bound, share, side, shift in zip(
        panel.bounds, panel.shares, ("left", "right"), ((4, 2), (-4, 11)), strict=True
    ):
        if low <= bound <= high:
            axes.axvline(bound, color=_BOUND_COLOR, **look)
            places = (bound, 1.0), shift, ("data", "axes fraction"), "offset points"
            text = f"{percent(share)} at the bound"
            axes.annotate(text, *places, ha=side, size=8, color=_BOUND_COLOR)
    for median in panel.summary(slices.mask)[1:2]:
        axes.axvline(median, color="#1d2530", linewidth=1)
