"""
Find anomalies in diffusion MRI with models trained on healthy tissue.

Public names load their module on first use, so that importing the package stays quick.
"""

from importlib import import_module

# Public name -> module of this package that defines it.
_MODULES = {
    "ImplantDetector": "discriminator",
    "IsolationForestDetector": "isolation",
    "PCADetector": "subspace",
    "OneMinusMean": "gaussian",
    "VoxelwiseGaussian": "gaussian",
    "Case": "cases",
    "DenoisingAutoencoder": "autoencoder",
    "RecDiscNet": "recdisc",
    "corrupt": "corruptions",
    "read_cases": "cases",
    "write_cases": "cases",
    "simulate_dmri": "phantoms",
    "write_evaluation": "report",
    "BestDiceThreshold": "thresholds",
    "FixedThreshold": "thresholds",
    "HealthyRateThreshold": "thresholds",
    "MeanPoolThreshold": "thresholds",
    "OtsuThreshold": "thresholds",
    "YoudenThreshold": "thresholds",
    "open_map": "thresholds",
    "PreparedScan": "preparation",
    "SeriesDetector": "series",
    "SeriesFiles": "series",
    "estimate_tissue": "tissue",
    "read_series": "series",
    "prepare_scan": "preparation",
    "resample_directions": "directions",
    "evaluate_detectors": "evaluation",
    "overlap_with_followup": "evaluation",
    "healthy_folds": "evaluation",
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
