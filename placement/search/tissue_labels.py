"""Names of tissues for the values of a label image: published schemes, tables, and targets."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._utils.counts import first_few
from dmrifit.io.tables import read_rows

NECROSIS, EDEMA = "necrosis", "edema"
NON_ENHANCING, ENHANCING = "non-enhancing", "enhancing"
#: Some schemes have one label for two tissues, so that the share of necrosis is unknown.
MERGED = "necrosis or non-enhancing"
CAVITY = "resection cavity"
TISSUES = (NECROSIS, MERGED, NON_ENHANCING, ENHANCING, EDEMA, CAVITY)
SOLID = (NON_ENHANCING, ENHANCING)
FLAIR_BRIGHT = (NON_ENHANCING, MERGED, EDEMA)

#: Names of what bears no label of a tumor: tissue of the brain, and what is no brain.
NORMAL, OUTSIDE_BRAIN = "normal", "outside the brain"

#: The flag where a brain was searched in an image, and not found.
UNCHECKED_BRAIN = "brain unknown, skull and scalp not checked"

#: A voxel with a lower fraction of the target is flagged: exclusion or the least volume asks too
#: much; below the second, other tissue decides the spectrum.
MOSTLY, LEAST_TARGET = 0.75, 0.5

#: Largest tolerated shares of a box in a target of named labels; a box with more is flagged.
LIMITS = {NECROSIS: 0.10, MERGED: 0.10, CAVITY: 0.10, NORMAL: 0.02}

# Numbers of colors that outlines in pictures and bars of contents (pages.css) share; 0 is the
# target's, 4 the box's. No scheme has both kinds of necrosis.
_COLORS = {OUTSIDE_BRAIN: 1, NECROSIS: 2, MERGED: 2, CAVITY: 3}
_OTHER_COLORS = (5, 6, 3, 2, 1)  # first those that never mean a tissue

#: Values of published label images. BRATS 2013: Menze et al., IEEE TMI 34:1993–2024, 2015. 2017
#: to 2022: Bakas et al., Sci Data 4:170117, 2017. The metastasis challenge of 2023: Moawad et
#: al., arXiv 2306.00838.
SCHEMES: dict[str, dict[str, int]] = {
    "brats2013": {NECROSIS: 1, EDEMA: 2, NON_ENHANCING: 3, ENHANCING: 4},
    "brats2017": {MERGED: 1, EDEMA: 2, ENHANCING: 4},
    "brats2023": {MERGED: 1, EDEMA: 2, ENHANCING: 3, CAVITY: 4},
}


def named_labels(text: str) -> dict[str, Any]:
    """Give the values of each tissue, by the name of a scheme or a table (.tsv: index, name)."""
    if text in SCHEMES:
        return {name: [value] for name, value in SCHEMES[text].items()}
    path = Path(text)
    if not path.is_file():
        raise ValueError(
            f"--labels {text} is neither a scheme nor a table; give {describe_schemes()}, or a "
            "table (.tsv) with the columns index and name"
        )
    labels: dict[str, Any] = {}
    for line, row in read_rows(path, required=("index", "name")):
        name = row["name"].lower()
        if name not in TISSUES:
            raise ValueError(
                f"{path}, row {line}: {row['name']!r} is not a known tissue; use one of "
                f"{', '.join(TISSUES)}"
            )
        if not row["index"].isdecimal() or int(row["index"]) == 0:
            raise ValueError(
                f"{path}, row {line}: index {row['index']!r} must be a whole number above 0"
            )
        labels.setdefault(name, []).append(int(row["index"]))
    values = [value for tissue_values in labels.values() for value in tissue_values]
    if len(set(values)) < len(values):
        raise ValueError(f"{path} names a value twice ({sorted(values)}); keep one name of each")
    return labels


def color_numbers(names: Sequence[str]) -> dict[str, int]:
    """Give regions the numbers of colors: fixed ones, and others by turns."""
    fixed = {name: _COLORS[name] for name in names if name in _COLORS}
    others = itertools.cycle(n for n in _OTHER_COLORS if n not in fixed.values())
    return {name: fixed.get(name) or next(others) for name in names}


def border_title(name: str) -> str:
    """Name what the distance of a box to a region is measured to."""
    return "the border of the brain" if name == OUTSIDE_BRAIN else name


def describe_schemes() -> str:
    """Say how the schemes read the values of a label image."""
    readings = []
    for scheme, labels in SCHEMES.items():
        meanings = ", ".join(f"{value} {name}" for name, value in labels.items())
        readings.append(f"{scheme} ({meanings})")
    return ", ".join(readings)


def numbers(entries: Iterable[Any]) -> set[int]:
    """Collect the values of tissues, of which each has one or several."""
    return {int(value) for entry in entries for value in np.atleast_1d(entry)}


def check_values(present: Collection[int], labels: Mapping[str, Any], title: str) -> None:
    """Refuse values without a name: they have no meaning until they are named."""
    values = numbers(labels.values())
    unnamed = sorted(set(present) - values)
    if unnamed:
        raise ValueError(
            f"{title}: the values {first_few(unnamed)} are not among the named labels "
            f"{sorted(values)}; choose the scheme of the file: {describe_schemes()}"
        )


def target_tissues(
    volumes: Mapping[str, float],
    *,
    flair_target: bool,
    min_volume: float,
    title: str,
    is_mask: bool = False,
) -> tuple[tuple[str, ...], str]:
    """
    Choose the tissues that are the target; returns them and a note on the choice, often "".

    By default the target is solid tumor, without a label that necrosis shares. With
    `flair_target`, it is FLAIR-bright tissue in a tumor in which nothing enhances, or solid tumor
    is below `min_volume`. Volumes are in mL, of the named tissues, 0 where there is none. With
    `is_mask`, the file has no other value than 1, as masks of whole tumors have.
    """
    present = [name for name, volume in volumes.items() if volume]
    if not present:
        raise ValueError(f"{title}: no voxel is labeled; check the file")
    solid = _total(volumes, SOLID)
    is_small = solid < min_volume
    targets: tuple[str, ...] = SOLID
    if flair_target and ENHANCING not in present:
        targets = FLAIR_BRIGHT
    elif flair_target and is_small:
        targets = (*FLAIR_BRIGHT, ENHANCING)
    labeled_targets = tuple(name for name in targets if name in present)
    known = [name for name in targets if name in volumes] or targets
    if not labeled_targets:
        if is_mask:
            raise ValueError(
                f"{title}: nothing is labeled {' or '.join(known)}; its only value is 1, as in "
                "a mask of a whole tumor: leave out --labels for such a mask, or give the file "
                "of all labels"
            )
        raise ValueError(
            f"{title}: nothing is labeled {' or '.join(map(repr, known))}, only "
            f"{', '.join(map(repr, sorted(present)))}; --flair-target takes "
            "FLAIR-bright tissue for the target of a tumor without enhancement"
        )
    solid_names = [name for name in SOLID if name in volumes] or SOLID
    measured = f"solid tumor ({' or '.join(solid_names)}) has {milliliters(solid)}"
    source = "default of place --min-volume" if min_volume == 6 else "--min-volume"
    smaller = f"less than the smallest volume of {min_volume:g} mL ({source})"
    bright = _total(volumes, (*FLAIR_BRIGHT, ENHANCING))
    reason = ""
    if targets != SOLID:
        tissues = ", ".join(labeled_targets)
        why = f"{measured}, {smaller}" if is_small else "nothing is labeled as enhancing"
        reason = (
            f"the target is FLAIR-bright tissue ({tissues}; {milliliters(bright)}), because {why}"
        )
    elif flair_target:
        reason = f"--flair-target changes nothing: {measured}, not {smaller}"
    elif is_small and bright > solid:
        reason = (
            f"{measured} of {milliliters(sum(volumes.values()))} labeled, {smaller}: "
            f"--flair-target takes FLAIR-bright tissue ({milliliters(bright)}) for the target; or "
            "is --labels wrong?"
        )
    if MERGED in present and MERGED not in targets:
        merged = f"what is labeled {MERGED} ({milliliters(volumes[MERGED])}) is not in the target"
        reason = "; ".join(filter(None, [reason, merged]))
    return labeled_targets, reason


def enclosed_share(inner: NDArray[np.bool_], outer: NDArray[np.bool_]) -> float:
    """
    Measure which part of a tissue another surrounds: is met in 5 or 6 of the 6 axis directions.

    In three gliomas of BRATS 2013, necrosis surrounds 1 to 32 % of the enhancing tissue; with both
    labels exchanged 14, 84 and 100 %, and with edema read as necrosis 56 to 89 %.
    """
    n_met = np.zeros(inner.shape, dtype=np.int8)
    for axis in range(3):
        for direction in (outer, np.flip(outer, axis)):
            met = np.maximum.accumulate(direction, axis=axis)
            n_met += met if direction is outer else np.flip(met, axis)
    return float((n_met[inner] >= 5).mean()) if inner.any() else 0.0


def _total(volumes: Mapping[str, float], names: Collection[str]) -> float:
    """Add the volumes of tissues, as far as they are there."""
    return sum(volumes.get(name, 0.0) for name in names)


def milliliters(volume: float) -> str:
    """Write a volume to 0.1 mL, or to two digits below 1 mL."""
    return f"{volume:.1f} mL" if volume >= 1 or not volume else f"{volume:.2g} mL"
