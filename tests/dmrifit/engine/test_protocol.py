"""Protocols: validation, reading, selection, averaging."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dmrifit import Protocol, average_directions
from dmrifit.engine.resynthesis import missing_contrasts


def test_protocols_are_frozen_and_equal_by_value():
    one = Protocol([0, 500], te=[80, 80], name="a")
    assert repr(Protocol([0, 497, 503])) == "<Protocol 3 measurements, b = 0, 497 to 503 s/mm²>"
    two = Protocol(np.array([0.0, 500.0]), te=80, name="b")
    assert one == two
    assert hash(one) == hash(two)
    assert repr(one.take(1)) == "<Protocol 'a', 1 measurement, b = 500 s/mm²; TE = 80 ms>"
    assert one != Protocol([0, 500], te=90)
    assert one != Protocol([0, 500])
    assert pickle.loads(pickle.dumps(one)) == one
    assert Protocol.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    with pytest.raises(AttributeError, match="cannot assign"):
        one.b = np.zeros(2)
    with pytest.raises(ValueError, match="read-only"):
        one.b[0] = 5


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 3], "index 3"), ([-4], "index -4"), ([True, False], "boolean index"), (True, "one boolean for each"),
        ([[0, 1]], "one list of integers"), ([0.5], "integer"),
    ],
)
def test_measurements_that_there_are_not_are_named_beside_those_there_are(indices, message):
    with pytest.raises(IndexError, match=rf"{message}.*measurements 0 to 2 of <Protocol 3 measurements"):
        Protocol([0, 500, 1000]).take(indices)


def test_directions_have_unit_length_and_a_missing_one_is_zero():
    protocol = Protocol([0, 500, 500], directions=[[np.nan] * 3, [0, 2, 0], [1, 1, 0]])
    np.testing.assert_allclose(np.linalg.norm(protocol.directions, axis=1), [0, 1, 1])


@pytest.mark.parametrize("name", ["cohort1", "cohort2"])
def test_presets_have_the_published_form(name):
    protocol = Protocol.preset(name)
    assert len(protocol) == 21
    assert len(np.unique(protocol.b)) == 7
    assert len(np.unique(protocol.te)) == 3
    clinical = protocol.take(protocol.clinical())
    assert clinical.b.tolist() == [0, 50, 100, 400, 900]
    assert set(clinical.te) == {protocol.te.min()}


@given(st.permutations(range(21)))
def test_the_clinical_part_follows_any_order_of_contrasts(order):
    protocol = Protocol.preset("cohort1")
    shuffled = protocol.take(order)
    assert shuffled.take(shuffled.clinical()) == protocol.take(protocol.clinical())
    np.testing.assert_array_equal(shuffled.indices_in(protocol), order)


def test_labels_are_unique():
    assert Protocol([0, 500, 500], te=80).labels == ("S_b0_TE80", "S_b500_TE80_1", "S_b500_TE80_2")


@given(hnp.arrays(float, (3, 6), elements=st.floats(1e-3, 1e3)), st.sampled_from(["geometric", "arithmetic"]))
def test_averages_are_those_of_numpy(signals, mean):
    protocol = Protocol([0.5, 995, 1000, 1004, 0, 1002], te=[80, 80, 80, 80, 90, 90])
    averaged, contrasts = average_directions(signals, protocol, mean=mean)
    groups = [[0], [1, 2, 3], [4], [5]]
    expected = [
        np.exp(np.log(signals[:, g]).mean(axis=1))
        if mean == "geometric"
        else signals[:, g].mean(axis=1)
        for g in groups
    ]
    np.testing.assert_allclose(averaged, np.stack(expected, axis=1), rtol=1e-9)
    np.testing.assert_allclose(contrasts.b, [0.5, 2999 / 3, 0, 1002])
    assert contrasts.te.tolist() == [80, 80, 90, 90]


def test_averaging_keeps_zeros_and_joins_neither_chained_shells_nor_repeated_low_b_values():
    protocol = Protocol([1000, 1000, 1000])
    averaged, _ = average_directions([[4.0, 9.0, np.nan], [0.0, 9.0, 4.0], [np.nan] * 3, [-1.0, 4.0, 4.0]], protocol)
    np.testing.assert_allclose(averaged[:, 0], [6.0, 0.0, np.nan, np.nan])
    averaged, contrasts = average_directions(np.ones((1, 5)), Protocol([1000, 1020, 1040, 1060, 1080]), tolerance=25)
    assert (contrasts.b.tolist(), averaged.shape) == ([1020, 1070], (1, 2))
    protocol = Protocol([1, 10, 25, 1, 10, 25, 24.5, 990, 1000, 990, 1000])
    signals = np.arange(1.0, 12.0)
    averaged, contrasts = average_directions(signals, protocol, mean="arithmetic")
    np.testing.assert_allclose(contrasts.b, [1, 10, 74.5 / 3, 995])
    np.testing.assert_allclose(averaged, [2.5, 3.5, 16 / 3, 9.5])
    # Scanners write what each direction had: no value comes again.
    assert average_directions(np.ones(3), Protocol([1, 10, 25]))[1].b.tolist() == [12]
    assert average_directions(np.ones(4), Protocol([10, 0, 10, 25]))[1].b.tolist() == [0, 15]


def test_b_values_that_were_meant_to_be_one_become_one():
    protocol = Protocol([0.5, 995, 1000, 1005, 5, 1990], te=80, directions=np.eye(3)[[0, 1, 2, 0, 1, 2]], name="dwi")
    rounded = protocol.rounded(nominal=True)
    assert rounded.b.tolist() == [0, 1000, 1000, 1000, 0, 2000]
    assert protocol.rounded().b.tolist() == [0, 1000, 1000, 1000, 0, 1990]
    assert (rounded.te == 80).all()
    np.testing.assert_array_equal(rounded.directions, protocol.directions)
    assert rounded.name == "dwi"
    assert rounded.rounded() == rounded
    assert Protocol([0.5, 25, 75, 625, 990]).rounded(nominal=True).b.tolist() == [0, 25, 75, 625, 1000]
    # Nothing is 0, or another value, that no measurement near it has.
    for b in ([0, 10, 20, 50, 100], [15, 500, 1000], [5, 33, 2505]):
        assert Protocol(b).rounded(4).b.tolist() == Protocol(b).rounded(9).b.tolist() == b
    assert Protocol([5, 10, 615, 635, 640]).rounded(20).b.tolist() == [10, 10, 630, 630, 630]
    assert Protocol([0, 10, 20, 40]).rounded(10).b.tolist() == [0, 0, 20, 40]
    assert protocol.rounded(0) == protocol
    with pytest.raises(ValueError, match="tolerance"):
        protocol.rounded(-1)


@given(hnp.arrays(float, 8, elements=st.floats(0, 5000)), st.floats(0, 30))
def test_no_b_value_moves_farther_than_the_shells_are_wide(b, tolerance):
    rounded = Protocol(np.append(b, 3000)).rounded(tolerance, nominal=b[0] < 1000).b
    assert np.abs(rounded - np.append(b, 3000)).max() <= 3 * tolerance + 1e-9
    assert (np.diff(rounded[np.argsort(np.append(b, 3000), kind="stable")]) >= 0).all()


def test_b_values_within_a_tolerance_are_found_and_are_repeats_of_one_contrast():
    scanned = Protocol([0.5, 995, 2003])
    with pytest.raises(ValueError, match="lacks S_b1000"):
        Protocol([0, 1000]).indices_in(scanned)
    assert Protocol([1000, 0]).indices_in(scanned, b_tolerance=10).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"repeated .*995.*average_directions"):
        Protocol([0, 500, 995, 1000, 1005, 2000], te=80).clinical()
    assert Protocol([0, 5, 10, 20, 50], te=80).clinical().tolist() == [0, 1, 2, 3, 4]
    scattered = Protocol([0, 5, 50, 100, 395, 400, 900], te=80).rounded()
    with pytest.raises(ValueError, match="repeated"):
        scattered.clinical()
    signals, protocol = average_directions(np.array([[100.0, 60, 40]]), Protocol([0, 500, 525]), mean="arithmetic")
    assert protocol.b.tolist() == [0, 512.5]
    assert signals.tolist() == [[100, 50]]
    assert len(average_directions(np.ones((1, 3)), Protocol([0, 500, 526]))[1]) == 3


LOW = [0, 0.2, 0.3, 1, 1.2, 1.5, 1.8, 2, 3.5, 5, 6, 10, 25, 35, 45, 60, 70, 200, 700, 800]


def test_low_b_values_are_contrasts_of_their_own_and_those_of_a_checked_protocol_no_other_unit():
    full = Protocol(np.tile(LOW, 2), np.repeat([45, 60], 20))
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(full.take(order).indices_in(full), order)
    assert full.clinical(8).tolist() == list(range(8))
    assert missing_contrasts(full, full.take([0, 1, 30])) == tuple(sorted({*range(40)} - {0, 1, 30}))
    with pytest.raises(ValueError, match=r"lacks S_b0_TE45; it has S_b0\.2_TE45"):
        full.take([0, 1]).indices_in(full.take([1, 2]))
    assert Protocol([1000, 0]).indices_in(Protocol([0.4, 0.9, 1000.4])).tolist() == [2, 0]
    assert Protocol([30, 800]).indices_in(Protocol([30, 30.5, 800])).tolist() == [0, 2]
    with pytest.raises(ValueError, match="more than one measurement of S_b30"):
        Protocol([30, 800]).indices_in(Protocol([29.9, 30.2, 800]))
    with pytest.raises(ValueError, match="more than one measurement of S_b1000"):
        Protocol([1000]).indices_in(Protocol([995, 1000, 1005]), b_tolerance=10)
    low = Protocol(LOW, te=45).take([0, 3, 7])
    assert low.b.tolist() == [0, 1, 2]
    for rebuilt in (pickle.loads(pickle.dumps(low)), Protocol.from_dict(low.to_dict()), low.rounded(0)):
        assert rebuilt == low
    assert average_directions(np.ones(3), low, tolerance=0)[1] == low
    with pytest.raises(ValueError, match="look like ms/µm²"):
        Protocol([0, 1, 2], te=45)
