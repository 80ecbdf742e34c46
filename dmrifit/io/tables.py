"""Small tables of text that users write: manifests, lists of scans, names of labels."""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmrifit._utils.text_files import check_file, read_text
from dmrifit.io.atomic_files import check_finished

if TYPE_CHECKING:
    import pandas as pd

#: Table of cases that is written, and that stands for the folder in which it is.
TABLE = "cases.tsv"

#: Cells of missing values.
NOTHING = ("", "n/a", "N/A", "nan")

#: Words of columns that are true or false.
WORDS = {"true": True, "yes": True, "1": True, "": False, "false": False, "no": False, "0": False}

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
    import pandas as pd

    path = Path(path)
    check_finished(path.parent, path.name)
    check_file(path, "table")
    separator, separators = ("\t", "tabs")
    if path.suffix.lower() == ".csv":
        separator, separators = (",", "commas")
    content = read_text(path)
    # Blank lines before the titles would be taken for them.
    body = re.sub(r"\A\s*\n", "", content)
    first = 2 + content.count("\n") - body.count("\n")
    text = io.StringIO(body, newline="")
    titles = body.partition("\n")[0]
    if ";" in titles and separator not in titles:
        raise ValueError(f"{path}: columns are separated by semicolons; save with {separators}")
    try:
        # With a header, pandas renames columns that have the same name.
        titles, *lines = pd.read_csv(
            text, sep=separator, header=None, dtype=str, keep_default_na=False,
            skipinitialspace=True, skip_blank_lines=False,
        ).to_numpy().tolist()  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(
            f"{path}: not a table of text columns ({problem}); "
            f"give each row as many values, separated by {separators}"
        ) from None
    columns = [_without_apostrophe(title.strip()) for title in titles]
    columns = [(aliases or {}).get(name, name) for name in columns]
    repeated = sorted(name for name, n in Counter(columns).items() if name and n > 1)
    if repeated:
        raise ValueError(f"{path}: more than one column {', '.join(repeated)}; keep one")
    missing = [column for column in required if column not in columns]
    unknown = [column for column in columns if strict and column not in (*required, *optional)]
    if missing or unknown:
        problem = "no" if missing else "unknown"
        needed = ", ".join(required)
        if {*missing} & {name.lower() for name in columns}:
            needed += " (in small letters)"
        if optional:
            needed += f" and optionally {', '.join(optional)}"
        raise ValueError(
            f"{path}: {problem} column {', '.join(missing or unknown)} in "
            f"{textwrap.shorten(', '.join(columns), 120, placeholder='…')}; "
            f"needed are {needed}, separated by {separators}"
        )
    rows = []
    for line, texts in enumerate(lines, start=first):
        if not any(texts):
            continue
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


def read_synthetic(row: Mapping[str, str]) -> bool:
    """Read from a row of a table whether its scan was simulated."""
    word = row.get("synthetic", "")
    if word.lower() not in WORDS:
        raise ValueError(f"synthetic must be true or false, not {word!r}")
    return WORDS[word.lower()]


def csv_text(table: pd.DataFrame, digits: int | None = None, *, missing: str = "") -> str:
    """Write a table of results, separated by commas, so that no spreadsheet runs its texts."""
    return table_text(table, digits, separator=",", missing=missing)


def table_text(
    table: pd.DataFrame, digits: int | None = 10, *, separator: str = "\t", missing: str = "n/a"
) -> str:
    """Write a table of results, separated by tabs, so that no spreadsheet runs its texts."""
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


def save_table(table: pd.DataFrame, path: Path, digits: int | None = None) -> None:
    """Write a table of results, by tabs if it is a .tsv, to a path that nothing reads yet."""
    make_text = table_text if path.suffix.lower() == ".tsv" else csv_text
    path.write_text(make_text(table, digits), encoding="utf-8")


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
    import pandas as pd

    path = Path(path)
    table, text = pd.DataFrame(columns=list(columns)), ""
    if path.exists():
        text = path.read_bytes().decode("utf-8")
        table = read_texts(io.StringIO(text, newline=""))
    titles = {aliases.get(title.strip(), title.strip()): title for title in table}
    for name in columns:
        if any(row.get(name) for row in rows):
            titles.setdefault(name, name)
    added = [{title: row.get(name) or None for name, title in titles.items()} for row in rows]
    table = pd.concat([table, pd.DataFrame(added, dtype=object)], ignore_index=True)
    written = table_text(table)
    # As spreadsheets wrote the table: with a byte order mark, and their ends of lines.
    if text.startswith("\ufeff"):
        written = f"\ufeff{written}"
    if text.partition("\n")[0].endswith("\r"):
        written = written.replace("\n", "\r\n")
    return written, {name: title.strip() for name, title in titles.items() if name in columns}


def named_file(folder: Path, name: str, where: str, problem: str = "does not exist") -> Path:
    """Find a file that a table names; `problem` is said of one that is missing."""
    path = folder / name
    if not path.is_file():
        problem = "is a folder" if name and path.is_dir() else problem
        if path.is_symlink() and not path.exists():
            problem = "is a link to a missing file (of git-annex: datalad get fetches it)"
        if "," in name and number_in(name.replace(",", ".")) is not None:
            problem += " (a number has a decimal point, not a comma)"
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
