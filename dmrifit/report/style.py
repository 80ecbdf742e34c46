"""One look for pages and figures: fonts, colors, shapes. Figures are drawn without a screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dmrifit._optional import import_optional
from dmrifit._utils.html_repr import new_figure as new_figure

if TYPE_CHECKING:
    # Modules that draw take these types from here: ``style.Axes``, ``style.Figure``.
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


#: Perceptually uniform, and readable with every form of color blindness.
COLORMAP = "viridis"
#: Those that a reader can choose from.
COLORMAPS = (COLORMAP, "magma", "coolwarm", "gray")
#: Width and height of a panel in inches; on a telephone the letters are still readable.
PANEL = (4.4, 3.7)
#: Colors of `data/page.css` by day that figures use, too.
INK, FAINT, LINK, WARN, GOOD = "#1d2530", "#4a5563", "#0059a3", "#7d4a00", "#00694a"
#: Color of bands around curves, and of thin lines.
LINE = "#d5dae1"
#: Color of controls and of lines for reference.
PALE = "#a3aab3"
#: First of the 20 colors of outlines in the viewer (`data/page.css`, `data/viewer.js`), in order.
OUTLINES = ("#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2")
#: Outlines that mean the same in pictures and viewers: what may be a finding, what is, the truth.
UNSURE, FOUND, REFERENCE = OUTLINES[:3]
#: Number of the outline of a box.
BOX = 4
#: What every figure of patients says, and what those of simulated ones say.
NOT_CLINICAL, SYNTHETIC = "Not for clinical use", "Synthetic, no person was scanned"

#: Changes of the style: for curves, and for images, where the frame tells where a dark one ends.
GRID: dict[str, Any] = {"axes.grid": True}
FRAMED: dict[str, Any] = {"axes.spines.top": True, "axes.spines.right": True}

# Distinct with every form of color blindness (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4b9a", "#8c6d1f")
_SHAPES: dict[str, Sequence[Any]] = {
    "marker": ("o", "s", "^", "v", "D", "P", "X", "*", "<", ">"),
    "linestyle": ("-", (0, (4, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5))),
}
_CONTROL_MARKS = ("s", "o", "^", "D", "P")


def shared_style(changes: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Draw with fonts, lines and colors that all figures share."""
    matplotlib = import_optional("matplotlib")
    path = Path(__file__).parent / "data" / "figures.mplstyle"
    shared = matplotlib.rc_params_from_file(path, use_default_template=False)
    return matplotlib.rc_context({**shared, **changes})


@contextmanager
def drawing(
    size: tuple[float, float], shape: tuple[int, int], changes: Mapping[str, Any], **options: Any
) -> Iterator[tuple[Figure, NDArray]]:
    """Draw into a new figure of a size in inches, with axes (n_rows, n_columns) in it."""
    with shared_style(changes):
        figure = new_figure(*size, "constrained")
        yield figure, figure.subplots(*shape, squeeze=False, **options)


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def figure_notice(synthetic: bool) -> str:
    """Write what every figure of patients says, and that simulated ones show nobody."""
    return f"{SYNTHETIC}; {NOT_CLINICAL.lower()}" if synthetic else NOT_CLINICAL


def note_below(figure: Figure, notice: str, size: float = 9) -> None:
    """Write a notice at the lower right of a figure."""
    figure.supxlabel(notice, x=0.995, ha="right", fontsize=size, color=FAINT)


def head(ax: Axes, title: str, *, lift: float = 0.0) -> None:
    """Write a heading over axes."""
    title, _, note = title.partition("\n")
    pad = lift + 6
    if note:
        pad += 11.5 * (note.count("\n") + 1)
    ax.set_title(title, pad=pad)
    text = ax.annotate(
        note, (0, 1), (0, lift + 3), xycoords="axes fraction", textcoords="offset points",
        fontsize=8.5, color=FAINT, va="bottom", annotation_clip=False,
    )  # fmt: skip
    # A long line must not squeeze the axes; the title above it has made room.
    text.set_in_layout(False)


def name_rows(ax: Axes, places: Sequence[float] | NDArray, names: Sequence[str]) -> None:
    """Name the rows of a table that is drawn, without a vertical axis."""
    ax.set_yticks(places, names)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")


def plain_ticks(axis: Axis, steps: Sequence[int]) -> None:
    """Write 1, 2, 5, 10 … at a logarithmic axis instead of powers."""
    ticker = import_optional("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(subs=steps))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def shortened(name: str, longest: int) -> str:
    """Cut a name to `longest` letters, the last one an ellipsis; a user may choose any name."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def color_of(name: object, names: Sequence[object]) -> str:
    """Choose the color of one of several names; the colors repeat after eight."""
    return _COLORS[list(names).index(name) % len(_COLORS)]


def method_color(name: str, methods: Sequence[str]) -> str:
    """Choose the color of a method; those that are not listed are controls, which are pale."""
    return color_of(name, methods) if name in methods else PALE


def method_looks(methods: Sequence[str], controls: Sequence[str]) -> dict[str, dict[str, str]]:
    """Give each method its color and mark; controls are pale, of a mark each."""
    marks = dict(zip(controls, _CONTROL_MARKS, strict=False))
    others = [name for name in methods if name not in controls]
    return {
        name: {"color": method_color(name, others), "marker": marks.get(name, "o")}
        for name in methods
    }


def shape_of(name: str, names: Sequence[str], kind: Literal["marker", "linestyle"]) -> Any:
    """Choose the shape of the dots, or the dashes, of one of several names."""
    return _SHAPES[kind][names.index(name) % len(_SHAPES[kind])]


def legend_below(
    figure: Figure,
    looks: Mapping[str, Mapping[str, Any]],
    n_columns: int = 3,
    *,
    linewidth: float | None = None,
    longest: int = 1000,
    **options: Any,
) -> None:
    """Draw the legend of all panels at the lower left of a figure: names beside their lines."""
    line = import_optional("matplotlib.lines").Line2D
    handles = [
        line([], [], label=shortened(name, longest), **{"linewidth": linewidth, **look})
        for name, look in looks.items()
    ]
    options = {"fontsize": 8.5, "borderaxespad": 0.2, **options}
    figure.legend(handles=handles, loc="outside lower left", ncols=n_columns, **options)


def color_bar(
    figure: Figure, scale: Any, place: tuple[float, float, float], label: str = "", **look: Any
) -> Any:
    """Draw the colors of a scale at a place in inches: left, bottom, height."""
    left, bottom, height = place
    bar = figure.colorbar(scale, cax=add_axes(figure, left, bottom, 0.1, height), **look)
    # Above the tip; matplotlib's search for that place takes a third of the drawing.
    y = 1.05 if look.get("extend") == "both" else 1.0
    bar.ax.set_title(label or " ", size=8, weight="normal", loc="left", pad=4, y=y)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    return bar


def pair_size(n_entries: int) -> tuple[float, float]:
    """Give the size of two panels side by side over a legend of three columns."""
    width, height = PANEL
    return 2 * width, height + 0.22 * -(-n_entries // 3)
