"""Runs a program or function on a faulty input as a user would, and judges what comes of it."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from killing import PROGRAMS
from mutations import apply

HERE = Path(__file__).parent
COLUMNS = ("entry", "file", "mutation", "parameter", "expected", "says", "remedy")
TIME_LIMIT = 600  # seconds on a busy machine; nothing faulty may keep a program from ending


@dataclass(frozen=True)
class Case:
    """
    A row of the corpus.

    `expected` is refused or accepted. Of a refusal, `says` and `remedy` are parts of the message, with | between
    them: what is wrong with which value, and what to do. Of an accepted input, `says` names the rule that its result
    obeys, such as same.
    """

    entry: str
    file: str
    mutation: str
    parameter: str
    expected: str
    says: str
    remedy: str
    table: str = ""

    @property
    def id(self) -> str:
        return "-".join(word for word in (self.entry, self.file, self.mutation, self.parameter) if word)


@dataclass(frozen=True)
class Entry:
    """
    What is run: a program with its arguments, or a function, in a folder of good files.

    `main` is the function behind a console script; with it, `arguments` are its words. Without it, `call` is a function
    without arguments that gives results by name. `results` reads those of a program from the folder. `kept` are
    patterns of files that may stay when a run was refused, each of them whole. `names` tells whether messages have to
    name the faulty file; functions of arrays have no file to name.
    """

    name: str
    prepare: Callable[[Path], None]
    main: Callable[[], None] | None = None
    arguments: tuple[str, ...] = ()
    call: Callable[[], dict[str, Any]] | None = None
    results: Callable[[Path], dict[str, Any]] | None = None
    kept: tuple[str, ...] = ()
    names: bool = True


@dataclass
class Outcome:
    """What came of a run."""

    code: int | None = None
    out: str = ""
    err: str = ""
    error: BaseException | None = None
    trace: str = ""
    made: set[str] = field(default_factory=set)
    results: dict[str, Any] | None = None

    @property
    def message(self) -> str:
        """The error that a user sees; of a function, the text of the exception."""
        if self.error is not None:
            return str(self.error)
        lines = [line for line in self.err.splitlines() if "error: " in line.lower()]
        return lines[-1].split(": ", 2 if "error: " in lines[-1] else 1)[-1] if lines else ""


ENTRIES: dict[str, Entry] = {}

#: Whether results are what they should be, by the name of the rule: functions of the good and the found ones.
RULES: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {}


def entry(name: str, prepare: Callable[[Path], None], **fields: Any) -> None:
    """Declare an entry of the corpus."""
    assert name not in ENTRIES, name
    ENTRIES[name] = Entry(name, prepare, **fields)


def main_of(program: str) -> Callable[[], None]:
    """Give the function behind a console script, whose module is loaded when it is called."""
    return lambda: importlib.import_module(PROGRAMS[program]).main()


def command(
    name: str,
    prepare: Callable[[Path], None],
    line: str,
    results: Callable[[Path], dict[str, Any]],
    *,
    kept: tuple[str, ...] = (),
) -> None:
    """Declare a command of the program that begins the name, as one would type it, as an entry."""
    main = main_of(name.split()[0])
    entry(name, prepare, main=main, arguments=tuple(shlex.split(line)), results=results, kept=kept)


def function(name: str, prepare: Callable[[Path], None], **fields: Any) -> Callable[[Any], Any]:
    """Declare a function without arguments, which gives results by name, as an entry."""

    def declare(call: Callable[[], Any]) -> Callable[[], Any]:
        entry(name, prepare, call=call, **fields)
        return call

    return declare


def expressions(
    name: str, names: dict[str, Any], modules: Sequence[str] = (), *, error: type[Exception] = ValueError
) -> None:
    """
    Declare an entry whose rows are calls in Python, with these names and those of modules.

    All of them have to be refused by this error. Files that they read lie in the folder read.
    """

    def evaluated() -> dict[str, Any]:
        known = {key: value for module in modules for key, value in vars(importlib.import_module(module)).items()}
        try:
            eval(Path("options.txt").read_text(encoding="utf-8"), known | names)
        except error as refused:
            raise ValueError(refused) from refused
        except (ValueError, TypeError) as other:
            if error is not ValueError:
                raise RuntimeError(other) from other
            raise
        return {}

    kept = ("read/*", "read/*/*")
    entry(name, lambda folder: (folder / "options.txt").touch(), call=evaluated, kept=kept, names=False)


def after(prepare: Callable[[Path], None], line: str) -> Callable[[Path], None]:
    """Give a function that makes good files, and those of a command that has run among them."""

    def made(folder: Path) -> None:
        prepare(folder)
        words = mock.patch.object(sys, "argv", shlex.split(line))
        with words, contextlib.chdir(folder), contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            main_of(sys.argv[0])()

    return made


def load_entries() -> dict[str, Entry]:
    """Import all modules of entries beside this one; what is heavy, they import inside their functions."""
    for path in sorted(HERE.glob("entries_*.py")):
        importlib.import_module(path.stem)
    return ENTRIES


def corpus(package: str = "*") -> list[Case]:
    """Read the tables of the corpus."""
    cases = []
    for path in sorted((HERE / "corpus").glob(f"{package}.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            assert tuple(reader.fieldnames or ()) == COLUMNS, path
            cases += [Case(**row, table=path.stem) for row in reader]
    return cases


def same(good: Any, found: Any) -> bool:
    """Whether results agree to the last bit; NaN equals NaN."""
    if isinstance(good, dict):
        return isinstance(found, dict) and good.keys() == found.keys() and all(same(good[k], found[k]) for k in good)
    if isinstance(good, np.ndarray) or isinstance(found, np.ndarray):
        good, found = np.asarray(good), np.asarray(found)
        numeric = good.dtype.kind in "fc" and found.dtype.kind in "fc"
        return good.shape == found.shape and np.array_equal(good, found, equal_nan=numeric)
    return bool(good == found)


def close(good: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether results agree but for the rounding of single precision."""
    if good.keys() != found.keys():
        return False
    for name, one in good.items():
        if isinstance(one, np.ndarray) and one.dtype.kind == "f":
            if np.shape(found[name]) != one.shape or not np.allclose(one, found[name], 1e-4, 1e-6, equal_nan=True):
                return False
        elif not same(one, found[name]):
            return False
    return True


def reordered(good: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether results hold the same values in other places, as of an image whose axes are stored another way."""
    return good.keys() == found.keys() and all(same(np.sort(good[k], None), np.sort(found[k], None)) for k in good)


def nothing(good: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether no result has a value where there is nothing to have one of."""
    kinds = [one for one in map(np.asarray, found.values()) if one.dtype.kind == "f"]
    return good.keys() == found.keys() and not any((np.nan_to_num(one) != 0).any() for one in kinds)


def others(good: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether all but the first voxel, which is the faulty one, have the results of the good input."""
    return good.keys() == found.keys() and all(same(good[k][1:], found[k][1:]) for k in good)


def told(good: dict[str, Any], found: dict[str, Any]) -> bool:
    """Any results: the input may be meant so, and what it was taken for is told; a row names the words."""
    return True


RULES |= {"same": same, "close": close, "reordered": reordered, "nothing": nothing, "others": others, "told": told}

# A file that is removed just before it is opened for the n-th time. Hooks stay for the life of the process; this one
# sleeps while nothing vanishes.
_vanishing: dict[str, int] = {}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _vanishing or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    if (path := os.path.abspath(os.fsdecode(arguments[0]))) in _vanishing:
        _vanishing[path] -= 1
        if _vanishing[path] == 0:
            del _vanishing[path]
            os.unlink(path)


sys.addaudithook(_watch)


@contextlib.contextmanager
def _vanish(path: Path, times: int) -> Iterator[None]:
    _vanishing[os.path.abspath(path)] = times
    try:
        yield
    finally:
        _vanishing.clear()


@contextlib.contextmanager
def _full_disk(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a disk that fills up while it is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        msg = f"still busy after {seconds} s"
        raise TimeoutError(msg)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Bench:
    """Makes good files once, and runs cases on copies of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._templates: dict[Any, Path] = {}
        self._good: dict[str, dict[str, Any]] = {}
        load_entries()

    def template(self, entry: Entry) -> Path:
        """The folder of good files of an entry; entries of one `prepare` share it."""
        if entry.prepare not in self._templates:
            folder = self.folder / f"good-{len(self._templates)}"
            folder.mkdir()
            entry.prepare(folder)
            self._templates[entry.prepare] = folder
        return self._templates[entry.prepare]

    def good(self, entry: Entry) -> dict[str, Any]:
        """The results of the good files."""
        if entry.name not in self._good:
            outcome = self._run(entry, lambda _: contextlib.nullcontext(), ())
            assert outcome.results is not None, f"{entry.name} refuses good files: {outcome.err}{outcome.trace}"
            self._good[entry.name] = outcome.results
        return self._good[entry.name]

    def run(self, case: Case) -> Outcome:
        """Run a case."""
        extra: Sequence[str] = ()
        if case.file == "options":
            extra = case.parameter.split()

        def spoil(folder: Path) -> contextlib.AbstractContextManager[None]:
            if case.file == "options":
                return contextlib.nullcontext()
            if case.mutation == "full_disk":
                return _full_disk(int(case.parameter))
            if case.mutation == "vanishing":
                return _vanish(folder / case.file, int(case.parameter))
            if case.mutation == "taken":
                (folder / case.file).write_text("a file in the place of a folder")
            else:
                apply(folder / case.file, case.mutation, case.parameter)
            return contextlib.nullcontext()

        return self._run(ENTRIES[case.entry], spoil, extra)

    def complaints(self, case: Case, outcome: Outcome | None = None) -> list[str]:
        """Run a case, and tell what is wrong with what came of it; an empty list if nothing is."""
        outcome = self.run(case) if outcome is None else outcome
        if case.expected == "accepted":
            return self._complaints_of_accepted(case, outcome)
        assert case.expected == "refused", case
        return self._complaints_of_refused(case, outcome)

    def _complaints_of_accepted(self, case: Case, outcome: Outcome) -> list[str]:
        if outcome.results is None:
            return [f"was refused: {outcome.message}{outcome.trace}"]
        if not RULES[case.says](self.good(ENTRIES[case.entry]), outcome.results):
            return [f"the result does not obey the rule {case.says!r}"]
        # Cases that fail beside others are told among the results.
        text = outcome.out + outcome.err
        missing = [words for words in case.remedy.split("|") if words not in text]
        return [f"nothing was said of {words!r}, but {text!r}" for words in missing if words]

    def _complaints_of_refused(self, case: Case, outcome: Outcome) -> list[str]:
        entry, message = ENTRIES[case.entry], outcome.message
        found = []
        if outcome.trace:
            return [f"a traceback: {outcome.trace}"]
        if outcome.results is not None:
            return [f"was accepted: {outcome.out}{outcome.err}"]
        if entry.main is not None:
            if outcome.code != 2:
                found.append(f"the exit code is {outcome.code}: {outcome.err}")
            errors = [line for line in outcome.err.splitlines() if "error: " in line.lower()]
            if len(errors) != 1:
                found.append(f"not one line of error: {outcome.err}")
        if not all(letter.isprintable() for letter in message.replace("\n", "" if entry.main is None else "\n")):
            found.append(f"the message is no line of text: {message!r}")
        if len(message) > 1500:
            found.append(f"the message has {len(message)} characters: {message[:300]}…")
        name = Path(case.file).name
        known = name in message or any(words.startswith(("patient ", "(b =")) for words in case.says.split("|"))
        if entry.names and case.file != "options" and case.mutation != "full_disk" and not known:
            found.append(f"{name} is not named: {message}")
        found += [
            f"nothing of {words!r} in: {message}"
            for words in (*case.says.split("|"), *case.remedy.split("|"))
            if words not in message
        ]
        made = {path.rpartition(":")[0] for path in outcome.made}
        stray = {path for path in made if not any(Path(path).match(one) for one in entry.kept)}
        if stray:
            found.append(f"left behind: {sorted(stray)}")
        return found

    def _run(
        self, entry: Entry, spoil: Callable[[Path], contextlib.AbstractContextManager[None]], extra: Sequence[str]
    ) -> Outcome:
        folder = Path(tempfile.mkdtemp(prefix="case-", dir=self.folder))
        place = folder / "here"
        before, arguments = Path.cwd(), sys.argv
        template = self.template(entry)
        shutil.copytree(template, place, symlinks=True)
        outcome = Outcome()
        out, err = io.StringIO(), io.StringIO()
        try:
            os.chdir(place)
            trouble = spoil(place)
            files = _files(place)
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                _time_limit(TIME_LIMIT),
            ):
                # A warning that is no message to users would be noise among what they read.
                warnings.simplefilter("error")
                warnings.simplefilter("always", UserWarning)
                warnings.showwarning = lambda message, *_, **__: print(message, file=err)
                with trouble:
                    self._call(entry, extra, outcome)
            outcome.out, outcome.err = out.getvalue(), err.getvalue()
            outcome.made = _files(place) - files
            if outcome.code == 0 and entry.results is not None:
                outcome.results = entry.results(place)
        finally:
            os.chdir(before)
            sys.argv = arguments
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    @staticmethod
    def _call(entry: Entry, extra: Sequence[str], outcome: Outcome) -> None:
        try:
            if entry.main is None:
                assert entry.call is not None
                outcome.results = entry.call()
                return
            sys.argv = [entry.name.split()[0], *entry.arguments, *extra]
            entry.main()
        except SystemExit as stopped:
            outcome.code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        except (ValueError, OSError, ImportError, TypeError) as error:
            # What functions promise in their docstrings, and scikit-learn of its estimators; programs make it a line.
            kinds = (UnicodeError, TimeoutError, TypeError) if entry.names else (UnicodeError, TimeoutError)
            if entry.main is not None or isinstance(error, kinds):
                outcome.trace = traceback.format_exc()
            else:
                outcome.error = error
        except Exception:
            outcome.trace = traceback.format_exc()


def _files(folder: Path) -> set[str]:
    return {f"{path.relative_to(folder)}:{path.lstat().st_size}" for path in folder.rglob("*") if not path.is_dir()}
