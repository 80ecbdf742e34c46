"""Records of the scans that detectors come from."""

import hashlib
from types import SimpleNamespace

import pytest

from anomaly.scans.training_scans import TrainingScans
from anomaly.scans.whole_scan import plain_record
from dmrifit.io.parameter_json import RefusedError

NOTES = {"brain": "given", "tissue": "given", "directions_resampled": False, "lost": "", "unused": "3 volumes"}


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{name}.nii" for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


@pytest.fixture
def record(images):
    scans = [SimpleNamespace(case=SimpleNamespace(patient=name), notes=NOTES) for name in ("p1", "p2")]
    return TrainingScans.of(scans, images[:2])


def test_scans_and_their_patients_are_known_again(record, images):
    # A known file under another name, a known patient with another file, and neither.
    assert record.overlap([images[0], images[2], images[2]], ["other", "p2", "p3"]) == [0, 1]
    assert record.remarks == ("3 volumes",)


def test_a_model_file_names_no_patient(record):
    content = plain_record(record)
    assert TrainingScans.from_dict(content) == record
    assert "p1" not in str(content["patients"])
    # Nor does a quick digest of a guessed name, or that of another training.
    assert hashlib.sha256(b"p1").hexdigest() not in content["patients"]
    with pytest.raises(RefusedError, match="unknown or missing"):
        TrainingScans.from_dict(content | {"names": []})


def test_digests_of_names_are_those_of_one_training(record, images):
    scans = [SimpleNamespace(case=SimpleNamespace(patient=name), notes=NOTES) for name in ("p1", "p2")]
    assert TrainingScans.of(scans, images[:2]) == record
    other = TrainingScans.of(scans, images[1:])
    assert not set(other.patients) & set(record.patients)


def test_files_with_plain_digests_are_read(record, images):
    content = plain_record(record)
    del content["salt"]
    content["patients"] = [hashlib.sha256(name.encode()).hexdigest() for name in ("p1", "p2")]
    first = TrainingScans.from_dict(content)
    assert first.overlap([images[2], images[2]], ["p2", "p3"]) == [0]


def test_other_ways_of_preparation_are_named(record):
    assert record.differences(NOTES) == []
    (sentence,) = record.differences(NOTES | {"tissue": "none"})
    assert sentence == "tissue map: none (calibration scans: given)"
