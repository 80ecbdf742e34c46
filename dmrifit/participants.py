"""Tables of participants: cohorts in files, read with every check before work starts, written like BIDS."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit import __version__
from dmrifit.files import write_text
from dmrifit.protocol import Protocol
from dmrifit.scans import Scan
from dmrifit.tables import read_rows

__all__ = ["read_participants", "write_participants"]

#: Columns of a table of participants; those of the second group may be absent or "n/a".
REQUIRED_COLUMNS = ("patient", "cohort", "image", "mask", "bval")
OPTIONAL_COLUMNS = ("lesion", "te", "bvec", "sigma", "truth", "synthetic")

#: Name of the table that `Cohort.write` makes.
TABLE = "participants.tsv"

_ALIASES = {"participant_id": "patient"}


def read_participants(table: Path) -> tuple[dict[str, list[Scan]], dict[str, dict[str, str]]]:
    """
    Read a table of participants, as `Cohort.read` describes it.

    Parameters
    ----------
    table : Path
        The table.

    Returns
    -------
    scans : dict of str to list of Scan
        Scans by cohort, in the order of the table.
    skipped : dict of str to dict of str to str
        By cohort, patients that cannot be used, with the reason.

    Raises
    ------
    ValueError
        If the table, or a row of it, is wrong.
    FileNotFoundError
        If a file is missing.
    """
    scans: dict[str, list[Scan]] = {}
    skipped: dict[str, dict[str, str]] = {}
    cohort_of: dict[str, tuple[str, int]] = {}
    for line, row in _rows(table):
        scan = _scan_of(row, f"{table}, row {line} (patient {row['patient']})", table.parent)
        other, first_line = cohort_of.setdefault(scan.patient, (scan.cohort, line))
        if other != scan.cohort:
            msg = (
                f"{table}, row {line}: patient {scan.patient} is in cohort {scan.cohort!r} and, in row "
                f"{first_line}, in cohort {other!r}; a patient in both training and test would spoil "
                "every score: keep one, or name two persons differently"
            )
            raise ValueError(msg)
        if row.get("lesion") and scan.lesion is None:
            reason = f"the lesion mask {row['lesion']} is empty"
            skipped.setdefault(scan.cohort, {})[scan.patient] = reason
            warnings.warn(f"{table}, row {line}: patient {scan.patient} left out: {reason}", stacklevel=3)
            continue
        scans.setdefault(scan.cohort, []).append(scan)
    if not scans:
        msg = f"{table}: no usable patient"
        raise ValueError(msg)
    return scans, skipped


def write_participants(scans: Sequence[Scan], folder: Path, *, cohort: str) -> Path:
    """
    Write scans as files and a table, as `Cohort.write` describes it.

    Parameters
    ----------
    scans : sequence of Scan
        What to write.
    folder : Path
        Where to.
    cohort : str
        Cohort of the scans that name none.

    Returns
    -------
    Path
        The table.

    Raises
    ------
    ValueError
        If the table already lists one of the patients, or two patients would have the same files.
    """
    table = folder / TABLE
    rows = [row for _, row in _rows(table)] if table.exists() else []
    patients = dict.fromkeys(scan.patient for scan in scans)
    there = {row["patient"] for row in rows} & set(patients)
    if there:
        msg = f"{table} already has {', '.join(sorted(there))}; write to another folder"
        raise ValueError(msg)
    labels = [_bids_label(scan, scans) for scan in scans]
    taken = {Path(row["image"]).parts[0] for row in rows} & {f"sub-{label.split('_')[0]}" for label in labels}
    if len(set(labels)) != len(labels) or taken:
        msg = f"patients {', '.join(patients)} do not have different names made of letters and digits"
        raise ValueError(msg)
    for scan, label in zip(scans, labels, strict=True):
        rows.append(_write_scan(scan, label, folder, scan.cohort or cohort))
    write_text(folder / "dataset_description.json", _description(rows))
    columns = [*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS]
    lines = ["\t".join(columns)] + ["\t".join(row.get(column) or "n/a" for column in columns) for row in rows]
    write_text(table, "\n".join(lines) + "\n")
    return table


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    return read_rows(table, required=REQUIRED_COLUMNS, optional=OPTIONAL_COLUMNS, aliases=_ALIASES)


def _scan_of(row: dict[str, str], where: str, folder: Path) -> Scan:
    """Make the scan of one row; errors begin with `where`."""

    def path(column: str, value: str | None = None) -> Path:
        value = row[column] if value is None else value
        found = folder / value
        if not found.is_file():
            msg = f"{where}: {column} {value!r} does not exist; paths are relative to {folder.resolve()}"
            raise FileNotFoundError(msg)
        return found

    def optional(column: str) -> Path | None:
        return path(column) if row.get(column) else None

    te = _number(row.get("te", ""))
    sigma = _number(row.get("sigma", ""))
    echo_times: Any = te
    if te is None and row.get("te"):
        files = [path("te", name.strip()) for name in row["te"].split(",")]
        echo_times = files if len(files) > 1 else files[0]
    try:
        return Scan(
            row["patient"],
            path("image"),
            Protocol.read(path("bval"), echo_times, optional("bvec")),
            path("mask"),
            lesion=optional("lesion"),
            cohort=row["cohort"],
            sigma=optional("sigma") if sigma is None else sigma,
            truth=optional("truth"),
            synthetic=row.get("synthetic", "").lower() in ("true", "yes", "1"),
        )
    except ValueError as error:
        msg = f"{where}: {error}"
        raise ValueError(msg) from None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bids_label(scan: Scan, scans: Sequence[Scan]) -> str:
    """Make ``patient``, or ``patient_run-2`` for a further scan of the same patient."""
    label = re.sub(r"[^A-Za-z0-9]", "", scan.patient)
    mine = [other for other in scans if other.patient == scan.patient]
    run = next(i for i, other in enumerate(mine, start=1) if other is scan)
    return label if run == 1 else f"{label}_run-{run}"


def _write_scan(scan: Scan, label: str, folder: Path, cohort: str) -> dict[str, str]:
    """Write one scan's files; return its row of the table."""
    from dmrifit.images import write_volume

    subject = f"sub-{label.split('_')[0]}"
    stem = f"{subject}/dwi/sub-{label}"
    row = {"patient": scan.patient, "cohort": cohort, "synthetic": "true" if scan.synthetic else "false"}
    images = {
        "image": (f"{stem}_dwi.nii.gz", scan.signal),
        "mask": (f"{stem}_desc-body_mask.nii.gz", scan.mask.astype(np.uint8)),
    }
    if (lesion := scan.lesion) is not None:
        images["lesion"] = (f"{stem}_desc-lesion_mask.nii.gz", lesion.astype(np.uint8))
    sigma = scan.sigma
    if isinstance(sigma, float):
        row["sigma"] = f"{sigma:.9g}"
    elif sigma is not None:
        images["sigma"] = (f"{stem}_desc-sigma_dwimap.nii.gz", sigma)
    if (truth := scan.truth) is not None:
        images["truth"] = (f"{stem}_desc-truth_dwimap.nii.gz", np.stack(list(truth.values()), axis=-1))
    texts = {"bval": (f"{stem}_dwi.bval", scan.protocol.b)}
    if scan.protocol.te is not None:
        texts["te"] = (f"{stem}_dwi.te", scan.protocol.te)
    if scan.protocol.directions is not None:
        texts["bvec"] = (f"{stem}_dwi.bvec", scan.protocol.directions.T)
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    for column, (name, values) in images.items():
        write_volume(values, scan.affine, folder / name)
        row[column] = name
    for column, (name, numbers) in texts.items():
        lines = [" ".join(f"{number:.9g}" for number in line) for line in np.atleast_2d(numbers)]
        write_text(folder / name, "\n".join(lines) + "\n")
        row[column] = name
    return row


def _description(rows: Sequence[Mapping[str, str]]) -> str:
    synthetic = [row["patient"] for row in rows if row.get("synthetic") == "true"]
    name = "Synthetic patients (simulated; no person was scanned)" if synthetic else "Patients"
    fields = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "dmrifit", "Version": __version__}],
    }
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
