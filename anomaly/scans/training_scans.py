"""Record of the scans that a detector and its threshold come from, for checks of later scans."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from dmrifit.io.bids_derivatives import file_record
from dmrifit.io.parameter_json import refuse_keys

if TYPE_CHECKING:
    from anomaly.scans.preparation import PreparedScan

#: Work of the digest of a name, which takes some hundredths of a second: names of a hospital are
#: few enough to be guessed, one after the other, from a quick one.
_WORK: dict[str, int] = {"n": 2**14, "r": 8, "p": 1}
#: Notes of the preparation that change which voxels count, or their scores.
_STEPS = {
    "brain": "brain mask",
    "tissue": "tissue map",
    "directions_resampled": "resampling of directions",
}


@dataclass(frozen=True)
class TrainingScans:
    """The scans of a training and of its threshold."""

    images: tuple[str, ...]  # digests of the files of the series
    patients: tuple[str, ...]  # digests of the patients' names, so that a model file names nobody
    steps: Mapping[str, tuple[str, ...]]  # ways in which brain, tissues and directions came about
    remarks: tuple[str, ...] = ()  # sentences on what the preparation lost
    # Salt of the digests, from the content of the series, so that a file can be reproduced and no
    # table of digests fits two; empty in the first files, whose digests are quick to guess.
    salt: str = ""

    @classmethod
    def of(cls, scans: Sequence[PreparedScan], images: Sequence[Any]) -> TrainingScans:
        """Record prepared scans and the paths of their series."""
        steps = {}
        for step in _STEPS:
            steps[step] = tuple(sorted({str(scan.notes[step]) for scan in scans}))
        sentences = [scan.notes[key] for scan in scans for key in ("lost", "unused")]
        contents = tuple(file_record(path)["SHA256"] for path in images)
        salt = hashlib.sha256(" ".join(sorted(contents)).encode()).hexdigest()
        patients = {scan.case.patient for scan in scans}
        return cls(
            contents,
            tuple(sorted(_digest(patient, salt) for patient in patients)),
            steps,
            tuple(dict.fromkeys(filter(None, sentences))),
            salt,
        )

    def overlap(self, images: Sequence[Any], patients: Sequence[str]) -> list[int]:
        """List the numbers of scans that are among these, or are of their patients."""
        shared = []
        digests = {patient: _digest(patient, self.salt) for patient in set(patients)}
        for i, (path, patient) in enumerate(zip(images, patients, strict=True)):
            is_known = digests[patient] in self.patients
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

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainingScans:
        """Read plain values of a model file."""
        content = {"salt": ""} | dict(content)
        names = {field.name for field in fields(cls)}
        refuse_keys(content, names, "part of training scans", complete=True)
        refuse_keys(content["steps"], set(_STEPS), "step of a preparation", complete=True)
        steps = {step: _texts(ways) for step, ways in content["steps"].items()}
        images, patients = _texts(content["images"]), _texts(content["patients"])
        return cls(images, patients, steps, _texts(content["remarks"]), str(content["salt"]))


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _digest(patient: str, salt: str) -> str:
    if not salt:
        return hashlib.sha256(patient.encode()).hexdigest()
    return hashlib.scrypt(patient.encode(), salt=salt.encode(), **_WORK).hex()
