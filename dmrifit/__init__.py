"""
Diffusion MRI of tumors: fit signal models, predict protocols, score by patient.

Public names load their module on first use, so that importing the package stays quick.
"""

from dmrifit._lazy import lazy_names

__version__ = "0.1.0"

# Public name -> module of this package that defines it.
_MODULES = {
    "Protocol": "protocol",
    "average_directions": "protocol",
    "Parameter": "models",
    "SignalModel": "models",
    "MODELS": "models",
    "fit_voxels": "fitting",
    "Cohort": "cohort",
    "Scan": "scans",
    "VoxelTable": "cohort",
    "simulate_cohort": "phantoms",
    "protocol_precision": "precision",
    "rank_contrasts": "precision",
    "rank_contrasts_by_prediction": "contrasts",
    "Evaluation": "evaluation",
    "compare": "evaluation",
    "learning_curve": "evaluation",
    "leave_one_patient_out": "evaluation",
    "write_report": "reporting",
    "FitResult": "results",
    "FitStatus": "results",
    "PatientScale": "scaling",
    "MapFitter": "mapping",
    "ClinicalMetrics": "mapping",
    "ALGORITHMS": "algorithms",
    "make_regressor": "algorithms",
    "SignalToSignal": "prediction",
    "MapsToMaps": "prediction",
    "resolve_patch_shape": "strategies",
    "ConformalIntervals": "conformal",
    "coverage_table": "conformal",
    "resynthesize": "resynthesis",
    "VolumeEstimator": "nets",
    "save_model": "persistence",
    "load_model": "persistence",
    "fit_image": "volumes",
    "read_manifest": "manifest",
    "repeatability": "regions",
    "roi_table": "regions",
    "predict_image": "volumes",
    "write_dicom_seg": "dicom",
    "prepare_brain": "preparation",
    "preprocess_image": "preprocessing",
    "estimate_sigma": "noise",
    "lesion_scores": "lesions",
    "lesion_table": "lesions",
    "bias_index": "metrics",
    "dispersion_index": "metrics",
}

__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
