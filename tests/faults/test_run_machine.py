"""Programs on a machine that does not go along; `make faults` tries all of it."""

from collections import Counter

import pytest
import run_machine
from commands import LONG
from kill_trials import Trials


def test_kinds_are_counted_by_what_was_wrong(monkeypatch, capsys):
    def trials():
        yield "one", []
        yield "other", ["a traceback: …", "left behind: x"]

    stored = {}
    monkeypatch.setattr(run_machine, "KINDS", {"kind": ("kind of fault", trials)})
    monkeypatch.setattr(run_machine, "store", lambda part, rows: stored.update({part: rows}))
    assert run_machine.main(["--store"]) == 1
    expected = Counter(tried=2, traceback=1, half_written=1)
    assert stored == {"kind": {"kind of fault": expected}}
    assert "WRONG other: a traceback" in capsys.readouterr().out


@pytest.mark.slow
def test_a_library_is_missing_for_a_command_that_is_run_without_it(tmp_path):
    view = next(command for command in LONG if command.name == "view")
    ended, out = Trials(tmp_path / "trials").once(view, without=("matplotlib", "jinja2"))
    assert ended.code == 2
    assert 'pip install "dmrifit[report]"' in ended.said
    assert list(out.iterdir()) == []
