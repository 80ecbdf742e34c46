"""A long command that is killed leaves no half file, and after it ran again there is what would have been."""

import importlib
import random
import re

import pytest
import typer
from commands import LONG, SPARED
from counts import kind_of_complaint
from kill_trials import ONE_THREAD, Trials, shares
from killing import PROGRAMS, Finished, contents, damages, final_files
from run_kills import IN_A_ROW, NAMES, finished

from dmrifit.report import page

for library in ("torch", "skorch", "matplotlib", "jinja2", "xgboost"):
    pytest.importorskip(library)

SAMPLE = random.Random(50).sample(LONG, 8)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ONE_THREAD.items():
            patched.setenv(name, value)
        yield Trials(tmp_path_factory.mktemp("killed"))


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize("command", SAMPLE, ids=lambda command: command.name)
def test_a_killed_command_goes_on_to_what_would_have_been(trials, command):
    after = next(shares(command)) * trials.seconds(command)
    assert trials.complaints(command, [{"kill_after": after}])[1] == []


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize("command", LONG[::4], ids=lambda command: command.name)
def test_a_command_that_is_killed_while_it_names_its_files_goes_on(trials, command):
    number = random.Random(command.name).randrange(12)
    assert trials.complaints(command, [{"kill_at": number}])[1] == []


class Untroubled:
    """Trials in which a command ends after the second moment, and every second one leaves half a file."""

    def __init__(self):
        self.killed = []

    def seconds(self, command):
        return 2.0

    def complaints(self, command, moments):
        self.killed.append((command.name, moments))
        return 2, ["left behind: a.csv"] * (len(self.killed) % 2)


def test_a_stopped_run_of_kills_goes_on_with_the_next_command(tmp_path):
    first, second = Untroubled(), Untroubled()
    # By names, and by the clock until there are three kills.
    assert finished(first, LONG[0], 3, tmp_path) == (2 + 2 + 2, ["left behind: a.csv"] * 2)
    assert finished(second, LONG[0], 3, tmp_path) == (6, ["left behind: a.csv"] * 2)
    assert not second.killed
    finished(second, LONG[1], 3, tmp_path)
    assert [len(moments) for _, moments in second.killed] == [NAMES, IN_A_ROW, IN_A_ROW]
    assert {name for name, _ in second.killed} == {LONG[1].name}


WHOLE, HALF, OTHER = "a\n1\n", "a\n1", "a\n2\n"

#: What each run of a command leaves, its exit code and its words; and the complaint.
RUNS = {
    "goes on": ([(None, -9, ""), (WHOLE, 0, "")], None),
    "had ended": ([(WHOLE, -9, ""), (WHOLE, 2, "a.csv already exists")], None),
    "leaves half a file": ([(HALF, -9, ""), (WHOLE, 0, "")], "half_written"),
    "cannot go on": ([(None, -9, ""), (None, 2, "not whole")], "misleading"),
    "fails": ([(None, -9, ""), (None, 1, "Traceback")], "traceback"),
    "ends otherwise": ([(None, -9, ""), (OTHER, 0, "")], "silent"),
    "loses a file": ([(None, -9, ""), (None, 0, "")], "silent"),
}


@pytest.mark.parametrize(("runs", "kind"), RUNS.values(), ids=RUNS)
def test_each_kind_of_defect_planted_in_a_killed_command_is_a_complaint(runs, kind, tmp_path, monkeypatch):
    remaining = iter(runs)

    def call(self, command, folder, **options):
        left, code, said = next(remaining)
        if left is not None:
            (folder / "out" / "a.csv").write_text(left)
        return Finished(code, 1.0, said)

    monkeypatch.setattr(Trials, "_call", call)
    monkeypatch.setattr(Trials, "_uninterrupted", lambda self, command: (1.0, {"a.csv": WHOLE}))
    killed, found = Trials(tmp_path / "trials").complaints(LONG[0], [{"kill_after": 0.5}])
    assert killed == 1
    assert {kind_of_complaint(complaint) for complaint in found} - {"misleading"} == {kind} - {None, "misleading"}
    assert bool(found) == (kind is not None)


def test_the_checker_sees_files_that_are_cut_off(tmp_path):
    for name, whole in {
        "table.csv": b"a,b\n1,2\n",
        "page.html": b"<html><body></body></html>\n",
        "plain.json": b'{"a": [1, 2, 3]}\n',
        "rows.tsv": b"a\tb\n1\t2\n",
    }.items():
        (tmp_path / name).write_bytes(whole)
        assert damages(tmp_path) == []
        (tmp_path / name).write_bytes(whole[: len(whole) - 3])
        assert [line.split(":")[0] for line in damages(tmp_path)] == [name]
        (tmp_path / name).unlink()
    (tmp_path / ".part-12-map.nii.gz").write_bytes(b"half")
    (tmp_path / ".dmrifit-abc").mkdir()
    (tmp_path / ".dmrifit-abc" / "map.nii.gz").write_bytes(b"half")
    assert list(final_files(tmp_path)) == []
    (tmp_path / "map.nii.gz").write_bytes(b"half")
    assert len(damages(tmp_path)) == 1


def test_pages_of_two_times_are_the_same(tmp_path):
    seconds = [page.Table([["LR", "0.012"]]), "Training, prediction and the fit took."]
    pages = [page.Section("How", page.origin("a command"), *seconds, "Training and prediction of the last run took 0 s.")]
    written = page.Page("Title", pages).html()
    for number, time in enumerate(("12:33", "12:34")):
        later = re.sub(r"\d\d:\d\d UTC", f"{time} UTC", written).replace("0.012", f"0.01{number}")
        (tmp_path / time).mkdir()
        (tmp_path / time / "report.html").write_text(later.replace("took 0 s", f"took {number} s"))
    first, second = (contents(tmp_path / time) for time in ("12:33", "12:34"))
    assert first == second
    assert "a command" in first["report.html"]


def test_every_command_of_the_programs_is_killed_or_spared_for_a_reason():
    called = {(command.program, command.words[0]) for command in LONG}
    commands = set()
    for program, module in PROGRAMS.items():
        group = typer.main.get_command(importlib.import_module(module).app)
        commands |= {(program, name) for name in group.commands}
    assert called | set(SPARED) == commands
    assert not called & set(SPARED)
