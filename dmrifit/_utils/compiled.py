"""Functions compiled by numba outside of fits: settings checked, machine code kept on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmrifit._utils.code_store import CodeStore

# Chooses the folder of the machine code.
_VARIABLE = "NUMBA_CACHE_DIR"

_logger = logging.getLogger("dmrifit")


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
                _say_not_kept(str(error))
            else:
                files = dispatcher._cache
                stamp = files._impl.locator.get_source_stamp()
                _store_of(function.__module__, files.cache_path).adopt(dispatcher, stamp)
        return dispatcher

    return compiled


@cache
def _store_of(module: str, folder: str) -> CodeStore:
    from dmrifit._utils.code_store import CodeStore

    return CodeStore(Path(folder, f"{module}.py"), f"module {module}", _VARIABLE)


# Said once, not for every function.
@cache
def _say_not_kept(reason: str) -> None:
    _logger.warning(
        "compiled code cannot be kept (%s): every process compiles it anew; set %s to a folder "
        "that can be written to",
        reason,
        _VARIABLE,
    )
