"""Self-contained HTML pages: one shell, figures inside the file, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dmrifit._optional import import_optional

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = [
    "FEW",
    "NOTICE",
    "counted",
    "decimals",
    "few_note",
    "html_code",
    "html_details",
    "html_figure",
    "html_grid",
    "html_heading",
    "html_join",
    "html_lines",
    "html_link",
    "html_methods",
    "html_note",
    "html_page",
    "html_paragraph",
    "html_table",
    "html_template",
    "png_bytes",
    "synthetic_note",
]

#: What pages, files and descriptions say of themselves.
NOTICE = "Research software; not for clinical use."

#: Patients below which a table is no performance.
FEW = 20

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
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .8rem 0; font-size: .9rem; }
a { color: #0059a3; }
summary { cursor: pointer; padding: .25rem 0; }
.grid { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
figure { margin: .6rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption, .note { font-size: .875rem; color: #4a5563; }
.scroll { overflow-x: auto; }
table { width: max-content; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { max-width: 32rem; padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e8ed; overflow-wrap: break-word; }
th { font-weight: 600; vertical-align: bottom; }
tr.control td { color: #6a737f; }
table.prose { width: auto; }
td.words { min-width: 9rem; white-space: pre-line; }
td.long { min-width: 26rem; white-space: pre-line; }
details { margin: .5rem 0; }
td.number, th.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; max-width: 7.5rem; }
code, pre { font: .875em/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: #f5f7f9; padding: .6rem .8rem; overflow-x: auto; }
@media (max-width: 40rem) {
  table { font-size: .8rem; }
  th, td { padding: .25rem .5rem .25rem 0; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .3rem; }
}
@media print { h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } }
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
{% if contents %}<nav>{% for heading, _ in sections if heading %}<a href="#s{{ loop.index }}">{{ heading }}</a>
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

_TABLE = """<div class="scroll"><table{% if prose %} class="prose"{% endif %}>
{% macro line(cells, tag, control=false) %}<tr{% if control %} class="control"{% endif %}>
{%- for cell in cells %}<{{ tag }}{{ classes[loop.index0] }}>{{ cell }}</{{ tag }}>{% endfor -%}
</tr>{% endmacro %}
{% if header %}<thead>{{ line(header, "th") }}</thead>{% endif %}
<tbody>
{% for row in rows %}{{ line(row, "td", loop.index0 in faint) }}
{% endfor %}</tbody>
</table></div>"""

_FIGURE = """<figure><img src="data:image/png;base64,{{ data }}" alt="{{ alt }}" width="{{ width }}">
{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}</figure>"""


def html_page(
    title: str,
    sections: Iterable[tuple[str, Any]],
    *,
    lead: str = "",
    contents: bool = False,
    script: str = "",
    style: str = "",
) -> str:
    """Put sections into one HTML page."""
    style = _STYLE + style
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}"
    policy += f"; script-src {_digest(script)}" if script else ""
    return _render(
        _PAGE,
        title=title,
        lead=lead,
        sections=list(sections),
        contents=contents,
        policy=f"{policy}; base-uri 'none'; form-action 'none'",
        script=_safe(script),
        style=_safe(style),
    )


def html_table(
    rows: Iterable[Sequence[Any]],
    header: Sequence[Any] = (),
    *,
    numbers: Iterable[int] = (),
    words: Iterable[int] = (),
    long: Iterable[int] = (),
    faint: Iterable[int] = (),
) -> Markup:
    """Make an HTML table."""
    rows = [list(row) for row in rows]
    width = max((len(row) for row in [list(header), *rows]), default=0)
    kinds = (
        dict.fromkeys(numbers, "number")
        | dict.fromkeys(words, "words")
        | dict.fromkeys(long, "long")
    )
    names = [kinds.get(i, "") for i in range(width)]
    classes = [_safe(f' class="{name}"') if name else "" for name in names]
    prose = "words" in names or "long" in names
    return _safe(
        _render(_TABLE, rows=rows, header=header, classes=classes, faint=set(faint), prose=prose)
    )


def html_figure(png: bytes, alt: str, caption: Any = "", *, width: int | None = None) -> Markup:
    """Put a picture into the page itself."""
    # The width stands in the header of a PNG file, bytes 16 to 20.
    width = int.from_bytes(png[16:20], "big") // 2 if width is None else width
    data = base64.b64encode(png).decode("ascii")
    return _safe(_render(_FIGURE, data=data, alt=alt, caption=caption, width=width))


def html_grid(figures: Iterable[Markup]) -> Markup:
    """Put figures beside each other where the screen is wide enough, else below each other."""
    return _safe(
        _render(
            '<div class="grid">{% for figure in figures %}{{ figure }}{% endfor %}</div>',
            figures=figures,
        )
    )


def html_note(text: str) -> Markup:
    """Write a remark."""
    return _safe(_render('<p class="note">{{ text }}</p>', text=text))


def html_join(parts: Iterable[Any]) -> Markup:
    """Put parts of a page one after the other."""
    return _safe("").join(parts)


def html_lines(*lines: Any) -> Markup:
    """Put lines below each other, as in the head of a narrow column."""
    return _safe("<br>").join(lines)


def html_link(path: str, text: str) -> Markup:
    """Point to a file beside the page."""
    return _safe('<p><a href="{}">{}</a></p>').format(f"./{quote(path)}", text)


def html_paragraph(text: Any) -> Markup:
    """Write a paragraph."""
    return _safe("<p>{}</p>").format(text)


def html_heading(text: str) -> Markup:
    """Write a heading inside a section."""
    return _safe("<h3>{}</h3>").format(text)


def html_details(title: str, body: Any, *, opened: bool = False) -> Markup:
    """Hide a part of a page until its title is clicked."""
    return _safe("<details{}><summary>{}</summary>{}</details>").format(
        _safe(" open" if opened else ""), title, body
    )


def html_code(text: str) -> Markup:
    """Write lines of code."""
    return _safe(_render("<pre>{{ text }}</pre>", text=text))


def html_template(template: str, **values: Any) -> Markup:
    """Fill a template."""
    return _safe(_render(template, **values))


def png_bytes(figure: Figure, *, dpi: int = 200) -> bytes:
    """Draw a matplotlib figure as a PNG picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


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
    """Give the function that writes numbers with so many decimals."""
    return lambda value: f"{value:.{digits}f}" if math.isfinite(value) else "–"


def counted(n: int, what: str) -> str:
    """Write how many there are."""
    return f"{n} {what}{'s' * (n != 1)}"


def few_note(n_patients: int) -> str:
    """Say of the numbers of few patients what they are not."""
    if n_patients >= FEW:
        return ""
    return f"With {counted(n_patients, 'patient')} these numbers describe these scans; they are no performance."


def synthetic_note(n_synthetic: int, n: int, what: str = "scan") -> str:
    """Say of what is shown that it was simulated."""
    if not n_synthetic:
        return ""
    which = f"all {what}s were" if n_synthetic == n else f"{n_synthetic} of {n} {what}s were"
    which = f"this {what} was" if n == 1 else which
    return f"Synthetic data: {which} simulated; no person was scanned, and no number here is a clinical result."


def _digest(text: str) -> str:
    """Name a script or style in the words of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _render(template: str, **values: Any) -> str:
    return _compiled(template).render(**values)


@cache
def _compiled(template: str) -> Any:
    return import_optional("jinja2").Environment(autoescape=True).from_string(template)


def _safe(html: str) -> Markup:
    import_optional("jinja2")  # which brings markupsafe, or says how to install both
    from markupsafe import Markup

    return Markup(html)
