"""Files of compiled code: whole when written, checked when read."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

from dmrifit._utils.garbage import collection_paused

# The last line of every file, a comment in those of Python.
_SEAL = b"\n# sha256 "
_SEAL_SIZE = len(_SEAL) + 64 + 1

_logger = logging.getLogger("dmrifit")


class CodeStore:
    """
    The files of a compiled module, in the folder of its path.

    Messages name it by its title, and the environment variable that chooses another folder.
    """

    def __init__(self, path: Path, title: str, variable: str) -> None:
        self.path = path
        self._title = title
        self._variable = variable
        self._said: set[str] = set()

    def module_text(self, write: Callable[[], str]) -> str:
        """Read the source of a generated module, or write it where it is missing or damaged."""
        content = self.read(self.path)
        if content is None:
            content = write().encode()
            self.write(self.path, content)
        return content.decode()

    def read(self, path: Path) -> bytes | None:
        """Read a file; None where there is none, or none that is as it was written."""
        try:
            sealed = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            sealed = b""
        content, seal = sealed[:-_SEAL_SIZE], sealed[-_SEAL_SIZE:]
        if seal != _seal(content):
            self.say_damaged(path)
            return None
        return content

    def write(self, path: Path, content: bytes) -> None:
        """Write a file that is whole even after a power cut, or raise an OSError."""
        handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content + _seal(content))
                file.flush()
                os.fsync(file.fileno())
            if path.is_dir():
                path.rmdir()
            os.replace(unfinished, path)
        except OSError:
            Path(unfinished).unlink(missing_ok=True)
            raise

    def say_damaged(self, path: Path) -> None:
        """Say once that a file is rebuilt."""
        self._say(
            "damaged",
            f"the file {path.name} in the cache {self.path.parent} is damaged: it is made anew "
            f"for the {self._title}",
        )

    def say_not_kept(self, error: Exception) -> None:
        """Say once that the disk does not take what was compiled."""
        reason = getattr(error, "strerror", None) or str(error)
        self._say(
            "not kept",
            f"the compiled {self._title} cannot be kept in the cache {self.path.parent} "
            f"({reason}): it is compiled anew in every process; set {self._variable} to a folder "
            "that can be written to",
        )

    def _say(self, kind: str, line: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            _logger.warning("%s", line)

    def adopt(self, dispatcher: Any, stamp: Any = None) -> None:
        """
        Let a jitted function keep its machine code in files of this kind.

        They hold good as long as the stamp of its source is the same.
        """
        if not isinstance(dispatcher._cache, FunctionCache):
            return
        dispatcher._cache = _CheckedCache(dispatcher._cache, self, stamp)
        compile_signature = dispatcher.compile

        def compile_quietly(signature: Any) -> Any:
            with global_compiler_lock, collection_paused():
                return compile_signature(signature)

        dispatcher.compile = compile_quietly

    @staticmethod
    def has(dispatcher: Any) -> bool:
        """Tell whether a function is stored."""
        return bool(dispatcher._cache._cache_file.exists())


def _seal(content: bytes) -> bytes:
    return _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


class _CheckedCache(FunctionCache):
    """numba's cache of one function, with a check of every file."""

    def __init__(self, cache: FunctionCache, store: CodeStore, stamp: Any) -> None:
        vars(self).update(vars(cache))
        self._store = store
        self._cache_file: Any = _CheckedFiles(
            Path(cache.cache_path), self._impl.filename_base, store, stamp
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        # What can be wrong with machine code is only known to the many libraries that read it.
        except Exception:
            self._store.say_damaged(self._cache_file.path)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            self._store.say_not_kept(error)


class _CheckedFiles:
    """One file of machine code for each signature of a function."""

    def __init__(self, folder: Path, name: str, store: CodeStore, stamp: Any) -> None:
        # numba's own files of the same function have no seal, and may lie in this folder.
        self.path = folder / f"{name}.sealed"
        self._store = store
        self._made_by = numba.__version__, stamp

    def exists(self) -> bool:
        """Tell whether there is a file, of whatever signature."""
        return any(self.path.parent.glob(f"{glob.escape(self.path.name)}.*"))

    def load(self, key: Any) -> Any:
        content = self._store.read(self._file(key))
        made_by, code = (None, b"") if content is None else pickle.loads(content)
        # Objects of another version might not be read.
        return pickle.loads(code) if made_by == self._made_by else None

    def save(self, key: Any, data: Any) -> None:
        self._store.write(self._file(key), dumps((self._made_by, dumps(data))))

    def _file(self, key: Any) -> Path:
        digest = hashlib.sha256(repr(key).encode()).hexdigest()
        return self.path.with_name(f"{self.path.name}.{digest[:16]}.nbc")
