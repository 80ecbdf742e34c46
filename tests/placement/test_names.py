"""Names and parameters that scripts call voxels, scenes and placers by."""

import pytest
from front_door import check_signature

import placement

SIGNATURES = """
Voxel(center, size, angles=(0.0, 0.0, 0.0))
Voxel.contains(self, points)
Voxel.mask(self, shape, affine)
Voxel.dice(self, other)
Voxel.as_array(self)
Voxel.from_array(a)
Voxel.to_json(self)
Voxel.from_json(text)
Scene(tumor, affine, *, include=None, exclude=None, exclude_margin=0.0, image=None, labels=None, \
brain=None, name="")
Scene.read(tumor, exclude=None, image=None)
tumor_fraction(voxel, scene)
tumor_volume_inside(voxel, scene)
voxel_content(voxel, scene)
PlacementObjective(mean_volume=12.9, sd_volume=8.7, mean_fraction=0.95, sd_fraction=0.05, *, one_sided=False)
VoxelOptimizer(objective=None, *, size_range=(10, 60), min_volume=6.0, max_rotations=2, thorough=False, \
random_state=None)
VoxelOptimizer.fit(self, scenes=None, voxels=None)
VoxelOptimizer.predict(self, scenes)
VoxelOptimizer.place(self, scene)
VoxelOptimizer.candidates(self, scene, n)
VoxelRegressor(channels=("tumor", "distance"), *, loss="symmetric", expert_loss="min", fast=False, refine=False, \
device="auto", random_state=None)
VoxelRegressor.fit(self, scenes, voxels, *, groups=None)
VoxelRegressor.predict(self, scenes)
VoxelRegressor.place(self, scene)
VoxelRegressor.candidates(self, scene, n)
VoxelRanker(optimizer=None, *, n_candidates=15, n_jobs=None, random_state=None)
VoxelRanker.fit(self, scenes, voxels)
VoxelRanker.predict(self, scenes)
VoxelRanker.place(self, scene)
VoxelRanker.candidates(self, scene, n)
evaluate_placements(scenes, experts, placements)
repeat_voxel(voxel, image, new_image)
simulate_gliomas(n, *, n_experts=2, experts="preference", random_state=None)
write_prescription(voxel, scene, folder)
"""


@pytest.mark.parametrize("line", SIGNATURES.strip().split("\n"))
def test_names_and_parameters_are_kept(line):
    check_signature(placement, line)
