"""
Segment brain metastases with losses that weigh sensitivity against specificity.

Public names load their module on first use, so that importing the package stays quick.
"""

from dmrifit._lazy import lazy_names

# Public name -> module of this package that defines it.
_MODULES = {
    "Case": "cases",
    "DeepMedicSegmenter": "segmenter",
    "JVSSLoss": "losses",
    "SSELoss": "losses",
    "segment_image": "images",
    "VSSLoss": "losses",
    "jvss_loss": "losses",
    "sse_loss": "losses",
    "vss_loss": "losses",
    "read_case": "cases",
    "read_cases": "cases",
    "write_cases": "cases",
    "simulate_metastases": "phantoms",
    "evaluate_segmentations": "evaluation",
    "segment_scores": "evaluation",
    "lesion_table": "evaluation",
    "lesion_scores": "evaluation",
    "operating_point": "operating_points",
    "SensitivitySpecificityEnsemble": "ensemble",
    "reader_table": "followup",
    "follow_up": "followup",
    "write_evaluation": "report",
}

__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
