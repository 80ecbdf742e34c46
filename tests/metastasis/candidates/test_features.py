"""Features of planted balls, tubes and sheets, of changes since the prior, and levels of candidates."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from metastasis.candidates.features import FEATURES, PRIOR_FEATURES, ScanVolumes, find_candidates
from metastasis.candidates.judgment import scored_volume

SHAPE = (60, 60, 60)
NAMES = [*FEATURES, *PRIOR_FEATURES]
GRID = np.stack(np.indices(SHAPE), axis=-1).astype(float)
BRAIN = np.linalg.norm(GRID - 30, axis=-1) < 29
BALL = np.linalg.norm(GRID - (18, 30, 30), axis=-1) < 3.5
TUBE = (np.linalg.norm((GRID - (40, 30, 30))[..., :2], axis=-1) < 1.6) & (np.abs(GRID[..., 2] - 30) < 12)
SHEET = (np.abs(GRID[..., 1] - 15) < 1) & (np.linalg.norm(GRID - (30, 15, 30), axis=-1) < 9)


def scan(*bright, prior=None):
    values = np.ones(SHAPE, np.float32)
    for mask in bright:
        values[mask] = 1.8
    return ScanVolumes(values * BRAIN, BRAIN, np.ones(3), prior)


def features(mask, volumes):
    candidates = find_candidates(0.9 * mask.astype(np.float32), volumes, levels=(0.5,))
    assert len(candidates) == 1
    assert (np.sort(candidates.voxels[0]) == np.flatnonzero(mask)).all()
    return dict(zip(NAMES, candidates.table[0], strict=True))


def test_shapes_are_told_apart_and_a_ring_has_a_core():
    volumes = scan(BALL, TUBE, SHEET)
    ball, tube, sheet = (features(mask, volumes) for mask in (BALL, TUBE, SHEET))
    assert ball["blobness"] > 3 * max(tube["blobness"], sheet["blobness"])
    assert tube["tubeness"] > 3 * max(ball["tubeness"], sheet["tubeness"])
    assert sheet["sheetness"] > 2 * max(ball["sheetness"], tube["sheetness"])
    assert tube["elongation"] > 3 > 1.3 > ball["elongation"]
    assert sheet["flatness"] > 3 > 1.3 > ball["flatness"]
    assert ball["compactness"] > 0.6 > 0.3 > max(tube["compactness"], sheet["compactness"])
    assert ball["contrast"] == pytest.approx(0.8, abs=0.01)
    assert ball["log_volume"] == pytest.approx(np.log(BALL.sum()))
    assert ball["midplane"] == pytest.approx(12, abs=1)
    assert ball["depth"] == pytest.approx(17, abs=1)
    # The shell ends 3.5 mm from it in voxels of any size.
    steps = np.array([0.5, 0.7, 1.75])
    distance = ndimage.distance_transform_edt(~BALL, sampling=steps)
    rim, shell = (distance > 3.3) & (distance <= 3.5), (distance > 1) & (distance <= 3.5)
    ball = features(BALL, replace(scan(BALL, rim), steps=steps))
    assert ball["bright_shell"] == pytest.approx(rim.sum() / shell.sum())
    core = np.linalg.norm(GRID - (18, 30, 30), axis=-1) < 2
    volumes = scan(BALL)
    volumes.image[core] = 0.4
    ring = features(BALL & ~core, volumes)
    assert ring["core_share"] > 0.15
    assert ring["core_intensity"] == pytest.approx(-1.4, abs=0.01)


def test_changes_are_zero_for_what_was_there_and_missing_without_prior():
    before = scan(TUBE).image
    volumes = scan(BALL, TUBE, prior=before)
    new, old = features(BALL, volumes), features(TUBE, volumes)
    assert new["mean_change"] == pytest.approx(0.8, abs=0.01)
    assert new["prior_contrast"] == pytest.approx(0, abs=0.01)
    assert old["mean_change"] == pytest.approx(0, abs=0.01)
    assert old["contrast_change"] == pytest.approx(0, abs=0.02)
    # A prior that lies a voxel beside is no change either.
    moved = features(TUBE, scan(TUBE, prior=np.roll(before, 1, axis=0)))
    assert moved["mean_change"] == pytest.approx(0, abs=0.01)
    alone = features(BALL, scan(BALL))
    assert all(np.isnan(alone[name]) for name in PRIOR_FEATURES)
    assert new["aligned_change"] > 0.5 > 0.05 > abs(old["aligned_change"])
    assert new["change_deviation"] > 5
    assert (new["changed_share"], old["changed_share"]) == (1, 0)
    assert new["contrast_ratio"] == pytest.approx(0, abs=0.02)
    assert old["contrast_ratio"] == pytest.approx(1, abs=0.02)
    assert old["likeness"] == pytest.approx(1, abs=1e-3)
    assert abs(new["likeness"]) < 0.1


def test_the_prior_tells_what_has_grown_or_faded_and_how_probable_it_was():
    inner = np.linalg.norm(GRID - (18, 30, 30), axis=-1) < 2
    grown = features(BALL, scan(BALL, prior=scan(inner).image))
    shrunk = features(inner, scan(inner, prior=scan(BALL).image))
    assert 0.3 < grown["changed_share"] < 0.95
    assert grown["faded"] == pytest.approx(0, abs=1e-3)
    assert shrunk["changed_share"] == 0
    # What has faded around it also lowers the level that changes are held against.
    assert 0.6 < shrunk["faded"] <= 0.8
    volumes = scan(BALL, TUBE, prior=scan(TUBE).image)
    # The network took the tube for a metastasis before, a voxel beside.
    earlier = 0.7 * np.roll(TUBE, 1, axis=1).astype(np.float32)
    seen = replace(volumes, prior_probability=earlier)
    new, old = features(BALL, seen), features(TUBE, seen)
    assert (new["prior_probability"], old["prior_probability"]) == (0, pytest.approx(0.7))
    assert new["probability_change"] == pytest.approx(0.9)
    assert old["probability_change"] == pytest.approx(0.2)
    assert np.isnan(features(BALL, volumes)["prior_probability"])


def test_large_components_fall_apart_at_the_next_level_and_are_kept_below_the_last():
    merged = np.where(BALL | SHEET, 0.9, 0.1).astype(np.float32) * BRAIN
    candidates = find_candidates(merged, scan(BALL, SHEET), levels=(0.05, 0.5), min_voxels=4)
    # All of the brain would be one candidate of 100 mL.
    assert sorted(len(voxels) for voxels in candidates.voxels) == sorted([BALL.sum(), SHEET.sum()])
    assert len(find_candidates(merged, scan(BALL), levels=(0.95,))) == 0
    plateau = np.linalg.norm(GRID - 30, axis=-1) < 9.95
    assert 4000 < plateau.sum() < 4200
    probability = np.where(plateau, 0.36, 0).astype(np.float32)
    candidates = find_candidates(probability, scan(plateau))
    # It is found at three levels, and counts at the highest of them.
    assert [len(voxels) for voxels in candidates.voxels] == [plateau.sum()]
    assert candidates.table[0, NAMES.index("level")] == 0.1
    # A few voxels of a higher level are no candidate that could stand for it.
    probability[30, 30, 30:32] = 0.9
    assert len(find_candidates(probability, scan(plateau))) == 1
    probability[30, 30, 30:35] = 0.9
    assert [len(voxels) for voxels in find_candidates(probability, scan(plateau)).voxels] == [5]


def test_limited_candidates_of_low_levels_are_small_and_the_wall_of_a_large_ring_is_oversized():
    plateau = np.linalg.norm(GRID - 34, axis=-1) < 9.95
    probability = np.where(plateau, 0.05, np.where(BALL, 0.03, 0)).astype(np.float32)

    def sizes(level, **options):
        candidates = find_candidates(probability, scan(plateau), levels=(level,), **options)
        return sorted(len(voxels) for voxels in candidates.voxels)

    assert sizes(0.02) == [BALL.sum(), plateau.sum()]
    assert sizes(0.02, limited=True) == [BALL.sum()]
    probability *= 4
    # From 0.1 on nothing is limited.
    assert sizes(0.11, limited=True) == [BALL.sum(), plateau.sum()]
    distance = np.linalg.norm(GRID - 30, axis=-1)
    wall, bright = np.abs(distance - 15) < 1.2, np.abs(distance - 15) < 0.9
    bright &= np.abs(GRID[..., 0] - 30) > 3
    probability = (0.15 * wall + 0.6 * bright).astype(np.float32)
    candidates = find_candidates(probability, scan(wall), levels=(0.01, 0.02, 0.1, 0.4), limited=True)
    # At 0.1 and at 0.02 it is the same, and below all is tissue.
    assert len(candidates.oversized) == 2
    for voxels, core in candidates.oversized:
        assert (np.sort(voxels) == np.flatnonzero(wall)).all()
        assert len(core) >= len(voxels) / 2
    assert (np.sort(candidates.oversized[0][1]) == np.flatnonzero(bright)).all()
    assert (np.sort(candidates.oversized[1][1]) == np.flatnonzero(wall)).all()


class Sure:
    """Takes every candidate for a metastasis."""

    def predict(self, columns):
        return np.full(len(columns), 0.9)


@pytest.mark.parametrize("level", [0.03, 0.1, 0.15])
@pytest.mark.parametrize("limited", [False, True])
def test_tissue_around_a_small_core_is_not_marked_with_it(limited, level):
    probability = np.where(BALL, 0.9, level * BRAIN).astype(np.float32)
    candidates = find_candidates(probability, scan(BALL), limited=limited)
    scores = scored_volume(Sure(), candidates, SHAPE)
    assert ((scores >= 0.1) == BALL).all()


def test_order_of_levels_does_not_matter():
    probability = np.where(BALL | SHEET, 0.9, 0.1).astype(np.float32) * BRAIN
    volumes = scan(BALL, SHEET)
    upward = find_candidates(probability, volumes, levels=(0.05, 0.3, 0.5))
    downward = find_candidates(probability, volumes, levels=(0.5, 0.3, 0.3, 0.05))
    np.testing.assert_array_equal(upward.table, downward.table)


def test_local_levels_of_prior_and_scan():
    values = np.where(BALL, 180, 100) * BRAIN
    scaled = ScanVolumes.scaled(values, BRAIN, np.ones(3), 3 * values)
    np.testing.assert_allclose(scaled.image, scaled.prior, rtol=1e-5)
    assert np.median(scaled.image[BALL]) == pytest.approx(1.8, abs=0.05)
    assert ScanVolumes.scaled(values, BRAIN, np.ones(3), 0 * values).prior is None
