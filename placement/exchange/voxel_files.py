"""Boxes in files of scanners and of programs for spectroscopy."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional
from dmrifit._utils.text_files import check_file
from dmrifit.io.nifti import load_image
from placement.box.voxel import Voxel

__all__ = ["read_voxel"]

#: LPS (patient's left, back, head), in which scanners count, to RAS and back.
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])

#: Entries of sidecars and headers that name a patient; two scans of one patient agree in them.
IDENTITY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")

#: How the line of a console's text begins that marks it as written here, in degrees.
TO_SET = "! angles to set: "

_NIFTI_MRS = 44  # code of the header's extension, which is JSON
_GRID = "a grid of spectra (MRSI) is not a single voxel; give the file of one"
_HEAD_FIRST = "the directions of its axes are known for head first, supine, only"
# Largest difference in mm of a position in two headers of one file; rounding stays below it.
_AGREEMENT = 0.1
_SPECTROSCOPY = ("1.3.12.2.1107.5.9.1", "1.2.840.10008.5.1.4.1.1.4.2")  # Siemens CSA; enhanced
_DIRECTIONS = ("dSag", "dCor", "dTra")
#: How keys begin that a box depends on; one that comes twice with two values is refused.
_GEOMETRY = (
    "ap_", "lr_", "cc_", "patient_", "volumes", "VOI", "RowVector", "ColumnVector",
    "PatientPosition", "NumberOf",
)  # fmt: skip
#: Roles of files of a prescription that its box does not lie in, or that are no scan.
_OTHER_ROLES = ("Old", "Box", "Exclude", "Brain")
_FULL_TURN = 360.0  # degrees
_UNTURNED = 0.02  # degrees, below which angles tell nothing of their unit
_LONGEST_SIDE = 300.0  # mm, longer than any head
_UNIT_VECTOR = 0.01


@dataclass(frozen=True)
class VoxelFile:
    """A box as a file describes it."""

    voxel: Voxel  # its sides in the order of the file's axes
    source: str  # kind of file
    frame: str = ""  # DICOM's frame of reference, where the file names one
    date: str = ""  # of the measurement, as the file writes it
    # What it says of the patient, by the keys of sidecars; empty where it says nothing.
    patient: Mapping[str, str] = field(default_factory=dict)
    # Of prescriptions of this package: names of the images that the box was placed in, by their
    # digests (SHA-256).
    placed_in: Mapping[str, str] = field(default_factory=dict)


def read_voxel(path: str | Path) -> Voxel:
    """
    Read the box of a single-voxel spectrum from a file of a scanner or of another program.

    Parameters
    ----------
    path : path
        Philips ``.SPAR`` or the text for Philips of `write_prescription`, Siemens ``.rda`` or
        DICOM (VD, VE and XA lines), NIfTI-MRS, or JSON of this package.

    Returns
    -------
    Voxel
        The box in mm RAS+, its sides in the order of the axes of the file (SPAR: lr, ap, cc).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        For DICOM, if pydicom is not installed: ``pip install "dmrifit[dicom]"``.
    ValueError
        If the file holds no single box, a grid of spectra, a side of 0 mm or above 300 mm, angles
        beyond a full turn, or a patient that does not lie head first and supine; or if its format
        does not determine the box (GE).

    Warns
    -----
    UserWarning
        If all angles of a SPAR or JSON file are below π and not all 0, so that they may be
        radians; not for files of prescriptions.

    Notes
    -----
    Scanners count in LPS. Philips: the center is the off-center, and the rotation is intrinsic
    XYZ of the angulations about LR, AP and CC, the first two with opposite signs in RAS+, as in
    spec2nii 0.8. Siemens rda: the columns of the rotation are RowVector (along VOIReadoutFOV),
    ColumnVector (along VOIPhaseFOV) and their product (along VOIThickness); VOIPosition is the
    center, PositionVector a corner. Siemens DICOM: the protocol's ``sSpecPara.sVoI``, see
    `siemens_directions`. NIfTI-MRS: the affine of its only voxel.

    GE names the sides by the nearest axis of the patient, which two sides of a strongly oblique
    box can share, so that its files are refused.
    """
    return read_voxel_file(path).voxel


def read_voxel_file(path: str | Path) -> VoxelFile:
    """Read a box and what its file says of the scan; see `read_voxel`."""
    path = Path(path)
    check_file(path)
    reader = _reader_of(path)
    try:
        return reader(path)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(path) in message else f"{path}: {message}") from error


def siemens_directions(normal: ArrayLike, turn: float) -> NDArray[np.float64]:
    """
    Give the directions of reading and phase encoding of a Siemens box: columns (3, 3), LPS.

    The box turns in its plane from a direction that the largest part of its normal decides
    (transverse before coronal before sagittal); `turn` is in radians. The third column is their
    cross product, against the normal.
    """
    n = np.asarray(normal, dtype=np.float64)
    n = n / np.linalg.norm(n)
    x, y, z = n
    unturned = np.array([[-y, x, 0.0], [y, -x, 0.0], [0.0, z, -y]][main_axis(n)])
    unturned /= np.linalg.norm(unturned)
    phase = np.cos(turn) * unturned - np.sin(turn) * np.cross(n, unturned)
    read = np.cross(n, phase)
    return np.column_stack([read, phase, np.cross(read, phase)])


def check_angles(angles: NDArray[np.float64], what: str) -> None:
    """Refuse angles in degrees beyond a full turn, and warn of those that may be radians."""
    sizes = np.abs(angles)
    shown = ", ".join(f"{angle:g}" for angle in angles)
    if sizes.max() > _FULL_TURN:
        raise ValueError(
            f"{what} are {shown} degrees, more than a full turn; give degrees from -360 to 360"
        )
    if sizes.max() < np.pi and sizes.max() > _UNTURNED:
        warnings.warn(
            f"{what} are all below π ({shown}): degrees are expected, and these may be radians",
            UserWarning,
            stacklevel=3,
        )


def day_of(date: str) -> str:
    """Write the day of a date (20160429, 2016.04.29 10:20) as 2016-04-29, other text as it is."""
    day = re.match(r"(\d{4})\D?(\d\d)\D?(\d\d)", date)
    return "-".join(day.groups()) if day else date


def main_axis(normal: NDArray[np.float64]) -> int:
    """Give the axis of the largest part of a normal; ties go to the last, as on the scanner."""
    size = np.round(np.abs(normal), 6)
    return int(np.flatnonzero(size == size.max())[-1])


def _reader_of(path: Path) -> Callable[[Path], VoxelFile]:
    """Choose a reader by the name of a file, or by its first bytes."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _read_nifti
    for suffix, reader in ((".spar", _read_spar), (".rda", _read_rda), (".json", _read_json)):
        if name.endswith(suffix):
            return reader
    with path.open("rb") as file:
        head = file.read(4096)
    if head[128:132] == b"DICM":
        return _read_dicom
    if b">>> Begin of header <<<" in head:
        return _read_rda
    if b"_off_center" in head:
        return _read_spar
    if name.endswith(".7"):
        raise ValueError(
            f"{path}: GE names the sides of a box by the nearest axes of the patient, which does "
            "not determine an oblique box; enter it by center, size and angles"
        )
    raise ValueError(
        f"{path} is no supported box file; give .SPAR, .rda, Siemens DICOM, "
        "NIfTI-MRS or JSON of this program"
    )


def _read_spar(path: Path) -> VoxelFile:
    """Read a Philips parameter file, or the text of a prescription."""
    text = path.read_text(encoding="latin-1")
    fields = _fields(text)
    for key, expected in (("patient_position", "head_first"), ("patient_orientation", "supine")):
        if key not in fields:
            raise ValueError(f"it lacks {key}; export it again ({_HEAD_FIRST})")
        if fields[key].strip('" ').lower() != expected:
            raise ValueError(f"the patient lies {fields[key]}; {_HEAD_FIRST}")
    if fields.get("phase_encoding_enable", "").strip('" ').lower() == "yes":
        raise ValueError(_GRID)
    for key in ("dim2_pnts", "dim3_pnts"):
        if _number(fields, key, missing=1.0) != 1:
            raise ValueError(f"{key} is {fields[key]}; {_GRID}")
    if fields.get("volumes", "1") != "1":
        raise ValueError(f"it holds {fields['volumes']} boxes; give a file of one")
    size, center, angles = (
        np.array([_number(fields, f"{axis}_{quantity}") for axis in ("lr", "ap", "cc")])
        for quantity in ("size", "off_center", "angulation")
    )
    _check_sides(size)
    if TO_SET not in text:
        check_angles(angles, "its angulations")
    voxel = Voxel(LPS_TO_RAS * center + 0.0, size, LPS_TO_RAS * angles + 0.0)
    patient = {
        "PatientName": fields.get("patient_name", ""),
        "PatientBirthDate": fields.get("patient_birth_date", ""),
    }
    return VoxelFile(voxel, "Philips SPAR", date=fields.get("scan_date", ""), patient=patient)


def _read_rda(path: Path) -> VoxelFile:
    """Read the text at the beginning of a Siemens rda file."""
    head, end, _ = path.read_bytes().partition(b">>> End of header <<<")
    if not end:
        raise ValueError("the header of the rda file does not end; it was cut: export it again")
    fields = _fields(head.decode("latin-1"))
    _check_head_first(fields.get("PatientPosition", ""))
    for key in ("NumberOfRows", "NumberOfColumns", "NumberOf3DParts"):
        if _number(fields, key) != 1:
            raise ValueError(f"{key} is {fields[key]}; {_GRID}")
    center = [_number(fields, f"VOIPosition{axis}") for axis in ("Sag", "Cor", "Tra")]
    size = [_number(fields, f"VOI{side}") for side in ("ReadoutFOV", "PhaseFOV", "Thickness")]
    row, column = (
        np.array([_number(fields, f"{vector}[{i}]") for i in range(3)])
        for vector in ("RowVector", "ColumnVector")
    )
    directions = np.column_stack([row, column, np.cross(row, column)])
    return VoxelFile(
        _from_lps(center, size, directions),
        "Siemens rda",
        date=fields.get("StudyDate", ""),
        patient={key: fields.get(key, "") for key in IDENTITY},
    )


def _read_dicom(path: Path) -> VoxelFile:
    """Read the box from the protocol in a Siemens DICOM file of a spectrum."""
    pydicom = import_optional("pydicom")
    try:
        scan = pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"the DICOM file cannot be read ({error})") from error
    if str(scan.get("SOPClassUID", "")) not in _SPECTROSCOPY:
        raise ValueError("it is a DICOM file of no spectrum; give one of the spectroscopy series")
    protocol = _siemens_protocol(scan)
    _check_head_first(str(scan.get("PatientPosition", "")))
    for axis in ("Phase", "Read", "Slice"):
        if _number(protocol, f"sSpecPara.lFinalMatrixSize{axis}", missing=1.0) != 1:
            raise ValueError(_GRID)
    box = "sSpecPara.sVoI."
    center = [_number(protocol, f"{box}sPosition.{axis}", missing=0.0) for axis in _DIRECTIONS]
    normal = [_number(protocol, f"{box}sNormal.{axis}", missing=0.0) for axis in _DIRECTIONS]
    sides = ("dReadoutFOV", "dPhaseFOV", "dThickness")
    size = [_number(protocol, f"{box}{side}", missing=0.0) for side in sides]
    if max(np.abs(normal)) > 2 or abs(np.linalg.norm(normal) - 1) > _UNIT_VECTOR:
        raise ValueError(f"the normal of its box is {normal}, which is no unit vector")
    _check_second_position(scan, center)
    turn = _number(protocol, f"{box}dInPlaneRot", missing=0.0)
    if abs(turn) > np.radians(_FULL_TURN):
        raise ValueError(f"its box is turned by {turn:g} radians, more than a full turn")
    voxel = _from_lps(center, size, siemens_directions(normal, turn))
    return VoxelFile(
        voxel,
        "Siemens DICOM",
        frame=str(scan.get("FrameOfReferenceUID", "")),
        date=str(scan.get("StudyDate", "")),
        patient={key: str(scan.get(key, "")) for key in IDENTITY},
    )


def _siemens_protocol(scan: Any) -> dict[str, str]:
    """Read the protocol, lines "key = value", that Siemens stores in a private element."""
    for element in scan.iterall():
        if not (element.tag.is_private and isinstance(element.value, bytes)):
            continue
        text = element.value.decode("latin-1")
        box = text.find("sSpecPara.sVoI")
        if box < 0:
            continue
        # The element may hold several protocols; that of the spectrum has the box.
        begin = max(0, text.rfind("### ASCCONV BEGIN", 0, box))
        end = text.find("### ASCCONV END ###", box)
        # Siemens leaves out lines whose value is 0: a cut protocol would read as another box.
        if end < 0:
            raise ValueError("its protocol does not end; the file was cut: export it again")
        lines = re.findall(r"^\s*([\w.\[\]]+)\s*=\s*(\S+)", text[begin:end], re.M)
        return _without_repeats(lines, "sSpecPara.")
    raise ValueError(
        "it holds no Siemens protocol with a box (sSpecPara.sVoI); boxes of other vendors' DICOM "
        "are not read"
    )


def _check_second_position(scan: Any, center: list[float]) -> None:
    """Refuse a center that differs from that in Siemens' image header, where one is stated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its DICOM readers experimental
        from nibabel.nicom.csareader import CSAReadError, get_csa_header

        try:
            header = get_csa_header(scan, "image")
        except (CSAReadError, TypeError, struct.error) as error:
            raise ValueError(f"its image header cannot be read ({error})") from error
    items = header["tags"].get("VoiPosition", {}).get("items", []) if header else []
    if len(items) == 3 and np.abs(np.array(items) - center).max() > _AGREEMENT:
        raise ValueError(
            f"its two headers place the box at {items} and {center} mm (LPS); look up the "
            "position on the console"
        )


def _read_nifti(path: Path) -> VoxelFile:
    """Read NIfTI-MRS, or an image of one voxel: its affine is the box."""
    image = load_image(path)
    if image.shape[:3] != (1, 1, 1):
        grid = " × ".join(str(n) for n in image.shape[:3])
        raise ValueError(f"it holds {grid} voxels; an image or {_GRID}")
    matrix = image.affine[:3, :3]
    size = np.linalg.norm(matrix, axis=0)
    _check_sides(size)
    directions = matrix / size
    # Indices may run to either hand; the box is the same.
    if np.linalg.det(directions) < 0:
        directions[:, 2] *= -1
    patient: dict[str, str] = {}
    for extension in image.header.extensions:
        if extension.get_code() == _NIFTI_MRS:
            with contextlib.suppress(ValueError, AttributeError):
                fields = json.loads(extension.get_content())
                patient = {key: str(fields.get(key, "")) for key in IDENTITY}
                patient["PatientBirthDate"] = str(fields.get("PatientDoB", ""))
    voxel = Voxel.from_rotation(image.affine[:3, 3], size, directions)
    return VoxelFile(voxel, "NIfTI-MRS", patient=patient)


def _read_json(path: Path) -> VoxelFile:
    """Read the JSON of a prescription or of `Voxel.to_json`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from error
    placed_in: dict[str, str] = {}
    record = content if isinstance(content, Mapping) else {}
    if record.get("reliable") is False:
        raise ValueError(
            f"its box is not reliable ({record.get('answer', 'no answer')}); look at its flags, "
            "and place the box anew"
        )
    if record.get("format") == "placement prescription":
        pose = record.get("ras")
        if not isinstance(pose, Mapping):
            raise ValueError(f"its pose (ras) is {pose!r}; write the prescription again")
        placed_in = _sources(record.get("sources"))
        voxel = Voxel.from_json({**pose, "size_mm": record.get("size_mm")})
    else:
        voxel = Voxel.from_json(content)
        # A prescription states that its angles are degrees; another program's file may not.
        check_angles(voxel.angles, "its angles")
    _check_sides(voxel.size)
    return VoxelFile(voxel, "JSON", placed_in=placed_in)


def _sources(sources: Any) -> dict[str, str]:
    """Map digests (SHA-256) of the images that a prescription was placed in to their names."""
    records = sources.items() if isinstance(sources, Mapping) else ()
    names = {}
    for role, record in records:
        if role.partition(" ")[0] in _OTHER_ROLES:
            continue
        if isinstance(record, Mapping) and "SHA256" in record:
            names[str(record["SHA256"])] = str(record.get("Name", ""))
    return names


def _fields(text: str) -> dict[str, str]:
    """Split lines "key : value"."""
    lines = [
        line.partition(":") for line in text.splitlines() if not line.lstrip().startswith("!")
    ]
    return _without_repeats(
        [(key.strip(), content.strip()) for key, colon, content in lines if colon], *_GEOMETRY
    )


def _without_repeats(lines: list[tuple[str, str]], *beginnings: str) -> dict[str, str]:
    """Collect values by key; refuse two values of a key that begins with one of `beginnings`."""
    fields: dict[str, str] = {}
    for key, content in lines:
        if key.startswith(beginnings) and fields.get(key, content) != content:
            raise ValueError(
                f"{key} is both {fields[key]} and {content}: it holds several boxes; give a file "
                "of one"
            )
        fields[key] = content
    return fields


def _number(fields: Mapping[str, str], key: str, *, missing: float | None = None) -> float:
    """Give a field as a finite number."""
    if key not in fields:
        if missing is None:
            raise ValueError(f"it lacks {key}; export it again")
        return missing
    text = fields[key]
    number = np.nan
    # Python reads 2_0 as 20, which no scanner writes.
    if "_" not in text:
        with contextlib.suppress(ValueError):
            number = float(text)
    if not np.isfinite(number):
        remedy = "write decimals with a point" if "," in text else "it must be a number"
        raise ValueError(f"{key} is {text!r}; {remedy}")
    return number


def _check_head_first(position: str) -> None:
    """Refuse positions of the patient other than head first, supine (HFS in DICOM)."""
    if position != "HFS":
        stated = f"the patient's position is {position}" if position else "no patient's position"
        raise ValueError(f"{stated}; {_HEAD_FIRST}")


def _check_sides(size: ArrayLike) -> None:
    """Refuse sides longer than a head, and of 0 mm, which headers hold without a box."""
    if not (np.asarray(size) > 0).all():
        sides = " × ".join(f"{side:g}" for side in np.asarray(size))
        raise ValueError(f"its box measures {sides} mm; a side of 0 mm or less is none")
    if np.max(size) > _LONGEST_SIDE:
        raise ValueError(
            f"its longest side is {np.max(size):g} mm, more than any head ({_LONGEST_SIDE:g} mm); "
            "give the file of the box, with its sides in mm"
        )


def _from_lps(center: ArrayLike, size: ArrayLike, directions: NDArray[np.float64]) -> Voxel:
    """Make a box from the directions of its sides in LPS: columns (3, 3)."""
    _check_sides(size)
    rotation = LPS_TO_RAS[:, None] * directions
    return Voxel.from_rotation(LPS_TO_RAS * np.asarray(center) + 0.0, size, rotation)
