"""Record of the scans that a detector and its threshold come from, for checks of later scans."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dmrifit.io.bids_derivatives import file_record
from dmrifit.io.parameter_json import refuse_keys

if TYPE_CHECKING:
    from anomaly.scans.preparation import PreparedScan

__all__ = ["TrainingScans"]

#: Notes of the preparation that change which voxels count, or their scores.
_STEPS = {
    "brain": "brain mask",
    "tissue": "tissue map",
    "directions_resampled": "resampling of directions",
}


@dataclass(frozen=True)
class TrainingScans:
    """
    The scans of a training and of its threshold.

    Attributes
    ----------
    images : tuple of str
        Digests of the files of the series.
    patients : tuple of str
        Digests of the patients' names, so that a model file names nobody.
    steps : dict of tuple of str
        Ways in which brain, tissues and directions of these scans came about.
    remarks : tuple of str
        Sentences on what the preparation lost.
    """

    images: tuple[str, ...]
    patients: tuple[str, ...]
    steps: Mapping[str, tuple[str, ...]]
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, scans: Sequence[PreparedScan], images: Sequence[Any]) -> TrainingScans:
        """Record prepared scans and the paths of their series."""
        steps = {}
        for step in _STEPS:
            steps[step] = tuple(sorted({str(scan.notes[step]) for scan in scans}))
        sentences = [scan.notes[key] for scan in scans for key in ("lost", "unused")]
        return cls(
            tuple(file_record(path)["SHA256"] for path in images),
            tuple(sorted({_digest(scan.case.patient) for scan in scans})),
            steps,
            tuple(dict.fromkeys(filter(None, sentences))),
        )

    def overlap(self, images: Sequence[Any], patients: Sequence[str]) -> list[int]:
        """List the numbers of scans that are among these, or are of their patients."""
        shared = []
        for i, (path, patient) in enumerate(zip(images, patients, strict=True)):
            is_known = _digest(patient) in self.patients
            if is_known or file_record(path)["SHA256"] in self.images:
                shared.append(i)
        return shared

    def differences(self, notes: Mapping[str, Any]) -> list[str]:
        """Name the steps in which the preparation of a scan is not that of these scans."""
        sentences = []
        for step, noun in _STEPS.items():
            way = str(notes[step])
            if way not in self.steps[step]:
                usual = " or ".join(self.steps[step])
                sentences.append(f"{noun}: {way} (calibration scans: {usual})")
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for a model file."""
        content = asdict(self)
        content["steps"] = {step: list(ways) for step, ways in self.steps.items()}
        for key in ("images", "patients", "remarks"):
            content[key] = list(content[key])
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainingScans:
        """Read plain values of a model file."""
        keys = {"images", "patients", "steps", "remarks"}
        refuse_keys(content, keys, "part of training scans", complete=True)
        refuse_keys(content["steps"], set(_STEPS), "step of a preparation", complete=True)
        steps = {step: _texts(ways) for step, ways in content["steps"].items()}
        images, patients = _texts(content["images"]), _texts(content["patients"])
        return cls(images, patients, steps, _texts(content["remarks"]))


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _digest(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()
