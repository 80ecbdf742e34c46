"""Random streams: one for each purpose, the same whenever it is asked for."""

import numpy as np

from dmrifit._utils.randomness import Seed


def draw(stream):
    return np.random.default_rng(stream).random(4).tolist()


def test_a_stream_depends_on_seed_and_purpose_alone():
    assert draw(Seed(1).sequence("voxels", "p7")) == draw(Seed(1).sequence("voxels", "p7"))
    others = [
        Seed(2).sequence("voxels", "p7"),
        Seed(1).sequence("voxels", "p8"),
        Seed(1).sequence("p7", "voxels"),
        Seed(1).sequence("voxels"),
    ]
    assert len({tuple(draw(stream)) for stream in [Seed(1).sequence("voxels", "p7"), *others]}) == 5


def test_every_kind_of_random_state_gives_a_seed():
    assert Seed(5) == Seed(np.int64(5)) == 5
    generator = np.random.RandomState(0)
    assert Seed(generator) != Seed(generator)
    assert Seed(np.random.RandomState(3)) == Seed(np.random.RandomState(3))
    assert Seed(None) != Seed(None)


def test_even_numbers_fill_the_range_without_gaps():
    numbers = [Seed(5).evenly(i, 0.6180339887498949, "a") for i in range(20)]
    assert abs(np.histogram(numbers, bins=5, range=(0, 1))[0] - 4).max() <= 1
    assert (numbers[7] == Seed(5).evenly(7, 0.6180339887498949, "a") != Seed(5).evenly(7, 0.6180339887498949, "b"))
