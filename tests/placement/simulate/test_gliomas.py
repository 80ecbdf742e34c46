"""Synthetic gliomas have the volumes and parts they claim, and simulated experts the rules and moments of the study's."""

import numpy as np
import pytest
from scipy.ndimage import label

from placement import Scene, Voxel, tumor_fraction
from placement.simulate.gliomas import (
    TUMOR_VOLUMES,
    _rounded,
    _sampler,
    _search,
    place_boxes,
    simulate_gliomas,
)
from placement.study.evaluation import icc


@pytest.fixture(scope="module")
def cases():
    return simulate_gliomas(6, exclude=("necrosis", "ventricles", "outside"), image=True, random_state=3)


def test_lesions_have_volumes_in_the_stated_range_and_some_have_necrosis_or_satellites(cases):
    for scene in cases[0]:
        assert TUMOR_VOLUMES[0] * 0.98 <= scene.tumor_volume <= TUMOR_VOLUMES[1] * 1.02
        regions = scene.forbidden
        tumor = scene.tumor > 0
        assert not (tumor & (regions["ventricles"] | regions["outside"])).any()
        assert (regions["necrosis"] <= tumor).all()
    scenes, _ = simulate_gliomas(30, exclude=("necrosis",), spacing=4, random_state=0)
    necrotic = np.array([scene.forbidden["necrosis"].any() for scene in scenes])
    several = np.array([label(scene.tumor > 0, np.ones((3, 3, 3)))[1] > 1 for scene in scenes])
    assert 0.2 < necrotic.mean() < 0.7
    assert 0.05 < several.mean() < 0.5


def test_images_are_bright_in_solid_tumor_and_dark_in_necrosis(cases):
    for scene in cases[0]:
        regions = scene.forbidden
        solid = (scene.tumor > 0) & ~regions["necrosis"]
        brain = ~regions["outside"] & ~regions["ventricles"] & (scene.tumor == 0)
        assert scene.image[solid].mean() > 1.3 > 1.1 > scene.image[brain].mean() > 0.75
        if regions["necrosis"].any():
            assert scene.image[regions["necrosis"]].mean() < 1


@pytest.mark.parametrize("kind", ["preference", "objective"])
def test_a_case_depends_on_its_number_and_the_seed_alone(kind):
    few, some = (simulate_gliomas(n, experts=kind, spacing=4, random_state=5) for n in (1, 2))
    np.testing.assert_array_equal(few[0][0].tumor, some[0][0].tumor)
    np.testing.assert_array_equal(few[1][0], some[1][0])
    other = simulate_gliomas(1, experts=kind, spacing=4, random_state=6)
    assert not np.array_equal(few[1], other[1])


def test_cases_made_later_are_the_same(cases):
    # Regions that scenes list change neither lesions nor experts.
    scenes, voxels = simulate_gliomas(2, skip=4, random_state=3)
    assert scenes[0].forbidden == {}
    assert [scene.name for scene in scenes] == ["synthetic-005", "synthetic-006"]
    assert all(scene.synthetic for scene in scenes)
    np.testing.assert_array_equal(scenes[1].tumor, cases[0][5].tumor)
    np.testing.assert_array_equal(voxels, cases[1][4:])


def test_boxes_are_what_a_console_takes_and_rounding_keeps_turned_axes_and_the_least_volume():
    _, voxels = simulate_gliomas(6, spacing=3, random_state=3)
    assert (voxels[..., 3:6] == voxels[..., 3:6].round()).all()
    assert (voxels[..., 6:] == voxels[..., 6:].round()).all()
    assert ((voxels[..., 3:6] >= 10) & (voxels[..., 3:6] <= 60)).all()
    assert (voxels[..., 3:6].prod(-1) >= 6000).all()
    box = np.array([1.23, -4.56, 7.89, 18.4, 17.4, 18.6, 0.3, 12.6, -0.7])
    rounded = _rounded(box, np.array([True, True, False]))
    # 18 × 17 × 19 mm are less than 6 mL; the shortest side grows.
    np.testing.assert_allclose(rounded, [1.2, -4.6, 7.9, 18, 18, 19, 1, 13, 0])
    assert rounded[3:6].prod() >= 6000
    assert box[0] == 1.23


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["preference", "objective"])
def test_simulated_experts_have_about_the_published_moments(kind):
    # 80 cases differ between seeds by about this much.
    scenes, voxels = simulate_gliomas(80, experts=kind, random_state=0)
    boxes = [[Voxel.from_array(box) for box in pair] for pair in voxels]
    volumes = voxels[..., 3:6].prod(-1) / 1000
    fractions = np.array([[tumor_fraction(b, s) for b in pair] for pair, s in zip(boxes, scenes, strict=True)])
    turned = np.array([[b.rotated_angles for b in pair] for pair in boxes])
    tumors = np.array([scene.tumor_volume for scene in scenes])
    assert volumes.mean() == pytest.approx(12.4, abs=1.6)
    assert volumes.std() == pytest.approx(6.6, abs=1.6)
    assert fractions.mean() == pytest.approx(0.93, abs=0.04)
    assert fractions.std() == pytest.approx(0.12, abs=0.07)
    assert turned.mean() == pytest.approx(1.2, abs=0.25)
    assert turned.std() == pytest.approx(1.0, abs=0.2)
    assert np.mean([a.dice(b) for a, b in boxes]) == pytest.approx(0.46, abs=0.07)
    assert icc(volumes, "ICC(1,1)")["value"] == pytest.approx(0.30, abs=0.2)
    assert np.corrcoef(volumes.mean(1), tumors)[0, 1] == pytest.approx(0.5, abs=0.15)


def ellipsoid(spacing=(2.0, 2.0, 2.0), radii=(26.0, 20.0, 18.0)):
    """Make a lesion about the origin, and its affine."""
    shape = np.ceil(np.array([72, 60, 56]) / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * (shape - 1) * spacing
    points = np.moveaxis(np.indices(shape), 0, -1) * spacing + affine[:3, 3]
    return np.linalg.norm(points / radii, axis=-1) < 1, points, affine


def placed(tumor, necrosis, affine, n, *, kind="preference", seed=1, common=2):
    """Let n experts place boxes, each with a stream of its own and one in common."""
    rngs = [np.random.default_rng([seed, i]) for i in range(n)]
    shared = np.random.default_rng(common)
    return place_boxes(tumor, necrosis, affine, kind=kind, n_experts=n, rngs=rngs, shared=shared)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 2.5, 3.0)])
def test_the_sampler_estimates_the_share_of_a_box_in_a_mask(spacing):
    mask, _, affine = ellipsoid(spacing)
    scene = Scene(mask, affine)
    rng = np.random.default_rng(0)
    boxes = np.hstack([rng.normal(0, 9, (30, 3)), rng.uniform(12, 30, (30, 3)), rng.uniform(-40, 40, (30, 3))])
    exact = [tumor_fraction(Voxel.from_array(box), scene) for box in boxes]
    shares = _sampler(mask, affine)(boxes)
    assert np.ptp(exact) > 0.3
    np.testing.assert_allclose(shares, exact, atol=0.08)
    assert abs(np.mean(shares - exact)) < 0.015
    boxes[:, 0] += 500
    assert _sampler(mask, affine)(boxes).max() == 0


@pytest.mark.parametrize("kind", ["preference", "objective"])
def test_an_improved_box_has_the_intended_volume_and_is_nearly_pure(kind):
    mask, _, affine = ellipsoid()
    share = _sampler(mask, affine)
    shares = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        box = _search(np.array([4.0, -3, 2]), 11.0, np.zeros(3, bool), share, kind, rng)
        volume = box[3:6].prod() / 1000
        inside = tumor_fraction(Voxel.from_array(box), Scene(mask, affine))
        assert (volume * (inside if kind == "objective" else 1)) == pytest.approx(11, rel=0.25)
        assert inside > 0.9
        shares.append(inside)
        np.testing.assert_array_equal(box[6:], 0)
        turned = _search(np.zeros(3), 11.0, np.array([True, False, True]), share, kind, rng)
        np.testing.assert_array_equal(turned[6:] != 0, [True, False, True])
    # The objective asks for no more than 97 %, as far as few points can tell.
    assert kind == "preference" or 0.92 < np.mean(shares) < 0.975


def test_experts_move_boxes_at_the_rim_rather_than_shrink_them_and_avoid_necrosis_if_they_prefer():
    mask, _, affine = ellipsoid()
    share = _sampler(mask, affine)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rim = np.array([17.0, 4, 0])
        box = _search(rim, 14.0, np.zeros(3, bool), share, "preference", rng)
        assert box[3:6].prod() / 1000 == pytest.approx(14, rel=0.1)
        assert box[0] < 14
        assert np.linalg.norm(box[:3] - rim) < 20
    tumor, points, affine = ellipsoid()
    necrosis = tumor & (points[..., 0] < -2)
    shares = {}
    for kind in ("preference", "objective"):
        boxes = placed(tumor, necrosis, affine, 20, kind=kind)
        assert boxes.shape == (20, 9)
        scene = Scene(necrosis, affine)
        shares[kind] = np.mean([tumor_fraction(Voxel.from_array(box), scene) for box in boxes])
    assert shares["preference"] < 0.15
    assert shares["objective"] > shares["preference"] + 0.1


def test_boxes_of_experts_depend_on_streams_of_their_own_and_one_in_common():
    tumor, _, affine = ellipsoid()
    scan = tumor, np.zeros_like(tumor), affine
    three = placed(*scan, 3)
    np.testing.assert_array_equal(placed(*scan, 2), three[:2])
    assert (placed(*scan, 3, seed=0) != three).any(axis=1).all()
    assert len({row.tobytes() for row in three}) == 3


@pytest.mark.parametrize("kind", ["preference", "objective"])
def test_experts_choose_volumes_and_turns_as_often_as_stated(kind):
    tumor, _, affine = ellipsoid((3.0, 3.0, 3.0), (34.0, 28.0, 26.0))
    nothing, n = np.zeros_like(tumor), 120
    boxes = placed(tumor, nothing, affine, n, kind=kind, seed=3, common=4)
    # Boxes turn about none to three axes with these chances: 1.12 axes on the average.
    counts = np.bincount((boxes[:, 6:] != 0).sum(axis=1), minlength=4) / n
    np.testing.assert_allclose(counts, [0.36, 0.27, 0.26, 0.11], atol=0.12)
    assert (np.abs(boxes[:, 6:]) <= 40).all()
    volumes = boxes[:, 3:6].prod(axis=1) / 1000
    assert volumes.min() >= 6
    # Logarithms of volumes scatter by 0.7 about 2.6, cut at 6 mL and at about half of the lesion.
    assert np.median(volumes) == pytest.approx(np.exp(2.57), rel=0.2)
    assert np.percentile(volumes, 90) > 20
