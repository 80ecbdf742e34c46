"""Outputs that cannot be written are refused by every command before its work begins."""

import shutil
from collections import namedtuple

import pytest
from run_machine import NAMES, commands, refusal_complaints, words_of

ALL = list(commands())
#: Those that ask for a file of some kind.
READING = [one for one in ALL if "scan" in words_of(one[2], "out")]
WRITING = [one for one in ALL if any(option.name == "out" for option in one[2].params)]


@pytest.mark.parametrize(("program", "name", "command"), WRITING, ids=lambda one: str(one)[:30])
def test_outputs_that_cannot_be_written_are_refused_first(
    program, name, command, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    for out, words in NAMES.items():
        assert refusal_complaints(program, [name, *words_of(command, out)], words) == []
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(2**40, 2**40, 2**10))
    words = "no room to write out: about 1 MB are needed"
    assert refusal_complaints(program, [name, *words_of(command, "out")], words) == []


@pytest.mark.parametrize(("program", "name", "command"), READING, ids=lambda one: str(one)[:30])
def test_inputs_whose_names_no_text_can_hold_are_refused_first(
    program, name, command, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    words = words_of(command, "out")
    words[words.index("scan")] = "a\udcff.nii.gz"
    assert refusal_complaints(program, [name, *words], "is not in UTF-8") == []
    assert list(tmp_path.iterdir()) == []


def test_all_commands_that_write_are_tried():
    assert len(WRITING) >= 20
    assert len(READING) >= 20
    assert {name for _, name, _ in ALL} - {name for _, name, _ in WRITING} == {
        "info",
        "cite",
        "table",
    }
