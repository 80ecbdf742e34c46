"""Tissues from the diffusion signal."""

import numpy as np
import pytest

from anomaly.scans.preparation import diffusion_maps, estimate_tissue, relabel_tissue
from anomaly.simulate.persons import spread_directions
from dmrifit.engine.protocol import Protocol

PROTOCOL = Protocol(np.full(30, 1000.0), directions=spread_directions(30))


def test_maps_are_those_of_known_tensors():
    tensors = np.array([[1.6, 0.35, 0.35], [0.8, 0.8, 0.8], [3.0, 3.0, 3.0], [1.2, 1.0, 0.6]])
    signal = np.exp(-(PROTOCOL.directions**2) @ tensors.T).T[:, None, None]
    md, fa = diffusion_maps(signal, PROTOCOL, np.ones((4, 1, 1), bool))
    mean = tensors.mean(axis=1)
    expected = np.sqrt(1.5 * ((tensors - mean[:, None]) ** 2).sum(axis=1) / (tensors**2).sum(axis=1))
    np.testing.assert_allclose(md.ravel(), mean, rtol=1e-3)
    np.testing.assert_allclose(fa.ravel(), expected, atol=2e-3)


def test_tissues_are_told_apart_and_nothing_lies_outside_the_brain():
    tensors = np.array([[1.6, 0.35, 0.35], [0.85, 0.8, 0.75], [3.0, 3.0, 3.0], [1.4, 1.4, 1.4], [1.6, 0.35, 0.35]])
    signal = np.exp(-(PROTOCOL.directions**2) @ tensors.T).T[:, None, None]
    brain = np.array([1, 1, 1, 1, 0], bool)[:, None, None]
    # Edema, the fourth, is no fluid: it has to be scored.
    np.testing.assert_array_equal(estimate_tissue(signal, PROTOCOL, brain).ravel(), [1, 2, 3, 2, 0])
    low, high = (estimate_tissue(signal, PROTOCOL, brain, **given) for given in ({"fluid_md": 1.0}, {"white_fa": 0.9}))
    np.testing.assert_array_equal(low.ravel(), [1, 2, 3, 3, 0])
    np.testing.assert_array_equal(high.ravel(), [2, 2, 3, 2, 0])


def test_tissues_of_synthetic_brains_are_about_the_true_ones_and_gliomas_stay_in_what_is_scored():
    from anomaly.simulate.persons import simulate_dmri

    healthy, lesions = simulate_dmri(1, 2, n_directions=20, shape=(30, 36, 24), spacing=5.3, random_state=1)

    def found(case):
        protocol = Protocol(np.full(20, case.b), directions=case.directions)
        return estimate_tissue(case.signal, protocol, case.brain)

    truth, own = np.where(healthy[0].tissue == 4, 2, healthy[0].tissue), found(healthy[0])
    for number, least in ((1, 0.8), (2, 0.8), (3, 0.75)):
        one, other = own == number, truth == number
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > least
    for case in lesions:
        assert (found(case)[case.lesion] == 3).mean() < 0.1


def test_labels_of_other_programs_get_the_numbers_of_this_one():
    labels = np.array([0, 1, 2, 3, 9])[:, None, None]
    found = relabel_tissue(labels, {1: 3, 2: 2, 3: 1})
    np.testing.assert_array_equal(found.ravel(), [0, 3, 2, 1, 0])
    np.testing.assert_array_equal(relabel_tissue(np.array([0, 1.0, 2.0000001, np.nan])), [0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"the numbers \[9\]"):
        relabel_tissue(labels)
    with pytest.raises(ValueError, match="without white and gray matter"):
        relabel_tissue(np.array([0, 3]))


def test_errors_name_what_is_wrong():
    signal, brain = np.full((2, 2, 2, 30), 0.5), np.ones((2, 2, 2), bool)
    with pytest.raises(ValueError, match="does not fit"):
        diffusion_maps(signal[..., :29], PROTOCOL, brain)
    with pytest.raises(ValueError, match="at least 6 directions"):
        estimate_tissue(signal, Protocol(np.full(30, 1000.0)), brain)
