"""What boards of claims share: digests of code, what is finished of a run, its options, tables of claims."""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import joblib

from benchmarks import _measure as measure
from dmrifit.io.atomic_files import whole_file, write_text
from dmrifit.stats.claim_board import board_sentence

ROOT = Path(__file__).parents[1]


def room_modules(*rooms: str) -> list[Path]:
    """List the modules of rooms, or single modules, by dotted name."""
    modules = []
    for name in rooms:
        place = ROOT.joinpath(*name.split("."))
        modules += sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return modules


def timed(function: Any, *arguments: Any, **options: Any) -> tuple[Any, float]:
    begun = time.process_time()
    found = function(*arguments, **options)
    return found, round(time.process_time() - begun, 2)


class Store:
    """What is finished of a board, in a folder that is named by what it depends on."""

    def __init__(self, work: Path, name: str, depends: Any) -> None:
        self.name = name
        self.folder = (
            work / f"{name}-{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:10]}"
        )
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name.replace(', ', '_').replace(' ', '-')}.{ending}"

    def made(self, name: str, make: Callable[[], Any], *, compress: int = 0) -> Any:
        """Read what was made before, or make it."""
        path = self.path(name, "pickle")
        if not path.exists():
            with whole_file(path) as part:
                joblib.dump(make(), part, compress=compress)
        return joblib.load(path)

    def keep(self, name: str, save: Callable[[Any], None], seconds: dict[str, float]) -> None:
        """Keep arrays, as `save` writes them to a stream, and how long they took."""
        with whole_file(self.path(name, "npz")) as part, part.open("wb") as stream:
            save(stream)
        write_text(self.path(name, "json"), json.dumps(seconds))

    def done(self, name: str) -> bool:
        return self.path(name, "json").exists() and self.path(name, "npz").exists()

    def seconds(self, name: str) -> dict[str, float]:
        return measure.stored(self.path(name, "json"))

    def evaluated(self, depends: Any, evaluate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Read an evaluation that depends on the same, or make it."""
        path, key = self.path("evaluation", "pickle"), json.dumps(depends)
        if path.exists() and (kept := joblib.load(path))["key"] == key:
            return kept
        found, seconds = timed(evaluate)
        found |= {"key": key, "evaluation_s": round(seconds, 1)}
        with whole_file(path) as part:
            joblib.dump(found, part)
        print(f"{self.name}: evaluated, {seconds:.0f} s", flush=True)
        return found


def options(
    description: str, result: Path, seeds: Sequence[int], sizes: Collection[str]
) -> argparse.ArgumentParser:
    """Make the options of a board whose trainings run in several processes."""
    parser = measure.options(description, result, seeds=seeds, quick=False)
    parser.add_argument(
        "--size", choices=sizes, default="full", help="smaller ones learn for a shorter time"
    )
    parser.add_argument("--n-jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument(
        "--inference", action="store_true", help="only measure speed, for the stored result"
    )
    return parser


def write(result: dict[str, Any], out: Path) -> None:
    """Write a board; the speed that was measured before stays."""
    before = measure.stored(out)
    measure.write(
        result | {key: value for key, value in before.items() if key.startswith("inference")}, out
    )


def claims_table(claims: Sequence[dict[str, Any]], *, reasons: bool = False) -> str:
    """Write the verdicts as a sentence and a table, with their reasons or with figures and rules."""
    header = ["", "claim", "the study", "here"]
    header += ["found in the numbers"] if reasons else ["ours", "rule"]
    rows = []
    for row in claims:
        cells = [str(row["claim"]), row["statement"], row["study"], row["verdict"]]
        if reasons:
            # All of the reason is in the JSON.
            cells.append(measure.cell(row["reason"].splitlines()[0], 330))
        else:
            cells += [measure.cell(row["ours"], 420), measure.cell(row["rule"], 300)]
        rows.append(cells)
    return f"{board_sentence(claims)}\n\n{measure.table(header, rows)}"


def large(n: int) -> str:
    """Write a large whole number in groups of three digits."""
    return f"{n:,}".replace(",", " ")
