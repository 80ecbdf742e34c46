"""Tables of participants: cohorts in files, read with every check before work starts, written like BIDS."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

_ALIASES = {
    "participant_id": "patient",
    "body_mask": "mask",
    "body mask": "mask",
    "lesion_mask": "lesion",
    "lesion mask": "lesion",
}

_WORDS = {"true": True, "yes": True, "1": True, "": False, "false": False, "no": False, "0": False}

#: Where no tolerance is given and measurements are averaged, b-values within so many s/mm² count as one.
_B_TOLERANCE = 10.0
_SAME_B = 1.0  # s/mm²
_SAME_B_RELATIVE = 0.02  # no protocol has b-values so close on purpose
_SAME_TE = 0.05  # ms


@dataclass(frozen=True)
class Participants:
    """
    What a table of participants holds.

    Parameters
    ----------
    scans : dict of str to list of Scan
        Scans by cohort, in the order of the table.
    skipped : dict of str to dict of str to str
        By cohort, patients that cannot be used, with the reason.
    simulations : dict of str to dict
        By cohort, how it was simulated; synthetic ones only.
    """

    scans: dict[str, list[Scan]]
    skipped: dict[str, dict[str, str]]
    simulations: dict[str, dict[str, Any]]


def read_participants(
    table: Path, *, average: str | None = "geometric", b_tolerance: float | None = None
) -> Participants:
    """
    Read a table of participants, as `Cohort.read` describes it.

    Parameters
    ----------
    table : Path
        The table.
    average : {"geometric", "arithmetic"}, optional
        Mean of the measurements that share a b-value and an echo time; None to leave them as they are.
    b_tolerance : float, optional
        b-values within so many s/mm² count as one.

    Returns
    -------
    Participants
        Scans, and what is known about cohorts.

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
    if average not in (None, "geometric", "arithmetic"):
        msg = f"average must be 'geometric', 'arithmetic' or None, not {average!r}"
        raise ValueError(msg)
    rows = _rows(table)
    _refuse_shared_images(rows, table)
    for line, row in rows:
        where = f"{table}, row {line} (patient {row['patient']})"
        scan = _scan_of(row, where, table.parent, average, b_tolerance)
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
        _check_masks(scan, row, where)
        scans.setdefault(scan.cohort, []).append(scan)
    if not scans:
        msg = f"{table}: no usable patient"
        raise ValueError(msg)
    told = _simulations(table)
    simulations = {
        name: told[name] for name, members in scans.items() if name in told and all(scan.synthetic for scan in members)
    }
    return Participants(scans, skipped, simulations)


def write_participants(
    scans: Sequence[Scan], folder: Path, *, cohort: str, simulation: Mapping[str, Any] | None = None
) -> Path:
    """
    Write scans as files and a table, as `Cohort.write` describes it.

    Parameters
    ----------
    scans : sequence of Scan
        What to write.
    folder : Path
        Where to.
    cohort : str
        Cohort of the scans that name none, and name of the simulation.
    simulation : mapping, optional
        How the cohort was simulated, as plain values.

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
    told = _simulations(table) | ({} if simulation is None else {cohort: dict(simulation)})
    write_text(table.with_suffix(".json"), _sidecar(told))
    columns = [*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS]
    lines = ["\t".join(columns)] + ["\t".join(row.get(column) or "n/a" for column in columns) for row in rows]
    write_text(table, "\n".join(lines) + "\n")
    return table


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    return read_rows(table, required=REQUIRED_COLUMNS, optional=OPTIONAL_COLUMNS, aliases=_ALIASES)


def _refuse_shared_images(rows: list[tuple[int, dict[str, str]]], table: Path) -> None:
    first: dict[Path, tuple[int, str]] = {}
    for line, row in rows:
        image = (table.parent / row["image"]).resolve()
        other, patient = first.setdefault(image, (line, row["patient"]))
        if patient != row["patient"]:
            msg = (
                f"{table}, rows {other} and {line}: patients {patient} and {row['patient']} have the same image "
                f"{row['image']!r}; a patient under two names would be in training and test: correct one row"
            )
            raise ValueError(msg)


def _check_masks(scan: Scan, row: dict[str, str], where: str) -> None:
    """Read the masks, which are small, so that an empty one is told before work starts."""
    try:
        body, lesion = scan.mask, scan.lesion
    except ValueError as error:
        msg = f"{where}: {error}"
        raise ValueError(msg) from None
    if lesion is not None and not (body & lesion).any():
        msg = (
            f"{where}: no voxel of the lesion mask {row['lesion']!r} is inside the body mask {row['mask']!r}; "
            "check that both belong to this patient"
        )
        raise ValueError(msg)


def _scan_of(row: dict[str, str], where: str, folder: Path, average: str | None, b_tolerance: float | None) -> Scan:
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
    synthetic = row.get("synthetic", "")
    if synthetic.lower() not in _WORDS:
        msg = f"{where}: synthetic must be true or false, not {synthetic!r}"
        raise ValueError(msg)
    try:
        protocol = Protocol.read(path("bval"), echo_times, optional("bvec"), b_tolerance=b_tolerance)
        if average is not None and (protocol.directions is not None or _has_repeats(protocol)):
            if b_tolerance is None:
                protocol = _rounded(protocol, where)
        else:
            average = None
        return Scan(
            row["patient"],
            path("image"),
            protocol,
            path("mask"),
            lesion=optional("lesion"),
            cohort=row["cohort"],
            sigma=optional("sigma") if sigma is None else sigma,
            average=average,
            truth=optional("truth"),
            synthetic=_WORDS[synthetic.lower()],
        )
    except ValueError as error:
        msg = f"{where}: {error}"
        raise ValueError(msg) from None


def _has_repeats(protocol: Protocol) -> bool:
    """Tell whether a contrast was measured more than once."""
    te = np.zeros(len(protocol)) if protocol.te is None else protocol.te
    order = np.lexsort((protocol.b, te))
    b, te = protocol.b[order], te[order]
    near = np.diff(b) <= np.maximum(_SAME_B, _SAME_B_RELATIVE * b[1:])
    return bool(np.any(near & (np.diff(te) <= _SAME_TE)))


def _rounded(protocol: Protocol, where: str) -> Protocol:
    """Give b-values that were meant to be one the same value; tell those that may not have been."""
    rounded = protocol.rounded(_B_TOLERANCE)
    for b in np.unique(rounded.b):
        members = np.unique(protocol.b[rounded.b == b])
        if members[-1] >= _B_TOLERANCE and np.ptp(members) > 0.05 * members[-1]:
            values = ", ".join(f"{value:g}" for value in members)
            warnings.warn(
                f"{where}: measurements at b = {values} s/mm² are averaged as one; give b_tolerance=1 if these "
                "b-values differ on purpose",
                stacklevel=5,
            )
    return rounded


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


def _sidecar(simulations: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the columns of the table, as BIDS wants it, and how cohorts were simulated."""
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
        "synthetic": "Whether the patient was simulated",
    }
    fields: dict[str, dict[str, Any]] = {name: {"Description": text} for name, text in columns.items()}
    if simulations:
        fields["cohort"]["Simulation"] = simulations
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _simulations(table: Path) -> dict[str, dict[str, Any]]:
    """Read how cohorts were simulated from the table's sidecar, if it has one that says so."""
    sidecar = table.with_suffix(".json")
    if not sidecar.is_file():
        return {}
    try:
        fields = json.loads(sidecar.read_text(encoding="utf-8"))
        told = fields.get("cohort", {}).get("Simulation", {})
        return {str(name): dict(values) for name, values in told.items()}
    except (UnicodeDecodeError, ValueError, AttributeError, TypeError) as error:
        msg = f"{sidecar}: not a sidecar of {table.name} ({type(error).__name__}: {error}); repair or remove it"
        raise ValueError(msg) from None


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
