"""Pages as data: sections of texts, tables, pictures and folds, which one template draws."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from dmrifit._optional import import_optional
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.tables import csv_text
from dmrifit.report.numerals import wording

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup
    from matplotlib.figure import Figure

#: Notice in pages, files and descriptions.
NOTICE = "Research software; not for clinical use."
#: Patients below which a table says nothing about performance.
FEW = 20
PAGE = "report.html"
#: Planes of viewers, which all templates know as ``planes``: the axis of each, and what is at its
#: left, right, top and bottom.
PLANES = {"axial": (2, "RLAP"), "coronal": (1, "RLSI"), "sagittal": (0, "PASI")}

_DPI = 180
_SCREEN = 100  # CSS pixels for an inch
_ENDS_OF_WIDTH = slice(16, 20)  # bytes of a PNG file

_Block = TypeVar("_Block", bound="Block")


class Block:
    """Parts of a page, drawn by the template as the name of their class says."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __bool__(self) -> bool:
        return any(len(part) if hasattr(part, "__len__") else part for part in self.parts)

    @property
    def kind(self) -> str:
        """The name by which the template knows the class."""
        return type(self).__name__.lower()

    def all(self, kind: type[_Block]) -> Iterator[_Block]:
        """List the blocks of a class in this one, from top to bottom."""
        if isinstance(self, kind):
            yield self
        for part in self.parts:
            if isinstance(part, Block):
                yield from part.all(kind)

    def __html__(self) -> str:
        return render(self)


class Note(Block):
    """A remark in small letters."""


class Lead(Block):
    """The line that answers; of several parts the first in bold."""


class Lights(Block):
    """Two headings, and of each parameter its cells by name: see `verdict.parameter_lights`."""


class Heading(Block):
    """A heading inside a section."""


class Code(Block):
    """Lines of code."""


class Grid(Block):
    """Figures beside each other where the screen is wide enough, else below each other."""


class Columns(Block):
    """Blocks, halves of a screen beside each other where it is wide enough."""


class Fold(Block):
    """Blocks behind a title that is clicked; nothing where they are empty."""

    def __init__(self, title: str, *parts: Any) -> None:
        super().__init__(*parts)
        self.title = title


class Section(Fold):
    """Blocks under a heading: texts, tables, pictures, folds, or what is markup already."""


class Link(Block):
    """A file beside the page."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(text)
        # A leading ./ keeps a name with a colon from being taken for a protocol.
        self.address = f"./{quote(path)}"


class Numbers(Link):
    """A table that is a CSV file beside the page, in a folder."""

    def __init__(self, name: str, table: pd.DataFrame, *, folder: str = "tables") -> None:
        super().__init__(f"{folder}/{name}.csv", f"All numbers: {name}.csv")
        self.name, self.table = name, table


class Table(Block):
    """
    A table of records, whose columns are given as ``"heading {cell:.2f} | heading {cell}"``.

    Cells have the formats of `dmrifit.report.numerals.wording`. With a list of headings the rows
    are cells as they are, and `numbers` and `words` are columns of numbers and of sentences.
    Records of a `control` are faint, as are rows whose first cell is one of `controls`; columns of
    format ``w`` keep their lines. The reader can sort the rows of a `sortable` table.
    """

    sortable = False

    def __init__(
        self,
        rows: pd.DataFrame | Iterable[Any],
        columns: str | Sequence[Any] = (),
        *,
        numbers: Iterable[int] = (),
        words: Iterable[int] = (),
        controls: Collection[str] = (),
        faint: Iterable[Any] = (),
    ) -> None:
        records = rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
        self.classes = dict.fromkeys(numbers, "number") | dict.fromkeys(words, "words")
        marks = list(faint) or [isinstance(row, Mapping) and row.get("control") for row in records]
        if isinstance(columns, str):
            headings, _, cells = zip(
                *(c.partition("{") for c in columns.split(" | ")), strict=True
            )
            columns = [heading.rstrip() for heading in headings]
            for i, cell in enumerate(cells):
                if ":" in cell:
                    self.classes[i] = "words" if ":w}" in cell else "number"
            records = [[wording(f"{{{cell}", row) for cell in cells] for row in records]
        self.header = list(columns)
        marked = zip(marks, records, strict=True)
        self.faint = [mark or row[0] in controls for mark, row in marked]
        super().__init__(records)


class Picture(Block):
    """A figure, or the bytes of a PNG file; with a name it is a file beside the page, too."""

    def __init__(
        self,
        figure: Figure | bytes,
        alt: str,
        caption: Any = "",
        *,
        name: str = "",
        width: int | None = None,
    ) -> None:
        super().__init__(figure)
        self.figure, self.alt, self.caption = figure, alt, caption
        # Names of cohorts may hold what a file name cannot.
        self.name = re.sub(r"[^\w+-]+", "-", name)
        self._width = width

    @cached_property
    def png(self) -> bytes:
        """The bytes of the picture as a PNG file."""
        return self.figure if isinstance(self.figure, bytes) else png_bytes(self.figure, dpi=_DPI)

    @property
    def width(self) -> int:
        """Pixels on the screen."""
        if isinstance(self.figure, bytes):
            return self._width or int.from_bytes(self.figure[_ENDS_OF_WIDTH], "big") // 2
        return round(self.figure.get_figwidth() * _SCREEN)

    @property
    def data(self) -> str:
        """The PNG file in base64."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Page:
    """A page that needs no other file and no network; it may run and show only what is in it."""

    title: str
    sections: Sequence[Section]
    lead: str = ""
    contents: bool = False
    script: str = ""
    style: str = ""

    @cached_property
    def pictures(self) -> dict[str, Picture]:
        """Pictures that are files, by their names, of which no two are alike."""
        pictures: dict[str, Picture] = {}
        for picture in chain.from_iterable(section.all(Picture) for section in self.sections):
            name, n = picture.name, 2
            while f"{name}.png" in pictures:
                name, n = f"{picture.name}-{n}", n + 1
            if name:
                pictures[f"{name}.png"] = picture
        return pictures

    def html(self) -> str:
        """Draw the page."""
        sections = [
            (section.title, render(*section.parts)) for section in self.sections if section
        ]
        style = read_data(__file__, "page.css") + self.style
        script = self.script
        if any('class="viewer"' in body for _, body in sections):
            script = f"{viewer_script()}\n{script}"
        if any('class="sortable' in body for _, body in sections):
            script = f"{read_data(__file__, 'sort.js')}\n{script}"
        # Names in a table may come from anybody: the browser runs only what matches these digests.
        policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}"
        if script:
            policy += f"; script-src {_digest(script)}"
        # A plain text, as markup would escape what is replaced in it.
        return _compiled(read_data(__file__, "page.html")).render(
            title=self.title,
            sections=sections,
            lead=self.lead,
            contents=self.contents,
            policy=f"{policy}; base-uri 'none'; form-action 'none'",
            script=_safe(script),
            style=_safe(style),
        )

    def vectors(self) -> bytes:
        """Draw all figures into one PDF file."""
        backend = import_optional("matplotlib.backends.backend_pdf")
        buffer = io.BytesIO()
        # Without date and program the same figures are the same bytes.
        metadata = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        with backend.PdfPages(buffer, metadata=metadata) as file:
            for picture in self.pictures.values():
                # `savefig` would draw it twice; the figure keeps this canvas and its resolution.
                backend.FigureCanvasPdf(picture.figure).print_pdf(file)
        return buffer.getvalue()


class Texts:
    """Sentences and columns of pages by name: the file ``data/<module>.toml`` beside a module."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getitem__(self, name: str) -> Any:
        return _texts(self._module)[name]

    def __call__(self, name: str, /, **values: Any) -> str:
        """Write values into a text."""
        return wording(self[name], values)

    def picture(self, name: str, figure: Figure, /, **values: Any) -> Picture:
        """Make a figure a file, described by the texts ``alt``, ``caption`` and ``file``."""
        texts = {"caption": "", "file": name} | self[name]
        alt, caption, file = (wording(texts[key], values) for key in ("alt", "caption", "file"))
        return Picture(figure, alt, caption, name=file)


_TEXTS = Texts(__file__)


@contextmanager
def report_files(
    folder: str | Path, names: Sequence[str], *, overwrite: bool = False
) -> Iterator[Callable[[Mapping[str, pd.DataFrame], Page], None]]:
    """Claim a folder, and give what writes named tables and pictures and the page, all at once."""
    # A missing library, or a file of this name, is reported before the long work.
    import_optional("matplotlib", "jinja2")
    with FileSet(folder, [*names, PAGE], overwrite=overwrite) as files:

        def write(tables: Mapping[str, pd.DataFrame], page: Page) -> None:
            contents = {f"{key}.csv": csv_text(table, 7).encode() for key, table in tables.items()}
            contents |= {name: picture.png for name, picture in page.pictures.items()}
            for name in contents.keys() & names:
                files.path(name).write_bytes(contents[name])
            files.path(PAGE).write_text(page.html(), encoding="utf-8")

        yield write


def write_files(
    folder: Path, contents: Mapping[str, str | bytes], *, replaced: Sequence[str] = ()
) -> None:
    """Write files together, and remove earlier ones of these endings; make no empty folder."""
    earlier = sorted(path.name for ending in replaced for path in folder.glob(f"*.{ending}"))
    names = list(dict.fromkeys([*earlier, *contents]))
    if not names:
        return
    with FileSet(folder, names, overwrite=True) as files:
        for name, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            files.path(name).write_bytes(data)


def render(*blocks: Any) -> Markup:
    """Draw blocks: a text becomes a paragraph, and what is markup already stays as it is."""
    return fill(read_data(__file__, "page.html"), blocks=blocks)


def fill(template: str, *, data: Any = None, **values: Any) -> Markup:
    """Fill a template, with `data` for a script so that no name in them can end its element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return _safe(_compiled(template).render(data=_safe(text), **values))


@cache
def read_data(module: str, name: str) -> str:
    """Read a text file from the folder ``data`` beside a module."""
    return (Path(module).parent / "data" / name).read_text(encoding="utf-8")


@cache
def _texts(module: str) -> dict[str, Any]:
    return tomllib.loads(read_data(module, f"{Path(module).stem}.toml"))


def viewer_script() -> str:
    """Give the scripts that draw three planes, and the signals of a voxel."""
    return read_data(__file__, "voxel.js") + read_data(__file__, "viewer.js")


def png_bytes(figure: Figure, *, dpi: int = 200) -> bytes:
    """Draw a matplotlib figure as a PNG picture."""
    buffer = io.BytesIO()
    # Without the version of matplotlib, so that the same figure is the same bytes anywhere.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    # The vectors of the same figure keep its layout, which takes as long as drawing.
    figure.set_layout_engine("none")
    return buffer.getvalue()


def origin(command: str = "", rows: Iterable[Sequence[Any]] = ()) -> Table:
    """Tabulate how a page came about: date, command (by default this process's), versions."""
    from dmrifit.io.bids_derivatives import versions
    from dmrifit.io.digests import command_line

    lines: list[Sequence[Any]] = [["date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")]]
    # Files of one name in two folders look alike without them.
    label = "command (folders outside the working directory left out)"
    lines.append([label, command or command_line()])
    numbers = versions("dmrifit", "numpy", "scipy")
    lines += [*rows, *([f"version of {name}", numbers[name]] for name in numbers)]
    return Table(lines, words=[1])


def capital(text: str) -> str:
    """Begin with a capital letter; `str.capitalize` would make the others small."""
    return text[:1].upper() + text[1:]


def sentence(text: str, names: Collection[str] | None = None) -> str:
    """Begin a text with a capital letter, unless with a name, by default one with a colon."""
    # A terminal and the values of options have hyphens, which can be copied into commands.
    text = re.sub(r"(--\S+(?: -[\d.]\S*)+)| -(?=[\d.])", lambda match: match[1] or " −", text)
    first = text.split(" ", 1)[0]
    is_name = first.endswith(":") if names is None else first in names
    begun = text if is_name else capital(text)
    return f"{begun.rstrip('.?')}{'?' if text.endswith('?') else '.'}"


def few_note(n_patients: int) -> str:
    """Warn that numbers of few patients do not estimate performance."""
    return _TEXTS("few", n_patients=n_patients) if n_patients < FEW else ""


def notice_lead(synthetic: Iterable[bool], unit: str = "scan", notice: str = NOTICE) -> str:
    """Write the notice of a page, and how many of its scans were simulated."""
    flags = list(synthetic)
    n_synthetic, n = sum(flags), len(flags)
    if not n_synthetic:
        return notice
    kind = "some" if n_synthetic < n else "all" if n > 1 else "one"
    values = {"notice": notice, "unit": unit, "n_synthetic": n_synthetic, "n": n}
    return wording(_TEXTS["synthetic"][kind], values)


def _digest(text: str) -> str:
    """Name a script or style in the words of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


@cache
def _compiled(template: str) -> Any:
    environment = import_optional("jinja2").Environment(autoescape=True)
    return environment.from_string(template, globals={"planes": PLANES})


def _safe(html: str) -> Markup:
    import_optional("jinja2")  # which brings markupsafe, or says how to install both
    from markupsafe import Markup

    return Markup(html)
