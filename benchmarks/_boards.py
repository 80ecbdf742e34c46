"""What boards of claims share: digests of code, what is finished of a run, its options, tables of claims."""

import ast
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import joblib
import pandas as pd

from benchmarks import _measure as measure
from benchmarks.claims.claim_board import NOT_SIMULATED, OPEN, board_sentence
from dmrifit.io.atomic_files import whole_file, write_text
from dmrifit.io.digests import digest

ROOT = Path(__file__).parents[1]
#: How much wider the margins are that the verdicts are also given for.
FACTORS = (0.5, 1.0, 2.0)
_TEXTS = ("reading", "where", "quantity", "relation", "against", "margin")
# The same in all rows of a board.
_SHARED = ["condition", "run"]
#: Options of boards whose trainings run in several processes.
N_JOBS = {"--n-jobs": {"type": int, "default": 2, "help": "processes, of one thread each"}}


def code_digest(*rooms: str) -> str:
    """Digest the statements of rooms, or single modules, by dotted name, whatever their comments and layout."""
    modules = []
    for name in rooms:
        place = ROOT.joinpath(*name.split("."))
        modules += sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return digest(sorted(ast.dump(ast.parse(path.read_text(encoding="utf-8"))) for path in modules))


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


def part(figures: pd.DataFrame, **tables: pd.DataFrame) -> dict[str, Any]:
    """Give what is kept of a board with one condition and run: figures of claims and other tables, as CSV."""
    shared = dict(figures.loc[0, _SHARED]) if len(figures) else {}
    tables["figures"] = figures.drop(columns=_SHARED)
    return shared | {name.replace("_", " "): lines(table) for name, table in tables.items()}


def lines(table: pd.DataFrame) -> list[str]:
    return table.to_csv(index=False, float_format="%.6g").splitlines()


def read_tables(paths: Sequence[Path], name: str) -> pd.DataFrame:
    """Put the tables of boards together: their figures or the scores that rank algorithms."""
    tables = []
    for path in paths:
        board = measure.stored(path)
        table = pd.read_csv(StringIO("\n".join(board[name])), dtype=dict.fromkeys(_TEXTS, str))
        texts = {column: "" for column in _TEXTS if column in table}
        tables.append(table.fillna(texts).assign(**{key: board[key] for key in _SHARED}))
    return pd.concat(tables, ignore_index=True)


def decided(paths: Sequence[Path], decide: Callable[..., pd.DataFrame], margins: Any) -> dict[str, Any]:
    """Decide claims by the figures of boards, and with margins of other widths."""
    figures = read_tables(paths, "figures")
    return {
        "margins": {name: vars(margin) for name, margin in margins.items()},
        "verdicts_by_margin": {
            str(factor): verdicts_of(decide(figures, factor=factor)) for factor in FACTORS
        },
        "claims": json.loads(decide(figures).to_json(orient="records")),
    }


def verdicts_of(board: pd.DataFrame) -> dict[str, object]:
    """List the verdicts of a board, and count those left open."""
    claims = board.set_index("claim")["verdict"]
    testable = claims[claims != NOT_SIMULATED]
    return {
        "claims": {str(number): verdict for number, verdict in claims.items()},
        "n_testable": len(testable),
        "n_open": int((testable == OPEN).sum()),
    }


def open_sentence(result: dict[str, Any]) -> str:
    """Say by margin how many claims are left open."""
    shares = {
        factor: f"{entry['n_open']} of {entry['n_testable']}"
        for factor, entry in result["verdicts_by_margin"].items()
    }
    return (
        f"Claims left open: {shares['1.0']} that can be tested here; {shares['0.5']} at half, "
        f"{shares['2.0']} at double margins."
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
