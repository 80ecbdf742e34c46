"""
Find anomalies in diffusion MRI with models trained on healthy tissue.

Public names load their module on first use, so that importing the package stays quick.
"""

from dmrifit._lazy import lazy_names

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
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
