"""The prior of a region: what a fit takes of it, and what a sidecar says of it."""

import numpy as np

from dmrifit import MODELS
from dmrifit.engine.methods.prior import PULLED, Prior

PRIOR = Prior(("f", "Dt"), np.array([-2.0, 0.5]), np.array([[0.5, 0.1], [0.1, 0.3]]), 3.0, 40)


def test_precision_is_the_inverse_of_the_widened_covariance_and_zero_without_a_prior():
    mean, precision = PRIOR.expanded(MODELS["ivim"], widening=2.0)
    names = MODELS["ivim"].names
    np.testing.assert_array_equal(mean, [{"f": -2.0, "Dt": 0.5}.get(name, 0.0) for name in names])
    columns = [names.index("f"), names.index("Dt")]
    block = precision[np.ix_(columns, columns)]
    np.testing.assert_allclose(block @ (2 * PRIOR.covariance), np.eye(2), atol=1e-12)
    others = [i for i in range(len(names)) if i not in columns]
    assert not precision[others].any()
    assert not precision[:, others].any()


def test_the_sidecar_says_that_maps_are_pulled_and_how_many_voxels_taught_the_prior():
    description = PRIOR.describe()
    assert description["Description"] == PULLED
    assert description["Voxels"] == 40
    assert description["TransformedMean"] == [-2.0, 0.5]
