"""One thread for the linear algebra of a training, because its last bits depend on their number."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]

_known: tuple[int, ThreadpoolController] | None = None


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Run a block with one thread in every BLAS and OpenMP library of the process.

    The libraries are looked up again only after modules were imported, because a look takes longer than
    the training of a linear regression.

    Yields
    ------
    None
        With the limit set; what was set before comes back afterwards.
    """
    global _known
    n_modules = len(sys.modules)
    if _known is None or _known[0] != n_modules:
        _known = n_modules, ThreadpoolController()
    with _known[1].limit(limits=1):
        yield
