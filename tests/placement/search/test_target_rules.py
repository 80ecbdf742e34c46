"""Boxes with little of their target get no numbers for consoles."""

import numpy as np
import pytest

from placement.search.objective import tumor_fraction
from placement.search.optimizer import VoxelOptimizer
from placement.search.scene import Scene
from placement.search.target_rules import advice, largest_box, target_verdict


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
    assert "one of ≥ 6 mL with 100 % was found" in reason


def test_no_box_is_named_where_none_holds_enough():
    threads = np.zeros((40, 40, 40), bool)
    threads[18:22, 5:35, 20] = True
    assert largest_box(Scene(threads, np.eye(4))) is None


def test_each_flag_says_what_to_do():
    sentences = advice(["less than 50 % target", "touches skull", "more than 10 % necrosis", "something else"])
    assert sentences[0].endswith("ask a spectroscopist before measuring")
    assert "--tolerance" in sentences[1]
    assert "look at the content" in sentences[2]
    assert sentences[3] == "something else"
