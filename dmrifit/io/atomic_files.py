"""Files that are whole when they appear under their names, one alone or several together."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import re
import shutil
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dmrifit._utils.text_files import sealed

#: Errors of a disk that is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HIDDEN = ".dmrifit-"
_COMPLETE = ".complete"
_LOCK = ".lock"
_LAST = ".last"
_EARLIER = ".earlier"
_JUST_NOW = 2 * 10**9  # nanoseconds; a disk may count its times in seconds
_UNFINISHED = ".part-"
# A process on another machine may write to the same disk, and its number says nothing here.
_ABANDONED_SECONDS = 600.0
_LONGEST_NAME = 255  # bytes, on disks of today
_LEAST_ROOM = 2**20  # bytes; less is a full disk to all commands
_LONGEST_PREFIX = 24  # bytes of the hidden name that a file is written under


@contextmanager
def whole_file(path: str | Path, *, lasting: bool = True) -> Iterator[Path]:
    """
    Write a file that appears under its name only when it is complete.

    A file that need not be `lasting` takes a tenth of the time, but may be damaged after a power
    cut.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    if lasting:
        remove_abandoned_parts(path.parent, path.name)
    unfinished = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    try:
        yield unfinished
        if lasting:
            # Otherwise a power cut could leave an empty file under the final name.
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        _refuse_full_disk(error, path)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def check_name(name: str, *, longest: int = _LONGEST_NAME, may_be_text: bool = False) -> None:
    """Refuse a name of a file or folder that disks, or texts that name it, cannot hold."""
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(
            f"the name {name} is not in UTF-8; rename the file or folder, or set a locale of "
            "UTF-8, for example LC_ALL=C.UTF-8"
        ) from None
    # A terminal would obey them, and tables and messages would break off at them.
    if not may_be_text and any(unicodedata.category(letter) == "Cc" for letter in name):
        raise ValueError(
            f"the name {name!r} contains a control character, such as a line break; rename the "
            "file or folder"
        )
    if n_bytes > longest:
        raise ValueError(
            f"the name {name[:24]}… has {n_bytes} bytes, and a disk takes {longest}; "
            "choose a shorter one, or rename the input that it comes from"
        )


def share_a_name(names: Sequence[str]) -> list[bool]:
    """Tell which names equal another one on disks that ignore case and Unicode form."""
    folded = [unicodedata.normalize("NFC", name).casefold() for name in names]
    counts = Counter(folded)
    return [counts[name] > 1 for name in folded]


def check_place(path: Path) -> None:
    """Refuse a file or folder that cannot be written, before the work that is to fill it."""
    for part in path.parts:
        check_name(part, longest=_LONGEST_NAME - _LONGEST_PREFIX)
    place = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not place.is_dir() and place != path:
        raise NotADirectoryError(
            f"{path} cannot be written: {place} is a file; choose another place"
        )
    if not place.is_dir():
        place = path.parent
    try:
        # Without a name, so that nothing is left behind even by a process that is killed.
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise type(error)(
            f"{path} cannot be written: {error.strerror} in {place}; choose another place"
        ) from None
    check_room(path, _LEAST_ROOM)


def check_room(path: Path, n_bytes: float) -> None:
    """Refuse to write a file or folder, there already or not, where the disk has less room."""
    place = next(place for place in (path, *path.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(place).free
    if n_bytes > free:
        raise OSError(
            f"no room to write {path}: about {n_bytes / 2**20:.3g} MB are needed and "
            f"{free / 2**20:.3g} free; free some, or choose a folder on another disk"
        )


def write_text(path: str | Path, text: str) -> None:
    """Write a text file that appears under its name only when it is complete."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def remove_abandoned_parts(folder: str | Path, name: str | None = None) -> None:
    """Remove unfinished files of killed processes, of one final name or of all."""
    for unfinished in Path(folder).glob(f"{_UNFINISHED}*"):
        pid, _, final_name = unfinished.name.removeprefix(_UNFINISHED).partition("-")
        if not pid.isdecimal() or name not in (None, final_name):
            continue
        # Another process may have removed it.
        with suppress(OSError):
            if time.time() - unfinished.stat().st_mtime <= _ABANDONED_SECONDS:
                continue
            try:
                os.kill(int(pid), 0)
            # No process of this machine has this number; one of another user is another error.
            except (ProcessLookupError, OverflowError):
                unfinished.unlink()


class FileSet:
    """
    Files that appear together under their names, each of them complete, or not at all.

    Inside its block, `path` names a path for each file in a hidden folder. At the end earlier
    files of these names move into the hidden folder. Then it is renamed as complete, and its new
    files move out, the last of `names` last, which marks the set as complete. After an exception
    in the block nothing has changed. After a kill the next set in the same folder finishes a
    complete set, or undoes what was begun. `keep` are inputs, which are never replaced.
    """

    # The hidden folder lies inside the folder, which is never renamed itself: it may hold files of
    # the user, be a link or a mounted disk, or have a parent that cannot be written to. It has a
    # subfolder for each file, of the file's name: a name of a folder leads nowhere else, whoever
    # made it. What moves later finds its final name free, so that a hidden folder from elsewhere
    # replaces and removes nothing.

    def __init__(
        self,
        folder: str | Path,
        names: Iterable[str],
        *,
        overwrite: bool = False,
        keep: Iterable[Path] = (),
    ) -> None:
        self.folder = Path(folder)
        self.names = list(names)
        if any(share_a_name(self.names)):
            raise ValueError(
                "some file names differ only by case, which not every disk can hold: "
                f"{sorted(self.names)}"
            )
        for name in self.names:
            check_name(name)
            if not name or Path(name).name != name or name.startswith("."):
                raise ValueError(f"{name!r} is not the name of a file; leave out folders and dots")
        # Before the check, because these files exist once their renames are finished.
        finish_interrupted(self.folder)
        paths = [self.folder / name for name in self.names]
        existing = [path for path in paths if path.exists()]
        for path in keep:
            if any(path.samefile(target) for target in existing):
                raise ValueError(
                    f"{path} is an input and would be overwritten; "
                    f"choose another folder than {self.folder}"
                )
        if existing and not overwrite:
            subject, replaced = f"{existing[0]} exists", "it"
            if len(existing) > 1:
                subject, replaced = f"{existing[0]} and {len(existing) - 1} more exist", "them"
            raise FileExistsError(
                f"{subject} already; pass overwrite=True to replace {replaced}, or choose another "
                "place"
            )
        # No file can be renamed to the name of a folder, which would show after all the work.
        for path in existing:
            if path.is_dir():
                raise IsADirectoryError(
                    f"{path} is a folder, and a file of this name is to be written; rename it"
                )
        self._hidden: Path | None = None
        self._lock = ExitStack()
        self._new_folders: list[Path] = []

    def __enter__(self) -> FileSet:
        try:
            folders = (self.folder, *self.folder.parents)
            # A run that fails leaves no empty folders behind.
            self._new_folders = [folder for folder in folders if not folder.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hidden = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=self.folder))
            new_lock = self._hidden / f"{_LOCK}.new"
            # Renamed only when locked, so that no process takes this folder for abandoned while
            # this one lives; on a disk without locks, none ever does.
            if self._lock.enter_context(_locked(new_lock, os.O_RDWR | os.O_CREAT)):
                os.replace(new_lock, self._hidden / _LOCK)
            for name in self.names:
                self.path(name).parent.mkdir(parents=True)
        except OSError as error:
            self.__exit__(type(error), error, None)
            raise type(error)(
                f"cannot write to the folder {self.folder}: {error.strerror}; choose another one"
            ) from error
        return self

    def _publish(self, hidden: Path, complete: Path) -> None:
        """Exchange the files of an earlier set for the new ones, each by a rename."""
        finish_interrupted(self.folder)
        with _locked(self.folder, os.O_RDONLY, fcntl.LOCK_EX):
            # The mark first: it must not stand beside a part of its set.
            for slot in reversed(_slots(hidden)):
                if _is_file(self.folder / slot.name):
                    _rename(self.folder / slot.name, slot / _EARLIER, hidden)
            os.replace(hidden, complete)
            _settle(complete)

    def check_room(self, n_bytes: float) -> None:
        """Refuse to begin where the disk has less room than the files will take."""
        check_room(self.folder, n_bytes)

    def path(self, name: str) -> Path:
        """Return the path to write a file to."""
        assert self._hidden is not None, "the block of the set has not begun"
        folder = self._hidden / _LAST if name == self.names[-1] else self._hidden
        return folder / name / name

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the set."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        # A line for a list of numbers, not for each number. Inside a string there is no line
        # break.
        text = re.sub(
            r"\[\n[^][{}\"]*\]", lambda match: f"[{' '.join(match[0][1:-1].split())}]", text
        )
        self.path(name).write_text(text + "\n", encoding="utf-8")

    def write_record(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the set with a seal, by which `read_sealed` knows it as whole."""
        self.write_json(name, sealed(content))

    def __exit__(self, error_type: object, error: BaseException | None, _: object) -> None:
        with self._lock:
            if self._hidden is not None:
                complete = self._hidden.with_name(self._hidden.name + _COMPLETE)
                try:
                    if error_type is None:
                        self._publish(self._hidden, complete)
                # Renames take no time, so an interrupt is passed on when they are done or undone.
                finally:
                    _settle(self._hidden)
                    _settle(complete)
        self._hidden = None
        for folder in self._new_folders:
            # Those that hold files stay: the new ones, or those of another run.
            with suppress(OSError):
                folder.rmdir()
        _refuse_full_disk(error, self.folder)


def finish_interrupted(folder: str | Path) -> None:
    """Finish or undo the renames of killed processes in a folder; remove what they left."""
    folder = Path(folder)
    # Most folders hold nothing of the kind, and need no lock.
    if not any(folder.glob(f"{_HIDDEN}*")):
        return
    with _locked(folder, os.O_RDONLY, fcntl.LOCK_EX):
        for hidden in sorted(folder.glob(f"{_HIDDEN}*")):
            with _locked(hidden / _LOCK, os.O_RDWR) as is_locked:
                # Without the lock it belongs to a process that lives, or to somebody else. What is
                # complete may move again and again, so a disk without locks does not prevent it.
                is_unlockable = hidden.suffix == _COMPLETE and not (hidden / _LOCK).exists()
                if is_locked or is_unlockable:
                    _settle(hidden)


def check_finished(folder: Path, name: str | None = None) -> None:
    """Refuse to read a set, or a file of it, of which a killed process renamed only a part."""
    for hidden in _hidden_folders(folder):
        names = [slot.name for slot in _slots(hidden)]
        is_of_set = name is None or name in names
        # Another user's may hold any file.
        is_closed = hidden.suffix == _COMPLETE and not os.access(hidden, os.R_OK | os.X_OK)
        if is_closed or (is_of_set and _moves(hidden)):
            raise ValueError(
                f"{folder} holds an incomplete set of files: a run was interrupted while it moved "
                f"them from {hidden.name}; give its command again, which finishes the set, or "
                f"remove {hidden}"
            )


def _hidden_folders(folder: Path) -> list[Path]:
    """List the hidden folders of sets in a folder; cached, because reading each file asks."""
    if not folder.is_dir():
        return []
    state = folder.stat()
    # What changes a moment after a folder was listed may leave its time as it was.
    if time.time_ns() - state.st_mtime_ns < _JUST_NOW:
        _listed.cache_clear()
    return _listed(folder, state.st_dev, state.st_ino, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _listed(folder: Path, *_: int) -> list[Path]:
    return list(folder.glob(f"{_HIDDEN}*"))


def _slots(hidden: Path) -> list[Path]:
    """List the entry of each file in a hidden folder, that of the mark last; follow no link."""
    last = hidden / _LAST
    if hidden.is_symlink() or last.is_symlink():
        return []
    entries = [*sorted(hidden.glob("[!.]*")), *sorted(last.glob("[!.]*"))]
    return [entry for entry in entries if not entry.is_symlink()]


def _moves(hidden: Path) -> list[tuple[Path, Path]]:
    """List the files that leave a hidden folder, with their names to be: new ones, or earlier."""
    moves = []
    for slot in _slots(hidden):
        source = slot / (slot.name if hidden.suffix == _COMPLETE else _EARLIER)
        if _is_file(source):
            moves.append((source, hidden.parent / slot.name))
    return moves


def _settle(hidden: Path) -> None:
    """Move files of a complete set to their final names, or earlier ones back; remove the rest."""
    for source, target in _moves(hidden):
        if os.path.lexists(target):
            raise FileExistsError(
                f"{target} exists, and {source} of an interrupted run would replace it; remove "
                f"one of them, or the folder {hidden}"
            )
        _rename(source, target, hidden)
    # Folders in folders, a thousand deep, are not of this program.
    with suppress(RecursionError):
        shutil.rmtree(hidden, ignore_errors=True)


def _is_file(path: Path) -> bool:
    """Whether a path is a file, or a link, which may move but is not followed."""
    return path.is_symlink() or path.is_file()


def _rename(source: Path, target: Path, hidden: Path) -> None:
    """Rename a file of a hidden folder, or an earlier one; say what to do where that fails."""
    try:
        os.replace(source, target)
    except OSError as error:
        raise type(error)(
            f"cannot give the files in {hidden} their final names ({error}); make the folder "
            f"{hidden.parent} writable and run the command again, or move them by hand"
        ) from error


@contextmanager
def _locked(
    path: Path, flags: int, operation: int = fcntl.LOCK_EX | fcntl.LOCK_NB
) -> Iterator[bool]:
    """Lock a file or folder during the block, or until this process ends, if that is possible."""
    is_locked = False
    with ExitStack() as stack:
        with suppress(OSError):
            handle = os.open(path, flags)
            stack.callback(os.close, handle)
            fcntl.flock(handle, operation)
            is_locked = True
        yield is_locked


def _refuse_full_disk(error: BaseException | None, path: Path) -> None:
    """Raise an error that names the file or folder, if the error is one of a full disk."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        raise OSError(
            f"no room to write {path}: {error.strerror}; free some, or choose a folder on "
            "another disk"
        ) from error
