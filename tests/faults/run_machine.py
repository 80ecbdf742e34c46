"""
Run programs on a machine that does not go along, and say what is wrong.

    .venv/bin/python tests/faults/run_machine.py [--store] [KIND ...] [MOST]

Kinds: names of outputs and inputs that no disk or text can hold (every command), extras that are not installed (every
command that is killed, with its real input), streams that are closed or full, limits of a shell and interrupts (a command
of each program).
A number is the most that is tried of each kind.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import itertools
import os
import random
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import typer
from commands import LONG, LongCommand
from counts import Tally, store
from kill_trials import ONE_THREAD, Trials
from killing import PROGRAMS, damages

#: Names of outputs, and what is said of them.
NAMES = {
    "x" * 240: "has 240 bytes, and a disk takes 231; choose a shorter one",
    "a\udcff": "is not in UTF-8; rename the file or folder",
    "a-file/out": "a-file/out cannot be written: .*a-file is a file; choose",
    "/proc/none/out": "cannot be written: .* choose another place",
}
_FULL = "no room to write out: about 1 MB are needed"

#: Streams of a shell, and whether the program may say that one is full.
STREAMS = {
    "2>&-": False,
    "2>/dev/full": False,
    ">&- 2>&-": False,
    "<&- >&- 2>&-": False,
    "| true": False,
    ">/dev/full": True,
}
#: Limits of a shell, and what is said where a program refuses to run under them.
LIMITS = {"umask 777": "", "ulimit -n 5": "Too many open files"}
EXTRAS = {
    "deep": ("torch", "skorch", "monai"),
    "report": ("matplotlib", "jinja2"),
    "boost": ("xgboost",),
    "stats": ("statsmodels", "scikit_posthocs"),
    "preprocess": ("dipy", "SimpleITK"),
}
#: A command of each program that takes a second or two.
_QUICK = ("roi", "anomaly simulate", "metastasis evaluate", "prescribe")
#: One of each program that needs no input.
_INTERRUPTED = ("simulate", "anomaly simulate", "metastasis simulate", "placement simulate")
_INTERRUPTS = 40  # of each of them
_LATEST = 2.0  # s of processor time
#: Writes a byte with the first import of the program: what is interrupted before is Python, which has a traceback for
#: it. In the background a shell has Ctrl-C ignored.
_LISTENS = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.addaudithook("
    "lambda event, _: event == 'import' and 'dmrifit.cli.start' in sys.modules and os.write(1, b'+'))"
)


def commands() -> Iterator[tuple[str, str, Any]]:
    """Give every command of the four programs: the program, its name, and the command."""
    for program, module in PROGRAMS.items():
        group: Any = typer.main.get_command(importlib.import_module(module).app)
        for name, command in group.commands.items():
            yield program, name, command


def words_of(command: Any, out: str) -> list[str]:
    """Give each required argument some value, and the output its name."""
    words = []
    signature = inspect.signature(command.callback, eval_str=True)
    for option in command.params:
        annotation = signature.parameters[option.name].annotation if option.name != "help" else str
        text = "3" if get_args(annotation)[:1] == (int,) else "scan"
        if option.name == "out":
            words += [option.opts[0], out]
        elif option.required and option.param_type_name == "argument":
            words.append(text)
        elif option.required:
            words += [option.opts[0], text]
    return words


def refusal_complaints(program: str, words: list[str], says: str) -> list[str]:
    """Run a command that has to be refused in one line of these words, before it leaves anything."""
    before = sorted(Path().iterdir())
    code: Any = 0
    said = io.StringIO()
    with mock.patch.object(sys, "argv", [program, *words]), contextlib.redirect_stderr(said):
        try:
            importlib.import_module(PROGRAMS[program]).main()
        except SystemExit as stopped:
            code = stopped.code
        except Exception as error:
            return [f"a traceback: {error!r}"]
    found = []
    if code != 2:
        found.append(f"the exit code is {code}: {said.getvalue()}")
    lines = said.getvalue().splitlines()
    if len(lines) != 1 or not re.search(says, lines[0]):
        found.append(f"nothing of {says!r} in: {said.getvalue()}")
    if sorted(Path().iterdir()) != before:
        found.append(f"left behind: {sorted(Path().iterdir())}")
    return found


def names() -> Iterator[tuple[str, list[str]]]:
    """Try names that cannot be written, a full disk, and inputs whose names no text can hold."""
    disk = namedtuple("disk", "total used free")(2**40, 2**40, 2**10)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("a-file").write_text("")
        for program, name, command in commands():
            words = words_of(command, "out")
            if "out" in words:
                for out, says in NAMES.items():
                    changed = [name, *words_of(command, out)]
                    yield f"{name} {out[:20]!a}", refusal_complaints(program, changed, says)
                with mock.patch.object(shutil, "disk_usage", return_value=disk):
                    found = refusal_complaints(program, [name, *words], _FULL)
                yield f"{name} full disk", found
            if "scan" in words:
                words[words.index("scan")] = "a\udcff.nii.gz"
                yield (f"{name} input", refusal_complaints(program, [name, *words], "is not in UTF-8"))


def extras() -> Iterator[tuple[str, list[str]]]:
    """Try commands without the libraries of an extra: they do without, or say at once how to install it."""
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        for command, (extra, libraries) in itertools.product(LONG, EXTRAS.items()):
            ended, out = trials.once(command, without=libraries)
            found = [f"left behind: {damage}" for damage in damages(out)]
            if "Traceback" in ended.said:
                found.append(f"a traceback: {ended.said}")
            elif ended.code not in (0, 2):
                found.append(f"the exit code is {ended.code}: {ended.said}")
            elif ended.code == 2:
                if f'pip install "dmrifit[{extra}]"' not in ended.said:
                    found.append(f"nothing of the extra {extra} in: {ended.said}")
                if any(out.iterdir()):
                    found.append(f"left behind: {sorted(out.iterdir())}")
            yield f"{command.name} without {extra}", found


def quick_lines(table: dict[str, Any]) -> Iterator[tuple[LongCommand, str, list[str], Path, Trials]]:
    """Give a line of each quick command for each row of a table, and the trials that know its results."""
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        for command, row in itertools.product((command for command in LONG if command.name in _QUICK), table):
            words, place = trials.line(command)
            yield command, row, words, place, trials


def streams() -> Iterator[tuple[str, list[str]]]:
    """Try streams that are closed or full: results are there as if nothing had been."""
    for command, shell, words, place, trials in quick_lines(STREAMS):
        found = stream_complaints(words, place, shell)
        yield f"{command.name} {shell}", found + trials.differences(command, place)


def stream_complaints(words: list[str], place: Path, shell: str) -> list[str]:
    """Run a line with the streams of a shell, which has to end as if they were whole."""
    line = f"set -o pipefail; {shlex.join(words)} {shell}"
    done = subprocess.run(["bash", "-c", line], cwd=place, capture_output=True, check=False)
    found = []
    if done.returncode not in ({0, 2} if STREAMS[shell] else {0}):
        found.append(f"the exit code is {done.returncode}: {done.stderr.decode()}")
    if b"Traceback" in done.stderr:
        found.append(f"a traceback: {done.stderr.decode()}")
    return found


def limits() -> Iterator[tuple[str, list[str]]]:
    """Try limits of a shell: results are there and the owner can use them, or nothing is."""
    for command, limit, words, place, trials in quick_lines(LIMITS):
        found = limit_complaints(words, place, limit, LIMITS[limit])
        if not LIMITS[limit]:
            found += trials.differences(command, place)
        yield f"{command.name} {limit}", found


def limit_complaints(words: list[str], place: Path, limit: str, says: str) -> list[str]:
    """Run a line under a limit of the shell, which has to be refused in these words where there are any."""
    line = f"{limit}; exec {shlex.join(words)}"
    if os.geteuid() == 0 and shutil.which("setpriv"):
        # Permissions hold for root, too, without its capabilities.
        line = f"{limit}; exec setpriv --bounding-set=-all --inh-caps=-all {shlex.join(words)}"
    done = subprocess.run(["bash", "-c", line], cwd=place, capture_output=True, check=False)
    said = done.stderr.decode()
    found = []
    if done.returncode != (2 if says else 0):
        found.append(f"the exit code is {done.returncode}: {said}")
    if "Traceback" in said:
        found.append(f"a traceback: {said}")
    if says not in said:
        found.append(f"nothing of {says!r} in: {said}")
    files = list((place / "out").rglob("*"))
    unusable = [path for path in files if not path.stat().st_mode & stat.S_IRUSR]
    if unusable or (files and says) or any(".dmrifit-" in path.name for path in files):
        found.append(f"left behind: {files}")
    return found


def interrupts() -> Iterator[tuple[str, list[str]]]:
    """Press Ctrl-C at moments from the first on: one line, the code 130, nothing half-written."""
    draw = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        chosen = [command for command in LONG if command.name in _INTERRUPTED]
        for _ in range(_INTERRUPTS):
            for command in chosen:
                words, place = trials.line(command)
                words[2] = f"{_LISTENS}; {words[2]}"
                # Half of them in the first tenth of a second.
                moment = draw.random() ** 4 * _LATEST
                found = interrupt_complaints(words, place, moment)
                yield f"{command.name} interrupted after {moment:.3f} s", found


def interrupt_complaints(words: list[str], place: Path, moment: float) -> list[str]:
    """Interrupt a process so many seconds of processor time after it has written its first byte."""
    with subprocess.Popen(words, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(1)
        begun = _spent(process.pid)
        while process.poll() is None and _spent(process.pid) - begun < moment:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1].decode()
    found = [f"left behind: {damage}" for damage in damages(place / "out")]
    if "Traceback" in said:
        found.append(f"a traceback: {said}")
    elif process.returncode not in (0, 130):
        found.append(f"the exit code is {process.returncode}: {said}")
    elif process.returncode == 130 and "interrupted" not in said:
        found.append(f"nothing of the interrupt in: {said}")
    return found


def _spent(pid: int) -> float:
    """Give the processor time in s of a process's first thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


KINDS = {
    "names": ("names of files, full disks", names),
    "extras": ("missing extras", extras),
    "streams": ("closed and full streams", streams),
    "limits": ("umask and open files", limits),
    "interrupts": ("interrupts", interrupts),
}


def main(arguments: list[str]) -> int:
    """Run all kinds, or those that are named."""
    os.environ.update(ONE_THREAD)
    limits = [word for word in arguments if word.isdigit()]
    most = int(limits[0]) if limits else None
    chosen = [word for word in arguments if word in KINDS] or list(KINDS)
    tally = Tally()
    for kind in chosen:
        title, trials = KINDS[kind]
        # Ctrl-C ends a kind; what was tried until then is counted.
        with contextlib.suppress(KeyboardInterrupt):
            for trial, complaints in itertools.islice(trials(), most):
                tally.add(title, trial, complaints)
        print(f"{title}: {dict(tally.rows[title])}", flush=True)
        if "--store" in arguments:
            store(kind, {title: tally.rows[title]})
    return int(tally.wrong() > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
