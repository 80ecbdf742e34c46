"""Gliomas have the volumes, necrosis, satellites and edema that they are drawn with."""

import numpy as np
import pytest
from scipy.ndimage import label

from dmrifit.simulate.gliomas import Glioma, fall
from dmrifit.simulate.heads import Head, StandardHead

SPACING = 3.0, 3.0, 3.0


@pytest.fixture(scope="module")
def head():
    return Head.draw((50, 60, 48), SPACING, np.random.default_rng(0), standard=StandardHead.of(SPACING))


def drawn(head, n, radius=18.0, **options):
    return [Glioma.draw(head, head.brain, radius, np.random.default_rng(seed), **options) for seed in range(n)]


def test_a_tumor_has_the_volume_of_its_ball_or_of_the_room_that_there_is(head):
    n_voxels = 4 / 3 * np.pi * 18**3 / 27
    for options in ({}, {"satellites": 1.0}):
        for glioma in drawn(head, 8, **options):
            assert glioma.tumor.sum() == pytest.approx(n_voxels, rel=0.03)
            assert not (glioma.tumor & ~head.brain).any()
            assert not glioma.core.any()
    allowed = np.zeros_like(head.brain)
    allowed[20:24, 20:24, 20:24] = True
    glioma = Glioma.draw(head, allowed, 30.0, np.random.default_rng(0))
    assert 0 < glioma.tumor.sum() <= 32
    assert (glioma.tumor <= allowed).all()
    glioma = Glioma.draw(head, np.zeros_like(head.brain), 15.0, np.random.default_rng(0), necrosis=0.3)
    assert not glioma.tumor.any()
    assert not glioma.core.any()


def test_most_gliomas_are_round_and_some_are_bent(head):
    longest = []
    for glioma in drawn(head, 30, radius=12.0):
        longest.append(np.sqrt(np.linalg.eigvalsh(np.cov(head.places[glioma.tumor].T))).max() / 12)
    # A ball has 0.45, an ellipsoid of such axes up to about 0.65.
    assert 0.45 < np.median(longest) < 0.62
    assert 1 <= np.sum(np.array(longest) > 0.7) <= 12


def test_the_border_of_small_gliomas_has_grains_of_three_millimeters(head):
    glioma = Glioma.draw(head, np.ones_like(head.brain), 6.0, np.random.default_rng(0))
    # Far away, second differences are those of the texture, whose voxels correlate by exp(-1/4) and exp(-1).
    is_far = np.linalg.norm(head.places - glioma.center, axis=-1)[1:-1] > 30
    differences = np.diff(np.log(glioma.distance + 1e-6), 2, axis=0)[is_far]
    assert differences.std() == pytest.approx(0.1 * np.sqrt(6 - 8 * np.exp(-1 / 4) + 2 * np.exp(-1)), rel=0.1)


def test_necrosis_has_its_share_and_a_rim_and_satellites_are_small_and_beside_the_tumor(head):
    for glioma in drawn(head, 8, necrosis=0.2):
        assert glioma.core.sum() / glioma.tumor.sum() == pytest.approx(0.2, abs=0.02)
        assert (glioma.core <= glioma.tumor).all()
        assert glioma.distance[glioma.core].max() < 0.9
        assert (head.depth[glioma.core] > 4 * head.size).all()
    n_components = []
    for glioma in drawn(head, 12, satellites=1.0):
        components, n = label(glioma.tumor)
        sizes = np.sort(np.bincount(components.ravel())[1:])
        n_components.append(n)
        assert sizes[:-1].sum() < 0.2 * sizes[-1]
        offsets = np.linalg.norm(head.places[glioma.tumor] - glioma.center, axis=-1)
        assert offsets.max() < 3 * 18
    assert np.mean(np.array(n_components) > 1) > 0.5
    assert all(label(glioma.tumor)[1] == 1 for glioma in drawn(head, 8))


def test_edema_reaches_into_white_matter(head):
    glioma = drawn(head, 1)[0]
    edema = glioma.edema(head, 1.5)
    assert not edema[glioma.distance > 1.85].any()
    inside = (glioma.distance < 1.1) & (head.white > 0.99)
    np.testing.assert_allclose(edema[inside], head.white[inside])
    assert (edema <= head.white).all()


def test_gliomas_begin_where_they_are_said_to(head):
    centers = np.array([glioma.center for glioma in drawn(head, 40, radius=6.0)])
    index = tuple(np.rint((centers - head.affine[:3, 3]) / 3).astype(int).T)
    assert (head.matter[index] > 0.7).all()
    assert 0.05 < np.mean(head.deep[index] > 0.1) < 0.5
    assert 0.1 < np.mean(head.depth[index] < 16) < 0.7


def test_numbers_of_one_property_do_not_change_another(head):
    plain, rich = (drawn(head, 1, **options)[0] for options in ({}, {"necrosis": 0.1, "satellites": 1.0}))
    np.testing.assert_array_equal(plain.center, rich.center)
    core = plain.distance < 0.5
    assert np.corrcoef(plain.distance[core], rich.distance[core])[0, 1] > 0.99
    again = drawn(head, 1)[0]
    np.testing.assert_array_equal(again.distance, plain.distance)


def test_shares_fall_around_the_border():
    shares = fall(np.array([0.5, 0.8, 1.0, 1.1, 1.2]), 0.2)
    np.testing.assert_allclose(shares, [1, 1, 0.5, 0.25, 0], atol=1e-9)
