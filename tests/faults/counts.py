"""Counts of faults tried and of what went wrong, by kind, in a file that the documentation reads."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json"
COLUMNS = ("tried", "traceback", "misleading", "silent", "half_written")


def kind_of_complaint(complaint: str) -> str:
    """Tell which column a complaint of the corpus belongs to."""
    if complaint.startswith(("a traceback", "the exit code")):
        return "traceback"
    if complaint.startswith("left behind"):
        return "half_written"
    if complaint.startswith(("was accepted", "the result does not obey", "nothing was said")):
        return "silent"
    return "misleading"


class Tally:
    """Trials by kind and what was wrong with them, which is told as it comes."""

    def __init__(self) -> None:
        self.rows: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, kind: str, trial: str, complaints: list[str], n: int = 1) -> None:
        """Count a trial, or several at once."""
        row = self.rows[kind]
        row["tried"] += n
        row.update({kind_of_complaint(complaint) for complaint in complaints})
        for complaint in complaints:
            print(f"WRONG {trial}: {complaint}", flush=True)

    def wrong(self) -> int:
        """Tell how many trials went wrong, one counting for each kind of complaint."""
        return sum(row.total() - row["tried"] for row in self.rows.values())


def store(part: str, rows: Mapping[str, Mapping[str, int]], path: Path = RESULTS, **more: object) -> None:
    """Replace the rows of one part, and what more was measured, with the commit they were counted on."""
    sys.path.append(str(RESULTS.parents[2]))
    from benchmarks._measure import commit

    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    counted = {kind: {column: row.get(column, 0) for column in COLUMNS} for kind, row in sorted(rows.items())}
    content[part] = {**commit(*PACKAGES, "tests/faults"), "kinds": counted, **more}
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
