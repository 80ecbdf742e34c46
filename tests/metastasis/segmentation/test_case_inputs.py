"""Network inputs of a case: the scan, and the prior scan or its absence."""

import numpy as np
import pytest

from metastasis import DeepMedicSegmenter
from metastasis.segmentation.sampling import (
    case_inputs,
    n_extra_channels,
    network_arguments,
)

SHAPE = (7, 6, 5)


def network(prior="path", *, has_priors=True, missing_prior="validity"):
    """Give a network that was trained with priors, or without any."""
    model = DeepMedicSegmenter(prior=prior, missing_prior=missing_prior)
    model.prior_ = prior if has_priors else None
    return model


@pytest.fixture
def scan():
    volume = np.random.default_rng(0).normal(100, 5, SHAPE).astype(np.float32)
    volume[0] = 0
    return volume


def test_inputs_are_scaled_over_the_brain(scan):
    inputs = case_inputs(network(prior=None), (scan, None, None))
    assert set(inputs) == {"image", "brain", "low_3", "low_5"}
    assert np.array_equal(inputs["brain"], scan != 0)
    brain_values = inputs["image"][0][scan != 0]
    np.testing.assert_allclose([brain_values.mean(), brain_values.std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize("prior", [None, np.zeros(SHAPE)])
def test_a_missing_prior_is_zeros_that_are_not_valid(scan, prior):
    inputs = case_inputs(network(), (scan, prior, None))
    assert not inputs["prior"].any()
    assert inputs["valid"] == 0


def test_a_prior_is_scaled_like_the_scan(scan):
    inputs = case_inputs(network(), (scan, 3 * scan, None))
    np.testing.assert_allclose(inputs["prior"], inputs["image"], atol=1e-5)
    assert inputs["valid"] == 1


def test_a_prior_is_refused_by_a_network_that_was_trained_without(scan):
    with pytest.raises(ValueError, match="a prior scan for a network that was trained without any"):
        case_inputs(network(has_priors=False), (scan, scan, None))
    with pytest.raises(ValueError, match="its prior: channel 0 has the value 2 everywhere"):
        case_inputs(network(), (scan, np.full(SHAPE, 2.0), None))


@pytest.mark.parametrize("mask", [np.zeros(SHAPE, bool), np.ones((2, 2, 2), bool)])
def test_a_mask_that_does_not_fit_is_refused(scan, mask):
    with pytest.raises(ValueError, match="a mask of shape"):
        case_inputs(network(), (scan, None, mask))


@pytest.mark.parametrize(
    ("prior", "missing_prior", "names", "n_channels"),
    [
        ("path", "validity", {"image", "prior", "valid"}, 1),
        ("path", "zeros", {"image", "prior"}, 1),
        ("channel", "validity", {"image"}, 3),
        ("channel", "zeros", {"image"}, 2),
        (None, "validity", {"image"}, 1),
    ],
)
def test_the_network_gets_the_arguments_of_its_forward_pass(scan, prior, missing_prior, names, n_channels):
    model = network(prior, missing_prior=missing_prior)
    arguments = network_arguments(model, case_inputs(model, (scan, scan, None)))
    assert set(arguments) == names | {"low_3", "low_5"}
    assert len(arguments["image"]) == n_channels == 1 + n_extra_channels(model)
