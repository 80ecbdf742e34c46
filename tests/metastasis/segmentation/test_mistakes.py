"""Mistakes that a network learns from: of large ones a part."""

import numpy as np

from metastasis.segmentation.mistakes import marked_evenly
from metastasis.segmentation.sampling import MISTAKEN


def test_a_large_mistake_is_marked_in_part_and_small_ones_as_a_whole():
    label = np.zeros((40, 40, 40), np.uint8)
    label[4:7, 4:7, 4:7] = 1
    probability = np.zeros(label.shape, np.float32)
    probability[4:7, 4:7, 4:7] = 0.9
    probability[20:38, 10:30, 10:30] = 0.5  # 7,200 voxels
    probability[12:15, 2:5, 34:37] = 0.2
    probability[2, 30:32, 30:32] = 0.05  # too little to be a mistake
    marked = marked_evenly(label, probability, 0)
    is_marked = marked == MISTAKEN
    assert (marked[label > 0] == 1).all()
    assert is_marked[12:15, 2:5, 34:37].all()
    large = is_marked[20:38, 10:30, 10:30]
    assert 230 < large.sum() < 370  # 300 ± 4 standard deviations
    # From all of it.
    assert min(large.any(axis=other).mean() for other in ((1, 2), (0, 2), (0, 1))) > 0.9
    assert is_marked.sum() == large.sum() + 27
    assert (marked == marked_evenly(label, probability, 0)).all()
    assert (marked != marked_evenly(label, probability, 1)).any()
