"""The arithmetic of sizes against the published ones, and against itself."""

import pytest

from metastasis.networks.sizes import output_size


def test_published_sizes():
    assert (output_size(37), output_size(45)) == (19, 27)
    assert output_size(19) == 1


def test_what_is_not_possible_is_refused():
    with pytest.raises(ValueError, match="leave nothing of 18 voxels; give at least 19"):
        output_size(18)
