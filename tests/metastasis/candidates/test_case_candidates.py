"""Candidates of a case: the prior is moved onto the scan and segmented like one."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from scipy.special import expit, logit

from metastasis.candidates.case_candidates import (
    aligned_prior,
    block_peaks,
    case_candidates,
    comparable_probability,
)
from metastasis.candidates.judgment import NAMES

SHAPE = (36, 36, 36)
GRID = np.stack(np.indices(SHAPE), axis=-1).astype(float)
BRAIN = np.linalg.norm(GRID - 18, axis=-1) < 17
OLD = np.linalg.norm(GRID - (12, 18, 18), axis=-1) < 2.5
NEW = np.linalg.norm(GRID - (24, 18, 18), axis=-1) < 2.5


class Bright:
    """Takes what is bright for a metastasis, and keeps what it has seen."""

    def __init__(self):
        self.seen = []

    def predict_proba(self, volumes, *, masks=None):
        self.seen += volumes
        values = [np.asarray(getattr(volume, "dataobj", volume)) for volume in volumes]
        return [np.clip((v - 130) / 40, 0, 1).astype(np.float32) for v in values]


def volumes():
    rng = np.random.default_rng(0)
    image, prior = (rng.normal(100, 3, SHAPE) for _ in range(2))
    image[OLD | NEW] = prior[OLD] = 190
    return image * BRAIN, prior * BRAIN


def by_place(candidates):
    rows = [dict(zip(NAMES, row, strict=True)) for row in candidates.table]
    flat = OLD.ravel()
    return {bool(flat[voxels].any()): row for voxels, row in zip(candidates.voxels, rows, strict=True)}


def test_a_prior_is_segmented_as_a_scan():
    image, prior = volumes()
    segmenter = Bright()
    rows = by_place(case_candidates(segmenter, (image, prior, BRAIN), levels=(0.5,)))
    assert len(segmenter.seen) == 2
    assert rows[True]["prior_probability"] > 0.9 > 0.1 > rows[False]["prior_probability"]
    assert rows[False]["probability_change"] > 0.9


def test_images_are_compared_on_their_grid_and_missing_priors_are_none():
    image, prior = volumes()
    affine = np.diag([-1.0, 1, 1, 1])
    case = nib.Nifti1Image(image, affine), nib.Nifti1Image(prior, affine), None
    segmenter = Bright()
    rows = by_place(case_candidates(segmenter, case, levels=(0.5,)))
    assert rows[True]["prior_probability"] > 0.9
    np.testing.assert_array_equal(segmenter.seen[1].affine, affine)
    for other in ({"use_prior": False}, {}):
        before = prior if other else 0 * prior
        alone = by_place(case_candidates(Bright(), (image, before, BRAIN), levels=(0.5,), **other))
        assert all(np.isnan(alone[False][name]) for name in NAMES[-8:])


@pytest.mark.parametrize(("least_blocks", "is_limited"), [(1, True), (100, False)])
def test_candidates_are_limited_in_size_where_probabilities_were_scaled(monkeypatch, least_blocks, is_limited):
    image, _ = volumes()
    found = []
    monkeypatch.setattr("metastasis.candidates.case_candidates._LEAST_BLOCKS", least_blocks)
    monkeypatch.setattr(
        "metastasis.candidates.case_candidates.find_candidates",
        lambda probability, scan, **options: found.append((probability, options)),
    )
    case_candidates(Bright(), (image, None, BRAIN), is_comparable=True)
    ((probability, options),) = found
    assert options["limited"] is is_limited
    (raw,) = Bright().predict_proba([image])
    assert (probability == raw).all() == (not is_limited)


def test_a_segmenter_of_several_channels_segments_no_prior():
    image, prior = volumes()
    both = np.stack([image, image], axis=-1)

    class First(Bright):
        def predict_proba(self, volumes, *, masks=None):
            return super().predict_proba([volume[..., 0] for volume in volumes])

    segmenter = First()
    rows = by_place(case_candidates(segmenter, (both, prior, BRAIN), levels=(0.5,)))
    assert len(segmenter.seen) == 1
    assert np.isnan(rows[True]["prior_probability"])
    assert np.isfinite(rows[True]["likeness"])


WIDE = (84, 84, 84)
MILLIMETERS = (1.0, 1.0, 1.0)
HEAD = np.linalg.norm(np.stack(np.indices(WIDE), axis=-1) - 41.5, axis=-1) < 41
NOISE = gaussian_filter(np.random.default_rng(0).normal(size=WIDE), 4)
LOGITS = -8 + 2 * NOISE / NOISE.std()


def test_networks_become_alike_and_a_lesion_moves_the_rest_less_where_its_voxels_are_left_out():
    sure, unsure = comparable_probability(expit(1.5 * LOGITS + 8), HEAD), comparable_probability(expit(LOGITS), HEAD)
    np.testing.assert_allclose(sure, unsure, atol=2e-3)
    assert (sure[~HEAD] == 0).all()
    peaks = block_peaks(sure, HEAD, MILLIMETERS)
    assert np.quantile(peaks, 0.5) == pytest.approx(-4, abs=0.05)
    assert np.quantile(peaks, 0.75) == pytest.approx(-2, abs=0.05)
    is_lesion = np.zeros(WIDE, bool)
    is_lesion[22:38, 22:38, 22:38] = True  # in 8 blocks
    probability = expit(np.where(is_lesion, 6, LOGITS))
    alone = comparable_probability(expit(LOGITS), HEAD)
    beside, known = (comparable_probability(probability, HEAD, lesions=m) for m in (None, is_lesion))
    elsewhere = HEAD & ~is_lesion
    shifts = [logit(p[elsewhere].astype(float)) - logit(alone[elsewhere]) for p in (beside, known)]
    assert np.abs(shifts[0]).mean() < 1.5
    assert np.abs(shifts[1]).mean() < 0.3
    assert beside[30, 30, 30] > 0.99


def test_blocks_follow_the_spacing():
    coarse, fine = (block_peaks(expit(LOGITS), HEAD, (edge,) * 3) for edge in (2.0, 1.0))
    assert len(coarse) > 5 * len(fine) > 500
    assert coarse.mean() < fine.mean()


def test_empty_slices_change_nothing_and_small_pieces_and_empty_brains_have_no_level():
    probability = expit(LOGITS)
    peaks = block_peaks(probability, HEAD, MILLIMETERS)
    padding = ((5, 0), (3, 7), (1, 2))
    padded = (np.pad(volume, padding) for volume in (probability, HEAD))
    np.testing.assert_array_equal(block_peaks(*padded, MILLIMETERS), peaks)
    probability = expit(LOGITS).astype(np.float32)
    piece = np.zeros(WIDE, bool)
    piece[20:50, 20:50, 20:50] = True
    for brain in (piece, np.zeros(WIDE, bool)):
        assert comparable_probability(probability, brain) is None


ODD_SHAPE = (44, 40, 42)
PLACES = np.stack(np.indices(ODD_SHAPE), axis=-1).astype(float)
ODD_BRAIN = np.linalg.norm((PLACES - 20) / (20, 18, 19), axis=-1) < 1
ODD_BALL = np.linalg.norm(PLACES - (14, 20, 20), axis=-1) < 2.6


@pytest.fixture(scope="module")
def head():
    """Make tissue of three levels with folds, which reaches beyond the brain."""
    folds = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(ODD_SHAPE), 2.2)
    folds /= folds.std()
    tissue = np.where(folds > 0.3, 1.0, np.where(folds > -1.2, 0.75, 0.3))
    return ndimage.gaussian_filter(tissue, 0.6)


def moved(values, shift, degrees):
    """Turn a volume about its third axis, and shift it."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return ndimage.affine_transform(values, turn, 20 - turn @ np.full(3, 20.0) + shift, order=3, mode="nearest")


def noisy(values, seed):
    return (100 * values + np.random.default_rng(seed).normal(0, 2, ODD_SHAPE)) * ODD_BRAIN


def test_a_displaced_prior_comes_back_and_a_new_lesion_draws_nothing_to_it(head):
    deep = ndimage.distance_transform_edt(ODD_BRAIN) > 3
    image = noisy(head, 1)
    prior = noisy(moved(head, (1.1, -0.8, 0.9), 2.0), 2)
    back = aligned_prior(image, 1.3 * prior, ODD_BRAIN, np.ones(3)) / 1.3
    before, after = (np.abs(image - values)[deep].mean() for values in (prior, back))
    same = np.abs(image - noisy(head, 3))[deep].mean()
    assert before > 2.5 * same
    assert after < 1.1 * same
    assert not back[~ODD_BRAIN].any()
    bright = np.where(ODD_BALL, 1.9, head)
    prior = noisy(moved(head, (0.7, 0.5, -0.6), 0), 2)
    back = aligned_prior(noisy(bright, 1), prior, ODD_BRAIN, np.ones(3))
    assert back[ODD_BALL].max() < 125
    assert np.abs(back[ODD_BALL] - 100 * head[ODD_BALL]).mean() < 8


def test_edges_of_voxels_are_lengths(head):
    thick = head[:, :, ::2]
    shifted = ndimage.shift(thick, (1, 0, 0), order=3, mode="nearest")
    brain = ODD_BRAIN[:, :, ::2]
    back = aligned_prior(100 * thick * brain, 100 * shifted * brain, brain, np.array([1.0, 1, 2]))
    deep = ndimage.distance_transform_edt(brain, sampling=(1, 1, 2)) > 4
    before, after = (np.abs(100 * thick - values)[deep].mean() for values in (100 * shifted, back))
    assert after < 0.35 * before


def test_a_prior_of_a_single_slice_stays_where_it_is(head):
    image, brain = 100 * head[:, :, 10:11], ODD_BRAIN[:, :, 10:11]
    np.testing.assert_allclose(aligned_prior(image, image, brain, np.ones(3)), image * brain, rtol=1e-4)
