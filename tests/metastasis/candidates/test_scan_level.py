"""Probabilities of a sure and of an unsure network become alike, lesions or not."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import expit, logit

from metastasis.candidates.scan_level import block_peaks, comparable

SHAPE = (84, 84, 84)
STEPS = (1.0, 1.0, 1.0)
BRAIN = np.linalg.norm(np.stack(np.indices(SHAPE), axis=-1) - 41.5, axis=-1) < 41
NOISE = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 4)
LOGITS = -8 + 2 * NOISE / NOISE.std()


def test_sure_and_unsure_networks_become_alike():
    sure, unsure = comparable(expit(1.5 * LOGITS + 8), BRAIN), comparable(expit(LOGITS), BRAIN)
    np.testing.assert_allclose(sure, unsure, atol=2e-3)
    assert (sure[~BRAIN] == 0).all()
    peaks = block_peaks(sure, BRAIN, STEPS)
    assert np.quantile(peaks, 0.5) == pytest.approx(-4, abs=0.05)
    assert np.quantile(peaks, 0.75) == pytest.approx(-2, abs=0.05)


def test_a_lesion_hardly_moves_the_rest_and_not_at_all_where_it_is_known():
    is_lesion = np.zeros(SHAPE, bool)
    is_lesion[30:46, 30:46, 30:46] = True
    probability = expit(np.where(is_lesion, 6, LOGITS))
    alone = comparable(expit(LOGITS), BRAIN)
    beside, known = (comparable(probability, BRAIN, lesions=m) for m in (None, is_lesion))
    elsewhere = BRAIN & ~is_lesion
    shifts = [logit(p[elsewhere].astype(float)) - logit(alone[elsewhere]) for p in (beside, known)]
    assert np.abs(shifts[0]).mean() < 1.5
    assert np.abs(shifts[1]).mean() < 0.3
    assert beside[38, 38, 38] > 0.99


def test_blocks_follow_the_spacing():
    coarse, fine = (block_peaks(expit(LOGITS), BRAIN, (edge,) * 3) for edge in (2.0, 1.0))
    assert len(coarse) > 5 * len(fine) > 500
    assert coarse.mean() < fine.mean()


def test_small_pieces_and_empty_brains_stay_as_they_are():
    probability = expit(LOGITS).astype(np.float32)
    piece = np.zeros(SHAPE, bool)
    piece[20:50, 20:50, 20:50] = True
    for brain in (piece, np.zeros(SHAPE, bool)):
        assert (comparable(probability, brain) == probability).all()
