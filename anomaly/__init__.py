"""
Find anomalies in diffusion MRI with models trained on healthy tissue.

Public names load their module on first use, so that importing the package stays quick.
"""

from anomaly.detectors.detector_table import CLASS_MODULES
from dmrifit._optional import lazy_names

# Public name -> module of this package that defines it.
_MODULES = {
    "Case": "scans.cases",
    "GENERATORS": "generators.generator_table",
    "corrupt": "generators.corruptions",
    "read_cases": "scans.cases",
    "write_cases": "scans.cases",
    "simulate_dmri": "simulate.persons",
    "write_evaluation": "study.report",
    "BestDiceThreshold": "detectors.thresholds",
    "FixedThreshold": "detectors.thresholds",
    "HealthyRateThreshold": "detectors.thresholds",
    "HealthyScanThreshold": "detectors.thresholds",
    "MeanPoolThreshold": "detectors.thresholds",
    "OtsuThreshold": "detectors.thresholds",
    "YoudenThreshold": "detectors.thresholds",
    "open_map": "detectors.thresholds",
    "PreparedScan": "scans.preparation",
    "SeriesDetector": "scans.series",
    "SeriesFiles": "scans.series",
    "estimate_tissue": "scans.preparation",
    "read_series": "scans.series",
    "prepare_scan": "scans.preparation",
    "resample_directions": "scans.directions",
    "evaluate_detectors": "study.evaluation",
    "overlap_with_followup": "study.scores",
    "healthy_folds": "study.evaluation",
    **{title: module.removeprefix("anomaly.") for title, module in CLASS_MODULES.items()},
}

__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
