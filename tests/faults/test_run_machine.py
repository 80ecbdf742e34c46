"""Programs on a machine that does not go along; `make faults` tries all of it."""

import sys
from collections import Counter

import pytest
import run_machine
from commands import LONG
from counts import kind_of_complaint
from kill_trials import Trials
from run_machine import interrupt_complaints, limit_complaints, stream_complaints


def test_kinds_are_counted_by_what_was_wrong(monkeypatch, capsys):
    def trials():
        yield "one", []
        yield "other", ["a traceback: …", "left behind: x"]
        raise KeyboardInterrupt

    stored = {}
    monkeypatch.setattr(run_machine, "KINDS", {"kind": ("kind of fault", trials)})
    monkeypatch.setattr(run_machine, "store", lambda part, rows: stored.update({part: rows}))
    assert run_machine.main(["--store"]) == 1
    expected = Counter(tried=2, traceback=1, half_written=1)
    assert stored == {"kind": {"kind of fault": expected}}
    assert "WRONG other: a traceback" in capsys.readouterr().out


#: What a program may do when it is interrupted, and the complaint of it.
INTERRUPTED = {
    "pass": "traceback",
    "os._exit(1)": "traceback",
    "os._exit(130)": "misleading",
    "open('out/half.json', 'w').write('{'), os.write(2, b'interrupted'), os._exit(130)": "half_written",
    "os.write(2, b'interrupted'), os._exit(130)": None,
}


@pytest.mark.parametrize(("code", "kind"), INTERRUPTED.items())
def test_each_kind_of_defect_planted_in_interrupts_is_a_complaint(code, kind, tmp_path):
    (tmp_path / "out").mkdir()
    handler = "signal.default_int_handler" if code == "pass" else f"lambda *_: ({code})"
    start = f"signal.signal(signal.SIGINT, {handler}); os.write(1, b'+'); time.sleep(60)"
    words = [sys.executable, "-c", f"import os, signal, time; {start}"]
    found = {kind_of_complaint(one) for one in interrupt_complaints(words, tmp_path, 0)}
    assert found == {kind} - {None}


#: What a program may do when it cannot write, the streams, and the complaint.
WRITING = {
    ("print('x', flush=True)", ">/dev/full"): "traceback",
    ("sys.stderr.write('x'); sys.stderr.flush()", "2>&-"): "traceback",
    ("print('x' * 10**6, flush=True)", "| true"): "traceback",
    ("pass", "2>&-"): None,
    ("sys.exit(2)", ">/dev/full"): None,
    ("sys.exit(2)", "2>/dev/full"): "traceback",
}


@pytest.mark.parametrize(("line", "kind"), WRITING.items())
def test_each_kind_of_defect_planted_in_streams_is_a_complaint(line, kind, tmp_path):
    code, shell = line
    words = [sys.executable, "-c", f"import sys; {code}"]
    found = {kind_of_complaint(one) for one in stream_complaints(words, tmp_path, shell)}
    assert found == {kind} - {None}


#: What a program may do under a limit of the shell that it has to refuse or not, and the complaint.
LIMITED = {
    ("pass", ""): None,
    ("raise ValueError", ""): "traceback",
    ("sys.exit(2)", ""): "traceback",
    ("os.makedirs('out/new', 0o700)", ""): None,
    ("os.makedirs('out/new', 0)", ""): "half_written",
    ("os.makedirs('out/.dmrifit-x')", ""): "half_written",
    ("sys.exit('few files')", "few files"): "traceback",
    ("print('few files', file=sys.stderr), sys.exit(2)", "few files"): None,
    ("sys.exit(2)", "few files"): "misleading",
    ("os.makedirs('out/new'), print('few files', file=sys.stderr), sys.exit(2)", "few files"): "half_written",
}


@pytest.mark.parametrize(("line", "kind"), LIMITED.items())
def test_each_kind_of_defect_planted_under_limits_is_a_complaint(line, kind, tmp_path):
    code, says = line
    (tmp_path / "out").mkdir()
    words = [sys.executable, "-c", f"import os, sys; {code}"]
    found = {kind_of_complaint(complaint) for complaint in limit_complaints(words, tmp_path, "true", says)}
    assert found == {kind} - {None}


@pytest.mark.slow
def test_a_library_is_missing_for_a_command_that_is_run_without_it(tmp_path):
    view = next(command for command in LONG if command.name == "view")
    ended, out = Trials(tmp_path / "trials").once(view, without=("matplotlib", "jinja2"))
    assert ended.code == 2
    assert 'pip install "dmrifit[report]"' in ended.said
    assert list(out.iterdir()) == []
