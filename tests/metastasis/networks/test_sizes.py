"""The arithmetic of sizes against the published ones, and against itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastasis.networks.sizes import (
    dense_products,
    low_resolution_cells,
    low_resolution_input,
    output_size,
    required_input,
)


def test_published_sizes():
    assert (output_size(37), output_size(45)) == (19, 27)
    assert [low_resolution_input(19, f) for f in (3, 5)] == [25, 22]
    assert [low_resolution_input(27, f) for f in (3, 5)] == [27, 24]
    assert required_input(1) == 19
    assert output_size(37, dense_kernel=3) == 17
    assert required_input(1, dense_kernel=3) == 21


@given(st.integers(1, 400), st.integers(0, 20), st.sampled_from([1, 3, 5]))
def test_input_and_output_are_inverse(size, n_layers, kernel):
    whole = required_input(size, n_layers, dense_kernel=kernel)
    assert output_size(whole, n_layers, dense_kernel=kernel) == size
    assert whole - size == sum(2 for _ in range(n_layers)) + kernel - 1


@given(st.integers(1, 100), st.integers(1, 9), st.data())
def test_cells_cover_the_output_and_none_is_too_many(size, factor, data):
    phase = data.draw(st.integers(0, factor - 1))
    cells = low_resolution_cells(size, factor, phase)
    covered = {(phase + i) // factor for i in range(size)}
    assert covered == set(range(cells))
    assert low_resolution_input(size, factor, 4, phase=phase) == cells + 8


def test_products_of_a_volume_are_those_of_the_published_network():
    widths = (30, 40, 50, 60, 70, 80, 90, 100, 110)
    per_voxel = 27 * (30 + 1200 + 2000 + 3000 + 4200 + 5600 + 7200 + 9000 + 11000) + 110 * 300
    # A volume so large that margins do not count.
    n = 60_000
    found = dense_products((n, n, n), widths, (3, 5), (300, 300)) / n**3
    assert found == pytest.approx(per_voxel * (1 + 1 / 27 + 1 / 125) + 300 * 300 + 300, rel=1e-3)
    # The published program repeats low-resolution features before the first dense layer, not after it.
    later = 110 * 300 * (2 - 1 / 27 - 1 / 125)
    assert found + later == pytest.approx(1.41e6, rel=0.01)
    with_prior = dense_products((n, n, n), widths, (3, 5), (300, 300), prior_path=True) / n**3
    assert with_prior + later == pytest.approx(2.61e6, rel=0.01)
    # One voxel, two layers: 3³ voxels of the first, one of the second.
    assert dense_products((1, 1, 1), (2, 3), (), (4,), n_channels=5) == 27 * (5 * 2 * 27 + 2 * 3) + 3 * 4 + 4


def test_cells_that_are_cut_at_the_far_sides_count_as_whole_ones():
    # 7, 8 and 10 voxels have 3, 3 and 4 cells of 3.
    full, cells = 7 * 8 * 10, 3 * 3 * 4
    expected = 27 * 2 * (full + cells) + 2 * 4 * (full + cells) + 4 * full
    assert dense_products((7, 8, 10), (2,), (3,), (4,)) == expected


def test_what_is_not_possible_is_refused():
    with pytest.raises(ValueError, match="leave nothing of 18 voxels; give at least 19"):
        output_size(18)
    with pytest.raises(ValueError, match="factor must be a whole number of at least 1, not 0"):
        low_resolution_cells(19, 0)
    with pytest.raises(ValueError, match="phases from 0 to 2, not 3"):
        low_resolution_cells(19, 3, 3)
    with pytest.raises(ValueError, match=r"size must be a whole number of at least 1, not 2.5"):
        required_input(2.5)
    with pytest.raises(ValueError, match="no middle"):
        output_size(37, dense_kernel=2)
