"""The objective of a voxel, from volume and fraction of its tumor, and what a voxel holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from dmrifit._utils.checks import Within, check_fields
from placement.box import overlap
from placement.box.row_integrals import ROW_MM
from placement.box.voxel import Voxel
from placement.search.scene import Scene
from placement.search.tissue_labels import MERGED, NECROSIS, NORMAL, OUTSIDE_BRAIN, SOLID, TISSUES

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
        If a number is not finite, a standard deviation or the target volume is not positive, or
        the target fraction is not from 0 to 1.

    References
    ----------
    Lee et al., MICCAI 2024; after Bolan et al., MICCAI 2020.
    """

    mean_volume: Annotated[float, Within(above=0)] = 12.9
    sd_volume: Annotated[float, Within(above=0)] = 8.7
    mean_fraction: Annotated[float, Within(most=1)] = 0.95
    sd_fraction: Annotated[float, Within(above=0)] = 0.05
    one_sided: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)

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
            exp(−½((volume − µV)/σV)²) · exp(−½((fraction − µf)/σf)²); with `one_sided` a fraction
            above µf counts as µf.
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
            ½((volume − µV)/σV)² + ½((fraction − µf)/σf)²; with `one_sided` a fraction above µf
            counts as µf.
        """
        # The same formula, not compiled: nothing is gained by it for one box.
        formula = overlap.objective_cost.py_func
        return float(formula(fraction, volume, objective_parameters(self)))


def objective_parameters(
    objective: PlacementObjective, unit: float = 1.0
) -> overlap.ObjectiveParameters:
    """Convert an objective to numbers for compiled code; `unit` is how many units make 1 mL."""
    return overlap.ObjectiveParameters(
        mean_volume=objective.mean_volume * unit,
        sd_volume=objective.sd_volume * unit,
        mean_fraction=objective.mean_fraction,
        sd_fraction=objective.sd_fraction,
        # One-sided: a fraction above the mean costs nothing.
        largest_deviation=0.0 if objective.one_sided else overlap.NO_LIMIT,
    )


def voxel_content(voxel: Voxel, scene: Scene) -> dict[str, float | None]:
    """
    Compute the shares of a box by tissue.

    They are integrated along rows of the image no more than .25 mm apart, exact along the rows:
    within .001 of the exact overlap on grids of 1 mm, .005 with slices of 5 mm.

    Parameters
    ----------
    voxel : Voxel
        The box.
    scene : Scene
        The tumor, with `labels` and `brain` as far as they are known.

    Returns
    -------
    dict of str to float or None
        Shares of the volume of the box, 0 to 1; None where it is unknown. Always "target",
        "outside" (what bears no label of a tumor) and "outside_brain" (None without a mask of the
        brain). With labels one of each tissue that the labels name; "solid", non-enhancing and
        enhancing together; and "normal", what is in the brain but bears no label (all that bears
        none, where the brain is unknown). Where a scheme merges necrosis with non-enhancing tumor,
        "necrosis" and "solid" are unknown, and "necrosis or non-enhancing" is the share of both.
    """
    content: dict[str, float | None] = {"target": tumor_fraction(voxel, scene)}
    outside_brain = None
    if OUTSIDE_BRAIN in scene.margins:
        outside_brain = scene.excluded_fraction(OUTSIDE_BRAIN, voxel, row_mm=ROW_MM)
    shares: dict[str, float] = {}
    for name, rows in scene.tissue_rows.items():
        shares[name] = 0.0 if rows is None else rows.fraction(voxel)
    if not shares:
        content["outside"] = 1.0 - tumor_fraction(voxel, scene)
        content["outside_brain"] = outside_brain
        return content
    content |= {name: shares[name] for name in TISSUES if name in shares}
    content["solid"] = sum(shares.get(name, 0.0) for name in SOLID)
    if MERGED in shares:
        content[NECROSIS] = content["solid"] = None
    outside = max(0.0, 1.0 - sum(shares.values()))
    content[NORMAL] = outside
    if outside_brain is not None:
        # Labeled tissue outside the mask of the brain counts as both, so that the difference may
        # be negative.
        content[NORMAL] = max(0.0, outside - outside_brain)
    content["outside"] = outside
    content["outside_brain"] = outside_brain
    return content
