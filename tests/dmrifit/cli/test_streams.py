"""Standard streams whose reader is gone or whose disk is full, which must not cost results."""

import io
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from dmrifit.cli.console import printable

PROGRAM = r"""
import sys, warnings
from pathlib import Path
from dmrifit.cli.console import make_program
from tqdm import tqdm

def write(out: Path, /) -> None:
    "Write a result.\n\nOptions:\nout: File."
    warnings.warn("a remark")
    for _ in tqdm([1], disable=None):
        print("a line", file=sys.stderr)
    out.write_text("result")
    print("done " * 20_000)

def other() -> None:
    "Do another."

make_program("toy", "Toys.", [write, other], first="toy --help")[1]()
"""


@pytest.fixture
def shell(tmp_path):
    """Give a function that runs the program in a shell: its exit code, messages and result."""
    (tmp_path / "toy.py").write_text(PROGRAM)

    def run(words, streams):
        command = f'set -o pipefail; "{sys.executable}" toy.py {words} {streams}'
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        out = tmp_path / "out.txt"
        return done.returncode, done.stderr, out.read_text() if out.exists() else None

    return run


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")


@pytest.mark.parametrize(
    "streams", ["2>&-", pytest.param("2>/dev/full", marks=needs_full), ">&- 2>&-", "<&- >&- 2>&-", "| true"]
)
def test_a_stream_that_takes_nothing_costs_no_result(shell, streams):
    code, _, result = shell("write out.txt", streams)
    assert (code, result) == (0, "result")


def test_a_reader_that_has_seen_enough_is_no_error(shell):
    assert shell("--help", "| head -n 1")[:2] == (0, "")
    code, messages, _ = shell("write out.txt", "| head -c 1")
    assert code == 0
    assert "Error" not in messages


@needs_full
def test_a_full_disk_under_the_output_is_told_and_an_error_keeps_its_code_where_nobody_reads_it(shell):
    code, messages, result = shell("write out.txt", ">/dev/full")
    assert code == 2
    assert "toy: error: standard output cannot be written (No space left on device)" in messages
    assert result == "result"
    assert shell("write no/out.txt", "2>/dev/full")[0] == 2


def test_letters_that_command_a_terminal_are_shown_escaped():
    assert printable("a\x1b[31mb\rc\u202ed\u200be") == "a\\x1b[31mb\\rc\\u202ed\\u200be"
    assert printable("µm²/ms, 3 × 2\n\t", kept="\n\t") == "µm²/ms, 3 × 2\n\t"


NAMES = """
import sys, warnings
import typer
from dmrifit._utils.progress import step_bar
from dmrifit.cli.console import make_program

NAME = "a\\x1b]0;title\\x07\\x1b[2J\\rb\\u202ec"

def write() -> None:
    "Write names."
    with step_bar(2, "scan") as count:
        for _ in range(2):
            count()
    typer.echo(f"out {NAME}")
    typer.echo(f"err {NAME}", err=True)
    warnings.warn(f"warning {NAME}\\nsecond line")
    raise ValueError(f"problem {NAME}")

def other() -> None:
    "Do another."

make_program("toy", "Toys.", [write, other], first="toy --help")[1]()
"""


def test_no_name_in_any_line_commands_a_terminal(tmp_path):
    (tmp_path / "toy.py").write_text(NAMES)
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    child = subprocess.Popen([sys.executable, "toy.py", "write"], cwd=tmp_path, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    # The end of a terminal is an error here.
    with io.FileIO(leader) as terminal:
        try:
            while part := terminal.read(4096):
                shown += part
        except OSError:
            pass
    assert child.wait() == 2
    for control in (b"\x1b]", b"\x07", b"\x1b[2J", "\u202e".encode()):
        assert control not in shown
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    for start in ("out ", "err ", "toy: warning ", "toy: error: problem "):
        (line,) = [line for line in lines if line.startswith(start)]
        assert "a\\x1b]0;title\\x07\\x1b[2J\\rb\\u202ec" in line
        assert "\r" not in line
    # Bars still return to the start of their line.
    assert any("\r" in line and "2/2" in line for line in lines)
