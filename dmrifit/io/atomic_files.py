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
_PART = ".part-"
_ABANDONED = 600.0  # seconds


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """
    Write a file that appears under its name only when it is complete.

    What a killed process has left of a file of this name is removed, by the rule of
    `remove_abandoned_parts`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned_parts(path.parent, path.name)
    part = path.with_name(f"{_PART}{os.getpid()}-{path.name}")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise _explained(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file that appears under its name only when it is complete."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def remove_abandoned_parts(folder: str | Path, name: str | None = None) -> None:
    """Remove what killed processes have left of files that never got their names."""
    for part in Path(folder).glob(f"{_PART}*"):
        pid, _, own = part.name.removeprefix(_PART).partition("-")
        if not pid.isdecimal() or name not in (None, own):
            continue
        try:
            if time.time() - part.stat().st_mtime > _ABANDONED and not _alive(int(pid)):
                part.unlink(missing_ok=True)
        except OSError:  # gone already
            continue


def _alive(pid: int) -> bool:
    """Whether there is a process of a number on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # that of another user
        return True
    return True


class FileSet:
    """
    Files that appear together under their names, each of them complete, or not at all.

    As a context manager it makes the folder and a hidden one inside it. `path` gives a place in the hidden folder
    for each file; when the block ends without an exception, all are renamed to their names, the last declared one
    last. After an exception (or Ctrl-C) what was made is removed and nothing has changed; a killed process can
    leave the hidden folder behind, never a half file under a final name, and the next run in the same place removes
    it, with the files of a set that had got their names when the others had not. A folder in use is locked by the
    process that made it, so that runs at the same time leave each other alone.

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
                f"some file names differ only by case, which not every disk can hold: {sorted(self.names)}"
            )
        left = {path for hidden in _abandoned(self.folder) for path in _moved_in_part(hidden)}
        named = [self.folder / name for name in self.names]
        existing = [path for path in named if path.exists() and path not in left]
        for path in keep:
            if any(path.samefile(other) for other in existing):
                raise ValueError(
                    f"{path} is an input and would be overwritten; choose another folder than {self.folder}"
                )
        if existing and not overwrite:
            more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
            verb = "exist" if more else "exists"
            raise FileExistsError(
                f"{existing[0]}{more} {verb} already; choose another folder, or pass overwrite=True (--overwrite)"
            )
        self._hidden: Path | None = None
        self._lock: int | None = None
        self._made: list[Path] = []

    def __enter__(self) -> FileSet:
        try:
            self._made = [
                folder for folder in (self.folder, *self.folder.parents) if not folder.exists()
            ]
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
        """Give the place to write a file to."""
        if self._hidden is None or name not in self.names:
            raise ValueError(f"{name} is not a file of this set: {self.names}")
        return self._hidden / name

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the set."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        # A line for a list of numbers, not for each number. Inside a string there is no line break.
        text = re.sub(
            r"\[\n[^][{}\"]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text
        )
        self.path(name).write_text(text + "\n", encoding="utf-8")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._hidden is None:
            return
        try:
            if kind is None:
                written = [name for name in self.names if (self._hidden / name).exists()]
                # The mark of a complete set must not stand beside files of two runs.
                if len(written) > 1:
                    # Should this process be killed now, the next one finds out what is a part of a set only.
                    numbers = {name: _identity(self._hidden / name) for name in written}
                    with suppress(
                        OSError
                    ):  # moving needs no room, and must not fail for want of it
                        write_text(self._hidden / _MOVING, json.dumps(numbers))
                    (self.folder / self.names[-1]).unlink(missing_ok=True)
                for name in written:
                    os.replace(self._hidden / name, self.folder / name)
                # What an earlier run wrote and this one did not would belong to other maps.
                for name in set(self.names) - set(written):
                    (self.folder / name).unlink(missing_ok=True)
        finally:
            for path in _moved_in_part(self._hidden):
                path.unlink(missing_ok=True)
            shutil.rmtree(self._hidden, ignore_errors=True)
            self._hidden = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            if kind is not None:
                self._remove_made()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise _explained(error, self.folder) from error

    def _remove_made(self) -> None:
        """Remove the folders that were made for nothing."""
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # another run has written there
                return


def _explained(error: OSError, path: Path) -> OSError:
    """Tell which file or folder there is no room for; other errors stay as they are."""
    if error.errno not in _NO_ROOM:
        return error
    return OSError(
        f"no room to write {path}: {error.strerror}; free some, or choose a folder on another disk"
    )


def _lock(folder: Path) -> int | None:
    """Lock a folder until this process ends; None where the disk has no locks."""
    making = folder / f"{_LOCK}.new"
    handle = os.open(making, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        making.unlink()
        return None
    # Under its name it is never seen unlocked while its process lives.
    os.replace(making, folder / _LOCK)
    return handle


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left: hidden folders, and files of sets that are not complete."""
    for hidden in _abandoned(folder):
        for path in _moved_in_part(hidden):
            path.unlink(missing_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)


def _abandoned(folder: Path) -> Iterator[Path]:
    """Find hidden folders whose process is gone, and hold each while it is looked at; those without a lock are not."""
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


def _moved_in_part(hidden: Path) -> list[Path]:
    """Find the files that a process had given their names when it was killed; none if all of them had got theirs."""
    try:
        numbers = json.loads((hidden / _MOVING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    names = list(numbers)
    if not names or not (hidden / names[-1]).exists():
        return []
    # By their numbers on the disk: what somebody else has put there since is not touched.
    found = {hidden.parent / name: number for name, number in numbers.items()}
    return [path for path, number in found.items() if path.exists() and _identity(path) == number]


def _identity(path: Path) -> list[int]:
    """Tell a file from every other one that has had, or will have, its number on the disk."""
    found = path.stat()
    return [found.st_ino, found.st_mtime_ns, found.st_size]
