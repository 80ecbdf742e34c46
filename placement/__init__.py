"""
Place magnetic resonance spectroscopy voxels in brain tumors.

Public names load their module on first use, so that importing the package stays quick.
"""

from importlib import import_module

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


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_MODULES})
