"""How benchmarks run: their command, parts that are kept and not repeated, and pages filled from templates."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import joblib
import numpy as np

from benchmarks import _boards as boards
from benchmarks import _measure as measure

PAGES = Path(__file__).parent / "pages"
NOTHING = "–"


def main(
    run: Callable[[argparse.Namespace], dict[str, Any]],
    result: Path,
    *,
    markdown: Callable[[dict[str, Any]], str] | None = None,
    code: Sequence[str] = ("dmrifit",),
    packages: Sequence[str] = (),
    seeds: Sequence[int] = (),
    quick: bool = True,
    options: Mapping[str, dict[str, Any]] | None = None,
    shared: bool = False,
) -> None:
    """
    Run a benchmark by its options, and write what it finds with the question and the origin.

    `options` are those of its own; `shared` adds to what is stored already. What is printed is
    the page, by the template of the result's name where there is no `markdown`.
    """
    script = sys.modules[run.__module__]
    question = str(script.__doc__).strip().split("\n\n")[0].replace("\n", " ")
    parser = measure.options(question, result, seeds=seeds, quick=quick)
    for name, settings in (options or {}).items():
        parser.add_argument(name, **settings)
    chosen = measure.chosen(parser, None, result)
    # Before the work, during which the code may change.
    origin = measure.provenance(
        str(script.__file__),
        *code,
        # The origin names --quick itself.
        words=[word for word in sys.argv[1:] if word != "--quick"],
        packages=packages,
        quick=chosen.quick if quick else None,
    )
    before = measure.stored(chosen.out) if shared else {}
    content = before | {"question": question, **origin, **run(chosen)}
    measure.write(content, chosen.out)
    content = measure.stored(chosen.out)
    print(markdown(content) if markdown else page(result.stem, content))


# Parts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of a result, such as one seed in one world: a file, what it was run with, what makes it."""

    name: str
    board: dict[str, Any]
    make: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


def finished(
    parts: Iterable[Part], folder: Path, *, n_jobs: int = 1, key: str = "board"
) -> list[Path]:
    """
    Make the parts that have no file in the folder yet, and give the files of all.

    A file that was run with other settings, kept under `key`, ends the program.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(part, folder / f"{part.name.replace(' ', '-')}.json", key) for part in parts]
    for part, path, _ in tasks:
        board = json.loads(json.dumps(part.board))
        if path.exists() and _dimensions(measure.stored(path).get(key, {})) != _dimensions(board):
            raise SystemExit(f"{path} is of a board of another size: remove it to run it again")
    joblib.Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch=n_jobs)(
        joblib.delayed(_finish)(*task) for task in tasks
    )
    return [path for _, path, _ in tasks]


def _finish(part: Part, path: Path, key: str) -> None:
    if path.exists():
        return
    content = part.make(*part.arguments)
    measure.write({"synthetic": True, **content, key: part.board}, path)
    print(f"finished {path.stem}", flush=True)


def _dimensions(board: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the sentence on why a board is that large, which may be written anew."""
    return {name: value for name, value in board.items() if name != "why"}


# Pages -------------------------------------------------------------------------------------------


def page(name: str, result: dict[str, Any], **more: Any) -> str:
    """Fill the template of a page, `pages/NAME.md`, with the values of a result and more of them."""
    template = _templates().get_template(f"{name}.md")
    text = template.render(result, result=result, **more).strip()
    return re.sub(r"\n{3,}", "\n\n", text)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "columns": columns,
        "zip": zip,
        "claims_table": boards.claims_table,
        "open_claims": boards.open_sentence,
    }
    environment.filters |= {"f": written, "over": measure.over_runs, "cell": measure.cell}
    environment.filters |= {"mean": lambda values: np.mean([*values]), "median": np.median}
    environment.filters |= {"large": boards.large, "whole": lambda value: f"{round(value):+d}"}
    return environment


def columns(*names: str) -> str:
    """Write the head of a table in Markdown."""
    return measure.table(names, [])


def written(value: float | None, form: str = "") -> str:
    """Write a number, with a space before %; a dash where there is none."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return NOTHING
    if form.endswith("%"):
        return f"{100 * value:{form[:-1]}f} %"
    return format(value, form)
