"""The local level follows the field, and neither lesions nor fluid."""

import numpy as np

from metastasis.scans.local_level import local_level


def test_level_follows_the_field_alone():
    shape = (60, 64, 56)
    grid = np.stack(np.indices(shape), axis=-1)
    brain = np.linalg.norm(grid - np.array(shape) / 2, axis=-1) < 27
    field = np.exp(np.linspace(-0.15, 0.15, shape[1]))[:, None] * np.ones(shape)
    plain = 200 * field * brain
    changed = plain.copy()
    changed[20:28, 20:28, 20:28] *= 2.2  # a lesion
    changed[34:44, 30:40, 24:34] *= 0.25  # fluid
    level = local_level(changed, brain)
    error = level[brain] / (200 * field[brain]) - 1
    assert np.abs(error).max() < 0.1
    np.testing.assert_allclose(local_level(7 * changed, brain), 7 * level, rtol=1e-4)
    # Twice the edges: as many blocks of 4 mm, of half as many voxels.
    coarse = local_level(changed[::2, ::2, ::2], brain[::2, ::2, ::2], (2.0, 2.0, 2.0))
    assert np.abs(coarse / level[::2, ::2, ::2] - 1)[brain[::2, ::2, ::2]].max() < 0.05
