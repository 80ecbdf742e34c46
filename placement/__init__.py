"""
Place magnetic resonance spectroscopy voxels in brain tumors.

Public names load their module on first use, so that importing the package stays quick.
"""

from dmrifit._optional import lazy_names

# Public name -> module of this package that defines it.
_MODULES = {
    "Voxel": "box.voxel",
    "Scene": "search.scene",
    "tumor_fraction": "search.objective",
    "tumor_volume_inside": "search.objective",
    "PlacementObjective": "search.objective",
    "VoxelOptimizer": "search.optimizer",
    "voxel_content": "search.objective",
    "VoxelRegressor": "learned.regressor",
    "VoxelRanker": "learned.ranker",
    "simulate_gliomas": "simulate.gliomas",
    "evaluate_placements": "study.evaluation",
    "read_voxel": "exchange.voxel_files",
    "repeat_voxel": "exchange.repeats",
    "write_prescription": "exchange.prescription",
}

__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
