"""Synthetic gliomas have the volumes and parts they claim, and simulated experts the moments of the study's."""

import numpy as np
import pytest
from scipy.ndimage import label

from placement.simulate.gliomas import TUMOR_VOLUMES, simulate_gliomas


@pytest.fixture(scope="module")
def cases():
    return simulate_gliomas(6, exclude=("necrosis", "ventricles", "outside"), image=True, random_state=3)


def test_lesions_have_volumes_in_the_stated_range_and_lie_in_the_brain(cases):
    for scene in cases[0]:
        assert TUMOR_VOLUMES[0] * 0.98 <= scene.tumor_volume <= TUMOR_VOLUMES[1] * 1.02
        regions = scene.forbidden
        tumor = scene.tumor > 0
        assert not (tumor & (regions["ventricles"] | regions["outside"])).any()
        assert (regions["necrosis"] <= tumor).all()


def test_some_lesions_have_necrosis_satellites_or_neither():
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


def test_regions_that_scenes_list_change_neither_lesions_nor_experts(cases):
    plain, voxels = simulate_gliomas(2, random_state=3)
    np.testing.assert_array_equal(voxels, cases[1][:2])
    np.testing.assert_array_equal(plain[1].tumor, cases[0][1].tumor)
    assert plain[0].forbidden == {}


def test_cases_made_later_are_the_same(cases):
    scenes, voxels = simulate_gliomas(2, exclude=("necrosis",), skip=4, random_state=3)
    assert [scene.name for scene in scenes] == ["synthetic-005", "synthetic-006"]
    assert all(scene.synthetic for scene in scenes)
    np.testing.assert_array_equal(scenes[1].tumor, cases[0][5].tumor)
    np.testing.assert_array_equal(voxels, cases[1][4:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 0}, "n must be a whole number"),
        ({"n_experts": 1.5}, "n_experts must be a whole number"),
        ({"experts": "real"}, "preference"),
        ({"spacing": 0}, "spacing must be one number or three"),
        ({"skip": -1}, "skip must be"),
        ({"exclude": "necrosis"}, "exclude must be one of"),
        ({"exclude": ("skull",)}, "ventricles"),
    ],
)
def test_impossible_requests_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        simulate_gliomas(**({"n": 1} | change))
