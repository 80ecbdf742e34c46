"""What gliomas do to diffusion: infiltrating edges, edema, cellular and necrotic cores, growth."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.generators.implants import tissue_share
from dmrifit.simulate.gliomas import Glioma, fall
from dmrifit.simulate.heads import Head

#: Grades by the World Health Organization, and how many of all gliomas have them.
GRADES = {"II": 0.25, "III": 0.31, "IV": 0.44}

#: What gliomas do to diffusion: more of it in infiltrated tissue, or less of it in cores of many
#: cells.
KINDS = ("infiltrating", "cellular")

#: Share of all gliomas that are of grade III or IV and have reduced diffusivity.
_CELLULAR = 0.3


@dataclass(frozen=True)
class Component:
    """A tissue that takes the place of others."""

    share: NDArray[np.float32]  # of each of the n voxels of the brain
    diffusivity: float  # µm²/ms, the same in all directions
    brightness: float  # signal at b = 0, of white matter's


@dataclass(frozen=True)
class DiffusionGlioma:
    """A glioma in a brain of n voxels."""

    components: list[Component]
    lesion: NDArray[np.bool_]  # (n,): what a reader outlines now
    followup: NDArray[np.bool_]  # and later


def draw_diffusion_glioma(
    head: Head, grade: str, kind: str, rng: np.random.Generator
) -> DiffusionGlioma:
    """Draw a glioma and what it does to diffusion."""
    shape_stream, rng = rng.spawn(2)
    limits = _limits()
    # All numbers are drawn for every glioma, so that those of one patient differ by grade and kind
    # alone.
    radius = rng.uniform(*limits["radius_mm"]) * head.size
    odds = {name: rng.random() for name in ("necrosis", "edema")}
    necrosis = rng.uniform(*limits["necrosis"])
    drawn: dict[str, dict[str, float]] = {}
    for group in ("reach", "share", "diffusivity"):
        drawn[group] = {name: rng.uniform(*ends) for name, ends in limits[group].items()}
    reach, share = drawn["reach"], drawn["share"]
    growth = rng.random()
    front_directions = rng.standard_normal((8, 3))

    matter = head.matter
    solid = matter > 0.5
    glioma = Glioma.draw(head, solid, radius, shape_stream, necrosis=necrosis)
    distance = glioma.distance
    layers: list[tuple[str, NDArray]] = []
    if kind == "cellular":
        layers.append(("core", share["core"] * fall(distance / reach["core"], 0.15)))
    elif grade == "IV" and odds["necrosis"] < limits["necrosis_odds"]:
        layers.append(("necrosis", fall(glioma.necrosis, 0.2)))
    layers.append((grade, share["infiltration"] * fall(distance, limits["edge"])))
    lesion = glioma.tumor
    if odds["edema"] < limits["edema_odds"][grade]:
        edema = share["edema"] * glioma.edema(head, reach["edema"])
        layers.append(("edema", edema))
        lesion |= solid & (edema > limits["seen"])
    followup = lesion
    if grade in limits["growth"]:
        low, high = limits["growth"][grade]
        most_growth = low + growth * (high - low)
        # In units of the later border, which is farther out toward the most white matter. What the
        # tumor will have grown into by then is lightly infiltrated now.
        later_distance = distance / (1 + most_growth * _front(head, glioma, front_directions))
        permeable = head.white + 0.5 * (head.gray + head.deep)
        layers.append((grade, share["early"] * fall(later_distance, 0.15) * permeable))
        followup = lesion | (solid & (later_distance < 1))
    remaining = matter[head.brain]
    components = []
    for name, layer in layers:
        filled = (remaining * np.minimum(layer[head.brain], 1)).astype(np.float32)
        remaining = remaining - filled
        brightness = limits["brightness"][name]
        components.append(Component(filled, drawn["diffusivity"][name], brightness))
    return DiffusionGlioma(components, lesion[head.brain], followup[head.brain])


@cache
def _limits() -> dict[str, Any]:
    """Read the ranges of the numbers of gliomas."""
    table = files("anomaly.generators").joinpath("data", "gliomas.toml")
    return tomllib.loads(table.read_text("utf-8"))


def add_glioma(
    volume: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """
    Put a glioma, drawn as for synthetic persons, into a scan at b = 1000 s/mm².

    The tissue of the scan is found by its mean signal. Shapes: `volume` (x, y, z, channels);
    returns the changed volume, the factor (x, y, z) of the SD of its noise, and the lesion.
    """
    grade = str(rng.choice(list(GRADES), p=list(GRADES.values())))
    cellular = grade != "II" and rng.random() < _CELLULAR / (1 - GRADES["II"])
    glioma = draw_diffusion_glioma(head_of_scan(volume, mask), grade, KINDS[cellular], rng)
    signal = volume[mask]
    healthy = np.ones(len(signal), dtype=np.float32)
    added, bright = np.zeros_like(healthy), np.zeros_like(healthy)
    for component in glioma.components:
        healthy -= component.share
        bright += np.float32(component.brightness) * component.share
        decay = np.float32(component.brightness * np.exp(-component.diffusivity))
        added += decay * component.share
    changed, remaining = volume.copy(), np.ones(mask.shape, dtype=np.float32)
    # Signals are divided by the one at b = 0, to which bright components contribute more.
    changed[mask] = (signal * healthy[:, None] + added[:, None]) / (healthy + bright)[:, None]
    remaining[mask] = healthy / (healthy + bright)
    lesion = np.zeros_like(mask)
    lesion[mask] = glioma.lesion
    return changed, remaining, lesion


def head_of_scan(volume: NDArray[np.float32], mask: NDArray[np.bool_]) -> Head:
    """Describe the brain of a scan as a head of adult size; anisotropic tissue is white matter."""
    edge = Head.adult_edge(mask)
    steps = np.full(3, edge)
    shape = mask.shape
    affine, places = Head.grid(shape, [edge] * 3)
    tissue = tissue_share(volume, mask)
    spread = np.where(mask, volume.std(axis=-1), 0)
    is_white = spread > np.median(spread[mask])
    nothing = np.zeros(shape, dtype=np.float32)
    extent = np.ptp(np.argwhere(mask), axis=0) + 1
    half_axes = 0.5 * edge * extent
    # Centered at the brain, wherever it lies in the image.
    centered = (places - places[mask].mean(axis=0)).astype(np.float32)
    return Head(
        white=tissue * is_white,
        gray=tissue * ~is_white,
        deep=nothing,
        fluid=np.where(mask, 1 - tissue, 0).astype(np.float32),
        ventricles=nothing,
        brain=mask,
        places=centered,
        local=centered / half_axes.astype(np.float32),
        affine=affine,
        spacing=steps,
        half_axes=half_axes,
        size=1.0,
    )


def _front(head: Head, glioma: Glioma, directions: NDArray[np.float64]) -> NDArray:
    """Weight places by direction: 1 toward the most white matter, 0 away from it."""
    offsets = head.places - glioma.center.astype(np.float32)
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    white = []
    for direction in directions:
        from_ahead = offsets - (1.3 * glioma.radius * direction).astype(np.float32)
        is_ahead = (from_ahead**2).sum(axis=-1) < (0.6 * glioma.radius) ** 2
        white.append(float(head.white[is_ahead].sum()))
    front = directions[int(np.argmax(white))].astype(np.float32)
    length = np.linalg.norm(offsets, axis=-1) + np.float32(1e-3)
    return np.clip((offsets @ front) / length, 0, 1) ** 1.5
