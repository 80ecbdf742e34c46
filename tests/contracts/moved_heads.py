"""Synthetic heads that move between two scans."""

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

from dmrifit.simulate.tissues import smooth_field

SHAPE = (80, 96, 76)
AFFINE = np.array([[2.0, 0, 0, -80], [0, 2, 0, -96], [0, 0, 2, -70], [0, 0, 0, 1]])


def head_signals(seed):
    """A ball of white and gray matter in folds that differ from person to person."""
    rng = np.random.default_rng(seed)
    places = (np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2) * 2.0
    radius = np.sqrt(sum((axis / half) ** 2 for axis, half in zip(places, (64, 80, 60), strict=True)))
    folds = smooth_field(SHAPE, [3.0] * 3, rng).reshape(SHAPE)
    signals = np.where(folds > 0.3, 70.0, 100.0) * (radius < 1)
    return gaussian_filter(signals, 0.6).astype(np.float32)


def moved(signals, angles, shift, *, noise=2.0, seed=9):
    """The head after a turn about the origin and a shift, on the same grid; and the matrix."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    index = np.linalg.inv(AFFINE) @ np.linalg.inv(matrix) @ AFFINE
    later = affine_transform(signals, index[:3, :3], index[:3, 3], order=3)
    later = later + np.random.default_rng(seed).normal(0, noise, SHAPE)
    return nib.Nifti1Image(np.abs(later).astype(np.float32), AFFINE), matrix
