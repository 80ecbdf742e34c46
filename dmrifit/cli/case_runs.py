"""Runs over many cases: parts that are finished, tables of all cases, pictures on their page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dmrifit.cli.console import finished_part, progress

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = ["join_tables", "picture_parts", "run_parts", "table_text"]

_Part = TypeVar("_Part")


def run_parts(
    parts: Iterable[_Part],
    describe: Callable[[_Part], Path],
    make: Callable[[_Part], dict[str, Any]],
    *,
    fields: Mapping[str, type | tuple[type, ...]],
    same: Callable[[_Part, dict[str, Any]], bool],
    overwrite: bool,
) -> list[dict[str, Any]]:
    """Do what an earlier run has not finished."""
    contents, listed = [], list(parts)
    for part in progress(listed, len(listed)):
        before = None if overwrite else finished_part(describe(part), fields)
        contents.append(before if before is not None and same(part, before) else make(part))
    return contents


def join_tables(
    contents: Sequence[Mapping[str, Any]], tables: Iterable[pd.DataFrame]
) -> pd.DataFrame:
    """Join the tables of cases to one that names them."""
    import pandas as pd

    named = []
    for content, table in zip(contents, tables, strict=True):
        table = table.copy()
        table.insert(0, "name", content["name"])
        table.insert(1, "patient", content["patient"])
        named.append(table)
    return pd.concat([one for one in named if len(one)] or named[:1], ignore_index=True)


def table_text(table: pd.DataFrame, digits: int = 10) -> str:
    """Write a table of results."""
    return table.to_csv(sep="\t", index=False, na_rep="n/a", float_format=f"%.{digits}g")


def picture_parts(
    folder: Path, picture: str, view: str, alt: str, *, width: int = 1000
) -> list[Markup]:
    """Show the picture of a case on the page of a run, and link to its viewer."""
    from dmrifit.report.html import html_figure, html_link

    parts = []
    if (folder / picture).exists():
        parts.append(html_figure((folder / picture).read_bytes(), alt, width=width))
    if (folder / view).exists():
        parts.append(html_link(f"{folder.name}/{view}", "Move through the planes"))
    return parts
