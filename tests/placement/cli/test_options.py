"""Words on the command line become labels, constraints and chemical shifts."""

import pytest

from placement import VoxelOptimizer
from placement.cli.options import constraints_of, labels_of, shift_options


def test_labels_are_whole_numbers_and_none_where_none_are_named():
    assert labels_of(None) is None
    assert labels_of("3") == [3]
    assert labels_of("3,4,1") == [3, 4, 1]
    with pytest.raises(ValueError, match="--include"):
        labels_of("3,solid")
    with pytest.raises(ValueError, match="--include"):
        labels_of("1.5")


def test_constraints_are_parameters_of_the_optimizer():
    constraints = constraints_of("12,40.5", 7.5, 1)
    assert constraints == {"size_range": (12.0, 40.5), "min_volume": 7.5, "max_rotations": 1}
    assert VoxelOptimizer(**constraints).get_params()["size_range"] == (12.0, 40.5)
    for sides in ("12", "12,20,30", "12,long"):
        with pytest.raises(ValueError, match="--sides"):
            constraints_of(sides, 6.0, 3)


def test_chemical_shifts_need_a_range_and_one_rate_or_three():
    assert shift_options(None, None) == {}
    assert shift_options("-1,2.5", "3") == {"ppm_range": (-1.0, 2.5), "percent_per_ppm": 3.0}
    three = shift_options("0,1", "3,4,5.5")
    assert tuple(three["percent_per_ppm"]) == (3.0, 4.0, 5.5)
    for words in (("0,1", None), (None, "3")):
        with pytest.raises(ValueError, match="both --ppm and --percent-per-ppm"):
            shift_options(*words)
    with pytest.raises(ValueError, match="--percent-per-ppm"):
        shift_options("0,1", "3,4")
    with pytest.raises(ValueError, match="--ppm"):
        shift_options("0,1,2", "3")
