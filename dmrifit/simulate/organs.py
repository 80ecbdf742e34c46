"""Organs and tumors of synthetic bodies: abdomen and pelvis painted on a fine grid."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmrifit.simulate.tissues import data_rows, tissue_table

VOXEL_SIZE = (3.0, 3.0, 6.0)  # mm

_SUBSAMPLING = 2  # sub-voxels per axis, for the share of each tissue in a voxel
_NECROSIS_SHARE = 0.6  # of tumors have a necrotic core
_TUMOR_RADIUS = (0.12, 0.26)  # of half the field of view


class Organ(NamedTuple):
    """An ellipsoid of a body."""

    tissue: str
    # Along x (right), y (anterior) and z (up), in halves of the field of view.
    center: NDArray[np.float64]
    radii: NDArray[np.float64]
    tumors: str  # that "grow" around its center or "invade" it


@cache
def organ_table() -> dict[str, list[Organ]]:
    """
    Read the organs of each template, in the order of painting, the body first.

    A template is a part of the body; a pelvis is a man's or a woman's.
    """
    templates: dict[str, list[Organ]] = {}
    for row in data_rows("organs.csv"):
        center = np.array([float(row[axis]) for axis in "xyz"])
        radii = np.array([float(row[f"radius_{axis}"]) for axis in "xyz"])
        organ = Organ(row["tissue"], center, radii, row["tumors"])
        templates.setdefault(row["template"], []).append(organ)
    return templates


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
    """Paint organs, tumors and necrotic cores, later over earlier: tissue shares, (n_voxels,)."""
    tissues = tuple(tissue_table()["tissue"])
    organs = organ_table()[template]
    canvas = _Canvas(shape, tissues)
    for organ in organs:
        # The body stays in the middle of the image; organs move inside of it.
        jitter = 0.0 if organ.tissue == "muscle" else 0.03
        size = rng.uniform(0.94, 1.04)
        position = organ.center + rng.normal(0, jitter, 3)
        canvas.ellipsoid(organ.tissue, position, organ.radii * size, rng.normal(0, 0.05))
    home = next(organ for organ in organs if organ.tumors == "grow")
    invaded = ("tumor", *(organ.tissue for organ in organs if organ.tumors))
    half = canvas.half
    for _ in range(rng.integers(1, 4)):
        direction = rng.normal(size=3)
        direction *= rng.uniform(0.1, 0.5) / np.linalg.norm(direction)
        position = home.center + direction * np.minimum(home.radii, (1, 1, 0.6))
        radius = rng.uniform(*_TUMOR_RADIUS) * rng.uniform(0.85, 1.15, 3)
        # At least 1.5 voxels, so that small images have a tumor too.
        in_mm = np.maximum(radius * half[0], 1.5 * np.array(VOXEL_SIZE))
        angle = rng.uniform(0, np.pi)
        canvas.ellipsoid("tumor", position, in_mm / half, angle, within=invaded)
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
        """Compute the share of each tissue that occurs in every voxel, (n_voxels,)."""
        s, (x, y, z) = _SUBSAMPLING, self.shape
        blocks = self._labels.reshape(x, s, y, s, z, s)
        codes = set(np.unique(self._labels).tolist())
        return {
            tissue: (blocks == code).mean(axis=(1, 3, 5)).ravel()
            for code, tissue in enumerate(self.tissues, start=1)
            if code in codes
        }
