"""The arithmetic of sizes against the published ones, and against itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastasis.networks.sizes import (
    low_resolution_cells,
    low_resolution_input,
    output_size,
)


def test_published_sizes():
    assert (output_size(37), output_size(45)) == (19, 27)
    assert [low_resolution_input(19, f) for f in (3, 5)] == [25, 22]
    assert [low_resolution_input(27, f) for f in (3, 5)] == [27, 24]
    assert output_size(19) == 1


@given(st.integers(1, 100), st.integers(1, 9), st.data())
def test_cells_cover_the_output_and_none_is_too_many(size, factor, data):
    phase = data.draw(st.integers(0, factor - 1))
    cells = low_resolution_cells(size, factor, phase)
    covered = {(phase + i) // factor for i in range(size)}
    assert covered == set(range(cells))
    assert low_resolution_input(size, factor, 4, phase=phase) == cells + 8


def test_what_is_not_possible_is_refused():
    with pytest.raises(ValueError, match="leave nothing of 18 voxels; give at least 19"):
        output_size(18)
