"""
Commands on small synthetic input, from `commands.csv`: what they need first, and how they are called.

Commands of kind `prepared` make the input of others, by name: they run in the folder of the input, in this order. Those
that are `killed` have their results below the folder ``out``; `kept` is what a killed run has left for the next one, and
`nothing` where the command begins anew: all its files appear together in the end. Others are `spared`, and why.
"""

from __future__ import annotations

import csv
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LongCommand:
    """A command whose results are below the folder ``out``; `needs` names what has to be there first."""

    name: str
    program: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()


with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))

PREPARED: dict[str, tuple[str, tuple[str, ...]]] = {}
SPARED: dict[tuple[str, str], str] = {}
KEPT: dict[str, str] = {}
LONG: list[LongCommand] = []
for row in ROWS:
    words = tuple(shlex.split(row["words"]))
    if row["kind"] == "prepared":
        PREPARED[row["name"]] = (row["program"], words)
    elif row["kind"] == "spared":
        SPARED[row["program"], row["name"]] = row["why"]
    else:
        LONG.append(LongCommand(row["name"], row["program"], words, tuple(row["needs"].split())))
        KEPT[row["name"]] = row["kept"]
