"""Self-contained HTML pages, with figures inside the file and without network access."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dmrifit._optional import import_optional
from dmrifit._utils.counts import counted
from dmrifit.report.numerals import fixed
from dmrifit.report.style import palette_css

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = [
    "FEW",
    "NOTICE",
    "decimals",
    "few_note",
    "html_code",
    "html_columns",
    "html_details",
    "html_figure",
    "html_grid",
    "html_heading",
    "html_join",
    "html_lines",
    "html_link",
    "html_methods",
    "html_note",
    "html_origin",
    "html_page",
    "html_paragraph",
    "html_table",
    "html_template",
    "notice_lead",
    "png_bytes",
    "record_cells",
    "synthetic_note",
    "whole",
]

#: Notice in pages, files and descriptions.
NOTICE = "Research software; not for clinical use."

#: Patients below which a table says nothing about performance.
FEW = 20

# Fonts and colors are those of `style.palette_css`.
_STYLE = """
* { box-sizing: border-box; }
body { font: 16px/1.5 var(--sans); color: var(--ink); background: var(--paper);
  max-width: 80rem; margin: 0 auto; padding: 1.2rem 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 1.8rem 0 .5rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 48rem; }
.lead { max-width: none; }
.lead, figcaption, .note { color: var(--faint); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; font-size: .9rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
summary { cursor: pointer; padding: .25rem 0; }
.grid { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.columns { display: grid; gap: 0 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 31rem), 1fr)); }
.columns h3 { margin: .6rem 0 0; }
.columns figure { margin: .2rem 0; }
figure { margin: .6rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; }
figcaption, .note { font-size: .875rem; }
.scroll { overflow-x: auto; }
table { width: max-content; max-width: 100%; border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { max-width: 32rem; padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
th { font-weight: 600; vertical-align: bottom; }
tr.control td { color: var(--control); }
table.prose { width: auto; }
td.words { min-width: 9rem; white-space: pre-line; }
details { margin: .5rem 0; }
td.number, th.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; max-width: 7.5rem; }
code, pre { font: .875em/1.45 var(--mono); }
pre { background: var(--panel); padding: .6rem .8rem; white-space: pre-wrap; }
@media (max-width: 75rem) {
  table { font-size: .82rem; }
  th, td { padding-right: .5rem; }
}
@media (max-width: 40rem) {
  table { font-size: .8rem; }
  th, td { padding: .25rem .5rem .25rem 0; }
}
@page { size: A4; margin: 14mm 12mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  details:not([open]) > summary::after { content: " (folded: not printed)"; }
  .grid { grid-template-columns: 1fr 1fr; gap: .6rem; }
  table { width: auto; font-size: 7.5pt; }
  th, td { padding: .15rem .4rem .15rem 0; }
  td.number { white-space: normal; }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if lead %}<p class="lead">{{ lead }}</p>{% endif %}
{% if contents %}<nav>{% for heading, _ in sections if heading -%}
<a href="#s{{ loop.index }}">{{ heading }}</a>
{% endfor %}</nav>{% endif %}
{% set number = namespace(value=0) %}
{% for heading, body in sections %}
{% if heading %}{% set number.value = number.value + 1 %}{% endif %}
<section{% if heading and contents %} id="s{{ number.value }}"{% endif %}>
{% if heading %}<h2>{{ heading }}</h2>{% endif %}
{{ body }}
</section>
{% endfor %}
{% if script %}<script>{{ script }}</script>{% endif %}
</body>
</html>
"""

_TABLE = """
{%- macro row(cells, tag) -%}
{%- for cell in cells -%}
{%- set class = classes[loop.index0] -%}
<{{ tag }}{% if class %} class="{{ class }}"{% endif %}>{{ cell }}</{{ tag }}>
{%- endfor -%}
{%- endmacro -%}
<div class="scroll"><table{% if prose %} class="prose"{% endif %}>

{% if header %}<thead><tr>{{ row(header, "th") }}</tr></thead>{% endif %}
<tbody>
{% for cells in rows -%}
<tr{% if loop.index0 in faint %} class="control"{% endif %}>{{ row(cells, "td") }}</tr>
{% endfor %}</tbody>
</table></div>"""


def html_page(
    title: str,
    sections: Iterable[tuple[str, Any]],
    *,
    lead: str = "",
    contents: bool = False,
    script: str = "",
    style: str = "",
) -> str:
    """Put sections into one HTML page, which may run and show only what is in it."""
    style = palette_css() + _STYLE + style
    # Names in a table may come from anybody: the browser runs only what matches these digests.
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}"
    if script:
        policy += f"; script-src {_digest(script)}"
    page = _compiled(_PAGE).render(
        title=title,
        lead=lead,
        sections=list(sections),
        contents=contents,
        policy=f"{policy}; base-uri 'none'; form-action 'none'",
        script=_safe(script),
        style=_safe(style),
    )
    return str(page)


def html_table(
    rows: Iterable[Sequence[Any]],
    header: Sequence[Any] = (),
    *,
    numbers: Iterable[int] = (),
    words: Iterable[int] = (),
    faint: Iterable[int] = (),
) -> Markup:
    """Make a table; `numbers` and `words` are columns, `faint` rows."""
    rows = [list(row) for row in rows]
    n_columns = max((len(row) for row in [list(header), *rows]), default=0)
    class_of_column: dict[int, str] = dict.fromkeys(numbers, "number")
    class_of_column |= dict.fromkeys(words, "words")
    classes = [class_of_column.get(i, "") for i in range(n_columns)]
    return html_template(
        _TABLE, rows=rows, header=header, classes=classes, faint=set(faint),
        prose="words" in classes,
    )  # fmt: skip


def html_figure(png: bytes, alt: str, caption: Any = "", *, width: int | None = None) -> Markup:
    """Put a picture into the page itself."""
    if width is None:
        # The width stands in the header of a PNG file, bytes 16 to 20.
        width = int.from_bytes(png[16:20], "big") // 2
    data = base64.b64encode(png).decode("ascii")
    figure = _element(
        '<figure><img src="data:image/png;base64,{}" alt="{}" width="{}">\n', data, alt, width
    )
    if caption:
        figure += _element("<figcaption>{}</figcaption>", caption)
    return figure + _safe("</figure>")


def html_grid(figures: Iterable[Markup]) -> Markup:
    """Put figures beside each other where the screen is wide enough, else below each other."""
    return _element('<div class="grid">{}</div>', html_join(figures))


def html_columns(cells: Iterable[Any]) -> Markup:
    """Put halves of a screen beside each other where it is wide enough."""
    return _element(
        '<div class="columns">{}</div>',
        html_join(_element("<div>{}</div>", cell) for cell in cells),
    )


def html_note(text: str) -> Markup:
    """Write a remark."""
    return _element('<p class="note">{}</p>', text)


def html_join(parts: Iterable[Any]) -> Markup:
    """Put parts of a page one after the other."""
    return _safe("").join(parts)


def html_lines(*lines: Any) -> Markup:
    """Put lines below each other, as in the head of a narrow column."""
    return _safe("<br>").join(lines)


def html_link(path: str, text: str) -> Markup:
    """Point to a file beside the page."""
    # A leading ./ keeps a name with a colon from being taken for a protocol.
    return _element('<p><a href="./{}">{}</a></p>', quote(path), text)


def html_paragraph(text: Any) -> Markup:
    """Write a paragraph."""
    return _element("<p>{}</p>", text)


def html_heading(text: str) -> Markup:
    """Write a heading inside a section."""
    return _element("<h3>{}</h3>", text)


def html_details(title: str, body: Any) -> Markup:
    """Hide a part of a page until its title is clicked."""
    return _element("<details><summary>{}</summary>{}</details>", title, body)


def html_code(text: str) -> Markup:
    """Write lines of code."""
    return _element("<pre>{}</pre>", text)


def html_template(template: str, **values: Any) -> Markup:
    """Fill a template."""
    return _safe(_compiled(template).render(**values))


def png_bytes(figure: Figure, *, dpi: int = 200) -> bytes:
    """Draw a matplotlib figure as a PNG picture."""
    buffer = io.BytesIO()
    # Without the version of matplotlib, so that the same figure is the same bytes anywhere.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def html_origin(command: str, rows: Sequence[Sequence[str]]) -> Markup:
    """Make the table of how a page came about: date, command, settings, versions."""
    from dmrifit.io.bids_derivatives import versions

    lines = [["date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")]]
    if command:
        lines.append(["command", command])
    lines += map(list, rows)
    for name, version in versions("dmrifit", "numpy", "scipy").items():
        lines.append([f"version of {name}", version])
    return html_table(lines)


def html_methods(
    rows: Sequence[Sequence[Any]],
    header: Sequence[str],
    n_words: int = 1,
    *,
    controls: Collection[str],
) -> Markup:
    """Make a table of methods, in which controls are faint."""
    faint = [i for i, row in enumerate(rows) if row[0] in controls]
    return html_table(rows, header, numbers=range(n_words, len(header)), faint=faint)


def decimals(digits: int) -> Callable[[Any], str]:
    """Make a function that writes numbers with a fixed number of decimals."""
    return partial(fixed, digits=digits)


def whole(value: Any) -> str:
    """Write a number without decimals."""
    return fixed(value, 0)


def record_cells(
    records: Iterable[Mapping[str, Any]], columns: Mapping[str, Any]
) -> list[list[str]]:
    """Write some columns of records as the cells of a table, each by its function."""
    return [[write(record[key]) for key, write in columns.items()] for record in records]


def few_note(n_patients: int) -> str:
    """Warn that numbers of few patients do not estimate performance."""
    if n_patients >= FEW:
        return ""
    return (
        f"With {counted(n_patients, 'patient')} these numbers describe these scans; they are no "
        "performance."
    )


def synthetic_note(n_synthetic: int, n: int, what: str = "scan") -> str:
    """State how many scans were simulated; empty where none was."""
    if not n_synthetic:
        return ""
    if n == 1:
        subject = f"this {what} was"
    elif n_synthetic == n:
        subject = f"all {what}s were"
    else:
        subject = f"{n_synthetic} of {n} {what}s were"
    return (
        f"Synthetic data: {subject} simulated; no person was scanned, and no number here is a "
        "clinical result."
    )


def notice_lead(synthetic: Iterable[bool], unit: str = "scan", notice: str = NOTICE) -> str:
    """Write the notice of a page, and how many of its scans were simulated."""
    flags = list(synthetic)
    return f"{notice} {synthetic_note(sum(flags), len(flags), unit)}".rstrip()


def _digest(text: str) -> str:
    """Name a script or style in the words of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _element(template: str, *values: Any) -> Markup:
    """Fill the places of an element; what is no markup is escaped."""
    return _safe(template).format(*values)


@cache
def _compiled(template: str) -> Any:
    return import_optional("jinja2").Environment(autoescape=True).from_string(template)


def _safe(html: str) -> Markup:
    import_optional("jinja2")  # which brings markupsafe, or says how to install both
    from markupsafe import Markup

    return Markup(html)
