"""Cohorts written as BIDS data sets: images, protocols and a table of participants."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit import __version__
from dmrifit._utils.text_files import read_small
from dmrifit.cohort.participants_table import (
    COLUMN_NAMES,
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    WORDS,
    participant_rows,
    simulations_of,
)
from dmrifit.cohort.scan import Scan, truth_names
from dmrifit.io.atomic_files import share_a_name, write_text
from dmrifit.io.case_tables import check_names
from dmrifit.io.nifti import write_volume
from dmrifit.io.tables import table_with

#: Name of the table that `Cohort.write` makes.
TABLE = "participants.tsv"

# Names of a data set, by which `Cohort.write` recognizes its own.
_REAL = "Patients"
_SYNTHETIC = "Synthetic patients (simulated; no person was scanned)"
_MIXED = "Patients, some of them synthetic (simulated)"


def write_participants(
    scans: Sequence[Scan],
    folder: Path,
    *,
    cohort: str,
    simulation: Mapping[str, Any] | None = None,
) -> Path:
    """Write scans as files and a table, as `Cohort.write` describes it."""
    table = folder / TABLE
    rows = []
    try:
        if table.exists():
            rows = [row for _, row in participant_rows(table)]
    except ValueError as error:
        raise ValueError(f"{error}; add what is missing, or write to another folder") from None
    _check_names(scans, cohort)
    patients = dict.fromkeys(scan.patient for scan in scans)
    listed_patients = {row["patient"] for row in rows} & set(patients)
    if listed_patients:
        raise ValueError(
            f"{table} already has {', '.join(sorted(listed_patients))}; write to another folder"
        )
    labels = _labels(scans, rows)
    for scan in scans:
        _check_truth(scan)
    simulated = {scan.cohort or cohort for scan in scans if scan.synthetic}
    listed_cohorts = {row["cohort"] for row in rows}
    simulations = {
        name: values for name, values in simulations_of(table).items() if name in listed_cohorts
    }
    if simulation is not None:
        added = {name: dict(simulation) for name in simulated}
        simulations = _merged(simulations, added, table)
    description = folder / "dataset_description.json"
    if not _is_ours(description):
        _refuse_to_replace(folder, labels)
    # Before the images, so that those of an interrupted run are recognized as written here.
    new_rows = [{"synthetic": str(scan.synthetic).lower()} for scan in scans]
    _describe_dataset(description, [*rows, *new_rows])
    new = [
        _write_scan(scan, label, folder, scan.cohort or cohort)
        for scan, label in zip(scans, labels, strict=True)
    ]
    text, names = table_with(
        table, new, columns=(*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS), aliases=COLUMN_NAMES
    )
    # The table comes last: what it lists is complete.
    write_text(table.with_suffix(".json"), _sidecar(table, simulations, names))
    write_text(table, text)
    return table


def _labels(scans: Sequence[Scan], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Make the BIDS label of each scan; refuse labels that are empty or in use."""
    labels = [_bids_label(scan, scans) for scan in scans]
    folders = {Path(row["image"]).parts[0] for row in rows}
    subjects = set(map(_subject, labels))
    is_shared = any(share_a_name(labels)) or any(share_a_name([*folders, *subjects]))
    # A name without letters and digits leaves an empty label, with a run after it or alone.
    if is_shared or any(label.startswith("_") or not label for label in labels):
        patients = dict.fromkeys(scan.patient for scan in scans)
        raise ValueError(
            f"patients {', '.join(patients)} do not have different names made of letters and "
            "digits"
        )
    return labels


def _check_names(scans: Sequence[Scan], cohort: str) -> None:
    """Refuse names that would not come back from a table as they are."""
    cohort_of: dict[str, str] = {}
    for scan in scans:
        scan_cohort = scan.cohort or cohort
        if not scan_cohort:
            raise ValueError("a table needs a name for each cohort; Cohort(scans, name) gives one")
        check_names({"cohort": scan_cohort, "patient": scan.patient})
        first_cohort = cohort_of.setdefault(scan.patient, scan_cohort)
        if first_cohort != scan_cohort:
            raise ValueError(
                f"patient {scan.patient} is in cohort {scan_cohort!r} and in cohort "
                f"{first_cohort!r}; keep one"
            )


def _check_truth(scan: Scan) -> None:
    truth = scan.truth
    if truth is not None and set(truth) != set(truth_names()):
        raise ValueError(
            f"patient {scan.patient}: a table keeps the true maps of {', '.join(truth_names())}, "
            f"all of them, not {', '.join(truth)}; leave the truth out of the scan (truth=None), "
            "or give these maps"
        )


def _refuse_to_replace(folder: Path, labels: Sequence[str]) -> None:
    """Leave the images of a data set that was not written here alone."""
    subjects = sorted({_subject(label) for label in labels})
    existing = [subject for subject in subjects if (folder / subject).exists()]
    if existing:
        raise ValueError(
            f"{folder} already has {', '.join(existing)}, maybe with your data; "
            "remove it, or write to another folder"
        )


def _bids_label(scan: Scan, scans: Sequence[Scan]) -> str:
    """Make ``patient``, or ``patient_run-2`` for a further scan of the same patient."""
    label = re.sub(r"[^A-Za-z0-9]", "", scan.patient)
    runs = [run for run in scans if run.patient == scan.patient]
    # By identity, because scans have no other equality.
    run = 1 + [id(run) for run in runs].index(id(scan))
    if run == 1:
        return label
    return f"{label}_run-{run}"


def _subject(label: str) -> str:
    return f"sub-{label.split('_')[0]}"


def _write_scan(scan: Scan, label: str, folder: Path, cohort: str) -> dict[str, str]:
    """Write one scan's files; return its row of the table."""
    stem = f"{_subject(label)}/dwi/sub-{label}"
    row = {
        "patient": scan.patient,
        "cohort": cohort,
        "synthetic": str(scan.synthetic).lower(),
    }
    images = {
        "image": (f"{stem}_dwi.nii.gz", scan.signal),
        "mask": (f"{stem}_desc-body_mask.nii.gz", scan.mask.astype(np.uint8)),
    }
    if (lesion := scan.lesion) is not None:
        images["lesion"] = (f"{stem}_desc-lesion_mask.nii.gz", lesion.astype(np.uint8))
    sigma = scan.sigma
    if isinstance(sigma, float):
        # Nine digits give single precision back exactly.
        row["sigma"] = f"{sigma:.9g}"
    elif sigma is not None:
        images["sigma"] = (f"{stem}_desc-sigma_dwimap.nii.gz", sigma)
    if (truth := scan.truth) is not None:
        maps = np.stack([truth[name] for name in truth_names()], axis=-1)
        images["truth"] = (f"{stem}_desc-truth_dwimap.nii.gz", maps)
    if (noise_free := scan.noise_free) is not None:
        images["noise_free"] = (f"{stem}_desc-noisefree_dwimap.nii.gz", noise_free)
    texts = {"bval": (f"{stem}_dwi.bval", scan.protocol.b)}
    if scan.protocol.te is not None:
        texts["te"] = (f"{stem}_dwi.te", scan.protocol.te)
    if scan.protocol.directions is not None:
        texts["bvec"] = (f"{stem}_dwi.bvec", scan.protocol.directions.T)
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    for column, (name, values) in images.items():
        write_volume(_storable(values), scan.affine, folder / name)
        row[column] = name
    for column, (name, numbers) in texts.items():
        lines = [" ".join(f"{number:.9g}" for number in line) for line in np.atleast_2d(numbers)]
        write_text(folder / name, "\n".join(lines) + "\n")
        row[column] = name
    return row


def _storable(values: NDArray) -> NDArray:
    """Give values a type that NIfTI readers know: not half precision, nor 64-bit integers."""
    if values.dtype == np.float16:
        return values.astype(np.float32)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        return values.astype(np.float64)
    return values


def _merged(
    simulations: Mapping[str, Mapping[str, Any]],
    added: Mapping[str, Mapping[str, Any]],
    table: Path,
) -> dict[str, dict[str, Any]]:
    """Add how cohorts were simulated; all patients of one cohort must be simulated alike."""
    merged = {name: dict(settings) for name, settings in simulations.items()}
    for name, settings in added.items():
        earlier = merged.get(name, dict(settings))
        for key in earlier | dict(settings):
            if key != "patients" and earlier.get(key) != settings.get(key):
                raise ValueError(
                    f"cohort {name!r} in {table} was simulated with another {key} "
                    f"({earlier.get(key)!r}, now {settings.get(key)!r}); give the cohort another "
                    "name, or write to another folder"
                )
        merged[name] = dict(settings)
        if "patients" in earlier or "patients" in settings:
            patients = earlier.get("patients", {}) | settings.get("patients", {})
            merged[name]["patients"] = patients
    return merged


def _sidecar(
    table: Path, simulations: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> str:
    """Describe the columns of the table, and how cohorts were simulated, in BIDS."""
    columns = {
        "patient": "Patient; scans of one patient are never split between training and test",
        "cohort": "Scanner or study that the patient belongs to",
        "image": "Magnitudes, one volume for each measurement",
        "mask": "The body",
        "lesion": "The tumor",
        "bval": "b-values in s/mm²",
        "te": "Echo times in ms",
        "bvec": "Gradient directions",
        "sigma": "Standard deviation of the noise, in the unit of the image",
        "truth": "True parameter maps of a synthetic patient",
        "noise_free": "Image of a synthetic patient before noise was added",
        "synthetic": "Whether the patient was simulated",
    }
    sidecar = table.with_suffix(".json")
    fields = {}
    if sidecar.is_file():
        fields = json.loads(read_small(sidecar))
    for column, text in columns.items():
        if column in names:
            fields.setdefault(names[column], {"Description": text})
    if simulations:
        fields.setdefault("cohort", {})["Simulation"] = simulations
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _is_ours(description: Path) -> bool:
    """Whether `Cohort.write` described a data set, and made all of it."""
    try:
        fields = json.loads(description.read_text(encoding="utf-8"))
        is_named = fields["Name"] in (_REAL, _SYNTHETIC, _MIXED)
        return is_named and fields["GeneratedBy"][0]["Name"] == "dmrifit"
    except (OSError, UnicodeDecodeError, ValueError, KeyError, IndexError, TypeError):
        return False


def _describe_dataset(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Describe the data set in BIDS, unless somebody else has described it."""
    if path.exists() and not _is_ours(path):
        return
    synthetic = [WORDS.get(row.get("synthetic", "").lower(), False) for row in rows]
    name = _REAL
    if any(synthetic):
        name = _MIXED
    if synthetic and all(synthetic):
        name = _SYNTHETIC
    fields: dict[str, Any] = {"Name": name, "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    if path.exists():
        fields = json.loads(path.read_text(encoding="utf-8")) | {"Name": name}
    # Images without a description may be somebody else's.
    if path.exists() or not any(path.parent.glob("sub-*")):
        fields["GeneratedBy"] = [{"Name": "dmrifit", "Version": __version__}]
    write_text(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
