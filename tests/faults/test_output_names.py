"""Outputs that cannot be written are refused by every command before its work begins."""

import importlib
import inspect
import re
import shutil
import sys
from collections import namedtuple
from typing import get_args

import pytest
import typer
from killing import PROGRAMS


def commands():
    """Give every command of the four programs: the program, its name, and the command."""
    for program, module in PROGRAMS.items():
        group = typer.main.get_command(importlib.import_module(module).app)
        for name, command in group.commands.items():
            yield program, name, command


def words_of(command, out):
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


ALL = list(commands())
#: Those that ask for a file of some kind.
READING = [one for one in ALL if "scan" in words_of(one[2], "out")]
WRITING = [one for one in ALL if any(option.name == "out" for option in one[2].params)]


def refusal(program, name, words, monkeypatch, capsys):
    """Run a command that is refused, and give its one line."""
    monkeypatch.setattr(sys, "argv", [program, name, *words])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(PROGRAMS[program]).main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    lines = said.splitlines()
    assert len(lines) == 1, said
    return lines[0]


BAD = {
    "x" * 240: "has 240 bytes, and a disk takes 231; choose a shorter one",
    "a\udcff": "is not in UTF-8; rename the file or folder",
    "a-file/out": "a-file/out cannot be written: .*a-file is a file; choose",
    "/proc/none/out": "cannot be written: .* choose another place",
}


@pytest.mark.parametrize(("program", "name", "command"), WRITING, ids=lambda one: str(one)[:30])
def test_outputs_that_cannot_be_written_are_refused_first(
    program, name, command, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    for out, words in BAD.items():
        line = refusal(program, name, words_of(command, out), monkeypatch, capsys)
        assert re.search(words, line), line
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(2**40, 2**40, 2**10))
    line = refusal(program, name, words_of(command, "out"), monkeypatch, capsys)
    assert "no room to write out: about 1 MB are needed" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file"]


@pytest.mark.parametrize(("program", "name", "command"), READING, ids=lambda one: str(one)[:30])
def test_inputs_whose_names_no_text_can_hold_are_refused_first(
    program, name, command, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    words = words_of(command, "out")
    words[words.index("scan")] = "a\udcff.nii.gz"
    line = refusal(program, name, words, monkeypatch, capsys)
    assert "is not in UTF-8" in line
    assert list(tmp_path.iterdir()) == []


def test_all_commands_that_write_are_tried():
    assert len(WRITING) >= 20
    assert len(READING) >= 20
    assert {name for _, name, _ in ALL} - {name for _, name, _ in WRITING} == {
        "info",
        "cite",
        "table",
    }
