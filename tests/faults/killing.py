"""Programs that are killed while they run, what they leave behind, and what is compared after they ran again."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

PROGRAMS = {
    "dmrifit": "dmrifit.cli.program",
    "dmrifit-anomaly": "anomaly.cli.program",
    "dmrifit-metastasis": "metastasis.cli.program",
    "dmrifit-placement": "placement.cli.program",
}

#: Hidden names, under which nothing is a result: files and folders that are still being written.
UNFINISHED = re.compile(r"\.part-.*|\.dmrifit-.*|.*\.tmp")

#: What a second run of the same command may have otherwise: when it ran, how long, and how much it found finished.
TIMES = {
    "study.json": ("seconds", "date", "models", "finished"),  # the digests of the tables, which hold seconds
    "cells": ("seconds",),
    "scores.csv": ("seconds",),
    "seconds.csv": ("seconds",),
    # Sources are absolute paths.
    ".fits": ("seconds", "sources", "inputs", "digest"),
    "fits.tsv": ("seconds",),
}

# The date, and the table of seconds with what is said of it.
_TIMES_OF_PAGES = re.compile(
    r"<td>date</td><td[^>]*>[^<]*</td>|<p>Training and prediction of the last run[^<]*</p>"
    r"|<table[^>]*>(?:(?!<table).)*</table></div><p>Training, prediction and the fit[^<]*</p>",
    re.DOTALL,
)

# Imported by the process that all runs are forked from, so that a run begins with its work.
_LIBRARIES = """
pandas sklearn.ensemble sklearn.model_selection scipy.stats scipy.ndimage joblib skops.io
torch skorch safetensors.torch matplotlib.pyplot jinja2 numba sympy tqdm typer
dmrifit.imaging.fit_predict dmrifit.study.comparison dmrifit.study.report.reporting
dmrifit.networks.volume_estimator dmrifit.report.quicklook
anomaly.scans.series anomaly.study.report anomaly.cli.case_runs
metastasis.segmentation.segmenter metastasis.study.report metastasis.cli.case_runs
placement.learned.regressor placement.learned.ranker placement.exchange.prescription
"""


@dataclass(frozen=True)
class Finished:
    """How a run ended."""

    code: int  # that of the program, or the negative number of the signal that ended it
    seconds: float  # from its first line on
    said: str  # what stood on its screen


def run(
    program: str,
    words: list[str],
    folder: Path,
    *,
    kill_after: float | None = None,
    kill_at: int | None = None,
    without: tuple[str, ...] = (),
) -> Finished:
    """
    Run a program with its words in a folder, to its end or until it is killed.

    It is killed so many seconds after its first line (`kill_after`), or just before it gives a file its name for the
    time of a number (`kill_at`; a negative one counts the times and lets it live). The libraries `without` are not
    installed for it.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killing", *PROGRAMS.values(), *_LIBRARIES.split()])
    log = folder.with_name(f"{folder.name}.log")
    log.unlink(missing_ok=True)
    read, write = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(program, words, str(folder), str(log), kill_at, without, write))
    process.start()
    write.close()
    with contextlib.suppress(EOFError):
        read.recv()
    started = time.perf_counter()
    process.join(kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
    seconds = time.perf_counter() - started
    code = process.exitcode
    assert code is not None
    process.close()
    return Finished(code, seconds, log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")


def _work(
    program: str, words: list[str], folder: str, log: str, kill_at: int | None, without: tuple[str, ...], started: Any
) -> None:
    """Run a program as its console script does; in a process of its own."""
    os.chdir(folder)
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(handle, number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    sys.argv = [program, *words]
    if kill_at is not None:
        _kill_at_name(kill_at)
    _forget(without)
    started.send(True)
    main: Callable[[], None] = importlib.import_module(PROGRAMS[program]).main
    code: Any = 0
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Without what multiprocessing does at the end: a program has no such end either.
    os._exit(int(code or 0))


def _forget(libraries: tuple[str, ...]) -> None:
    """Let this process find these libraries no more, nor modules that have loaded them."""
    if not libraries:
        return
    packages = {module.partition(".")[0] for module in PROGRAMS.values()}
    for name in list(sys.modules):
        if name.partition(".")[0] in packages.union(libraries):
            del sys.modules[name]
    # None in their places in `sys.modules` would trip libraries that look there for what is loaded.
    sys.meta_path[:] = [_Without(finder, libraries) for finder in sys.meta_path]


class _Without:
    """A finder of modules that finds none of these libraries, as where they were not installed."""

    def __init__(self, finder: Any, libraries: tuple[str, ...]) -> None:
        self._finder, self._libraries = finder, libraries

    def find_spec(self, name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] in self._libraries:
            return None
        return self._finder.find_spec(name, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def _kill_at_name(number: int) -> None:
    """Kill this process just before it gives a file its final name for the time of this number."""
    rename = os.replace
    times = 0

    def replace(source: Any, target: Any, **options: Any) -> None:
        nonlocal times
        if times == number:
            os.kill(os.getpid(), signal.SIGKILL)
        times += 1
        rename(source, target, **options)

    os.replace = replace


def final_files(folder: Path) -> Iterator[Path]:
    """Files that stand under their final names, those in hidden folders of finished states too."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(UNFINISHED.fullmatch(part) for part in parts):
            yield path


def damages(folder: Path) -> list[str]:
    """Open every file that stands under its final name, and tell what is wrong with those that are not whole."""
    found = []
    for path in final_files(folder):
        try:
            _content(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


def contents(folder: Path) -> dict[str, Any]:
    """Read all results, without times: bytes, or plain values, by the name of the file."""
    return {str(path.relative_to(folder)): _content(path) for path in final_files(folder)}


def _content(path: Path) -> Any:
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    return _READERS[ending](path)


def _image(path: Path) -> bytes:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    image = nib.load(path)
    expected = image.dataobj.offset + image.get_data_dtype().itemsize * int(np.prod(image.shape))
    assert len(data) == expected, f"{len(data)} bytes, not {expected}"
    return data


def _json(path: Path) -> Any:
    value = json.loads(path.read_bytes())
    omitted = TIMES.get(path.name, ()) + TIMES.get(path.parent.name, ())
    return _without(value, omitted)


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(one, keys) for key, one in value.items() if key not in keys}
    return [_without(one, keys) for one in value] if isinstance(value, list) else value


def _table(path: Path) -> Any:
    import pandas as pd

    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n"), "the last line is not whole"
    if not text.strip():
        return text
    table = pd.read_csv(io.StringIO(text), sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
    return table.drop(columns=[name for name in TIMES.get(path.name, ()) if name in table]).to_csv(index=False)


def _page(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>"), "the page has no end"
    return _TIMES_OF_PAGES.sub("", text) if path.name == "report.html" else text


def _model(path: Path) -> dict[str, Any]:
    from dmrifit.model_files.model_file import load_model

    load_model(path)
    return _members(path.read_bytes())


def _members(data: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        members = {name: archive.read(name) for name in archive.namelist()}
    if "schema.json" in members:
        return {"schema.json": _named_by_content(json.loads(members["schema.json"]), members)}
    members["model.json"] = _without(json.loads(members["model.json"]), ("sha256",))
    return {
        name: _members(content) if name != "model.json" and zipfile.is_zipfile(io.BytesIO(content)) else content
        for name, content in members.items()
    }


def _named_by_content(value: Any, members: dict[str, bytes]) -> Any:
    """Undo that skops calls objects and files by places in memory, which the digests in model.json then depend on."""
    if isinstance(value, list):
        return [_named_by_content(one, members) for one in value]
    if not isinstance(value, dict):
        return members.get(value, value) if isinstance(value, str) else value
    return {key: _named_by_content(one, members) for key, one in value.items() if key != "__id__"}


def _opened(read: Callable[[Path], Any]) -> Callable[[Path], bytes]:
    """Read a file by its library, which fails where it is not whole, and give its bytes."""

    def read_bytes(path: Path) -> bytes:
        read(path)
        return path.read_bytes()

    return read_bytes


def _arrays(path: Path) -> dict[str, bytes]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name].tobytes() for name in stored}


def _document(path: Path) -> bytes:
    data = path.read_bytes()
    assert data.rstrip().endswith(b"%%EOF"), "the document has no end"
    return re.sub(rb"/CreationDate \(.*?\)", b"", data)


_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".nii.gz", ".nii"), _image),
    **dict.fromkeys((".csv", ".tsv"), _table),
    **dict.fromkeys((".bval", ".bvec", ".te"), _opened(np.loadtxt)),
    # README and .bidsignore have no ending.
    **dict.fromkeys((".txt", ".md", ""), lambda path: path.read_text(encoding="utf-8")),
    ".json": _json,
    ".html": _page,
    ".png": _opened(lambda path: Image.open(path).load()),
    ".pdf": _document,
    ".npz": _arrays,
    ".dmrifit": _model,
    ".safetensors": _opened(lambda path: importlib.import_module("safetensors.torch").load(path.read_bytes())),
}
