"""A long command that is killed leaves no half file, and after it ran again there is what would have been."""

import importlib
import os
import random
from collections import Counter

import pytest
import typer
from commands import KEPT, LONG, PREPARED, SPARED
from killing import PROGRAMS, contents, damages, final_files, run

pytest.importorskip("torch")
pytest.importorskip("skorch")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("xgboost")

SEED = 50
KILLS = 50  # of each command, by `make faults`
SAMPLE = 8  # of all
NAMES = len(LONG)  # further kills, each just before a file gets its name, in the sample one for every other command

#: A command that had ended says that its results are there; any other complaint is none.
DONE = ("already exist", "exist already", "exists already", "already has")


def moments():
    """A command, and the share of its time that has passed; each has its turn before one comes again."""
    draw = random.Random(SEED)
    order = [command for _ in range(KILLS) for command in draw.sample(LONG, len(LONG))]
    return [(command, round(draw.random(), 3)) for command in order]


ALL = os.environ.get("DMRIFIT_FAULTS") == "all"
TIMES = moments() if ALL else moments()[:SAMPLE]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For all that is forked later: the work of a command is the same whatever the machine."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
            patched.setenv(name, "1")
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of input, made as far as it is asked for."""
    folder = tmp_path_factory.mktemp("killed") / "in"
    folder.mkdir()
    made = set()

    def prepare(needs):
        for name in needs:
            if name not in made:
                program, words = PREPARED[name]
                ended = run(program, list(words), folder)
                assert ended.code == 0, ended.said
                made.add(name)
        return folder

    return prepare


@pytest.fixture(scope="module")
def bench(source, tmp_path_factory):
    """Runs commands in folders of their own, and keeps what the uninterrupted ones gave."""
    kept = {}
    base = tmp_path_factory.mktemp("runs")

    def folder_of(command):
        where = base / f"{command.name.replace(' ', '-')}-{len(list(base.iterdir()))}"
        (where / "out").mkdir(parents=True)
        (where / "in").symlink_to(source(command.needs), target_is_directory=True)
        return where

    def call(command, folder, **options):
        images = sorted(folder.glob("in/cases/cohort/**/*_dwi.nii.gz"))
        image = str(images[0].relative_to(folder / "in" / "cases" / "cohort")) if images else ""
        return run(command.program, [word.format(image=image) for word in command.words], folder, **options)

    def whole(command):
        if command.name not in kept:
            folder = folder_of(command)
            ended = call(command, folder)
            assert ended.code == 0, ended.said
            assert damages(folder / "out") == []
            kept[command.name] = (ended.seconds, contents(folder / "out"))
        return kept[command.name]

    return folder_of, call, whole


def check(bench, command, folder):
    """What was left behind is whole, and what is there after the same command again is what would have been."""
    _, call, whole = bench
    assert damages(folder / "out") == []
    ended = call(command, folder)
    assert ended.code == 0 or any(word in ended.said for word in DONE), ended.said
    assert "Traceback" not in ended.said
    found, expected = contents(folder / "out"), whole(command)[1]
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize(("command", "share"), TIMES, ids=lambda value: getattr(value, "name", value))
def test_a_killed_command_goes_on_to_what_would_have_been(bench, command, share):
    folder_of, call, whole = bench
    folder = folder_of(command)
    call(command, folder, kill_after=share * whole(command)[0])
    check(bench, command, folder)


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize("command", LONG if ALL else LONG[::4], ids=lambda command: command.name)
def test_a_command_that_is_killed_while_it_names_its_files_goes_on(bench, command):
    folder_of, call, _ = bench
    folder = folder_of(command)
    number = random.Random(f"{SEED} {command.name}").randrange(12)
    call(command, folder, kill_at=number)
    check(bench, command, folder)


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


def test_kills_come_at_fifty_moments_of_every_command():
    drawn = moments()
    counts = Counter(command.name for command, _ in drawn)
    assert set(counts) == set(KEPT)
    assert set(counts.values()) == {KILLS}
    assert drawn == moments()


def test_every_command_of_the_programs_is_killed_or_spared_for_a_reason():
    called = {(command.program, command.words[0]) for command in LONG}
    commands = set()
    for program, module in PROGRAMS.items():
        group = typer.main.get_command(importlib.import_module(module).app)
        commands |= {(program, name) for name in group.commands}
    assert called | set(SPARED) == commands
    assert not called & set(SPARED)
