"""
Place magnetic resonance spectroscopy voxels in brain tumors.

Public names load their module on first use, so that importing the package stays quick.
"""

from dmrifit._lazy import lazy_names

# Public name -> module of this package that defines it.
_MODULES = {
    "Voxel": "voxel",
    "Scene": "scene",
    "tumor_fraction": "objective",
    "tumor_volume_inside": "objective",
    "PlacementObjective": "objective",
    "VoxelOptimizer": "optimizer",
    "VoxelRegressor": "regressor",
    "VoxelRanker": "ranker",
    "simulate_gliomas": "phantoms",
    "evaluate_placements": "evaluation",
    "write_prescription": "prescription",
}

__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
