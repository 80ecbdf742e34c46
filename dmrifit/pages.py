"""Self-contained HTML pages: one shell, figures inside the file, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dmrifit._optional import import_optional

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["html_code", "html_figure", "html_grid", "html_note", "html_page", "html_table", "png_bytes"]

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: #1d2530;
  background: #fff; max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #d5dae1; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.lead { color: #4a5563; }
.grid { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
figure { margin: .6rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption, .note { font-size: .875rem; color: #4a5563; }
.scroll { overflow-x: auto; }
table { width: max-content; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { max-width: 32rem; padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e8ed; }
th { font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; white-space: nowrap; }
code, pre { font: .875em/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: #f5f7f9; padding: .6rem .8rem; overflow-x: auto; }
@media print { h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if lead %}<p class="lead">{{ lead }}</p>{% endif %}
{% for heading, body in sections %}
<section>
{% if heading %}<h2>{{ heading }}</h2>{% endif %}
{{ body }}
</section>
{% endfor %}
</body>
</html>
"""

_TABLE = """<div class="scroll"><table>
{% macro line(cells, tag) %}<tr>
{%- for cell in cells %}<{{ tag }}{{ classes[loop.index0] }}>{{ cell }}</{{ tag }}>{% endfor -%}
</tr>{% endmacro %}
{% if header %}<thead>{{ line(header, "th") }}</thead>{% endif %}
<tbody>
{% for row in rows %}{{ line(row, "td") }}
{% endfor %}</tbody>
</table></div>"""

_FIGURE = """<figure><img src="data:image/png;base64,{{ data }}" alt="{{ alt }}" width="{{ width }}">
{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}</figure>"""


def html_page(title: str, sections: Iterable[tuple[str, Any]], *, lead: str = "") -> str:
    """
    Put sections into one HTML page.

    Parameters
    ----------
    title : str
        Heading of the page.
    sections : iterable of (str, str or Markup)
        Heading and body of each section, in order. Plain text is escaped; what `html_table` and `html_figure`
        give, or ``markupsafe.Markup``, is taken as it is. An empty heading leaves the heading out.
    lead : str, default=""
        A sentence below the title.

    Returns
    -------
    str
        The page, which refers to nothing outside itself.

    Raises
    ------
    ImportError
        If the extra ``report`` is not installed.
    """
    return _render(_PAGE, title=title, lead=lead, sections=list(sections), style=_safe(_STYLE))


def html_table(rows: Iterable[Sequence[Any]], header: Sequence[Any] = (), *, numbers: Iterable[int] = ()) -> Markup:
    """
    Make an HTML table.

    Parameters
    ----------
    rows : iterable of sequences
        Cells, which are escaped.
    header : sequence, default=()
        Cells of the first row.
    numbers : iterable of int, default=()
        Columns that are aligned to the right.

    Returns
    -------
    Markup
        The table; it scrolls sideways on a narrow screen.
    """
    rows = [list(row) for row in rows]
    width = max((len(row) for row in [list(header), *rows]), default=0)
    right = set(numbers)
    classes = [_safe(' class="number"') if i in right else "" for i in range(width)]
    return _safe(_render(_TABLE, rows=rows, header=header, classes=classes))


def html_figure(png: bytes, alt: str, caption: Any = "", *, width: int | None = None) -> Markup:
    """
    Put a picture into the page itself.

    Parameters
    ----------
    png : bytes
        The picture.
    alt : str
        What it shows, for those who cannot see it.
    caption : str or Markup, default=""
        Text below it.
    width : int, optional
        Width in CSS pixels; by default half the pixels of the picture, for screens of high density.

    Returns
    -------
    Markup
        The figure.
    """
    # The width stands in the header of a PNG file, bytes 16 to 20.
    width = int.from_bytes(png[16:20], "big") // 2 if width is None else width
    data = base64.b64encode(png).decode("ascii")
    return _safe(_render(_FIGURE, data=data, alt=alt, caption=caption, width=width))


def html_grid(figures: Iterable[Markup]) -> Markup:
    """
    Put figures beside each other where the screen is wide enough, else below each other.

    Parameters
    ----------
    figures : iterable of Markup
        What `html_figure` gave.

    Returns
    -------
    Markup
        The figures.
    """
    return _safe(
        _render('<div class="grid">{% for figure in figures %}{{ figure }}{% endfor %}</div>', figures=figures)
    )


def html_note(text: str) -> Markup:
    """
    Write a remark.

    Parameters
    ----------
    text : str
        Plain text, which is escaped.

    Returns
    -------
    Markup
        A paragraph in smaller letters.
    """
    return _safe(_render('<p class="note">{{ text }}</p>', text=text))


def html_code(text: str) -> Markup:
    """
    Write lines of code.

    Parameters
    ----------
    text : str
        Plain text, which is escaped; its lines stay as they are.

    Returns
    -------
    Markup
        A block of preformatted text.
    """
    return _safe(_render("<pre>{{ text }}</pre>", text=text))


def png_bytes(figure: Figure, *, dpi: int = 200) -> bytes:
    """
    Draw a matplotlib figure as a PNG picture.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure.
    dpi : int, default=200
        Pixels per inch.

    Returns
    -------
    bytes
        Content of the PNG file, the same for the same figure.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _render(template: str, **values: Any) -> str:
    jinja2 = import_optional("jinja2")
    return jinja2.Environment(autoescape=True).from_string(template).render(**values)


def _safe(html: str) -> Markup:
    import_optional("jinja2")  # which brings markupsafe, or says how to install both
    from markupsafe import Markup

    return Markup(html)
