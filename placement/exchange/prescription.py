"""Prescriptions of voxels: masks, geometry, numbers and figures. Not for clinical use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from sklearn.base import clone

import dmrifit
from dmrifit._utils.affines import MM3_PER_ML, voxel_volume
from dmrifit._utils.counts import percent
from dmrifit.imaging.head_steps import HeadSpan
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.grids import Volume
from dmrifit.report import page
from placement.box.voxel import CONVENTION, Voxel
from placement.exchange.displacement import displaced_share, displacement, region_distances
from placement.exchange.repeats import validity
from placement.exchange.vendor_texts import NOTICE, VENDORS, console_record
from placement.exchange.voxel_files import LPS_TO_RAS, read_voxel
from placement.search.objective import PlacementObjective, tumor_fraction, voxel_content
from placement.search.optimizer import LOOSE_SIDES, Placement, VoxelOptimizer, share_words
from placement.search.scene import Scene
from placement.search.tissue_labels import (
    LEAST_TARGET,
    LIMITS,
    MERGED,
    MOSTLY,
    OUTSIDE_BRAIN,
    milliliters,
)

__all__ = ["write_prescription"]

#: Earlier versions did not say what placed the box; version 1 ended the names of volumes in ml.
FORMAT_VERSION = 4

#: Ends of the names of the files of a box; the texts are left out where they are withheld.
BOX_FILES = ("_mask.nii.gz", "_geometry.nii.gz", *(f"_{vendor}.txt" for vendor in VENDORS))

#: No tumor of a brain is larger; the mask of a whole brain has 1000 mL or more.
LARGEST_TUMOR_ML = 500.0

#: The command that writes a box; terminals have words for what pages and records leave open.
PRESCRIBE = "dmrifit-placement prescribe TUMOR OPTIONS --out BOX"

#: What no box is checked for.
SHIM = "shim not assessed"

# Flags of a tumor, of a limit that is kept, and of sides that no console has to round.
_UNBROKEN = ("tumor below the smallest volume", "side at its limit", "sides not rounded")

_TEXTS = page.Texts(__file__)


def write_prescription(
    voxel: Voxel,
    scene: Scene,
    folder: str | Path,
    *,
    name: str = "voxel",
    optimizer: VoxelOptimizer | None = None,
    ppm_range: tuple[float, float] | None = None,
    percent_per_ppm: float | Sequence[float] | None = None,
    force: str = "",
    notes: Sequence[str] = (),
    flags: Sequence[str] = (),
    placed_by: str = "unknown",
    figure: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """
    Write a voxel for scanners and for programs that analyze spectra. Not for clinical use.

    Parameters
    ----------
    voxel : Voxel
        The box, from a placer or by hand.
    scene : Scene
        What it was placed in.
    folder : path
        Made if missing.
    name : str, default="voxel"
        What file names begin with.
    optimizer : VoxelOptimizer, default=None
        Whose objective and constraints scores and flags are about; by default one with default
        parameters.
    ppm_range : pair of float, default=None
        See `displacement`; with `percent_per_ppm`, it becomes part of the JSON file.
    percent_per_ppm : float or sequence of 3 floats, default=None
        See `displacement`; for the sides in the order of `voxel`.
    force : str, default=""
        Why numbers for consoles are written although less than half of the box is target, or
        brain; without a reason they are withheld.
    notes : sequence of str, default=()
        Sentences on how the scene came about, which pages show.
    flags : sequence of str, default=()
        Further flags, of what could not be checked.
    placed_by : str, default="unknown"
        What placed the box: a placer with its settings, or the file of a model with its digest.
    figure : bool, default=True
        Whether to draw the overlay, for which matplotlib is needed, and the page, for which Jinja2
        is needed too.
    overwrite : bool, default=False
        Whether files of an earlier run may be replaced.

    Returns
    -------
    dict
        What is in the JSON file; see `describe_placement`.

    Raises
    ------
    ValueError
        If the name is no plain file name, or one of `ppm_range` and `percent_per_ppm` is missing.
    FileExistsError
        If a file exists and `overwrite` is false.

    Notes
    -----
    The files appear together:

    - ``*_mask.nii.gz``: 1 where the center of an image voxel is in the box, on the grid of the
      scene; ``*_partial.nii.gz``: the fraction of each image voxel that the box fills;
    - ``*_geometry.nii.gz``: an image of a single voxel whose affine is the box, which programs for
      spectroscopy read (sform and qform alike). It holds no spectrum and is not NIfTI-MRS;
    - ``*_philips.txt`` and ``*_siemens.txt``: the numbers for the console of a scanner, see
      `philips_text` and `siemens_text`; the sides keep the order of `voxel`. They are withheld
      where less than half of the box is target, or brain, see `force`;
    - ``*_overlay.png``: three planes through the center with the exact outline, drawn from the
      numbers for Philips as they are read back; ``*_view.html``: the same to move through in a
      browser, a page that needs no other file;
    - ``*.json``: all numbers, with the digests of what they were computed from.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"name must be a plain file name, not {name!r}")
    options: dict[str, Any] = {"force": force, "notes": notes, "flags": flags}
    options |= {"ppm_range": ppm_range, "percent_per_ppm": percent_per_ppm}
    content = describe_placement(voxel, scene, optimizer=optimizer, **options)
    content["placed_by"] = placed_by
    drawing = figure and find_spec("matplotlib") is not None
    ends = (*BOX_FILES, "_partial.nii.gz", "_overlay.png", "_view.html", ".json")
    with FileSet(folder, [name + end for end in ends], overwrite=overwrite) as files:
        write_box(files, name, voxel, scene, content["console"])
        partial = voxel.mask(scene.shape, scene.affine, partial=True)
        image = _image_of_box(partial.astype(np.float32), scene.affine)
        image.to_filename(files.path(f"{name}_partial.nii.gz"))
        if drawing:
            from placement.exchange.overlays import plot_overlay

            picture = files.path(f"{name}_overlay.png")
            shown = box_of_console(files, name, voxel, content["console"])
            plot_overlay(shown, scene).savefig(picture, dpi=110)
            if find_spec("jinja2") is not None:
                from placement.exchange.pages import voxel_page

                html = voxel_page(voxel, scene, content, picture.read_bytes())
                files.path(f"{name}_view.html").write_text(html, encoding="utf-8")
        files.write_record(f"{name}.json", content)
    return content


def describe_placement(
    voxel: Voxel,
    scene: Scene,
    *,
    optimizer: VoxelOptimizer | None = None,
    ppm_range: tuple[float, float] | None = None,
    percent_per_ppm: float | Sequence[float] | None = None,
    force: str = "",
    notes: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe a voxel, its scores and the constraints that it breaks by plain values."""
    if (ppm_range is None) != (percent_per_ppm is None):
        raise ValueError("chemical-shift displacement needs both ppm_range and percent_per_ppm")
    check_reason(force)
    judge = VoxelOptimizer() if optimizer is None else optimizer
    placement = judge.assess(voxel, scene)
    objective = judge.objective_in(scene)
    reason = target_verdict(placement, judge)
    flags = [*placement.flags, *flags]
    # The sides of a box placed by hand are those that were asked for.
    if optimizer is None and "side at its limit" in flags:
        flags.remove("side at its limit")
    if scene.tumor_volume > LARGEST_TUMOR_ML:
        flags.append(f"tumor above {LARGEST_TUMOR_ML:g} mL")
    shares = voxel_content(voxel, scene)
    outside = shares["outside_brain"] or 0.0
    if outside > LEAST_TARGET and not reason:
        reason = f"{percent(outside)} of the box lies {OUTSIDE_BRAIN}: check the mask (--brain)"
    # The search does not avoid a target, but necrosis may be in one of this name.
    if MERGED in scene.targets and (shares[MERGED] or 0) > LIMITS[MERGED]:
        flags.append(f"more than {100 * LIMITS[MERGED]:.0f} % {MERGED}")
    notes = [*notes, *scene.notes]
    brain = None
    if OUTSIDE_BRAIN in scene.margins:
        margin = scene.margins[OUTSIDE_BRAIN]
        brain = {"margin_mm": margin, "tumor_cut_off_mL": scene.cut_off_volume}
        if scene.cut_off_text:
            (flags if scene.is_cut_off else notes).append(scene.cut_off_text)
    source = scene.sources.get("Image") or scene.sources.get("Tumor") or {}
    valid = validity(source.get("Name", "the image that it was placed in"), scene.placed_in)
    lacking = [] if ppm_range is not None else ["no bandwidths of pulses"]
    lacking += [] if OUTSIDE_BRAIN in scene.margins else ["no mask of the brain"]
    content: dict[str, Any] = {
        "format": "placement prescription",
        "format_version": FORMAT_VERSION,
        "notice": NOTICE,
        "software": f"dmrifit {dmrifit.__version__}",
        "name": scene.name,
        "synthetic": scene.synthetic,
        "size_mm": voxel.size.tolist(),
        "volume_mL": voxel.volume,
        "rotated_axes": voxel.rotated_axes,
        "rotated_angles": voxel.rotated_angles,
        "ras": _pose(voxel, np.ones(3)),
        "lps": _pose(voxel, LPS_TO_RAS),
        "side": describe_side(voxel, _span(scene)),
        "valid": valid,
        "convention": CONVENTION,
        "scores": {
            "objective": placement.objective,
            "tumor_fraction": placement.tumor_fraction,
            "tumor_volume_inside_mL": placement.tumor_volume,
        },
        "objective": asdict(objective),
        "component": placement.component,
        "targets": list(scene.targets) or ["tumor"],
        "content": shares,
        "brain": brain,
        "lipid": f"lipid displacement not checked: {' and '.join(lacking)}",
        "shim": SHIM,
        "notes": notes,
        "console": console_record(
            voxel,
            valid,
            withheld="" if force else reason,
            justification=force if reason else "",
            warning=reason,
        ),
        "regions": region_distances(voxel, scene),
        "tumor": {"volume_mL": scene.tumor_volume, "sha256": _digest(scene)},
        "sources": scene.sources,
    }
    if ppm_range is not None and percent_per_ppm is not None:
        shift: dict[str, Any] = {"ppm_range": ppm_range, "percent_per_ppm": percent_per_ppm}
        displaced = content["displacement"] = displacement(voxel, scene, **shift)
        if brain is not None:
            share = displaced["union_outside_brain"] = displaced_share(voxel, scene, **shift)
            content["lipid"] = _TEXTS["kept"].format(*ppm_range, **brain)
            if share > 0:
                flags.append("displaced box leaves the brain")
                content["lipid"] = f"{100 * share:.1f} % of the displaced boxes are no brain"
        distance, target = np.linalg.norm(displaced["shift_mm"]), displaced["worst_tumor_fraction"]
        content["lipid"] += _TEXTS["displaced"].format(
            distance=distance, share=share_words(target), **displaced
        )
        content["lipid"] = content["lipid"].replace(" -", " −")
    kind = "prescribe"
    if optimizer is not None:
        least = np.prod(np.broadcast_to(judge.size_range, (3, 2))[:, 0]) / MM3_PER_ML
        kind = "place by sides" if least >= judge.min_volume else "place by volume"
    return content | {"feasible": not flags, "flags": flags, "advice": advice(flags, kind)}


def write_box(
    files: FileSet, name: str, voxel: Voxel, scan: Any, console: Mapping[str, Any]
) -> None:
    """Write the `BOX_FILES` of a box on the grid of a scan; no texts where they are withheld."""
    mask = _image_of_box(voxel.mask(scan.shape, scan.affine), scan.affine)
    mask.to_filename(files.path(f"{name}_mask.nii.gz"))
    geometry_image(voxel).to_filename(files.path(f"{name}_geometry.nii.gz"))
    for vendor in VENDORS:
        if vendor in console:
            files.path(f"{name}_{vendor}.txt").write_text(console[vendor], encoding="utf-8")


def box_of_console(files: FileSet, name: str, voxel: Voxel, console: Mapping[str, Any]) -> Voxel:
    """Read the box back from the text for Philips; `voxel` itself where texts are withheld."""
    if console["withheld"]:
        return voxel
    return read_voxel(files.path(f"{name}_philips.txt"))


def _image_of_box(values: NDArray, affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """Make an image whose header says that it is not for clinical use."""
    image = Volume.of(values, affine)
    image.header["descrip"] = NOTICE.encode()
    return image


def check_reason(force: str) -> None:
    """Refuse reasons of several lines, which consoles' files would hold as numbers."""
    if not force.isprintable():
        raise ValueError(f"the reason of --force is one line of printable text, not {force!r}")


def head_share(voxel: Voxel, values: NDArray, affine: NDArray[np.float64]) -> float:
    """Measure which part of a box lies in a head, `values` (x, y, z) as for `HeadSpan.of`."""
    numbers = np.nan_to_num(values)
    head = binary_fill_holes(numbers > numbers.mean())
    filled = voxel.mask(numbers.shape, affine, partial=True)
    # What lies outside the image counts as no head.
    volume = float(filled[head].sum(dtype=np.float64)) * voxel_volume(affine)
    return volume / MM3_PER_ML / voxel.volume


def center_is_inside(voxel: Voxel, shape: Sequence[int], affine: NDArray[np.float64]) -> bool:
    """Tell whether the center of a box is in the field of view of an image."""
    index = apply_affine(np.linalg.inv(affine), voxel.center)
    return bool(((index > -0.5) & (index < np.array(shape) - 0.5)).all())


def _span(scene: Scene) -> HeadSpan:
    """Measure how far the head of a scene reaches, as far as its images tell."""
    if OUTSIDE_BRAIN in scene.margins:
        return HeadSpan.of(~scene.region(OUTSIDE_BRAIN), scene.affine)
    return HeadSpan() if scene.image is None else HeadSpan.of(scene.image, scene.affine)


def describe_side(voxel: Voxel, span: HeadSpan | None = None) -> str:
    """Say on which side of the isocenter a box lies."""
    span, x = span or HeadSpan(), voxel.center[0]
    side = "right" if x > 0 else "left"
    # Heads do not always lie in the middle, so that nothing is said of the side of the brain.
    place = f"{abs(x):.1f} mm to the patient's {side} of the isocenter"
    if abs(x) < 0.05:
        words = "its center lies at x = 0, that of the isocenter"
    elif abs(x) < np.abs(voxel.corners[:, 0] - x).max():
        words = f"it crosses x = 0, its center {place}"
    else:
        words = f"it lies {place}, x = 0"
    if span.low == -np.inf:
        words += "; without a head in an image this does not tell the side of the head"
    return f"its center lies at x = {x:.1f} mm; {span.doubt}" if span.doubt else words


def geometry_image(voxel: Voxel) -> nib.Nifti1Image:
    """Make an image of one voxel whose affine is the box."""
    # Headers hold quaternions in single precision, which are poor near half a turn; the canonical
    # pose is far from it.
    box = voxel.canonical()
    image = _image_of_box(np.ones((1, 1, 1), dtype=np.float32), box.affine)
    image.set_qform(box.affine, code="scanner")
    image.set_sform(box.affine, code="scanner")
    return image


def _pose(voxel: Voxel, signs: NDArray[np.float64]) -> dict[str, Any]:
    """Describe a pose on axes with these signs in RAS+; adding 0 turns -0 into 0."""
    from scipy.spatial.transform import Rotation

    rotation = signs[:, None] * voxel.rotation * signs
    # Of the two quaternions of a rotation, NIfTI takes that with a positive first number.
    quaternion = Rotation.from_matrix(rotation).as_quat()[[3, 0, 1, 2]]
    if quaternion[0] < 0:
        quaternion = -quaternion
    return {
        "center_mm": (signs * voxel.center + 0.0).tolist(),
        "rotation": (rotation + 0.0).tolist(),
        "angles_deg": (signs * voxel.angles + 0.0).tolist(),
        "quaternion_wxyz": (quaternion + 0.0).tolist(),
    }


def _digest(scene: Scene) -> str:
    """Hash the input of scores: tumor, grid and excluded regions."""
    digest = hashlib.sha256(scene.affine.tobytes())
    digest.update(repr((scene.shape, scene.origin)).encode())
    digest.update(scene.occupancy.tobytes())
    for name, region in scene.forbidden.items():
        digest.update(f"{name} {scene.margins[name]} {scene.tolerances[name]}".encode())
        digest.update(np.packbits(region).tobytes())
    return digest.hexdigest()


def target_verdict(placement: Placement, optimizer: VoxelOptimizer) -> str:
    """Say why the numbers of a box of less than half target are withheld; "" for other boxes."""
    if placement.tumor_fraction >= LEAST_TARGET:
        return ""
    least, scene = optimizer.min_volume, placement.scene
    # Rounded as commands name it, so that the box that is judged is the one that is named.
    finder = clone(optimizer).set_params(rounding=optimizer.rounding or (0.1, 0.1, 0.1))
    purest = optimizer.assess(finder.purest(scene), scene)
    if purest.tumor_fraction < LEAST_TARGET:
        reason = f"no box of ≥ {least:g} mL reaches 50 % target: ask a spectroscopist"
    else:
        words = {"share": share_words(placement.tumor_fraction), "least": least}
        words |= {"better": share_words(purest.tumor_fraction), "box": _command_of(purest.voxel)}
        words["broken"] = "; ".join(advice(purest.breaks_beyond(placement)))
        reason = _TEXTS("better_breaks" if words["broken"] else "better", **words)
    largest = largest_box(scene)
    # A box of enough target that is no smaller was named, or what it breaks.
    least = purest.voxel.volume if purest.tumor_fraction >= MOSTLY else 0.0
    if largest is None or largest.volume <= least:
        return reason if least else f"{reason}; no box of ≥ 75 % target was found"
    flags = [flag for flag in optimizer.assess(largest, scene).flags if flag not in _UNBROKEN]
    reason += f"; the largest box found with ≥ 75 % target has {milliliters(largest.volume)} "
    return f"{reason}({_command_of(largest, '_largest')}), flagged: {', '.join(flags) or 'none'}"


def _command_of(box: Voxel, suffix: str = "") -> str:
    """Give the command that writes a box which was found but not placed."""
    command = PRESCRIBE + suffix
    for name, three in (("center", box.center), ("size", box.size), ("angles", box.angles)):
        command += f" --{name}={','.join(f'{value:z.9g}' for value in three)}"
    return command


def largest_box(scene: Scene) -> Voxel | None:
    """Search for the largest box with sides of 5 mm or more that is mostly target, if any."""
    volume = scene.tumor_volume
    objective = PlacementObjective(
        mean_volume=volume,
        sd_volume=0.5 * volume,
        # Aimed at 77 % target, boxes were 1 to 10 % smaller in 14 tumors, and took as long.
        mean_fraction=MOSTLY + 0.005,
        sd_fraction=0.005,
        one_sided=True,
    )
    search = VoxelOptimizer(objective, size_range=LOOSE_SIDES, min_volume=0, thorough=True)
    search.set_params(tie_break=0, rounding=(0.1, 0.1, 0.1), random_state=0)
    boxes = [box for box, _ in search.candidates(scene.unlimited, 5)]
    boxes = [box for box in boxes if tumor_fraction(box, scene) >= MOSTLY]
    return max(boxes, key=lambda box: box.volume, default=None)


def advice(flags: list[str], kind: str = "any") -> list[str]:
    """Explain flags, with what to do about each where a `kind` of run, see TOML, wrote the box."""
    texts = _TEXTS["any"] | _TEXTS[kind]
    sentences = []
    for flag in flags:
        remedy = next((text for start, text in texts.items() if flag.startswith(start)), "")
        if "lies outside the" in flag:
            remedy = "look at the mask, or give another one (--brain FILE, column brain of tables)"
        sentences.append(f"{flag}: {remedy}" if remedy else flag)
    return sentences
