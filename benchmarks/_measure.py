"""What measurements share: options, processor time, the machine, versions, tables in Markdown."""

import argparse
import json
import math
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_LOAD_AT_START = os.getloadavg()


def options(
    description: str, result: Path, *, seeds: Sequence[int] = (), quick: bool = True
) -> argparse.ArgumentParser:
    """Make the options that measurements share: boards, which have seeds, keep what is finished in a folder."""
    parser = argparse.ArgumentParser(description=description)
    if quick:
        parser.add_argument(
            "--quick", action="store_true", help="tiny sizes, to see that everything runs"
        )
    if seeds:
        parser.add_argument(
            "--seeds",
            type=int,
            nargs="+",
            default=list(seeds),
            help="few of them decide nothing",
        )
        work = Path("build") / result.stem
        parser.add_argument(
            "--work",
            type=Path,
            default=work,
            help="folder for what is finished (default %(default)s)",
        )
    parser.add_argument(
        "--out", type=Path, help=f"JSON to write (default {result.name} beside the other results)"
    )
    return parser


def chosen(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, result: Path
) -> argparse.Namespace:
    """Read options; what tiny sizes give never replaces a result."""
    found = parser.parse_args(arguments)
    if found.out is None and (
        getattr(found, "quick", False) or getattr(found, "size", "full") != "full"
    ):
        parser.error("small sizes show nothing worth keeping: name a file with --out")
    found.out = found.out or result
    return found


def data_folder(name: str) -> Path:
    """Find a data set of people, which is no part of this project."""
    root = os.environ.get("DMRIFIT_DATA")
    if not root:
        raise SystemExit(f"set DMRIFIT_DATA to the folder that holds the data set {name}")
    folder = Path(root) / name
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder; set DMRIFIT_DATA to the one that holds {name}")
    return folder


def processor_times(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Time functions in turn, so that all meet the same machine: seconds of processor time, all threads together."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    return seconds


def goal(limit: float, value: float, unit: str, *, at_least: bool = False) -> dict[str, object]:
    """Say whether a value reaches its limit."""
    return {
        "limit": limit,
        "value": float(f"{value:.5g}"),
        "unit": unit,
        "at_least": at_least,
        "met": bool(value >= limit if at_least else value <= limit),
    }


def rounded(value: float, digits: int = 4) -> float | None:
    """Round a figure; None where there is none."""
    return round(float(value), digits) if math.isfinite(value) else None


def summary(seconds: Sequence[float], n: int = 1) -> dict[str, float]:
    """Best, quartiles and number of repeats, per voxel in microseconds where `n` voxels were fitted."""
    micro = [1e6 * s / n for s in seconds]
    quartiles = np.quantile(micro, [0, 0.25, 0.5, 0.75])
    names = ("best_us", "q25_us", "median_us", "q75_us")
    times = {name: float(f"{value:.4g}") for name, value in zip(names, quartiles, strict=True)}
    return times | {"repeats": len(micro), "n_voxels": n}


def run_child(
    code: str, environment: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> dict[str, object]:
    """Run Python code in a new interpreter; its output, wall seconds and processor seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(
            "a measurement in a process of its own ended with code "
            f"{done.returncode}:\n{done.stderr[-3000:]}"
        )
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"out": done.stdout, "err": done.stderr, "wall_s": wall, "cpu_s": cpu}


def machine() -> dict[str, object]:
    """Describe the processor, its vector instructions and how many processors there are."""
    info = Path("/proc/cpuinfo")
    facts = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = facts.get("flags", "").split()
    return {
        "processor": facts.get("model name", platform.processor()),
        "family_model": f"{facts.get('cpu family', '?')}/{facts.get('model', '?')}",
        "avx2": "avx2" in flags,
        "avx512f": "avx512f" in flags,
        "processors": os.cpu_count(),
        "load_at_start": [round(x, 2) for x in _LOAD_AT_START],
        "load_at_end": None,  # entered by `write`, after the work
        "system": platform.system(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def commit(*paths: str) -> dict[str, object]:
    """Name the commit, and whether files under `paths` differ from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", *paths],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {
        "commit": head.stdout.strip(),
        "changed": [line[3:] for line in changed.stdout.splitlines()],
    }


def provenance(
    script: str,
    *paths: str,
    words: Sequence[str] = (),
    packages: Sequence[str] = (),
    quick: bool | None = None,
) -> dict[str, Any]:
    """Tell by which command, code (`paths` and the script), machine and packages a result is made today."""
    path = Path(script).resolve().relative_to(ROOT)
    module = ".".join(path.with_suffix("").parts)
    size = {} if quick is None else {"quick": quick}
    return {
        **commit(*paths, str(path)),
        "command": shlex.join(["python", "-m", module, *words, *["--quick"] * bool(quick)]),
        **size,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(*packages),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def replace_block(text: str, name: str, block: str) -> str:
    """
    Put a block between its two marker comments.

    Raises
    ------
    ValueError
        If the text does not have both markers once.
    """
    start, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the text needs the line {start} and the line {end}, once each")
    return re.sub(
        f"{re.escape(start)}.*?{re.escape(end)}",
        lambda _: f"{start}\n{block}\n{end}",
        text,
        flags=re.DOTALL,
    )


def over_runs(values: Sequence[float | None], digits: int = 3, *, spread: bool = True) -> str:
    """Write mean and standard deviation of what is known."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return "–"
    more = f" ± {known.std(ddof=1):.{digits}f}" if len(known) > 1 and spread else ""
    return f"{known.mean():.{digits}f}{more}"


def cell(text: str, width: int) -> str:
    """Write text as a cell of a table, no longer than this."""
    return textwrap.shorten(text.replace("\n", "; "), width, placeholder=" …").replace("|", "\\|")


def stored(path: Path) -> dict[str, Any]:
    """Read a result; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


_NUMBERS = re.compile(r"\[\n[^\[\]{}\"]*\]")


def write(result: dict[str, Any], path: Path) -> None:
    """Write a result, wholly or not at all; machines described in this run get the load at its end."""
    from dmrifit.io.atomic_files import write_text

    _enter_load(result, round(os.getloadavg()[0], 2))
    text = json.dumps(result, indent=1, ensure_ascii=False)
    # Numbers of one list stand in one line.
    text = _NUMBERS.sub(lambda found: "".join(found[0].split()), text)
    write_text(path, text + "\n")


def _enter_load(content: dict[str, Any], load: float) -> None:
    # Machines of earlier runs, in a stored result that is added to, keep theirs.
    for facts in content.values():
        if isinstance(facts, dict):
            if facts.get("load_at_end", load) is None:
                facts["load_at_end"] = load
            _enter_load(facts, load)
