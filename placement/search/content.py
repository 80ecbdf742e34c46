"""What a box holds: shares of labeled tissues, of the target, and of what is no brain."""

from __future__ import annotations

from placement.box.row_integrals import ROW_MM
from placement.box.voxel import Voxel
from placement.search.objective import tumor_fraction
from placement.search.scene import Scene
from placement.search.tissue_labels import MERGED, NECROSIS, NORMAL, OUTSIDE_BRAIN, SOLID, TISSUES

__all__ = ["voxel_content"]

#: Shares below this stand in no sentence.
_SMALLEST_SHARE = 0.005


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
        "necrosis" and "solid" are unknown, and "necrosis or non-enhancing" is their sum.
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
        # Labels that a mask of the brain leaves out count as both, so that nothing is left of it.
        content[NORMAL] = max(0.0, outside - outside_brain)
    content["outside"] = outside
    content["outside_brain"] = outside_brain
    return content


def describe_content(content: dict[str, float | None]) -> str:
    """Say in one line what a box holds."""
    parts = []
    for name, share in content.items():
        title = name.replace("_", " the ").replace("outside the brain", OUTSIDE_BRAIN)
        # Said by its own name already, or by others together.
        if name in ("target", "solid") or (name == "outside" and NORMAL in content):
            continue
        if name == "outside":
            title = "outside the target"
        if share is None:
            parts.append(f"{title} unknown")
        elif share >= _SMALLEST_SHARE:
            parts.append(f"{100 * share:.0f} % {title}")
    return ", ".join(parts)
