"""HTML tables as summaries of objects in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

MOST_ROWS = 12


def html_summary(
    title: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, note: str = ""
) -> str:
    """Write a small table; all text is escaped."""
    all_rows = list(rows)
    lines = [f"<p><strong>{escape(title)}</strong></p>"]
    cells = "".join(f'<th style="text-align: left">{escape(name)}</th>' for name in header)
    lines += ["<table>", f"<thead><tr>{cells}</tr></thead>", "<tbody>"]
    for row in all_rows[:MOST_ROWS]:
        cells = "".join(f'<td style="text-align: left">{escape(_text(cell))}</td>' for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    lines += ["</tbody>", "</table>"]
    notes = []
    if len(all_rows) > MOST_ROWS:
        notes.append(f"{len(all_rows) - MOST_ROWS} more rows")
    if note:
        notes.append(note)
    if notes:
        lines.append(f"<p><small>{escape('; '.join(notes))}</small></p>")
    return "<div>\n" + "\n".join(lines) + "\n</div>"


def _text(cell: object) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}".replace("nan", "–")
    return str(cell)
