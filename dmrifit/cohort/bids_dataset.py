"""Cohorts written as BIDS data sets: images, protocols and a table of participants."""

from __future__ import annotations

import json
from collections import Counter
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
    check_cohorts,
    participant_rows,
    simulations_of,
)
from dmrifit.cohort.scan import Scan, truth_names
from dmrifit.io.atomic_files import share_a_name, write_text
from dmrifit.io.bids_derivatives import label as bids_label
from dmrifit.io.case_tables import check_names
from dmrifit.io.nifti import write_volume
from dmrifit.io.tables import WORDS, table_with

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
    _check_scans(scans, cohort)
    listed_patients = {row["patient"] for row in rows} & {scan.patient for scan in scans}
    if listed_patients:
        raise ValueError(
            f"{table} already has {', '.join(sorted(listed_patients))}; write to another folder"
        )
    labels = _labels(scans, rows)
    listed_cohorts = {row["cohort"] for row in rows}
    simulations = {
        name: values for name, values in simulations_of(table).items() if name in listed_cohorts
    }
    if simulation is not None:
        for name in {scan.cohort or cohort for scan in scans if scan.synthetic}:
            earlier = simulations.get(name, simulation)
            simulations[name] = _merged(name, earlier, simulation, table)
    description = folder / "dataset_description.json"
    subjects = sorted({f"sub-{label.split('_')[0]}" for label in labels})
    existing = [subject for subject in subjects if (folder / subject).exists()]
    if existing and not _is_ours(description):
        raise ValueError(
            f"{folder} already has {', '.join(existing)}, which dmrifit is not known to have "
            "written; write to another folder"
        )
    # Before the images, so that those of an interrupted run are recognized as written here.
    words = [row.get("synthetic", "").lower() for row in rows]
    synthetic = [WORDS.get(word, False) for word in words]
    _describe_dataset(description, [*synthetic, *(scan.synthetic for scan in scans)])
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


def _check_scans(scans: Sequence[Scan], cohort: str) -> None:
    """Refuse names and true maps that would not come back from a table as they are."""
    names = [{"cohort": scan.cohort or cohort, "patient": scan.patient} for scan in scans]
    for scan_names in names:
        if not scan_names["cohort"]:
            raise ValueError("a table needs a name for each cohort; Cohort(scans, name) gives one")
        check_names(scan_names)
    check_cohorts(enumerate(names))
    for scan in scans:
        truth = scan.truth
        if truth is not None and set(truth) != set(truth_names()):
            raise ValueError(
                f"patient {scan.patient}: a table keeps the true maps of "
                f"{', '.join(truth_names())}, all of them, not {', '.join(truth)}; leave the "
                "truth out of the scan (truth=None), or give these maps"
            )


def _labels(scans: Sequence[Scan], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Make the BIDS label of each scan, with a run for a further one of the same patient."""
    n_runs: Counter[str] = Counter()
    labels = []
    for scan in scans:
        n_runs[scan.patient] += 1
        run = f"_run-{n_runs[scan.patient]}" if n_runs[scan.patient] > 1 else ""
        labels.append(bids_label(scan.patient) + run)
    folders = {Path(row["image"]).parts[0] for row in rows}
    subjects = {f"sub-{label.split('_')[0]}" for label in labels}
    is_shared = any(share_a_name(labels)) or any(share_a_name([*folders, *subjects]))
    # A name without letters and digits leaves an empty label, with a run after it or alone.
    if is_shared or any(label.startswith("_") or not label for label in labels):
        raise ValueError(
            f"patients {', '.join(n_runs)} do not have different names made of letters and digits"
        )
    return labels


def _write_scan(scan: Scan, label: str, folder: Path, cohort: str) -> dict[str, str]:
    """Write one scan's files; return its row of the table."""
    stem = f"sub-{label.split('_')[0]}/dwi/sub-{label}"
    row = {"patient": scan.patient, "cohort": cohort, "synthetic": str(scan.synthetic).lower()}
    sigma, truth, maps = scan.sigma, scan.truth, None
    if truth is not None:
        maps = np.stack([truth[name] for name in truth_names()], axis=-1)
    if isinstance(sigma, float):
        # Nine digits give single precision back exactly.
        row["sigma"] = f"{sigma:.9g}"
        sigma = None
    images: dict[str, tuple[str, NDArray | None]] = {
        "image": ("dwi", scan.signal),
        "mask": ("desc-body_mask", scan.mask),
        "lesion": ("desc-lesion_mask", scan.lesion),
        "sigma": ("desc-sigma_dwimap", sigma),
        "truth": ("desc-truth_dwimap", maps),
        "noise_free": ("desc-noisefree_dwimap", scan.noise_free),
    }
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    for column, (ending, values) in images.items():
        if values is None:
            continue
        # NIfTI readers know neither half precision nor 64-bit integers.
        if values.dtype == np.float16:
            values = values.astype(np.float32)
        elif values.dtype.kind in "iu" and values.dtype.itemsize == 8:
            values = values.astype(np.float64)
        row[column] = f"{stem}_{ending}.nii.gz"
        write_volume(values, scan.affine, folder / row[column])
    protocol = scan.protocol
    directions = None if protocol.directions is None else protocol.directions.T
    for column, numbers in (("bval", protocol.b), ("te", protocol.te), ("bvec", directions)):
        if numbers is None:
            continue
        lines = [" ".join(f"{number:.9g}" for number in line) for line in np.atleast_2d(numbers)]
        row[column] = f"{stem}_dwi.{column}"
        write_text(folder / row[column], "\n".join(lines) + "\n")
    return row


def _merged(
    name: str, earlier: Mapping[str, Any], settings: Mapping[str, Any], table: Path
) -> dict[str, Any]:
    """Join how patients of a cohort were simulated; all must be simulated alike."""
    for key in {**earlier, **settings}:
        if key != "patients" and earlier.get(key) != settings.get(key):
            raise ValueError(
                f"cohort {name!r} in {table} was simulated with another {key} "
                f"({earlier.get(key)!r}, now {settings.get(key)!r}); give the cohort another "
                "name, or write to another folder"
            )
    merged = dict(settings)
    if "patients" in earlier or "patients" in settings:
        merged["patients"] = earlier.get("patients", {}) | settings.get("patients", {})
    return merged


def _sidecar(
    table: Path, simulations: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> str:
    """Describe the columns of the table, and how cohorts were simulated, in BIDS."""
    sidecar = table.with_suffix(".json")
    fields = json.loads(read_small(sidecar)) if sidecar.is_file() else {}
    described = Path(__file__).with_name("data") / "participants.json"
    for column, field in json.loads(described.read_text(encoding="utf-8")).items():
        if column in names:
            fields.setdefault(names[column], field)
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


def _describe_dataset(path: Path, synthetic: Sequence[bool]) -> None:
    """Describe the data set in BIDS, unless somebody else has described it."""
    if path.exists() and not _is_ours(path):
        return
    name = _REAL
    if any(synthetic):
        name = _SYNTHETIC if all(synthetic) else _MIXED
    fields: dict[str, Any] = {"Name": name, "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    if path.exists():
        fields = json.loads(path.read_text(encoding="utf-8")) | {"Name": name}
    # Images without a description may be somebody else's.
    if path.exists() or not any(path.parent.glob("sub-*")):
        fields["GeneratedBy"] = [{"Name": "dmrifit", "Version": __version__}]
    write_text(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
