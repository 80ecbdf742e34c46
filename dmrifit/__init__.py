"""
Diffusion MRI of tumors: fit signal models, predict protocols, score by patient.

Public names load their module on first use, so that importing the package stays quick.
"""

from dmrifit._optional import lazy_names

__version__ = "0.2.0"

# Public name -> module of this package that defines it.
_MODULES = {
    "Protocol": "engine.protocol",
    "average_directions": "engine.protocol",
    "Parameter": "engine.models",
    "SignalModel": "engine.models",
    "MODELS": "engine.models",
    "fit_voxels": "engine.fitting",
    "Cohort": "cohort.cohort",
    "Scan": "cohort.scan",
    "VoxelTable": "cohort.cohort",
    "simulate_cohort": "simulate.body_phantoms",
    "protocol_precision": "engine.design.precision",
    "suggest_model": "engine.design.identifiability",
    "rank_contrasts": "engine.design.precision",
    "rank_contrasts_by_prediction": "predict.contrast_ranking",
    "Evaluation": "study.comparison",
    "compare": "study.comparison",
    "learning_curve": "study.comparison",
    "leave_one_patient_out": "study.comparison",
    "write_report": "study.report.reporting",
    "FitResult": "engine.results",
    "FitStatus": "engine.results",
    "PatientScale": "cohort.scaling",
    "MapFitter": "engine.map_fitter",
    "ClinicalMetrics": "engine.map_fitter",
    "ALGORITHMS": "predict.algorithms",
    "make_regressor": "predict.algorithms",
    "SignalToSignal": "predict.strategies",
    "MapsToMaps": "predict.strategies",
    "resolve_patch_shape": "predict.base",
    "ConformalIntervals": "predict.conformal",
    "coverage_table": "predict.intervals",
    "resynthesize": "engine.resynthesis",
    "Training": "networks.training",
    "VolumeEstimator": "networks.volume_estimator",
    "save_model": "model_files.model_file",
    "load_model": "model_files.model_file",
    "fit_image": "imaging.fit_predict",
    "ImageMaps": "imaging.image_maps",
    "read_manifest": "io.scan_manifest",
    "repeatability": "imaging.regions",
    "roi_table": "imaging.regions",
    "predict_image": "imaging.fit_predict",
    "write_dicom_seg": "io.dicom_seg",
    "prepare_brain": "imaging.head_pipeline",
    "preprocess_image": "imaging.scan_pipeline",
    "estimate_sigma": "imaging.noise",
    "lesion_scores": "stats.lesion_matching",
    "lesion_table": "stats.lesion_matching",
    "bias_index": "stats.metrics",
    "dispersion_index": "stats.metrics",
}

__all__ = sorted(_MODULES)
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
