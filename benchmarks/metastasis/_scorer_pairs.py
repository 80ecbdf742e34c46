"""
Seeded pairs of masks that were also scored by panoptica and by the official scorer of BraTS-METS.

The scores, `tests/dmrifit/data/panoptica.json` and `tests/metastasis/data/mets_scorer.json`, are what the tests of
`dmrifit.lesion_table` and `metastasis.mets_scores` compare with. Both programs ask for older packages than the project has;
they were run once, each in an environment of its own, by `benchmarks/metastasis/compare_scorers.py` of commit 64774cd0.
"""

import hashlib

import numpy as np

BOXES_SHAPE = (24, 22, 20)
BALLS_SHAPE = (36, 34, 30)
EDGES = ((1.0, 1.0, 1.0), (0.9, 0.9, 3.0), (1.0, 1.0, 1.2), (0.7, 0.8, 0.7))  # mm, in turn


def digest(reference: np.ndarray, prediction: np.ndarray) -> str:
    return hashlib.sha256(reference.tobytes() + prediction.tobytes()).hexdigest()[:16]


def boxes_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes as lesions, and as predictions some of them shifted, joined, cut apart, missed, and some invented."""
    rng = np.random.default_rng(seed)
    reference, prediction = np.zeros(BOXES_SHAPE, np.uint8), np.zeros(BOXES_SHAPE, np.uint8)
    for _ in range(rng.integers(0, 8)):
        corner, size = rng.integers(0, 15, 3), rng.integers(1, 6, 3)
        fill(reference, corner, size)
        fate = rng.integers(0, 6)
        if fate < 3:
            fill(prediction, corner + rng.integers(0, 2, 3), size)
        elif fate == 3:  # in two parts
            fill(prediction, corner, (1, 1, 1))
            fill(prediction, corner + size - 1, (1, 1, 1))
        elif fate == 4:  # large enough to join neighbors
            fill(prediction, corner, size + 3)
    for _ in range(rng.integers(0, 4)):
        fill(prediction, rng.integers(0, 18, 3), rng.integers(1, 4, 3))
    return reference, prediction


def fill(volume: np.ndarray, corner: np.ndarray, size: np.ndarray | tuple[int, int, int]) -> None:
    x, y, z = (
        slice(int(start), int(start + side)) for start, side in zip(corner, size, strict=True)
    )
    volume[x, y, z] = 1


def balls_pair(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Draw a reference and a prediction (x, y, z) of 0 and 1, and the edges of their voxels in mm."""
    rng = np.random.default_rng(seed)
    n_lesions = 0 if seed % 10 == 0 else int(rng.integers(1, 10))
    reference, prediction = draw_labels(rng, BALLS_SHAPE, n_lesions, 0 if seed % 20 in (0, 5) else 4)
    if seed % 20 == 5:
        prediction[:] = 0
    return reference, prediction, EDGES[seed % len(EDGES)]


def draw_labels(
    rng: np.random.Generator, shape: tuple[int, int, int], n_lesions: int, n_false: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw balls as lesions, and as predictions some of them shifted, grown, joined, cut apart and missed."""
    reference, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for _ in range(n_lesions):
        center, radius = rng.uniform(3, np.array(shape) - 3), rng.uniform(0.5, 4.5)
        add_ball(reference, center, radius)
        fate = rng.integers(0, 7)
        if fate < 3:
            add_ball(prediction, center + rng.normal(0, 1, 3), radius * rng.uniform(0.6, 1.2))
        elif fate == 3:  # in two parts
            add_ball(prediction, center + np.array([radius, 0, 0]), radius / 3)
            add_ball(prediction, center - np.array([radius, 0, 0]), radius / 3)
        elif fate == 4:  # large enough to join neighbors
            add_ball(prediction, center, radius + 3)
    for _ in range(int(rng.integers(0, n_false + 1))):
        add_ball(prediction, rng.uniform(3, np.array(shape) - 3), rng.uniform(0.5, 2.5))
    return reference, prediction


def add_ball(volume: np.ndarray, center: np.ndarray, radius: float) -> None:
    low = np.maximum(np.floor(center - radius).astype(int), 0)
    high = np.minimum(np.ceil(center + radius).astype(int) + 1, volume.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    grid = np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij")
    distance = sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True))
    volume[box][distance <= radius**2] = 1
    # The smallest balls hold no center of a voxel.
    volume[tuple(np.clip(np.rint(center).astype(int), 0, np.array(volume.shape) - 1))] = 1
