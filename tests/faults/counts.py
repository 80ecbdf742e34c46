"""Counts of faults tried and of what went wrong, by kind, in a file that the documentation reads."""

from __future__ import annotations

import json
import sys
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


def store(part: str, rows: Mapping[str, Mapping[str, int]], path: Path = RESULTS, **more: object) -> None:
    """Replace the rows of one part, and what more was measured, with the commit they were counted on."""
    sys.path.append(str(RESULTS.parents[2]))
    from benchmarks._measure import commit

    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    counted = {kind: {column: row.get(column, 0) for column in COLUMNS} for kind, row in sorted(rows.items())}
    content[part] = {**commit(*PACKAGES, "tests/faults"), "kinds": counted, **more}
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
