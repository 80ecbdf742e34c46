"""Settings of a study, and its folder with the results of finished trainings and its tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit._utils.checks import Count
from dmrifit.cohort.scan import MaskName
from dmrifit.io.atomic_files import remove_abandoned_parts, whole_file, write_text
from dmrifit.io.digests import command_line, describe
from dmrifit.report.page import Texts

_TEXTS = Texts(__file__)
_STUDY = "study.json"
_FORMAT = 2
_CELLS = "cells"
_PREDICTIONS = "predictions"
_FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a comparison was asked for."""

    cohorts: dict[str, list[str]]  # patients by cohort
    train_on: list[str]
    train_mask: MaskName = "body"
    score_mask: MaskName = "lesion"
    n_train: list[int] | None = None
    n_repeats: Count = 1
    max_voxels: Count | None = None
    resynthesize: bool = False
    seed: int = 0


class StudyFolder:
    """
    The folder of one study, made when something is first written to it.

    study.json has the settings, and after the end of the study the SHA-256 of each table. The
    folder "cells" has the scores of each finished training (a cell of the comparison), so that an
    interrupted study can be resumed. With `overwrite` a study of other settings is replaced, and
    its study.json only when it is claimed.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path, self.overwrite = Path(path), overwrite

    def settings(self) -> dict[str, Any]:
        """Read the settings of the study in the folder; empty without a study."""
        return self.description().get("settings", {})

    def description(self) -> dict[str, Any]:
        """Read study.json, also of an unfinished study; empty without one."""
        path = self.path / _STUDY
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; name a folder of a comparison")
        if self.overwrite or not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["settings"] = dict(content["settings"])
            file_format = content.pop("format", None)
        except (ValueError, KeyError, RecursionError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise ValueError(_TEXTS("no_study", path=path, problem=problem)) from None
        if file_format != _FORMAT:
            raise ValueError(_TEXTS("other_version", path=path))
        return dict(content)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError if the folder has a study of other settings."""
        earlier = self.settings()
        for key, value in describe(settings).items() if earlier else ():
            if earlier.get(key) != value:
                values = {"before": f"{earlier.get(key)!r:.80}", "now": f"{value!r:.80}"}
                raise ValueError(_TEXTS("other_study", folder=self.path, key=key, **values))

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Begin or resume a study, which counts as unfinished until `write_study`."""
        self.check(settings)
        # What an earlier run finished is still told, until the tables are written again.
        content = {"settings": describe(settings), "command": command_line(), _FINISHED: None}
        self._write_description(**self.description() | content)
        for folder in (self.path, self.path / _CELLS):
            remove_abandoned_parts(folder)

    def write_study(self, content: Mapping[str, Any], tables: Mapping[str, str]) -> None:
        """Write the tables of a finished study by their file names, then study.json."""
        content = {"settings": {}, **content}
        # Without digests the study counts as unfinished while its tables are replaced.
        self._write_description(**content)
        for name, text in tables.items():
            write_text(self.path / name, text)
        digests = {name: _sha256(text) for name, text in tables.items()}
        self._write_description(**content, **{_FINISHED: digests})

    def _write_description(self, **content: Any) -> None:
        text = json.dumps({"format": _FORMAT, **content}, indent=1, ensure_ascii=False)
        write_text(self.path / _STUDY, f"{text}\n")

    def read_study(self, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Read study.json and the tables of these names of a finished study."""
        path = self.path / _STUDY
        if not (content := self.description()):
            raise FileNotFoundError(_TEXTS("none", path=path))
        digests = content.pop(_FINISHED, None)
        if digests is None:
            command = content.get("command", "by the command that began it")
            raise FileNotFoundError(_TEXTS("unfinished", folder=self.path, command=command))
        tables = {}
        # No file name is taken from study.json, which could lead out of the folder.
        for name in names:
            table = self.path / name
            if not table.is_file():
                raise FileNotFoundError(_TEXTS("missing", table=table))
            text = table.read_bytes().decode("utf-8", errors="replace")
            if _sha256(text) != digests.get(name):
                raise ValueError(_TEXTS("changed", table=table))
            tables[name] = text
        return content, tables

    def get(self, key: str, *, arrays: bool = False) -> dict[str, Any] | None:
        """Read the results of a training, with its predictions if `arrays`; None if unfinished."""
        path = self.path / _CELLS / f"{key}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if arrays:
                with path.with_suffix(".npz").open("rb") as file:
                    content[_PREDICTIONS] = dict(np.load(file, allow_pickle=False))
        # A damaged file, as after a power cut, counts as missing: the training is run again.
        except Exception:
            return None
        if not isinstance(content, dict) or not {"scores", "signals"} <= content.keys():
            return None
        return content

    def put(self, key: str, content: Mapping[str, Any]) -> None:
        """Write the results of a finished training."""
        path = self.path / _CELLS / f"{key}.json"
        plain = {name: value for name, value in content.items() if name != _PREDICTIONS}
        if _PREDICTIONS in content:
            # Arrays first: the JSON file, written last, marks the training as finished.
            arrays_path = path.with_suffix(".npz")
            with whole_file(arrays_path, lasting=False) as part, part.open("wb") as file:
                np.savez(file, **content[_PREDICTIONS])
        with whole_file(path, lasting=False) as part:
            part.write_text(json.dumps(plain), encoding="utf-8")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
