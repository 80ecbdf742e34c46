"""
Segment brain metastases with losses that weigh sensitivity against specificity.

Public names load their module on first use, so that importing the package stays quick.
"""

from dmrifit._optional import lazy_names

# Public name -> module of this package that defines it.
_MODULES = {
    "Case": "scans.cases",
    "DeepMedicSegmenter": "segmentation.segmenter",
    "JVSSLoss": "networks.losses",
    "SSELoss": "networks.losses",
    "segment_image": "segmentation.ensemble",
    "VSSLoss": "networks.losses",
    "jvss_loss": "networks.losses",
    "sse_loss": "networks.losses",
    "vss_loss": "networks.losses",
    "prepare_scan": "scans.preparation",
    "read_case": "scans.cases",
    "read_cases": "scans.cases",
    "write_cases": "scans.cases",
    "implant_lesions": "simulate.implants",
    "simulate_metastases": "simulate.patients",
    "TwoStageSegmenter": "candidates.two_stage",
    "evaluate_segmentations": "study.evaluation",
    "mets_scores": "study.reader_scores",
    "segment_scores": "study.evaluation",
    "lesion_table": "study.evaluation",
    "lesion_scores": "study.evaluation",
    "operating_point": "segmentation.operating_points",
    "SensitivitySpecificityEnsemble": "segmentation.ensemble",
    "reader_table": "study.followup",
    "follow_up": "study.followup",
    "write_evaluation": "study.report",
}

__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
