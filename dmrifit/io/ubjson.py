"""Universal Binary JSON, read: the format of xgboost's model files, so that they can be checked before use."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["read_ubjson"]

_NUMBERS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_INTEGERS = "iUIlL"
_CONSTANTS = {"Z": None, "T": True, "F": False}
_DEPTH = 32


def read_ubjson(data: bytes) -> Any:
    """
    Read a document of Universal Binary JSON.

    References
    ----------
    Universal Binary JSON Specification, draft 12, https://ubjson.org.
    """
    reader = _Reader(data)
    value = reader.value(reader.marker(), 0)
    if reader.position != len(data):
        raise ValueError(f"{len(data) - reader.position} bytes follow the document")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, n: int) -> bytes:
        if not 0 <= n <= len(self.data) - self.position:
            raise ValueError(
                f"{n} bytes are announced at byte {self.position} of {len(self.data)}"
            )
        self.position += n
        return self.data[self.position - n : self.position]

    def marker(self) -> str:
        return self.take(1).decode("latin-1")

    def numbers(self, kind: str, n: int) -> Any:
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.take(n * dtype.itemsize), dtype).astype(dtype.newbyteorder("="))

    def length(self) -> int:
        kind = self.marker()
        if kind not in _INTEGERS:
            raise ValueError(f"a length has the type {kind!r}")
        n = int(self.numbers(kind, 1)[0])
        if not 0 <= n <= len(self.data):
            raise ValueError(f"a length is {n}")
        return n

    def text(self) -> str:
        return self.take(self.length()).decode()

    def value(self, kind: str, depth: int) -> Any:
        if depth > _DEPTH:
            raise ValueError(f"it is nested more than {_DEPTH} deep")
        if kind in _NUMBERS:
            return self.numbers(kind, 1)[0].item()
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind == "S":
            return self.text()
        if kind in "[{":
            return self.container(kind, depth + 1)
        raise ValueError(f"unknown type {kind!r} at byte {self.position - 1}")

    def container(self, kind: str, depth: int) -> Any:
        """Read what is in brackets or braces: with or without one type for all, with a count or up to the end."""
        following = self.marker()
        shared = None
        if following == "$":
            shared = self.marker()
            following = self.marker()
        if shared is not None and following != "#":
            raise ValueError(f"a container of type {shared!r} has no count")
        if following == "#":
            n = self.length()
            if kind == "[" and shared in _NUMBERS:
                return self.numbers(shared, n)
            if kind == "[":
                return [self.value(shared or self.marker(), depth) for _ in range(n)]
            return {self.text(): self.value(shared or self.marker(), depth) for _ in range(n)}
        self.position -= 1
        if kind == "[":
            items = []
            while (found := self.marker()) != "]":
                items.append(self.value(found, depth))
            return items
        entries = {}
        while self.marker() != "}":
            self.position -= 1
            key = self.text()
            entries[key] = self.value(self.marker(), depth)
        return entries
