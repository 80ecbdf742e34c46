"""Curve of a training: the loss of each epoch, and the validation score where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dmrifit._optional import import_optional
from dmrifit.report.style import PANEL, add_axes, color_of, head, new_figure, shared_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Panels: what an epoch of the history holds, the heading, and the label of the axis.
_PANELS = (
    ("train_loss", "Loss in training", "loss (lower is better)"),
    ("valid_score", "Score of held-out patients", "score (higher is better)"),
)
_MARKED = 30  # epochs up to which each has a mark


def plot_training(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss and score over the epochs of a training."""
    panels = [panel for panel in _PANELS if any(panel[0] in row for row in history)]
    ticker = import_optional("matplotlib.ticker")
    keys = [key for key, _, _ in _PANELS]
    width, height = PANEL
    with shared_style({}):
        # Fixed places: a layout that is computed would take longer than a short epoch.
        figure = new_figure(width * len(panels), height)
        for i, (key, title, label) in enumerate(panels):
            ax = add_axes(figure, i * width + 0.75, 0.6, width - 1.0, height - 1.25)
            rows = [row for row in history if key in row]
            mark = "o" if len(rows) <= _MARKED else ""
            epochs = [row["epoch"] for row in rows]
            values = [row[key] for row in rows]
            ax.plot(epochs, values, marker=mark, markersize=4, color=color_of(key, keys))
            ax.set(xlabel="epoch", ylabel=label, xlim=(0.5, len(history) + 0.5))
            ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
            ax.grid(True)
            head(ax, f"{title}\nepoch {epochs[-1]}: {values[-1]:.4g}")
    return figure
