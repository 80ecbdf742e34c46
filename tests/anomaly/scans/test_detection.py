"""Tables of what was found."""

import numpy as np
import pytest

from anomaly.scans.detection import lesions_of


def test_lesions_are_listed_the_largest_first_in_world_coordinates():
    found = np.zeros((12, 12, 12), bool)
    found[1:3, 1:3, 1:3] = True
    found[6:10, 6:9, 6:9] = True
    scores = np.where(found, 0.5, 0).astype(np.float32)
    scores[7, 7, 7] = 0.9
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-10, 0, 5)
    table = lesions_of(found, scores, affine)
    assert table["n_voxels"].tolist() == [36, 8]
    assert table["number"].tolist() == [2, 1]
    np.testing.assert_allclose(table["volume_mL"], [0.288, 0.064])
    np.testing.assert_allclose(table.loc[0, ["x", "y", "z"]].astype(float), [5, 14, 19])
    assert table["score"].tolist() == pytest.approx([0.9, 0.5])
    np.testing.assert_allclose(np.pi / 6 * table["diameter_mm"] ** 3, 1000 * table["volume_mL"])
    assert lesions_of(np.zeros((3, 3, 3), bool), np.zeros((3, 3, 3)), affine).empty
