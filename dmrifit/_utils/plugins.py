"""Entry points of other packages: what goes wrong in them names the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint

from dmrifit._optional import EXTRAS


@contextmanager
def plugin_errors(entry: EntryPoint) -> Iterator[None]:
    """Name the package and its entry point in any error while the block loads and checks it."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    # Code of others may raise anything, or leave by sys.exit.
    except BaseException as error:
        # A missing library of an extra has a remedy of its own.
        if type(error) is ImportError and error.name in EXTRAS:
            raise
        package = entry.dist.name if entry.dist else entry.module.partition(".")[0]
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise ImportError(
            f"the package {package} has a faulty plug-in: its entry point {entry.name} = "
            f"{entry.value} of the group {entry.group} cannot be used ({reason}); update the "
            f"package, or uninstall it (pip uninstall {package})"
        ) from error
