"""Small tables of text that users write: manifests, lists of scans, names of labels."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from dmrifit._utils.text_files import read_text

__all__ = ["NOTHING", "named_file", "read_rows", "table_with"]

#: What stands for nothing in a cell.
NOTHING = ("", "n/a", "N/A", "nan")


def read_rows(
    path: str | Path,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    strict: bool = False,
    aliases: Mapping[str, str] | None = None,
) -> list[tuple[int, dict[str, str]]]:
    """Read a small table of text."""
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; check its name and folder")
    separator, word = (",", "commas") if path.suffix.lower() == ".csv" else ("\t", "tabs")
    text = read_text(path)
    try:
        with warnings.catch_warnings():
            # Without this, values beyond the last column are dropped with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            options = {"dtype": str, "keep_default_na": False, "skipinitialspace": True}
            # With a header, pandas would give columns of one name other names.
            titles = pd.read_csv(
                io.StringIO(text, newline=""), sep=separator, header=None, nrows=1, **options
            ).iloc[0]
            frame = pd.read_csv(
                io.StringIO(text, newline=""), sep=separator, index_col=False, **options
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(
            f"{path}: not a table of text columns ({problem}); give each row as many values, separated by {word}"
        ) from None
    named = [(aliases or {}).get(name.strip(), name.strip()) for name in titles]
    if twice := sorted({name for name in named if name and named.count(name) > 1}):
        raise ValueError(f"{path}: more than one column {', '.join(twice)}; keep one")
    frame = frame.rename(columns=lambda name: (aliases or {}).get(name.strip(), name.strip()))
    missing = [column for column in required if column not in frame]
    unknown = [column for column in frame if strict and column not in (*required, *optional)]
    if missing or unknown:
        problem = (
            f"no column {', '.join(missing)}"
            if missing
            else f"unknown column {', '.join(unknown)}"
        )
        needed = ", ".join(required) + (
            f" and optionally {', '.join(optional)}" if optional else ""
        )
        raise ValueError(
            f"{path}: {problem} in {_shortened(', '.join(frame))}; needed are {needed}, separated by {word}"
        )
    rows = []
    for line, record in enumerate(frame.to_dict("records"), start=2):
        row = {
            name: "" if text.strip() in NOTHING else text.strip() for name, text in record.items()
        }
        empty = [column for column in required if not row[column]]
        if empty:
            raise ValueError(f"{path}, row {line}: no {empty[0]}; every row needs one")
        rows.append((line, row))
    if not rows:
        raise ValueError(f"{path}: the table has a header and no row; write one for each item")
    return rows


def table_with(
    path: str | Path,
    rows: Sequence[Mapping[str, str]],
    *,
    columns: Sequence[str],
    aliases: Mapping[str, str],
) -> tuple[str, dict[str, str]]:
    """
    Make the text of a tab-separated table with further rows; the lines that are there stay as they
    are.
    """
    path = Path(path)
    text = path.read_bytes().decode("utf-8") if path.exists() else _line(columns)
    physical = list(io.StringIO(text, newline=""))
    records = csv.reader(physical, delimiter="\t")
    header = [name.strip("\ufeff ") for name in next(records)]
    column_of = {name: aliases.get(name, name) for name in header}
    added = [
        name
        for name in columns
        if name not in column_of.values() and any(row.get(name) for row in rows)
    ]
    lines = ["\t".join([_ended(physical[: records.line_num]), *added])]
    first = records.line_num
    for record in records:
        missing = len(header) + len(added) - len(record) if record else 0
        lines.append("\t".join([_ended(physical[first : records.line_num]), *["n/a"] * missing]))
        first = records.line_num
    column_of |= {name: name for name in added}
    lines += [
        _ended([_line([row.get(column) or "n/a" for column in column_of.values()])])
        for row in rows
    ]
    end = "\r\n" if physical[0].endswith("\r\n") else "\n"
    return end.join(lines) + end, {
        column: name for name, column in column_of.items() if column in columns
    }


def named_file(folder: Path, name: str, where: str) -> Path:
    """Find a file that a table names."""
    path = folder / name
    if not path.is_file():
        wrong = "is a folder" if name and path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{where} {name!r} {wrong}; paths are relative to {folder.resolve()}"
        )
    return path


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"


def _line(values: Sequence[str]) -> str:
    """Write one line of a table; values with a quotation mark are quoted, so that it comes back."""
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerow(values)
    return text.getvalue()


def _ended(lines: Sequence[str]) -> str:
    return "".join(lines).rstrip("\r\n")
