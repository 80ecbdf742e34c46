"""Summaries of objects in notebooks: HTML tables, pages in frames, figures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING

from dmrifit._optional import import_optional
from dmrifit._utils.counts import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 12


@dataclass(frozen=True)
class InlinePage:
    """A page that notebooks show in a frame; `height` in pixels."""

    html: str
    height: int = 800

    def __repr__(self) -> str:
        return f"<page of {len(self.html) / 1e3:.0f} kB; a notebook shows it; .html is its text>"

    def _repr_html_(self) -> str:
        # The page runs its own script, whose digest it names, and reaches neither the notebook nor
        # the network. As references, line ends and letters survive any file the notebook becomes.
        page = escape(self.html).replace("\n", "&#10;")
        page = page.encode("ascii", "xmlcharrefreplace").decode("ascii")
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )


def html_summary(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    note: str = "",
    most_rows: int | None = MOST_ROWS,
) -> str:
    """Write a small table, of the first `most_rows` rows; all text is escaped."""
    all_rows = list(rows)
    lines = [f"<p><strong>{escape(title)}</strong></p>"]
    cells = "".join(f'<th style="text-align: left">{escape(name)}</th>' for name in header)
    lines += ["<table>", f"<thead><tr>{cells}</tr></thead>", "<tbody>"]
    for row in all_rows[:most_rows]:
        cells = "".join(f'<td style="text-align: left">{escape(_text(cell))}</td>' for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    lines += ["</tbody>", "</table>"]
    if n_hidden := len(all_rows) - len(all_rows[:most_rows]):
        note = "; ".join(filter(None, [counted(n_hidden, "more row"), note]))
    if note:
        lines.append(f"<p><small>{escape(note)}</small></p>")
    return "<div>\n" + "\n".join(lines) + "\n</div>"


def _text(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}".replace("nan", "–") if isinstance(cell, float) else str(cell)


def new_figure(width: float, height: float, layout: str | None = None) -> Figure:
    """Make an empty figure that notebooks show, without a window or touching global state."""
    figure = import_optional("matplotlib.figure").Figure(figsize=(width, height), layout=layout)
    # Notebooks know other figures only from where matplotlib's own windows are set up.
    figure._repr_png_ = partial(_png, figure)
    return figure


def _png(figure: Figure) -> bytes:
    """Draw a figure as a notebook shows it."""
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()
