"""Options on the command line become regions of a scene and chemical shifts of a prescription."""

import pytest

from placement.cli.options import RegionOptions, ShiftOptions


def test_regions_are_options_of_cases_and_of_scenes():
    assert RegionOptions(exclude="5", brain="none").of_cases() == {"image": None, "exclude": "5", "brain": "none"}
    scene = RegionOptions(include=(3, 4), margin=2.0, labels="brats2013").of_scene()
    assert (scene["include"], scene["margin"], scene["tolerance"]) == ((3, 4), 2.0, 0.0)
    assert 4 in scene["labels"]["enhancing"]


def test_chemical_shifts_need_a_range_and_one_rate_or_three():
    assert ShiftOptions().of_prescription() == {}
    one = ShiftOptions(ppm=(-1.0, 2.5), percent_per_ppm=(3.0,)).of_prescription()
    assert one == {"ppm_range": (-1.0, 2.5), "percent_per_ppm": 3.0}
    three = ShiftOptions(ppm=(0.0, 1.0), percent_per_ppm=(3.0, 4.0, 5.5)).of_prescription()
    assert tuple(three["percent_per_ppm"]) == (3.0, 4.0, 5.5)
    for options in ({"ppm": (0.0, 1.0)}, {"percent_per_ppm": (3.0,)}):
        with pytest.raises(ValueError, match="both --ppm and --percent-per-ppm"):
            ShiftOptions(**options).of_prescription()
    with pytest.raises(ValueError, match="--percent-per-ppm"):
        ShiftOptions(ppm=(0.0, 1.0), percent_per_ppm=(3.0, 4.0)).of_prescription()
    with pytest.raises(ValueError, match="takes the place of"):
        ShiftOptions(ppm=(0.0, 1.0), bandwidth=(1200.0,)).of_prescription()
