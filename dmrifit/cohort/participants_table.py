"""Tables of participants or of regions, read with every check before work starts."""

from __future__ import annotations

import gzip
import hashlib
import json
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dmrifit._utils.checks import check_word, errors_about
from dmrifit._utils.counts import counted, percent
from dmrifit._utils.text_files import check_file, read_small
from dmrifit.cohort.scaling import contrast_order, echo_times
from dmrifit.cohort.scan import RISING_SHARE, Scan, rising_share
from dmrifit.engine.protocol import Protocol
from dmrifit.io.case_tables import check_patients
from dmrifit.io.scan_manifest import manifest_of
from dmrifit.io.tables import named_file, number_in, read_rows, read_synthetic

#: Columns of a table of participants; those of the second group may be absent or "n/a".
REQUIRED_COLUMNS = ("patient", "cohort", "image", "mask", "bval")
OPTIONAL_COLUMNS = ("lesion", "te", "bvec", "sigma", "truth", "noise_free", "synthetic")

#: Other names of columns, with the names that they stand for.
COLUMN_NAMES = {
    "participant_id": "patient",
    "body_mask": "mask",
    "body mask": "mask",
    "lesion_mask": "lesion",
    "lesion mask": "lesion",
}

#: Distance in s/mm² within which b-values count as one where measurements are averaged and no
#: tolerance is passed.
_B_TOLERANCE = 10.0
_SAME_B_RELATIVE = 0.02  # no protocol has b-values so close on purpose
_SAME_TE = 0.05  # ms
_START_BYTES = 2**20
_SIMILAR = 0.8  # of titles: one letter more or less in a name of four, one other letter in five

#: Columns of a table of regions; te, cohort and synthetic may be absent or "n/a".
REGION_COLUMNS = ("patient", "region", "b", "signal")
_OPTIONAL_COLUMNS = ("te", "cohort", "synthetic")

# Shorter curves may agree by chance, where signals are written with few digits.
_FEWEST_TELLING = 4

# How b-values of a table are kept apart.
_TO_SEPARATE = "read the table in Python, by Cohort.read(table, b_tolerance={:g})"

# What is wrong with a cell in which both may stand.
_NO_NUMBER = "is neither a number nor a file"


@dataclass(frozen=True)
class Participants:
    """What a table of participants holds, by cohort."""

    scans: dict[str, list[Scan]]  # in the order of the table
    skipped: dict[str, dict[str, str]]  # patients without a usable scan, with the reason
    simulations: dict[str, dict[str, Any]]  # how it was simulated; synthetic cohorts only


def read_participants(
    table: Path, *, average: str | None = "geometric", b_tolerance: float | None = None
) -> Participants:
    """Read a table of participants, as `Cohort.read` describes it."""
    scans: dict[str, list[Scan]] = {}
    skipped: dict[str, dict[str, str]] = {}
    empty: list[tuple[int, Scan, str]] = []
    check_word("average", average, (None, "geometric", "arithmetic"))
    rows = participant_rows(table)
    _refuse_shared_images(rows, table)
    check_cohorts(rows, table)
    for line, row in rows:
        where = f"{table}, row {line} (patient {row['patient']})"
        scan = _scan_of(row, where, table.parent, average, b_tolerance)
        if row.get("lesion") and scan.lesion is None:
            empty.append((line, scan, f"the lesion mask {row['lesion']} is empty"))
            continue
        # Masks are small, and read now, so that an empty one is reported before work starts.
        with errors_about(where):
            body, lesion = scan.mask, scan.lesion
        if lesion is not None and not (body & lesion).any():
            raise ValueError(
                f"{where}: no voxel of the lesion mask {row['lesion']!r} is inside the body mask "
                f"{row['mask']!r}; check that both belong to this patient"
            )
        scans.setdefault(scan.cohort, []).append(scan)
    for scan in chain(*scans.values()):
        # Volumes may also differ in echo time, which nothing says.
        n_measured, n_averaged = len(scan.measured), len(scan.protocol)
        is_plain = scan.measured.te is None and scan.measured.directions is None
        if n_averaged < n_measured and is_plain:
            warnings.warn(
                f"{table}: the {n_measured} measurements of patient {scan.patient} have "
                f"{n_averaged} b-values and no directions; those that share a b-value are "
                "averaged. If they differ in echo time, give the column te",
                stacklevel=3,
            )
            break
    used_patients = {scan.patient for scan in chain(*scans.values())}
    # Only now, because a later row may hold another scan of the patient.
    for line, scan, reason in empty:
        subject = f"patient {scan.patient}"
        if scan.patient in used_patients:
            subject = f"one scan of {subject}, of whom another is used,"
        warnings.warn(f"{table}, row {line}: {subject} left out: {reason}", stacklevel=3)
        if scan.patient not in used_patients:
            skipped.setdefault(scan.cohort, {})[scan.patient] = reason
    if not scans:
        raise ValueError(f"{table}: no usable patient")
    described = simulations_of(table)
    simulations = {}
    for name, members in scans.items():
        # Real scans may have joined a cohort that was simulated.
        if name in described and all(scan.synthetic for scan in members):
            simulations[name] = described[name]
    return Participants(scans, skipped, simulations)


def participant_rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a table of participants, without opening the files that they name."""
    return read_table(
        table, required=REQUIRED_COLUMNS, optional=OPTIONAL_COLUMNS, aliases=COLUMN_NAMES
    )


def read_table(
    table: Path,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> list[tuple[int, dict[str, str]]]:
    """Read rows; refuse patients whose names look alike, and warn of misspelled columns."""
    check_file(table, "table", remedy="check its name; dmrifit table makes one of a BIDS folder")
    rows = read_rows(
        table, required=required, optional=optional, aliases=aliases, verbatim=("patient",)
    )
    columns = {*required, *optional, *(aliases or {})}
    for title in rows[0][1].keys() - columns:
        similar = get_close_matches(title.lower(), sorted(columns), 1, _SIMILAR)
        if similar:
            warnings.warn(
                f"{table}: column {title!r} is not read; if {similar[0]!r} was meant, correct it",
                stacklevel=4,
            )
    check_patients(((line, row.get("patient", "")) for line, row in rows), table)
    # Only now, as names that differ in blanks at their ends alone may be of two persons.
    return [(line, row | {"patient": row.get("patient", "").strip()}) for line, row in rows]


def check_cohorts(
    entries: Iterable[tuple[int, Mapping[str, str]]], table: Path | None = None
) -> None:
    """Refuse a patient of two cohorts; each entry is the row of a table and what it holds."""
    first_of: dict[str, tuple[int, str]] = {}
    for line, row in entries:
        patient, cohort = row["patient"], row["cohort"]
        first_line, first_cohort = first_of.setdefault(patient, (line, cohort))
        if first_cohort != cohort:
            where = f"{table}, rows {first_line} and {line}: " if table else ""
            raise ValueError(
                f"{where}patient {patient} is in cohort {first_cohort!r} and in cohort "
                f"{cohort!r}; a patient in both training and test would bias every score: keep "
                "one, or name two persons differently"
            )


def _refuse_shared_images(rows: list[tuple[int, dict[str, str]]], table: Path) -> None:
    """Refuse patients who share an image, and rows with the same image and masks."""
    row_of_image: dict[str, tuple[int, dict[str, str]]] = {}
    row_of_files: dict[tuple[str, str, str], int] = {}
    # By content, as copies and links of one image have other names. Most images differ at their
    # start; few have to be read as a whole.
    images = {table.parent / row["image"] for _, row in rows}
    contents = {image: _content(image, at_start=True) for image in images}
    n_alike = Counter(contents.values())
    for line, row in rows:
        image = table.parent / row["image"]
        content = contents[image]
        if n_alike[content] > 1:
            content = _content(image)
        files = (content, row.get("mask", ""), row.get("lesion", ""))
        image_line, first = row_of_image.setdefault(content, (line, row))
        files_line = row_of_files.setdefault(files, line)
        if first["patient"] == row["patient"] and files_line != line:
            raise ValueError(
                f"{table}, row {line}: image and masks are those of row {files_line}, and would "
                "count twice; remove one"
            )
        if first["patient"] != row["patient"]:
            is_copied = first["image"] != row["image"]
            copied = f", which is {first['image']!r} too" if is_copied else ""
            raise ValueError(
                f"{table}, rows {image_line} and {line}: patients {first['patient']} and "
                f"{row['patient']} have the same image {row['image']!r}{copied}; a patient under "
                "two names would be in training and test: correct one row"
            )


def _content(image: Path, *, at_start: bool = False) -> str:
    """Digest an image, or its first bytes, as they are without compression."""
    opened: Any = gzip.open if image.suffix.lower() == ".gz" else open
    try:
        with opened(image, "rb") as file:
            if at_start:
                return hashlib.sha256(file.read(_START_BYTES)).hexdigest()
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error):
        # Told later, by what reads the image, with the remedy.
        return str(image.resolve())


def _scan_of(
    row: dict[str, str], where: str, folder: Path, average: str | None, b_tolerance: float | None
) -> Scan:
    """Make the scan of one row; errors begin with `where`."""

    def path(column: str, problem: str = "does not exist") -> Path | None:
        text = row.get(column)
        return named_file(folder, text, f"{where}: {column}", problem) if text else None

    with errors_about(where):
        sigma = number_in(row.get("sigma", ""))
        images, protocol = _images_of(row, where, folder)
        if b_tolerance is not None:
            protocol = protocol.rounded(b_tolerance, nominal=True)
        # Whether a contrast was measured more than once.
        b, te = np.stack([protocol.b, echo_times(protocol)])[:, contrast_order(protocol)]
        is_again = (np.diff(b) <= _SAME_B_RELATIVE * b[1:]) & (np.diff(te) <= _SAME_TE)
        if protocol.directions is None and not is_again.any():
            average = None
        if average is not None and b_tolerance is None:
            protocol = nominal_protocol(protocol, where, _TO_SEPARATE)
        return Scan(
            row["patient"],
            images,
            protocol,
            named_file(folder, row["mask"], f"{where}: mask"),
            lesion=path("lesion"),
            cohort=row["cohort"],
            sigma=path("sigma", _NO_NUMBER) if sigma is None else sigma,
            average=average,
            # What was meant to be one is one to the digit by now.
            b_tolerance=0.0,
            truth=path("truth"),
            synthetic=read_synthetic(row),
            noise_free=path("noise_free"),
        )


def _images_of(
    row: dict[str, str], where: str, folder: Path
) -> tuple[Path | tuple[Path, ...], Protocol]:
    """Find the images of a row, separated by commas where there are several, and the protocol."""
    files = {
        column: [name.strip() for name in row.get(column, "").split(",") if name.strip()]
        for column in ("image", "bval", "te", "bvec")
    }
    n_images = len(files["image"])
    if n_images > 1 and not (folder / row["image"]).is_file():
        rows: list[dict[str, str]] = [{} for _ in range(n_images)]
        for column, values in files.items():
            if len(values) not in (0, 1, n_images):
                raise ValueError(
                    f"{len(values)} {column} for {counted(n_images, 'image')}; give one to each"
                )
            for i in range(n_images if values else 0):
                rows[i][column] = values[i % len(values)]
        named_rows = [(f"{where}, image {i}", cells) for i, cells in enumerate(rows, start=1)]
        manifest = manifest_of(named_rows, folder / "participants.tsv")
        return manifest.images, manifest.protocol
    te: Any = number_in(row.get("te", ""))
    if te is None and files["te"]:
        te = [named_file(folder, name, f"{where}: te", _NO_NUMBER) for name in files["te"]]
        # A list means BIDS sidecars, one for each volume; a single file may be a list of numbers.
        if len(te) == 1:
            te = te[0]
    bvec = named_file(folder, row["bvec"], f"{where}: bvec") if row.get("bvec") else None
    bval = named_file(folder, row["bval"], f"{where}: bval")
    image = named_file(folder, row["image"], f"{where}: image")
    return image, Protocol.read(bval, te, bvec)


def nominal_protocol(protocol: Protocol, where: str, to_separate: str) -> Protocol:
    """Round b-values that were meant to be equal; warn where they may differ on purpose."""
    rounded = protocol.rounded(_B_TOLERANCE, nominal=True)
    for b in np.unique(rounded.b):
        members, counts = np.unique(protocol.b[rounded.b == b], return_counts=True)
        # Of low b-values only those that come again to the digit can have been meant.
        is_doubtful = members[-1] >= _B_TOLERANCE or (counts > 1).sum() > 1
        if is_doubtful and np.ptp(members) > 0.05 * members[-1]:
            values = ", ".join(f"{value:g}" for value in members)
            remedy = to_separate.format(min(1.0, 0.25 * float(np.diff(members).min())))
            text = f"{where}: measurements at b = {values} s/mm² are averaged as one"
            warnings.warn(f"{text}; if they differ on purpose, {remedy}", stacklevel=5)
    return rounded


def simulations_of(table: Path) -> dict[str, dict[str, Any]]:
    """Read how cohorts were simulated from the table's sidecar."""
    sidecar = table.with_suffix(".json")
    if not sidecar.is_file():
        return {}
    try:
        fields = json.loads(read_small(sidecar))
        simulations = fields.get("cohort", {}).get("Simulation", {})
        return {str(name): dict(values) for name, values in simulations.items()}
    except (UnicodeDecodeError, ValueError, AttributeError, RecursionError, TypeError) as error:
        raise ValueError(
            f"{sidecar}: not a sidecar of {table.name} ({type(error).__name__}: {error}); "
            "repair or remove it"
        ) from None


def is_regions_table(table: Path) -> bool:
    """Whether a table lists signals of regions instead of images."""
    _, row = read_table(table, required=())[0]
    return "image" not in row and not {"region", "signal"}.isdisjoint(map(str.lower, row))


def read_regions(table: Path) -> dict[str, dict[str, Any]]:
    """Read what `Cohort.from_signals` takes, by cohort, whatever the order of the rows."""
    rows = read_table(
        table, required=REGION_COLUMNS, optional=_OPTIONAL_COLUMNS, aliases=COLUMN_NAMES
    )
    rows = [(line, row | {"cohort": row.get("cohort") or table.stem}) for line, row in rows]
    check_cohorts(rows, table)
    regions = pd.DataFrame([_record(line, row, table) for line, row in rows])
    contrast = ["patient", "region", "te", "b"]
    repeated = regions[regions.duplicated(contrast, keep=False)]
    for _, (first, second, *_) in repeated.groupby(contrast, sort=False)["line"]:
        row = regions[regions["line"] == second].iloc[0]
        raise ValueError(
            f"{table}, rows {first} and {second}: two signals of patient {row['patient']}, region "
            f"{row['region']} at {_contrast_text(row['te'], row['b'])}; give their echo times "
            "(column te) if these differ, else average them, or name two regions differently"
        )
    _refuse_copies(regions, table)
    return {
        str(name): _in_order(cohort, table) | {"synthetic": bool(cohort["synthetic"].any())}
        for name, cohort in regions.groupby("cohort", sort=False)
    }


def _record(line: int, row: Mapping[str, str], table: Path) -> dict[str, Any]:
    """Read the names and numbers of a row; TE is −1 where there is none."""
    where = f"{table}, row {line} (patient {row['patient']}, region {row['region']})"
    record: dict[str, Any] = {"where": where, "line": line}
    record |= {name: row[name] for name in ("cohort", "patient", "region")}
    for column in ("te", "b", "signal"):
        text = row.get(column, "")
        value = number_in(text)
        if column == "te" and not text:
            # Not NaN, which would make no two contrasts equal.
            value = -1.0
        elif value is None or not (np.isfinite(value) and value >= 0):
            raise ValueError(
                f"{where}: {column} must be a finite number of 0 or more, not {text!r}; correct "
                "it, or leave the region out"
            )
        record[column] = value
    with errors_about(where):
        record["synthetic"] = read_synthetic(row)
    return record


def _in_order(cohort: pd.DataFrame, table: Path) -> dict[str, Any]:
    """Put the regions of a cohort in order, after checks of contrasts, units and decay."""
    names = ["patient", "region"]
    curves = cohort.pivot_table("signal", index=names, columns=["te", "b"])
    where = cohort.groupby(names)["where"].first()
    # What most regions have is meant; the others have a mistake in a row or lack one.
    n_regions = curves.notna().sum()
    for (te, b), n in n_regions[2 * n_regions <= len(curves)].items():
        line = cohort.loc[(cohort["te"] == te) & (cohort["b"] == b), "line"].iloc[0]
        raise ValueError(
            f"{table}, row {line}: {_contrast_text(te, b)} is in {n} of {len(curves)} regions, "
            "and all regions of a cohort need the same contrasts; correct the row, or leave it out"
        )
    for key, curve in curves[curves.isna().any(axis=1)].iterrows():
        texts = "; ".join(_contrast_text(*contrast) for contrast in curve.index[curve.isna()])
        raise ValueError(
            f"{where[key]}: no row at {texts}, which other regions have; add it, or leave the "
            "region out"
        )
    # An echo time that is not given is −1 here.
    te, b = np.array(curves.columns.tolist()).T
    # Errors of units and order show at the largest b-value.
    with errors_about(f"{table}, row {cohort.loc[cohort['b'].idxmax(), 'line']}"):
        if np.ptp(te) > 0 and te.min() < 0:
            raise ValueError("some echo times are missing; give all, or no column te")
        protocol = Protocol(b, None if te.max() < 0 else te, name=table.stem)
    signals = curves.to_numpy()
    for key, curve in zip(curves.index, signals, strict=True):
        rising = rising_share(curve, protocol)
        if rising > RISING_SHARE:
            raise ValueError(
                f"{where[key]}: in {percent(rising)} of the pairs of contrasts the signal rises "
                "with b or TE; check that each signal stands beside its b and TE"
            )
    patients, regions = zip(*curves.index, strict=True)
    return {"signals": signals, "protocol": protocol, "patients": patients, "regions": regions}


def _refuse_copies(regions: pd.DataFrame, table: Path) -> None:
    """Refuse two patients with the same curve."""
    owners: dict[tuple[tuple[float, ...], ...], tuple[str, int]] = {}
    numbers = ["te", "b", "signal"]
    for (patient, _), rows in regions.groupby(["patient", "region"], sort=False):
        curve = tuple(rows[numbers].sort_values(numbers).itertuples(index=False, name=None))
        line = int(rows["line"].iloc[0])
        owner, first_line = owners.setdefault(curve, (patient, line))
        if owner != patient and len(curve) >= _FEWEST_TELLING:
            raise ValueError(
                f"{table}, rows {first_line} and {line}: patients {owner} and {patient} have the "
                "same signals; a patient under two names would be in training and test: correct "
                "one"
            )


def _contrast_text(te: float, b: float) -> str:
    text = f"b = {b:g} s/mm²"
    if te >= 0:
        text += f", TE = {te:g} ms"
    return text
