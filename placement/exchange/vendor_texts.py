"""Numbers of a box for the consoles of Philips and Siemens scanners. Not for clinical use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.box.voxel import PARALLEL_DEGREES, Voxel, count_turned, upright_angles
from placement.exchange.voxel_files import LPS_TO_RAS, TO_SET, main_axis, siemens_directions

NOTICE = "Not for clinical use"

#: What is not known of Siemens' strings, where the main plane is not transverse.
UNVERIFIED_PLANES = (
    "order and signs of coronal and sagittal main planes rest on one public test file, not on a "
    "scanner"
)

#: Vendors whose consoles get a text.
VENDORS = ("philips", "siemens")

_COMPARE = "head first, supine; compare with the planned voxel on the console before use"
_PLANES = "SCT"  # by the axis that is perpendicular to them: sagittal, coronal, transverse
_LETTERS = ("RL", "AP", "FH")  # of negative and positive positions in LPS


def philips_text(voxel: Voxel, *, decimals: int = 3, valid: str = "") -> str:
    """
    Write a voxel for a Philips console, of a patient in head-first supine position.

    The off-center is the center in LPS. spec2nii reads the angulations as intrinsic XYZ angles
    (−lr, −ap, +cc) in RAS+; this writes the inverse. The sides keep their order.
    """
    lines = _head("Philips", valid, console_angles(voxel)["philips"])
    lines += ['patient_position : "head_first"', 'patient_orientation : "supine"']
    for quantity, numbers in (
        ("size", voxel.size),
        ("off_center", LPS_TO_RAS * voxel.center),
        ("angulation", LPS_TO_RAS * upright_angles(voxel.rotation)),
    ):
        lr, ap, cc = (_decimal(number, decimals) for number in numbers)
        lines += [f"ap_{quantity} : {ap}", f"lr_{quantity} : {lr}", f"cc_{quantity} : {cc}"]
    return "\n".join(lines) + "\n"


def siemens_text(voxel: Voxel, *, decimals: int = 3, valid: str = "") -> str:
    """
    Write a voxel for a Siemens console, of a patient in head-first supine position.

    The sides keep their order: the first along reading, the second along phase encoding, the
    third along the normal of the plane; see `siemens_directions` for the turn in the
    plane, which a box determines up to 180 degrees.
    """
    normal, turn = _normal_and_turn(voxel)
    orientation = siemens_orientation(normal, decimals=decimals)
    lines = _head("Siemens", valid, console_angles(voxel)["siemens"])
    if not orientation.startswith("T"):
        lines.append(f"! {UNVERIFIED_PLANES}")
    center = [
        f"{letters[int(number > 0)]} {_decimal(abs(number), decimals)}"
        for letters, number in zip(_LETTERS, LPS_TO_RAS * voxel.center, strict=True)
    ]
    lines.append(f"position : {' '.join(center)}")
    lines.append(f"orientation : {orientation}")
    lines.append(f"rotation : {_decimal(np.degrees(turn), decimals)}")
    for name, side in zip(("readout_fov", "phase_fov", "thickness"), voxel.size, strict=True):
        lines.append(f"{name} : {_decimal(side, decimals)}")
    return "\n".join(lines) + "\n"


def console_angles(voxel: Voxel) -> dict[str, int]:
    """
    Count the angles of half a degree or more in the texts of a voxel, by vendor.

    Philips: the angulations, `Voxel.rotated_angles`, of which constraints allow so many.
    Siemens: the tilts of the plane and the turn in it, as many as for Philips where the main plane
    is transverse; tilts beyond about 40 degrees make another plane the main one, which may take a
    third angle.
    """
    normal, turn = _normal_and_turn(voxel)
    siemens = count_turned([*_tilts(normal)[1], np.degrees(turn)])
    return {"philips": voxel.rotated_angles, "siemens": siemens}


def console_record(
    voxel: Voxel, valid: str, *, withheld: str = "", justification: str = "", warning: str = ""
) -> dict[str, Any]:
    """
    Make the console entry of a prescription: the text to set up the box for each vendor.

    `withheld` is why the texts are left out, `warning` what speaks against using the box, and
    `justification` what a user gave for getting the texts despite it; "" where none applies.
    """
    console: dict[str, Any] = {"withheld": withheld, "forced": justification, "reason": warning}
    console["angles"] = console_angles(voxel)
    if withheld:
        return console
    for vendor, text_of in (("philips", philips_text), ("siemens", siemens_text)):
        text = text_of(voxel, valid=valid)
        console[vendor] = f"! forced: {justification}\n{text}" if justification else text
    return console


def siemens_orientation(normal: NDArray[np.float64], *, decimals: int = 1) -> str:
    """
    Name a plane by its normal in LPS as Siemens does, for example "T > C -23.9 > S 4.5".

    The first letter is the main plane; the larger of the two tilts (degrees) stands first, and the
    second is that of the plane that was tilted already. Two strings that a scanner printed with
    their normals are reproduced (mvpa.blogspot.com, September 2016), both transverse; see
    `UNVERIFIED_PLANES`.
    """
    (main, *axes), tilts = _tilts(normal)
    text = _PLANES[main]
    for axis, tilt in zip(axes, tilts, strict=True):
        if round(abs(tilt), decimals):
            text += f" > {_PLANES[axis]} {_decimal(tilt, decimals)}"
    return text


def _tilts(normal: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]]:
    """Give the axes of a normal in LPS and of its two tilts, and the two tilts in degrees."""
    main = main_axis(normal)
    n = normal * np.sign(normal[main])
    first, second = sorted((axis for axis in range(3) if axis != main), key=lambda k: -abs(n[k]))
    tilts = np.array([-np.arctan2(n[first], n[main]), -np.arcsin(np.clip(n[second], -1, 1))])
    return [main, first, second], np.degrees(tilts)


def _normal_and_turn(voxel: Voxel) -> tuple[NDArray[np.float64], float]:
    """Give the normal in LPS and the turn in the plane (radians, −90 to 90 degrees)."""
    _, phase, normal = (LPS_TO_RAS[:, None] * voxel.rotation).T
    main = main_axis(normal)
    # Siemens' normals point to the head or the back, and to the right where they are sagittal.
    wanted = -1.0 if main == 0 else 1.0
    normal = normal * wanted * np.sign(normal[main])
    read, unturned, _ = siemens_directions(normal, 0.0).T
    turn = float(np.arctan2(-(phase @ read), phase @ unturned))
    # Half a turn in the plane gives the same box.
    return normal, (turn + np.pi / 2) % np.pi - np.pi / 2


def _decimal(number: float, decimals: int) -> str:
    """Write a number, and -0 as 0."""
    return f"{number:z.{decimals}f}"


def _head(vendor: str, valid: str, n_angles: int) -> list[str]:
    """Begin a text: notice, position of the patient, how many angles to set, and `valid`."""
    lines = [f"! {NOTICE}", f"! {vendor}, {_COMPARE}"]
    lines.append(f"{TO_SET}{n_angles} of 3 ({PARALLEL_DEGREES:g} degrees or more)")
    if valid:
        lines.append(f"! {valid}")
    return lines
