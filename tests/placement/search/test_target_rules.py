"""Boxes with little of their target get no numbers for consoles."""

import numpy as np
import pytest

from placement.box.voxel import rotation_of
from placement.exchange.prescription import largest_box, target_verdict
from placement.search.objective import tumor_fraction
from placement.search.optimizer import VoxelOptimizer
from placement.search.scene import Scene


def ball(radius, shape=(60, 60, 60)):
    index = np.moveaxis(np.indices(shape), 0, -1)
    return np.linalg.norm(index - np.array(shape) / 2, axis=-1) < radius


@pytest.fixture(scope="module")
def small():
    """Make a tumor of 1.8 mL."""
    return Scene(ball(7.5), np.eye(4), name="small")


def test_a_small_tumor_gets_no_numbers_but_the_largest_box_of_enough_target(small):
    optimizer = VoxelOptimizer(random_state=0)
    placement = optimizer.placement(small)
    assert placement.tumor_fraction < 0.35
    reason, largest = target_verdict(placement, optimizer)
    assert reason.startswith("no box of ≥ 6 mL reaches 50 % target: ask a spectroscopist")
    assert tumor_fraction(largest, small) >= 0.75
    # The ball's inscribed cube has 0.65 mL, and holds nothing but tumor.
    assert 0.65 < largest.volume < 1.8 / 0.75
    assert f"{largest.volume:.1f} mL" in reason


def test_a_box_of_enough_target_has_a_verdict_without_reason():
    optimizer = VoxelOptimizer(random_state=0)
    placement = optimizer.placement(Scene(ball(18), np.eye(4)))
    assert target_verdict(placement, optimizer) == ("", None)


def test_where_a_better_box_exists_it_is_not_denied():
    scene = Scene(ball(18), np.eye(4))
    optimizer = VoxelOptimizer(random_state=0)
    poor = optimizer.placement(scene).voxel
    away = type(poor)(poor.center + np.array([22, 0, 0]), poor.size, poor.angles)
    reason, _ = target_verdict(optimizer.assess(away, scene), optimizer)
    assert "one of ≥ 6 mL with 100 % was found, and breaks no other constraint: take that one (center" in reason


def test_a_better_box_that_is_not_placed_says_what_it_breaks():
    index = np.moveaxis(np.indices((70, 70, 70)), 0, -1) - 35.0
    slab = Scene((np.abs(index @ rotation_of((30, 30, 30))) <= (20, 20, 3)).all(axis=-1), np.eye(4))
    optimizer = VoxelOptimizer(max_rotations=0, random_state=0)
    placement = optimizer.placement(slab)
    reason, _ = target_verdict(placement, optimizer)
    assert placement.tumor_fraction < 0.5
    assert f"{100 * placement.tumor_fraction:.0f} % of the box are target; one of ≥ 6 mL with " in reason
    assert "but breaks what this box keeps (" in reason
    assert "side out of range: change the side, or allow it (--sides)" in reason
    assert "too many rotations: turn it by fewer angles, or allow more (--max-rotations)" in reason
    # Taken at its word: with these constraints loosened, most of the box is target.
    loose = VoxelOptimizer(size_range=(5, 60), max_rotations=3, max_aspect=None, random_state=0)
    assert loose.placement(slab).tumor_fraction > 0.5


def test_no_box_is_named_where_none_holds_enough():
    threads = np.zeros((40, 40, 40), bool)
    threads[18:22, 5:35, 20] = True
    assert largest_box(Scene(threads, np.eye(4))) is None
