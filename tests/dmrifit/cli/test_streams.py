"""Standard streams whose reader is gone or whose disk is full, which must not cost results."""

import subprocess
import sys
from pathlib import Path

import pytest

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

make_program("toy", "Toys.", [write, other])[1]()
"""


@pytest.fixture
def shell(tmp_path):
    """Give a function that runs the program in a shell: its exit code, messages and result."""
    (tmp_path / "toy.py").write_text(PROGRAM)

    def run(words, streams):
        command = f'set -o pipefail; "{sys.executable}" toy.py {words} {streams}'
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        out = tmp_path / "out.txt"
        return done.returncode, done.stderr, out.read_text() if out.exists() else None

    return run


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")


@pytest.mark.parametrize(
    "streams",
    ["2>&-", pytest.param("2>/dev/full", marks=needs_full), ">&- 2>&-", "<&- >&- 2>&-", "| true"],
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
def test_a_full_disk_under_the_output_is_told(shell):
    code, messages, result = shell("write out.txt", ">/dev/full")
    assert code == 2
    assert "toy: error: standard output cannot be written (No space left on device)" in messages
    assert result == "result"


@needs_full
def test_an_error_keeps_its_code_where_nobody_reads_it(shell):
    assert shell("write no/out.txt", "2>/dev/full")[0] == 2
