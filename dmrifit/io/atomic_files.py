"""Files that are whole when they appear under their names, one alone or several together."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["FileSet", "whole_file", "write_text"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HIDDEN = ".dmrifit-"
_LOCK = ".lock"
_MOVING = ".moving"
_UNFINISHED = ".part-"
# A process on another machine may write to the same disk, and its number says nothing here.
_ABANDONED_SECONDS = 600.0


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Write a file that appears under its name only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned_parts(path.parent, path.name)
    unfinished = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    try:
        yield unfinished
        # Otherwise a power cut could leave an empty file under the final name.
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise _explained(error, path) from error
    finally:
        unfinished.unlink(missing_ok=True)


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
        try:
            age = time.time() - unfinished.stat().st_mtime
            if age > _ABANDONED_SECONDS and not _alive(int(pid)):
                unfinished.unlink(missing_ok=True)
        # Another process has removed it.
        except OSError:
            continue


def _alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    # It belongs to another user.
    except OSError:
        return True
    return True


class FileSet:
    """
    Files that appear together under their names, each of them complete, or not at all.

    As a context manager it makes the folder and a hidden one inside it. `path` names a path in the
    hidden folder for each file; when the block ends without an exception, all are renamed to their
    final names, the last declared one last. After an exception (or Ctrl-C) new files and folders
    are removed and nothing has changed. A killed process can leave the hidden folder behind, never
    a partial file under a final name; the next run in the same folder removes it, with the files
    of an incomplete set. The process that made a hidden folder locks it, so that runs at the same
    time do not disturb each other.

    Parameters
    ----------
    folder : str or Path
        Where the files go; made if missing.
    names : iterable of str
        All file names that may be written; the last one marks the set as complete.
    overwrite : bool, default=False
        Whether files of these names may be replaced.
    keep : iterable of Path, optional
        Inputs, which are never replaced.

    Raises
    ------
    FileExistsError
        If one of the files exists and `overwrite` is false, on construction.
    ValueError
        If two names differ only by case or one is an input, on construction.
    OSError
        If the folder cannot be made or written to, when the block is entered.
    """

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
        if len({name.casefold() for name in self.names}) != len(self.names):
            raise ValueError(
                "some file names differ only by case, which not every disk can hold: "
                f"{sorted(self.names)}"
            )
        # Files of an incomplete set will be removed, and do not count.
        abandoned: set[Path] = set()
        for hidden in _abandoned(self.folder):
            abandoned.update(_files_of_incomplete_set(hidden))
        paths = [self.folder / name for name in self.names]
        existing = [path for path in paths if path.exists() and path not in abandoned]
        for path in keep:
            if any(path.samefile(target) for target in existing):
                raise ValueError(
                    f"{path} is an input and would be overwritten; "
                    f"choose another folder than {self.folder}"
                )
        if existing and not overwrite:
            subject = f"{existing[0]} exists"
            if len(existing) > 1:
                subject = f"{existing[0]} and {len(existing) - 1} more exist"
            raise FileExistsError(
                f"{subject} already; choose another folder, or pass overwrite=True (--overwrite)"
            )
        self._hidden: Path | None = None
        self._lock: int | None = None
        self._new_folders: list[Path] = []

    def __enter__(self) -> FileSet:
        try:
            folders = (self.folder, *self.folder.parents)
            self._new_folders = [folder for folder in folders if not folder.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.folder)
            self._hidden = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=self.folder))
            self._lock = _lock(self._hidden)
        except OSError as error:
            raise type(error)(
                f"cannot write to the folder {self.folder}: {error.strerror}; choose another one"
            ) from error
        return self

    def path(self, name: str) -> Path:
        """Return the path to write a file to."""
        if self._hidden is None or name not in self.names:
            raise ValueError(f"{name} is not a file of this set: {self.names}")
        return self._hidden / name

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the set."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        # A line for a list of numbers, not for each number. Inside a string there is no line
        # break.
        text = re.sub(
            r"\[\n[^][{}\"]*\]", lambda match: f"[{' '.join(match[0][1:-1].split())}]", text
        )
        self.path(name).write_text(text + "\n", encoding="utf-8")

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._hidden is None:
            return
        try:
            if error_type is None:
                written = [name for name in self.names if (self._hidden / name).exists()]
                # The mark of a complete set must not stand beside files of two runs.
                if len(written) > 1:
                    # If this process is killed now, the next one recognizes the incomplete set.
                    identities = {name: _identity(self._hidden / name) for name in written}
                    # Renaming works on a full disk, and this note must not prevent it.
                    with suppress(OSError):
                        write_text(self._hidden / _MOVING, json.dumps(identities))
                    (self.folder / self.names[-1]).unlink(missing_ok=True)
                for name in written:
                    os.replace(self._hidden / name, self.folder / name)
                # Files that only an earlier run wrote do not belong to these.
                for name in set(self.names) - set(written):
                    (self.folder / name).unlink(missing_ok=True)
        finally:
            for path in _files_of_incomplete_set(self._hidden):
                path.unlink(missing_ok=True)
            shutil.rmtree(self._hidden, ignore_errors=True)
            self._hidden = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            if error_type is not None:
                self._remove_new_folders()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise _explained(error, self.folder) from error

    def _remove_new_folders(self) -> None:
        for folder in self._new_folders:
            try:
                folder.rmdir()
            # Another run has written there.
            except OSError:
                return


def _explained(error: OSError, path: Path) -> OSError:
    """Name the file or folder that the disk has no room for; return other errors unchanged."""
    if error.errno not in _NO_ROOM:
        return error
    return OSError(
        f"no room to write {path}: {error.strerror}; free some, or choose a folder on another disk"
    )


def _lock(folder: Path) -> int | None:
    """Lock a folder until this process ends; None where the disk has no locks."""
    new_lock = folder / f"{_LOCK}.new"
    handle = os.open(new_lock, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        new_lock.unlink()
        return None
    # Renamed only now, so that no process meets it unlocked while this one lives.
    os.replace(new_lock, folder / _LOCK)
    return handle


def _remove_abandoned(folder: Path) -> None:
    """Remove hidden folders of killed processes, and files of incomplete sets."""
    for hidden in _abandoned(folder):
        for path in _files_of_incomplete_set(hidden):
            path.unlink(missing_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)


def _abandoned(folder: Path) -> Iterator[Path]:
    """Find hidden folders with a lock that no process holds, and lock each for the caller."""
    for hidden in folder.glob(f"{_HIDDEN}*"):
        try:
            handle = os.open(hidden / _LOCK, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            yield hidden
        finally:
            os.close(handle)


def _files_of_incomplete_set(hidden: Path) -> list[Path]:
    """Find the files that a killed process had renamed before the last one of their set."""
    try:
        identities = json.loads((hidden / _MOVING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    names = list(identities)
    # The last file marks a set as complete.
    if not names or not (hidden / names[-1]).exists():
        return []
    paths = []
    for name, identity in identities.items():
        path = hidden.parent / name
        # A file that another process has put there since stays.
        if path.exists() and _identity(path) == identity:
            paths.append(path)
    return paths


def _identity(path: Path) -> list[int]:
    """Return numbers that no other file has; that of the file system alone is used again."""
    status = path.stat()
    return [status.st_ino, status.st_mtime_ns, status.st_size]
