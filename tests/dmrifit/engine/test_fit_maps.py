"""The table of maps of a fit: names, types, values, and a map that is added to it."""

import numpy as np
import pytest

from dmrifit import MODELS, FitStatus, Protocol
from dmrifit.engine.fit_maps import (
    bits_type,
    empty_maps,
    fill_maps,
    map_names,
    pack_bounds,
    unpack_bounds,
)
from dmrifit.engine.intervals import FitInputs
from dmrifit.engine.models import Parameter, SignalModel
from dmrifit.engine.results import FitResult

ADC = MODELS["adc"]
PROTOCOL = Protocol([0, 200, 500, 1000])


def test_maps_are_named_parameters_first_and_a_parameter_named_like_another_map_is_refused():
    named = "S0 ADC S0_se ADC_se S0_low ADC_low S0_high ADC_high cost chi2 status at_bound doubt"
    assert " ".join(map_names(ADC)) == named
    model = SignalModel.from_expression(
        "S0*exp(-b*S0_se)", [Parameter("S0", "signal", 0, np.inf), Parameter("S0_se", "µm²/ms", 0, 5)], name="clash"
    )
    with pytest.raises(ValueError, match="model clash: a parameter has the name of another map"):
        map_names(model)


def test_empty_maps_are_zero_but_for_the_status():
    maps = empty_maps(ADC, (2, 3, 4))
    assert list(maps) == map_names(ADC)
    for name, values in maps.items():
        assert values.shape == (2, 3, 4)
        assert (values == (255 if name == "status" else 0)).all()
    types = {name: values.dtype for name, values in maps.items() if values.dtype != np.float32}
    assert types == {"status": np.uint8, "at_bound": np.uint16, "doubt": np.uint16}
    assert empty_maps(MODELS["t2-ivim-kurtosis"], (1, 1, 1))["at_bound"].dtype == np.uint16


def test_maps_are_filled_where_the_voxels_of_the_slab_lie():
    # Give three voxels: converged, at the upper bound of ADC, not fitted.
    result = FitResult(
        model=ADC,
        parameters=np.array([[10.0, 1.0], [20.0, 3.0], [np.nan, np.nan]]),
        standard_errors=np.array([[0.5, np.inf], [1e39, 0.25], [np.nan, np.nan]]),
        cost=np.array([4.0, 9.0, np.nan]),
        status=np.array([FitStatus.CONVERGED, FitStatus.AT_BOUND, FitStatus.NOT_FITTED], np.uint8),
        n_iter=np.array([5, 6, 0], np.int32),
        at_low=np.zeros((3, 2), bool),
        at_high=np.array([[False, False], [False, True], [False, False]]),
        starts_disagree=np.array([True, False, True]),
        bounds=((0.0, np.inf), (0.0, 3.0)),
        inputs=FitInputs(ADC.signal([[10.0, 1.0], [20.0, 3.0], [1.0, 1.0]], PROTOCOL), PROTOCOL, None),
    )
    maps = empty_maps(ADC, (2, 2, 3))
    inside = np.zeros((2, 2, 1), bool)
    inside[0, 1] = inside[1, 0] = inside[1, 1] = True
    fill_maps(maps, result, slice(1, 2), inside)
    expected = {
        "S0": [0, 10, 20, np.nan],
        "ADC": [0, 1, 3, np.nan],
        # Neither an infinite error nor 1e39 is a number of float32.
        "S0_se": [0, 0.5, np.nan, np.nan],
        "ADC_se": [0, np.nan, 0.25, np.nan],
        "cost": [0, 4, 9, np.nan],
        "status": [255, 0, 1, 3],
        "at_bound": [0, 0, 8, 0],
        # Starts of the first voxel disagree (bit 2), the ADC of the second is at its bound (bit 1);
        # a voxel without a fit has no doubts.
        "doubt": [0, 4, 2, 0],
        "chi2": [0, np.nan, np.nan, np.nan],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(maps[name][:, :, 1].ravel(), values, err_msg=name)
        untouched = 255 if name == "status" else 0
        assert (maps[name][:, :, [0, 2]] == untouched).all()


@pytest.mark.parametrize(("n", "kind"), [(1, np.uint16), (8, np.uint16), (9, np.uint32), (17, np.uint64)])
def test_bounds_come_back_from_their_bits(n, kind):
    low, high = np.random.default_rng(n).random((2, 50, n)) < 0.3
    low[0], high[0] = True, True
    bits = pack_bounds(low, high)
    assert bits.dtype == bits_type(n) == kind
    for found, expected in zip(unpack_bounds(bits, n), (low, high), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert bits[0] == 4**n - 1
    with pytest.raises(ValueError, match="32 parameters, not 33"):
        bits_type(33)
