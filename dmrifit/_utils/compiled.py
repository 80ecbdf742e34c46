"""Functions compiled by numba outside of fits: settings checked, damaged files made anew."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["check_environment", "njit"]

_DIGEST_SIZE = hashlib.sha256().digest_size
_logger = logging.getLogger("dmrifit")
_said: set[str] = set()


def check_environment() -> None:
    """Refuse settings of numba with which it shows a traceback, or compiles nothing."""
    n_threads = os.environ.get("NUMBA_NUM_THREADS")
    if n_threads is not None and not (n_threads.strip().isdecimal() and int(n_threads) > 0):
        raise ValueError(
            f"the environment variable NUMBA_NUM_THREADS is {n_threads!r}; set it to a whole "
            "number of 1 or more, or unset it"
        )
    if os.environ.get("NUMBA_DISABLE_JIT", "0").strip() not in ("", "0"):
        raise ValueError(
            "compiled code is needed, but the environment variable NUMBA_DISABLE_JIT is set; "
            "unset it"
        )


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """
    Compile a function by numba, and keep it on disk where `cache` is true.

    numba itself ends in a traceback, each time again, where a file of its cache is damaged.
    """
    check_environment()
    import numba

    is_kept = options.pop("cache", False)

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        if is_kept:
            try:
                dispatcher.enable_caching()
            # Where neither the package nor the home folder can be written to.
            except (OSError, RuntimeError) as error:
                _say_not_kept(error)
            else:
                dispatcher._cache = _healing(dispatcher._cache)
        return dispatcher

    return compiled


def _healing(cache: Any) -> Any:
    """Make a cache of numba check what it reads and compile again what is damaged."""
    from numba.core.caching import FunctionCache, IndexDataCacheFile

    class CheckedFiles(IndexDataCacheFile):
        """Files of one function, whose machine code ends with its digest."""

        def _dump(self, obj: Any) -> bytes:
            content = super()._dump(obj)
            return content + hashlib.sha256(content).digest()

        def _load_data(self, name: str) -> Any:
            sealed = Path(self._data_path(name)).read_bytes()
            content, digest = sealed[:-_DIGEST_SIZE], sealed[-_DIGEST_SIZE:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError(f"{name} was altered")
            return pickle.loads(content)

    class HealingCache(FunctionCache):
        """A cache that forgets damaged files, and needs no room."""

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            try:
                return super().load_overload(sig, target_context)
            # What can be wrong with machine code is only known to the libraries that read it.
            except Exception:
                _say(f"files of the cache {self.cache_path} are damaged: they are made anew")
                return None

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                super().save_overload(sig, data)
            except OSError as error:
                _say_not_kept(error)
            # The index is read before it is written, and may be what is damaged.
            except Exception:
                self.flush()
                super().save_overload(sig, data)

    healing = HealingCache.__new__(HealingCache)
    vars(healing).update(vars(cache))
    healing._cache_file = CheckedFiles(
        cache_path=cache.cache_path,
        filename_base=cache._impl.filename_base,
        source_stamp=cache._impl.locator.get_source_stamp(),
    )
    return healing


def _say_not_kept(error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    _say(
        f"compiled code cannot be kept ({reason}): every process compiles it anew; set "
        "NUMBA_CACHE_DIR to a folder that can be written to"
    )


def _say(line: str) -> None:
    """Log a line once."""
    if line not in _said:
        _said.add(line)
        _logger.warning("%s", line)
