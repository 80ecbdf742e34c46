"""Synthetic gliomas in synthetic heads, and simulated experts who place a box in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dmrifit._utils.affines import MM3_PER_ML
from dmrifit._utils.checks import check_number, check_word
from dmrifit._utils.randomness import RandomState, seed_for, seed_from
from dmrifit.simulate.gliomas import Glioma, draw_glioma
from dmrifit.simulate.head_shapes import BRAIN
from dmrifit.simulate.heads import Head, check_spacing, draw_head, standard_head
from placement.search.scene import Scene
from placement.simulate.experts import EXPERT_RULES, place_boxes

__all__ = ["simulate_gliomas"]

ExpertKind: TypeAlias = Literal["objective", "preference"]

#: Smallest and largest lesion in mL.
TUMOR_VOLUMES = (2.0, 120.0)

#: What scenes can list as excluded.
REGIONS = ("necrosis", "ventricles", "outside")

_MEDIAN_VOLUME, _LOG_SPREAD = 42.0, 0.8  # of lesions in mL, before they are cut at the limits
_MARGIN = 10.0  # mm of background at each side of an adult's brain, which a large one fills
_SCALES = (0.93, 1.0)  # of an adult's axes
_VENTRICLES = (-1.5, 3.0)  # mm by which their walls lie further out
_NECROSIS_ODDS, _NECROSIS = 0.45, (0.05, 0.25)  # of lesions above a volume; of their volume
_NECROSIS_FROM = 10.0  # mL
_SATELLITES = 0.25  # of lesions
# Signals after contrast agent, of white matter's.
_GRAY, _DEEP, _FLUID, _AIR = 0.85, 0.92, 0.4, 0.05
_RIM, _CORE, _EDEMA = 1.6, 0.5, 0.15
_EDEMA_REACH = 1.3  # of the distance to the border
_BLUR, _NOISE = 0.5, 0.06  # voxels, of white matter's signal
_LARGEST_VOXEL = 10.0  # mm


def simulate_gliomas(
    n: int,
    *,
    n_experts: int = 2,
    experts: ExpertKind = "preference",
    spacing: float | Sequence[float] = 2.0,
    exclude: Sequence[str] = (),
    image: bool = False,
    skip: int = 0,
    random_state: RandomState = None,
) -> tuple[list[Scene], NDArray[np.float64]]:
    """
    Make synthetic gliomas with the boxes that simulated experts place in them.

    These are no patients, and the experts are no clinical experts: they are rules with noise,
    written so that summary figures of their boxes come close to those that a study printed for its
    five experts. Agreement with them says nothing about agreement with people.

    A lesion of 2 to 120 mL lies in a brain that is warped from one of gray and white matter and
    fluid: a rough ellipsoid, or in some cases a bent one; some have a rim around a necrotic core,
    some satellites. The tumor of a scene is the whole lesion, its necrosis too, without edema.

    Parameters
    ----------
    n : int
        Cases.
    n_experts : int, default=2
        Boxes for each case.
    experts : {"preference", "objective"}, default="preference"
        ``"preference"``: experts who go to the thickest solid part, keep off necrosis and take no
        large boxes in small lesions. ``"objective"``: experts who climb the objective function,
        with a volume of their own in mind, to one of its many local maxima; necrosis is nothing to
        them.
    spacing : float or sequence of 3 floats, default=2
        Grid in mm.
    exclude : sequence of {"necrosis", "ventricles", "outside"}, default=()
        Regions that scenes list as excluded ("outside" of the brain). Lesions and experts are the
        same with and without: as in the study, a placer is told of nothing but the tumor unless it
        is wished.
    image : bool, default=False
        Whether scenes get an image like a T1 after gadolinium: bright solid tumor, dark necrosis
        and ventricles.
    skip : int, default=0
        Cases to pass over: those that are made are the ones after them, the same as if all were
        made at once.
    random_state : int, RandomState or None, default=None
        Seed. A case depends on it and on its number, not on how many there are.

    Returns
    -------
    scenes : list of Scene
        The cases, named "synthetic-001" and so on.
    voxels : ndarray of shape (n, n_experts, 9)
        Center in mm, sides in mm, angles in degrees, as `Voxel.as_array` gives them.

    Raises
    ------
    ValueError
        If a number is not positive or the kind of experts unknown.

    Notes
    -----
    Over 125 cases of one seed, boxes of the two kinds ("preference", "objective") had 11.6 ± 6.3
    and 12.5 ± 6.6 mL, tumor fractions of .91 ± .12 and .91 ± .11, 1.2 rotated axes, Dice of .48
    and .48 between experts, ICC of volumes of .22 and .24, and correlations of volume with tumor
    volume of .54 and .45. In 125 cases, an ICC varies by .1.

    References
    ----------
    Lee et al., MICCAI 2024: 12.4 ± 6.6 mL, tumor fraction .93 ± .12, 1.2 ± 1.0 rotated axes, Dice
    between experts .46, ICC of volumes .30, correlation of volume with tumor volume .50.

    Examples
    --------
    >>> from placement import simulate_gliomas
    >>> scenes, voxels = simulate_gliomas(2, random_state=0)
    >>> voxels.shape
    (2, 2, 9)
    """
    for name, value in (("n", n), ("n_experts", n_experts)):
        check_number(name, value, least=1, whole=True)
    check_word("experts", experts, EXPERT_RULES)
    for name in exclude:
        check_word("exclude", name, REGIONS)
    edges = check_spacing(spacing, most=_LARGEST_VOXEL)
    check_number("skip", skip, whole=True)
    seed = seed_from(random_state)
    scenes, voxels = [], np.empty((n, n_experts, 9))
    for i in range(skip, skip + n):
        head, glioma = _draw_patient(edges, np.random.default_rng(seed_for(seed, "head", i)))
        regions = {
            "necrosis": glioma.core,
            "ventricles": head.ventricles > 0.5,
            "outside": ~head.brain,
        }
        options: dict[str, Any] = {"name": f"synthetic-{i + 1:03d}", "synthetic": True}
        options["exclude"] = {name: regions[name] for name in exclude} or None
        if image:
            image_stream = np.random.default_rng(seed_for(seed, "image", i))
            options["image"] = _draw_image(head, glioma, image_stream)
        scenes.append(Scene(glioma.tumor, head.affine, **options))
        voxels[i - skip] = place_boxes(
            glioma.tumor,
            glioma.core,
            head.affine,
            kind=experts,
            n_experts=n_experts,
            rngs=[np.random.default_rng(seed_for(seed, "expert", i, j)) for j in range(n_experts)],
            shared=np.random.default_rng(seed_for(seed, "case", i)),
        )
    return scenes, voxels


def _draw_patient(
    spacing: tuple[float, float, float], rng: np.random.Generator
) -> tuple[Head, Glioma]:
    """Draw a head and a lesion of a volume."""
    head_stream, glioma_stream = rng.spawn(2)
    x, y, z = (int(n) for n in np.ceil(2 * (BRAIN + _MARGIN) / spacing))
    head = draw_head(
        (x, y, z),
        spacing,
        head_stream,
        standard=standard_head(spacing),
        growth=rng.uniform(*_VENTRICLES),
        scale=rng.uniform(*_SCALES, 3),
    )
    volume = _draw_volume(rng)
    necrosis = rng.uniform(*_NECROSIS)
    if rng.random() >= _NECROSIS_ODDS or volume <= _NECROSIS_FROM:
        necrosis = 0.0
    glioma = draw_glioma(
        head,
        head.brain & (head.ventricles <= 0.5),
        (volume * MM3_PER_ML * 3 / (4 * np.pi)) ** (1 / 3),
        glioma_stream,
        necrosis=necrosis,
        satellites=_SATELLITES,
    )
    return head, glioma


def _draw_volume(rng: np.random.Generator) -> float:
    while True:
        volume = _MEDIAN_VOLUME * np.exp(_LOG_SPREAD * rng.standard_normal())
        if TUMOR_VOLUMES[0] <= volume <= TUMOR_VOLUMES[1]:
            return float(volume)


def _draw_image(head: Head, glioma: Glioma, rng: np.random.Generator) -> NDArray[np.float32]:
    """Paint a picture in arbitrary units with noise."""
    picture = head.white + _GRAY * head.gray + _DEEP * head.deep + _FLUID * head.fluid
    picture -= _EDEMA * glioma.edema(head, _EDEMA_REACH)
    picture[~head.brain] = _AIR
    picture[glioma.tumor] = _RIM
    picture[glioma.core] = _CORE
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    return gaussian_filter(picture, _BLUR) + np.float32(_NOISE) * noise
