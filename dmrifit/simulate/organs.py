"""Organs and tumors of synthetic bodies: abdomen and pelvis painted on a fine grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dmrifit.simulate.tissues import tissue_table

VOXEL_SIZE = (3.0, 3.0, 6.0)  # mm

_SUBSAMPLING = 2  # sub-voxels per axis, for the share of each tissue in a voxel
_NECROSIS_SHARE = 0.6  # of tumors have a necrotic core
_TUMOR_RADIUS = (0.12, 0.26)  # of half the field of view


@dataclass(frozen=True)
class Template:
    """A part of the body."""

    # Ellipsoids in the order of painting, the body first: tissue, center and radii along x
    # (right), y (anterior) and z (up), in halves of the field of view.
    organs: tuple[tuple[str, tuple[float, float, float], tuple[float, float, float]], ...]
    home: str  # the tissue around whose center tumors grow
    invaded: tuple[str, ...]  # the tissues that they grow into


_BODY = ("muscle", (0.0, 0.0, 0.0), (0.93, 0.74, 9.0))
_PELVIS = (
    _BODY,
    ("bone", (0.60, -0.02, 0.0), (0.14, 0.30, 9.0)),
    ("bone", (-0.60, -0.02, 0.0), (0.14, 0.30, 9.0)),
    ("bone", (0.0, -0.60, 0.1), (0.24, 0.10, 9.0)),
    ("rectum", (0.0, -0.34, 0.0), (0.11, 0.12, 9.0)),
    ("bladder", (0.0, 0.36, 0.35), (0.26, 0.22, 1.1)),
)

#: Templates by name. A pelvis is a man's or a woman's.
TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "abdomen": Template(
            (
                _BODY,
                ("liver", (0.36, 0.12, 0.1), (0.46, 0.50, 2.2)),
                ("spleen", (-0.58, -0.18, 0.2), (0.20, 0.30, 1.6)),
                ("kidney", (0.40, -0.44, -0.4), (0.15, 0.17, 1.4)),
                ("kidney", (-0.38, -0.44, -0.2), (0.15, 0.17, 1.4)),
            ),
            home="liver",
            invaded=("liver", "muscle", "tumor"),
        ),
        "male pelvis": Template(
            (*_PELVIS, ("prostate", (0.0, 0.02, -0.2), (0.20, 0.17, 1.0))),
            home="prostate",
            invaded=("prostate", "rectum", "muscle", "tumor"),
        ),
        "female pelvis": Template(
            (*_PELVIS, ("uterus", (0.0, 0.02, 0.1), (0.28, 0.20, 1.5))),
            home="uterus",
            invaded=("uterus", "rectum", "muscle", "tumor"),
        ),
    }
)


def draw_template(choice: str, rng: np.random.Generator) -> str:
    """Draw the part of the body in the image, and the sex of a pelvis."""
    if choice not in ("both", "abdomen", "pelvis"):
        raise ValueError(f"template must be 'both', 'abdomen' or 'pelvis', not {choice!r}")
    # Both are always drawn, so that `choice` does not change the stream.
    pelvis, male = rng.random(2) < 0.5
    if choice == "abdomen" or (choice == "both" and not pelvis):
        return "abdomen"
    return "male pelvis" if male else "female pelvis"


def paint(
    template: str, shape: tuple[int, int, int], rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Paint organs, tumors and necrotic cores on a grid of sub-voxels, later over earlier."""
    tissues = tuple(tissue_table()["tissue"])
    anatomy = TEMPLATES[template]
    canvas = _Canvas(shape, tissues)
    for tissue, center, radii in anatomy.organs:
        # The body stays in the middle of the image; organs move inside of it.
        jitter = 0.0 if tissue == "muscle" else 0.03
        size = rng.uniform(0.94, 1.04)
        position = np.array(center) + rng.normal(0, jitter, 3)
        canvas.ellipsoid(tissue, position, np.array(radii) * size, rng.normal(0, 0.05))
    _, home_center, home_radii = next(
        organ for organ in anatomy.organs if organ[0] == anatomy.home
    )
    half = canvas.half
    for _ in range(rng.integers(1, 4)):
        direction = rng.normal(size=3)
        direction *= rng.uniform(0.1, 0.5) / np.linalg.norm(direction)
        position = np.array(home_center) + direction * np.minimum(home_radii, (1, 1, 0.6))
        radius = rng.uniform(*_TUMOR_RADIUS) * rng.uniform(0.85, 1.15, 3)
        # At least 1.5 voxels, so that small images have a tumor too.
        in_mm = np.maximum(radius * half[0], 1.5 * np.array(VOXEL_SIZE))
        angle = rng.uniform(0, np.pi)
        canvas.ellipsoid("tumor", position, in_mm / half, angle, within=anatomy.invaded)
        # Drawn for tumors without a core, too, so that later tumors stay the same.
        core = rng.uniform(0.35, 0.6)
        if rng.random() < _NECROSIS_SHARE:
            canvas.ellipsoid("necrosis", position, core * in_mm / half, angle, within=("tumor",))
    return canvas.shares()


class _Canvas:
    """Labels on the grid of sub-voxels, one number for each tissue."""

    def __init__(self, shape: tuple[int, int, int], tissues: tuple[str, ...]) -> None:
        self.shape, self.tissues = shape, tissues
        self.half = np.array(shape) * VOXEL_SIZE / 2  # mm
        self._axes = [
            ((np.arange(n * _SUBSAMPLING) + 0.5) / (n * _SUBSAMPLING) * 2 - 1) for n in shape
        ]
        self._labels = np.zeros([len(axis) for axis in self._axes], dtype=np.uint8)

    def ellipsoid(
        self,
        tissue: str,
        center: NDArray,
        radii: NDArray,
        angle: float,
        *,
        within: tuple[str, ...] = (),
    ) -> None:
        """Paint an ellipsoid, turned about the body's axis, over named tissues or all."""
        offsets = [axis - c for axis, c in zip(self._axes, center, strict=True)]
        x, y, z = np.meshgrid(*offsets, indexing="ij", sparse=True)
        # Rotated in mm, because the field of view need not be square.
        half = self.half
        x, y = x * half[0], y * half[1]
        u = (np.cos(angle) * x + np.sin(angle) * y) / (radii[0] * half[0])
        v = (np.cos(angle) * y - np.sin(angle) * x) / (radii[1] * half[1])
        inside = u**2 + v**2 + (z / radii[2]) ** 2 <= 1
        if within:
            inside &= np.isin(self._labels, [self.tissues.index(name) + 1 for name in within])
        self._labels[inside] = self.tissues.index(tissue) + 1

    def shares(self) -> dict[str, NDArray[np.float64]]:
        """Count the sub-voxels of each tissue in every voxel."""
        s, (x, y, z) = _SUBSAMPLING, self.shape
        blocks = self._labels.reshape(x, s, y, s, z, s)
        codes = set(np.unique(self._labels).tolist())
        return {
            tissue: (blocks == code).mean(axis=(1, 3, 5)).ravel()
            for code, tissue in enumerate(self.tissues, start=1)
            if code in codes
        }
