"""The objective of a voxel: the volume and the fraction of tumor in it, against their targets."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from placement.box import overlap
from placement.box.voxel import Voxel
from placement.search.scene import Scene

__all__ = ["PlacementObjective", "tumor_fraction", "tumor_volume_inside"]


def tumor_fraction(voxel: Voxel, scene: Scene) -> float:
    """
    Compute the fraction of a voxel that is tumor.

    It is integrated along rows of the image: counting centers of image voxels has an error that
    grows with the thickness of slices.

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
    Compute the volume of tumor in a voxel.

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
    The product of two Gaussian curves: of the tumor volume in a voxel, and of its fraction.

    Parameters
    ----------
    mean_volume : float, default=12.9
        Target volume of tumor in the voxel, in mL.
    sd_volume : float, default=8.7
        Standard deviation of that volume, in mL.
    mean_fraction : float, default=0.95
        Target fraction of the voxel that is tumor.
    sd_fraction : float, default=0.05
        Standard deviation of that fraction.
    one_sided : bool, default=False
        Whether more than `mean_fraction` costs nothing. As published, a voxel wholly within the
        tumor scores less (0.61) than one that is 95 % tumor.

    Raises
    ------
    ValueError
        If a number is not finite, a standard deviation is not positive, or the target
        fraction is not from 0 to 1.

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
            Fraction of the voxel that is tumor.
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
        Give minus the logarithm of the score, which still differs where scores round to 0.

        Parameters
        ----------
        fraction : float
            Fraction of the voxel that is tumor.
        volume : float
            Tumor in the voxel, in mL.

        Returns
        -------
        float
            ½((volume − µV)/σV)² + ½((fraction − µf)/σf)².
        """
        # The same formula, not compiled: nothing is gained by it for one box.
        formula = overlap.objective_cost.py_func
        return float(formula(fraction, volume, objective_parameters(self)))


def objective_parameters(
    objective: PlacementObjective, unit: float = 1.0
) -> overlap.ObjectiveParameters:
    """Give the numbers of an objective to compiled code, with so many units of volume to a mL."""
    return overlap.ObjectiveParameters(
        mean_volume=objective.mean_volume * unit,
        sd_volume=objective.sd_volume * unit,
        mean_fraction=objective.mean_fraction,
        sd_fraction=objective.sd_fraction,
        # One-sided: a fraction above the mean costs nothing.
        largest_deviation=0.0 if objective.one_sided else overlap.NO_LIMIT,
    )
