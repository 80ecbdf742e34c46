"""Names and parameters that scripts call detectors, rules and tables by."""

import pytest
from front_door import check_signature

import anomaly

COMMON = "training, device, random_state, threshold, calibration, scale, smooth_mm, spacing, region"
NETWORKS = f"""
DenoisingAutoencoder(latent_dim=512, output="sigmoid", *, {COMMON})
RecDiscNet(noise="mix", mean="half", mse_weight=5, bce_weight=1, positive_weight=20, *, {COMMON})
"""
SIGNATURES = """
VoxelwiseGaussian()
PCADetector()
IsolationForestDetector()
corrupt(volume, mask, *, noise="mix", mean="half", random_state=None)
FixedThreshold(value)
OtsuThreshold(*, scope="dataset")
MeanPoolThreshold(size_mm=38.4, *, spacing=None, scope="dataset")
YoudenThreshold(*, scope="dataset")
BestDiceThreshold(*, scope="dataset")
HealthyRateThreshold(rate=0.01)
HealthyScanThreshold(level=0.9, *, counted="components", rate=0.01, opening=3)
open_map(binary, size=3)
evaluate_detectors(cases, maps, *, healthy=(), healthy_maps=None, validation=None, validation_maps=None, rules=None, \
folds=None, opening=3, controls=True, lesion_wise=True, connectivity=26, min_overlap=1, n_jobs=None)
healthy_folds(cases, n_folds=7, *, random_state=0)
overlap_with_followup(anomaly, structural, followup, *, brain=None, affine=None)
simulate_dmri(n_healthy, n_lesions, *, n_directions=64, random_state=None)
read_cases(table)
write_cases(cases, folder)
"""
METHODS = ("fit(self, X, masks=None, *, groups=None)", "anomaly_map(self, X, masks=None)", "predict(self, X, masks=None)")
RULE_METHODS = ("fit(self, maps, masks=None, truths=None)", "apply(self, maps, masks=None)")


def methods_of(methods, *names):
    return [f"{name}.{method}" for name in names for method in methods]


DETECTORS = methods_of(METHODS, "AlignedMahalanobis", "VoxelwiseGaussian", "PCADetector", "IsolationForestDetector")
RULES = methods_of(RULE_METHODS, *(line.partition("(")[0] for line in SIGNATURES.split("\n") if "Threshold(" in line))


@pytest.mark.parametrize("line", [*SIGNATURES.strip().split("\n"), *DETECTORS, *RULES])
def test_names_and_parameters_are_kept(line):
    # Detectors may take their main parameter by place.
    check_signature(anomaly, line, only_keywords=not line.endswith("()"))


@pytest.mark.deep
@pytest.mark.parametrize("line", [*NETWORKS.strip().split("\n"), *methods_of(METHODS, "DenoisingAutoencoder", "RecDiscNet")])
def test_networks_have_the_same_interface(line):
    pytest.importorskip("torch")
    check_signature(anomaly, line, only_keywords=False)
