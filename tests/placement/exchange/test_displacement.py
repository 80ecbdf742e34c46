"""Distances of boxes from regions, and boxes displaced by chemical shift."""

import nibabel as nib
import numpy as np
import pytest

from placement.box.voxel import Voxel
from placement.exchange.displacement import (
    displaced_share,
    displacement,
    placed_in_brain,
    pulse_displacement,
    region_distances,
    tissue_share,
)
from placement.search.objective import tumor_fraction
from placement.search.optimizer import VoxelOptimizer
from placement.search.scene import Scene


@pytest.fixture(scope="module")
def scene(sphere_scene):
    make, points = sphere_scene
    return make(exclude={"wall": points[..., 0] > 50})


def test_distances_to_regions_are_those_of_a_wall(scene, sphere_scene):
    # Image voxels reach 1 mm beyond their centers, of which the first in the wall lies at 52 mm.
    box = Voxel((12, -8, 20), (20, 20, 20))
    found = region_distances(box, scene)["wall"]
    assert found["distance_mm"] == pytest.approx(51 - 22, abs=0.01)
    assert found["overlap_mL"] == 0
    turned = Voxel((12, -8, 20), (20, 20, 20), (0, 0, 45))
    assert region_distances(turned, scene)["wall"]["distance_mm"] == pytest.approx(51 - 12 - 10 * 2**0.5, abs=0.1)
    inside = region_distances(Voxel((56, 0, 20), (20, 20, 20)), scene)["wall"]
    assert inside["distance_mm"] == 0
    assert inside["overlap_mL"] == pytest.approx(6, rel=0.01)
    make, points = sphere_scene
    loose = make(exclude={"wall": points[..., 0] > 50}, exclude_margin=4, exclude_tolerance=0.9)
    found = region_distances(Voxel((45, 0, 20), (20, 20, 20)), loose)["wall"]
    # The wall begins at 51 mm, and the box ends at 55 mm; centers of image voxels are 2 mm apart.
    assert found["share_within_margin"] == pytest.approx(8 / 20, abs=0.06)


def test_displacement_is_that_of_the_formula_and_the_worst_and_largest_are_found(scene):
    box = Voxel((12, -8, 20), (30, 24, 24), (0, 0, 30))
    none = displacement(box, scene, ppm_range=(-2, 2), percent_per_ppm=0)
    assert none["worst_tumor_fraction"] == none["tumor_fraction"] == pytest.approx(tumor_fraction(box, scene))
    found = displacement(box, scene, ppm_range=(-1, 3), percent_per_ppm=(5, 0, 0))
    assert found["largest_shift_mm"] == pytest.approx(3 * 0.05 * 30)
    assert abs(found["shift_mm"][0]) == pytest.approx(4.5)
    np.testing.assert_allclose(found["center_mm"], box.center + box.rotation @ found["shift_mm"])
    moved = Voxel(found["center_mm"], box.size, box.angles)
    assert found["worst_tumor_fraction"] == pytest.approx(tumor_fraction(moved, scene))
    assert found["worst_tumor_fraction"] < found["tumor_fraction"]
    distance = region_distances(box, scene)["wall"]["distance_mm"]
    assert found["worst_distance_mm"]["wall"] == pytest.approx(distance - 4.5 * np.cos(np.pi / 6), abs=0.25)
    box = Voxel((12, -8, 20), (20, 30, 40))
    shifts = displacement(box, scene, ppm_range=(-2, 1), percent_per_ppm=(5, 2, 6))
    # Two ppm shift the sides by 10, 4 and 12 percent.
    assert shifts["largest_shift_mm"] == pytest.approx(np.sqrt(2**2 + 1.2**2 + 4.8**2))
    assert shifts["percent_per_ppm"] == [5, 2, 6]


def test_bandwidths_give_the_displacement_of_water_metabolite_and_lipid():
    # 1 ppm at 3 T are 127.7 Hz, of a pulse of 2 kHz 6.4 % of the side.
    shift = pulse_displacement([2000], tesla=3.0, carrier=2.3, metabolite=3.2)
    assert shift["percent_per_ppm"] == pytest.approx(100 * 127.731 / 2000, rel=1e-4)
    assert shift["ppm_range"] == pytest.approx((-1.0, 2.4))
    each = pulse_displacement([1000, 2000, 4000], tesla=3.0, carrier=4.7, metabolite=3.2)
    assert each["ppm_range"] == pytest.approx((-3.4, 0))
    assert np.divide(*each["percent_per_ppm"][:2]) == pytest.approx(2)
    for bandwidths, tesla, words in (([0], 3, "above 0"), ([1, 2], 3, "each side"), ([1000], 128, "tesla")):
        with pytest.raises(ValueError, match=words):
            pulse_displacement(bandwidths, tesla, 2.3, 3.2)


def test_the_union_of_displaced_boxes_is_that_of_each_and_is_kept_in_the_brain():
    # Make a tumor at the border of a brain that ends at x = 59.5 mm.
    tumor = np.zeros((80, 80, 80), bool)
    tumor[20:60, 20:60, 20:60] = True
    brain = np.zeros(tumor.shape, bool)
    brain[5:60, 5:75, 5:75] = True
    in_brain = Scene(tumor, np.eye(4), brain=brain, brain_margin=0.0)
    box = Voxel((47.0, 40, 40), (20, 20, 20))
    shift = {"ppm_range": (-1.0, 2.0), "percent_per_ppm": (10.0, 0.0, 0.0)}
    # Shifted by up to 4 mm, it reaches from 33 to 61 mm; the brain ends at 59.5 mm.
    assert displaced_share(box, in_brain, **shift) == pytest.approx(1.5 / 28, abs=1e-4)
    assert displaced_share(Voxel((44.0, 40, 40), (20, 20, 20)), in_brain, **shift) == 0
    shift = {"ppm_range": (-1.0, 2.4), "percent_per_ppm": 6.4}
    optimizer = VoxelOptimizer(random_state=0)
    voxel, moved = placed_in_brain(optimizer, in_brain, shift)
    assert displaced_share(voxel, moved, **shift) == 0
    assert voxel.corners[:, 0].max() + 2.4 * 0.064 * voxel.size.max() <= 59.5 + 1e-3
    assert placed_in_brain(optimizer, in_brain, {})[0] == optimizer.place(in_brain)


def test_the_share_of_a_tissue_is_that_of_its_map(tmp_path):
    gray = np.zeros((30, 30, 30), np.float32)
    gray[:15] = 0.8
    nib.save(nib.Nifti1Image(gray, np.eye(4)), tmp_path / "gray.nii.gz")
    # A quarter of the box lies where the map is 0.8.
    assert tissue_share(Voxel((17.0, 14, 14), (10, 10, 10)), tmp_path / "gray.nii.gz") == pytest.approx(0.2, abs=1e-5)
    with pytest.raises(ValueError, match=r"reaches outside .*gray.nii.gz"):
        tissue_share(Voxel((27.0, 14, 14), (10, 10, 10)), tmp_path / "gray.nii.gz")
    nib.save(nib.Nifti1Image(100 * gray, np.eye(4)), tmp_path / "percent.nii.gz")
    with pytest.raises(ValueError, match=r"percent.nii.gz contains 13500 values outside 0 to 1; give a map of fractions"):
        tissue_share(Voxel((17.0, 14, 14), (10, 10, 10)), tmp_path / "percent.nii.gz")
