"""Random streams: one for each purpose, the same whenever it is asked for."""

import numpy as np

from dmrifit._utils.randomness import evenly, seed_for, seed_from


def draw(stream):
    return np.random.default_rng(stream).random(4).tolist()


def test_a_stream_depends_on_seed_and_purpose_alone():
    assert draw(seed_for(1, "voxels", "p7")) == draw(seed_for(1, "voxels", "p7"))
    others = [
        seed_for(2, "voxels", "p7"),
        seed_for(1, "voxels", "p8"),
        seed_for(1, "p7", "voxels"),
        seed_for(1, "voxels"),
    ]
    assert len({tuple(draw(stream)) for stream in [seed_for(1, "voxels", "p7"), *others]}) == 5


def test_every_kind_of_random_state_gives_a_seed():
    assert seed_from(5) == seed_from(np.int64(5)) == 5
    generator = np.random.RandomState(0)
    assert seed_from(generator) != seed_from(generator)
    assert seed_from(np.random.RandomState(3)) == seed_from(np.random.RandomState(3))
    assert seed_from(None) != seed_from(None)


def test_even_numbers_fill_the_range_without_gaps():
    numbers = [evenly(5, i, 0.6180339887498949, "a") for i in range(20)]
    assert abs(np.histogram(numbers, bins=5, range=(0, 1))[0] - 4).max() <= 1
    assert (
        numbers[7]
        == evenly(5, 7, 0.6180339887498949, "a")
        != evenly(5, 7, 0.6180339887498949, "b")
    )
