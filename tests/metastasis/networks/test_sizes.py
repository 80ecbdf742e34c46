"""The arithmetic of sizes against the published ones, and against itself."""

import pytest

from metastasis.networks.sizes import output_size


def test_sizes_are_those_published_and_too_small_ones_are_refused():
    assert (output_size(37), output_size(45)) == (19, 27)
    assert output_size(19) == 1
    with pytest.raises(ValueError, match="leave nothing of 18 voxels; give at least 19"):
        output_size(18)
