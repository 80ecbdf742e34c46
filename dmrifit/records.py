"""What was computed from what: digests of data and settings, and a folder that keeps finished work."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit.files import remove_abandoned_parts, whole_file, write_text
from dmrifit.models import SignalModel
from dmrifit.protocol import Protocol

__all__ = ["StudyFolder", "command_line", "describe", "digest"]

_STUDY = "study.json"
_CELLS = "cells"
_PREDICTIONS = "predictions"
_FINISHED = "finished"


def describe(value: Any) -> Any:
    """
    Describe a value in plain JSON types, so that equal values have equal descriptions.

    Parameters
    ----------
    value : object
        An estimator, protocol, model, array, function, class or plain value, or containers of them.

    Returns
    -------
    object
        Numbers, strings, lists and dicts; of an array its shape, type and digest.

    Raises
    ------
    TypeError
        If the value has no such description.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        sha256 = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"array": list(value.shape), "type": str(value.dtype), "sha256": sha256}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [describe(item) for item in items]
    if isinstance(value, Protocol):
        return {"protocol": value.to_dict() | {"name": ""}}
    if isinstance(value, SignalModel):
        formula = {"source": value.source} if value.source else {"expression": value.expression}
        parameters = [[one.name, one.unit, one.low, one.high] for one in value.parameters]
        return {"model": value.name, **formula, "parameters": parameters}
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "get_params"):
        parameters = value.get_params(deep=False)
        return {"class": describe(type(value)), "parameters": describe(parameters)}
    if is_dataclass(value):
        content = {field.name: describe(getattr(value, field.name)) for field in fields(value)}
        return {"class": describe(type(value)), "fields": content}
    if type(value).__module__.startswith("sklearn.model_selection."):  # a way of splitting
        return {"class": describe(type(value)), "fields": describe(vars(value))}
    if callable(value) and "<" not in getattr(value, "__qualname__", "<"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, np.random.RandomState):
        return {"RandomState": describe(list(value.get_state(legacy=True)))}
    msg = (
        f"{value!r} cannot be described in a file, so its results could not be found again; use values, "
        "estimators and named functions, or leave out the folder"
    )
    raise TypeError(msg)


def digest(value: Any) -> str:
    """
    Compute the SHA-256 of a value's description.

    Parameters
    ----------
    value : object
        Anything that `describe` takes.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    text = json.dumps(describe(value), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def command_line(words: Iterable[str]) -> str:
    """
    Write a command as one would type it in the folder of its files.

    Parameters
    ----------
    words : iterable of str
        The program and what it was given.

    Returns
    -------
    str
        The words without the folders of paths: those name users, machines and sometimes patients, and reports are
        passed on.
    """
    return shlex.join(re.sub(r"[^=,]*/(?=[^/])|/+$", "", word) for word in words)


class StudyFolder:
    """
    The results of one study: finished cells, tables, a description.

    Parameters
    ----------
    path : str or Path
        Made on the first write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def settings(self) -> dict[str, Any]:
        """
        Read what study the folder holds.

        Returns
        -------
        dict
            Its settings; empty if the folder holds none.

        Raises
        ------
        ValueError
            If the file of settings cannot be read.
        """
        path = self.path / _STUDY
        if self.path.exists() and not self.path.is_dir():
            msg = f"{self.path} is a file; name a folder for the results"
            raise ValueError(msg)
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return dict(content["settings"])
        except (ValueError, KeyError, RecursionError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
            msg = f"{path} does not describe a study ({problem}); choose another folder, or remove this one"
            raise ValueError(msg) from None

    def check(self, settings: Mapping[str, Any]) -> None:
        """
        Make sure that the folder holds no other study.

        Parameters
        ----------
        settings : mapping
            What makes two studies the same.

        Raises
        ------
        ValueError
            If it does; the message names the difference.
        """
        wanted, there = describe(settings), self.settings()
        different = [key for key in wanted if there and there.get(key) != wanted[key]]
        if different:
            key = different[0]
            msg = (
                f"{self.path} holds the results of another study: {key} was {_short(there.get(key))} there "
                f"and is {_short(wanted[key])} now; choose another folder, or remove that one"
            )
            raise ValueError(msg)

    def claim(self, settings: Mapping[str, Any]) -> None:
        """
        Begin the study, or take it up again: until it is written whole, its tables count as unfinished.

        Parameters
        ----------
        settings : mapping
            As for `check`.

        Raises
        ------
        ValueError
            As for `check`.
        """
        self.check(settings)
        write_text(self.path / _STUDY, _json({"settings": describe(settings)}))
        for folder in (self.path, self.path / _CELLS):
            remove_abandoned_parts(folder)

    def write_study(self, content: Mapping[str, Any], tables: Mapping[str, str]) -> None:
        """
        Write tables, then the description of the study, which names their digests: so they belong together.

        Parameters
        ----------
        content : mapping
            Plain values; ``settings`` is what `check` compares.
        tables : mapping of str to str
            Names of files and their texts.
        """
        settings = content.get("settings", {})
        write_text(self.path / _STUDY, _json({"settings": settings}))
        for name, text in tables.items():
            write_text(self.path / name, text)
        finished = {name: _sha256(text) for name, text in tables.items()}
        write_text(self.path / _STUDY, _json({"settings": settings, **content, _FINISHED: finished}))

    def read_study(self) -> tuple[dict[str, Any], dict[str, str]]:
        """
        Read the description of the study and its tables.

        Returns
        -------
        content : dict
            As `write_study` got it.
        tables : dict of str to str
            Texts of the files by name.

        Raises
        ------
        FileNotFoundError
            If there is no study, or it is not finished.
        ValueError
            If a file is damaged or was changed.
        """
        path = self.path / _STUDY
        if not path.is_file():
            msg = f"{path} does not exist; name a folder that dmrifit benchmark or compare(..., out=folder) has made"
            raise FileNotFoundError(msg)
        self.settings()  # says so if it is no description
        content = json.loads(path.read_text(encoding="utf-8"))
        finished = content.pop(_FINISHED, None)
        if finished is None:
            msg = f"the comparison in {self.path} was not finished; run it again, and it goes on where it stopped"
            raise FileNotFoundError(msg)
        tables = {}
        for name, expected in finished.items():
            if Path(name).name != name:
                msg = f"{path} names the table {name!r}, which is none of this folder; run the comparison again"
                raise ValueError(msg)
            table = self.path / name
            if not table.is_file():
                msg = f"{table} does not exist, which belongs to the comparison there; run it again"
                raise FileNotFoundError(msg)
            text = table.read_bytes().decode("utf-8", errors="replace")
            if _sha256(text) != expected:
                msg = f"{table} was changed or damaged after it was written; run the comparison again to restore it"
                raise ValueError(msg)
            tables[name] = text
        return content, tables

    def get(self, key: str, *, arrays: bool = False) -> dict[str, Any] | None:
        """
        Read a finished cell.

        Parameters
        ----------
        key : str
            Its digest.
        arrays : bool, default=False
            Whether its predictions are needed.

        Returns
        -------
        dict or None
            What `put` got; None if the cell is not finished, cannot be read, or lacks the predictions.
        """
        path = self.path / _CELLS / f"{key}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if arrays:
                content[_PREDICTIONS] = {}
                with path.with_suffix(".npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    for name in stored:
                        kind, _, patient = name.partition("/")
                        content[_PREDICTIONS].setdefault(patient, {})[kind] = stored[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, RecursionError, TypeError):
            return None
        return content if isinstance(content, dict) and {"scores", "signals"} <= content.keys() else None

    def put(self, key: str, content: Mapping[str, Any]) -> None:
        """
        Keep a finished cell.

        Parameters
        ----------
        key : str
            Its digest.
        content : mapping
            Plain values; ``predictions``, if there, are arrays by patient and kind.
        """
        path = self.path / _CELLS / f"{key}.json"
        plain = {name: value for name, value in content.items() if name != _PREDICTIONS}
        if _PREDICTIONS in content:
            arrays = {
                f"{kind}/{patient}": values
                for patient, kinds in content[_PREDICTIONS].items()
                for kind, values in kinds.items()
            }
            with whole_file(path.with_suffix(".npz")) as part, part.open("wb") as file:
                np.savez(file, **arrays)
        write_text(path, json.dumps(plain))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
