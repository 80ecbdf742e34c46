"""Where the organs and tumors of synthetic patients lie."""

import numpy as np
import pytest

from dmrifit.simulate.organs import VOXEL_SIZE, _Canvas, draw_template, organ_table, paint

SHAPE = 48, 48, 8


def painted(template, seed=0, shape=SHAPE):
    """Paint a patient; give the share of each tissue as an image."""
    shares = paint(template, shape, np.random.default_rng(seed))
    return {tissue: values.reshape(shape) for tissue, values in shares.items()}


def middle(share):
    """Give the center of mass along x and y in halves of the field of view."""
    axes = [((np.arange(n) + 0.5) / n * 2 - 1) for n in share.shape]
    plane = share.sum(axis=2)
    return axes[0] @ plane.sum(axis=1) / plane.sum(), axes[1] @ plane.sum(axis=0) / plane.sum()


@pytest.mark.parametrize(
    ("choice", "shares"),
    [
        ("both", {"abdomen": 0.5, "male pelvis": 0.25, "female pelvis": 0.25}), ("abdomen", {"abdomen": 1.0}),
        ("pelvis", {"male pelvis": 0.5, "female pelvis": 0.5}),
    ],
)
def test_templates_are_drawn_with_equal_chances(choice, shares):
    rng = np.random.default_rng(0)
    drawn = [draw_template(choice, rng) for _ in range(2000)]
    assert set(drawn) == set(shares)
    for name, share in shares.items():
        assert drawn.count(name) / 2000 == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("template", list(organ_table()))
def test_shares_of_a_voxel_are_eighths_and_fill_it_inside_the_body(template):
    shares = painted(template)
    total = sum(shares.values())
    for share in shares.values():
        np.testing.assert_array_equal(share * 8, np.rint(share * 8))
    assert total.min() == 0
    assert total.max() == 1
    # An ellipse of 0.93 by 0.74 halves of the field, times 0.94 to 1.04; organs stay in it.
    area = np.pi / 4 * 0.93 * 0.74
    assert 0.94**2 * area * 0.98 < total.mean() < 1.04**2 * area * 1.02
    assert total[0].max() == total[:, 0].max() == 0


def test_organs_lie_where_they_lie_in_a_body():
    for seed in range(6):
        abdomen, man, woman = (painted(template, seed) for template in organ_table())
        assert middle(abdomen["liver"])[0] > 0.2  # right
        assert middle(abdomen["spleen"])[0] < -0.4  # left
        assert middle(abdomen["kidney"])[1] < -0.3  # behind
        assert middle(man["bladder"])[1] > 0.2  # in front
        assert middle(man["rectum"])[1] < -0.2
        np.testing.assert_allclose(middle(man["prostate"]), [0, 0], atol=0.2)
        assert "uterus" in woman
        assert not {"uterus", "liver"} & set(man)


@pytest.mark.parametrize("shape", [SHAPE, (12, 12, 2)])
def test_every_patient_has_a_tumor_and_some_a_dead_core(shape):
    dead = 0
    for seed in range(8):
        for template in organ_table():
            shares = painted(template, seed, shape)
            assert shares["tumor"].sum() > 0
            dead += "necrosis" in shares
    assert 8 < dead < 24


@pytest.mark.parametrize("template", list(organ_table()))
def test_tumors_grow_into_some_tissues_and_spare_the_others(template, monkeypatch):
    grown = [painted(template, seed) for seed in range(6)]
    organs = organ_table()[template]
    paint_ellipsoid = _Canvas.ellipsoid

    def spare(canvas, tissue, *place, within=()):
        if not within:
            paint_ellipsoid(canvas, tissue, *place)

    monkeypatch.setattr(_Canvas, "ellipsoid", spare)
    healthy = [painted(template, seed) for seed in range(6)]
    invaded = set()
    for sick, before in zip(grown, healthy, strict=True):
        assert "tumor" not in before
        for tissue, share in before.items():
            lost = (share - sick.get(tissue, 0)).sum()
            assert lost >= 0
            if lost > 0:
                invaded.add(tissue)
    assert next(organ.tissue for organ in organs if organ.tumors == "grow") in invaded
    assert invaded <= {organ.tissue for organ in organs if organ.tumors}


def test_an_ellipsoid_has_its_volume_and_place_and_turns_about_the_axis_of_the_body_in_mm():
    canvas = _Canvas((30, 40, 10), ("fat", "stone"))
    np.testing.assert_array_equal(canvas.half, np.array([30, 40, 10]) * VOXEL_SIZE / 2)
    canvas.ellipsoid("stone", np.array([0.2, -0.3, 0.0]), np.array([0.5, 0.3, 0.6]), 0.0)
    shares = canvas.shares()
    assert list(shares) == ["stone"]
    stone = shares["stone"].reshape(30, 40, 10)
    assert stone.sum() == pytest.approx(4 / 3 * np.pi * 15 * 0.5 * 20 * 0.3 * 5 * 0.6, rel=0.02)
    np.testing.assert_allclose(middle(stone), [0.2, -0.3], atol=0.01)
    canvas = _Canvas((30, 40, 4), ("stone",))
    canvas.ellipsoid("stone", np.zeros(3), np.array([0.6, 0.2, 9.0]), np.pi / 2)
    stone = canvas.shares()["stone"].reshape(30, 40, 4)[:, :, 0] > 0.5
    # Its radii are 0.6 · 45 mm and 0.2 · 60 mm, and the longer one lies along y now.
    assert np.flatnonzero(stone.any(axis=1)).size * 3 == pytest.approx(2 * 0.2 * 60, abs=4)
    assert np.flatnonzero(stone.any(axis=0)).size * 3 == pytest.approx(2 * 0.6 * 45, abs=4)
    canvas = _Canvas((40, 40, 4), ("stone",))
    canvas.ellipsoid("stone", np.zeros(3), np.array([0.8, 0.2, 9.0]), np.radians(30))
    stone = canvas.shares()["stone"].reshape(40, 40, 4)[:, :, 0]
    places = np.argwhere(stone > 0.5) - 19.5
    longest = np.linalg.eigh(places.T @ places)[1][:, 1]
    assert np.degrees(np.arctan(longest[1] / longest[0])) == pytest.approx(30, abs=1)


def test_paint_covers_what_lies_below_or_only_the_tissues_named():
    canvas = _Canvas((12, 12, 4), ("fat", "stone", "gold"))
    middle_of_field, wide, narrow = np.zeros(3), np.array([0.8, 0.8, 9.0]), np.array([0.4, 0.4, 9.0])
    canvas.ellipsoid("fat", middle_of_field, wide, 0.0)
    canvas.ellipsoid("stone", middle_of_field, narrow, 0.0)
    before = canvas.shares()
    canvas.ellipsoid("gold", middle_of_field, wide, 0.0, within=("stone",))
    after = canvas.shares()
    np.testing.assert_array_equal(after["gold"], before["stone"])
    np.testing.assert_array_equal(after["fat"], before["fat"])
    assert "stone" not in after
