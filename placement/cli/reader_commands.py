"""The command reader: a page on which experts place boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dmrifit._utils.counts import counted
from dmrifit.cli.console import OverwriteOption, check_output, progress
from placement.cli.options import CasesArgument, IncludeOption, labels_of

__all__ = ["EXAMPLES", "reader"]


def reader(
    cases: CasesArgument,
    out: Annotated[Path, typer.Option(help="Page (.html) to write.")],
    proposals: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Table of boxes, such as placements.tsv of place, that readers correct.",
        ),
    ] = None,
    include: IncludeOption = None,
    n: Annotated[
        int, typer.Option(min=1, help="Cases to show, drawn by the seed where there are more.")
    ] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of cases and order.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """
    Write a page on which an expert places a box in each case with the mouse.

    One HTML file that needs no network. Readers see numbers instead of names, and not where a
    proposed box comes from. What they save is the table EXPERTS that evaluate reads; tables of
    several readers are joined below each other.
    """
    import numpy as np

    from dmrifit.io.atomic_files import write_text
    from placement.box.voxel import Voxel
    from placement.exchange.tables import read_boxes, read_cases, read_scene
    from placement.study.reader_page import reader_page

    if out.suffix.lower() != ".html":
        raise ValueError(f"--out {out} is a page; give a name that ends in .html")
    check_output(out, overwrite)
    table = read_cases(cases)
    if len(table) > n:
        rng = np.random.default_rng(seed)
        table = table.iloc[np.sort(rng.choice(len(table), n, replace=False))]
    names = list(table["name"])
    voxels = {}
    if proposals is not None:
        boxes = read_boxes(proposals, names)
        voxels = {name: Voxel.from_array(box) for name, box in zip(names, boxes, strict=True)}
    labels = labels_of(include)
    rows = progress(table.itertuples(), len(table))
    scenes = [read_scene(row, include=labels) for row in rows]
    write_text(out, reader_page(scenes, proposals=voxels, random_state=seed))
    typer.echo(f"{counted(len(scenes), 'case')}: {out}")


#: Commands, with the line that their help shows.
EXAMPLES: dict[Callable[..., None], str] = {
    reader: "dmrifit-placement reader cases/cases.tsv --out reader.html",
}
