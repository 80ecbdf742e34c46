"""Network inputs of a case: scan, low resolutions, and the prior scan or its absence."""

import nibabel as nib
import numpy as np
import pytest

from metastasis import DeepMedicSegmenter
from metastasis.segmentation.case_inputs import (
    case_inputs,
    check_geometry,
    n_extra_channels,
    network_arguments,
    training_edge,
)

SHAPE = (7, 6, 5)


def network(prior="path", *, factors=(3,), has_priors=True, missing_prior="validity"):
    """Give a network that was trained with priors, or without any."""
    model = DeepMedicSegmenter(prior=prior, low_resolution=factors, missing_prior=missing_prior)
    model.prior_ = prior if has_priors else None
    return model


def image(edge):
    return nib.Nifti1Image(np.ones(SHAPE, np.float32), np.diag([edge, edge, edge, 1.0]))


@pytest.fixture
def scan():
    volume = np.random.default_rng(0).normal(100, 5, SHAPE).astype(np.float32)
    volume[0] = 0
    return volume


def test_inputs_are_scaled_over_the_brain_and_have_each_resolution(scan):
    inputs = case_inputs(network(prior=None, factors=(3, 5)), (scan, None, None))
    assert set(inputs) == {"image", "brain", "low_3", "low_5"}
    assert np.array_equal(inputs["brain"], scan != 0)
    brain_values = inputs["image"][0][scan != 0]
    np.testing.assert_allclose([brain_values.mean(), brain_values.std()], [0, 1], atol=1e-5)
    assert inputs["low_5"].shape == (1, 11, 10, 9)


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
        ("path", "validity", {"image", "low_3", "prior", "valid"}, 1),
        ("path", "zeros", {"image", "low_3", "prior"}, 1),
        ("channel", "validity", {"image", "low_3"}, 3),
        ("channel", "zeros", {"image", "low_3"}, 2),
        (None, "validity", {"image", "low_3"}, 1),
    ],
)
def test_the_network_gets_the_arguments_of_its_forward_pass(scan, prior, missing_prior, names, n_channels):
    model = network(prior, missing_prior=missing_prior)
    arguments = network_arguments(model, case_inputs(model, (scan, scan, None)))
    assert set(arguments) == names
    assert len(arguments["image"]) == n_channels == 1 + n_extra_channels(model)


def test_the_edge_in_training_is_the_median_of_the_images():
    assert training_edge([image(1.0), np.ones(SHAPE), image(1.2), image(3.0)]) == pytest.approx(
        1.2
    )
    assert training_edge([np.ones(SHAPE)]) is None


def test_voxels_larger_by_a_quarter_and_priors_of_another_shape_are_refused():
    model = network()
    check_geometry(model, (image(1.4), None, None))
    model.edge_ = 1.0
    check_geometry(model, (image(1.2), None, None))
    check_geometry(model, (np.ones(SHAPE), None, None))
    with pytest.raises(ValueError, match=r"voxels of 1\.4 mm for a network of voxels of 1 mm"):
        check_geometry(model, (image(1.4), None, None))
    with pytest.raises(ValueError, match=r"a prior of shape \(2, 2, 2\) for a volume of shape"):
        check_geometry(model, (np.ones(SHAPE), np.ones((2, 2, 2)), None))
