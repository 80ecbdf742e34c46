"""Number of parallel jobs, and linear algebra with one thread, on whose number bits depend."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import threadpoolctl
from threadpoolctl import ThreadpoolController

from dmrifit._utils.checks import is_number

_lock = threading.Lock()
_thread_state = threading.local()
_depth = 0
_blas: Any = None


def default_threads() -> int:
    """Count the threads of a fit: NUMBA_NUM_THREADS, or the processors of this process."""
    setting = os.environ.get("NUMBA_NUM_THREADS", "")
    if setting.isdecimal() and int(setting) > 0:
        return int(setting)
    # Clusters give a process fewer processors than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_in_chunks(
    work: Callable[[slice], None], n_rows: int, size: int, n_threads: int | None = None
) -> None:
    """Call a function with the slice of each chunk of a number of rows, several at a time."""
    chunks = [slice(at, min(at + size, n_rows)) for at in range(0, n_rows, size)]
    n = default_threads() if n_threads is None else n_threads
    if n == 1 or len(chunks) < 2:
        for chunk in chunks:
            work(chunk)
        return
    with ThreadPoolExecutor(n) as pool:
        try:
            for _ in pool.map(work, chunks):
                pass
        except BaseException:
            # Without this an interrupted fit would first work through all chunks that wait.
            pool.shutdown(cancel_futures=True)
            raise


def check_jobs(n_jobs: Any, name: str = "n_jobs") -> None:
    """Check the number of parallel jobs before work begins."""
    if n_jobs is not None and (not is_number(n_jobs, whole=True) or n_jobs == 0):
        raise ValueError(
            f"{name} must be a whole number of 1 or more, or -1 for one job on each core, not "
            f"{n_jobs!r}"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Run a block with one thread in every BLAS and OpenMP library of the process.

    The libraries are looked up again only after modules were imported, because a look takes longer
    than the training of a linear regression. Blocks may nest and run in several threads of Python:
    the limit of BLAS is that of the process, set by the first block and lifted after the last;
    that of OpenMP is set in every thread.
    """
    global _depth, _blas
    with _lock:
        # A look-up takes milliseconds, and only an import can bring new libraries.
        blas, openmp = _libraries(len(sys.modules))
        if _depth == 0:
            _take_control()
            _blas = blas.limit(limits=1)
        _depth += 1
    _thread_state.depth = getattr(_thread_state, "depth", 0) + 1
    if _thread_state.depth == 1:
        _thread_state.openmp = openmp.limit(limits=1)
    try:
        yield
    finally:
        _thread_state.depth -= 1
        if _thread_state.depth == 0:
            _thread_state.openmp.restore_original_limits()
        with _lock:
            _depth -= 1
            if _depth == 0:
                _take_control()
                _blas.restore_original_limits()
                _blas = None
                _take_control()


@lru_cache(maxsize=1)
def _libraries(_n_modules: int) -> list[ThreadpoolController]:
    """Look up the libraries of linear algebra and those of OpenMP."""
    controller = ThreadpoolController()
    return [controller.select(user_api=api) for api in ("blas", "openmp")]


def _take_control() -> None:
    """Let this thread set OpenBLAS, which newer threadpoolctl allows only to the first thread."""
    controller = getattr(threadpoolctl, "OpenBLASController", None)
    clear = getattr(controller, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)
