"""What the tests of the commands share."""

import nibabel as nib
import numpy as np
import pytest

from placement.search.scene import Scene


@pytest.fixture
def ball(tmp_path):
    grid = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1) * 2.0
    path = tmp_path / "ball.nii.gz"
    nib.save(nib.Nifti1Image((np.linalg.norm(grid - 40, axis=-1) < 18).astype(np.uint8), np.diag([2.0, 2, 2, 1])), path)
    return path


@pytest.fixture(scope="session")
def sphere_scene():
    """Give a function that makes a sphere of 22 mm around (12, -8, 20) on an anisotropic, flipped grid, and the grid."""
    affine = np.array([[-2.0, 0, 0, 80], [0, 2, 0, -80], [0, 0, 3, -70], [0, 0, 0, 1]])
    points = np.moveaxis(np.indices((80, 80, 50)), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    tumor = np.linalg.norm(points - (12, -8, 20), axis=-1) < 22
    return lambda **options: Scene(tumor, affine, name="synthetic sphere", **options), points


@pytest.fixture
def cases(output_of, tmp_path):
    folder = tmp_path / "cases"
    output_of("simulate", 4, "--out", folder, "--spacing", 4, "--exclude")
    return folder
