"""A long command that is killed leaves no half file, and after it ran again there is what would have been."""

import importlib
import itertools
import random

import pytest
import typer
from commands import KEPT, LONG, SPARED
from kill_trials import ONE_THREAD, Trials, different, shares
from killing import PROGRAMS, damages, final_files
from run_kills import Record, counts, tried, try_all

pytest.importorskip("torch")
pytest.importorskip("skorch")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("xgboost")

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
    assert trials.complaints(command, kill_after=after)[1] == []


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize("command", LONG[::4], ids=lambda command: command.name)
def test_a_command_that_is_killed_while_it_names_its_files_goes_on(trials, command):
    number = random.Random(command.name).randrange(12)
    assert trials.complaints(command, kill_at=number)[1] == []


class Untroubled:
    """Trials in which every second draw comes after the end of the command."""

    def __init__(self):
        self.killed = []

    def seconds(self, command):
        return 2.0

    def complaints(self, command, *, kill_after, kill_at):
        self.killed.append((command.name, kill_after, kill_at))
        if kill_at is not None:
            return kill_at < 2, []
        return len(self.killed) % 2 == 0, ["left behind: a.csv"] if kill_after > 1 else []


def test_a_stopped_run_of_kills_goes_on_where_it_was(tmp_path):
    path = tmp_path / "kills.jsonl"
    for n in (2, 3, 3):
        trials = Untroubled()
        try_all(Record(path, trials), LONG[:2], n)
        n_tried = len(trials.killed)
        with path.open("a") as file:
            file.write('{"cut')
    assert n_tried == 0
    Record(path, Untroubled())
    rows = tried(path)
    by_clock = [row for row in rows if "name" not in row["when"]]
    assert sum(row["killed"] for row in by_clock) == 6
    assert len({(row["command"], row["when"]) for row in rows}) == len(rows)
    found = counts(rows)
    assert found["tried"] == sum(row["killed"] for row in rows)
    assert found["half_written"] == sum(bool(row["complaints"]) for row in rows) > 0


def test_other_results_and_missing_ones_are_complaints():
    assert different({"a": 1, "b": 2}, {"a": 1, "b": 2}) == []
    assert len(different({"a": 1, "b": 2}, {"a": 3, "c": 2})) == 3


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


def test_moments_of_kills_are_drawn_anew_for_each_command_and_the_same_again():
    drawn = {command.name: tuple(itertools.islice(shares(command), 50)) for command in LONG}
    assert set(drawn) == set(KEPT)
    assert len(set(drawn.values())) == len(LONG)
    assert drawn[LONG[0].name] == tuple(itertools.islice(shares(LONG[0]), 50))


def test_every_command_of_the_programs_is_killed_or_spared_for_a_reason():
    called = {(command.program, command.words[0]) for command in LONG}
    commands = set()
    for program, module in PROGRAMS.items():
        group = typer.main.get_command(importlib.import_module(module).app)
        commands |= {(program, name) for name in group.commands}
    assert called | set(SPARED) == commands
    assert not called & set(SPARED)
