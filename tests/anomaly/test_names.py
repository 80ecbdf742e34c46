"""Names and parameters that scripts call detectors, rules and tables by."""

import inspect

import pytest
from front_door import check_signature

import anomaly

NETWORKS = """
DenoisingAutoencoder(latent_dim=512, output="sigmoid")
RecDiscNet(noise="mix", mean="half", mse_weight=5, bce_weight=1, positive_weight=20)
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
DETECTORS = ("AlignedMahalanobis", "VoxelwiseGaussian", "PCADetector", "IsolationForestDetector")
LEARNED = ("DenoisingAutoencoder", "RecDiscNet")
METHODS = (
    "fit(self, X, masks=None, *, groups=None)",
    "anomaly_map(self, X, masks=None)",
    "predict(self, X, masks=None)",
)
RULES = (
    "FixedThreshold", "OtsuThreshold", "MeanPoolThreshold", "YoudenThreshold", "BestDiceThreshold",
    "HealthyRateThreshold", "HealthyScanThreshold",
)  # fmt: skip


def lines(text):
    return text.strip().split("\n")


@pytest.mark.parametrize("line", lines(SIGNATURES))
def test_names_and_parameters_are_kept(line):
    # Detectors may take their main parameter by place.
    check_signature(anomaly, line, only_keywords=not line.endswith("()"))


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("method", METHODS)
def test_detectors_have_one_interface(name, method):
    check_signature(anomaly, f"{name}.{method}")


@pytest.mark.parametrize("name", RULES)
def test_rules_have_one_interface(name):
    check_signature(anomaly, f"{name}.fit(self, maps, masks=None, truths=None)")
    check_signature(anomaly, f"{name}.apply(self, maps, masks=None)")


@pytest.mark.deep
@pytest.mark.parametrize("line", [*lines(NETWORKS), *(f"{name}.{method}" for name in LEARNED for method in METHODS)])
def test_networks_have_the_same_interface(line):
    pytest.importorskip("torch")
    check_signature(anomaly, line, only_keywords=False)


@pytest.mark.deep
def test_estimators_with_a_network_name_their_common_parameters_alike():
    pytest.importorskip("torch")
    common = {"training", "device", "random_state", "threshold", "calibration", "scale", "smooth_mm", "spacing", "region"}
    for name in LEARNED:
        keywords = inspect.signature(getattr(anomaly, name)).parameters.values()
        assert common <= {parameter.name for parameter in keywords if parameter.kind is parameter.KEYWORD_ONLY}
