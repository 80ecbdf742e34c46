"""Storages of one image: the storage that all of them lead to, and equal boxes of all of them."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from placement import Scene, VoxelOptimizer
from placement.box.voxel import nearest_storage, reoriented, rotation_of

STORAGES = [
    np.eye(3)[list(order)].T * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def oblique(spacing, angles, offset):
    affine = np.eye(4)
    affine[:3, :3] = rotation_of(angles) * spacing
    affine[:3, 3] = offset
    return affine


AFFINES = {
    "cubic": np.diag([1.0, 1, 1, 1]),
    "thick": oblique([0.9, 0.9, 5.0], [0, 0, 0], [-31.5, 12, 3]),
    "oblique": oblique([1.0, 1.2, 2.0], [24, -11, 17], [-40, 22, 7]),
    "sheared": oblique([1.0, 1.0, 3.0], [0, 0, 0], [5, 6, 7]) + np.array([[0, 0, 0, 0]] * 1 + [[0, 0, 0.8, 0]] + [[0] * 4] * 2),
    "diagonal": oblique([1.0, 1.0, 1.0], [0, 0, 45], [0, 0, 0]),
}


def stored(values, affine, storage):
    """Store an image with its axes in another order and direction, in a header of single precision."""
    order = np.abs(storage).argmax(axis=0)
    flips = np.flatnonzero(storage.sum(axis=0) < 0)
    matrix, shape = reoriented(storage.astype(float), affine, values.shape)
    array = np.flip(values.transpose(order), flips)
    assert array.shape == shape
    return array, matrix.astype(np.float32).astype(float)


def lump(seed, shape=(48, 44, 40), threshold=0.75):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 5)
    noise[:3] = noise[-3:] = noise[:, :3] = noise[:, -3:] = noise[..., :3] = noise[..., -3:] = -9
    return noise > np.quantile(noise, threshold)


@pytest.mark.parametrize("name", AFFINES)
def test_all_storages_of_an_image_lead_to_the_same_arrays(name):
    affine = AFFINES[name]
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    results = []
    for storage in STORAGES:
        array, matrix = stored(values, affine, storage)
        results.append(stored(array, matrix, nearest_storage(matrix)))
    for array, matrix in results:
        np.testing.assert_array_equal(array, results[0][0])
        np.testing.assert_array_equal(matrix, results[0][1])
    assert (np.diag(results[0][1]) > 0).all()


def test_a_canonical_scene_is_the_same_scene():
    affine = AFFINES["oblique"]
    tumor = lump(0)
    exclude = lump(1, threshold=0.97)
    image = np.random.default_rng(0).normal(size=(*tumor.shape, 2))
    flipped, matrix = stored(tumor, affine, STORAGES[13])
    order = np.abs(STORAGES[13]).argmax(axis=0)
    flips = np.flatnonzero(STORAGES[13].sum(axis=0) < 0)
    scene = Scene(
        flipped,
        matrix,
        exclude=np.flip(exclude.transpose(order), flips),
        image=np.flip(image.transpose(*order, 3), flips),
    )
    canonical = scene.canonical
    assert canonical.canonical is canonical
    np.testing.assert_array_equal(canonical.tumor, tumor)
    np.testing.assert_array_equal(canonical.forbidden["exclude"], exclude)
    np.testing.assert_array_equal(canonical.image, image)
    # Positions are rounded to .001 mm.
    np.testing.assert_allclose(canonical.affine, affine, atol=1e-3)
    np.testing.assert_allclose(scene.centroid, Scene(tumor, affine).centroid, atol=1e-3)
    np.testing.assert_array_equal(scene.tumor, flipped)


@pytest.mark.parametrize("name", ["thick", "oblique", "diagonal"])
def test_some_storages_of_a_tumor_get_the_same_box(name):
    tumor = lump(2)
    for storage in STORAGES[::9]:
        placement = VoxelOptimizer(random_state=0).placement(Scene(*stored(tumor, AFFINES[name], storage)))
        if storage is STORAGES[0]:
            first = placement
        assert placement.voxel.dice(first.voxel) >= 0.98
        assert abs(placement.objective - first.objective) <= 1e-3


def upsampled(values, affine):
    """Halve the edges of image voxels; the tumor keeps its outline."""
    matrix = affine.copy()
    matrix[:3, :3] /= 2
    matrix[:3, 3] -= affine[:3, :3] @ np.full(3, 0.25)
    for axis in range(3):
        values = np.repeat(values, 2, axis=axis)
    return values, matrix


def cropped(values, affine, margin=12):
    """Cut out the surroundings of a tumor."""
    index = np.argwhere(values)
    low = np.maximum(index.min(axis=0) - margin, 0)
    high = index.max(axis=0) + margin + 1
    matrix = affine.copy()
    matrix[:3, 3] += affine[:3, :3] @ low
    return values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], matrix


def real_tumors(data_dir):
    for patient in ("0003", "0005", "0006"):
        image = nib.load(data_dir / "brats2013_deepmedic" / f"brats_2013_pat{patient}_1" / "OTMultiClass.nii.gz")
        labels = np.rint(image.get_fdata())
        for included in ((1, 2, 3, 4), (1, 3, 4)):
            yield cropped(np.isin(labels, included), image.affine)
    image = nib.load(data_dir / "brain_tumour_thick_slice_1" / "label.nii.gz")
    yield cropped(image.get_fdata() > 0.5, image.affine)


def simulated_tumors():
    shape = (90, 84, 76)
    yield lump(3, shape, 0.96), AFFINES["cubic"]
    yield lump(4, shape, 0.93), AFFINES["oblique"]
    yield lump(5, shape, 0.88), oblique([0.8, 0.9, 1.0], [-12, 30, 5], [0, 0, 0])


# The tie-break ends on a plateau of up to 3 % of the objective. The boxes of a thin lump turn about
# axes in another order than in most: searches without that order found others.
@pytest.mark.parametrize(("max_rotations", "max_aspect"), [(3, None), (2, None), (2, 2.5)])
def test_an_upsampled_tumor_gets_the_same_box(max_rotations, max_aspect):
    tumor = lump(2)
    placements = []
    for values, affine in ((tumor, AFFINES["oblique"]), upsampled(tumor, AFFINES["oblique"])):
        optimizer = VoxelOptimizer(max_rotations=max_rotations, max_aspect=max_aspect, random_state=0)
        placements.append(optimizer.placement(Scene(values, affine)))
    first, second = placements
    assert first.voxel.dice(second.voxel) >= 0.95
    assert abs(first.objective - second.objective) <= 5e-3


@pytest.mark.slow
def test_all_storages_of_ten_tumors_get_the_same_box(data_dir):
    tumors = [*real_tumors(data_dir), *simulated_tumors()]
    assert len(tumors) == 10
    optimizer = VoxelOptimizer(max_rotations=3, max_aspect=None, random_state=0)
    for tumor, affine in tumors:
        placements = []
        for storage in STORAGES:
            placements.append(optimizer.placement(Scene(*stored(tumor, affine, storage))))
        first = placements[0]
        for placement in placements:
            assert placement.voxel.dice(first.voxel) >= 0.98
            assert abs(placement.objective - first.objective) <= 1e-3
        fine = optimizer.placement(Scene(*upsampled(tumor, affine)))
        assert fine.voxel.dice(first.voxel) >= 0.95
