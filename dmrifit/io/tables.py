"""Small tables of text that users write: manifests, lists of scans, names of labels."""

from __future__ import annotations

import csv
import io
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmrifit._utils.text_files import check_file, read_text
from dmrifit.io.atomic_files import check_finished

if TYPE_CHECKING:
    import pandas as pd

#: Cells of missing values.
NOTHING = ("", "n/a", "N/A", "nan")

# Spreadsheets run cells that begin so, but an apostrophe before them makes them text.
_FORMULA = re.compile(r"'*\s*[=+\-@＝＋－＠]")


def read_rows(
    path: str | Path,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    strict: bool = False,
    aliases: Mapping[str, str] | None = None,
    verbatim: Sequence[str] = (),
) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a small table of text, each with its line; keep blanks in some columns."""
    path = Path(path)
    check_finished(path.parent, path.name)
    check_file(path, "table")
    separator, separators = "\t", "tabs"
    if path.suffix.lower() == ".csv":
        separator, separators = ",", "commas"
    titles, frame = _parsed(path, separator, separators)

    def column_name(title: str) -> str:
        name = _without_apostrophe(title.strip())
        return (aliases or {}).get(name, name)

    counts = Counter(column_name(title) for title in titles)
    repeated = sorted(name for name, n in counts.items() if name and n > 1)
    if repeated:
        raise ValueError(f"{path}: more than one column {', '.join(repeated)}; keep one")
    columns = [column_name(title) for title in frame]
    problem = ""
    missing = [column for column in required if column not in columns]
    unknown = [column for column in columns if strict and column not in (*required, *optional)]
    if missing:
        problem = f"no column {', '.join(missing)}"
    elif unknown:
        problem = f"unknown column {', '.join(unknown)}"
    if problem:
        needed = ", ".join(required)
        if optional:
            needed += f" and optionally {', '.join(optional)}"
        raise ValueError(
            f"{path}: {problem} in {textwrap.shorten(', '.join(columns), 120, placeholder='…')}; "
            f"needed are {needed}, separated by {separators}"
        )
    rows = []
    for line, texts in enumerate(frame.to_numpy().tolist(), start=2):
        row = {}
        for name, text in zip(columns, texts, strict=True):
            stripped = text.strip()
            value = _without_apostrophe(stripped)
            if name in verbatim and value == stripped:
                value = text
            row[name] = "" if stripped in NOTHING else value
        empty = [column for column in required if not row[column]]
        if empty:
            raise ValueError(f"{path}, row {line}: no {empty[0]}; every row needs one")
        rows.append((line, row))
    if not rows:
        raise ValueError(f"{path}: the table has a header and no row; write one for each item")
    return rows


def _parsed(path: Path, separator: str, separators: str) -> tuple[list[str], pd.DataFrame]:
    """Parse a table without interpreting its cells; also return its titles as they are written."""
    import pandas as pd

    text = read_text(path)
    options: dict[str, Any] = {
        "sep": separator,
        "dtype": str,
        "keep_default_na": False,
        "skipinitialspace": True,
    }
    try:
        with warnings.catch_warnings():
            # Without this, values beyond the last column are dropped with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # With a header, pandas renames columns that have the same name.
            header = pd.read_csv(io.StringIO(text, newline=""), header=None, nrows=1, **options)
            frame = pd.read_csv(io.StringIO(text, newline=""), index_col=False, **options)
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(
            f"{path}: not a table of text columns ({problem}); "
            f"give each row as many values, separated by {separators}"
        ) from None
    return list(header.iloc[0]), frame


def table_text(table: pd.DataFrame, digits: int | None = 10) -> str:
    """Write a table of results, separated by tabs, so that no spreadsheet runs its texts."""
    return _written(table, "\t", "n/a", digits)


def csv_text(table: pd.DataFrame, digits: int | None = None, *, missing: str = "") -> str:
    """Write a table of results, separated by commas, so that no spreadsheet runs its texts."""
    return _written(table, ",", missing, digits)


def _written(table: pd.DataFrame, separator: str, missing: str, digits: int | None) -> str:
    import pandas as pd

    table = table.rename(columns=_with_apostrophe)
    for column in table.select_dtypes(exclude=["number", "bool"]):
        cells = [_with_apostrophe(value) for value in table[column]]
        table[column] = pd.Series(cells, table.index, dtype=object)
    text = table.to_csv(
        sep=separator,
        index=False,
        na_rep=missing,
        float_format=None if digits is None else f"%.{digits}g",
        # Only so does the csv module quote a cell with a carriage return, which would end its row.
        lineterminator="\r\n",
    )
    return text.replace("\r\n", "\n")


def read_texts(source: Path | io.StringIO, separator: str = "\t") -> pd.DataFrame:
    """Read a table that `table_text` or `csv_text` wrote, each cell as its text."""
    import pandas as pd

    table = pd.read_csv(source, sep=separator, dtype=str, keep_default_na=False)
    return table.rename(columns=_without_apostrophe).map(_without_apostrophe)


def table_with(
    path: str | Path,
    rows: Sequence[Mapping[str, str]],
    *,
    columns: Sequence[str],
    aliases: Mapping[str, str],
) -> tuple[str, dict[str, str]]:
    """Make the text of a tab-separated table with further rows, and map columns to its titles."""
    path = Path(path)
    text = _line(columns)
    if path.exists():
        # Not as text, which would turn the line ends of the user's table into others.
        text = path.read_bytes().decode("utf-8")
    physical = list(io.StringIO(text, newline=""))
    records = csv.reader(physical, delimiter="\t")
    header = [name.strip("\ufeff ") for name in next(records)]
    column_of = {name: aliases.get(name, name) for name in header}
    absent = [name for name in columns if name not in column_of.values()]
    added = [name for name in absent if any(row.get(name) for row in rows)]
    lines = ["\t".join([_ended(physical[: records.line_num]), *added])]
    first = records.line_num
    for record in records:
        # Lines that are there stay as they are, and empty ones stay empty.
        cells = [_ended(physical[first : records.line_num])]
        if record:
            cells += ["n/a"] * (len(header) + len(added) - len(record))
        lines.append("\t".join(cells))
        first = records.line_num
    column_of |= {name: name for name in added}
    for row in rows:
        values = [row.get(column) or "n/a" for column in column_of.values()]
        lines.append(_ended([_line(values)]))
    end = "\n"
    if physical[0].endswith("\r\n"):
        end = "\r\n"
    titles = {column: name for name, column in column_of.items() if column in columns}
    return end.join(lines) + end, titles


def named_file(folder: Path, name: str, where: str) -> Path:
    """Find a file that a table names."""
    path = folder / name
    if not path.is_file():
        problem = "is a folder" if name and path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{where} {name!r} {problem}; paths are relative to {folder.resolve()}"
        )
    return path


def number_in(text: str) -> float | None:
    """Read a number; None of another text."""
    try:
        return float(text)
    except ValueError:
        return None


def _with_apostrophe(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would run; numbers stay as they are."""
    is_run = isinstance(value, str) and _FORMULA.match(value) and number_in(value) is None
    return f"'{value}" if is_run else value


def _without_apostrophe(text: str) -> str:
    """Give a text as it was before `_with_apostrophe`."""
    return text[1:] if text[:1] == "'" and _with_apostrophe(text[1:]) != text[1:] else text


def _line(values: Sequence[str]) -> str:
    """Write one line of a table, with values that hold quotation marks in quotation marks."""
    text = io.StringIO()
    cells = [_with_apostrophe(value) for value in values]
    csv.writer(text, delimiter="\t", lineterminator="\n").writerow(cells)
    return text.getvalue()


def _ended(lines: Sequence[str]) -> str:
    return "".join(lines).rstrip("\r\n")
