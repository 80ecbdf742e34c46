"""
Kill every command of the four programs at many moments of its work, and each time that it names a file.

Several kills follow each other before a command is let go to its end, each on what the last has left.

    .venv/bin/python tests/faults/run_kills.py [--store] [--kills N] [NAME ...]

What was tried is kept in build/faults, so that a run that is stopped goes on; a change of the code begins anew.
All commands together take hours.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands import LONG, LongCommand
from counts import PACKAGES, kind_of_complaint, store
from kill_trials import ONE_THREAD, Trials, shares

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "faults"
KILLS = 50  # of each command
NAMES = 12  # files at most whose naming is interrupted
IN_A_ROW = 5  # kills by the clock before a command is let go


#: What decides how a trial ends: the programs, and how they are called, killed and judged.
SOURCES = (
    *PACKAGES,
    *(f"tests/faults/{name}.py" for name in ("commands", "kill_trials", "killing", "run_kills")),
)


def tree() -> str:
    """Give the digest of the programs and of the trials as they are in the working folder."""
    words = ["git", "ls-files", "-z", "-co", "--exclude-standard", *SOURCES]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    digest = hashlib.sha256()
    for name in sorted(done.stdout.split("\0")):
        if (ROOT / name).is_file():
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def tried(path: Path) -> list[dict[str, Any]]:
    """Read the trials that were finished, of which a record holds a line each."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def cut_to_whole_lines(path: Path) -> None:
    """Drop the last line of a record where a stopped run has not finished it."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


class Record:
    """The trials of one tree, in a file of a line each, to which a stopped run comes back."""

    def __init__(self, path: Path, trials: Trials) -> None:
        self._path, self._trials = path, trials
        cut_to_whole_lines(path)
        self._rows = {(row["command"], row["when"]): row for row in tried(path)}

    def n_killed(
        self, command: LongCommand, when: str, shares_of_time: Sequence[float] | None = None
    ) -> int:
        """Kill a command after shares of its time, or at each name, unless that was done; tell how often."""
        row = self._rows.get((command.name, when))
        if row is None:
            moments: list[dict[str, float]] = [{"kill_at": number} for number in range(NAMES)]
            if shares_of_time is not None:
                seconds = self._trials.seconds(command)
                moments = [{"kill_after": share * seconds} for share in shares_of_time]
            killed, complaints = self._trials.complaints(command, moments)
            row = {
                "command": command.name,
                "when": when,
                "killed": killed,
                "complaints": complaints,
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for complaint in complaints:
                print(f"WRONG {command.name} {when}: {complaint}", flush=True)
        return int(row["killed"])


def try_all(record: Record, commands: list[LongCommand], n: int) -> None:
    """Kill each command each time that it names a file, and `n` times by the clock; one after the other."""
    n_killed = Counter({command.name: 0 for command in commands})
    draws = {command.name: shares(command) for command in commands}
    for command in commands:
        record.n_killed(command, "names")
    # A row without a kill: the command ended before the first moment.
    for number in range(n):
        for command in commands:
            if n_killed[command.name] < n:
                drawn = list(itertools.islice(draws[command.name], IN_A_ROW))
                n_killed[command.name] += record.n_killed(command, f"{number}: {drawn}", drawn)
        print(f"{number + 1}: killed {n_killed.total()} times by the clock", flush=True)
        if min(n_killed.values()) >= n:
            return


def counts(rows: list[dict[str, Any]]) -> Counter[str]:
    """Count the trials of commands that were killed before they ended, and what was wrong."""
    columns = Counter({"tried": sum(row["killed"] for row in rows)})
    for row in rows:
        columns.update({kind_of_complaint(complaint) for complaint in row["complaints"]})
    return columns


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [command.name for command in LONG]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {names}; all without any")
    parser.add_argument("--store", action="store_true", help="keep the counts in faults.json")
    parser.add_argument(
        "--kills", type=int, default=KILLS, help="by the clock (default %(default)s)"
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(names):
        parser.error(f"no command {sorted(unknown)}; choose of {names}")
    if chosen.store and chosen.names:
        parser.error("--store keeps the counts of all commands; give no NAME")
    os.environ.update(ONE_THREAD)
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"kills-{tree()}.jsonl"
    commands = [command for command in LONG if not chosen.names or command.name in chosen.names]
    with tempfile.TemporaryDirectory() as folder:
        try_all(Record(path, Trials(Path(folder))), commands, chosen.kills)
    tried_names = {command.name for command in commands}
    rows = [row for row in tried(path) if row["command"] in tried_names]
    found = counts(rows)
    print(f"{len(commands)} commands, {dict(found)}")
    if chosen.store:
        store("kills", {"killed commands": found})
    return int(any(row["complaints"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
