"""Control segmentations: all of the brain, nothing, lesions of other patients, random blobs."""

import numpy as np

from metastasis.scans.cases import Case
from metastasis.study.controls import CONTROLS, control_segmentations

SHAPE = (9, 8, 7)
ALL, EMPTY, BORROWED, BLOBS = CONTROLS


def scan(patient, *voxels, shape=SHAPE, brain=()):
    """Give a scan by the voxels of its lesions, and of its brain if it has one."""
    label = np.zeros(shape, dtype=np.uint8)
    for voxel in voxels:
        label[voxel] = 1
    inside = None
    if brain:
        inside = np.zeros(shape, dtype=bool)
        for voxel in brain:
            inside[voxel] = True
    return Case(patient, np.ones(shape, dtype=np.float32), label=label, brain=inside)


def voxels_of(mask):
    return [tuple(voxel) for voxel in np.argwhere(mask).tolist()]


def test_all_positive_is_the_brain_or_every_voxel():
    brain = [(1, 2, 3), (4, 4, 4)]
    masks = control_segmentations([scan("a", (1, 1, 1), brain=brain), scan("b")])
    assert list(masks) == ["all positive", "empty", "another patient's lesions", "random blobs"]
    assert voxels_of(masks[ALL][0]) == brain
    assert masks[ALL][1].all()
    assert not np.any(masks[EMPTY])
    for volumes in masks.values():
        assert [(volume.shape, volume.dtype) for volume in volumes] == [(SHAPE, bool)] * 2


def test_each_scan_is_given_the_next_lesions_of_another_patient():
    cases = [scan("a", (0, 0, 1)), scan("a", (0, 0, 2)), scan("b")]
    cases += [scan("b", (0, 0, 3), (5, 5, 5)), scan("c", (0, 0, 4))]
    borrowed = control_segmentations(cases)[BORROWED]
    # The first skips its own second scan and the one without lesions; the last goes on in front.
    both = [(0, 0, 3), (5, 5, 5)]
    assert [voxels_of(mask) for mask in borrowed] == [both, both, [(0, 0, 4)], [(0, 0, 4)], [(0, 0, 1)]]


def test_lesions_of_others_are_laid_corner_on_corner_and_left_out_without_others():
    for others in ([], [scan("a", (3, 3, 3))]):
        assert list(control_segmentations([scan("a", (1, 2, 3)), *others])) == [ALL, EMPTY, BLOBS]
    assert not control_segmentations([scan("a", (1, 2, 3)), scan("b")])[BORROWED][0].any()
    large = scan("b", (1, 2, 3), (1, 11, 3), (8, 2, 2), shape=(9, 12, 4))
    small = scan("a", (0, 1, 2), (4, 5, 6))
    masks = control_segmentations([small, large])[BORROWED]
    assert [mask.shape for mask in masks] == [SHAPE, (9, 12, 4)]
    assert voxels_of(masks[0]) == [(1, 2, 3), (8, 2, 2)]
    assert voxels_of(masks[1]) == [(0, 1, 2)]


def test_a_blob_is_a_lesion_of_another_patient_around_a_voxel_of_the_brain():
    # In the box of the first lesion, of 4 x 1 x 4 voxels, lies a second.
    corner = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 0, 1), (3, 0, 2), (3, 0, 3)]
    other = scan("b", *corner, (0, 0, 3))
    case = scan("a", (6, 6, 6), brain=[(4, 4, 3)])
    at_center = {(x + 2, y + 4, z + 1) for x, y, z in corner}
    seen = []
    for seed in range(12):
        blobs = control_segmentations([case, other], random_state=seed)[BLOBS][0]
        seen.append(frozenset(voxels_of(blobs)))
    # The scan of the other patient has two lesions, so two are drawn, perhaps the same one twice.
    assert set(seen) == {frozenset(at_center), frozenset({(4, 4, 3)}), frozenset(at_center | {(4, 4, 3)})}


def test_blobs_are_those_of_their_seed_and_cut_at_the_border_of_the_image():
    cube = [tuple(voxel) for voxel in np.argwhere(np.ones((3, 3, 3)))]
    cases = [scan("a", (6, 6, 6), brain=[(0, 0, 0)]), scan("b", *cube)]
    assert voxels_of(control_segmentations(cases)[BLOBS][0]) == voxels_of(np.ones((2, 2, 2)))
    cases = [scan("a", (6, 6, 6), brain=[(8, 7, 6)]), scan("b", *cube)]
    blob = control_segmentations(cases)[BLOBS][0]
    assert blob[7:, 6:, 5:].all()
    assert blob.sum() == 8
    cases = [scan("a", (1, 1, 1)), scan("b", (2, 2, 2)), scan("b", (2, 2, 2))]
    blobs, again, later = (control_segmentations(cases, random_state=seed)[BLOBS] for seed in (3, 3, 4))
    np.testing.assert_array_equal(blobs, again)
    assert any((first != second).any() for first, second in zip(blobs, later, strict=True))
    # Both scans of the second patient have one voxel, somewhere.
    assert (blobs[1] != blobs[2]).any()


def test_blobs_are_as_many_as_another_patient_has():
    # In a large image single voxels do not fall on each other.
    shape = (60, 60, 60)
    five = scan("a", *[(i, i, 0) for i in range(0, 10, 2)], shape=shape)
    two = scan("b", (3, 3, 3), (6, 6, 6), shape=shape)
    none = scan("b", shape=shape)
    blobs = control_segmentations([five, two])[BLOBS]
    assert [int(mask.sum()) for mask in blobs] == [2, 5]
    # One of the scans of the other patient is drawn, with and without lesions.
    counts = {int(control_segmentations([five, two, none], random_state=seed)[BLOBS][0].sum()) for seed in range(10)}
    assert counts == {0, 2}
    # Alone, a patient has blobs of the lesions of the scan.
    assert control_segmentations([five])[BLOBS][0].sum() == 5
    assert not control_segmentations([none])[BLOBS][0].any()


def test_blobs_are_anywhere_in_the_brain_and_nowhere_else():
    shape = (30, 30, 30)
    brain = np.zeros(shape, dtype=bool)
    brain[:15, 5:, :20] = True
    image = np.ones(shape, dtype=np.float32)
    case = Case("a", image, label=0 * image, brain=brain)
    label = np.zeros(shape, dtype=np.uint8)
    # 225 single voxels that do not touch.
    label[::2, ::2, 9] = 1
    blobs = control_segmentations([case, Case("b", image, label=label)])[BLOBS][0]
    assert not blobs[~brain].any()
    # Of 225 draws among 7500 voxels a few fall on each other.
    assert 210 <= blobs.sum() <= 225
    center = np.argwhere(blobs).mean(axis=0)
    # The mean of 225 uniform draws lies within 4 standard errors, at most 1.9 voxels.
    np.testing.assert_allclose(center, [7, 17, 9.5], atol=2)


def test_blobs_of_an_empty_brain_are_none():
    case = Case("a", np.ones(SHAPE), label=np.zeros(SHAPE), brain=np.zeros(SHAPE))
    assert not control_segmentations([case, scan("b", (1, 1, 1))])[BLOBS][0].any()
