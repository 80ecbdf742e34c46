"""Files that are whole when they appear."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmrifit.io import atomic_files
from dmrifit.io.atomic_files import (
    FileSet,
    check_finished,
    check_name,
    share_a_name,
    whole_file,
    write_text,
)


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
    with pytest.raises(FileExistsError, match=r"b exists already.*overwrite=True"):
        FileSet(tmp_path, ["a", "b"])
    with FileSet(tmp_path, ["a", "b"], overwrite=True) as files:
        files.path("b").write_text("new")
    assert (tmp_path / "b").read_text() == "new"


def test_a_name_that_is_not_in_utf_8_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not in UTF-8"):
        FileSet(tmp_path, ["a\udcff"])


def test_a_file_of_as_many_bytes_as_a_disk_takes_is_written_and_no_folder_replaced(tmp_path):
    with FileSet(tmp_path, ["ä" * 127]) as files:
        files.path("ä" * 127).write_text("")
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError, match="b is a folder; name a file"):
        write_text(tmp_path / "b", "text")


def test_files_of_an_earlier_run_do_not_stay_beside_those_of_a_later_one(tmp_path):
    (tmp_path / "page.html").write_text("old")
    with FileSet(tmp_path, ["map", "page.html"], overwrite=True) as files:
        files.path("map").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_a_set_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch):
    make = os.mkdir

    def forbidden(path, *options, **places):
        if Path(path).name == "a":
            raise PermissionError(1, "Operation not permitted")
        make(path, *options, **places)

    monkeypatch.setattr(os, "mkdir", forbidden)
    with pytest.raises(PermissionError, match="cannot write to the folder"), FileSet(tmp_path / "new", ["a"]):
        pytest.fail("the block was entered")
    assert list(tmp_path.iterdir()) == []


def test_a_complete_set_that_cannot_be_listed_is_refused_to_readers(tmp_path, monkeypatch):
    kill_before_rename(tmp_path, 0)
    # As for other users than the one whose run was killed; permissions do not bind root.
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(atomic_files, "_slots", lambda _: [])
    for name in ("a", "foreign", None):
        with pytest.raises(ValueError, match="holds an incomplete set of files"):
            check_finished(tmp_path, name)


def test_a_deep_hidden_folder_is_no_bug(tmp_path):
    hidden = tmp_path / ".dmrifit-x.complete"
    hidden.mkdir()
    handle = os.open(hidden, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=handle)
        deeper = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = deeper
    os.close(handle)
    try:
        write_two(tmp_path)
        assert (tmp_path / "b").read_text() == "new"
    finally:
        # pytest cannot remove it either.
        subprocess.run(["rm", "-rf", hidden], check=True)


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


def test_what_a_killed_process_left_is_removed_by_the_next_one_and_unlocked_folders_left_alone(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, "die"], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".dmrifit-")
    with FileSet(tmp_path, ["c"]) as files:
        assert not left.exists()
        files.path("c").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    (tmp_path / ".dmrifit-mine").mkdir()
    (tmp_path / ".dmrifit-mine" / "notes").write_text("x")
    with FileSet(tmp_path, ["a"]) as files:
        files.path("a").write_text("1")
    assert (tmp_path / ".dmrifit-mine" / "notes").exists()


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


RENAMED = """
import os, signal, sys
from dmrifit.io.atomic_files import FileSet

rename, times = os.replace, 0

def replace(source, target):
    global times
    if os.path.basename(target).startswith(".") == (sys.argv[4] == "earlier"):
        if times == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        times += 1
    rename(source, target)

os.replace = replace
with FileSet(sys.argv[1], ["a", "b", "c"], overwrite=True) as files:
    for name in sys.argv[3]:
        files.path(name).write_text("of the killed run")
"""
SET = ["a", "b", "c"]


def kill_before_rename(folder, number, names="abc", moved="new"):
    """Kill a set before it moves its new files to their names, or an earlier one away from its."""
    line = [sys.executable, "-c", RENAMED, folder, str(number), names, moved]
    ended = subprocess.run(line, check=False)
    assert ended.returncode == -signal.SIGKILL


def write_two(folder):
    with FileSet(folder, ["a", "b"]) as files:
        files.path("a").write_text("new")
        files.path("b").write_text("new")


def texts_of(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("earlier", [[], SET], ids=["new", "replaced"])
def test_a_killed_exchange_is_refused_to_readers_and_finished_by_the_next_set(tmp_path, number, earlier):
    for name in [*earlier, "foreign"]:
        (tmp_path / name).write_text("of an earlier run")
    kill_before_rename(tmp_path, number)
    # The mark never stands beside files of another set.
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds an incomplete set of files")):
        check_finished(tmp_path, "a")
    check_finished(tmp_path, "foreign")
    with pytest.raises(FileExistsError, match="a and 2 more exist already; pass overwrite=True to replace them"):
        FileSet(tmp_path, SET)
    assert texts_of(tmp_path) == dict.fromkeys(SET, "of the killed run") | {"foreign": "of an earlier run"}
    check_finished(tmp_path)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_kill_before_the_set_is_complete_is_refused_to_readers_and_undone_by_the_next_set(tmp_path, number):
    earlier = dict.fromkeys([*SET, "foreign"], "of an earlier run")
    for name, text in earlier.items():
        (tmp_path / name).write_text(text)
    # Those with a dot: the lock, each earlier file, the mark first, and the set as complete.
    kill_before_rename(tmp_path, number, moved="earlier")
    if number > 1:
        assert not (tmp_path / "c").exists()
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds an incomplete set of files")):
            check_finished(tmp_path, "a")
    check_finished(tmp_path, "foreign")
    with FileSet(tmp_path, ["d"]) as files:
        files.path("d").write_text("new")
    assert texts_of(tmp_path) == earlier | {"d": "new"}
    check_finished(tmp_path)


def test_files_that_cannot_be_replaced_stay_with_their_set(tmp_path, monkeypatch):
    for name in SET:
        (tmp_path / name).write_text("of an earlier run")
    rename = os.replace

    def forbidden(source, target):
        if source == tmp_path / "a":
            raise PermissionError(1, "Operation not permitted")
        rename(source, target)

    def write():
        with FileSet(tmp_path, SET, overwrite=True) as files:
            for name in SET:
                files.path(name).write_text("new")

    monkeypatch.setattr(os, "replace", forbidden)
    with pytest.raises(PermissionError, match="cannot give the files in"):
        write()
    assert texts_of(tmp_path) == dict.fromkeys(SET, "of an earlier run")


#: What a shared or unpacked folder may bring: a hidden folder's files, by path, and its links.
PRECIOUS = "precious"


def write_two_beside(out, *, is_refused=False):
    """Write a set into a folder that a hidden one was put into; nothing of the user's may change."""
    victim = out.parent / "victim"
    (out / "user").write_text(PRECIOUS)
    victim.write_text(PRECIOUS)
    if is_refused:
        with pytest.raises(FileExistsError, match=re.escape(f"or the folder {out / '.dmrifit-'}")):
            write_two(out)
    else:
        write_two(out)
        assert (out / "a").read_text() == (out / "b").read_text() == "new"
    assert (out / "user").read_text() == victim.read_text() == PRECIOUS


@pytest.mark.parametrize("name", [".dmrifit-x", ".dmrifit-x.complete"])
@pytest.mark.parametrize("place", ["", ".last"])
def test_a_hidden_folder_replaces_nothing(tmp_path, name, place):
    out = tmp_path / "out"
    hidden = out / name
    source = "user" if name.endswith(".complete") else ".earlier"
    write_text(hidden / place / "user" / source, "planted")
    (hidden / ".lock").write_text("")
    write_two_beside(out, is_refused=True)
    shutil.rmtree(hidden)
    write_two_beside(out)


@pytest.mark.parametrize("name", [".dmrifit-x", ".dmrifit-x.complete"])
@pytest.mark.parametrize("link", ["", ".last", "victim", ".lock", ".last/victim"])
def test_links_in_hidden_folders_are_not_followed(tmp_path, name, link):
    out = tmp_path / "out"
    (tmp_path / "home" / "victim").mkdir(parents=True)
    files = [tmp_path / "home" / "victim" / file for file in ("victim", ".earlier", ".lock")]
    for file in files:
        file.write_text(PRECIOUS)
    planted = out / name / link
    planted.parent.mkdir(parents=True)
    planted.symlink_to(tmp_path / "home" / ("victim" if "victim" in link else ""))
    write_two_beside(out)
    assert [file.read_text() for file in files] == [PRECIOUS] * 3
    assert not (out / "victim").exists()


def test_a_folder_is_listed_once_until_it_changes(tmp_path, monkeypatch):
    os.utime(tmp_path, (1e9, 1e9))
    check_finished(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", lambda *_: pytest.fail("listed again"))
        check_finished(tmp_path)
    kill_before_rename(tmp_path, 0)
    for _ in range(2):
        with pytest.raises(ValueError, match="holds an incomplete set of files"):
            check_finished(tmp_path, "a")
    check_finished(tmp_path / "nowhere")


def test_a_killed_exchange_still_removes_files_that_only_an_earlier_run_wrote(tmp_path):
    for name in SET:
        (tmp_path / name).write_text("of an earlier run")
    kill_before_rename(tmp_path, 1, "ab")
    with FileSet(tmp_path, ["d"]) as files:
        files.path("d").write_text("new")
    assert texts_of(tmp_path) == {"a": "of the killed run", "b": "of the killed run", "d": "new"}


def test_a_renamed_file_that_was_edited_after_the_kill_stays(tmp_path):
    kill_before_rename(tmp_path, 1)
    (tmp_path / "a").write_text("edited by the user")
    with FileSet(tmp_path, ["d"]) as files:
        files.path("d").write_text("new")
    assert texts_of(tmp_path)["a"] == "edited by the user"


def test_ctrl_c_between_two_renames_finishes_the_set(tmp_path, monkeypatch):
    rename = os.replace
    n_interrupts = 0

    def interrupted_once(source, target):
        nonlocal n_interrupts
        if target.name == "b" and n_interrupts == 0:
            n_interrupts += 1
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        write_two(tmp_path)
    assert texts_of(tmp_path) == {"a": "new", "b": "new"}


def test_files_that_cannot_be_renamed_are_kept_and_named(tmp_path, monkeypatch):
    rename = os.replace

    def forbidden(source, target):
        if target.name == "b":
            raise PermissionError(1, "Operation not permitted")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", forbidden)
        for _ in range(2):
            with pytest.raises(PermissionError, match=r"cannot give the files in .*\.complete their final names"):
                write_two(tmp_path)
    with pytest.raises(FileExistsError, match="a and 1 more exist already"):
        write_two(tmp_path)
    assert texts_of(tmp_path) == {"a": "new", "b": "new"}


def test_links_and_foreign_files_of_a_folder_stay(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "foreign").write_text("of the user")
    (tmp_path / "out").symlink_to("disk", target_is_directory=True)
    identity = (tmp_path / "disk").stat().st_ino
    write_two(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk").stat().st_ino == identity
    assert texts_of(tmp_path / "disk") == {"a": "new", "b": "new", "foreign": "of the user"}


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


def test_a_disk_without_room_is_named_before_the_work(tmp_path, monkeypatch):
    room = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with FileSet(tmp_path, ["a"]) as files:
        files.check_room(2 * 2**20)
        with pytest.raises(OSError, match="about 4 MB are needed and 3 free; free some"):
            files.check_room(4 * 2**20)
    atomic_files.check_place(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_mode_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "")
        with FileSet(tmp_path, ["b"]) as files:
            files.path("b").write_text("")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [mode, mode]


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\rb", "\x07", "a\x9bb"])
def test_names_with_control_characters_are_refused_and_shown_escaped(name):
    with pytest.raises(ValueError, match="contains a control character") as refusal:
        check_name(name)
    assert str(refusal.value).isprintable()


def test_names_that_disks_take_for_one_differ_in_case_or_form_of_letters():
    assert share_a_name(["a", "b", "A"]) == [True, False, True]
    assert share_a_name(["\u00e9.nii", "e\u0301.nii"]) == [True, True]
    assert share_a_name(["a", "b"]) == [False, False]
