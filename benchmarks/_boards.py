"""What boards of claims share: digests of code, what is finished of a run, its options, tables of claims."""

import ast
import json
import re
import time
from collections.abc import Callable, Sequence
from inspect import signature
from io import StringIO
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from benchmarks import _measure as measure
from benchmarks.claims.claim_board import NOT_SIMULATED, OPEN, board_sentence
from dmrifit._utils.randomness import Seed
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


def kept(work: Path, code: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Keep what a function returns in a folder, by its arguments, as long as the code is the same.

    The arguments are words and numbers, beside the folder itself.
    """
    memory = joblib.Memory(work / code[:10], compress=1, verbose=0)
    return memory.cache(function, ignore=list({"work"} & signature(function).parameters.keys()))


def part(figures: pd.DataFrame, **tables: pd.DataFrame) -> dict[str, Any]:
    """Give what is kept of a board with one condition and run: figures of claims and other tables, as CSV."""
    shared = dict(figures.loc[0, _SHARED]) if len(figures) else {}
    tables["figures"] = figures.drop(columns=_SHARED)
    return shared | {name.replace("_", " "): lines(table) for name, table in tables.items()}


def case_folds(n_cases: int, *, n_folds: int, random_state: int) -> np.ndarray:
    """Deal cases into folds like cards, counted from 1: (n_cases,)."""
    rng = Seed(random_state).rng("folds")
    fold = np.empty(n_cases, dtype=np.intp)
    fold[rng.permutation(n_cases)] = np.arange(n_cases) % n_folds + 1
    return fold


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
        verdict = row["verdict"]
        found = re.findall(r"\((\D+)(\d+)( seeds would tell)\)", row["reason"])
        if verdict == OPEN and found:
            # That of the condition which takes most.
            verdict += "; " + "".join(max(found, key=lambda text: int(text[1])))
        cells = [str(row["claim"]), row["statement"], row["study"], verdict]
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
