"""A box repeated on a later scan of the same head. Not for clinical use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.affines import MM3_PER_ML
from dmrifit._utils.counts import percent
from dmrifit._utils.text_files import read_text
from dmrifit.imaging.rigid_alignment import HeadAlignment
from dmrifit.io.bids_derivatives import stem
from dmrifit.io.nifti import Image, image_name, load_image
from placement.box.voxel import Voxel
from placement.exchange.voxel_files import IDENTITY, VoxelFile, day_of

__all__ = ["repeat_voxel"]

#: The three answers.
REPEATED = "repeated"
CHANGED = "repeated, but tissue in the box changed"
OTHER_HEAD = "not the same head"

#: What stands for a name or a number after it was removed.
_ANONYMOUS = ("anon", "unknown", "none", "na", "o", "removed")

_MARGIN = 10.0  # mm around the box that are compared, too
_UNLIKE = 0.5  # concordance below which tissue counts as changed
# Of the surroundings of a box, beyond the share of the whole head: .06 at most over 1,200 boxes
# without changes, from .08 with lesions of 8 mL and more in reach.
_CHANGED_SHARE = 0.05
_LARGEST_DISAGREEMENT = 1.0  # mm between two estimates of where the box lies
_LEAST_SHOWN = 0.9  # of the head around the box


@dataclass(frozen=True, eq=False)
class Repeat:
    """
    A box on a later scan, and how far it can be trusted.

    Parameters
    ----------
    voxel : Voxel
        The box in mm RAS+ of the later scan, its sides in the same order.
    matrix : ndarray of shape (4, 4)
        From mm RAS+ of the earlier scan to mm RAS+ of the later one; rigid.
    answer : str
        "repeated", "repeated, but tissue in the box changed" or "not the same head".
    agreement : float
        Median local correlation of both scans in the head, −1 to 1.
    changed_share : float or None
        Part of the box and 10 mm around it where the scans differ, beyond that of the whole head;
        None where they are not of the same head.
    shown_share : float or None
        Part of the head in the box and 10 mm around it that lies in the field of the later scan;
        None where they are not of the same head.
    disagreement : float
        In mm, how far apart corners of the box lie by registration forward and backward, and by
        each half of the head.
    flags : tuple of str
        What speaks against the box, with the remedy.
    notes : tuple of str
        What was not checked.
    reliable : bool
        Whether the answer is not "not the same head", and the position is certain within 1 mm.
    """

    voxel: Voxel
    matrix: NDArray[np.float64]
    answer: str
    agreement: float
    changed_share: float | None
    shown_share: float | None
    disagreement: float
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    reliable: bool


def repeat_voxel(voxel: Voxel, image: Image, new_image: Image) -> Repeat:
    """
    Move a box to a later scan of the same head. Not for clinical use.

    Parameters
    ----------
    voxel : Voxel
        The box, in mm RAS+ of `image`.
    image : path or Nifti1Image
        T1 scan of the session in which the box was measured.
    new_image : path or Nifti1Image
        T1 scan of the later session, of the same contrast.

    Returns
    -------
    Repeat
        The moved box, and whether it can be relied on. A bad match raises nothing: it is not
        reliable.

    Raises
    ------
    ImportError
        If SimpleITK is not installed: ``pip install "dmrifit[preprocess]"``.
    ValueError
        If a scan has no position or shows no head, the scans show no common part of a head, or the
        box lies outside the scan of its session or outside the later one.

    Notes
    -----
    Signals that look alike do not prove that two scans are of one person: sidecars (.json beside
    the images) are compared where both name a patient. Rigid registration by `HeadAlignment.of`.
    """
    _check_inside(voxel, image, "give the scan of the session in which the box was measured")
    alignment = HeadAlignment.of(image, new_image)
    new_voxel = voxel.transform(alignment.matrix)
    shared, differing = _compare_headers(_sidecar(image), _sidecar(new_image))
    conflicts, notes = [], []
    if differing:
        conflicts = [f"the headers name two patients ({', '.join(differing)}): check the scans"]
    elif not shared:
        notes = ["no headers name the patients: alike heads are no proof of one person"]
    if alignment.shows_same_head:
        _check_inside(new_voxel, new_image, "scan the part of the head that holds the box")
    surroundings = Voxel(voxel.center, voxel.size + 2 * _MARGIN, voxel.angles)
    changed_share, shown_share = _compare_tissue(surroundings, alignment)
    disagreement = alignment.disagreement(voxel.corners)
    flags = list(conflicts)
    is_other = bool(conflicts) or not alignment.shows_same_head
    is_changed = changed_share > _CHANGED_SHARE
    if not alignment.shows_same_head:
        flags.append(
            f"the scans are not alike ({alignment.agreement}): check the patient, the contrast "
            "and the field of both scans"
        )
    if is_changed and not is_other:
        flags.append(
            f"{percent(changed_share)} of the tissue in the box and {_MARGIN:g} mm around it "
            "changed: look at both scans, and place the box anew if the tumor moved, grew or was "
            "removed"
        )
    if shown_share < _LEAST_SHOWN and not is_other:
        flags.append(
            f"{percent(1 - shown_share)} of the box and {_MARGIN:g} mm around it lie outside "
            f"{image_name(new_image)} and were not compared: look at its edge"
        )
    if disagreement > _LARGEST_DISAGREEMENT:
        flags.append(
            f"two registrations place the box {disagreement:.1f} mm apart: do not use it, place "
            "it by hand"
        )
    answer = OTHER_HEAD if is_other else CHANGED if is_changed else REPEATED
    return Repeat(
        new_voxel,
        alignment.matrix,
        answer,
        alignment.likeness,
        None if is_other else changed_share,
        None if is_other else shown_share,
        disagreement,
        tuple(flags),
        tuple(notes),
        not is_other and disagreement <= _LARGEST_DISAGREEMENT,
    )


def frame_of(image: str | Path) -> str:
    """Give the frame of reference that the sidecar of an image names; empty where none does."""
    return str(_sidecar(image).get("FrameOfReferenceUID", ""))


def validity(name: str, image: Image | None) -> str:
    """Say how long numbers of a box hold: as long as the patient lies as in an image."""
    sidecar = {} if image is None else _sidecar(image)
    frame = str(sidecar.get("FrameOfReferenceUID", "")) or "unknown"
    date = day_of(str(sidecar.get("AcquisitionDate", ""))) or "unknown"
    return (
        f"valid only while the patient lies as in {name} (frame of reference {frame}, date "
        f"{date}); after repositioning or a new landmark, use repeat on this session's localizer"
    )


def doubtful_session(record: VoxelFile, image: str | Path) -> str:
    """
    Say why a box may be of another person or session than an image, as both files tell; or "".

    Where neither names a patient or a frame of reference that the other one names, too, nothing
    links them.
    """
    sidecar = _sidecar(image)
    frame = str(sidecar.get("FrameOfReferenceUID", ""))
    shared, differing = _compare_headers(record.patient, sidecar)
    if differing:
        return f"they name two patients ({', '.join(differing)})"
    if record.frame and frame:
        if record.frame == frame:
            return ""
        return "they have two frames of reference, so that the patient was moved in between"
    date = sidecar.get("AcquisitionDate") or sidecar.get("AcquisitionDateTime", "")
    days = [day_of(str(text)) for text in (record.date, date)]
    if all(days) and days[0] != days[1]:
        return f"they were measured on two days ({days[0]} and {days[1]})"
    if not shared:
        return "neither a patient nor a frame of reference is named in both files"
    return ""


def _check_inside(voxel: Voxel, image: Image, remedy: str) -> None:
    """Refuse a box of which less than half lies in the field of an image."""
    loaded = load_image(image)
    field = voxel.mask(loaded.shape[:3], loaded.affine, partial=True)
    size = abs(np.linalg.det(loaded.affine[:3, :3])) / MM3_PER_ML
    if field.sum(dtype=np.float64) * size < voxel.volume / 2:
        x, y, z = np.round(voxel.center, 1) + 0.0
        raise ValueError(
            f"the box at {x:g}, {y:g}, {z:g} mm (RAS+) lies outside {image_name(image)}; {remedy}"
        )


def _compare_tissue(surroundings: Voxel, alignment: HeadAlignment) -> tuple[float, float]:
    """
    Compare the two scans around a box: the share of tissue that changed, and that compared at all.

    The first is what exceeds the share of the whole head; the second is of the surroundings.
    """
    region = surroundings.mask(alignment.head.shape, alignment.affine) & alignment.head
    is_compared = np.isfinite(alignment.concordance)
    n_region, n_compared = np.count_nonzero(region), np.count_nonzero(region & is_compared)
    if not n_compared:
        return 0.0, 0.0
    has_changed = alignment.concordance < _UNLIKE
    share = np.count_nonzero(has_changed & region) / n_compared
    share_of_head = np.count_nonzero(has_changed) / np.count_nonzero(is_compared)
    return max(share - share_of_head, 0.0), n_compared / n_region


def _compare_headers(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """List the entries on the patient in both headers, without the sex, and those that differ."""
    # Names stay out of messages, which end in logs.
    texts = {key: (_comparable(first.get(key)), _comparable(second.get(key))) for key in IDENTITY}
    both = [key for key, pair in texts.items() if all(pair)]
    # Half of all patients agree in their sex.
    linking = [key for key in both if key != "PatientSex"]
    return linking, [key for key in both if texts[key][0] != texts[key][1]]


def _comparable(entry: Any) -> str:
    """Write an entry as letters and digits; empty where it was removed."""
    text = re.sub(r"[\W_]+", "", str(entry or "")).casefold()
    return "" if text in _ANONYMOUS or text.startswith("anonym") else text


def _sidecar(image: Image) -> Mapping[str, Any]:
    """Read the sidecar beside an image; empty where there is none."""
    if not isinstance(image, str | Path):
        return {}
    path = Path(image).with_name(f"{stem(image)}.json")
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); write it again, or remove it") from None
    return content if isinstance(content, Mapping) else {}
