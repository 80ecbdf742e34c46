"""Files derived from an image: their names, what is written beside them, and how they appear all at once."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["FileSet", "derivative_name", "file_record", "label", "stem", "versions"]

_EXTENSIONS = re.compile(r"\.(nii|img|hdr)(\.(gz|bz2|zst))?$", re.IGNORECASE)
_BIDS = re.compile(r"(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)+[a-zA-Z0-9]+")


def label(text: str) -> str:
    """
    Reduce a text to what BIDS allows as the value of an entity: letters and digits.

    Parameters
    ----------
    text : str
        Such as ``"t2-ivim-kurtosis"``.

    Returns
    -------
    str
        Such as ``"t2ivimkurtosis"``.
    """
    return re.sub(r"[^a-zA-Z0-9]", "", text)


def stem(path: str | Path) -> str:
    """
    Give the name of an image file without its folder and extensions.

    Parameters
    ----------
    path : str or Path
        Such as ``"study/sub-01_dwi.nii.gz"``.

    Returns
    -------
    str
        Such as ``"sub-01_dwi"``.
    """
    return _EXTENSIONS.sub("", Path(path).name)


def derivative_name(source: str, suffix: str, **entities: str) -> str:
    """
    Name a file derived from an image, in the manner of BIDS derivatives.

    Parameters
    ----------
    source : str
        `stem` of the image. If it is a BIDS name, its entities are kept and its suffix is not; any other name is
        kept whole. An empty one adds nothing.
    suffix : str
        Last part of the name with its extension, such as ``"dwimap.nii.gz"``.
    **entities : str
        Entities to add, in order, such as ``model="ivim", param="f"``; values are reduced by `label`. ``desc`` of
        the image stays last, as BIDS orders it.

    Returns
    -------
    str
        Such as ``"sub-01_model-ivim_param-f_dwimap.nii.gz"``.
    """
    parts = source.split("_") if source else []
    description: list[str] = []
    if _BIDS.fullmatch(source):
        parts = parts[:-1]
        description = [part for part in parts if part.startswith("desc-")]
        parts = [part for part in parts if part not in description]
    added = [f"{key}-{label(value)}" for key, value in entities.items()]
    return "_".join([*parts, *added, *description, suffix])


def file_record(path: str | Path) -> dict[str, str]:
    """
    Describe an input file so that it can be recognized later.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    dict
        Its ``Name`` without the folder, and the ``SHA256`` of its bytes.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"Name": Path(path).name, "SHA256": digest}


def versions(*packages: str) -> dict[str, str]:
    """
    List the versions that made a result.

    Parameters
    ----------
    *packages : str
        Names of distributions; by default dmrifit, numba, numpy and nibabel.

    Returns
    -------
    dict
        Version by name, Python first.
    """
    names = packages or ("dmrifit", "numba", "numpy", "nibabel")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


class FileSet:
    """
    Files that appear together under their names, each of them complete, or not at all.

    As a context manager it makes the folder and a hidden one inside it. `path` gives a place in the hidden folder
    for each file; when the block ends without an exception, all are renamed to their names, the last declared one
    last. After an exception (or Ctrl-C) the hidden folder is removed and nothing has changed; a killed process can
    leave the hidden folder behind, never a half file under a final name.

    Parameters
    ----------
    folder : str or Path
        Where the files go; made if missing.
    names : iterable of str
        All file names that may be written; the last one marks the set as complete.
    overwrite : bool, default=False
        Whether files of these names may be replaced.
    keep : iterable of Path, optional
        Inputs, which are never replaced.

    Raises
    ------
    FileExistsError
        If one of the files exists and `overwrite` is false, on construction.
    ValueError
        If two names differ only by case or one is an input, on construction.
    OSError
        If the folder cannot be made or written to, when the block is entered.
    """

    def __init__(
        self, folder: str | Path, names: Iterable[str], *, overwrite: bool = False, keep: Iterable[Path] = ()
    ) -> None:
        self.folder = Path(folder)
        self.names = list(names)
        if len({name.casefold() for name in self.names}) != len(self.names):
            msg = f"some file names differ only by case, which not every disk can hold: {sorted(self.names)}"
            raise ValueError(msg)
        existing = [self.folder / name for name in self.names if (self.folder / name).exists()]
        for path in keep:
            if any(path.samefile(other) for other in existing):
                msg = f"{path} is an input and would be overwritten; choose another folder than {self.folder}"
                raise ValueError(msg)
        if existing and not overwrite:
            more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
            msg = f"{existing[0]}{more} exist already; choose another folder, or pass overwrite=True (--overwrite)"
            raise FileExistsError(msg)
        self._hidden: Path | None = None

    def __enter__(self) -> FileSet:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hidden = Path(tempfile.mkdtemp(prefix=".dmrifit-", dir=self.folder))
        except OSError as error:
            msg = f"cannot write to the folder {self.folder}: {error.strerror}; choose another one"
            raise type(error)(msg) from error
        return self

    def path(self, name: str) -> Path:
        """
        Give the place to write a file to.

        Parameters
        ----------
        name : str
            One of the names of the set.

        Returns
        -------
        Path
            A path whose last part is that name.

        Raises
        ------
        ValueError
            If the name was not declared, or the block has not been entered.
        """
        if self._hidden is None or name not in self.names:
            msg = f"{name} is not a file of this set: {self.names}"
            raise ValueError(msg)
        return self._hidden / name

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """
        Write a JSON file of the set.

        Parameters
        ----------
        name : str
            One of the names of the set.
        content : mapping
            Plain values; NaN is not allowed.
        """
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        self.path(name).write_text(text + "\n", encoding="utf-8")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hidden is None:
            return
        try:
            if kind is None:
                written = [name for name in self.names if (self._hidden / name).exists()]
                # The mark of a complete set must not stand beside files of two runs.
                if len(written) > 1:
                    (self.folder / self.names[-1]).unlink(missing_ok=True)
                for name in written:
                    os.replace(self._hidden / name, self.folder / name)
                # What an earlier run wrote and this one did not would belong to other maps.
                for name in set(self.names) - set(written):
                    (self.folder / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(self._hidden, ignore_errors=True)
            self._hidden = None
