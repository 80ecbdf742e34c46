"""Standard streams: readers that are gone cost no result, and names command no terminal."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# What bars write: a return before their text, and lines up to that of another bar.
_OF_BARS = re.compile(r"\r|(?:\x1b\[A)+\Z")


@contextmanager
def lenient_streams() -> Iterator[None]:
    """
    Let messages be lost on standard error, and output whose reader has gone.

    A full disk under standard output is still an error: what it holds may be the result.
    """
    _occupy_closed()
    before = sys.stdout, sys.stderr
    sys.stdout = _LenientStream(sys.stdout, {errno.EPIPE})
    sys.stderr = _LenientStream(sys.stderr, None)
    lenient = sys.stdout, sys.stderr
    try:
        yield
    finally:
        # What a full disk does not take is told by Python at its end.
        for stream in lenient:
            with suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = before


def printable(text: str, kept: str = "") -> str:
    """Escape what a terminal would obey or not show: messages quote names and damaged files."""
    if text.isprintable():
        return text
    plain = [c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text]
    return "".join(plain)


def _occupy_closed() -> None:
    """Open streams that the caller has closed: the next file would take their place otherwise."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Python has none where they were closed when it started.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


class _LenientStream:
    """A text stream that drops what cannot be written for one of these errors; None is any."""

    def __init__(self, stream: Any, dropped: set[int] | None) -> None:
        self._stream = stream
        self._dropped = dropped

    def write(self, text: str) -> int:
        bar = _OF_BARS.match(text)
        start = bar.end() if bar else 0
        with self._dropping():
            self._stream.write(text[:start] + printable(text[start:], "\n\t"))
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._dropped is not None and error.errno not in self._dropped:
                # Without its number, by which a full disk under result files is known.
                raise OSError(
                    f"standard output cannot be written ({error.strerror}); free some space, or "
                    "redirect it to another disk"
                ) from error
            # What is buffered still would be written at the end, and fail again.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
