"""How many jobs at a time; one thread for the linear algebra of a training, as its last bits depend on their number."""

from __future__ import annotations

import numbers
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import threadpoolctl
from threadpoolctl import ThreadpoolController

__all__ = ["check_jobs", "one_thread"]

_lock = threading.Lock()
_own = threading.local()
_depth = 0
_known: tuple[int, dict[str, ThreadpoolController]] | None = None
_blas: Any = None


def check_jobs(n_jobs: Any, name: str = "n_jobs") -> None:
    """Check how much is to be done at the same time, before it begins."""
    whole = isinstance(n_jobs, numbers.Integral) and not isinstance(n_jobs, bool)
    if n_jobs is not None and (not whole or n_jobs == 0):
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
    with _lock:
        openmp = _enter()
    _own.depth = getattr(_own, "depth", 0) + 1
    if _own.depth == 1:
        _own.openmp = openmp.limit(limits=1)
    try:
        yield
    finally:
        _own.depth -= 1
        if _own.depth == 0:
            _own.openmp.restore_original_limits()
        with _lock:
            _leave()


def _enter() -> ThreadpoolController:
    global _depth, _known, _blas
    n_modules = len(sys.modules)
    if _known is None or _known[0] != n_modules:
        found = ThreadpoolController()
        _known = n_modules, {kind: found.select(user_api=kind) for kind in ("blas", "openmp")}
    if _depth == 0:
        _take_control()
        _blas = _known[1]["blas"].limit(limits=1)
    _depth += 1
    return _known[1]["openmp"]


def _leave() -> None:
    global _depth, _blas
    _depth -= 1
    if _depth == 0:
        _take_control()
        _blas.restore_original_limits()
        _blas = None
        _take_control()


def _take_control() -> None:
    """Newer versions of threadpoolctl let only the thread that came first set OpenBLAS; here all count."""
    clear = getattr(
        getattr(threadpoolctl, "OpenBLASController", None), "clear_controlling_thread", None
    )
    if clear is not None:
        clear(force=True)
