"""What follows from the share of target in a box: when its numbers are withheld, and advice."""

from __future__ import annotations

from placement.box.voxel import Voxel
from placement.search.objective import PlacementObjective, tumor_fraction
from placement.search.optimizer import (
    LEAST_TARGET,
    LOOSE_SIDES,
    MOSTLY,
    Placement,
    VoxelOptimizer,
)
from placement.search.scene import Scene
from placement.search.tissue_labels import OUTSIDE_BRAIN

_REMEDIES = {
    "tumor smaller than min_volume": "a smaller box (--min-volume) gives a weaker signal; ask a "
    "spectroscopist",
    "volume below min_volume": "enlarge the box, or allow it (--min-volume)",
    "side out of range": "change the side, or allow it (--sides)",
    "side at its limit": "the limit decides this side, not the tumor; see whether a side beyond "
    "it would do, and allow it (--sides)",
    "sides not rounded": "each rounded box nearby breaks a constraint that this one keeps; enter "
    "the sides as they are, or loosen a constraint (--min-volume, --sides)",
    "too many rotations": "turn it by fewer angles, or allow more (--max-rotations)",
    "outside the image": "move the box, or give an image that covers it",
    "less than 50 % target": "ask a spectroscopist before measuring",
    "less than 75 % target": "other tissue adds a quarter or more of the signal: look at the "
    "content, or allow a smaller box (--min-volume)",
    f"touches {OUTSIDE_BRAIN}": "lipid of the scalp may spoil the spectrum: move the box, or "
    "check the mask (--brain)",
    "displaced box leaves the brain": "use pulses of larger bandwidth, move the box, or saturate "
    "the scalp",
    "brain mask cuts off tumor": "look at the mask, or give another one (--brain FILE)",
}


def target_verdict(placement: Placement, optimizer: VoxelOptimizer) -> tuple[str, Voxel | None]:
    """
    Say why the numbers of a box are withheld, of which less than half is target.

    With it, gives the largest box of 75 % target or more, if one was found; else "" and None.
    """
    if placement.tumor_fraction >= LEAST_TARGET:
        return "", None
    least = optimizer.min_volume
    purest = optimizer.assess(optimizer.purest(placement.scene), placement.scene)
    if purest.tumor_fraction < LEAST_TARGET:
        reason = f"no box of ≥ {least:g} mL reaches 50 % target: ask a spectroscopist"
    else:
        reason = (
            f"{100 * placement.tumor_fraction:.0f} % of the box are target; one of ≥ {least:g} mL "
            f"with {100 * purest.tumor_fraction:.0f} % was found, {_why_not(purest, placement)}"
        )
    largest = largest_box(placement.scene)
    if largest is None:
        return f"{reason}; no box of ≥ 75 % target was found", None
    sides = " × ".join(f"{side:.0f}" for side in largest.size)
    reason += f"; the largest box found with ≥ 75 % target has {largest.volume:.1f} mL"
    return f"{reason} ({sides} mm)", largest


def _why_not(purest: Placement, placement: Placement) -> str:
    """Say what a box of more target breaks that this one keeps, or that it is to be taken."""
    broken = purest.breaks_beyond(placement)
    if broken:
        constraints = "; ".join(advice(broken))
        return (
            f"but breaks what this box keeps ({constraints}): loosen it, or ask a spectroscopist"
        )
    box = purest.voxel
    numbers = []
    for values in (box.center, box.size, box.angles):
        numbers.append(", ".join(f"{value + 0.0:.1f}" for value in values))
    return (
        "and breaks no other constraint: take that one (center {} mm RAS+, sides {} mm, angles {} "
        "degrees)".format(*numbers)
    )


def largest_box(scene: Scene) -> Voxel | None:
    """Search for the largest box with sides of 5 mm or more that is mostly target, if any."""
    volume = scene.tumor_volume
    objective = PlacementObjective(
        mean_volume=volume,
        sd_volume=0.5 * volume,
        mean_fraction=MOSTLY + 0.02,
        sd_fraction=0.01,
        one_sided=True,
    )
    search = VoxelOptimizer(
        objective, size_range=LOOSE_SIDES, min_volume=0, thorough=True, tie_break=0, random_state=0
    )
    boxes = [box for box, _ in search.candidates(scene.unlimited, 5)]
    boxes = [box for box in boxes if tumor_fraction(box, scene) >= MOSTLY]
    return max(boxes, key=lambda box: box.volume, default=None)


def advice(flags: list[str]) -> list[str]:
    """Explain flags: each with what to do about it."""
    sentences = []
    for flag in flags:
        remedy = _REMEDIES.get(flag, "")
        if flag.startswith("longest side"):
            remedy = "thin boxes lose signal to the edges of the pulses; set --sides, or accept it"
        elif flag.startswith("more than"):
            remedy = "look at the content; move the box if another place holds less"
        elif flag.startswith("touches") and not remedy:
            remedy = "move the box, or tolerate some of it (--tolerance)"
        sentences.append(f"{flag}: {remedy}" if remedy else flag)
    return sentences
