"""Trials of killed commands: each is killed, what it left is opened, and the same command runs again, to its end at last."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from commands import PREPARED, LongCommand
from killing import PROGRAMS, Finished, contents, damages, run

#: Of the environment: the work of a command is the same whatever the machine.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}

#: What a console script does.
_START = "import sys; sys.argv[0] = '{0}'; from dmrifit.cli.start import run_program; run_program('{0}', '{1}')"

_KILLED = -9

#: A command that had ended says that its results are there; any other complaint is none.
_DONE = ("already exist", "exist already", "exists already", "already has")


def shares(command: LongCommand, seed: int = 50) -> Iterator[float]:
    """Draw when a command is killed, as shares of the time that it takes."""
    draw = random.Random(f"{seed} {command.name}")
    while True:
        yield round(draw.random(), 3)


class Trials:
    """
    Runs commands in folders of their own below `folder`, and keeps what uninterrupted ones gave.

    Input is made as far as it is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._source = folder / "in"
        self._source.mkdir(parents=True)
        self._runs = folder / "runs"
        self._prepared: set[str] = set()
        self._whole: dict[str, tuple[float, dict[str, Any]]] = {}
        self._n_runs = 0

    def seconds(self, command: LongCommand) -> float:
        """How long the command takes when nobody kills it."""
        return self._uninterrupted(command)[0]

    def complaints(self, command: LongCommand, moments: Iterable[Mapping[str, Any]]) -> tuple[int, list[str]]:
        """
        Kill a command at one moment after the other, each time going on from what the last has left.

        A moment is `kill_after` or `kill_at` of `run`. Tells how often it was killed before it ended, and what is wrong.
        """
        expected = self._uninterrupted(command)[1]
        folder = self._folder(command)
        found: list[str] = []
        n_killed = 0
        for moment in (*moments, {}):
            ended = self._call(command, folder, **moment)
            after = f"after {n_killed} kills"
            found += [f"left behind {after}: {damage}" for damage in damages(folder / "out")]
            if "Traceback" in ended.said:
                found.append(f"a traceback {after}: {ended.said}")
            if ended.code == _KILLED:
                n_killed += 1
            elif ended.code != 0 and not any(words in ended.said for words in _DONE):
                found.append(f"ends with {ended.code} {after}: {ended.said}")
            if found or ended.code != _KILLED:
                break
        if not found:
            found = different(expected, contents(folder / "out"))
        shutil.rmtree(folder)
        return n_killed, found

    def once(self, command: LongCommand, **options: Any) -> tuple[Finished, Path]:
        """Run a command under some options of `run`; how it ended, and the folder of its results."""
        self._prepare(command.needs)
        folder = self._folder(command)
        return self._call(command, folder, **options), folder / "out"

    def line(self, command: LongCommand) -> tuple[list[str], Path]:
        """Give the words of a command for a process of its own, and a new folder to run it in."""
        self._prepare(command.needs)
        folder = self._folder(command)
        return [*start_line(command.program), *self._words(command, folder)], folder

    def differences(self, command: LongCommand, folder: Path) -> list[str]:
        """Tell which results of a command are damaged, missing or others."""
        found = [f"left behind: {damage}" for damage in damages(folder / "out")]
        return found or different(self._uninterrupted(command)[1], contents(folder / "out"))

    def _uninterrupted(self, command: LongCommand) -> tuple[float, dict[str, Any]]:
        if command.name not in self._whole:
            self._prepare(command.needs)
            folder = self._folder(command)
            ended = self._call(command, folder)
            assert ended.code == 0, ended.said
            assert damages(folder / "out") == []
            self._whole[command.name] = (ended.seconds, contents(folder / "out"))
        return self._whole[command.name]

    def _prepare(self, needs: Iterable[str]) -> None:
        for name in needs:
            if name not in self._prepared:
                program, words = PREPARED[name]
                ended = run(program, list(words), self._source)
                assert ended.code == 0, ended.said
                self._prepared.add(name)

    def _folder(self, command: LongCommand) -> Path:
        self._n_runs += 1
        folder = self._runs / f"{command.name.replace(' ', '-')}-{self._n_runs}"
        (folder / "out").mkdir(parents=True)
        (folder / "in").symlink_to(self._source, target_is_directory=True)
        return folder

    def _call(self, command: LongCommand, folder: Path, **options: Any) -> Finished:
        return run(command.program, self._words(command, folder), folder, **options)

    @staticmethod
    def _words(command: LongCommand, folder: Path) -> list[str]:
        images = sorted(folder.glob("in/cases/cohort/**/*_dwi.nii.gz"))
        image = str(images[0].relative_to(folder / "in" / "cases" / "cohort")) if images else ""
        return [word.format(image=image) for word in command.words]


def start_line(program: str) -> list[str]:
    """Give the words that start a program in a process of its own."""
    return [sys.executable, "-c", _START.format(program, PROGRAMS[program])]


def different(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Tell which files are missing, not expected, or hold something else."""
    names = sorted(set(expected) ^ set(found))
    names += [name for name in sorted(set(expected) & set(found)) if expected[name] != found[name]]
    return [f"the result does not obey the rule 'same': {name}" for name in names]
