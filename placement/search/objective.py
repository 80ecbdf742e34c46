"""How good a voxel is: the study's objective, its two terms, and the constraints of a prescription."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from placement.box.voxel import Voxel
from placement.search.scene import Scene

__all__ = ["PlacementObjective", "tumor_fraction", "tumor_volume_inside"]


def tumor_fraction(voxel: Voxel, scene: Scene) -> float:
    """
    Compute which part of a voxel is tumor.

    Integrated along rows of the image, not counted at the centers of image voxels, whose error grows with the
    thickness of slices.

    Parameters
    ----------
    voxel : Voxel
        The box.
    scene : Scene
        The tumor. What lies outside the image counts as no tumor.

    Returns
    -------
    float
        The study's f_tumour, from 0 to 1.
    """
    return scene.rows.fraction(voxel)


def tumor_volume_inside(voxel: Voxel, scene: Scene) -> float:
    """
    Compute how much tumor a voxel holds.

    Parameters
    ----------
    voxel : Voxel
        The box.
    scene : Scene
        The tumor.

    Returns
    -------
    float
        The study's V_tumour in mL: `tumor_fraction` times the volume of the box.
    """
    return tumor_fraction(voxel, scene) * voxel.volume


@dataclass(frozen=True)
class PlacementObjective:
    """
    The product of two bell curves: how much tumor the voxel holds, and how purely.

    Parameters
    ----------
    mean_volume : float, default=12.9
        Wanted volume of tumor in the voxel, in mL.
    sd_volume : float, default=8.7
        How far it may be off, in mL.
    mean_fraction : float, default=0.95
        Wanted part of the voxel that is tumor.
    sd_fraction : float, default=0.05
        How far it may be off.
    one_sided : bool, default=False
        Whether more than `mean_fraction` costs nothing. As published, a voxel wholly within the tumor is worth less
        (0.61) than one that is 95 % tumor.

    Raises
    ------
    ValueError
        If a number is not finite, a standard deviation is not positive, or the wanted part is not from 0 to 1.

    References
    ----------
    Lee et al., MICCAI 2024; after Bolan et al., MICCAI 2020.
    """

    mean_volume: float = 12.9
    sd_volume: float = 8.7
    mean_fraction: float = 0.95
    sd_fraction: float = 0.05
    one_sided: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        values = (self.mean_volume, self.sd_volume, self.mean_fraction, self.sd_fraction)
        if not np.isfinite(values).all() or min(self.sd_volume, self.sd_fraction) <= 0:
            raise ValueError(
                f"an objective needs finite numbers and positive standard deviations, got {self}"
            )
        if not (0 <= self.mean_fraction <= 1 and self.mean_volume > 0):
            raise ValueError(
                f"the wanted part must be from 0 to 1 and the wanted volume above 0 mL, got {self}"
            )

    def __call__(self, voxel: Voxel, scene: Scene) -> float:
        """Score a voxel."""
        fraction = tumor_fraction(voxel, scene)
        return self.value(fraction, fraction * voxel.volume)

    def value(self, fraction: float, volume: float) -> float:
        """
        Score a fraction and a volume of tumor.

        Parameters
        ----------
        fraction : float
            Part of the voxel that is tumor.
        volume : float
            Tumor in the voxel, in mL.

        Returns
        -------
        float
            exp(−½((volume − µV)/σV)²) · exp(−½((fraction − µf)/σf)²).
        """
        return float(np.exp(-self.cost(fraction, volume)))

    def cost(self, fraction: float, volume: float) -> float:
        """
        Give minus the logarithm of the score, which tells boxes apart whose scores are too small for numbers.

        Parameters
        ----------
        fraction : float
            Part of the voxel that is tumor.
        volume : float
            Tumor in the voxel, in mL.

        Returns
        -------
        float
            ½((volume − µV)/σV)² + ½((fraction − µf)/σf)².
        """
        above = (fraction - self.mean_fraction) / self.sd_fraction
        if self.one_sided:
            above = min(above, 0.0)
        return float(0.5 * ((volume - self.mean_volume) / self.sd_volume) ** 2 + 0.5 * above**2)
