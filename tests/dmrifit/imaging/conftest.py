"""What the tests of scans of heads share."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dmrifit.simulate.tissues import smooth_field

SHAPE = (60, 66, 56)
SPACING = 2.0


def simulated_brain(shape=SHAPE, spacing=SPACING, *, skull=False, noise=1.0, seed=0):
    """Make a brain of white and gray matter and fluid, in a skull or bare; and its mask."""
    rng = np.random.default_rng(seed)
    places = (np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2) * spacing
    x, y, z = places
    field = smooth_field(shape, [4 / spacing] * 3, rng).reshape(shape)
    radius = np.sqrt((x / 44) ** 2 + (y / 52) ** 2 + (z / 42) ** 2)
    brain = radius < 1
    picture = np.where(field > 0.3, 70.0, 100.0)
    picture[np.abs(x - 8) + np.abs(y + 4) / 4 + np.abs(z) / 3 < 6] = 30  # not symmetric
    picture[~brain] = 0
    if skull:
        picture[(radius >= 1) & (radius < 1.09)] = 20
        picture[(radius >= 1.09) & (radius < 1.2)] = 10
        picture[(radius >= 1.2) & (radius < 1.34)] = 120
    picture = np.abs(gaussian_filter(picture, 0.5) + noise * rng.standard_normal(shape))
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return picture if skull else np.where(brain, picture, 0), brain, affine


@pytest.fixture(scope="session")
def make_brain():
    """Make a brain of white and gray matter and fluid, its mask and its affine."""
    return simulated_brain
