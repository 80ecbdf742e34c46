"""
Kill every command of the four programs at many moments of its work, and each time that it names a file.

Several kills follow each other before a command is let go to its end, each on what the last has left.

    .venv/bin/python tests/faults/run_kills.py [--store] [--kills N] [NAME ...]

What was tried of a command is kept in build/faults, so that a run that is stopped goes on with the next one; a change of
the code begins anew.
All commands together take hours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from commands import LONG, LongCommand
from counts import PACKAGES, Tally, store
from kill_trials import ONE_THREAD, Trials, shares

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "faults"
KILLS = 50  # of each command
NAMES = 12  # files at most whose naming is interrupted
IN_A_ROW = 5  # kills by the clock before a command is let go


#: What decides how a trial ends: the programs, and how they are called, killed and judged.
SOURCES = (*PACKAGES, *(f"tests/faults/{name}.py" for name in ("commands", "kill_trials", "killing", "run_kills")))


def tree() -> str:
    """Give the digest of the programs and of the trials as they are in the working folder."""
    words = ["git", "ls-files", "-z", "-co", "--exclude-standard", *SOURCES]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    digest = hashlib.sha256()
    for name in sorted(done.stdout.split("\0")):
        if (ROOT / name).is_file():
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def kill(trials: Trials, command: LongCommand, n: int) -> tuple[int, list[str]]:
    """Kill a command each time that it names a file, and `n` times by the clock; how often it was, and what is wrong."""
    n_names, complaints = trials.complaints(command, [{"kill_at": number} for number in range(NAMES)])
    seconds, draws, n_killed = trials.seconds(command), shares(command), 0
    # It may end before the first moment, over and over.
    for _ in range(n):
        moments = [{"kill_after": next(draws) * seconds} for _ in range(IN_A_ROW)]
        killed, found = trials.complaints(command, moments)
        n_killed += killed
        complaints += found
        if n_killed >= n:
            break
    return n_names + n_killed, complaints


def finished(trials: Trials, command: LongCommand, n: int, folder: Path) -> tuple[int, list[str]]:
    """Kill a command unless an earlier run has, whose counts are in a file of the folder."""
    path = folder / f"{command.name}.json"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_text(json.dumps(kill(trials, command, n)), encoding="utf-8")
        part.rename(path)
    n_killed, complaints = json.loads(path.read_text(encoding="utf-8"))
    return n_killed, complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [command.name for command in LONG]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {names}; all without any")
    parser.add_argument("--store", action="store_true", help="keep the counts in faults.json")
    parser.add_argument("--kills", type=int, default=KILLS, help="by the clock (default %(default)s)")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(names):
        parser.error(f"no command {sorted(unknown)}; choose of {names}")
    if chosen.store and chosen.names:
        parser.error("--store keeps the counts of all commands; give no NAME")
    os.environ.update(ONE_THREAD)
    tally, work = Tally(), WORK / f"kills-{chosen.kills}-{tree()}"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        for command in (command for command in LONG if not chosen.names or command.name in chosen.names):
            n_killed, complaints = finished(trials, command, chosen.kills, work)
            print(f"{command.name}: killed {n_killed} times", flush=True)
            tally.add("killed commands", command.name, complaints, n_killed)
    print(dict(tally.rows["killed commands"]))
    if chosen.store:
        store("kills", tally.rows)
    return int(tally.wrong() > 0)


if __name__ == "__main__":
    sys.exit(main())
