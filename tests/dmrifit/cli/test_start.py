"""Programs that are interrupted while they are loaded."""

import sys
import types

import pytest

from dmrifit.cli.start import run_program


def test_an_interrupt_while_a_program_loads_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "loading_program.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_program("a-program", "loading_program")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "a-program: interrupted\n"


@pytest.mark.parametrize(
    "package", ["dmrifit.cli.start", "anomaly.cli", "metastasis.cli", "placement.cli"]
)
def test_every_program_begins_so(package, monkeypatch):
    program = types.ModuleType("program")
    calls = []
    program.main = lambda: calls.append(package)
    monkeypatch.setitem(sys.modules, f"{package.split('.')[0]}.cli.program", program)
    __import__(package, fromlist=["main"]).main()
    assert calls == [package]
