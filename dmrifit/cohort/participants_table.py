"""Tables of participants: cohorts in files, read with every check before work starts."""

from __future__ import annotations

import gzip
import hashlib
import json
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dmrifit._utils.counts import counted
from dmrifit._utils.text_files import read_small
from dmrifit.cohort.scaling import echo_times
from dmrifit.cohort.scan import Scan
from dmrifit.engine.protocol import Protocol
from dmrifit.io.case_tables import check_patients
from dmrifit.io.scan_manifest import manifest_of
from dmrifit.io.tables import named_file, read_rows

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

#: Words of columns that are true or false.
WORDS = {"true": True, "yes": True, "1": True, "": False, "false": False, "no": False, "0": False}

#: b-values (s/mm²) that count as one where measurements are averaged and no tolerance is passed.
_B_TOLERANCE = 10.0
_SAME_B_RELATIVE = 0.02  # no protocol has b-values so close on purpose
_SAME_TE = 0.05  # ms
_START_BYTES = 2**20


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
    if average not in (None, "geometric", "arithmetic"):
        raise ValueError(f"average must be 'geometric', 'arithmetic' or None, not {average!r}")
    rows = participant_rows(table)
    _refuse_shared_images(rows, table)
    check_cohorts(rows, table)
    for line, row in rows:
        where = f"{table}, row {line} (patient {row['patient']})"
        scan = _scan_of(row, where, table.parent, average, b_tolerance)
        if row.get("lesion") and scan.lesion is None:
            empty.append((line, scan, f"the lesion mask {row['lesion']} is empty"))
            continue
        _check_masks(scan, row, where)
        scans.setdefault(scan.cohort, []).append(scan)
    _doubt_repeats(scans, table)
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
    rows = read_rows(
        table, required=required, optional=optional, aliases=aliases, verbatim=("patient",)
    )
    columns = {*required, *optional, *(aliases or {})}
    for title in rows[0][1].keys() - columns:
        similar = [name for name in sorted(columns) if _is_misspelled(title, name)]
        if similar:
            warnings.warn(
                f"{table}: column {title!r} is not read; if {similar[0]!r} was meant, correct it",
                stacklevel=4,
            )
    check_patients(((line, row.get("patient", "")) for line, row in rows), table)
    # Only now, as names that differ in blanks at their ends alone may be of two persons.
    return [(line, row | {"patient": row.get("patient", "").strip()}) for line, row in rows]


def check_cohorts(rows: Sequence[tuple[int, dict[str, str]]], table: Path) -> None:
    """Refuse a patient whose rows are of two cohorts."""
    first_of: dict[str, tuple[str, int]] = {}
    for line, row in rows:
        first_cohort, first_line = first_of.setdefault(row["patient"], (row["cohort"], line))
        if first_cohort != row["cohort"]:
            raise ValueError(
                f"{table}, row {line}: patient {row['patient']} is in cohort {row['cohort']!r} "
                f"and, in row {first_line}, in cohort {first_cohort!r}; a patient in both "
                "training and test would spoil every score: keep one, or name two persons "
                "differently"
            )


def _is_misspelled(title: str, name: str) -> bool:
    """Whether a column's title is one letter away from a name, or the name in another case."""
    short, long = sorted((title.lower(), name), key=len)
    # Among titles of two letters, such as tr beside te, most differ on purpose.
    if short == long or len(name) < 3 or len(long) > len(short) + 1:
        return short == long
    for i in range(len(long)):
        rest = long[:i] + long[i + 1 :]
        if short in (rest, long[:i] + short[i : i + 1] + long[i + 1 :]):
            return True
    return False


def _refuse_shared_images(rows: list[tuple[int, dict[str, str]]], table: Path) -> None:
    """Refuse patients who share an image, and rows with the same image and masks."""
    row_of_image: dict[str, tuple[int, dict[str, str]]] = {}
    row_of_files: dict[tuple[str, str, str], int] = {}
    # By content, as copies and links of one image have other names.
    contents = _contents({table.parent / row["image"] for _, row in rows})
    for line, row in rows:
        content = contents[table.parent / row["image"]]
        files = (content, row.get("mask", ""), row.get("lesion", ""))
        image_line, first = row_of_image.setdefault(content, (line, row))
        files_line = row_of_files.setdefault(files, line)
        if first["patient"] == row["patient"] and files_line != line:
            raise ValueError(
                f"{table}, row {line}: image and masks are those of row {files_line}, and would "
                "count twice; remove one"
            )
        if first["patient"] != row["patient"]:
            copied = ""
            if first["image"] != row["image"]:
                copied = f", which is {first['image']!r} too"
            raise ValueError(
                f"{table}, rows {image_line} and {line}: patients {first['patient']} and "
                f"{row['patient']} have the same image {row['image']!r}{copied}; a patient under "
                "two names would be in training and test: correct one row"
            )


def _contents(images: Iterable[Path]) -> dict[Path, str]:
    """Describe the content of images, so that copies, links and compressed copies are equal."""
    by_start: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_start[_content(image, at_start=True)].append(image)
    contents = {}
    for start, alike in by_start.items():
        for image in alike:
            # Most images differ at their start; few have to be read as a whole.
            contents[image] = start if len(alike) == 1 else _content(image)
    return contents


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


def _check_masks(scan: Scan, row: dict[str, str], where: str) -> None:
    """Read the masks, which are small, so that an empty one is reported before work starts."""
    try:
        body, lesion = scan.mask, scan.lesion
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if lesion is not None and not (body & lesion).any():
        raise ValueError(
            f"{where}: no voxel of the lesion mask {row['lesion']!r} is inside the body mask "
            f"{row['mask']!r}; check that both belong to this patient"
        )


def _scan_of(
    row: dict[str, str], where: str, folder: Path, average: str | None, b_tolerance: float | None
) -> Scan:
    """Make the scan of one row; errors begin with `where`."""

    def path(column: str) -> Path:
        return named_file(folder, row[column], f"{where}: {column}")

    def optional(column: str) -> Path | None:
        if not row.get(column):
            return None
        return path(column)

    try:
        synthetic = read_synthetic(row)
        sigma: float | Path | None = number_in(row.get("sigma", ""))
        images, protocol = _images_of(row, where, folder)
        if b_tolerance is not None:
            protocol = protocol.rounded(b_tolerance)
        needs_average = protocol.directions is not None or _has_repeats(protocol)
        if not needs_average:
            average = None
        if average is not None and b_tolerance is None:
            protocol = _rounded(protocol, where)
        if sigma is None:
            sigma = optional("sigma")
        return Scan(
            row["patient"],
            images,
            protocol,
            path("mask"),
            lesion=optional("lesion"),
            cohort=row["cohort"],
            sigma=sigma,
            average=average,
            # What was meant to be one is one to the digit by now.
            b_tolerance=0.0,
            truth=optional("truth"),
            synthetic=synthetic,
            noise_free=optional("noise_free"),
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _images_of(
    row: dict[str, str], where: str, folder: Path
) -> tuple[Path | tuple[Path, ...], Protocol]:
    """Find the images of a row, separated by commas where there are several, and the protocol."""
    names = _listed(row["image"])
    if len(names) > 1 and not (folder / row["image"]).is_file():
        files = {column: _listed(row.get(column, "")) for column in ("bval", "te", "bvec")}
        rows = []
        for i, name in enumerate(names):
            of_image = {"image": name}
            for column, values in files.items():
                if len(values) not in (0, 1, len(names)):
                    raise ValueError(
                        f"{len(values)} {column} for {counted(len(names), 'image')}; give one to "
                        "each"
                    )
                if values:
                    of_image[column] = values[i % len(values)]
            rows.append((f"{where}, image {i + 1}", of_image))
        manifest = manifest_of(rows, folder / "participants.tsv")
        return manifest.images, manifest.protocol
    te: Any = number_in(row.get("te", ""))
    if te is None and row.get("te"):
        te = [named_file(folder, name, f"{where}: te") for name in _listed(row["te"])]
        # A list means BIDS sidecars, one for each volume; a single file may be a list of numbers.
        if len(te) == 1:
            te = te[0]
    bvec = None
    if row.get("bvec"):
        bvec = named_file(folder, row["bvec"], f"{where}: bvec")
    bval = named_file(folder, row["bval"], f"{where}: bval")
    image = named_file(folder, row["image"], f"{where}: image")
    return image, Protocol.read(bval, te, bvec)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def read_synthetic(row: Mapping[str, str]) -> bool:
    """Read from a row of a table whether its scan was simulated."""
    word = row.get("synthetic", "")
    if word.lower() not in WORDS:
        raise ValueError(f"synthetic must be true or false, not {word!r}")
    return WORDS[word.lower()]


def _doubt_repeats(scans: Mapping[str, list[Scan]], table: Path) -> None:
    """Warn that measurements without directions are averaged, which may differ in echo time."""
    for scan in chain(*scans.values()):
        measured, averaged = scan.measured, scan.protocol
        is_averaged = len(averaged) < len(measured)
        if is_averaged and measured.te is None and measured.directions is None:
            message = (
                f"{table}: the {len(measured)} measurements of patient {scan.patient} have "
                f"{len(averaged)} b-values and no directions; those that share a b-value are "
                "averaged. If they differ in echo time, give the column te"
            )
            warnings.warn(message, stacklevel=4)
            return


def _has_repeats(protocol: Protocol) -> bool:
    """Whether a contrast was measured more than once."""
    te = echo_times(protocol)
    order = np.lexsort((protocol.b, te))
    b, te = protocol.b[order], te[order]
    near = np.diff(b) <= _SAME_B_RELATIVE * b[1:]
    return bool(np.any(near & (np.diff(te) <= _SAME_TE)))


def _rounded(protocol: Protocol, where: str) -> Protocol:
    """Round b-values that were meant to be equal; warn where they may differ on purpose."""
    rounded = protocol.rounded(_B_TOLERANCE)
    for b in np.unique(rounded.b):
        members, counts = np.unique(protocol.b[rounded.b == b], return_counts=True)
        # Of low b-values only those that come again to the digit can have been meant.
        is_doubtful = members[-1] >= _B_TOLERANCE or (counts > 1).sum() > 1
        if is_doubtful and np.ptp(members) > 0.05 * members[-1]:
            values = ", ".join(f"{value:g}" for value in members)
            tolerance = min(1.0, 0.25 * float(np.diff(members).min()))
            warnings.warn(
                f"{where}: measurements at b = {values} s/mm² are averaged as one; "
                f"give b_tolerance={tolerance:g} to Cohort.read in Python if these values differ "
                "on purpose; the commands have no option for it",
                stacklevel=5,
            )
    return rounded


def number_in(text: str) -> float | None:
    """Read a number; None of another text."""
    try:
        return float(text)
    except ValueError:
        return None


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
