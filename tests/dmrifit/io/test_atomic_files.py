"""Files that are whole when they appear."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from dmrifit.io.atomic_files import FileSet, whole_file, write_text


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "deeper" / "text.csv"
    write_text(path, "before µ")
    replaced = os.replace
    seen = []

    def watch(part, target):
        texts = [file.read_text(encoding="utf-8") for file in (part, target)]
        seen.append((*texts, part.parent == target.parent))
        replaced(part, target)

    monkeypatch.setattr(os, "replace", watch)
    write_text(path, "after")
    assert seen == [("after", "before µ", True)]

    def full(part, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "never")
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"text.csv": "after"}


def test_files_appear_together_when_the_block_ends(tmp_path):
    with FileSet(tmp_path / "new" / "out", ["a", "b"]) as files:
        files.path("a").write_text("1")
        files.path("b").write_text("2")
        assert [path.name for path in (tmp_path / "new" / "out").glob("[!.]*")] == []
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_everything_is_as_before(tmp_path, error):
    (tmp_path / "a").write_text("old")

    def interrupted():
        with FileSet(tmp_path, ["a", "b"], overwrite=True) as files:
            files.path("a").write_text("new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_folders_that_were_made_for_nothing_are_removed(tmp_path, error):
    with pytest.raises(error), FileSet(tmp_path / "new" / "out", ["a"]):
        raise error
    assert list(tmp_path.iterdir()) == []

    def beside_another():
        with FileSet(tmp_path / "new" / "out", ["a"]):
            (tmp_path / "new" / "other").write_text("of another run")
            raise error

    with pytest.raises(error):
        beside_another()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "other"]


def test_existing_files_are_replaced_only_when_allowed(tmp_path):
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileExistsError, match=r"b exists already.*--overwrite"):
        FileSet(tmp_path, ["a", "b"])
    with FileSet(tmp_path, ["a", "b"], overwrite=True) as files:
        files.path("b").write_text("new")
    assert (tmp_path / "b").read_text() == "new"


def test_files_of_an_earlier_run_do_not_stay_beside_those_of_a_later_one(tmp_path):
    (tmp_path / "page.html").write_text("old")
    with FileSet(tmp_path, ["map", "page.html"], overwrite=True) as files:
        files.path("map").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_an_input_is_never_replaced(tmp_path):
    (tmp_path / "a").write_text("input")
    with pytest.raises(ValueError, match="is an input"):
        FileSet(tmp_path, ["a"], overwrite=True, keep=[tmp_path / "a"])


def test_names_that_differ_by_case_are_refused(tmp_path):
    with pytest.raises(ValueError, match="differ only by case"):
        FileSet(tmp_path, ["param-F", "param-f"])


def test_a_folder_that_cannot_be_made_is_named_before_work(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(OSError, match=re.escape(f"cannot write to the folder {folder}")), FileSet(folder, ["a"]):
            pytest.fail("the block was entered")


def test_only_declared_names_are_written(tmp_path):
    files = FileSet(tmp_path, ["a"])
    with pytest.raises(ValueError, match="not a file of this set"):
        files.path("a")
    with files, pytest.raises(ValueError, match="not a file of this set"):
        files.path("b")


def test_json_keeps_lists_of_numbers_on_a_line(tmp_path):
    content = {"b": [0.0, 50.5], "rows": [[1, 2], [3, None]], "text": "[ µm²/ms,\n x ]", "names": ["a"], "none": []}
    with FileSet(tmp_path, ["a.json"]) as files:
        files.write_json("a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert '"b": [0.0, 50.5]' in text
    with pytest.raises(ValueError, match="JSON"), FileSet(tmp_path, ["b.json"]) as files:
        files.write_json("b.json", {"x": float("nan")})


KILLED = """
import os, signal, sys
from dmrifit.io.atomic_files import FileSet

with FileSet(sys.argv[1], ["a", "b"], overwrite=True) as files:
    files.path("a").write_text("half")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("waiting", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, "die"], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".dmrifit-")
    with FileSet(tmp_path, ["c"]) as files:
        assert not left.exists()
        files.path("c").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_runs_at_the_same_time_leave_each_other_alone(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path, "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "waiting\n"
        with FileSet(tmp_path, ["c"]) as files:
            files.path("c").write_text("mine")
            with FileSet(tmp_path, ["d"]) as more:
                more.path("d").write_text("mine too")
        (theirs,) = tmp_path.glob(".dmrifit-*")
        other.communicate("")
    assert not theirs.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_a_folder_that_nobody_locked_is_left_alone(tmp_path):
    (tmp_path / ".dmrifit-mine").mkdir()
    (tmp_path / ".dmrifit-mine" / "notes").write_text("x")
    with FileSet(tmp_path, ["a"]) as files:
        files.path("a").write_text("1")
    assert (tmp_path / ".dmrifit-mine" / "notes").exists()


MOVING = """
import os, signal, sys
from dmrifit.io import atomic_files as files

rename, times = os.replace, 0

def replace(source, target):
    global times
    if not os.path.basename(target).startswith(".") and times == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    times += not os.path.basename(target).startswith(".")
    rename(source, target)

os.replace = replace
with files.FileSet(sys.argv[1], ["a", "b", "c"]) as written:
    for name in "abc":
        written.path(name).write_text("of the killed run")
print(times)
"""


def kill_while_moving(folder, at):
    return subprocess.run([sys.executable, "-c", MOVING, folder, str(at)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_set_of_which_a_killed_process_moved_a_part_is_made_again(tmp_path, at):
    assert kill_while_moving(tmp_path, at).returncode == -signal.SIGKILL
    assert [path.name for path in sorted(tmp_path.glob("[!.]*"))] == ["a", "b", "c"][:at]
    (tmp_path / "own").write_text("of somebody else")
    with FileSet(tmp_path, ["a", "b", "c"]) as files:
        assert [path.name for path in tmp_path.glob("[!.]*")] == ["own"]
        files.path("a").write_text("new")
        files.path("c").write_text("new")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"a": "new", "c": "new", "own": "of somebody else"}


def test_what_somebody_put_in_the_place_of_a_moved_file_stays(tmp_path):
    assert kill_while_moving(tmp_path, 2).returncode == -signal.SIGKILL
    (tmp_path / "mine").write_text("of somebody else")
    os.replace(tmp_path / "mine", tmp_path / "b")
    with pytest.raises(FileExistsError, match="b exists already"):
        FileSet(tmp_path, ["a", "b", "c"])
    with FileSet(tmp_path, ["d"]) as files:
        files.path("d").write_text("")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "of somebody else", "d": ""}


def test_a_set_that_is_complete_stays(tmp_path):
    done = kill_while_moving(tmp_path, 3)
    assert (done.returncode, done.stdout) == (0, "3\n")
    with pytest.raises(FileExistsError, match="a and 2 more exist already"):
        FileSet(tmp_path, ["a", "b", "c"])


def test_a_file_edited_after_a_kill_is_not_taken_for_a_part_of_the_set(tmp_path):
    assert kill_while_moving(tmp_path, 1).returncode == -signal.SIGKILL
    # In place: the number on the disk stays, as it may when a file is removed and another one made.
    (tmp_path / "a").write_text("of somebody, and longer than before")
    with FileSet(tmp_path, ["x", "y"]) as files:
        files.path("x").write_text("new")
    assert (tmp_path / "a").read_text() == "of somebody, and longer than before"


def test_what_was_interrupted_between_two_names_leaves_none(tmp_path, monkeypatch):
    replaced, calls = os.replace, []

    def second_fails(part, target):
        calls.append(target)
        if len(calls) == 3:  # the list of what is moved, the first file, the second
            raise KeyboardInterrupt
        replaced(part, target)

    monkeypatch.setattr(os, "replace", second_fails)

    def write():
        with FileSet(tmp_path, ["a", "b"]) as files:
            files.path("a").write_text("new")
            files.path("b").write_text("new")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_not_its_own_cause(tmp_path):
    with pytest.raises(OSError, match="some other fault") as caught, whole_file(tmp_path / "a"):
        raise OSError(5, "some other fault")
    assert caught.value.__cause__ is None


def test_what_a_killed_process_left_of_a_file_is_removed_when_it_is_written_again(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old = time.time() - 3600
    for name, age in {
        f".part-{gone.pid}-model.dmrifit": old,
        f".part-{gone.pid}-other.dmrifit": old,
        f".part-{os.getppid()}-model.dmrifit": old,
        f".part-{gone.pid}1-a-model.dmrifit": old,
        ".part-mine-model.dmrifit": old,
    }.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (age, age))
    write_text(tmp_path / "model.dmrifit", "whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert f".part-{gone.pid}-model.dmrifit" not in left
    assert len(left) == 5
    (tmp_path / f".part-{gone.pid}-model.dmrifit").write_bytes(b"half, by another machine perhaps")
    write_text(tmp_path / "model.dmrifit", "whole")
    assert len(list(tmp_path.iterdir())) == 6
