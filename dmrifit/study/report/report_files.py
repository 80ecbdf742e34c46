"""The report of a comparison as an object: the path of its page, with what the page says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmrifit._utils.html_repr import html_summary

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Report"]

# Before Python 3.12 only the class of this system can be derived from.
_Path: type[Path] = type(Path())


class Report(_Path):  # type: ignore[misc, valid-type]
    """
    The page of a comparison: a path, with `title`, `sentences` and `frames`.

    Paths made of it, such as its parent, are plain ones.
    """

    title: str
    sentences: tuple[str, ...]
    frames: dict[str, pd.DataFrame]

    @classmethod
    def of(
        cls, path: Path, title: str, sentences: Sequence[str], frames: Mapping[str, pd.DataFrame]
    ) -> Report:
        """Make a report of the path of its page, its first sentences and its tables by name."""
        report = cls(path)
        report.title, report.sentences = title, tuple(sentences)
        report.frames = dict(frames)
        return report

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:
        """Make a plain path, as a parent or sibling of the page is no report."""
        return Path(*segments)

    @property
    def path(self) -> Path:
        """The page."""
        return Path(str(self))

    def frame(self, name: str) -> pd.DataFrame:
        """
        Give a table of the report.

        Parameters
        ----------
        name : str
            Such as "headline", "skill" or "parameters"; a wrong name lists all.

        Returns
        -------
        DataFrame
            A copy.

        Raises
        ------
        ValueError
            If the report has no table of that name.
        """
        if name not in self.frames:
            raise ValueError(f"no table {name!r} in {self}; choose from {', '.join(self.frames)}")
        return self.frames[name].copy()

    def markdown(self) -> str:
        """
        Write the first lines of the report: title, sentences, table of skill.

        Returns
        -------
        str
            Markdown, with a table.
        """
        table = self.frames["headline"]
        lines = [f"# {self.title}", "", *(f"{sentence}\n" for sentence in self.sentences)]
        for cells in (list(table), ["---"] * len(table.columns), *table.itertuples(index=False)):
            lines.append(
                f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
            )
        return "\n".join([*lines, "", f"[{self.name}]({self.name})", ""])

    def _repr_html_(self) -> str:
        table = self.frames["headline"]
        rows = table.itertuples(index=False)
        return html_summary(self.title, list(table), rows, note="; ".join(self.sentences))
