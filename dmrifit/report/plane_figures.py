"""Three orthogonal planes of a scan in radiological view, as figures to draw outlines into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit.report import style
from dmrifit.report.numerals import fixed
from dmrifit.report.page import PLANES
from dmrifit.report.slice_figures import robust_limits

_STEP = 0.5  # mm
_ZOOM = 10.0  # mm, half of the edge of the inset


@dataclass(frozen=True)
class Plane:
    """
    A plane of a scan that is drawn, perpendicular to one world axis.

    The grays of the scan span `window`, by default percentile 1 to 99.5 of the plane. Shapes: `x`
    and `y` in mm, `index` (len(y), len(x), 3) in voxels of the scan, `image` (x, y, z).
    """

    ax: style.Axes
    normal: int
    across: int
    up: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    index: NDArray[np.float64]
    image: NDArray[Any]
    window: tuple[float, float] | None = None

    def show(self) -> None:
        """Draw the scan in grays."""
        values = sample_volume(np.nan_to_num(self.image), self.index)
        shape = np.array(self.image.shape)
        inside = (self.index > -0.5).all(-1) & (self.index < shape - 0.5).all(-1)
        low, high = robust_limits(values[inside], (1, 99.5))
        # Beside the scan a plane is as dark as its background.
        values = np.where(inside, values, low)
        low, high = self.window or (low, high)
        x, y = self.x, self.y
        extent = (x[0] - _STEP / 2, x[-1] + _STEP / 2, y[0] - _STEP / 2, y[-1] + _STEP / 2)
        self.ax.imshow(values, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)

    def outline(self, volume: NDArray[Any], **look: Any) -> bool:
        """Draw the contour of a volume (x, y, z) at 0.5; return whether there is one."""
        shares = sample_volume(volume, self.index)
        # matplotlib warns of a level that is not there.
        if not shares.max() > 0.5 > shares.min():
            return False
        self.ax.contour(self.x, self.y, shares, [0.5], **look)
        return True


@dataclass(frozen=True, eq=False)
class Outline:
    """
    What is outlined: a `mask` (x, y, z), or what `cut` gives for the plane.

    `cut` takes the world axis that the plane is perpendicular to and gives corners (n, 3) in mm.
    """

    color: str
    mask: NDArray[Any] | None = None
    cut: Callable[[int], NDArray[np.float64]] | None = None
    width: float = 1.2
    dash: str = "solid"

    def draw(self, plane: Plane, width: float | None = None) -> None:
        """Draw the outline in a plane."""
        if self.mask is not None:
            look = {"linewidths": width or self.width, "linestyles": self.dash}
            plane.outline(self.mask, colors=[self.color], **look)
        if self.cut is not None and len(corners := self.cut(plane.normal)):
            x, y = np.vstack([corners, corners[:1]])[:, [plane.across, plane.up]].T
            plane.ax.plot(x, y, color=self.color, linewidth=self.width)


def plot_planes(
    image: NDArray[Any],
    affine: ArrayLike,
    center: Sequence[float] | NDArray[np.float64],
    outlines: Mapping[str, Outline],
    heading: str,
    *,
    margin: float,
    inside: NDArray[Any] | None = None,
    around: Sequence[NDArray[np.float64]] = (),
    notice: str = style.NOT_CLINICAL,
    window: tuple[float, float] | None = None,
    zoom: bool = False,
) -> style.Figure:
    """
    Draw outlines by name into three planes of a scan (x, y, z), right at the left.

    What is shown is a cube around what is not 0 in the volume `inside` and points (n, 3), with a
    margin in mm at the widest side. `zoom` draws the center of the axial plane once more, larger.
    """
    from matplotlib.patheffects import withStroke

    # Left, right, top and bottom of a plane.
    places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04))
    letters: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 15, "weight": "bold"}
    # Dark around them, so that they are read over bright tissue, too.
    letters["path_effects"] = [withStroke(linewidth=3, foreground="black")]
    with style.shared_style(style.FRAMED):
        figure = style.new_figure(11.0, 4.4)
        matrix = np.asarray(affine, dtype=np.float64)
        inverse = np.linalg.inv(matrix)
        if inside is not None:
            voxels = np.argwhere(inside)
            around = [voxels @ matrix[:3, :3].T + matrix[:3, 3], *around]
        low, high = (end(np.vstack(around), axis=0) for end in (np.min, np.max))
        middle, half = (low + high) / 2, (high - low).max() / 2 + margin
        low, high = middle - half, middle + half
        for column, (name, (normal, ends)) in enumerate(reversed(PLANES.items())):
            across, up = (axis for axis in range(3) if axis != normal)
            ax = figure.add_axes((0.03 + column * 0.325, 0.13, 0.29, 0.72))
            x, y = (np.arange(low[k], high[k] + _STEP, _STEP) for k in (across, up))
            points = np.empty((len(y), len(x), 3))
            points[..., normal] = center[normal]
            points[..., across], points[..., up] = x[None], y[:, None]
            index = points @ inverse[:3, :3].T + inverse[:3, 3]
            plane = Plane(ax, normal, across, up, x, y, index, image, window)
            plane.show()
            for outline in outlines.values():
                outline.draw(plane)
            if zoom and name == "axial":
                _draw_inset(plane, center, outlines)
            ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xticks=[], yticks=[], aspect="equal")
            # Radiological view: the patient's right is at the left.
            if name != "sagittal":
                ax.invert_xaxis()
            title = f"{name}, {'xyz'[normal]} = {fixed(center[normal], 1)} mm"
            ax.set_title(title, fontsize=9.5, color=style.FAINT)
            for text, place in zip(ends, places, strict=True):
                ax.text(*place, text, transform=ax.transAxes, color="white", **letters)
        looks = {
            name: {"color": outline.color, "linestyle": outline.dash}
            for name, outline in outlines.items()
        }
        style.legend_below(figure, looks, len(looks), linewidth=2, fontsize=9)
        figure.text(0.97, 0.035, notice, ha="right", fontsize=9, color=style.FAINT)
        figure.text(0.03, 0.95, heading, fontsize=11, fontweight="bold", va="center")
    return figure


def _draw_inset(
    plane: Plane, center: Sequence[float] | NDArray[np.float64], outlines: Mapping[str, Outline]
) -> None:
    """Draw what lies at a place once more and larger, in the corner that is farthest from it."""
    # Nothing is drawn beyond the edge of the plane.
    x = np.clip(center[plane.across], plane.x[0] + _ZOOM, plane.x[-1] - _ZOOM)
    y = np.clip(center[plane.up], plane.y[0] + _ZOOM, plane.y[-1] - _ZOOM)
    # x grows to the patient's right, which is at the left of the picture.
    left = 0.6 if x > plane.x.mean() else 0.0
    bottom = 0.6 if y < plane.y.mean() else 0.0
    ax = plane.ax.inset_axes((left, bottom, 0.4, 0.4), facecolor="black")
    zoomed = replace(plane, ax=ax)
    zoomed.show()
    for outline in outlines.values():
        outline.draw(zoomed, 1.8)
    ax.set(xlim=(x + _ZOOM, x - _ZOOM), ylim=(y - _ZOOM, y + _ZOOM), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color="white", linewidth=1.5)
    ax.text(0.04, 0.04, f"{2 * _ZOOM:g} mm", color="white", fontsize=8, transform=ax.transAxes)
    # Without lines to the inset, which would cross the scan.
    plane.ax.indicate_inset(
        (x - _ZOOM, y - _ZOOM, 2 * _ZOOM, 2 * _ZOOM), edgecolor="white", alpha=0.8
    )


def sample_volume(volume: NDArray[Any], index: NDArray[np.float64]) -> NDArray[np.float64]:
    """Read a volume (x, y, z) between its voxels, at indices (..., 3); 0 outside."""
    from scipy.ndimage import map_coordinates

    places = np.moveaxis(index, -1, 0)
    return np.asarray(map_coordinates(volume, places, np.float64, order=1, mode="constant"))
