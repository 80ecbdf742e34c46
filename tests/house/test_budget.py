"""The project does not grow unnoticed: lines of code by room, as stored in a table."""

import ast
import csv
import io
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).parent / "data" / "budget.csv"
#: Lines below its budget at which a folder's row has to be lowered.
SLACK = 40
#: Row of the names that the applications import from dmrifit, and of the modules that have them.
DOOR = "names for applications"
LAYOUT = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
)  # fmt: skip


def code_lines(source):
    """Count the lines with a token that is neither docstring nor comment."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = set()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def measured():
    """Give lines of code and number of modules of each room, of the benchmarks and of the tests."""
    lines, modules = Counter(), Counter()
    for top in ("dmrifit", "placement", "anomaly", "metastasis", "benchmarks", "tests"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            is_room = top not in ("benchmarks", "tests") and len(parts) > 2
            folder = "/".join(parts[:2]) if is_room else top
            lines[folder] += code_lines(path.read_bytes())
            modules[folder] += 1
    # One row more: names of dmrifit, in place of lines, that the applications import.
    imported = door()
    lines[DOOR], modules[DOOR] = sum(map(len, imported.values())), len(imported)
    return {folder: (lines[folder], modules[folder]) for folder in lines}


def door():
    """Give the names of dmrifit that the applications import, by module."""
    names = {}
    for top in ("placement", "anomaly", "metastasis"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dmrifit":
                    names.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return names


def budget():
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row["folder"]: (int(row["lines of code"]), int(row["modules"])) for row in csv.DictReader(file)}


def test_no_room_is_above_its_budget_and_savings_lower_it():
    found, allowed = measured(), budget()
    assert sorted(found) == sorted(allowed)
    wrong = []
    for folder, (lines, modules) in found.items():
        most_lines, most_modules = allowed[folder]
        if lines > most_lines or modules > most_modules or lines < most_lines - (0 if folder == DOOR else SLACK):
            wrong.append(f"{folder},{lines},{modules} instead of {most_lines},{most_modules}")
    if wrong:
        pytest.fail(f"change these rows of {TABLE.name}:\n" + "\n".join(wrong))
