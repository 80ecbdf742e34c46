"""Prescriptions of voxels: masks, geometry, numbers and figures. Not for clinical use."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

import dmrifit
from dmrifit.io.atomic_files import FileSet
from dmrifit.io.nifti import image_of, save_image
from placement.box.voxel import CONVENTION, Voxel
from placement.exchange.vendor_texts import NOTICE, philips_text, siemens_text
from placement.exchange.voxel_files import LPS_TO_RAS, read_voxel
from placement.search.objective import PlacementObjective, tumor_fraction
from placement.search.optimizer import VoxelOptimizer
from placement.search.scene import Scene

__all__ = [
    "FORMAT_VERSION",
    "describe_placement",
    "describe_side",
    "displacement",
    "geometry_image",
    "region_distances",
    "write_prescription",
]

FORMAT_VERSION = 1

_DIVISIONS = 5  # points along each edge of an image voxel near the box
_OFFSETS = 5  # chemical shifts between the ends of a range


def write_prescription(
    voxel: Voxel,
    scene: Scene,
    folder: str | Path,
    *,
    name: str = "voxel",
    optimizer: VoxelOptimizer | None = None,
    ppm_range: tuple[float, float] | None = None,
    percent_per_ppm: float | Sequence[float] | None = None,
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
      `philips_text` and `siemens_text`; the sides keep the order of `voxel`;
    - ``*_overlay.png``: three planes through the center with the exact outline, drawn from the
      numbers for Philips as they are read back; ``*_view.html``: the same to move through in a
      browser, a page that needs no other file;
    - ``*.json``: all numbers, with the digests of what they were computed from.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"name must be a plain file name, not {name!r}")
    content = describe_placement(
        voxel, scene, optimizer=optimizer, ppm_range=ppm_range, percent_per_ppm=percent_per_ppm
    )
    texts = {"_philips.txt": philips_text, "_siemens.txt": siemens_text}
    drawing = figure and find_spec("matplotlib") is not None
    ends = (
        "_mask.nii.gz",
        "_partial.nii.gz",
        "_geometry.nii.gz",
        *texts,
        "_overlay.png",
        "_view.html",
        ".json",
    )
    with FileSet(folder, [name + end for end in ends], overwrite=overwrite) as files:
        partial = voxel.mask(scene.shape, scene.affine, partial=True)
        for end, values in (
            ("_mask.nii.gz", voxel.mask(scene.shape, scene.affine)),
            ("_partial.nii.gz", partial.astype(np.float32)),
        ):
            image = image_of(values, scene.affine)
            image.header["descrip"] = NOTICE.encode()
            save_image(image, files.path(name + end))
        save_image(geometry_image(voxel), files.path(f"{name}_geometry.nii.gz"))
        for end, text_of in texts.items():
            text = text_of(voxel, valid=content["valid"])
            files.path(name + end).write_text(text, encoding="utf-8")
        if drawing:
            from placement.exchange.overlays import plot_overlay

            picture = files.path(f"{name}_overlay.png")
            # What the console is told is what is looked at.
            console_voxel = read_voxel(files.path(f"{name}_philips.txt"))
            plot_overlay(console_voxel, scene).savefig(picture, dpi=110)
            if find_spec("jinja2") is not None:
                page = _view(voxel, scene, content, picture.read_bytes())
                files.path(f"{name}_view.html").write_text(page, encoding="utf-8")
        files.write_json(f"{name}.json", content)
    return content


def describe_placement(
    voxel: Voxel,
    scene: Scene,
    *,
    optimizer: VoxelOptimizer | None = None,
    ppm_range: tuple[float, float] | None = None,
    percent_per_ppm: float | Sequence[float] | None = None,
) -> dict[str, Any]:
    """Describe a voxel, its scores and the constraints that it breaks by plain values."""
    if (ppm_range is None) != (percent_per_ppm is None):
        raise ValueError("chemical-shift displacement needs both ppm_range and percent_per_ppm")
    judge = VoxelOptimizer() if optimizer is None else optimizer
    placement = judge.assess(voxel, scene)
    objective = getattr(judge, "objective_", judge.objective) or PlacementObjective()
    content: dict[str, Any] = {
        "format": "placement prescription",
        "format_version": FORMAT_VERSION,
        "notice": NOTICE,
        "software": f"dmrifit {dmrifit.__version__}",
        "name": scene.name,
        "synthetic": scene.synthetic,
        "size_mm": voxel.size.tolist(),
        "volume_ml": voxel.volume,
        "rotated_axes": voxel.rotated_axes,
        "rotated_angles": voxel.rotated_angles,
        "ras": _pose(voxel.center, voxel.rotation, voxel.angles),
        "lps": _pose(
            LPS_TO_RAS * voxel.center,
            LPS_TO_RAS[:, None] * voxel.rotation * LPS_TO_RAS,
            LPS_TO_RAS * voxel.angles,
        ),
        "side": describe_side(voxel),
        "valid": _validity(scene),
        "convention": CONVENTION,
        "scores": {
            "objective": placement.objective,
            "tumor_fraction": placement.tumor_fraction,
            "tumor_volume_inside_ml": placement.tumor_volume,
        },
        "objective": asdict(objective),
        "component": placement.component,
        "feasible": placement.feasible,
        "flags": list(placement.flags),
        "regions": region_distances(voxel, scene),
        "tumor": {"volume_ml": scene.tumor_volume, "sha256": _digest(scene)},
        "sources": scene.sources,
    }
    if ppm_range is not None and percent_per_ppm is not None:
        content["displacement"] = displacement(
            voxel, scene, ppm_range=ppm_range, percent_per_ppm=percent_per_ppm
        )
    return content


def describe_side(voxel: Voxel) -> str:
    """Say in words on which side of the scanner's middle a box lies."""
    x = voxel.center[0]
    side = "right" if x > 0 else "left"
    reach = np.abs(voxel.corners[:, 0] - x).max()
    if abs(x) < reach:
        return (
            f"it crosses x = 0, its center {abs(x):.1f} mm to the patient's {side} of the "
            "scanner's middle"
        )
    # Heads do not always lie in the middle, so that nothing is said of the side of the brain.
    return f"it lies {abs(x):.1f} mm to the patient's {side} of the scanner's middle, x = 0"


def geometry_image(voxel: Voxel) -> nib.Nifti1Image:
    """Make an image of one voxel whose affine is the box."""
    # Headers hold quaternions in single precision, which are poor near half a turn; the canonical
    # pose is far from it.
    box = voxel.canonical()
    image = nib.Nifti1Image(np.ones((1, 1, 1), dtype=np.float32), box.affine)
    image.set_qform(box.affine, code="scanner")
    image.set_sform(box.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = NOTICE.encode()
    return image


def region_distances(voxel: Voxel, scene: Scene) -> dict[str, dict[str, Any]]:
    """Measure the distance to each excluded region, and the volume shared with it."""
    filled = voxel.mask(scene.shape, scene.affine, partial=True)
    distances = {}
    for name, region in scene.forbidden.items():
        distances[name] = {
            "distance_mm": _distance_to(scene, name)(voxel),
            "margin_mm": scene.margins[name],
            "tolerance": scene.tolerances[name],
            "overlap_ml": float(filled[region].sum(dtype=np.float64)) * scene.voxel_volume,
        }
    return distances


def displacement(
    voxel: Voxel,
    scene: Scene,
    *,
    ppm_range: tuple[float, float],
    percent_per_ppm: float | Sequence[float],
) -> dict[str, Any]:
    """
    Find the worst case under chemical-shift displacement.

    Metabolites that resonate off the frequency of the pulses are excited in a box that is shifted
    along its sides. The directions depend on the signs of gradients, so all are tried.
    """
    ends = np.asarray(ppm_range, dtype=np.float64)
    rate = np.asarray(percent_per_ppm, dtype=np.float64)
    if not (ends.shape == (2,) and np.isfinite(ends).all() and ends[0] <= ends[1]):
        raise ValueError(
            f"ppm_range must be a finite number and one that is not below it, got {ppm_range}"
        )
    if not (rate.shape in ((), (3,)) and np.isfinite(rate).all() and (rate >= 0).all()):
        raise ValueError(
            "percent_per_ppm must be one number of 0 or more, or one for each of three sides, "
            f"got {percent_per_ppm}"
        )
    low, high = ends.tolist()
    rate = np.broadcast_to(rate, (3,))
    worst: dict[str, Any] = {}
    nearest: dict[str, float | None] = dict.fromkeys(scene.margins)
    distance_to = {name: _distance_to(scene, name) for name in scene.margins}
    largest_shift = 0.0
    lowest_fraction = np.inf
    for ppm in np.unique(np.linspace(low, high, _OFFSETS)):
        # The sign of each gradient is chosen on the console and unknown here.
        for signs in itertools.product((1.0, -1.0), repeat=3):
            shift = np.array(signs) * ppm * rate / 100 * voxel.size
            moved = Voxel(voxel.center + voxel.rotation @ shift, voxel.size, voxel.angles)
            fraction = tumor_fraction(moved, scene)
            largest_shift = max(largest_shift, float(np.linalg.norm(shift)))
            if fraction < lowest_fraction:
                lowest_fraction = fraction
                worst = {
                    "ppm": float(ppm),
                    "shift_mm": (shift + 0.0).tolist(),
                    "center_mm": moved.center.tolist(),
                }
            for name in nearest:
                # An empty region has no distance from any box.
                distance = distance_to[name](moved)
                before = nearest[name]
                if before is None or distance is None:
                    nearest[name] = distance
                else:
                    nearest[name] = min(before, distance)
    return {
        "ppm_range": [low, high],
        "percent_per_ppm": rate.tolist(),
        "tumor_fraction": tumor_fraction(voxel, scene),
        "worst_tumor_fraction": lowest_fraction,
        **worst,
        "largest_shift_mm": largest_shift,
        "worst_distance_mm": nearest,
    }


def _validity(scene: Scene) -> str:
    """Say how long numbers of a box hold: NIfTI does not name its frame of reference."""
    source = scene.sources.get("Image") or scene.sources.get("Tumor") or {}
    image = source.get("Name", "the image that it was placed in")
    return (
        f"valid only while the patient lies as in {image} (frame of reference unknown); after "
        "repositioning or a new landmark, register that image to this session's localizer and "
        "move the box with it"
    )


def _view(voxel: Voxel, scene: Scene, content: dict[str, Any], picture: bytes) -> str:
    """Make the page that shows a voxel, the tumor and excluded regions over the image."""
    from dmrifit.report.html import html_figure, html_table, notice_lead
    from dmrifit.report.viewer import Box, Layer, html_viewer, viewer_page

    layers = [Layer("tumor", scene.tumor > 0.5, "mask")]
    layers += [Layer(name, region, "mask") for name, region in scene.forbidden.items()]
    if scene.image is not None:
        layers.insert(0, Layer("image", scene.image.reshape(*scene.shape, -1)[..., 0]))
    planes = html_viewer(
        layers,
        scene.affine,
        boxes=[Box("voxel", voxel.affine)],
        points=[("center of the voxel", voxel.center), ("center of the tumor", scene.centroid)],
        label="Voxel over the image",
        instead=html_figure(picture, "Voxel in three planes", width=1000),
    )
    scores = content["scores"]
    rows = [
        ["center (RAS), mm", ", ".join(f"{x + 0.0:.1f}" for x in content["ras"]["center_mm"])],
        ["sides, mm", " × ".join(f"{x:.1f}" for x in content["size_mm"])],
        ["angles, degrees", ", ".join(f"{x + 0.0:.1f}" for x in content["ras"]["angles_deg"])],
        ["volume, mL", f"{content['volume_ml']:.2f}"],
        ["part that is tumor", f"{scores['tumor_fraction']:.3f}"],
        ["side", content["side"]],
        ["valid", content["valid"]],
        ["flags", "; ".join(content["flags"]) or "none"],
    ]
    sections = [("", planes), ("The voxel", html_table(rows))]
    lead = notice_lead([scene.synthetic], "case", f"{NOTICE}.")
    return viewer_page(scene.name or "Voxel", sections, lead=lead)


def _pose(
    center: NDArray[np.float64], rotation: NDArray[np.float64], angles: NDArray[np.float64]
) -> dict[str, Any]:
    """Describe a pose by plain values; adding 0 turns -0 into 0."""
    from scipy.spatial.transform import Rotation

    # Of the two quaternions of a rotation, NIfTI takes that with a positive first number.
    quaternion = Rotation.from_matrix(rotation).as_quat()[[3, 0, 1, 2]]
    if quaternion[0] < 0:
        quaternion = -quaternion
    return {
        "center_mm": (center + 0.0).tolist(),
        "rotation": (rotation + 0.0).tolist(),
        "angles_deg": (angles + 0.0).tolist(),
        "quaternion_wxyz": (quaternion + 0.0).tolist(),
    }


def _distance(voxel: Voxel, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Measure distances of points to a box in mm, 0 inside."""
    local = np.abs((points - voxel.center) @ voxel.rotation) - voxel.size / 2
    return np.linalg.norm(np.maximum(local, 0.0), axis=1)


def _distance_to(scene: Scene, name: str) -> Callable[[Voxel], float | None]:
    """Make a function that measures the distance of a box to an excluded region, in mm."""
    matrix = scene.affine[:3, :3]
    region = scene.forbidden[name]
    # The inside of a region is never nearest, unless the box is in it, where any point will do.
    rim = region & ~binary_erosion(region)
    # Points up to the faces of image voxels, because a region ends there and not at their centers.
    line = np.linspace(-0.5, 0.5, _DIVISIONS)
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = points @ matrix.T
    reach = float(np.linalg.norm(inside, axis=1).max())
    centers = np.argwhere(rim) @ matrix.T + scene.affine[:3, 3]
    inverse = np.linalg.inv(scene.affine)

    def distance(voxel: Voxel) -> float | None:
        if not len(centers):
            return None
        index = np.rint(inverse[:3, :3] @ voxel.center + inverse[:3, 3]).astype(int)
        if (index >= 0).all() and (index < region.shape).all() and region[tuple(index)]:
            return 0.0
        # Only image voxels whose centers are nearly nearest are divided into points.
        rough = _distance(voxel, centers)
        near = centers[rough <= rough.min() + 2 * reach]
        return min(float(_distance(voxel, near + offset).min()) for offset in inside)

    return distance


def _digest(scene: Scene) -> str:
    """Hash the input of scores: tumor, grid and excluded regions."""
    digest = hashlib.sha256(scene.affine.tobytes())
    digest.update(repr((scene.shape, scene.origin)).encode())
    digest.update(scene.occupancy.tobytes())
    for name, region in scene.forbidden.items():
        digest.update(f"{name} {scene.margins[name]} {scene.tolerances[name]}".encode())
        digest.update(np.packbits(region).tobytes())
    return digest.hexdigest()
